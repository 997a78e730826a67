"""Training for so many minutes: measure the speed first, then plan a number of images that fits.

The learning rate stays a function of the images seen, so that continuing a run is as exact as without a time box; only the
number of images in the plan depends on the machine. It is recorded in the run's settings: a run that is continued keeps it.
"""

from __future__ import annotations

import dataclasses
import math
import time

import torch

from rdc.errors import ConfigError
from rdc.training.trainer import Trainer

__all__ = ["SHARE", "images_per_second", "plan_images"]

SHARE = 0.94  # of the time left that is planned for steps; the rest is for checkpoints, the export, and slower hours
_STOP = 0.98  # of the whole box: no step begins later


def images_per_second(trainer: Trainer, seconds: float, warm: int = 3, least: int = 5) -> float:
    """Speed of ``trainer.train_step``, compilation left out; the trainer is afterwards as it was before.

    Args:
        trainer: one that has not begun: no state was restored, no step was made.
        seconds: how long to measure, after ``warm`` steps; at least ``least`` steps are made.

    Returns:
        Images a second, all processes' together.
    """
    parameters = list(trainer.parameters.values())
    before = [p.detach().clone() for p in parameters]
    trainer.first_step()
    for _ in range(warm - 1):
        trainer.train_step()
    _wait(trainer)
    first, begun = trainer.step, time.monotonic()
    while trainer.step - first < least or time.monotonic() - begun < seconds:
        trainer.train_step()
    _wait(trainer)
    speed = (trainer.step - first) * trainer.config.batch_size / (time.monotonic() - begun)
    with torch.no_grad():  # in place: a compiled network holds on to its parameters
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
        for name, p in trainer.parameters.items():
            trainer.ema[name].copy_(p)
    trainer.optimizer.state.clear()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.step = 0
    return speed


def plan_images(trainer: Trainer, minutes: float, begun: float, afterwards: int = 0, selecting: float = 0.0) -> int:
    """Give the trainer as many images as fit, and a time after which it stops whatever the plan says.

    A run that is continued keeps the images of its first plan; what does not fit this time is left to the next start.

    Args:
        trainer: before ``run``.
        minutes: the box, everything included: what passed since ``begun``, compilation, checkpoints, the export.
        begun: when the box was opened, on ``time.monotonic``'s clock.
        afterwards: what is to be done after the last step, in images of training that take as long; at most half of the time is kept
            for it.
        selecting: what selection costs for each image of training, in images of training that take as long.

    Returns:
        The images planned.

    Raises:
        ConfigError: ``minutes`` is not positive, several processes train, or no step fits.
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes: expected a positive number; got {minutes}")
    if trainer.world > 1:
        raise ConfigError(
            f"minutes: expected one process, which measures its speed; {trainer.world} train here. Name images instead"
        )
    end = begun + 60 * minutes
    trainer.deadline = begun + _STOP * 60 * minutes
    planned = trainer.folder.planned_images()
    if planned is None:
        speed = images_per_second(trainer, seconds=min(5.0, 0.6 * minutes))
        fitting = int(SHARE * (end - time.monotonic()) * speed)
        planned = int((fitting - min(afterwards, fitting // 2)) / (1 + selecting))
        if planned < trainer.config.batch_size:
            raise ConfigError(
                f"minutes: not one step of {trainer.config.batch_size} images fits what is left of {minutes:g} minutes after "
                f"start and compilation, at {speed:.3g} images/s; expected more minutes"
            )
    trainer.config = dataclasses.replace(trainer.config, images=max(planned, trainer.config.batch_size))
    trainer.folder.describe_training(trainer.config.describe())
    return trainer.config.images


def _wait(trainer: Trainer) -> None:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
