"""StAdv: adversarial images by moving pixels, not by changing their values.

A flow f [N, 2, H, W] (f[:, 0] along x, f[:, 1] along y) in the [-1, 1] coordinates of ``grid_sample``; the adversarial
image takes the value that the clean one has at the displaced place, bilinearly:

    x_adv(i, j) = x(py, px),    px = clamp(j + f_x W / 2, 0, W - 1),   py = clamp(i + f_y H / 2, 0, H - 1)

which is ``grid_sample(x, identity + f, "bilinear", padding_mode="border", align_corners=False)``, where one pixel is 2/W
wide, without that function's rounding: a zero flow gives x itself, bit for bit.

    maximise   L(s z(x_adv)) - tau TV(f)      subject to  |f| <= bound, each entry
    TV(f) = sum over pixels p and their neighbours q (up, down, left, right) of sqrt(|f_x(p) - f_x(q)|^2 + |f_y(p) - f_y(q)|^2)

L is the log-odds with the logits rescaled to a spread of 10 (rdc.attacks.losses): unscaled logits 1e-4 apart would leave
nothing but the TV term. The flow is f = (2 u - 1) bound with u in [0, 1], and u is found by APGD in the l_inf ball of
radius 1/2 around 1/2, which is exactly the set of allowed flows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from rdc.arguments.scalars import as_number, shown
from rdc.arguments.seeds import random
from rdc.attacks.apgd import _ApgdRule
from rdc.attacks.entry import attack
from rdc.attacks.losses import AUTO_SPREAD, Model
from rdc.attacks.options import AscentOptions, number
from rdc.attacks.per_image import AscentRule, JumpRule, LocatedEvaluation, PerImageObjective, extend_result
from rdc.attacks.pgd import Rule, run_attack
from rdc.attacks.threat_model import AttackResult, ThreatModel, check_images
from rdc.errors import ConfigError, InputError, RdcError
from rdc.execution.precision import in_own_type

__all__ = ["FlowThreat", "StAdvOptions", "StAdvResult", "check_flow", "flow_penalty", "stadv", "warp"]

_BOX = ThreatModel("linf", 0.5)  # of u around 1/2
_FLOW_STREAM = 0x57AD_F103  # word of the Philox counter that separates these draws from others of the same key
_COARSE = 4  # random flows are interpolated from a grid of this size


@dataclasses.dataclass(frozen=True)
class FlowThreat:
    """Set of images the attacker may hand in: {warp(x, f) : |f| <= bound, entry by entry}.

    Args:
        bound: largest displacement in [-1, 1] grid coordinates, 0 <= bound <= 2; times W / 2 it is in pixels.

    Raises:
        ConfigError: bound is not such a number.

    Source: Laidlaw, Singla & Feizi 2021 (arXiv 2006.12655) for the bound; Xiao et al. 2018 has only the TV term.
    """

    bound: float

    def __post_init__(self) -> None:
        bound = as_number(self.bound)
        if bound is None or not 0 <= bound <= 2:
            raise ConfigError(f"bound must be a number in [0, 2] ([-1, 1] grid coordinates), got {shown(self.bound)}")
        object.__setattr__(self, "bound", bound)

    @property
    def norm(self) -> str:
        """``"flow"``."""
        return "flow"

    @property
    def eps(self) -> float:
        """The bound, under the name it has in ThreatModel."""
        return self.bound


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StAdvResult(AttackResult):
    """AttackResult whose ``threat`` is a FlowThreat.

    Args:
        flow: [N, 2, H, W] float32, ``x_adv == warp(x, flow)`` bit for bit.
        flow_penalty: [N] float64, TV of the flow, in grid coordinates.
    """

    flow: Tensor
    flow_penalty: Tensor


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Bilinear warp with border padding: output (i, j) is x at (i + flow_y H / 2, j + flow_x W / 2), clamped to x.

    Args:
        x: [N, C, H, W] floating, in [0, 1].
        flow: [N, 2, H, W] like x; channel 0 along x (width), channel 1 along y (height), [-1, 1] coordinates.

    Returns:
        [N, C, H, W] in [0, 1], differentiable in both; where a place is a whole pixel, with the derivative to its right
        (below).

    Raises:
        InputError: shapes do not fit.

    Source: Xiao et al. 2018 (arXiv 1801.02612), eq. (1).
    """
    if flow.shape != (x.shape[0], 2, *x.shape[2:]):
        raise InputError(
            f"expected a flow {[x.shape[0], 2, *x.shape[2:]]} for images {list(x.shape)}, got {list(flow.shape)}"
        )
    rows, columns = x.shape[-2:]
    across = torch.arange(columns, dtype=flow.dtype, device=flow.device)[None, None, :]
    down = torch.arange(rows, dtype=flow.dtype, device=flow.device)[None, :, None]
    left, right, wide = _neighbours(across + flow[:, 0] * (columns / 2), columns)
    upper, lower, high = _neighbours(down + flow[:, 1] * (rows / 2), rows)
    pixels = x.flatten(2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = (row * columns + column).flatten(1)[:, None, :].expand(-1, x.shape[1], -1)
        return pixels.gather(2, index).view_as(x)

    wide, high = wide[:, None], high[:, None]
    above = at(upper, left) * (1 - wide) + at(upper, right) * wide
    below = at(lower, left) * (1 - wide) + at(lower, right) * wide
    return (above * (1 - high) + below * high).clamp(0, 1)


def flow_penalty(flow: Tensor) -> Tensor:
    """TV of each flow [N, 2, H, W] -> [N] float64, in the flow's units; each pair of neighbours counts twice.

    The derivative of the square root at 0 is taken as 0.

    Source: Xiao et al. 2018 (arXiv 1801.02612), eq. (3).
    """
    flow = flow.double()
    total = torch.zeros_like(flow[:, 0, 0, 0])
    for step in (flow[:, :, 1:] - flow[:, :, :-1], flow[:, :, :, 1:] - flow[:, :, :, :-1]):
        squared = step.square().sum(dim=1)
        positive = squared > 0
        length = torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)
        total = total + 2.0 * torch.stack([image.sum() for image in length])
    return total


