"""The parts of a diffusers pipeline on disk: which there are, what class each is, and nothing that is not on a list.

Nothing in a folder is executed: a part is made by a class of diffusers or transformers that is named here, its configuration is JSON and
its weights are read by :mod:`rdc.models.convert.diffusers_parts`, or, for transformers' own, from safetensors alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdc.arguments.scalars import shown
from rdc.errors import CheckpointError, one_line
from rdc.models.convert.diffusers_parts import model_weights, scheduler_options, unet_folder
from rdc.models.packages import imported
from rdc.models.words import different_names
from rdc.storage.json_files import read_json
from rdc.storage.reading import reading

__all__ = ["Pipeline", "find_pipeline", "made"]

#: classes that predict, and the folder that pipelines keep them in
DENOISERS = {
    "DiTTransformer2DModel": "transformer",
    "SD3Transformer2DModel": "transformer",
    "UNet2DModel": "unet",
    "UNet2DConditionModel": "unet",
}
_ENCODERS = ("AutoencoderKL",)
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
_LARGEST, _LAYERS = 1_000_000, 1000  # of a number in a configuration; of layers, and of entries in a list


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Where the parts of a pipeline are.

    Args:
        root: its folder.
        denoiser: (class, folder).
        vae: (class, folder), or None: a model of pixels.
        text: (class, folder of the text encoder, folder of its tokenizer), in the order of their numbers.
        scheduler: its configuration.
        class_names: of ``id2label`` in model_index.json, by index.
    """

    root: Path
    denoiser: tuple[str, Path]
    vae: tuple[str, Path] | None
    text: tuple[tuple[str, Path, Path], ...]
    scheduler: dict[str, Any]
    class_names: tuple[str, ...] | None


def find_pipeline(root: Path) -> Pipeline:
    """The parts of the pipeline, or of the single model, in a folder.

    Args:
        root: a folder with model_index.json and a folder a part, as ``save_pretrained`` of a pipeline writes it, or one with a model's
            config.json, its weights, and a ``scheduler_config.json`` beside them.

    Raises:
        CheckpointError: neither, a part is missing, or a part is of a class that is not supported.
    """
    with reading(root, CheckpointError, "a folder of diffusers"):
        if (root / "model_index.json").is_file():
            return _whole(root, read_json(root / "model_index.json", CheckpointError, kind=dict))
        if (root / "config.json").is_file():
            return _single(root)
    raise CheckpointError(
        f"{root}: expected a folder of diffusers, with model_index.json (a pipeline) or config.json (one model); there is neither"
    )


def _whole(root: Path, index: dict[str, Any]) -> Pipeline:
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and entry != [None, None]}
    for name, entry in parts.items():
        if len(entry) != 2 or entry[0] not in ("diffusers", "transformers", "stable_diffusion"):
            raise CheckpointError(
                f"{root}/model_index.json: {one_line(name, 60)}: expected a class of diffusers or transformers; got {shown(entry)}. Code "
                "from a model's folder is never executed"
            )
    denoiser = next((name for name in ("transformer", "unet") if name in parts), None)
    if denoiser is None:
        raise CheckpointError(
            f"{root}/model_index.json: expected a part transformer or unet; got {', '.join(map(one_line, parts)) or 'none'}"
        )
    vae = parts.get("vae")
    text = []
    for name in sorted(part for part in parts if part.startswith("text_encoder")):
        tokenizer = name.replace("text_encoder", "tokenizer")
        text.append((_class(root, name, parts[name], TEXT_ENCODERS), root / name, root / tokenizer))
    labels = index.get("id2label")
    place = root / denoiser
    if denoiser == "unet" and (root / "unet_ema").is_dir():
        place = unet_folder(root)[0]
    for folder in [place, *([root / "vae"] if vae else []), *(part for _, *both in text for part in both)]:
        if not folder.is_dir():
            raise CheckpointError(
                f"{root}: expected a folder {folder.name}, a part that model_index.json names; it is missing: copy the whole folder"
            )
    return Pipeline(
        root,
        (_class(root, denoiser, parts[denoiser], tuple(DENOISERS)), place),
        None if vae is None else (_class(root, "vae", vae, _ENCODERS), root / "vae"),
        tuple(text),
        _scheduler(root, root / "scheduler"),
        _names(labels) if isinstance(labels, dict) else None,
    )


