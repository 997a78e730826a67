"""Variance-preserving (discrete-time) models behind the interface of an EDM network.

A VP model sees ``x_vp = sqrt(abar) x0 + sqrt(1 - abar) noise`` and an integer step t. Divided by ``sqrt(abar)`` this is
``x_t = x0 + s noise`` with ``s = sqrt((1 - abar) / abar)`` (method: VP models map in). With ``r = sqrt(s^2 + sd^2)``
and the network input ``x = c_in x_t = x_t / r``, what rdc needs, ``F = (D - c_skip x_t) / c_out``, is, without
cancellation,

    epsilon:        D = x_t - s eps                   F = (s x - r eps) / sd
    v_prediction:   D = (x_vp - s v) / sqrt(1 + s^2)  F = (s (1 - sd^2) x / (1 + s^2) - r v / sqrt(1 + s^2)) / sd
    sample:         D = output                        F = (r D - sd^2 x) / (s sd)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from rdc.arguments.scalars import as_number, shown
from rdc.errors import InputError

__all__ = ["PREDICTIONS", "VPNetwork", "vp_sigmas"]

PREDICTIONS = ("epsilon", "v_prediction", "sample")
_FROM_TO = ("linear", "scaled_linear", "sigmoid")  # schedules between beta_start and beta_end
_STEPS, _LARGEST = 100_000, 1e9  # of a schedule; squaredcos_cap_v2 of 1,000 steps ends at 20,291


def vp_sigmas(schedule: dict[str, Any]) -> Tensor:
    """Noise level of every training step, ``sqrt((1 - abar_t) / abar_t)``, float64, increasing.

    Args:
        schedule: ``num_train_timesteps`` (1000), ``beta_schedule`` ("linear", "scaled_linear", "squaredcos_cap_v2" or
            "sigmoid"), ``beta_start`` (1e-4), ``beta_end`` (0.02), or ``trained_betas``; ``rescale_betas_zero_snr``.

    Returns:
        [T], in units of x0 in [-1, 1]. With ``rescale_betas_zero_snr`` the last step, of infinite sigma, is left out.

    Raises:
        ValueError: the schedule is unknown, its betas are not in (0, 1), or its noise levels are zero or beyond 1e9.
    """
    double: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    steps = schedule.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 2 <= steps <= _STEPS:
        raise ValueError(f"num_train_timesteps: expected 2..{_STEPS}; got {shown(steps)}")
    kind = schedule.get("beta_schedule", "linear")
    start, end = 1e-4, 0.02
    if kind in _FROM_TO and schedule.get("trained_betas") is None:
        start, end = _beta(schedule, "beta_start", start), _beta(schedule, "beta_end", end)
    if schedule.get("trained_betas") is not None:
        betas = torch.tensor(_trained(schedule["trained_betas"]), **double)
    elif kind == "linear":
        betas = torch.linspace(start, end, steps, **double)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, **double) ** 2
    elif kind == "sigmoid":
        betas = torch.linspace(-6, 6, steps, **double).sigmoid() * (end - start) + start
    elif kind == "squaredcos_cap_v2":
        at = (torch.arange(steps + 1, **double) / steps + 0.008) / 1.008
        abar = (at * math.pi / 2).cos() ** 2
        betas = (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    else:
        raise ValueError(
            f"beta_schedule: expected linear, scaled_linear, squaredcos_cap_v2, sigmoid or trained_betas; got {shown(kind)}"
        )
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError("betas: expected numbers between 0 and 1")
    root = (1 - betas).cumprod(0).sqrt()  # sqrt(abar)
    if schedule.get("rescale_betas_zero_snr"):
        root = ((root - root[-1]) * root[0] / (root[0] - root[-1]))[:-1]
    sigmas = (1 / root**2 - 1).sqrt()
    if not bool(((sigmas > 0) & (sigmas < _LARGEST) & (sigmas.diff(prepend=sigmas[:1]) >= 0)).all()):
        raise ValueError(
            f"schedule: expected noise levels that increase from above 0 to below {_LARGEST:g}; its betas give "
            f"{sigmas[0]:.3g} ... {sigmas[-1]:.3g}"
        )
    return sigmas


def _beta(schedule: dict[str, Any], name: str, default: float) -> float:
    """The number of this name; JSON's null stands for the default."""
    value = default if schedule.get(name) is None else schedule[name]
    number = as_number(value)
    if number is None or not 0 < number < 1:
        raise ValueError(f"{name}: expected a number between 0 and 1; got {shown(value)}")
    return number


