"""Plain state dicts of EDM-type U-Nets (``.pt``, ``.pth``, safetensors): unwrapped, renamed, architecture inferred."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rdc.errors import CheckpointError

__all__ = ["infer_config", "read_safetensors", "read_torch_file", "strip_prefix"]

_WRAPPERS = ("ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "net", "network", "unet")
_PREFIX = re.compile(r"((model|module|unet|net|network|ema|ema_model|denoiser|_orig_mod)\.)*")
_ANCHORS = ("map_layer0.weight", "conv_in.weight")
_NAME_A_NETWORK = "name the architecture: network=PRESET (such as edm-ddpmpp-32) or a JSON description"


def read_torch_file(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read the state dict in a ``torch.save`` file with ``weights_only=True``.

    Returns:
        The tensors by name, and notes for the user.

    Raises:
        CheckpointError: the file is damaged, asks for code, or holds no state dict.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any damage, and torch's refusal to run code
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name:
            raise CheckpointError(
                f"{path}: this file asks for {name.group(1)}, which weights do not need. It was refused and nothing in "
                "it was run; save a plain state dict (torch.save(net.state_dict(), ...))"
            ) from None
        raise CheckpointError(f"{path}: not a readable torch file ({str(error).splitlines()[0][:300]})") from error
    notes: list[str] = []
    while isinstance(found, dict) and not _is_state(found):
        key = next((key for key in _WRAPPERS if isinstance(found.get(key), dict)), None)
        if key is None:
            raise CheckpointError(f"{path}: expected a state dict; found a dict of {sorted(map(str, found))[:8]}")
        if len(found) > 1:
            notes.append(f"read the entry {key}; left out: {', '.join(str(other) for other in found if other != key)}")
        found = found[key]
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a state dict; found a {type(found).__name__}")
    return dict(found), notes


def _is_state(found: dict) -> bool:
    return bool(found) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        CheckpointError: it is truncated or no safetensors file.
    """
    try:
        return safetensors.torch.load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{path}: truncated or not a safetensors file ({error})") from error