def _single(root: Path) -> Pipeline:
    name = read_json(root / "config.json", CheckpointError, kind=dict).get("_class_name")
    kind = _class(root, "config.json", ["diffusers", name], tuple(DENOISERS))
    return Pipeline(root, (kind, root), None, (), _scheduler(root, root, root.parent / "scheduler"), None)


def _class(root: Path, part: str, entry: list[Any], known: tuple[str, ...]) -> str:
    if entry[1] not in known:
        raise CheckpointError(f"{root}: {part}: expected {' or '.join(known)}; got {shown(entry[1])}")
    return str(entry[1])


def _scheduler(root: Path, *folders: Path) -> dict[str, Any]:
    if (found := scheduler_options(*folders)) is not None:
        return found[0]
    raise CheckpointError(
        f"{root}: expected scheduler_config.json in {' or '.join(map(str, folders))}: without it nobody knows what the model predicts, "
        "and at which noise"
    )


def _names(labels: dict[str, Any]) -> tuple[str, ...] | None:
    """id2label's names, if they are those of 0, 1, 2, ..."""
    if sorted(labels) != sorted(map(str, range(len(labels)))):
        return None
    return different_names([str(labels[str(number)]) for number in range(len(labels))], len(labels))


def made(kind: str, folder: Path) -> nn.Module:
    """A model of diffusers with the folder's configuration and weights, float32, frozen, in evaluation mode.

    Args:
        kind: a class of diffusers.
        folder: with config.json and weights.

    Raises:
        CheckpointError: a configuration that the class refuses, sizes beyond all bounds, or weights that are not the model's.
        ConfigError: diffusers is not installed.
    """
    diffusers = library("diffusers")
    with reading(folder, CheckpointError, f"a {kind} of diffusers"):
        options = read_json(folder / "config.json", CheckpointError, kind=dict)
        _bounded(options, folder)
        state, _ = model_weights(folder)
        plain = {name: value for name, value in options.items() if not name.startswith("_")}
        with torch.device("meta"):  # sizes first, memory afterwards
            shapes = {
                name: tuple(value.shape)
                for name, value in getattr(diffusers, kind).from_config(plain).state_dict().items()
            }
        there = {name: tuple(value.shape) for name, value in state.items()}
        if wrong := sorted(name for name in {*shapes, *there} if shapes.get(name) != there.get(name)):
            raise CheckpointError(
                f"{folder}: expected the {len(shapes)} tensors of its config.json; {len(wrong)} are missing, unknown or of another shape, "
                f"such as {one_line(wrong[0], 80)}"
            )
        model = getattr(diffusers, kind).from_config(plain)
        model.load_state_dict(state)
    module: nn.Module = model.float().eval().requires_grad_(False)
    return module


def _bounded(value: Any, folder: Path, name: str = "config.json") -> None:
    if isinstance(value, (list, dict)):
        if len(value) > _LAYERS:
            raise CheckpointError(
                f"{folder}/config.json: {name}: expected at most {_LAYERS:,} entries; got {len(value):,}"
            )
        for inner, entry in value.items() if isinstance(value, dict) else ((name, entry) for entry in value):
            _bounded(entry, folder, one_line(inner, 60))
        return
    most = _LAYERS if "layer" in name else _LARGEST
    if isinstance(value, (int, float)) and not abs(value) <= most:
        raise CheckpointError(f"{folder}/config.json: {name}: expected numbers up to {most:,}; got {shown(value)}")


def library(name: str) -> Any:
    """diffusers, transformers or huggingface_hub.

    Raises:
        ConfigError: it is not installed.
    """
    return imported(name, "robust-diffusion-classifier[diffusers]")
