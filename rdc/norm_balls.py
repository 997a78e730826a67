"""l_inf, l_2 and l_1 balls around an image, cut by the pixel box [0, 1]: projection, random points, steepest ascent; and l_0.

Budgets hold to the last bit, by construction: a float32 image that leaves ``project`` satisfies, evaluated in float64,

    l_inf:  max_i |x_adv_i - x_i| <= eps        l_2:  sqrt(sum_i (x_adv_i - x_i)^2) <= eps        0 <= x_adv_i <= 1
    l_1:    sum_i |x_adv_i - x_i| <= eps

l_0 counts pixels: places (row, column) of which a channel differs, however many of its channels and by however much. Its eps is a whole
number. The other budgets hold because bounds and displacements are computed in float64 and then rounded to float32 *towards x*. Sums over
pixels run in a fixed pairwise order made of element-wise additions, so an image's result is the same bits in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.seeds import random
from rdc.errors import ConfigError, RdcError

__all__ = [
    "BUDGETS",
    "NORMS",
    "channel_sum",
    "check_budget",
    "crossing",
    "distance",
    "linf_bounds",
    "project",
    "random_start",
    "row_sum",
    "steepest_direction",
]

NORMS = ("linf", "l2", "l1")  # balls: convex, with a direction of steepest ascent
BUDGETS = (*NORMS, "l0")  # what bounds a perturbation

# Relative slack of the l_2 and l_1 radius: far above the rounding of a float64 sum over an image, far below a float32 ulp.
# Points already inside the wider of the two limits stay as they are, which makes the projection idempotent.
_KEEP = 1.0 - 2.0**-41
_TARGET = 1.0 - 2.0**-40
_L2_MAX_ROUNDS = 64

# Word of the Philox counter that separates these draws from any other use of the same (seed, image) key.
_RANDOM_START_STREAM = 0x7D0C_5747


def project(x_adv: Tensor, x: Tensor, eps: float | Tensor, norm: str) -> Tensor:
    """Nearest point (Euclidean) of {ball of radius eps around x} intersected with [0, 1].

    Args:
        x_adv: [N, C, H, W] any floating dtype, the point to project, finite.
        x: [N, C, H, W] float32 in [0, 1], the centre.
        eps: radius in [0, 1] pixel units, >= 0; [N] float64: of each image.
        norm: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"`` (eps pixels).

    Returns:
        [N, C, H, W] float32, within the budget to the last bit; float32 points already inside come back unchanged.

    Raises:
        ConfigError: unknown norm.

    Source: l_inf is a clamp. l_2 with a box: by the KKT conditions the solution is clip(x + s (x_adv - x)) with the
        scalar s in [0, 1] that makes the displacement's norm eps (or s = 1 inside); s is found by an active-set
        iteration. l_1 with a box: each displacement w_i shrinks to min(max(|w_i| - u, 0), room_i) with the one u >= 0
        that uses up eps (Croce & Hein 2021, arXiv 2103.01208, Proposition 2.1), found in the sorted break points.
        l_0 with a box: of each pixel either the original or the point clipped to the box; the eps pixels stay changed whose
        change brings the point most nearer, ||w_p - x_p||^2 - ||w_p - clip(w_p)||^2 (Croce & Hein 2019, arXiv 1909.05040, section 2).
    """
    _check_norm(norm, BUDGETS)
    if norm == "l0":
        return _l0_projection(x_adv, x, eps)
    if norm == "linf":
        lower, upper = linf_bounds(x, eps)
        return torch.minimum(torch.maximum(x_adv.to(torch.float32), lower), upper)
    centre = x.double().flatten(1)  # [N, D]
    wanted = x_adv.double().flatten(1) - centre
    room = torch.where(wanted > 0, 1.0 - centre, centre)  # how far each pixel may go in its direction
    step = (_l2_step if norm == "l2" else _l1_step)(wanted.abs(), room, eps)
    exact = centre + torch.where(wanted > 0, step, -step)
    rounded = exact.float()
    beyond = (rounded.double() - centre).abs() > step
    rounded = torch.where(beyond, torch.nextafter(rounded, centre.float()), rounded)
    return rounded.clamp(0.0, 1.0).view_as(x)


def linf_bounds(x: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest float32 images within l_inf distance eps of x and within [0, 1].

    Args:
        x: [N, C, H, W] float32 in [0, 1].
        eps: radius in [0, 1] pixel units, >= 0; [N] float64: of each image.

    Returns:
        (lower, upper), float32 like x; ``x - lower <= eps`` and ``upper - x <= eps`` hold in float64.
    """
    if isinstance(eps, Tensor):
        eps = eps[:, None, None, None]
    x64 = x.double()
    upper = (x64 + eps).float()
    upper = torch.where(upper.double() - x64 > eps, torch.nextafter(upper, torch.full_like(upper, -1.0)), upper)
    lower = (x64 - eps).float()
    lower = torch.where(x64 - lower.double() > eps, torch.nextafter(lower, torch.full_like(lower, 2.0)), lower)
    return lower.clamp(min=0.0), upper.clamp(max=1.0)


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """Distance of each image of a batch, in float64.

    Args:
        x_adv: [N, C, H, W] any floating dtype.
        x: [N, C, H, W].
        norm: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``.

    Returns:
        [N] float64, in [0, 1] pixel units; of l_0 a number of pixels (a NaN counts as a change).

    Raises:
        ConfigError: unknown norm.
    """
    _check_norm(norm, BUDGETS)
    if norm == "l0":
        return (x_adv != x).any(dim=1).flatten(1).sum(dim=1).double()
    difference = (x_adv.double() - x.double()).flatten(1)
    if norm == "linf":
        return difference.abs().amax(dim=1)
    return _row_norm(difference) if norm == "l2" else row_sum(difference.abs())


