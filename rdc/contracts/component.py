"""What a defence is made of, and is itself: settings for gradient and noise, draws, a counter; and the components inside it.

A component that is made of others rules them: their gradient mode and noise policy are its own, their seeds follow its seed, its draw
sets their draws, and what they evaluate counts as its own (:meth:`Component.counting`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor

from rdc.arguments.scalars import as_integer, shown
from rdc.arguments.seeds import checked_seed, combined
from rdc.contracts.modes import GradientMode, NoisePolicy
from rdc.contracts.network_use import NetworkUse
from rdc.contracts.parts import found_in, put_in_place
from rdc.errors import ConfigError
from rdc.execution.frozen import Frozen

__all__ = ["Component"]

Self = TypeVar("Self", bound="Component")

#: Draws of a part for one draw of the whole: so often it may be called in a call before draws of two calls meet.
DRAWS_OF_A_CALL = 64


class Component(Frozen):
    """Base of defences and purifiers.

    Args:
        gradient, noise, noise_seed: as of :class:`rdc.contracts.BaseDefence`.

    Raises:
        ConfigError: an unknown setting.
    """

    head: str = ""
    gradient: GradientMode
    noise_policy: NoisePolicy
    network_evaluations: int
    _no_other_setting = "This model ({head}) has no such setting"  # what `with_` says of a setting that it lacks
    _found: tuple[Component, ...] | None = None
    _own_seeds: tuple[int, ...] | None = None

    def __init__(
        self, *, gradient: str = GradientMode.EXACT, noise: str = NoisePolicy.FIXED, noise_seed: int = 0
    ) -> None:
        super().__init__()
        self._begin(gradient, noise, noise_seed)
        self._first_seed = self.noise_seed

    def _begin(self, gradient: str, noise: str, noise_seed: int) -> None:
        """Take these settings, with counter and draws at 0."""
        self.gradient = GradientMode.of(gradient, "gradient")
        self.noise_policy = NoisePolicy.of(noise, "noise")
        self.noise_seed = checked_seed(noise_seed, "noise_seed")
        self.network_evaluations, self._draw = 0, 0

    # --- settings -------------------------------------------------------------------------------------------------
    def settings(self) -> dict[str, Any]:
        """What :meth:`with_` takes, with its values."""
        return {"gradient": self.gradient, "noise": self.noise_policy, "noise_seed": self.noise_seed}

    def with_(self: Self, **changes: Any) -> Self:
        """The same, weights shared, with some of :meth:`settings` changed, its counter at 0, its draws anew.

        Raises:
            ConfigError: an unknown setting or value.
        """
        if unknown := set(changes) - set(self.settings()):
            raise ConfigError(
                f"settings: expected some of {', '.join(self.settings())}; got {', '.join(sorted(unknown))}. "
                f"{self._no_other_setting.format(head=self.head)}"
            )
        return self._changed({**self.settings(), **changes})

    def _changed(self: Self, settings: dict[str, Any]) -> Self:
        self.parts()  # found before the copy is made, which has them from here
        made = copy.copy(self)
        for name in (
            "_modules",
            "_parameters",
            "_buffers",
        ):  # a copy shares them, and what it is given would reach this one
            made.__dict__[name] = dict(self.__dict__[name])
        made._begin(settings["gradient"], settings["noise"], settings["noise_seed"])
        made._rule_parts(self)
        return made

    # --- what it is -----------------------------------------------------------------------------------------------
    @property
    def stochastic(self) -> bool:
        """The noise policy changes what it computes, or what one of its parts computes, where a kind says nothing of itself."""
        own = self.__dict__.get("_stochastic")
        return any(part.stochastic for part in self.parts()) if own is None else bool(own)

    @stochastic.setter
    def stochastic(self, value: bool) -> None:
        self.__dict__["_stochastic"] = value

    @property
    def purifies(self) -> bool:
        """Whether an input is changed first, by itself or by a part, so that the exact gradient and BPDA differ."""
        return any(part.purifies for part in self.parts())

    @property
    def evaluations_per_image(self) -> int:
        """Network passes for one image: those of its parts, each called once; 1 where nothing is known."""
        return sum(part.evaluations_per_image for part in self.parts()) or 1

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values, for reports."""
        raise NotImplementedError

    def networks(self) -> tuple[NetworkUse, ...]:
        """The networks that it computes with, as far as they are known, and what for."""
        return tuple(use for part in self.parts() for use in part.networks())

    # --- parts ----------------------------------------------------------------------------------------------------
    def parts(self) -> tuple[Component, ...]:
        """The components that it is made of, found wherever :mod:`rdc.contracts.parts` looks; () where it has none."""
        if self._found is None:
            self._found = found_in(self, Component)
        return self._found

    def _rule_parts(self, like: Component | None = None) -> None:
        """Give the parts that draw or purify these settings: copies of them, so that nobody else's are changed.

        Args:
            like: what this one is a copy of.
        """
        parts = self.parts()
        if self._own_seeds is None:
            self._own_seeds = tuple(part.noise_seed for part in parts)
        seeds = self._own_seeds
        if self.noise_seed != self._first_seed:
            seeds = tuple(combined(self.noise_seed, place, seed) for place, seed in enumerate(seeds))
        others: dict[int, Any] = {}
        for part, seed in zip(parts, seeds, strict=True):
            if part.stochastic or part.purifies:
                others[id(part)] = part.with_(gradient=self.gradient, noise=self.noise_policy, noise_seed=seed)
        if others:
            put_in_place(self, others if like is None else {**others, id(like): self}, Component)
            self._found = tuple(others.get(id(part), part) for part in parts)

    @contextlib.contextmanager
    def counting(self, otherwise: int = 0) -> Iterator[None]:
        """Add what the parts evaluate meanwhile to this counter.

        Args:
            otherwise: what is added where there are no parts that count.
        """
        parts = self.parts()
        before = sum(part.network_evaluations for part in parts)
        yield
        counted = sum(part.network_evaluations for part in parts) - before
        self.network_evaluations += counted if parts else otherwise

    # --- gradient -------------------------------------------------------------------------------------------------
    def _through(self, purify: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """purify(x) with the gradient that this component is set to.

        BPDA is x' + (x - x), where x' and the second x carry no gradient: the value of x', the Jacobian of the identity.
        """
        if self.gradient == GradientMode.EXACT:
            return purify(x)
        return purify(x.detach()).detach() + (x - x.detach())

    # --- draws ----------------------------------------------------------------------------------------------------
    def redraw(self) -> None:
        """Go to the next draw; under FRESH every call does so by itself."""
        if self.noise_policy == NoisePolicy.FRESH:
            self.set_draw(self._draw + 1)

    def set_draw(self, draw: int) -> None:
        """Use this draw in the next call (under FRESH the calls after it go on from there).

        Raises:
            ConfigError: no integer.
        """
        number = as_integer(draw)
        if number is None:
            raise ConfigError(f"draw: expected an integer; got {shown(draw)}")
        self._draw = number
        self._draw_parts(number)

    def _next_draw(self) -> int:
        """The draw of this call, which the parts get too; under FRESH the next call has another."""
        draw = self._draw
        self._draw_parts(draw)
        if self.noise_policy == NoisePolicy.FRESH:
            self._draw += 1
        return draw

    def _draw_parts(self, draw: int) -> None:
        """The parts' draws in a call with this draw."""
        for part in self.parts() if self.stochastic else ():
            if part.stochastic:
                part.set_draw(draw * DRAWS_OF_A_CALL)
