"""Two bars on stderr: images done, and the attack on the batch at hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rdc.terminal.progress import bar, on_terminal

__all__ = ["ProgressBars", "sanity_line"]

_FORMAT = "{desc} {percentage:3.0f}%|{bar:24}| {n:.0f}/{total} images [{elapsed}, {remaining} left{postfix}]"


class ProgressBars:
    """Args:
    total: images of the run.
    done: images finished before this start.
    standing: of those, how many count as right (robust, or clean when nothing attacks).
    attacks: names in order; empty for clean accuracy alone.
    enabled: False draws nothing.
    """

    def __init__(self, total: int, done: int, standing: int, attacks: Sequence[str], *, enabled: bool = True) -> None:
        self._what = "robust" if attacks else "clean"
        self._attacks, self._done, self._standing, self._batch, self._place = attacks, done, standing, 0, done
        common: dict[str, Any] = {"enabled": enabled, "dynamic_ncols": True}
        self.images = bar(
            total=total, initial=done, unit="image", position=0, smoothing=0.1,
            bar_format=_FORMAT,
            **common,
        )  # fmt: skip
        self.images.set_description_str("evaluate")
        inner = attacks and on_terminal()  # a log has one line for both
        self.attack = bar(total=1, position=1, leave=False, bar_format="  {desc}", **common) if inner else None
        self._show(done, standing)

    def begin(self, size: int) -> None:
        """A batch of this many images starts."""
        self._batch = size

    def step(self, about: dict[str, Any]) -> None:
        """Progress callback of the attacks."""
        if self.images.disable:
            return
        name, step, steps = about["attack"], about["step"], about["steps"]
        restart = f"restart {about['restart'] + 1}/{about['restarts']}"
        text = f"{name}: step {step}/{steps}, {restart}, {about['robust']} of {about['total']} still right"
        place = self._attacks.index(name) if name in self._attacks else 0
        part = (place + (about["restart"] + step / steps) / about["restarts"]) / len(self._attacks)
        self.images.update(max(0.0, self._place + part * self._batch - self.images.n))
        if self.attack is not None:
            self.attack.set_description_str(text)

    def end(self, size: int, standing: int, finished: int) -> None:
        """The batch is finished: ``standing`` of its images are right; ``finished`` of all are, with those of other processes."""
        self._done += size
        self._standing += standing
        self._place = finished
        self.images.update(finished - self.images.n)
        self._show(self._done, self._standing)

    def close(self) -> None:
        """Remove the inner bar, leave the outer one."""
        if self.attack is not None:
            self.attack.close()
        self.images.close()

    def _show(self, done: int, standing: int) -> None:
        if done:
            self.images.set_postfix_str(f"{self._what} {100 * standing / done:.1f} %")


@contextlib.contextmanager
def sanity_line(images: int, *, enabled: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A line on stderr while the sanity checks run: a callback for their attacks' progress."""
    with bar(total=1, leave=False, bar_format="{desc} [{elapsed}]", enabled=enabled) as line:
        line.set_description_str(f"sanity checks on {images} images")

        def step(about: dict[str, Any]) -> None:
            text = f"{about['attack']}, step {about['step']}/{about['steps']}"
            line.set_description_str(f"sanity checks on {images} images: {text}", refresh=False)
            line.update(0)

        yield step
