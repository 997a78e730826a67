"""The only file that knows whether the native extension is there, and why not where it is not.

Environment (read at every call):
    RDC_DISABLE_NATIVE=1   behave as if the extension had not been built
    RDC_CPU_ISA            ``baseline``, ``avx2``, ``avx512`` or ``avx512bf16``: use this instruction set, not the best (for tests)
"""

from __future__ import annotations

import importlib
import os
import platform
from importlib import metadata
from types import ModuleType
from typing import Any

import torch

from rdc import __version__
from rdc.errors import ConfigError
from rdc.ops import multihead_triton

__all__ = ["cpu_isa", "describe", "extension", "why_not"]

#: ops with native kernels; rdc/ops/<name>.py each
OPS = ("multihead_loss",)
#: devices with native kernels that backend "auto" does not take
SLOWER_THAN_TORCH = ("cuda",)
ISAS = ("baseline", "avx2", "avx512", "avx512bf16")


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("rdc._C"), ""
    except ModuleNotFoundError:
        return None, "the extension was not built (RDC_BUILD=off, or no C++ compiler when rdc was installed)"
    except ImportError as error:
        return None, f"the extension does not load ({error}); reinstall rdc"


_EXTENSION, _WHY_NOT = _load()


def extension() -> ModuleType:
    """The compiled module ``rdc._C``; ask :func:`why_not` first."""
    assert _EXTENSION is not None, _WHY_NOT
    return _EXTENSION


def why_not(device_type: str) -> str:
    """Why native kernels do not run on ``device_type`` ("cpu", "cuda", ...); empty if they do."""
    if os.environ.get("RDC_DISABLE_NATIVE", "") not in ("", "0"):
        return f"RDC_DISABLE_NATIVE={os.environ['RDC_DISABLE_NATIVE']} is set"
    if _EXTENSION is None:
        return _WHY_NOT
    if device_type == "cpu":
        return ""
    if device_type == "cuda":
        return _why_not_cuda()
    return f"there are no kernels for {device_type!r} devices"


def _why_not_cuda() -> str:
    if torch.version.hip:
        return "this torch runs on ROCm; the kernels are CUDA"
    if not extension().cuda_built():
        return f"CUDA {extension().cuda_status()}"
    return ""


def cpu_isa() -> str:
    """Instruction set that the CPU kernels use: ``RDC_CPU_ISA`` if set, else the best one compiled that this processor runs.

    Raises:
        ConfigError: ``RDC_CPU_ISA`` is unknown, or beyond this processor.
    """
    best = extension().cpu_isa()
    wanted = os.environ.get("RDC_CPU_ISA") or best
    if wanted not in ISAS or ISAS.index(wanted) > ISAS.index(best):
        usable = ", ".join(ISAS[: ISAS.index(best) + 1])
        raise ConfigError(
            f"RDC_CPU_ISA: expected one of {usable} on this processor; got {wanted!r}. Unset it for the best."
        )
    return wanted


def _backend(device_type: str) -> str:
    reason = why_not(device_type)
    if reason:
        return f"reference (torch): {reason}"
    if device_type in SLOWER_THAN_TORCH:
        built = f'backend="native" was built ({extension().cuda_status()}), and is slower'
        tensor_cores = multihead_triton.why_not(device_type)
        wide = f"; not in Triton: {tensor_cores}" if tensor_cores else "; wide heads in Triton"
        return f"reference (torch): {built}" + (wide if torch.cuda.is_available() else "; torch finds no GPU")
    return f"native ({cpu_isa()})"


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
    usable = not why_not("cpu")
    return {
        "versions": {"python": platform.python_version(), "rdc": __version__}
        | {name: _version(name) for name in packages},
        "extension": getattr(_EXTENSION, "__file__", None),
        "extension_missing": _WHY_NOT,
        "cpu": {
            "isa": cpu_isa() if usable else None,
            "best_isa": _EXTENSION.cpu_isa() if _EXTENSION else None,
            "threads": torch.get_num_threads(),
        },
        "ops": {op: {device: _backend(device) for device in ("cpu", "cuda")} for op in OPS},
        "gpus": gpus,
    }
