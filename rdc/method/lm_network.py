"""A network of its own for likelihood maximisation: does it go with the classifier's, and what does its objective take?

The authors of arXiv 2305.15241 move the input with an unconditional network and classify with a conditional one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rdc.arguments.scalars import shown
from rdc.errors import ConfigError
from rdc.execution.memory import bytes_per_item, device_of
from rdc.execution.surroundings import measured, refuse_inference_weights
from rdc.method.denoiser import Denoiser
from rdc.method.draw import Draw
from rdc.method.likelihood_maximization import LikelihoodMaximization, lm_objective

__all__ = ["about_lm_network", "checked_lm_denoiser", "refuse_without_null_label", "row_bytes_without_label"]


def checked_lm_denoiser(lm_denoiser: Any, denoiser: Denoiser, precision: str) -> Denoiser | None:
    """The network of likelihood maximisation in ``precision``; None where it is the classifier's own.

    Args:
        lm_denoiser: of the images that ``denoiser`` takes, on its device and of its type; it may be unconditional.
        denoiser: the classifier's.
        precision: of both.

    Raises:
        ConfigError: it does not go with the classifier's, or has no prediction without a label.
    """
    if lm_denoiser is None or lm_denoiser is denoiser:
        return None
    if not isinstance(lm_denoiser, Denoiser):
        raise ConfigError(
            f"lm_denoiser: expected a rdc.method.denoiser.Denoiser (make_denoiser gives one), or rdc.load(..., lm_denoiser=NAME); got "
            f"{shown(lm_denoiser)}"
        )
    if lm_denoiser.image_shape != denoiser.image_shape:
        raise ConfigError(
            f"lm_denoiser: expected a network for images {list(denoiser.image_shape)}, which the classifier takes; it takes "
            f"{list(lm_denoiser.image_shape)}. Choose two for the same images"
        )
    here, there = device_of(denoiser), device_of(lm_denoiser)
    if here != there:
        raise ConfigError(
            f"lm_denoiser: expected it on {here}, where the classifier's network is; it is on {there}. Move it"
        )
    types = [{p.dtype for p in network.parameters()} for network in (denoiser, lm_denoiser)]
    if all(types) and types[0] != types[1]:
        got = ", ".join(sorted(str(dtype) for dtype in types[1]))
        raise ConfigError(f"lm_denoiser: expected weights of the classifier's type; got {got}. Convert it (.to(dtype))")
    refuse_without_null_label(lm_denoiser)
    refuse_inference_weights(lm_denoiser)
    return lm_denoiser.eval().requires_grad_(False).in_precision(precision)


def refuse_without_null_label(denoiser: Denoiser) -> None:
    """Refuse a network that can only be asked for classes.

    Raises:
        ConfigError: it is one.
    """
    if not denoiser.label_free:
        raise ConfigError(
            "lm_denoiser: expected an unconditional network, or one with a null label; this one was trained with labels only. Take another "
            "network, or convert it with null_label set (an index, or mean)"
        )


def about_lm_network(lm: LikelihoodMaximization | None, lm_denoiser: Denoiser | None) -> dict[str, Any]:
    """What a report says of a network that likelihood maximisation has for itself; {} without one."""
    if lm is None or lm_denoiser is None:
        return {}
    other = lm_denoiser
    return {"lm_network": {"head": other.head, "num_classes": other.num_classes, **other.describe()}}


@measured()
def row_bytes_without_label(denoiser: Denoiser, like: Tensor) -> int:
    """Peak bytes that one more image at one level needs for the label-free loss and its gradient in pixels."""
    one = like.new_ones(1)
    draw = Draw(one, one, like.new_zeros(1, *denoiser.latent_shape))

    def work(count: int) -> Tensor:
        x = like.new_zeros(count, *denoiser.image_shape).requires_grad_()
        return torch.autograd.grad(lm_objective(denoiser, x, LikelihoodMaximization(), draw).sum(), x)[0]

    return bytes_per_item(work)
