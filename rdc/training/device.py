"""Where a command of the training room computes."""

from __future__ import annotations

import torch

from rdc.errors import ConfigError
from rdc.execution.processes import start_processes

__all__ = ["open_device"]


def open_device(name: str, threads: int | None) -> torch.device:
    """The device asked for; joins the other processes under ``torchrun``.

    Args:
        name: "cpu", "cuda", or "auto": cuda if there is one.
        threads: CPU threads of this process from now on; None: as they are.

    Raises:
        ConfigError: no such device here.
    """
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"--threads: expected 1 or more; got {threads}")
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"--device: expected cpu, cuda or auto; got {name!r}") from error
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"--device: expected cpu, cuda or auto; got {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this PyTorch sees no CUDA GPU; use --device cpu")
    return start_processes(name)
