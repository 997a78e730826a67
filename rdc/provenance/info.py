"""The text of ``rdc info``."""

from __future__ import annotations

import importlib
import os
import platform
from importlib import metadata
from typing import Any

from rdc.errors import one_line

__all__ = ["describe_info", "format_info"]

_PACKAGES = ("torch", "numpy", "safetensors", "pillow", "matplotlib", "onnx", "onnxruntime")


def format_info() -> str:
    """Versions, backend per op and why others are not used, CPU instruction set, GPUs: a few lines of text.

    Without torch, which everything but ``rdc predict`` needs, what can be said without it.
    """
    try:
        from rdc.networks import fused
        from rdc.ops import backends
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "rdc":
            raise
        return _without(error)
    facts = backends.describe()
    cpu = facts["cpu"]
    lines = ["versions   " + "  ".join(f"{name} {version}" for name, version in facts["versions"].items())]
    lines.append(f"extension  {one_line(facts['extension'] or 'none: ' + facts['extension_missing'], 400)}")
    isa = cpu["isa"] or "not used"
    if cpu["best_isa"] and cpu["isa"] != cpu["best_isa"]:
        isa += f" (best here: {cpu['best_isa']})"
    lines.append(f"cpu        {platform.machine()}, instruction set {isa}, {cpu['threads']} threads")
    for op, chosen in facts["ops"].items():
        for device, backend in chosen.items():
            lines.append(f"{op:<14} {device:<5} {backend}")
    lines.append(
        f"{'norms':<14} cuda  {'kernels of rdc (Triton)' if not fused.why_not() else 'torch: ' + fused.why_not()}"
    )
    lines.append("gpus       " + ("; ".join(facts["gpus"]) or "none that torch can use"))
    return "\n".join(lines)


def describe_info() -> dict[str, Any]:
    """The same as values that JSON can hold: ``versions``, and where torch is installed what :func:`rdc.ops.backends.describe` says."""
    try:
        from rdc.ops import backends
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "rdc":
            raise
        return {"versions": _versions(), "missing": error.name}
    return backends.describe()


def _versions() -> dict[str, str]:
    from rdc import __version__

    return {"python": platform.python_version(), "rdc": __version__, **{name: _version(name) for name in _PACKAGES}}


def _without(problem: ImportError) -> str:
    """What can be said where torch (or numpy) cannot be imported."""
    found = _versions()
    name = (problem.name or "torch").partition(".")[0]
    missing = isinstance(problem, ModuleNotFoundError)
    reason = "is not installed" if missing else f"cannot be imported ({one_line(problem, 300)})"
    try:
        extension = importlib.import_module("rdc._C")
        built, isa = one_line(getattr(extension, "__file__", "there"), 400), extension.cpu_isa()
    except ImportError as error:
        built, isa = f"none: {one_line(error, 300)}", "unknown"
    return "\n".join(
        [
            "versions   " + "  ".join(f"{package} {version}" for package, version in found.items()),
            f"extension  {built}",
            f"cpu        {platform.machine()}, best instruction set {isa}, {os.cpu_count()} processors",
            f"missing    {name} {reason}: pip install {name}; until then `rdc predict` works, and nothing else that computes",
        ]
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