def steepest_direction(gradient: Tensor, norm: str, pixels: Tensor | int = 1) -> Tensor:
    """Direction of steepest ascent of unit length in the given norm; zero where the gradient is zero.

    Args:
        gradient: [N, C, H, W] floating, finite.
        norm: ``"linf"`` (sign of the gradient), ``"l2"`` (gradient over its length; float64, so nothing underflows) or
            ``"l1"`` (equal steps, by sign, in the ``pixels`` largest entries).
        pixels: l_1 only: how many entries move, >= 1, a number or [N] int64. 1 is the steepest; a pixel's room is
            small, so attacks spread.

    Returns:
        [N, C, H, W] float64.

    Raises:
        ConfigError: unknown norm.
    """
    _check_norm(norm)
    gradient = gradient.double()
    if norm == "linf":
        return gradient.sign()
    if norm == "l1":
        return _largest(gradient.flatten(1), pixels).view_as(gradient)
    length = _row_norm(gradient.flatten(1)).view(-1, *[1] * (gradient.dim() - 1))
    return torch.where(length > 0, gradient / torch.where(length > 0, length, 1.0), 0.0)


def random_start(x: Tensor, eps: float, norm: str, *, seed: int, image_ids: Sequence[int], restart: int) -> Tensor:
    """A random point of each ball, projected onto [0, 1]: uniform in the cube (l_inf) or in the ball (l_2, l_1); of l_0 eps pixels with
    uniform values.

    Counter-based (Philox keyed by seed and image id, the restart in its counter): a start depends on
    (seed, image id, restart) and on nothing else, neither on the batch nor on any global generator nor on the device.

    Args:
        x: [N, C, H, W] float32 in [0, 1].
        eps: radius in [0, 1] pixel units.
        norm: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``.
        seed: any integer.
        image_ids: N integers.
        restart: number of the restart, >= 0.

    Returns:
        [N, C, H, W] float32 within the budget.

    Raises:
        ConfigError: unknown norm.
    """
    _check_norm(norm, BUDGETS)
    if norm == "l0":
        return _l0_random(x, eps, seed, image_ids, restart)
    pixels = x[0].numel()
    offsets = np.empty((x.shape[0], pixels))
    for row, image_id in enumerate(image_ids):
        generator = random(seed, image_id, (0, 0, _RANDOM_START_STREAM, restart))
        if norm == "linf":
            offsets[row] = eps * (2.0 * generator.random(pixels) - 1.0)
        elif norm == "l1":  # spacings of exponentials are uniform in the simplex
            spacing = generator.standard_exponential(pixels + 1)
            side = np.where(generator.random(pixels) < 0.5, -eps, eps)
            offsets[row] = side * (spacing[:-1] / spacing.sum())
        else:
            direction = generator.standard_normal(pixels)
            offsets[row] = direction * (eps * generator.random() ** (1.0 / pixels) / np.linalg.norm(direction))
    return project(x.double() + torch.from_numpy(offsets).view_as(x).to(x.device), x, eps, norm)


