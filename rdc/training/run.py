"""A training run from its recipe to its folder: what ``rdc train`` and ``rdc distill`` call."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from rdc.data import Dataset, train_holdout
from rdc.errors import ConfigError
from rdc.execution.processes import leave_processes
from rdc.models.checkpoints import checkpoint_paths
from rdc.training.batches import Extra
from rdc.training.confidence import (
    attacked_as,
    calibrate_model,
    calibration_of,
    cost_afterwards,
    cost_of_selection,
    with_holdout,
)
from rdc.training.device import open_device
from rdc.training.exporter import Exporter
from rdc.training.preparation import Prepared, fingerprint, prepare, training_images
from rdc.training.recipe_files import to_toml
from rdc.training.recipes import Recipe
from rdc.training.selection import Selector
from rdc.training.time_box import plan_images
from rdc.training.trainer import Trainer

__all__ = ["Training", "run"]


@dataclasses.dataclass(frozen=True)
class Training:
    """How a run stands when :func:`run` returns.

    Args:
        out: its folder.
        images: training images processed, those of earlier starts included.
        planned: training images of the whole run.
        seconds: trained, likewise.
        finished: whether it came to its end; else its minutes ended, and the state is saved.
        samples: whether ``samples.png`` was drawn.
        first: whether this is the first (or only) of several processes, the one that speaks.
        calibration: what held-out images said (:mod:`rdc.decisions.held_out`); None: not asked, or not at its end.
    """

    out: Path
    images: int
    planned: int
    seconds: float
    finished: bool
    samples: bool
    first: bool
    calibration: dict[str, Any] | None = None


def run(
    recipe: Recipe,
    data: Dataset,
    out: str | os.PathLike[str],
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: bool = True,
    begun: float | None = None,
    extra: Dataset | None = None,
) -> Training:
    """Train what the recipe says; a run that is in the folder is continued.

    Args:
        recipe: what to do; ``recipe.toml`` in the folder says it again, with what the teacher decided.
        data: the training split; ``recipe.holdout`` images of it are left out, and at its end a diffusion model's confidence is
            fitted on them (``recipe.calibrate``).
        out: folder, made when needed: the model at every checkpoint, the state, the log, pictures.
        device: "cpu", "cuda", or "auto": cuda if there is one.
        threads: CPU threads of this process from now on; None: as they are.
        progress: draw bars on stderr.
        extra: what ``recipe.extra_data`` names; ``recipe.extra_share`` of every batch are of it.
        begun: when the box of ``recipe.minutes`` was opened, on ``time.monotonic``'s clock; None: now.

    Under ``torchrun`` this joins the other processes and leaves them at its end.

    Raises:
        ConfigError: the recipe does not go with the data or the machine; ``out`` is in use; the loss is not finite.
        CheckpointError: a model cannot be read; the folder has a run of another recipe, or a damaged one.
        TrainingStopped: SIGINT or SIGTERM came; the state was saved first.
    """
    begun = time.monotonic() if begun is None else begun
    more, place = _extra(recipe, data, extra), open_device(device, threads)
    recipe, described = with_holdout(recipe, data, out), checkpoint_paths(Path(out) / "model")[1]
    before = calibration_of(described)
    try:
        images = training_images(recipe, data)
        ready = _beside(prepare(recipe, images, place), more, data)
        exporter = Exporter(Path(out), ready.config, images, ready.settings, recipe.title, recipe.levels)
        said = _description(ready, images), progress, exporter, to_toml(ready.recipe)
        trainer = Trainer(ready.network, ready.objective, images, recipe.schedule, Path(out), *said, more)
        if trainer.rank == 0:
            trainer.selector = _selector(ready, data, trainer)
        if recipe.minutes is not None:
            costs = cost_afterwards(recipe, ready.config), cost_of_selection(recipe, ready.config)
            plan_images(trainer, recipe.minutes, begun, *costs)
        trainer.run()
    finally:
        leave_processes()
    finished, first = trainer.step >= trainer.config.steps, trainer.rank == 0
    diffuses, calibration = recipe.method in ("diffusion", "distill") and finished and first, None
    if diffuses:
        if recipe.calibrate:
            with trainer.folder.writing("the calibration"):
                operands = trainer.averaged_network(), ready.config, recipe, data, before, progress
                calibration = calibrate_model(described, *operands)
        exporter.samples(trainer.averaged_network(), progress)
    done = trainer.step * trainer.config.batch_size
    return Training(Path(out), done, trainer.config.images, trainer.seconds, finished, diffuses, first, calibration)


def _selector(ready: Prepared, data: Dataset, trainer: Trainer) -> Selector | None:
    """What chooses the weights, if the recipe asks for it."""
    recipe = ready.recipe
    if recipe.selection is None:
        return None
    held = train_holdout(data, recipe.holdout or 0)[1]
    return Selector(recipe.selection, held, attacked_as(ready.config, recipe), trainer.folder)


def _extra(recipe: Recipe, data: Dataset, extra: Dataset | None) -> Extra | None:
    """The images beside those of the data set, checked."""
    if (extra is None) != (not recipe.extra_data):
        said = (
            f"the images of {recipe.extra_data}; got none"
            if extra is None
            else f"a recipe that names {extra!r}; got none"
        )
        raise ConfigError(f"extra_data: expected {said}")
    if extra is None:
        return None
    assert recipe.extra_share is not None
    made = Extra(extra, recipe.extra_share)
    made.fits(data)
    made.of_batch(recipe.schedule.batch_size)
    return made


def _beside(ready: Prepared, extra: Extra | None, data: Dataset) -> Prepared:
    """The run with more images, if there are any, on record; they must not be those that judge it."""
    recipe = ready.recipe
    if extra is None:
        return ready
    if recipe.holdout:
        held = {image.tobytes() for image in train_holdout(data, recipe.holdout)[1].images.numpy()}
        if found := sum(image.tobytes() in held for image in extra.data.images.numpy()):
            raise ConfigError(
                f"extra_data: expected none of the {recipe.holdout:,} images that are left out to judge the model by; {found:,} of "
                f"{recipe.extra_data} are among them"
            )
    about = {**_described(recipe.extra_data, extra.data), "share": extra.share}
    return dataclasses.replace(ready, settings={**ready.settings, "extra_data": about})


def _described(name: str, images: Dataset) -> dict[str, Any]:
    return {"name": name or images.name, "images": len(images), "crc32": fingerprint(images.images, images.labels)}


def _description(ready: Prepared, images: Dataset) -> dict[str, Any]:
    """What tells the run from others, beside the training settings."""
    source = _described(ready.recipe.data, images)
    selection = {} if ready.recipe.selection is None else {"selection": dataclasses.asdict(ready.recipe.selection)}
    levels = {"levels": ready.recipe.levels} if ready.recipe.levels else {}
    left_out = {"data": source, "holdout": ready.recipe.holdout or 0}
    return {**ready.settings, **levels, **selection, "network": ready.config, **left_out}
