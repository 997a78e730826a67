"""Which model, set how, on which device: what a command line says of a model, as one value that loads it."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from rdc.defences.factory import is_factory, load_factory
from rdc.errors import ConfigError
from rdc.execution.processes import is_first_process, start_processes
from rdc.models import zoo
from rdc.models.derived import is_derived

__all__ = ["ModelChoice", "chosen_device"]

_WEEK = 7 * 24 * 3600.0  # seconds; processes wait for the slowest share
_OPTION = {"memory_budget_mb": "memory-mb"}  # settings whose option has another name


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A model as a user names it, and what is set in place of its own settings.

    Args:
        name: preset, checkpoint path or ``package.module:factory``.
        levels, lm, precision: see ``rdc.load``; None: the model's own.
        memory_budget_mb: working memory of a diffusion model, in MiB; None: as ``rdc.load`` has it.
        device: "cpu", "cuda" or "cuda:N"; None: cuda if there is one.
        threads: CPU threads of this process from loading on; None: as they are.
    """

    name: str
    levels: str | None = None
    lm: str | None = None
    precision: str | None = None
    memory_budget_mb: float | None = None
    device: str | None = None
    threads: int | None = None

    def joined(self) -> tuple[ModelChoice, bool]:
        """Join the other processes under ``torchrun``.

        Returns:
            The choice on this process's device; and whether this is the first (or only) process, the one that speaks.
        """
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return self, True
        kind = chosen_device(self.device).type
        mine = start_processes(kind, timeout=_WEEK)
        return dataclasses.replace(self, device=str(mine)), is_first_process()

    def load(self, data: Any = None, **settings: Any) -> Any:
        """The classifier, on its device, in eval mode.

        Args:
            data: data set; a model given as ``package.module:factory`` is called on its first images to learn what it is.
            settings: further settings of a diffusion classifier.

        Raises:
            ConfigError, InputError: no such model, or it is none; settings that do not go with it.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        device = chosen_device(self.device)
        own = {name: getattr(self, name) for name in ("levels", "lm", "precision", "memory_budget_mb")}
        chosen = {name: value for name, value in own.items() if value is not None}
        if is_derived(self.name) or not is_factory(self.name):
            return zoo.load(self.name, device=device, **chosen, **settings)
        if chosen or settings:
            named = " and ".join(f"--{_OPTION.get(name, name)}" for name in [*chosen, *settings])
            raise ConfigError(f"{named}: a model given as a function sets that itself; leave it out")
        if data is None:
            raise ConfigError(f"--model {self.name}: this command takes presets and checkpoint paths only")
        count = min(2, len(data))
        return load_factory(self.name, data.pixels(range(count)), data.class_names, device)


def chosen_device(name: str | None) -> torch.device:
    """The device of a name; None: cuda if there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: expected cpu, cuda or cuda:N; got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected cpu, cuda or cuda:N; got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"device: {name} asked for, but PyTorch sees {count} CUDA devices here (`rdc info` says more). "
                "Use --device cpu"
            )
    return device
