"""The only file that knows whether the native extension is there, and why not where it is not.

Environment (read at every call):
    RDC_DISABLE_NATIVE=1   behave as if the extension had not been built
    RDC_CPU_ISA            ``baseline``, ``avx2``, ``avx512`` or ``avx512bf16``: use this instruction set, not the best (for tests)
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch

from rdc.errors import ConfigError

__all__ = ["cpu_isa", "extension", "found", "why_not"]

#: device type -> ops with native kernels for it; rdc/ops/<name>.py each
OPS = {"cpu": ("multihead_loss", "empirical_denoiser", "convolution", "norm_act"), "cuda": ("multihead_loss",)}
#: devices with native kernels that backend "auto" does not take
SLOWER_THAN_TORCH = ("cuda",)
ISAS = ("baseline", "avx2", "avx512", "avx512bf16")


#: what the newest kernel is called, or the newest change: an extension without it is of an earlier version
NEWEST = "images_in_channels_last"


def _load() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("rdc._C")
        if hasattr(module, NEWEST):
            return module, ""
        return None, "the extension was built from an earlier version of rdc; install rdc again (pip install -e .)"
    except ModuleNotFoundError:
        return None, "the extension was not built (RDC_BUILD=off, or no C++ compiler when rdc was installed)"
    except ImportError as error:
        return None, f"the extension does not load ({error}); reinstall rdc"


_EXTENSION, _WHY_NOT = _load()


def found() -> tuple[ModuleType | None, str]:
    """The compiled module, or None and why it is not there."""
    return _EXTENSION, _WHY_NOT


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
