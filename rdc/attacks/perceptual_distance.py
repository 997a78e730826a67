"""Perceptual distance: how far two images are for the features of a network, whatever their pixels; and the ball it makes.

    phi(x) = all layers l, all places p:  g_l(x)_p / (|g_l(x)_p|_2 sqrt(H_l W_l)),    g_l(x)_p the channels of layer l at place p
    d(x, x') = | phi(x) - phi(x') |_2                                     LPIPS without weights for channels

It is between 0 and 2 sqrt(number of layers), and computed in float64, so that it is the same in every batch to a part in 10^12.

Source: Zhang et al. 2018 (arXiv 1801.03924), section 3; without weights as in Laidlaw, Singla & Feizi 2021 (arXiv 2006.12655), section 3.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rdc.arguments.scalars import as_number, shown
from rdc.errors import ConfigError, InputError

__all__ = ["INSIDE", "FeatureDistance", "PerceptualThreat", "back_into_ball", "length_of"]

INSIDE = 1 - 1e-9  #: share of the bound that attacks use up: what float64 rounds off stays within it
_TURNS, _BISECTS = 20, 2  # of a search on a segment, at most: chords, and of three the last a bisection
_AIM, _FULL = 0.998, 0.99  # of the bound: what a chord aims at, and what is near enough
_FLOOR = 1e-10  # added to the length of a place's channels

Activations = Callable[[Tensor], Sequence[Tensor]]


class FeatureDistance:
    """d(x, x') between images by a network's features.

    Args:
        activations: pixels [n, C, H, W] in [0, 1] -> a list of layers [n, c, h, w], differentiable. If it is a module, copies in float64
            and float32 are kept, in evaluation mode, their weights frozen; ``network`` is the module as given. A function is asked with
            pixels of either type.
        name: of the network, for reports.
        image_shape: (C, H, W) of the images that it takes; None: any.

    Raises:
        InputError: in a call, if images are of another shape, or the answer is not such a list.
    """

    def __init__(self, activations: Activations, name: str, image_shape: Sequence[int] | None = None) -> None:
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.network = activations if isinstance(activations, nn.Module) else None
        self.activations, self.name = activations, name
        self._copies: dict[torch.dtype, Activations] = {}
        if isinstance(activations, nn.Module):
            for dtype in (torch.float64, torch.float32):
                self._copies[dtype] = copy.deepcopy(activations).to(dtype).eval().requires_grad_(False)

    def to(self, device: torch.device) -> FeatureDistance:
        """The copies on that device."""
        for copied in self._copies.values():
            if isinstance(copied, nn.Module):
                copied.to(device)
        return self

    def features(self, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """phi [n, F] of pixels [n, C, H, W], differentiable; distances take float64, directions do with float32."""
        if self.image_shape is not None and tuple(x.shape[1:]) != self.image_shape:
            raise InputError(
                f"lpips_model {self.name}: it takes images {_by(self.image_shape)}; these are {_by(x.shape[1:])}. Name a network for them"
            )
        layers = self._copies.get(dtype, self.activations)(x.to(dtype))
        if not isinstance(layers, (list, tuple)) or not layers:
            raise InputError(f"{self.name}: expected a list of layers [n, c, h, w] as features; got {shown(layers)}")
        parts = []
        for layer in layers:
            if not isinstance(layer, Tensor) or layer.dim() != 4 or len(layer) != len(x):
                got = list(layer.shape) if isinstance(layer, Tensor) else type(layer).__name__
                raise InputError(f"{self.name}: expected layers [{len(x)}, c, h, w] as features; got {got}")
            length = layer.square().sum(dim=1, keepdim=True).clamp_min(_FLOOR**2).sqrt()
            parts.append((layer / (length + _FLOOR) / math.sqrt(layer.shape[2] * layer.shape[3])).flatten(1))
        return torch.cat(parts, dim=1)

    def __call__(self, x: Tensor, other: Tensor) -> Tensor:
        """d [n] float64 between images [n, C, H, W] and others of the same shape; no gradient."""
        with torch.no_grad():
            return length_of(self.features(x) - self.features(other))


@dataclasses.dataclass(frozen=True, eq=False)
class PerceptualThreat:
    """Set of images the attacker may hand in: {x' in [0, 1] : d(x, x') <= bound}.

    Args:
        bound: >= 0, in units of d; 0.5 is what Laidlaw, Singla & Feizi train and attack at, with an AlexNet's features.
        distance: which d.

    Raises:
        ConfigError: bound is not such a number, or ``distance`` is none.
    """

    bound: float
    distance: FeatureDistance

    def __post_init__(self) -> None:
        bound = as_number(self.bound)
        if bound is None or not 0 <= bound < math.inf:
            raise ConfigError(f"bound must be a finite number >= 0 (LPIPS), got {shown(self.bound)}")
        if not isinstance(self.distance, FeatureDistance):
            raise ConfigError(f"distance: expected a FeatureDistance; got {shown(self.distance)}")
        object.__setattr__(self, "bound", bound)

    @property
    def norm(self) -> str:
        """``"lpips"``."""
        return "lpips"

    @property
    def eps(self) -> float:
        """The bound, under the name it has in ThreatModel."""
        return self.bound


def back_into_ball(x: Tensor, clean: Tensor, threat: PerceptualThreat) -> Tensor:
    """The point of the segment from x to the clean image, near to where it leaves the ball: within, at 99 % of the bound or more.

    Args:
        x: [n, C, H, W] floating; it is cut to [0, 1] first.
        clean: [n, C, H, W] float32 in [0, 1].
        threat: bound and distance.

    Returns:
        [n, C, H, W] float32 in [0, 1].
    """
    x, middle = x.double().clamp(0, 1), clean.double()
    with torch.no_grad():
        home, bound = threat.distance.features(clean), threat.bound * INSIDE

        def at(share: Tensor) -> tuple[Tensor, Tensor]:
            point = (middle + share.view(-1, 1, 1, 1) * (x - middle)).clamp(0, 1).float()
            return point, length_of(threat.distance.features(point) - home)

        inside = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        outside, best = torch.ones_like(inside), clean.clone()
        point, far = at(outside)
        open_rows = far > bound
        best = torch.where(open_rows.view(-1, 1, 1, 1), best, point)
        low, high = torch.zeros_like(inside), far
        for turn in range(_TURNS if threat.bound else 0):
            if not bool(open_rows.any()):
                break
            chord = inside + (_AIM * bound - low) / (high - low) * (outside - inside)
            share = (inside + outside) / 2 if turn % 3 == _BISECTS else chord
            point, far = at(share)
            within = open_rows & (far <= bound)
            best = torch.where(within.view(-1, 1, 1, 1), point, best)
            inside, low = torch.where(within, share, inside), torch.where(within, far, low)
            outside, high = torch.where(within, outside, share), torch.where(within, high, far)
            open_rows &= ~(within & (far >= _FULL * bound))
    return best


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)


def length_of(values: Tensor) -> Tensor:
    """|v|_2 [n] of v [n, F]."""
    return values.square().sum(dim=1).sqrt()