def _trained(betas: Any) -> list[float]:
    known = isinstance(betas, (list, tuple)) and 2 <= len(betas) <= _STEPS
    numbers = [number for beta in (betas if known else ()) if (number := as_number(beta)) is not None]
    if not known or len(numbers) < len(betas):
        raise ValueError(f"trained_betas: expected a list of 2..{_STEPS} numbers; got {shown(betas)}")
    return numbers


class VPNetwork(nn.Module):
    """A discrete-time model answering like an EDM network: (c_in x_t, c_noise, one-hot) -> F.

    sigma is looked up among the model's own steps, nearest in ln(sigma); outside their range the first or last.

    Args:
        unet: ``unet(x_vp [B, C, H, W], step [B] int64, class_weights [B, E]) -> [B, C or 2C, H, W]``; of 2C channels
            (learned variance) the first C are used.
        sigmas: noise level of each training step [T], increasing.
        prediction: "epsilon", "v_prediction" or "sample".
        num_classes: K; 0: an unconditional model, and there is no label to be given.
        null_label: what no label means: the index of the embedding trained for it (the other E - 1 = K indices, in
            order, are the classes), "mean" (the mean of the class embeddings, an approximation that was never trained),
            or None: the model has no unconditional mode, and asking for it is an error.
        sigma_data: of the preconditioning that feeds this network.

    Forward:
        x [B, C, H, W], noise_labels [B] (ln(sigma) / 4), class_labels [B, K] one-hot (a row of zeros, or None: no
        label) -> F [B, C, H, W].

    Raises:
        InputError: no label was given and ``null_label`` is None.
    """

    log_sigmas: Tensor

    def __init__(
        self,
        unet: nn.Module,
        sigmas: Tensor,
        prediction: str,
        num_classes: int,
        null_label: int | str | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction: expected one of {', '.join(PREDICTIONS)}; got {shown(prediction)}")
        self.unet, self.prediction, self.num_classes = unet, prediction, num_classes
        self.null_label, self.sigma_data = null_label, sigma_data
        self.register_buffer("log_sigmas", sigmas.log().to(torch.float32))

    def step(self, noise_labels: Tensor) -> Tensor:
        """Nearest training step [B] int64 of ln(sigma) / 4."""
        table = self.log_sigmas
        return torch.bucketize(4 * noise_labels.to(table.dtype), (table[1:] + table[:-1]) / 2)

    def class_weights(self, x: Tensor, class_labels: Tensor | None) -> Tensor:
        """Weights [B, E] of the class embeddings for labels [B, K]."""
        if class_labels is None:
            class_labels = x.new_zeros(len(x), self.num_classes)
        if not self.num_classes:
            return class_labels
        rest = 1 - class_labels.sum(1, keepdim=True)  # 1 where there is no label
        if self.null_label is None:
            recorded = torch.compiler.is_compiling() or isinstance(
                rest, FakeTensor
            )  # then there are no values to look at
            if not recorded and bool((rest > 0.5).any()):
                raise InputError(
                    "this model was trained with labels only and has no null label: use it without likelihood "
                    "maximisation (lm=None), or convert it with null_label set (an index, or mean)"
                )
            return class_labels
        if self.null_label == "mean":
            return class_labels + rest / self.num_classes
        return torch.cat([class_labels[:, : self.null_label], rest, class_labels[:, self.null_label :]], dim=1)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None) -> Tensor:
        sd = self.sigma_data
        s = (4 * noise_labels).exp().reshape(-1, 1, 1, 1)
        r, q = (s**2 + sd**2).sqrt(), (s**2 + 1).sqrt()
        x_vp = (x * (r / q)).to(x.dtype)
        out = self.unet(x_vp, self.step(noise_labels), self.class_weights(x, class_labels))[:, : x.shape[1]]
        if self.prediction == "epsilon":
            f = (s * x - r * out) / sd
        elif self.prediction == "v_prediction":
            f = (s * (1 - sd**2) / q**2 * x - r / q * out) / sd
        else:
            f = (r * out - sd**2 * x) / (s * sd)
        answer: Tensor = f.to(x.dtype)
        return answer
