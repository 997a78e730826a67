"""Any function that predicts something of a noisy image, as a denoiser like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rdc.arguments.scalars import shown
from rdc.errors import ConfigError
from rdc.execution.attention import twice_differentiable
from rdc.method.denoiser import Denoiser
from rdc.method.draw import Draw
from rdc.method.null_label import NullLabel
from rdc.method.schedules import FlowSchedule, Schedule, to_f

__all__ = ["CustomDenoiser"]


class CustomDenoiser(Denoiser):
    """``f(z, time, labels) -> prediction`` behind the interface of a denoiser: K passes a level.

    Args:
        f: z [B, C, H, W], time [B], labels [B] int64 -> [B, C, H, W]; of 2 C channels (learned variance) the first C are used. An
            ``nn.Module`` becomes part of the denoiser: evaluation mode, its weights frozen.
        schedule: what z and time are at a noise level.
        predicts: what the prediction is, see :mod:`rdc.method.schedules`.
        num_classes: K.
        image_shape: (C, H, W).
        null_label: what f takes for "no label"; None: it has none, and likelihood maximisation is refused.
        sigma_data: of the preconditioning that losses are weighted by.

    Raises:
        ConfigError: a prediction that has no meaning with the schedule.
    """

    head = "conditional"

    def __init__(
        self,
        f: Callable[[Tensor, Tensor, Tensor], Tensor],
        schedule: Schedule,
        predicts: str,
        num_classes: int,
        image_shape: tuple[int, int, int],
        null_label: int | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        if predicts not in schedule.predictions:
            name = schedule.describe()["schedule"]
            raise ConfigError(
                f"predicts: expected {', '.join(schedule.predictions)} with schedule {name}; got {shown(predicts)}"
            )
        super().__init__(f if isinstance(f, nn.Module) else _Function(f), num_classes, image_shape, sigma_data)
        self.schedule, self.predicts, self.null_label = schedule, predicts, null_label
        self.passes_per_level = num_classes
        self.about: dict[str, Any] = {}  # where f comes from, for reports
        if null_label is not None:
            self.null_training = NullLabel(True, f"label {null_label} was named as the one for no label")

    @property
    def label_free(self) -> bool:
        return self.null_label is not None

    def describe(self) -> dict[str, Any]:
        kind = {"kind": "custom", "predicts": self.predicts, **self.schedule.describe()}
        return {"denoiser": {**kind, "null_label": self.null_label, **self.about}}

    def f(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        column = sigma.reshape(-1, 1, 1, 1)
        z = self.schedule.scale(column, self.precondition.sigma_data) * x_t
        found = self._compute(self.network, z, self.schedule.time(sigma), labels)[:, : x_t.shape[1]]
        if isinstance(self.schedule, FlowSchedule) and self.schedule.data_at and self.predicts == "flow":
            found = -found
        return to_f(self.predicts, self.precondition.sigma_data, x_t, column, found)

    def f_null(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        if self.null_label is None:
            raise ConfigError(
                "this denoiser has no null label, which likelihood maximisation needs: use it without (lm=None), or say which label "
                "stands for none (null_label=)"
            )
        labels = torch.full((len(x_t),), self.null_label, dtype=torch.int64, device=x_t.device)
        with twice_differentiable(x_t):  # the exact gradient of likelihood maximisation differentiates its gradient
            return self.f(x_t, sigma, labels)

    def losses_of(self, x_t: Tensor, target: Tensor, draw: Draw) -> Tensor:
        count, sigma = self.num_classes, self._rows(x_t, draw)
        labels = torch.arange(count, device=x_t.device).repeat(len(x_t))
        f = self.f(x_t.repeat_interleave(count, 0), sigma.repeat_interleave(count), labels).unflatten(0, (-1, count))
        error = (f - target[:, None]).square().flatten(2).sum(2)  # [N*T, K]
        return torch.einsum("ntk,t->nk", error.unflatten(0, (-1, len(draw))), draw.weight.to(error.dtype))


class _Function(nn.Module):
    """A function that is no module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *operands: Tensor) -> Tensor:
        return self.function(*operands)
