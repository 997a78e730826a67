"""How long, how fast and from which seed :class:`rdc.training.trainer.Trainer` trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rdc.arguments.scalars import as_integer, as_number, shown
from rdc.errors import ConfigError

__all__ = ["TrainConfig", "optimizer_of"]

_MOST_BATCH, _MOST_IMAGES = 2**20, 10**15
_READ: dict[Any, tuple[Callable[[Any], int | float | None] | None, str]] = {
    "int": (as_integer, "an integer"),
    "float": (as_number, "a number"),
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, from which seed.

    Args:
        images: training images to process in all (each epoch counts again).
        batch_size: images a step, over all processes.
        learning_rate: peak of Adam; warm-up over ``warmup_images``, then cosine decay to zero.
        ema_images: half-life of the weight average, in images.
        clip: largest gradient norm.
        weight_decay: of AdamW, for weights of two dimensions and more; 0: Adam.
        awp: gamma of adversarial weight perturbation (:mod:`rdc.training.weight_perturbation`); 0: none. Not with ``cuda_graph``.
        precision: "float32" or "bfloat16" (autocast; weights stay float32). On a GPU without the kernels of
            :mod:`rdc.networks.fused` group norm answers in bfloat16 too, unless the objective differentiates twice.
        flip: mirror half of the images left to right.
        compile: run the network through ``torch.compile``.
        checkpoint_seconds: time between checkpoints.
        memory_format: of the weights on a GPU, "channels_last" or "contiguous"; it changes rounding and speed, nothing else.
        cuda_graph: record the step once and replay it (:mod:`rdc.training.cuda_graph`); needs a GPU and one process.
    """

    images: int = 360_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_images: int = 10_000
    ema_images: int = 15_000
    clip: float = 1.0
    seed: int = 0
    precision: str = "float32"
    flip: bool = False
    compile: bool = False
    checkpoint_seconds: float = 60.0
    memory_format: str = "channels_last"
    cuda_graph: bool = False
    weight_decay: float = 0.0
    awp: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            read, kind = _READ.get(field.type, (None, ""))
            given = getattr(self, field.name)
            value = given if read is None else read(given)
            if value is None:
                raise ConfigError(f"{field.name}: expected {kind}; got {shown(given)}")
            if type(given) not in (int, float):  # of NumPy or PyTorch: the run's folder holds plain numbers
                object.__setattr__(self, field.name, value)
        if self.batch_size < 1 or self.images < self.batch_size:
            raise ConfigError(f"images: expected at least batch_size ({self.batch_size}) >= 1; got {self.images}")
        if self.batch_size > _MOST_BATCH or self.images > _MOST_IMAGES:
            raise ConfigError(
                f"expected batch_size <= {_MOST_BATCH:,} and images <= {_MOST_IMAGES:,}; got {self.batch_size:,} and {self.images:,}"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision: expected float32 or bfloat16; got {self.precision!r}")
        if self.memory_format not in ("channels_last", "contiguous"):
            raise ConfigError(f"memory_format: expected channels_last or contiguous; got {self.memory_format!r}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a positive number; got {getattr(self, name)}")
        for name in ("warmup_images", "ema_images", "checkpoint_seconds", "weight_decay", "awp"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected 0 or more; got {getattr(self, name)}")
        if self.awp and self.cuda_graph:
            raise ConfigError("awp: expected no cuda_graph with it; got both. Leave one out")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed: expected 0..{2**31 - 1}; got {self.seed}")

    @property
    def steps(self) -> int:
        return self.images // self.batch_size

    @property
    def log_steps(self) -> int:
        """Steps between log rows: 50, fewer in short runs."""
        return max(1, min(50, self.steps // 50))

    def describe(self) -> dict[str, Any]:
        """For the run's folder; what was added since 0.1 and is off is left out, so that older runs continue."""
        settings = dataclasses.asdict(self)
        return {k: v for k, v in settings.items() if v or k not in ("weight_decay", "awp")}

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, cosine decay."""
        done = step * self.batch_size
        warm = min(1.0, (done + self.batch_size) / max(1, self.warmup_images))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def optimizer_of(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, or with a weight decay AdamW, which decays weights of two dimensions and more."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (0.9, 0.99), "eps": 1e-8, "fused": True}
    if not config.weight_decay:
        return torch.optim.Adam(net.parameters(), **settings)
    kept = [p for p in net.parameters() if p.ndim < 2]
    groups = [{"params": [p for p in net.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay}]
    return torch.optim.AdamW([*groups, {"params": kept, "weight_decay": 0.0}], **settings)
