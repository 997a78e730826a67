"""At the end of a run: the confidence of what was trained, fitted on images that the training did not see."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from rdc.data import Dataset, train_holdout
from rdc.decisions.held_out import FEWEST, fit_held_out
from rdc.errors import CheckpointError, InputError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import make_denoiser
from rdc.method.levels import parse_levels
from rdc.models.checkpoints import checkpoint_paths
from rdc.models.descriptions import read_description, update_info
from rdc.models.single import DEFAULT_LEVELS
from rdc.networks.blocks import fastest_layout
from rdc.networks.presets import DISCRIMINATIVE
from rdc.training.exporter import SAMPLE_PASSES
from rdc.training.preparation import held_out_of
from rdc.training.recipes import Recipe

__all__ = [
    "MOST",
    "attacked_as",
    "automatic_holdout",
    "calibrate_model",
    "calibration_of",
    "cost_afterwards",
    "cost_of_selection",
    "with_holdout",
]

MOST = 500  #: images held out, and fitted on
_MOST_IN_TIME = 100  # of a run of so many minutes
_SHARE = 10  # one image in so many is held out
_PASSES = 0.1  # of those that training made, at three a step and image


def automatic_holdout(data: Dataset) -> int:
    """How many images to hold out where nobody says: a tenth, at most :data:`MOST`, and of no class more than half.

    0 where that would be too few to fit anything on.
    """
    counts = np.unique(data.labels.numpy(), return_counts=True)[1]
    count = min(MOST, len(data) // _SHARE, len(counts) * (int(counts.min()) // 2) if len(counts) else 0)
    return count if count >= max(FEWEST, 2 * len(counts)) else 0


def with_holdout(recipe: Recipe, data: Dataset, out: str | os.PathLike[str]) -> Recipe:
    """The recipe with a number for ``holdout``: its own, 0 where nothing is to be calibrated, else :func:`automatic_holdout`.

    A run that was begun with none (before there was calibration) goes on with none.

    Args:
        recipe: as given.
        data: the whole training split.
        out: folder of the run.
    """
    if recipe.holdout is not None:
        return recipe
    count = automatic_holdout(data) if recipe.calibrate and recipe.method in ("diffusion", "distill") else 0
    count = max(count, recipe.selection.images if recipe.selection else 0)
    if count and held_out_of(out, data) == 0:
        count = 0
    return dataclasses.replace(recipe, holdout=count)


def calibration_of(path: Path) -> tuple[str, dict[str, Any] | None]:
    """(digest of the weights, record) of a checkpoint's description; ("", None) where there is none that can be read."""
    try:
        described = read_description(path)
    except CheckpointError:
        return "", None
    record = (described.get("info") or {}).get("calibration")
    return described["sha256"], record if isinstance(record, dict) else None


def calibrate_model(
    path: Path,
    network: nn.Module,
    config: dict[str, Any],
    recipe: Recipe,
    data: Dataset,
    before: tuple[str, dict[str, Any] | None],
    progress: bool,
) -> dict[str, Any]:
    """Fit the confidence of a finished run and write it into the checkpoint's description.

    Args:
        path: the description, ``model.json``, as the run's last checkpoint wrote it.
        network: with the averaged weights, on its device; brought into the layout that a loaded model has.
        config: its description.
        recipe: what was done.
        data: the whole training split.
        before: :func:`calibration_of` at the start of this process; kept where the weights are the same.
        progress: draw a bar on stderr.

    Returns:
        The record, see :mod:`rdc.decisions.held_out`.
    """
    sha256, record = before
    if record is None or calibration_of(path)[0] != sha256:
        record = _fitted(network, config, recipe, data, progress)
    changes: dict[str, Any] = {"calibration": record}
    if record["logit_scale"] is not None:
        changes["classifier"] = {"levels": recipe.levels or DEFAULT_LEVELS, "logit_scale": record["logit_scale"]}
    update_info(path, changes)
    return record


