"""The weight files of a diffusers model's folder: one file or shards, safetensors or ``.bin``, in several variants.

diffusion_pytorch_model[.VARIANT].safetensors, .bin                  VARIANT: fp16, bf16, fp32, non_ema
diffusion_pytorch_model.safetensors.index[.VARIANT].json             {"weight_map": {tensor: file of the folder}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rdc.errors import CheckpointError, one_line
from rdc.models.convert.state_dicts import read_safetensors, read_torch_file
from rdc.storage.json_files import read_json

__all__ = ["read_diffusers_weights"]

_STEM = "diffusion_pytorch_model"
_VARIANTS = ("fp32", "fp16", "bf16", "non_ema")
#: (variant, kind) of the files that are read, best first
_ORDER = [
    ("", "safetensors"),
    ("fp32", "safetensors"),
    ("fp16", "safetensors"),
    ("", "bin"),
    ("fp32", "bin"),
    ("fp16", "bin"),
    ("bf16", "safetensors"),
    ("bf16", "bin"),
    ("non_ema", "safetensors"),
    ("non_ema", "bin"),
]
_SHARDS = 1000


def read_diffusers_weights(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in the best of the folder's weight files, and notes on what it was and what was left out.

    Raises:
        CheckpointError: there is none (the message lists what is there), or it is damaged, or a shard is missing, damaged or not in
            the folder.
    """
    present = sorted(path.name for path in folder.iterdir())
    ranked = sorted((rank, name) for name in present if (rank := _rank(name)) is not None)
    if not ranked:
        raise CheckpointError(
            f"{folder}: no weights; expected {_STEM}.safetensors, {_STEM}.safetensors.index.json with its shards, or {_STEM}.bin, also "
            f"as {', '.join(_VARIANTS)}; found {one_line(', '.join(present) or 'nothing')}"
        )
    (rank, name), *others = ranked
    notes = []
    if others:
        notes.append(one_line(f"read {name}; left out: {', '.join(other for _, other in others)}", 400))
    if _ORDER[rank // 2][0] == "non_ema":
        notes.append(f"{name} holds the weights before averaging (non_ema); averaged ones classify and sample better")
    if name.endswith(".json"):
        state, more = _sharded(folder, name)
    else:
        state, more = _read(folder / name)
    return state, notes + more


def _rank(name: str) -> int | None:
    """Place in the order of preference; None if the file holds no weights of a model. Of two, the single file comes first."""
    stem, *parts = name.split(".")
    index = "index" in parts and parts[-1] == "json"
    kind = next((kind for kind in ("safetensors", "bin") if kind in parts), None)
    variant = [part for part in parts if part in _VARIANTS]
    rest = len(parts) - len(variant) - (2 if index else 0)
    if stem != _STEM or kind is None or rest != 1 or len(variant) > 1:
        return None
    return 2 * _ORDER.index((variant[0] if variant else "", kind)) + index


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    return (read_safetensors(path), []) if path.suffix == ".safetensors" else read_torch_file(path)


def _sharded(folder: Path, name: str) -> tuple[dict[str, Tensor], list[str]]:
    """All shards that an index names; every tensor must be where the index says, and none elsewhere."""
    where: Any = read_json(folder / name, CheckpointError, kind=dict).get("weight_map")
    files = where.values() if isinstance(where, dict) else [None]
    if not where or not all(isinstance(file, str) for file in files) or len(set(files)) > _SHARDS:
        raise CheckpointError(
            f"{folder / name}: expected weight_map, an object of tensors and the files that hold them"
        )
    state: dict[str, Tensor] = {}
    notes = []
    for file in sorted(set(files)):
        if file != Path(file).name or "\\" in file or Path(file).suffix not in (".safetensors", ".bin"):
            raise CheckpointError(
                f"{folder / name}: names the shard {one_line(file, 80)}; expected a .safetensors or .bin file of the same folder"
            )
        found, more = _read(folder / file)
        notes += more
        wrong = [tensor for tensor in found if where.get(tensor) != file]
        if wrong:
            raise CheckpointError(
                f"{folder / file}: holds {one_line(wrong[0], 80)}, which {name} does not expect there"
            )
        state |= found
    if missing := [tensor for tensor in where if tensor not in state]:
        raise CheckpointError(
            f"{folder}: the shards lack {one_line(', '.join(missing[:4]))}, which {name} expects in them"
        )
    return state, notes
