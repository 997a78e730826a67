"""Which model, set how, on which device: what a command line says of a model, as one value that loads it."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from rdc.defences.factory import is_factory, load_factory
from rdc.errors import ConfigError, InputError, one_line
from rdc.execution.devices import chosen_device
from rdc.execution.processes import from_the_first, is_first_process, start_processes
from rdc.models import zoo
from rdc.models.derived import is_derived
from rdc.models.precision import AUTO, PrecisionChoice, sample_size

__all__ = ["ModelChoice"]

_WEEK = 7 * 24 * 3600.0  # seconds; processes wait for the slowest share
_OPTION = {"memory_budget_mb": "memory-mb", "lm_denoiser": "lm-model"}  # settings whose option has another name


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A model as a user names it, and what is set in place of its own settings.

    Args:
        name: preset, checkpoint path, ``package.module:factory`` or ``file.py:factory``.
        levels, lm, precision: see ``rdc.load``; None: the model's own. "auto" is chosen on the first images of the data.
        memory_budget_mb: working memory of a diffusion model, in MiB; None: as ``rdc.load`` has it.
        device: as of :func:`rdc.execution.devices.chosen_device`; None: cuda if there is one.
        threads: CPU threads of this process from loading on; None: as they are.
        lm_model: the network that likelihood maximisation moves the input by, see ``rdc.load``; None: the model's own.
        chosen_precision: what "auto" chose before, which then stands and is not measured again.
    """

    name: str
    levels: str | None = None
    lm: str | None = None
    precision: str | None = None
    memory_budget_mb: float | None = None
    device: str | None = None
    threads: int | None = None
    lm_model: str | None = None
    chosen_precision: PrecisionChoice | None = None

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
            data: data set; a model given as a factory is called on its first images to learn what it is.
            settings: further settings of a diffusion classifier.

        Raises:
            ConfigError, InputError: no such model, or it is none; settings that do not go with it.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        device = chosen_device(self.device)
        own = {name: getattr(self, name) for name in ("levels", "lm", "precision", "memory_budget_mb")}
        chosen = {name: value for name, value in {**own, "lm_denoiser": self.lm_model}.items() if value is not None}
        if is_derived(self.name) or not is_factory(self.name):
            if self.precision == AUTO:
                return self._in_its_precision(data, device, {**chosen, **settings})
            return zoo.load(self.name, device=device, **chosen, **settings)
        if chosen or settings:
            named = " and ".join(f"--{_OPTION.get(name, name)}" for name in [*chosen, *settings])
            raise ConfigError(f"{named}: a model given as a function sets that itself; leave it out")
        if data is None:
            raise ConfigError(f"--model {self.name}: this command takes presets and checkpoint paths only")
        return self._of_somebody(data, device)

    def _in_its_precision(self, data: Any, device: torch.device, chosen: dict[str, Any]) -> Any:
        """The model in the precision that was chosen; by the first of several processes, on the first images of the data."""
        found, made = self.chosen_precision, None
        sample = chosen.pop("precision_sample", None)
        if found is None and is_first_process():
            if sample is None and data is not None:
                plain = zoo.load(self.name, device=device, **{**chosen, "precision": "float32"})
                if tuple(plain.image_shape) != tuple(data.image_shape):
                    raise ConfigError(
                        f"precision: auto is measured on images of the data; model {self.name} takes images {list(plain.image_shape)} "
                        f"(channels, height, width), {data.name} has {list(data.image_shape)}. Choose data that go with the model"
                    )
                sample = data.pixels(range(min(sample_size(plain), len(data))))
            made = zoo.load(self.name, device=device, **{**chosen, "precision_sample": sample})
            found = made.precision_choice
        found = from_the_first(found)
        if made is None:
            made = zoo.load(self.name, device=device, **{**chosen, "precision": found.precision})
            made.precision_choice = found
        return made

    def _of_somebody(self, data: Any, device: torch.device) -> Any:
        """The model that a function of somebody's makes, called on the first images: whether the two fit shows there."""
        try:
            return load_factory(self.name, data.pixels(range(min(2, len(data)))), data.class_names, device)
        except InputError as error:
            cause = error.__cause__
            if cause is None:  # it answered, but no logits
                raise
            raise InputError(
                f"model {self.name} raised {type(cause).__name__} on images of {data.name}, {list(data.image_shape)} (channels, height, "
                f"width): {one_line(cause, 500)}. Name the data that it was made for with --data; RDC_DEBUG=1 shows where"
            ) from cause
