"""From class losses to probabilities: Bayes' rule (arXiv 2305.15241, equations 5 to 8).

    f_y = - sum_t w_t ||F(x_t; s_t, y) - F*_t||^2        log p(y|x) = log_softmax_y( scale f_y + log prior_y )

This is exact only if the gap between the ELBO and log p(x|y) is the same for every class; that is the assumption of
every diffusion classifier. ``scale`` sets how peaked the posterior is and never changes the decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rdc.arguments.scalars import as_number, shown
from rdc.errors import ConfigError

__all__ = ["log_posterior", "log_prior", "resolve_scale"]


def resolve_scale(scale: str | float, image_shape: tuple[int, ...]) -> float:
    """Turn a logit scale into a number: ``"sum"`` -> 1, ``"mean"`` -> 1 / (C*H*W), or a positive number.

    Raises:
        ConfigError: neither a known name nor a positive finite number.
    """
    if isinstance(scale, str) and scale in ("sum", "mean"):
        return 1.0 if scale == "sum" else 1.0 / math.prod(image_shape)
    number = as_number(scale)
    if number is not None and 0 < number < math.inf:
        return number
    raise ConfigError(f'logit_scale: expected "sum", "mean" or a positive number; got {shown(scale)}')


def log_posterior(loss: Tensor, scale: float = 1.0, log_prior: Tensor | None = None) -> Tensor:
    """log p(y|x) [N, K] from class losses [N, K].

    Args:
        loss: [N, K], weighted squared errors.
        scale: positive; one over the temperature.
        log_prior: [K] log-probabilities of the classes; None: uniform.
    """
    score = -scale * loss
    if log_prior is not None:
        score = score + log_prior.to(score)
    return torch.log_softmax(score, dim=1)


def log_prior(prior: Sequence[float] | None, num_classes: int) -> Tensor | None:
    """Log-probabilities [K] float64 of a prior over classes, scaled to sum to one; None stands for a uniform one.

    Raises:
        ConfigError: not ``num_classes`` positive finite numbers.
    """
    if prior is None:
        return None
    try:
        values = torch.tensor([float(value) for value in prior], dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"class_prior: expected {num_classes} positive probabilities; got {shown(prior)}") from error
    if values.shape != (num_classes,) or not (values > 0).all() or not torch.isfinite(values).all():
        raise ConfigError(f"class_prior: expected {num_classes} positive probabilities; got {shown(prior)}")
    return (values / values.sum()).log()
