"""The text of ``rdc info``."""

from __future__ import annotations

import platform

from rdc.networks import fused
from rdc.ops import _native

__all__ = ["format_info"]


def format_info() -> str:
    """Versions, backend per op and why others are not used, CPU instruction set, GPUs: a few lines of text."""
    facts = _native.describe()
    cpu = facts["cpu"]
    lines = ["versions   " + "  ".join(f"{name} {version}" for name, version in facts["versions"].items())]
    lines.append(f"extension  {facts['extension'] or 'none: ' + facts['extension_missing']}")
    isa = cpu["isa"] or "not used"
    if cpu["best_isa"] and cpu["isa"] != cpu["best_isa"]:
        isa += f" (best here: {cpu['best_isa']})"
    lines.append(f"cpu        {platform.machine()}, instruction set {isa}, {cpu['threads']} threads")
    for op, backends in facts["ops"].items():
        for device, backend in backends.items():
            lines.append(f"{op:<14} {device:<5} {backend}")
    lines.append(
        f"{'norms':<14} cuda  {'kernels of rdc (Triton)' if not fused.why_not() else 'torch: ' + fused.why_not()}"
    )
    lines.append("gpus       " + ("; ".join(facts["gpus"]) or "none that torch can use"))
    return "\n".join(lines)
