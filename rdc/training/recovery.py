"""Going back: a run whose objective can run away returns to its last good weights, with a smaller rate, and goes on.

Everything here depends on the step alone and is part of the training state, so that a resumed run is the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rdc.errors import ConfigError

if TYPE_CHECKING:
    from rdc.training.trainer import Trainer

__all__ = ["Recovery", "Runaway"]

EVERY = 100  # steps between two states that are kept
_SLOWER = 0.5  # what the rate is multiplied by at every return
_MOST = 10  # returns


@runtime_checkable
class Runaway(Protocol):
    """An objective that keeps something between steps, and can run away."""

    def diverged(self, values: dict[str, float]) -> bool:
        """Whether the logged values of a step say so."""

    def restart(self, generator: torch.Generator) -> None:
        """Begin anew what it keeps."""

    def state(self) -> dict[str, Tensor]:
        """What it keeps."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take it back; ValueError where it does not fit."""


class Recovery:
    """The two last kept states of a run; a return goes to the older one, :data:`EVERY` to twice as many steps back.

    Args:
        objective: of the run.

    Attributes:
        factor: of the learning rate.
        returns: how often the run went back.
    """

    def __init__(self, objective: Runaway) -> None:
        self.objective, self.factor, self.returns = objective, 1.0, 0
        self.kept: list[tuple[int, dict[str, Tensor]]] = []  # the older one first

    def keep(self, step: int, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Before a step: copy the weights when it is time.

        Args:
            step: steps done.
            weights: everything that the optimiser changes, by name.
        """
        if not self.kept or (step % EVERY == 0 and step != self.kept[-1][0]):
            copied = (step, {name: value.detach().clone() for name, value in weights().items()})
            self.kept = [*self.kept[-1:], copied]

    def go_back(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Give the trainer the older state's weights, halve the rate, begin the objective's own anew, and say so.

        Args:
            trainer: at the step that ran away; its step is not done.
            values: of that step.

        Raises:
            ConfigError: it ran away too often.
        """
        step, weights = self.kept[0]
        found = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.returns == _MOST:
            raise ConfigError(
                f"step {trainer.step}: training ran away for the {_MOST + 1}th time ({found}); expected settings that hold. Use "
                "another --out with a lower --lr or more --sgld-steps"
            )
        self.returns, self.factor = self.returns + 1, self.factor * _SLOWER
        self.kept = [(step, weights)]
        trainer.set_weights(weights, trainer.step + 1)
        self.objective.restart(trainer.batches.generator(trainer.step))
        print(
            f"{trainer.folder.path}: step {trainer.step} ran away ({found}); back to the weights of step {step}, learning rate "
            f"times {self.factor:g}, new replay buffer",
            file=sys.stderr,
        )

    def state(self) -> dict[str, Tensor]:
        """For the training state."""
        numbers = torch.tensor([self.factor, self.returns], dtype=torch.float64)
        tensors = {"recovery.numbers": numbers, "recovery.steps": torch.tensor([step for step, _ in self.kept])}
        for place, (_, weights) in enumerate(self.kept):
            tensors |= {f"recovery.{place}.{name}": value for name, value in weights.items()}
        return tensors | {f"objective.{name}": value for name, value in self.objective.state().items()}

    def load(self, tensors: dict[str, Tensor], like: dict[str, Any]) -> None:
        """Take :meth:`state` back.

        Args:
            tensors: of the training state.
            like: name -> tensor of the weights, as :meth:`keep` gets them: for shapes and the device.

        Raises:
            KeyError, ValueError: they are not such a state.
        """
        factor, returns = tensors["recovery.numbers"].tolist()
        steps = tensors["recovery.steps"].tolist()
        kept = []
        for place, step in enumerate(steps):
            weights = {name: tensors[f"recovery.{place}.{name}"].to(value.device) for name, value in like.items()}
            if any(weights[name].shape != value.shape for name, value in like.items()):
                raise ValueError("a kept state has other shapes")
            kept.append((int(step), weights))
        own = {
            name.removeprefix("objective."): value for name, value in tensors.items() if name.startswith("objective.")
        }
        self.objective.load_state(own)
        self.factor, self.returns, self.kept = factor, int(returns), kept
