"""Plain state dicts of EDM-type U-Nets (``.pt``, ``.pth``, safetensors): unwrapped, renamed, architecture inferred."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from rdc.errors import CheckpointError, one_line
from rdc.models.convert.torch_files import load_torch_file
from rdc.storage.nesting import Stub
from rdc.storage.reading import read_content
from rdc.storage.safetensors_files import parse_safetensors

__all__ = ["infer_config", "read_safetensors", "read_torch_file", "strip_prefix", "unwrapped"]

#: entries of training checkpoints that hold weights, the averaged ones first; "module" is deepspeed's
_WRAPPERS = (
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "unet",
    "module",
)
#: what wrappers put in front of all names; inner_model is k-diffusion's
_PREFIX = re.compile(r"((model|module|unet|net|network|ema|ema_model|denoiser|inner_model)\.)*")
#: what torch.compile, FSDP and activation checkpointing put anywhere into names
_INSIDE = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_ANCHORS = ("map_layer0.weight", "conv_in.weight")
_NAME_A_NETWORK = "name the architecture: network=PRESET (such as edm-ddpmpp-32) or a JSON description"
_WRAPPED, _LONGEST_NAME, _CANDIDATES = 8, 1000, 64


def read_torch_file(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read the state dict in a ``torch.save`` file; nothing in it is run.

    Returns:
        The tensors by name, and notes for the user.

    Raises:
        CheckpointError: the file is damaged, asks for code, or holds no state dict.
    """
    found, notes = load_torch_file(path), list[str]()
    for _ in range(_WRAPPED):
        if not isinstance(found, dict) or _is_state(found):
            break
        key = next((key for key in _WRAPPERS if isinstance(found.get(key), dict)), None)
        if key is None:
            break
        if len(found) > 1:
            others = ", ".join(str(other) for other in found if other != key)
            notes.append(one_line(f"read the entry {key}; left out: {others}", 400))
        found = found[key]
    if not isinstance(found, dict) or not _is_state(found):
        raise CheckpointError(f"{path}: expected a state dict (tensors by name); found {_seen(found)}")
    return found, notes


def _is_state(found: dict[Any, Any]) -> bool:
    return bool(found) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())


def _seen(found: Any) -> str:
    """What was found in place of a state dict."""
    if isinstance(found, Stub):
        return f"{found.class_name}. Of a whole network save the state dict alone: torch.save(net.state_dict(), ...)"
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    tensors = sum(isinstance(value, Tensor) for value in found.values())
    odd = [(key, value) for key, value in found.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    shown = (
        f"{one_line(key, 60)}: {value.class_name if isinstance(value, Stub) else type(value).__name__}"
        for key, value in odd[:8]
    )
    return f"a dict with {tensors:,} tensors and {len(odd):,} other entries ({'; '.join(shown) or 'it is empty'})"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        CheckpointError: it is truncated or no safetensors file.
    """
    content = read_content(path, CheckpointError, "a safetensors file")
    return parse_safetensors(content, str(path), CheckpointError)


def unwrapped(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """``state`` without what ``torch.compile``, FSDP and activation checkpointing put into the names, wherever it stands.

    Raises:
        CheckpointError: then two tensors have one name, or a name is longer than any network's.
    """
    longest = max(map(len, state), default=0)
    if longest > _LONGEST_NAME:
        raise CheckpointError(f"{path}: a tensor's name has {longest:,} characters; expected {_LONGEST_NAME:,} at most")
    made = {".".join(part for part in name.split(".") if part not in _INSIDE): value for name, value in state.items()}
    if len(made) < len(state):
        raise CheckpointError(
            f"{path}: two tensors have one name once {', '.join(sorted(_INSIDE))} is left out of the names; expected "
            "the weights of one network"
        )
    return made


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
    state = unwrapped(state, path)
    prefixes: Counter[str] = Counter({"": len(state)})
    for name in state:
        leading = _PREFIX.match(name)
        assert leading is not None  # it matches the empty text as well
        parts = leading.group().split(".")[:-1][:_WRAPPED]
        prefixes.update("".join(f"{part}." for part in parts[:count]) for count in range(1, len(parts) + 1))
    candidates = sorted(prefix for prefix, _ in prefixes.most_common(_CANDIDATES))
    if names is not None:
        best = max(candidates, key=lambda prefix: sum(prefix + name in state for name in names))
    else:
        fits = [prefix for prefix in candidates if any(prefix + anchor in state for anchor in _ANCHORS)]
        if len(fits) != 1:
            first = (one_line(name, 80) for name in list(state)[:4])
            seen = ", ".join(repr(prefix) for prefix in fits) if fits else f"none among {', '.join(first)} ..."
            raise CheckpointError(
                f"{path}: expected one U-Net (a name ending in {_ANCHORS[0]}); found {seen}. {_NAME_A_NETWORK}"
            )
        best = fits[0]
    inside = {name[len(best) :]: value for name, value in state.items() if name.startswith(best)}
    outside = ", ".join(name for name in state if not name.startswith(best))
    return inside, [one_line(f"left out, not below {best!r}: {outside}", 400)] if outside else []


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
    except Exception as error:  # shapes of anything
        raise CheckpointError(
            f"{path}: the architecture cannot be inferred from the tensors "
            f"({type(error).__name__}: {one_line(error, 200)}); {_NAME_A_NETWORK}"
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