def check_flow(x_adv: Tensor, x: Tensor, flow: Tensor, bound: float) -> None:
    """Raise unless |flow| <= bound (float64, exactly), x_adv is warp(x, flow) bit for bit, and x_adv is in [0, 1].

    Args:
        x_adv, x: [N, C, H, W] float32.
        flow: [N, 2, H, W] float32.
        bound: in [-1, 1] grid coordinates.

    Raises:
        RdcError: says which of these fails and in which row.
    """
    rows = flow.double().abs().flatten(1).amax(dim=1)
    wrong = ~(rows <= bound)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise RdcError(
            f"the flow in row {row} reaches {float(rows[row])!r} for bound {bound!r}; this is a bug in the attack"
        )
    wrong = ~((x_adv >= 0) & (x_adv <= 1) & (x_adv == warp(x, flow))).flatten(1).all(dim=1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise RdcError(
            f"the image in row {row} is not the clean one warped by its flow, or leaves [0, 1]; a bug in the attack"
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StAdvOptions(AscentOptions):
    """Options of :func:`stadv`.

    Args:
        restarts: restart 0 starts at the zero flow (or ``start``). A later one evaluates the zero flow as its iterate 0
            and goes on from a random smooth flow (4 x 4 uniform values within the bound, interpolated).
        start: [N, 2, H, W] flow, cut to the bound.
        bound: where no threat is given, the largest displacement in [-1, 1] grid coordinates; 0.05 is 0.7 pixels of 28, 0.8
            of 32.
        tau: weight of TV, >= 0, against a loss whose logits are rescaled to a clean spread of 10.
    """

    start: Tensor | None = None
    bound: float = number(0.05)
    tau: float = number(0.05, most=1e6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.tau, bool) or not isinstance(self.tau, (int, float)) or not 0 <= self.tau < math.inf:
            raise ConfigError(f"tau must be a finite number >= 0, got {self.tau!r}")


@attack(StAdvOptions)
def stadv(
    model: Model, x: Tensor, y: Tensor, threat: FlowThreat | None = None, *, options: StAdvOptions
) -> StAdvResult:
    """Spatially transformed adversarial images within a flow bound (module docstring).

    Args:
        model, x, y: as for ``apgd``.
        threat: the bound as a FlowThreat; None: ``FlowThreat(options.bound)``.
        options: StAdvOptions; a call gives its fields as keywords.

    Returns:
        StAdvResult; ``best_loss`` is the class loss without TV.

    Raises:
        InputError, ConfigError, RdcError: as for ``apgd``; bound, tau or the flow's shape are not as above.

    Source: Xiao et al. 2018 (arXiv 1801.02612); bound of Laidlaw, Singla & Feizi 2021 (arXiv 2006.12655).
    """
    threat = FlowThreat(options.bound) if threat is None else threat
    if not isinstance(threat, FlowThreat):
        raise ConfigError(f"stadv: expected FlowThreat(bound) or None as threat, got {threat!r}")
    ids = check_images(x, y, options.image_ids)
    start, steps = options.start, options.steps
    x = x.detach()
    middle = torch.full((x.shape[0], 2, *x.shape[2:]), 0.5, device=x.device)
    if start is not None:
        if start.shape != middle.shape:
            raise InputError(f"start: expected a flow {list(middle.shape)}, got {list(start.shape)}")
        start = (start.to(middle) / (2 * threat.bound) if threat.bound else torch.zeros_like(middle)) + 0.5
    numbers = count()

    def make_rule(clean: Tensor) -> Rule:
        restart = next(numbers)
        if restart == 0:
            return AscentRule(_ApgdRule(clean, _BOX, steps))

        def jump(rows: Tensor) -> Tensor:
            return _random_flows(middle[rows], options.seed, [ids[row] for row in rows.tolist()], restart)

        return JumpRule(AscentRule(_ApgdRule(clean, _BOX, max(1, steps - 1))), jump)

    objective = _FlowObjective(model, x, threat.bound, options)
    inside = dataclasses.replace(options, image_ids=ids, start=start)
    result = run_attack("stadv", objective, middle, y, _BOX, make_rule, inside, random_starts=False)
    flow = _flow(result.x_adv, threat.bound)
    x_adv = warp(x, flow)
    check_flow(x_adv, x, flow, threat.bound)
    return extend_result(StAdvResult, result, threat=threat, x_adv=x_adv, flow=flow, flow_penalty=flow_penalty(flow))


class _FlowObjective(PerImageObjective):
    """The model on warped images, as a function of u [n, 2, H, W]."""

    def __init__(self, model: Model, x: Tensor, bound: float, options: StAdvOptions) -> None:
        self.images, self.warped, self.bound, self.tau = x, x, bound, float(options.tau)

        def warped_first(classify: Model) -> Model:
            return lambda u: classify(warp(self.warped, _flow(u, bound)))

        other = options.gradient_model
        scoring = {**options.scoring, "gradient_model": None if other is None else warped_first(in_own_type(other))}
        super().__init__(warped_first(model), options.loss, **scoring)

    def evaluate(self, x: Tensor, y: Tensor, scale: Tensor, *, gradient: bool) -> LocatedEvaluation:
        self.warped = self.images[scale[:, 1].long()]
        found = self.plain(x, y, scale, gradient=gradient)
        if self.tau == 0:
            return found
        one = torch.ones_like(scale[:, 0])
        weight = self.tau / {"ce": one, "margin": scale[:, 0], "dlr": AUTO_SPREAD * one}[self.loss]
        with torch.inference_mode(False), torch.set_grad_enabled(gradient):
            leaf = x.detach().clone().requires_grad_(gradient)
            penalty = flow_penalty(_flow(leaf, self.bound))
            slope = torch.autograd.grad(penalty.sum(), leaf)[0].double() if gradient else None
        found = dataclasses.replace(found, ascent=found.loss - weight * penalty.detach())
        if slope is None:
            return found
        return dataclasses.replace(found, gradient=found.slope - weight.view(-1, 1, 1, 1) * slope)

    def _asked_again(self, x: Tensor, rows: Tensor) -> Tensor:
        self.warped = self.warped[rows]  # the next evaluation chooses its own
        return super()._asked_again(x, rows)


def _flow(u: Tensor, bound: float) -> Tensor:
    """u in [0, 1] -> (2 u - 1) b with b the largest float32 <= bound: never beyond the bound."""
    largest = torch.tensor(bound, dtype=torch.float32)
    if float(largest) > bound:
        largest = torch.nextafter(largest, torch.tensor(0.0))
    return (2 * u - 1) * float(largest)


def _neighbours(place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels before and after a place, cut to the image, and the weight of the second; the last pixel has itself twice."""
    place = place.clamp(0, size - 1)
    first = place.detach().floor().clamp(0, max(size - 2, 0))
    first_index = first.long()
    return first_index, (first_index + 1).clamp(max=size - 1), place - first


def _random_flows(middle: Tensor, seed: int, image_ids: Sequence[int], restart: int) -> Tensor:
    """Smooth random u [n, 2, H, W] in [0, 1], fixed by (seed, image id, restart)."""
    made = []
    for image_id in image_ids:
        coarse = random(seed, image_id, (0, 0, _FLOW_STREAM, restart)).random((1, 2, _COARSE, _COARSE))
        fine = torch.nn.functional.interpolate(
            torch.from_numpy(coarse), size=middle.shape[-2:], mode="bilinear", align_corners=True
        )
        made.append(fine[0].clamp(0, 1))
    return torch.stack(made).to(middle)
