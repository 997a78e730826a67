"""Where a command of the training room computes."""

from __future__ import annotations

import torch

from rdc.errors import ConfigError
from rdc.execution.devices import chosen_device
from rdc.execution.processes import start_processes

__all__ = ["open_device"]


def open_device(name: str, threads: int | None) -> torch.device:
    """The device asked for; joins the other processes under ``torchrun``.

    Args:
        name: as of :func:`rdc.execution.devices.chosen_device`.
        threads: CPU threads of this process from now on; None: as they are.

    Raises:
        ConfigError: no such device here.
    """
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"--threads: expected 1 or more; got {threads}")
        torch.set_num_threads(threads)
    return start_processes(str(chosen_device(name)))