def check_budget(x_adv: Tensor, x: Tensor, eps: float, norm: str) -> None:
    """Raise unless every image is a finite float32 image in [0, 1] within eps of its original (float64, exactly).

    Args:
        x_adv: [N, C, H, W] float32.
        x: [N, C, H, W] float32.
        eps: radius in [0, 1] pixel units.
        norm: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``.

    Raises:
        RdcError: a budget or the pixel range is violated, or a pixel is NaN; says which image and by how much.
    """
    if x_adv.dtype != torch.float32 or x_adv.shape != x.shape:
        raise RdcError(
            f"expected float32 images {tuple(x.shape)}, got {x_adv.dtype} {tuple(x_adv.shape)}: a bug in the attack"
        )
    far = distance(x_adv, x, norm)
    inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(dim=1)
    wrong = ~((far <= eps) & inside)  # the negation also catches NaN
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise RdcError(
            f"adversarial image in row {row} breaks its budget: {norm} distance {float(far[row])!r} for eps {eps!r}, "
            f"pixels in [{float(x_adv[row].min())!r}, {float(x_adv[row].max())!r}] where [0, 1] is due; "
            "this is a bug in the attack"
        )


def row_sum(values: Tensor) -> Tensor:
    """Sum of each row, pairwise in a fixed order: torch's own reductions may change theirs with N, threads and device.

    Args:
        values: [N, D], D >= 1.

    Returns:
        [N].
    """
    while values.shape[1] > 1:
        if values.shape[1] % 2:
            values = torch.nn.functional.pad(values, (0, 1))
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values[:, 0]


def channel_sum(values: Tensor) -> Tensor:
    """:func:`row_sum` over channels: [N, C, H, W] -> [N, H W]."""
    count, channels = values.shape[:2]
    return row_sum(values.flatten(2).transpose(1, 2).reshape(-1, channels)).view(count, -1)


