"""Adversarial weight perturbation: a step takes its gradient where the weights are worse than they are.

Robust training learns its images by heart long before it has learnt what it could ("robust overfitting"), and does so in sharp minima
of the weights. A step of AWP, at weights w and with the adversarial images x' that were found for w,

    v_l = gamma ||w_l|| g_l / ||g_l||            g = gradient of the loss at (w, x'), l each weight of two dimensions and more
    w  <- w - (the optimiser's step by the gradient of the loss at (w + v, x'))

so that what is minimised is the loss of the worst weights nearby. It costs one more pass over the images that are trained on; they
are not looked for again, which is most of what robust training costs.

Source: Wu, Xia & Wang 2020, Adversarial weight perturbation helps robust generalization, arXiv 2004.05884.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["moved_weights", "same_perturbations"]


@contextlib.contextmanager
def same_perturbations(objective: Any) -> Iterator[None]:
    """Within, the objective looks for the perturbed images of its batch once and answers with them again.

    Args:
        objective: one with an attribute ``found``; any other computes everything again. None: nothing is kept.
    """
    while hasattr(objective, "objective"):  # images are changed in front of it
        objective = objective.objective
    if not hasattr(objective, "found"):
        yield
        return
    objective.found = {}
    try:
        yield
    finally:
        objective.found = None


@contextlib.contextmanager
def moved_weights(net: nn.Module, gamma: float) -> Iterator[None]:
    """Within, the weights are w + v by the gradients that they have, and have none; behind it they are w again, to the bit.

    Args:
        net: whose weights have their gradients.
        gamma: ||v_l|| / ||w_l||, > 0.
    """
    weights = [p for p in net.parameters() if p.requires_grad]
    moved = [p for p in weights if p.ndim >= 2 and p.grad is not None]
    kept = [p.detach().clone() for p in moved]
    with torch.no_grad():
        for p in moved:
            assert p.grad is not None
            length = torch.linalg.vector_norm(p.grad)
            p.add_(p.grad * torch.where(length > 0, gamma * torch.linalg.vector_norm(p) / length, 0))
        for p in weights:
            p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for p, before in zip(moved, kept, strict=True):
                p.copy_(before)
