"""Threats that a training names: norm balls and flows, their radii drawn from ranges, one for each image or the worst of all.

A text says them: ``"linf:2/255..0.1,l2:0.5..1.5,flow:0.05"``. With choice ``drawn`` every image gets one of the threats, each as
likely, and a radius, uniform in its range (the average over threats of Tramèr & Boneh, arXiv 1904.13000, one draw in place of
the sum). With ``worst`` it gets the threat by which its loss rises most (their maximum). With ``steepest`` every step of an
attack goes on under the threat that gains most there (multi steepest descent of Maini et al., arXiv 1909.04068).

A perturbation has two parts, d in pixels and a flow f (:func:`rdc.attacks.stadv.warp`), of which an image uses one:

    x(d, f) = warp(x, f) + d        ||d|| <= eps, 0 <= x + d <= 1, f = 0        or        |f| <= eps entry by entry, d = 0

Both sets are convex and hold 0, so that means of perturbations, and shares of one, are perturbations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rdc.attacks import parse_eps
from rdc.attacks.stadv import warp
from rdc.errors import ConfigError
from rdc.norm_balls import NORMS, project, steepest_direction
from rdc.training.batches import normal, uniform
from rdc.training.first_order import worst_step

__all__ = ["CHOICES", "Perturbation", "Reach", "TrainedThreat", "Threats", "parse_threats"]

CHOICES = ("drawn", "worst", "steepest")
_KINDS = (*NORMS, "flow")
_MOST = 16  # threats


@dataclasses.dataclass(frozen=True)
class TrainedThreat:
    """A kind of perturbation and the range of its radius.

    Args:
        norm: "linf", "l2", "l1", or "flow": displacements, in the [-1, 1] coordinates of ``grid_sample``.
        low, high: radii are uniform between these; 0 < low <= high; l_inf: < 1; flow: <= 2. Balls in [0, 1] pixel units.

    Raises:
        ConfigError: a setting is out of range.
    """

    norm: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.norm not in _KINDS:
            raise ConfigError(f"threats: expected one of {', '.join(_KINDS)}; got {self.norm!r}")
        most = {"linf": 1.0, "flow": 2.0}.get(self.norm, math.inf)
        if not 0 < self.low <= self.high < math.inf or (self.high >= most and self.norm == "linf") or self.high > most:
            raise ConfigError(
                f"threats: expected a radius of {self.norm} above 0{f', below {most:g}' if most < 3 else ''}, the smaller one "
                f"first, such as 8/255 or 2/255..0.1; got {self.low:g}..{self.high:g}"
            )

    def __str__(self) -> str:
        return f"{self.norm}:{self.low!r}" + (f"..{self.high!r}" if self.high != self.low else "")


def parse_threats(text: str, name: str = "threats") -> tuple[TrainedThreat, ...]:
    """Threats from a text.

    Args:
        text: ``NORM:RADIUS`` or ``NORM:LOW..HIGH``, separated by commas; radii as numbers or quotients.
        name: of the setting, for messages.

    Raises:
        ConfigError: the text is none of threats.
    """
    found = []
    for part in str(text).split(","):
        norm, colon, radii = part.strip().partition(":")
        if not colon or not radii.strip():
            raise ConfigError(f"{name}: expected NORM:RADIUS or NORM:LOW..HIGH, such as linf:2/255..0.1; got {part!r}")
        low, dots, high = radii.partition("..")
        found.append(
            TrainedThreat(norm.strip(), *(parse_eps(end.strip(), name=name) for end in (low, high if dots else low)))
        )
    if len(found) > _MOST:
        raise ConfigError(f"{name}: expected at most {_MOST} threats; got {len(found)}")
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """What is done to a batch of images.

    Args:
        delta: [B, C, H, W] in [0, 1] pixel units.
        flow: [B, 2, H, W] in [-1, 1] coordinates; None: no image is displaced.
    """

    delta: Tensor
    flow: Tensor | None = None

    def moved(self, pixels: Tensor, share: Tensor | None = None) -> Tensor:
        """The images, moved by all of it, or by a share [B] in [0, 1] of it: [B, C, H, W] in [0, 1]."""
        part = 1.0 if share is None else share[:, None, None, None]
        return (pixels if self.flow is None else warp(pixels, part * self.flow)) + part * self.delta

    def towards(self, other: Perturbation, parts: int) -> Perturbation:
        """One of so many parts of the way to another perturbation of the same images."""
        delta = self.delta + (other.delta - self.delta) / parts
        if self.flow is None or other.flow is None:
            return Perturbation(delta, self.flow)
        return Perturbation(delta, self.flow + (other.flow - self.flow) / parts)


@dataclasses.dataclass(frozen=True)
class Threats:
    """Threats and how an image comes by one of them.

    Args:
        threats: at least one.
        choice: one of :data:`CHOICES`.

    Raises:
        ConfigError: no threat, or an unknown choice.
    """

    threats: tuple[TrainedThreat, ...]
    choice: str = "drawn"

    def __post_init__(self) -> None:
        if not self.threats:
            raise ConfigError("threats: expected at least one, such as linf:8/255; got none")
        if self.choice not in CHOICES:
            raise ConfigError(f"choice: expected one of {', '.join(CHOICES)}; got {self.choice!r}")

    def drawn(self, count: int, generator: torch.Generator, like: Tensor) -> Reach:
        """Threats and radii of a batch; nothing is drawn where there is nothing to choose.

        Args:
            count: B.
            generator: of the batch.
            like: a tensor on the device of the images.
        """
        radii = []
        for threat in self.threats:
            if threat.low == threat.high:
                radii.append(torch.full((count,), threat.low, dtype=torch.float64, device=like.device))
            else:
                share = uniform((count,), generator).to(like.device).double()
                radii.append(threat.low + (threat.high - threat.low) * share)
        which = None
        if len(self.threats) == 1:
            which = torch.zeros(count, dtype=torch.int64, device=like.device)
        elif self.choice != "worst":  # steepest: the threat that it starts under
            which = (uniform((count,), generator).to(like.device) * len(self.threats)).long()
            which = which.clamp(max=len(self.threats) - 1)
        return Reach(tuple(threat.norm for threat in self.threats), radii, which)


class Reach:
    """How far each image of a batch may be moved, and how.

    Args:
        norms: of the threats, T.
        radii: T of [B] float64.
        which: [B] the threat of each image; None: the one by which its loss rises most, to first order, decided by :meth:`furthest`.
    """

    def __init__(self, norms: Sequence[str], radii: Sequence[Tensor], which: Tensor | None) -> None:
        self.norms, self.radii, self.which = tuple(norms), list(radii), which

    def only(self, index: int) -> Reach:
        """Every image under one of the threats."""
        return Reach(self.norms, self.radii, torch.full_like(self.radii[index], index, dtype=torch.int64))

    @property
    def flows(self) -> bool:
        return "flow" in self.norms

    def nowhere(self, pixels: Tensor) -> Perturbation:
        """The perturbation that changes nothing."""
        return Perturbation(torch.zeros_like(pixels), self._no_flow(pixels))

    def furthest(self, gradient: Tensor, pixels: Tensor) -> Perturbation:
        """The perturbation by which a function of the images rises most, to first order; decides ``which`` where that is open.

        Args:
            gradient: [B, C, H, W] of the function in pixels, at the images.
            pixels: [B, C, H, W] in [0, 1].
        """
        made, rises = [], []
        for norm, radii in zip(self.norms, self.radii, strict=True):
            if norm == "flow":
                flow, rise = _flow_step(gradient, pixels, radii)
                made.append(Perturbation(torch.zeros_like(gradient), flow))
            else:
                delta = worst_step(gradient, pixels, radii, norm)
                rise = (gradient * delta).flatten(1).sum(1)
                made.append(Perturbation(delta, self._no_flow(gradient)))
            rises.append(rise)
        if self.which is None:
            self.which = torch.stack(rises).argmax(0)
        return self._chosen(made)

    def onward(self, gradient: Tensor, pixels: Tensor, now: Perturbation) -> Perturbation:
        """Likewise by the gradient at ``now.moved(pixels)``: where Frank and Wolfe's method goes next (Jaggi 2013).

        Args:
            gradient: [B, C, H, W] in pixels, at the moved images.
            pixels: [B, C, H, W] in [0, 1].
            now: where the gradient was taken.
        """
        slope = self._flow_gradient(gradient, pixels, now)
        made = []
        for norm, radii in zip(self.norms, self.radii, strict=True):
            if norm == "flow":
                assert slope is not None
                made.append(Perturbation(torch.zeros_like(gradient), _scaled(slope.sign(), radii)))
            else:
                delta = worst_step(gradient, pixels, radii, norm)
                made.append(Perturbation(delta, self._no_flow(gradient)))
        return self._chosen(made)

    def ascended(self, gradient: Tensor, pixels: Tensor, now: Perturbation, share: float) -> Perturbation:
        """One step of projected gradient ascent, ``share`` of each radius long.

        Args: as of :meth:`onward`.
        """
        slope = self._flow_gradient(gradient, pixels, now)
        made = []
        for norm, radii in zip(self.norms, self.radii, strict=True):
            if norm == "flow":
                assert slope is not None and now.flow is not None
                flow = now.flow + _scaled(slope.sign(), share * radii)
                most = _scaled(torch.ones_like(flow), radii)
                made.append(Perturbation(torch.zeros_like(pixels), torch.maximum(torch.minimum(flow, most), -most)))
            else:
                direction = steepest_direction(gradient, norm) * (share * radii)[:, None, None, None]
                made.append(
                    Perturbation(self._within(pixels, now.delta + direction, radii, norm), self._no_flow(pixels))
                )
        return self._chosen(made)

    def best_of(self, made: Sequence[Perturbation], values: Tensor) -> Perturbation:
        """Of every image the perturbation of the largest value; ``which`` becomes its threat.

        Args:
            made: T perturbations of the same images, one of each threat.
            values: [T, B].
        """
        self.which = values.argmax(0)
        return self._chosen(made)

    def start(self, pixels: Tensor, generator: torch.Generator) -> Perturbation:
        """A random perturbation of each image: uniform in the cube (l_inf, flow), in the ball (l_2); nothing (l_1)."""
        made = []
        for norm, radii in zip(self.norms, self.radii, strict=True):
            if norm == "flow":
                flow = 2 * uniform((len(pixels), 2, *pixels.shape[2:]), generator).to(pixels) - 1
                made.append(Perturbation(torch.zeros_like(pixels), _scaled(flow, radii)))
                continue
            offset = torch.zeros_like(pixels, dtype=torch.float64)
            if norm == "linf":
                offset = _scaled(2 * uniform(pixels.shape, generator).to(pixels).double() - 1, radii)
            elif norm == "l2":
                direction = steepest_direction(normal(pixels.shape, generator).to(pixels), "l2")
                size = uniform((len(pixels),), generator).to(pixels).double() ** (1 / pixels[0].numel())
                offset = _scaled(direction, size * radii)
            made.append(Perturbation(self._within(pixels, offset, radii, norm), self._no_flow(pixels)))
        return self._chosen(made)

    def _within(self, pixels: Tensor, delta: Tensor, radii: Tensor, norm: str) -> Tensor:
        centre = pixels.detach().float()
        return (project(centre + delta, centre, radii, norm) - centre).to(pixels.dtype)

    def _no_flow(self, like: Tensor) -> Tensor | None:
        return like.new_zeros((len(like), 2, *like.shape[2:])) if self.flows else None

    def _flow_gradient(self, gradient: Tensor, pixels: Tensor, now: Perturbation) -> Tensor | None:
        """[B, 2, H, W]: by the chain rule through the warp."""
        if now.flow is None:
            return None
        with torch.enable_grad(), torch.autocast(pixels.device.type, enabled=False):
            flow = now.flow.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(warp(pixels.detach().to(gradient.dtype), flow), flow, gradient)
        return slope

    def _chosen(self, made: Sequence[Perturbation]) -> Perturbation:
        """Of every image the perturbation of its own threat."""
        if len(made) == 1:
            return made[0]
        assert self.which is not None
        delta, flow = made[0].delta, made[0].flow
        for index, other in enumerate(made[1:], 1):
            mine = (self.which == index)[:, None, None, None]
            delta = torch.where(mine, other.delta, delta)
            if flow is not None and other.flow is not None:
                flow = torch.where(mine, other.flow, flow)
        return Perturbation(delta, flow)


def _scaled(values: Tensor, radii: Tensor) -> Tensor:
    return values * radii.to(values.dtype)[:, None, None, None]


def _flow_step(gradient: Tensor, pixels: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """The flow by which a function rises most to first order, and that rise [B].

    At no displacement the bilinear warp has two slopes in each direction, one for each side; each entry goes to the side that gains
    more, or stays.
    """
    pixels = pixels.detach().to(gradient.dtype)
    flow = gradient.new_zeros((len(gradient), 2, *gradient.shape[2:]))
    rise = torch.zeros(len(gradient), dtype=gradient.dtype, device=gradient.device)
    for channel, axis in ((0, 3), (1, 2)):  # along x, along y
        size = pixels.shape[axis]
        index = torch.arange(size, device=pixels.device)
        ahead = pixels.index_select(axis, (index + 1).clamp(max=size - 1))
        behind = pixels.index_select(axis, (index - 1).clamp(min=0))
        forward, back = ((gradient * (other - pixels)).sum(1) for other in (ahead, behind))
        gain = torch.maximum(forward, back).clamp_min(0)
        side = torch.where(forward >= back, 1.0, -1.0).to(gradient.dtype)
        flow[:, channel] = torch.where(gain > 0, side, 0.0)
        rise = rise + gain.flatten(1).sum(1) * radii.to(gradient.dtype) * (size / 2)
    return _scaled(flow, radii), rise