def crossing(breaks: Tensor, value: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Where each row's piecewise linear, non-decreasing function takes its target.

    Args:
        breaks: [N, M] float64, each row sorted: the function is linear between neighbours.
        value: points [N] -> values [N] float64, row by row.
        target: [N] float64; outside the range of the values, the nearer end is returned.

    Returns:
        [N] float64: a binary search for the piece (log2 M calls), then one interpolation.
    """
    low = torch.zeros(len(breaks), dtype=torch.int64, device=breaks.device)
    high = torch.full_like(low, breaks.shape[1] - 1)
    for _ in range(max(1, breaks.shape[1] - 1).bit_length()):
        middle = (low + high + 1) // 2
        below = value(breaks.gather(1, middle[:, None])[:, 0]) <= target
        low, high = torch.where(below, middle, low), torch.where(below, high, torch.maximum(middle - 1, low))
    left = breaks.gather(1, low[:, None])[:, 0]
    right = breaks.gather(1, (low + 1).clamp(max=breaks.shape[1] - 1)[:, None])[:, 0]
    from_left = value(left)
    rise = value(right) - from_left
    share = torch.where(rise > 0, (target - from_left) / torch.where(rise > 0, rise, 1.0), 0.0).clamp(0.0, 1.0)
    return left + share * (right - left)


def _l2_step(length: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    return torch.minimum(_ball_box_scale(length, room, eps)[:, None] * length, room)


def _l1_step(length: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """Lengths of the l_1 projection's displacements: [N, D], [N, D] float64 -> [N, D]."""
    whole = torch.minimum(length, room)
    inside = row_sum(whole) <= eps * _KEEP
    if bool(inside.all()):
        return whole

    def shrunk(by: Tensor) -> Tensor:
        return torch.minimum((length - by[:, None]).clamp(min=0.0), room)

    breaks = torch.cat([length, (length - room).clamp(min=0.0), torch.zeros_like(length[:, :1])], dim=1)
    target = eps * _TARGET
    sought = torch.zeros_like(length[:, 0]) - target
    by = crossing(breaks.sort(dim=1).values, lambda by: -row_sum(shrunk(by)), sought)
    step = shrunk(by)
    total = row_sum(step)  # target, but for rounding: length and eps may be far apart
    less = (target / torch.where(total > 0, total, 1.0)).clamp(
        max=1.0
    )  # PyTorch takes the reciprocal, which may be infinite
    step = step * torch.where(total > target, less, 1.0)[:, None]
    return torch.where(inside[:, None], whole, step)


def _largest(gradient: Tensor, pixels: Tensor | int) -> Tensor:
    """[N, D] -> [N, D]: sign / number in the ``pixels`` entries of largest size (first come first), 0 elsewhere."""
    size = gradient.abs()
    order = size.argsort(dim=1, descending=True, stable=True)
    count = torch.as_tensor(pixels, device=gradient.device).reshape(-1, 1)
    chosen = torch.zeros_like(size).scatter(
        1, order, (torch.arange(size.shape[1], device=size.device) < count).expand(size.shape).to(size.dtype)
    )
    unit = gradient.sign() * chosen
    return unit / row_sum(unit.abs()).clamp(min=1.0)[:, None]


def _ball_box_scale(length: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """Largest s in [0, 1] with || min(s length, room) || <= eps, per row: [N, D], [N, D] float64 -> [N] float64.

    With S the pixels already stopped by the box at s, s' = sqrt((eps^2 - sum_S room^2) / sum_notS length^2) is at least
    s and still feasible, since more pixels can only stop. Starting at eps / ||length||, s rises until S no longer
    changes.
    """
    total = _row_norm(length)
    inside = _row_norm(torch.minimum(length, room)) <= eps * _KEEP
    target = eps * _TARGET
    scale = torch.where(inside, 1.0, target / torch.where(total > 0, total, 1.0))
    for _ in range(_L2_MAX_ROUNDS):  # every round's scale is feasible, so the cap can only leave budget unused
        stopped = scale[:, None] * length >= room
        left = target**2 - row_sum(torch.where(stopped, room, 0.0).square())
        free = row_sum(torch.where(stopped, 0.0, length).square())
        better = (
            torch.where(free > 0, left.clamp(min=0.0) / torch.where(free > 0, free, 1.0), 0.0).sqrt().clamp(max=1.0)
        )
        better = torch.where(inside, scale, torch.maximum(scale, better))
        if torch.equal(better, scale):
            break
        scale = better
    return scale


def _row_norm(values: Tensor) -> Tensor:
    return row_sum(values.square()).sqrt()


def _l0_projection(x_adv: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
    """The ``eps`` pixels whose change brings x nearest to x_adv, clipped to the box; all others as they were."""
    wanted, there = x_adv.double(), x.double()
    clipped = x_adv.float().clamp(0.0, 1.0)
    gain = channel_sum((wanted - there).square() - (wanted - clipped.double()).square())
    order = gain.argsort(dim=1, descending=True, stable=True)
    count = torch.as_tensor(eps, device=x.device).reshape(-1, 1)
    kept = (torch.arange(gain.shape[1], device=x.device) < count).expand(gain.shape)
    mask = torch.zeros_like(kept).scatter(1, order, kept).view(len(x), 1, *x.shape[2:])
    return torch.where(mask, clipped, x)


def _l0_random(x: Tensor, eps: float, seed: int, image_ids: Sequence[int], restart: int) -> Tensor:
    """``eps`` different pixels of each image, at most all, with uniform values."""
    count, channels, height, width = x.shape
    found, changed = x.clone(), min(int(eps), height * width)
    for row, image_id in enumerate(image_ids):
        generator = random(seed, image_id, (0, 0, _RANDOM_START_STREAM, restart))
        places = torch.from_numpy(generator.permutation(height * width)[:changed]).to(x.device)
        values = torch.from_numpy(generator.random((channels, changed))).to(x.device, x.dtype)
        found[row].view(channels, -1)[:, places] = values
    return found


def _check_norm(norm: str, known: Sequence[str] = NORMS) -> None:
    if norm not in known:
        raise ConfigError(f"unknown norm {norm!r}; expected one of {', '.join(known)}")
