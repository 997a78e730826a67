"""Which backend runs, and why others do not: what ``rdc info`` and reports say."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

from rdc import __version__
from rdc.ops import _native, convolution_onednn, multihead_triton

__all__ = ["describe"]


def _backend(op: str, device_type: str) -> str:
    reason = _native.why_not(device_type)
    if not reason and op not in _native.OPS[device_type]:
        reason = f"there are no kernels of it for {device_type!r} devices"
    if reason:
        return f"reference (torch): {reason}"
    if device_type in _native.SLOWER_THAN_TORCH:
        built = f'backend="native" was built ({_native.extension().cuda_status()}), and is slower'
        tensor_cores = multihead_triton.why_not(device_type)
        wide = f"; not in Triton: {tensor_cores}" if tensor_cores else "; wide heads in Triton"
        return f"reference (torch): {built}" + (wide if torch.cuda.is_available() else "; torch finds no GPU")
    tiles = op == "convolution" and convolution_onednn.has_tiles()
    return f"native ({_native.cpu_isa()})" + ("; in bfloat16 oneDNN (AMX)" if tiles else "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe() -> dict[str, Any]:
    """What runs here, and why.

    Returns:
        ``versions`` {package: version}; ``extension`` path or None, with ``extension_missing`` saying why; ``cpu`` {isa, best_isa,
        threads}; ``ops`` {op: {device type: backend and, for the reference, the reason}}; ``gpus`` [name and memory].
    """
    packages = ("torch", "numpy", "safetensors", "pillow", "matplotlib")
    gpus = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            gpus.append(f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute {p.major}.{p.minor}")
    extension, why_not = _native.found()
    usable = not _native.why_not("cpu")
    return {
        "versions": {"python": platform.python_version(), "rdc": __version__}
        | {name: _version(name) for name in packages},
        "extension": getattr(extension, "__file__", None),
        "extension_missing": why_not,
        "cpu": {
            "isa": _native.cpu_isa() if usable else None,
            "best_isa": extension.cpu_isa() if extension else None,
            "threads": torch.get_num_threads(),
        },
        "ops": {op: {device: _backend(op, device) for device in _native.OPS} for op in _native.OPS["cpu"]},
        "gpus": gpus,
    }