def strip_prefix(state: dict[str, Tensor], names: set[str] | None, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Remove the wrapper's part of the names (``module.``, ``model.`` ...).

    Args:
        state: tensors by name.
        names: the names that the network has, if it is known; the prefix that fits them best is taken.
        path: for errors.

    Returns:
        The tensors under that prefix, renamed, and notes on what was left out.

    Raises:
        CheckpointError: no prefix, or more than one, leads to a U-Net.
    """
    prefixes = {""}
    for name in state:
        parts = _PREFIX.match(name).group().split(".")[:-1]
        prefixes |= {"".join(f"{part}." for part in parts[:count]) for count in range(1, len(parts) + 1)}
    if names is not None:
        best = max(sorted(prefixes), key=lambda prefix: sum(prefix + name in state for name in names))
    else:
        fits = sorted(prefix for prefix in prefixes if any(prefix + anchor in state for anchor in _ANCHORS))
        if len(fits) != 1:
            seen = (
                ", ".join(repr(prefix) for prefix in fits) if fits else f"none among {', '.join(list(state)[:4])} ..."
            )
            raise CheckpointError(
                f"{path}: expected one U-Net (a name ending in {_ANCHORS[0]}); found {seen}. {_NAME_A_NETWORK}"
            )
        best = fits[0]
    inside = {name[len(best) :]: value for name, value in state.items() if name.startswith(best)}
    outside = [name for name in state if not name.startswith(best)]
    return inside, [f"left out, not below {best!r}: {', '.join(outside[:8])}"] if outside else []


def infer_config(state: dict[str, Tensor], path: Path, sigma_data: float = 0.5) -> dict[str, Any]:
    """Description of the EDM U-Net (SongUNet or DhariwalUNet) that these tensors belong to, from their shapes.

    Dropout cannot be seen in weights and is set to zero; sigma_data is taken to be EDM's.

    Raises:
        CheckpointError: the names or shapes are not those of such a network.
    """
    if "map_layer0.weight" not in state:
        raise CheckpointError(f"{path}: not an EDM U-Net (no map_layer0.weight); {_NAME_A_NETWORK}")
    try:
        return _infer(state, sigma_data)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (KeyError, ValueError, IndexError, StopIteration, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{path}: the architecture cannot be inferred from the tensors ({type(error).__name__}: {error}); "
            f"{_NAME_A_NETWORK}"
        ) from error


def _infer(state: dict[str, Tensor], sigma_data: float) -> dict[str, Any]:
    dhariwal = "out_conv.weight" in state
    stem = next(name for name in state if re.fullmatch(r"enc\.\d+x\d+_conv\.weight", name))
    size, in_channels = int(re.findall(r"\d+", stem)[0]), state[stem].shape[1]
    last = "out_conv.weight" if dhariwal else f"dec.{size}x{size}_aux_conv.weight"
    out_channels = state[last].shape[0]
    if out_channels != in_channels or in_channels not in (1, 3):
        raise CheckpointError(
            f"the network maps {in_channels} to {out_channels} channels; expected images of 1 or 3 channels in and out "
            f"(multi-head networks of other programs are not supported); {_NAME_A_NETWORK}"
        )
    emb, noise = state["map_layer0.weight"].shape
    sizes = sorted({int(found.group(1)) for name in state if (found := re.match(r"enc\.(\d+)x", name))}, reverse=True)
    blocks = [f"enc.{s}x{s}_block0" for s in sizes]
    width = noise if dhariwal else state[stem].shape[0]
    unet: dict[str, Any] = {
        "architecture": "DhariwalUNet" if dhariwal else "SongUNet",
        "model_channels": width,
        "channel_mult": [_whole(state[f"{block}.conv1.weight"].shape[0], width) for block in blocks],
        "channel_mult_emb": _whole(emb, width),
        "num_blocks": len(
            {name.split(".")[1] for name in state if name.startswith(f"enc.{sizes[0]}x{sizes[0]}_block")}
        ),
        "attn_resolutions": [s for s, block in zip(sizes, blocks, strict=True) if f"{block}.qkv.weight" in state],
        "augment_dim": state["map_augment.weight"].shape[1] if "map_augment.weight" in state else 0,
        "dropout": 0.0,
    }
    label = state.get("map_label.weight")
    if not dhariwal:
        unet |= _song_settings(state, sizes, noise, width)
    return {
        "kind": "conditional",
        "image_shape": [in_channels, size, size],
        "num_classes": 0 if label is None else label.shape[1],
        "sigma_data": sigma_data,
        "unet": unet,
    }


def _song_settings(state: dict[str, Tensor], sizes: list[int], noise: int, width: int) -> dict[str, Any]:
    encoder = next(
        (kind for kind in ("skip", "residual") if any(f"_aux_{kind}." in name for name in state)), "standard"
    )
    skip_decoder = sum(name.endswith("_aux_conv.weight") for name in state) > 1
    filters = [value for name, value in state.items() if name.endswith("resample_filter")]
    taps = [1, 1]
    if filters:
        row = filters[0][0, 0].double().sum(0)
        taps = [round(value) for value in (row / row.min()).tolist()]
    middle = f"dec.{sizes[-1]}x{sizes[-1]}_in0.qkv.weight"
    return {
        "embedding_type": "fourier" if "map_noise.freqs" in state else "positional",
        "channel_mult_noise": _whole(noise, width),
        "encoder_type": encoder,
        "decoder_type": "skip" if skip_decoder else "standard",
        "resample_filter": taps,
        "middle_attention": middle in state,
    }


def _whole(value: int, unit: int) -> int:
    if value % unit:
        raise ValueError(f"{value} is not a multiple of {unit} channels")
    return math.floor(value / unit)