def cost_afterwards(recipe: Recipe, config: dict[str, Any]) -> int:
    """What calibration and samples at the end of a run of so many minutes cost, in images of training.

    Args:
        recipe: with its holdout.
        config: description of the network.
    """
    if recipe.method not in ("diffusion", "distill"):
        return 0
    classes, student = int(config.get("num_classes") or 1), recipe.method == "distill"
    fitted = min(recipe.holdout or 0, _MOST_IN_TIME) if recipe.calibrate else 0
    passes = (
        fitted * len(parse_levels(recipe.levels or DEFAULT_LEVELS)) * (1 if student else classes)
        + SAMPLE_PASSES * classes
    )
    return passes // (6 if student else 3)  # of a step and image: forward, backward twice as much; the teacher's


def cost_of_selection(recipe: Recipe, config: dict[str, Any]) -> float:
    """What trials of the averaged weights cost for each image of training, in images of training that take as long, about.

    Args:
        recipe: what is done.
        config: description of the network.
    """
    terms = recipe.selection
    if terms is None:
        return 0.0
    gradients = terms.images * len(terms.attacked()) * (terms.steps + 2)
    if recipe.attack is not None:  # each step of training has its own attack
        return gradients / (recipe.attack.steps + 1) / terms.every
    passes = len(parse_levels(recipe.levels or DEFAULT_LEVELS)) if recipe.method in ("diffusion", "distill") else 1
    if recipe.method == "diffusion":
        passes *= int(config.get("num_classes") or 1)  # each class is a pass
    return gradients * passes / (2 if recipe.method == "distill" else 1) / terms.every


def attacked_as(config: dict[str, Any], recipe: Recipe) -> Callable[[nn.Module], Callable[[Tensor], Tensor]]:
    """What weights are selected by: the network -> a classifier, pixels [N, C, H, W] in [0, 1] -> logits [N, K].

    Args:
        config: description of the network.
        recipe: with its levels.
    """

    def classifier(network: nn.Module) -> Callable[[Tensor], Tensor]:
        if config["kind"] in DISCRIMINATIVE:
            return network
        network.to(memory_format=fastest_layout(next(network.parameters()).device))  # type: ignore[call-overload]
        return DiffusionClassifier(make_denoiser(network, config), recipe.levels or DEFAULT_LEVELS)

    return classifier


def _fitted(
    network: nn.Module, config: dict[str, Any], recipe: Recipe, data: Dataset, progress: bool
) -> dict[str, Any]:
    """The record of the images that the run has held out, or of a part that takes little time beside the training."""
    if not recipe.holdout:
        return {"logit_scale": None, "why": "no image was held out (--holdout)", "images": 0, "likelihood_score": None}
    held = train_holdout(data, recipe.holdout)[1]
    network.to(memory_format=fastest_layout(next(network.parameters()).device))  # type: ignore[call-overload]
    classifier = DiffusionClassifier(make_denoiser(network, config), recipe.levels or DEFAULT_LEVELS)
    affordable = int(_PASSES * 3 * recipe.schedule.images / classifier.evaluations_per_image)
    most = _MOST_IN_TIME if recipe.minutes is not None else min(MOST, max(_MOST_IN_TIME, affordable))
    spread = np.linspace(0, len(held) - 1, min(most, len(held))).astype(int)  # all classes, whatever the order
    try:
        record = fit_held_out(classifier, held.subset(spread.tolist()), progress=progress)
    except InputError as error:
        return {"logit_scale": None, "why": str(error), "images": len(spread), "likelihood_score": None}
    return {**record, "seen_by": seen} if (seen := _seen_by(recipe, data)) else record


def _seen_by(recipe: Recipe, data: Dataset) -> list[str]:
    """Teacher and first weights that were trained on some of the images held out here, as far as their folders tell."""
    found = []
    for name in filter(None, (recipe.teacher, recipe.init)):
        left_out = held_out_of(checkpoint_paths(name)[1].parent, data)
        if left_out is not None and left_out < (recipe.holdout or 0):
            found.append(name)
    return found
