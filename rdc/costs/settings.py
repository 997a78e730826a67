"""What is measured, checked when made; and a model that can be loaded again in another process."""

from __future__ import annotations

import dataclasses
from typing import Any

from rdc.arguments.scalars import as_flag, as_integer, as_number, shown
from rdc.contracts import Defence, GradientMode
from rdc.errors import ConfigError
from rdc.models.choice import ModelChoice

__all__ = ["WORK", "CostSettings", "MeasuredModel"]

#: what is timed -> what it is
WORK = {
    "prediction": "logits of a batch, without gradient",
    "gradient": "one step of APGD-CE: logits of a batch and the gradient of the loss in the pixels",
}
_MOST_BATCH, _MOST_ROUNDS, _MOST_SECONDS = 65_536, 10_000, 10**6


@dataclasses.dataclass(frozen=True)
class MeasuredModel:
    """A model of the comparison.

    Args:
        label: what tables and plots call it.
        choice: which model, set how.
        gradient: "exact" or "bpda"; None: the model's own.
    """

    label: str
    choice: ModelChoice
    gradient: str | None = None

    def load(self, data: Any) -> Defence:
        """The classifier; ``data`` as for :meth:`rdc.models.choice.ModelChoice.load`."""
        found: Defence = self.choice.load(data)
        return found if self.gradient is None else found.with_(gradient=GradientMode.of(self.gradient, "gradient"))


@dataclasses.dataclass(frozen=True)
class CostSettings:
    """Settings of a comparison.

    Args:
        batches: numbers of images of a call, ascending, each once.
        work: keys of :data:`WORK`.
        rounds: how often every model is called for each batch and work, after a call that is not counted.
        memory: whether the most memory of a process is measured, each in a process of its own.
        longest: seconds; a call that would take longer, judged by the batch before it, is left out and said to be.

    Raises:
        ConfigError: a value that does not fit.
    """

    batches: tuple[int, ...] = (1, 8, 32, 128)
    work: tuple[str, ...] = tuple(WORK)
    rounds: int = 5
    memory: bool = True
    longest: float = 120.0

    def __post_init__(self) -> None:
        sizes = [as_integer(size) for size in self.batches]
        whole = [size for size in sizes if size is not None and 1 <= size <= _MOST_BATCH]
        if not whole or len(whole) < len(sizes) or whole != sorted(set(whole)):
            got = shown(self.batches)
            raise ConfigError(
                f"batch: expected ascending integers from 1 to {_MOST_BATCH:,}, such as 1,8,32; got {got}"
            )
        if not self.work or not set(self.work) <= set(WORK) or len(set(self.work)) < len(self.work):
            raise ConfigError(f"work: expected some of {', '.join(WORK)}, each once; got {shown(self.work)}")
        rounds, longest = as_integer(self.rounds), as_number(self.longest)
        if rounds is None or not 1 <= rounds <= _MOST_ROUNDS:
            raise ConfigError(f"rounds: expected an integer from 1 to {_MOST_ROUNDS:,}; got {shown(self.rounds)}")
        if longest is None or not 0 < longest <= _MOST_SECONDS:
            raise ConfigError(f"longest: expected seconds > 0, at most {_MOST_SECONDS:,}; got {shown(self.longest)}")
        if as_flag(self.memory) is None:
            raise ConfigError(f"memory: expected True or False; got {shown(self.memory)}")
        object.__setattr__(self, "batches", tuple(whole))
        object.__setattr__(self, "work", tuple(self.work))
        object.__setattr__(self, "rounds", rounds)
        object.__setattr__(self, "longest", longest)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "batches": list(self.batches), "work": list(self.work)}
