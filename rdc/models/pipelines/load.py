"""``diffusers:FOLDER``: a pipeline of the diffusers library as a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdc.arguments.scalars import as_number, shown
from rdc.errors import CheckpointError, ConfigError, one_line
from rdc.method.classifier import DiffusionClassifier
from rdc.method.custom_denoiser import CustomDenoiser
from rdc.method.latents import LatentDenoiser
from rdc.models.convert.diffusers_parts import sample_size
from rdc.models.libraries.weights import say_download
from rdc.models.of_function import classifier_of
from rdc.models.pipelines.networks import LabelledModel, PromptedModel, VaeEncoder
from rdc.models.pipelines.noise import schedule_of
from rdc.models.pipelines.parts import Pipeline, find_pipeline, library, made
from rdc.models.pipelines.prompts import TextTable, embedded_prompts, read_prompts
from rdc.models.words import parse_shape

__all__ = ["load_pipeline"]


def load_pipeline(
    folder: str,
    device: torch.device,
    settings: dict[str, Any],
    *,
    prompts: str | None = None,
    image: str | None = None,
    guidance: str | float = 1.0,
    null: str | None = None,
) -> DiffusionClassifier:
    """A classifier of a pipeline's folder, or of a Hugging Face name.

    Args:
        folder: a local folder, or OWNER/NAME on Hugging Face (its cache first).
        device: where to put it.
        settings: of ``DiffusionClassifier``.
        prompts: CSV of class,prompt, for models that take text.
        image: "CxHxW" of the images that will be classified; they are resized to what an autoencoder takes. None: the model's own size.
        guidance: classifier-free guidance; 1: off.
        null: index of the label that stands for none; None: DiT's own, the empty prompt, or none.

    Raises:
        CheckpointError: a folder of another kind, a missing or unknown part, weights that do not fit.
        ConfigError: settings that do not go together; a library that is not installed.
    """
    pipeline = find_pipeline(_local(folder))
    kind, place = pipeline.denoiser
    strength = as_number(float(guidance) if isinstance(guidance, str) and _is_number(guidance) else guidance)
    if strength is None or not 0 < strength < 1000:
        raise ConfigError(f"guidance: expected a positive number, 1 for none; got {shown(guidance)}")
    model: Any = made(kind, place)
    schedule, predicts = schedule_of(pipeline.scheduler, f"{pipeline.root}: scheduler_config.json")
    network: LabelledModel | PromptedModel
    if kind in ("UNet2DConditionModel", "SD3Transformer2DModel"):
        network, names = _prompted(pipeline, model, prompts, strength)
        null_label = network.null_label
    else:
        if prompts is not None:
            raise ConfigError(f"prompts: a {kind} takes class labels, not text; leave prompts out")
        network, names = _labelled(pipeline, model, null, strength)
        null_label = network.null_label
    if strength != 1 and null_label is None:
        raise ConfigError("guidance: expected a model that knows no label; this one has none (null=INDEX names it)")
    latents = (int(model.config.in_channels), *sample_size(model.config.sample_size, f"{place}/config.json"))
    encoder, shape = _encoder(pipeline, latents, image, kind)
    chosen = {"class_names": names[1], **settings}
    there = None if encoder is None else encoder.to(device)
    classifier = classifier_of(
        network.to(device), names[0], shape, predicts, schedule, null_label, there, sigma_data=0.5, settings=chosen,
        who=str(pipeline.root),
    )  # fmt: skip
    denoiser = classifier.denoiser
    inner = denoiser.inner if isinstance(denoiser, LatentDenoiser) else denoiser
    assert isinstance(inner, CustomDenoiser)
    inner.about = {"pipeline": kind, "guidance": strength}
    return classifier


def _local(folder: str) -> Path:
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    if folder.count("/") != 1 or folder.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{one_line(folder)}: expected a folder of diffusers, or OWNER/NAME on Hugging Face; there is no such folder"
        )
    hub = library("huggingface_hub")
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]  # no code, and nothing that is unpickled
    try:
        return Path(hub.snapshot_download(folder, allow_patterns=wanted, local_files_only=True))
    except Exception:  # not in the cache: each version of the library has its own word for that
        pass
    say_download(f"diffusers:{folder}", f"Hugging Face, {folder}")
    try:
        return Path(hub.snapshot_download(folder, allow_patterns=wanted))
    except Exception as error:
        raise CheckpointError(
            f"{one_line(folder)}: no such folder here, not in Hugging Face's cache, and not to be downloaded ({type(error).__name__}: "
            f"{one_line(error, 120)})"
        ) from None


def _labelled(
    pipeline: Pipeline, model: Any, null: str | None, guidance: float
) -> tuple[LabelledModel, tuple[int, Any]]:
    """The model, K and class names."""
    dit = pipeline.denoiser[0] == "DiTTransformer2DModel"
    rows = model.config.num_embeds_ada_norm if dit else model.config.num_class_embeds
    if not rows:
        raise CheckpointError(
            f"{pipeline.denoiser[1]}: expected a class-conditional model; its config.json has no class embeddings"
        )
    if null is not None and not (null.isdecimal() and int(null) <= rows):
        raise ConfigError(f"null: expected the index of a label, 0 to {rows}; got {shown(null)}")
    null_label: int | None
    if dit:  # diffusers' DiT has a row more than classes, trained by dropping labels
        count, null_label = int(rows), int(rows) if null is None else int(null)
    else:
        null_label = None if null is None else int(null)
        if null_label is not None and null_label != rows - 1:
            raise ConfigError(
                f"null: expected the last label, {rows - 1}, or rdc convert, which reorders them; got {shown(null)}"
            )
        count = int(rows) - (null_label is not None)
    names = pipeline.class_names if pipeline.class_names and len(pipeline.class_names) == count else None
    return LabelledModel(model, null_label, guidance), (count, names)


def _prompted(
    pipeline: Pipeline, model: Any, prompts: str | None, guidance: float
) -> tuple[PromptedModel, tuple[int, Any]]:
    if prompts is None:
        raise ConfigError(
            f"prompts: a {pipeline.denoiser[0]} takes text: name a CSV file of class,prompt (--prompts FILE, or "
            "diffusers:FOLDER,prompts=FILE)"
        )
    sd3 = pipeline.denoiser[0] == "SD3Transformer2DModel"
    width = model.config.joint_attention_dim if sd3 else model.config.cross_attention_dim
    if type(width) is not int:
        raise CheckpointError(f"{pipeline.denoiser[1]}: expected one width of text embeddings; got {shown(width)}")
    classes = read_prompts(Path(prompts).expanduser())
    table = embedded_prompts(pipeline, classes, width)
    _different(table, list(classes))
    if sd3 and (table.pooled is None or table.pooled.shape[1] != model.config.pooled_projection_dim):
        got = "none" if table.pooled is None else table.pooled.shape[1]
        raise CheckpointError(
            f"{pipeline.root}: expected pooled text of width {model.config.pooled_projection_dim}; got {got}"
        )
    return PromptedModel(model, table, guidance), (len(classes), list(classes))


def _different(table: TextTable, classes: list[str]) -> None:
    """Refuse classes that are the same to the model: prompts that are, or that differ behind its last token alone."""
    seen: dict[bytes, str] = {}
    for name, row in zip(classes, table.states[:-1], strict=True):
        other = seen.setdefault(row.numpy().tobytes(), name)
        if other != name:
            raise ConfigError(
                f"prompts: classes {one_line(other, 60)} and {one_line(name, 60)} are the same to the text encoder: give each a "
                "prompt of its own, of fewer words"
            )


def _encoder(
    pipeline: Pipeline, latents: tuple[int, int, int], image: str | None, kind: str
) -> tuple[nn.Module | None, tuple[int, int, int]]:
    """The encoder, and the shape of images (C, H, W)."""
    wanted = None if image is None else parse_shape(image)
    if pipeline.vae is None:
        if wanted is not None and wanted != latents:
            raise ConfigError(
                f"image: expected {'x'.join(map(str, latents))}, for this model works in pixels; got {shown(image)}"
            )
        return None, latents
    vae: Any = made(*pipeline.vae)
    if vae.config.latent_channels != latents[0]:
        raise CheckpointError(
            f"{pipeline.root}: expected an autoencoder of {latents[0]} latent channels, which its {kind} takes; got "
            f"{vae.config.latent_channels}: are the parts of one pipeline?"
        )
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    size = (latents[1] * factor, latents[2] * factor)
    own = (int(vae.config.in_channels), *size)
    shape = wanted or own
    if shape[0] not in (own[0], 1):
        raise ConfigError(f"image: expected {own[0]} channels, or 1, which is repeated; got {shape[0]}")
    return VaeEncoder(vae, size if shape[1:] != size else None), shape


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
