"""Low-frequency APGD: perturbations made of the lowest 2-D cosine waves.

With C_H the orthonormal DCT-II matrix of size H, C[k, i] = a_k cos(pi (2 i + 1) k / (2 H)), a_0 = sqrt(1/H) and
a_k = sqrt(2/H), and B_H its first ceil(cutoff * H) rows, the low-frequency part of a channel is the orthogonal projection

    L(g) = B_H^T B_H g B_W^T B_W

Every iterate but the first is P(x + d) with L(d) = d, x the clean image and P the projection onto budget and box:

    d^(k+1) = L( P(x^(k) + eta s^(k)) - x ),    s the steepest direction (of the norm) of L(gradient)

and likewise after the momentum step of APGD. As <g, L sign(L g)> = ||L g||_1, the move is uphill.

Against purifiers: denoising removes what is not in images, above all high frequencies; what is smooth stays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from rdc.arguments.scalars import as_number
from rdc.attacks.apgd import _ApgdRule
from rdc.attacks.entry import attack
from rdc.attacks.losses import Evaluation, Model
from rdc.attacks.options import AscentOptions, number
from rdc.attacks.per_image import JumpRule, PerImageObjective
from rdc.attacks.pgd import Rule, run_attack
from rdc.attacks.threat_model import AttackResult, ThreatModel, check_images
from rdc.errors import ConfigError
from rdc.norm_balls import distance, project, random_start

__all__ = ["CUTOFFS", "LowFrequencyOptions", "dct_matrix", "low_frequency", "low_pass"]

CUTOFFS = (0.25, 0.5, 0.125)


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II matrix C [size, size] float64: C @ signal are the coefficients, C.T @ coefficients the signal.

    Args:
        size: >= 1.
    """
    row = torch.arange(size, dtype=torch.float64)[:, None]
    column = torch.arange(size, dtype=torch.float64)[None, :]
    waves = torch.cos(math.pi * (2.0 * column + 1.0) * row / (2.0 * size))
    waves *= math.sqrt(2.0 / size)
    waves[0] /= math.sqrt(2.0)
    return waves


def low_pass(values: Tensor, cutoff: float) -> Tensor:
    """Low-frequency part L of each channel of [N, C, H, W]: the lowest ceil(cutoff * size) waves in each direction.

    Args:
        values: [N, C, H, W] floating.
        cutoff: in (0, 1]; 1 keeps everything.

    Returns:
        [N, C, H, W] float64. Image by image, so that an image's bits do not depend on the batch.

    Raises:
        ConfigError: cutoff out of range.
    """
    _check_cutoff(cutoff)
    height, width = (_projector(size, cutoff).to(values.device) for size in values.shape[-2:])
    return torch.stack([height @ image @ width for image in values.double()])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LowFrequencyOptions(AscentOptions):
    """Options of :func:`low_frequency`.

    Args:
        restarts: restart 0 starts from the clean image (or ``start``). A later one evaluates the clean image as its
            iterate 0 and goes on from a random low-frequency perturbation that touches the budget.
        start: [N, C, H, W], iterate 0 of restart 0, taken as it is (projected into the budget); low-pass from iterate 1.
        cutoff: share of the waves of each direction that is kept, in (0, 1]; of several, restart r uses number r modulo
            their count.
    """

    cutoff: float | Sequence[float] = number(CUTOFFS, most=1e6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cutoffs:
            raise ConfigError("cutoff: expected at least one number in (0, 1]; got none")
        for value in self.cutoffs:
            _check_cutoff(value)

    @property
    def cutoffs(self) -> list[float]:
        """The shares, as a list."""
        given = self.cutoff
        if not isinstance(given, Sequence) or isinstance(given, str):
            return [given]
        return [value if (read := as_number(value)) is None else read for value in given]


@attack(LowFrequencyOptions)
def low_frequency(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: LowFrequencyOptions
) -> AttackResult:
    """APGD restricted to low frequencies (module docstring).

    Args:
        model, x, y: as for ``apgd``.
        threat: ``"linf"`` or ``"l2"``, and radius.
        options: LowFrequencyOptions; a call gives its fields as keywords.

    Returns:
        AttackResult.

    Raises:
        InputError, ConfigError, RdcError: as for ``apgd``; a cutoff that is not in (0, 1].

    Source: Guo, Frank & Weinberger 2018 (arXiv 1809.08758); Sharma, Ding & Brubaker 2019 (arXiv 1903.00073).
    """
    if threat.norm not in ("linf", "l2"):
        raise ConfigError(
            f"low_frequency attacks in linf and l2, got {threat.norm}: smooth changes waste an l_1 budget"
        )
    ids = check_images(x, y, options.image_ids)
    cutoffs, steps, numbers = options.cutoffs, options.steps, count()

    def make_rule(clean: Tensor) -> Rule:
        restart = next(numbers)
        share = cutoffs[restart % len(cutoffs)]
        if restart == 0:
            return _LowFrequencyRule(clean, threat, steps, share)

        def jump(rows: Tensor) -> Tensor:
            return _random_start(x[rows], threat, share, options.seed, [ids[row] for row in rows.tolist()], restart)

        return JumpRule(_LowFrequencyRule(clean, threat, max(1, steps - 1), share), jump)

    objective = PerImageObjective(model, options.loss, **options.scoring)
    return run_attack("low-frequency", objective, x, y, threat, make_rule, options, random_starts=False)


class _LowFrequencyRule(_ApgdRule):
    """APGD whose gradient and displacement are low-pass."""

    def __init__(self, clean: Tensor, threat: ThreatModel, steps: int, cutoff: float) -> None:
        super().__init__(clean, threat, steps)
        self.cutoff = cutoff

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        assert evaluation.gradient is not None
        return super().next(x, dataclasses.replace(evaluation, gradient=low_pass(evaluation.gradient, self.cutoff)))

    def _project(self, x: Tensor) -> Tensor:
        displacement = super()._project(x).double() - self.clean.double()
        return super()._project(self.clean.double() + low_pass(displacement, self.cutoff))


def _random_start(
    x: Tensor, threat: ThreatModel, cutoff: float, seed: int, image_ids: Sequence[int], restart: int
) -> Tensor:
    """Low-pass part of a random point of the ball, stretched to the radius."""
    white = random_start(x, threat.eps, threat.norm, seed=seed, image_ids=image_ids, restart=restart)
    smooth = low_pass(white.double() - x.double(), cutoff)
    length = distance(smooth, torch.zeros_like(smooth), threat.norm)
    stretch = torch.where(length > 0, threat.eps / torch.where(length > 0, length, 1.0), 0.0)
    return project(x.double() + stretch.view(-1, 1, 1, 1) * smooth, x, threat.eps, threat.norm)


def _projector(size: int, cutoff: float) -> Tensor:
    kept = dct_matrix(size)[: math.ceil(cutoff * size)]
    return kept.T @ kept


def _check_cutoff(cutoff: float) -> None:
    if isinstance(cutoff, bool) or not isinstance(cutoff, (int, float)) or not 0 < cutoff <= 1:
        raise ConfigError(f"cutoff must be a number in (0, 1], the share of frequencies that is kept; got {cutoff!r}")
