"""How much of likelihood maximisation is done at once: images, and levels of a step where not even one image fits the memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from rdc.execution.memory import bytes_per_item, items_that_fit, tensor_bytes
from rdc.execution.surroundings import measured
from rdc.method.denoiser import Denoiser
from rdc.method.levels import NoiseLevels
from rdc.method.likelihood_maximization import LikelihoodMaximization, maximize_likelihood

__all__ = ["lm_bytes", "lm_pieces"]


def lm_pieces(
    denoiser: Denoiser, lm: LikelihoodMaximization, like: Tensor, megabytes: float, known: dict[Any, int]
) -> tuple[int, int | None]:
    """What fits a budget.

    Args:
        denoiser: the network that moves the input.
        lm: the settings.
        like: images [N, C, H, W]; their type and device count.
        megabytes: the budget, MiB.
        known: what was measured before, by key; added to.

    Returns:
        How many images go together; and how many levels of a step, None for all of them: that is, where one image at all of them fits.
    """
    levels = lm.levels_per_step if lm.levels is None else len(lm.levels)
    if levels > 1:
        single = _measured(("one level", lm), denoiser, _at_one_level(lm), like, known)
        if single * levels > tensor_bytes(megabytes, like.device):
            what = "likelihood maximisation of one image at one level"
            return 1, min(levels, items_that_fit(megabytes, single, like.device, what))
    each = _measured(lm, denoiser, lm, like, known)
    return items_that_fit(megabytes, each, like.device, "likelihood maximisation of one image"), None


def _measured(name: Any, denoiser: Denoiser, lm: LikelihoodMaximization, like: Tensor, known: dict[Any, int]) -> int:
    key = (name, like.dtype, like.device)
    if key not in known:
        known[key] = lm_bytes(denoiser, lm, like)
    return known[key]


def _at_one_level(lm: LikelihoodMaximization) -> LikelihoodMaximization:
    if lm.levels is None:
        return dataclasses.replace(lm, levels_per_step=1)
    return dataclasses.replace(lm, levels=NoiseLevels(lm.levels.sigma[:1], (1.0,)))


@measured()
def lm_bytes(denoiser: Denoiser, lm: LikelihoodMaximization, like: Tensor) -> int:
    """Peak bytes that one more image needs in the exact gradient of LM; they do not grow with the number of steps."""
    single = dataclasses.replace(lm, steps=1)

    def work(count: int) -> Tensor:
        x = like.new_zeros(count, *denoiser.image_shape).requires_grad_()
        return torch.autograd.grad(maximize_likelihood(denoiser, x, single).sum(), x)[0]

    return bytes_per_item(work)
