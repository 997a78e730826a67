"""What a run was: commit of the source, versions, device, weights."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

import rdc
from rdc.contracts import Defence
from rdc.ops.backends import describe

__all__ = ["commit", "versions", "weights_digest"]


def weights_digest(model: torch.nn.Module | Defence) -> str:
    """SHA-256 (16 digits) of all parameters and buffers, by name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def commit() -> str | None:
    """Commit of the source tree this package runs from, with ``-dirty`` if files differ; None if it is not in one."""
    folder = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "errors.py"
        )  # installed inside another project's tree, that commit is not ours
        return git("describe", "--always", "--dirty", "--abbrev=12", "--match=NeVeR")
    except (OSError, subprocess.SubprocessError):
        return None


def versions(device: torch.device) -> dict[str, str]:
    """Versions of rdc, Python, PyTorch and NumPy, the machine, the device and what it makes of float32."""
    found = {
        "rdc": rdc.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    backend = describe()["ops"]["multihead_loss"][device.type]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    if device.type == "cuda":  # PyTorch's default: ten bits of mantissa in float32 convolutions
        found["float32_convolutions"] = "TF32" if torch.backends.cudnn.allow_tf32 else "float32"
    return {**found, "multihead_loss": backend, "device": f"{device.type} ({name})", "system": platform.system()}
