"""Sparse PGD: which pixels, by a continuous mask, and what they become, by ordinary steps, at once (l_0).

An iterate is x' = where(m, c, x): c [C, H, W] in [0, 1] are the colours that pixels would get, m the K places of largest w [H, W], a
continuous mask. With g the gradient of the loss at x', s = sigmoid(w), alpha = 1/4 and beta = sqrt(H W) / 4:

    c <- clip(c + alpha sign(g))                                      of all pixels, or of those in m alone
    w <- w + beta v / ||v||_2,     v = (sum over channels of g (c - x)) s (1 - s)

Colours of pixels outside of m are found before they are needed (``gradients="unprojected"``); with ``"projected"`` steps are those of the
function as it is. Neither is better on all images, and lists of attacks have both. A mask that has not changed for three steps is drawn
anew. First colours are uniform, first masks normal; pixels that the starting point has changed keep their colours and come first.

Source: Zhong, Huang & Liu 2024 (sPGD, arXiv 2405.05075), section 4; written from its formulas.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.seeds import random
from rdc.attacks.entry import attack
from rdc.attacks.losses import Evaluation, Model
from rdc.attacks.options import AscentOptions, word
from rdc.attacks.per_image import LocatedEvaluation, PerImageObjective
from rdc.attacks.pgd import Rule, run_attack
from rdc.attacks.threat_model import AttackResult, ThreatModel, check_images
from rdc.errors import ConfigError
from rdc.norm_balls import channel_sum, row_sum

__all__ = ["GRADIENTS", "SparsePgdOptions", "sparse_pgd"]

GRADIENTS = ("unprojected", "projected")
_ALPHA, _BETA = 0.25, 0.25
_PATIENCE = 3  # steps that a mask may stay the same
_FAR = 1e3  # beyond all normal numbers
_STREAM = 0x5350_4744  # word of the Philox counter


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SparsePgdOptions(AscentOptions):
    """Options of :func:`sparse_pgd`.

    Args:
        gradients: ``"unprojected"`` or ``"projected"``: which colours a step changes.
    """

    gradients: str = word("unprojected", GRADIENTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradients not in GRADIENTS:
            raise ConfigError(f"unknown gradients {self.gradients!r}; expected one of {', '.join(GRADIENTS)}")


@attack(SparsePgdOptions)
def sparse_pgd(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: SparsePgdOptions) -> AttackResult:
    """Sparse PGD in l_0 (module docstring); every restart starts at random pixels, unless ``start`` is given.

    Args:
        model, x, y: as for ``apgd``.
        threat: ``"l0"`` and a number of pixels.
        options: SparsePgdOptions; a call gives its fields as keywords.

    Returns:
        AttackResult.

    Raises:
        InputError, ConfigError, RdcError: as for ``apgd``; another norm.
    """
    if threat.norm != "l0":
        raise ConfigError(f"sparse_pgd attacks in l0, got {threat.norm}: it chooses pixels")
    ids = check_images(x, y, options.image_ids)
    restarts = iter(range(options.restarts))

    def make_rule(clean: Tensor) -> Rule:
        restart = next(restarts)

        def numbers(rows: Sequence[int], step: int) -> list[np.random.Generator]:
            return [random(options.seed, ids[row], (0, step, _STREAM, restart)) for row in rows]

        return _SparseRule(clean, int(threat.eps), numbers, everywhere=options.gradients == "unprojected")

    objective = PerImageObjective(model, options.loss, **options.scoring)
    return run_attack("sparse-pgd", objective, x, y, threat, make_rule, options)


class _SparseRule(Rule):
    """State of n images, one row each; ``step`` counts the iterates seen."""

    def __init__(
        self,
        clean: Tensor,
        pixels: int,
        numbers: Callable[[Sequence[int], int], list[np.random.Generator]],
        *,
        everywhere: bool,
    ) -> None:
        count, _, height, width = clean.shape
        self.clean, self.pixels, self.numbers, self.everywhere = clean, min(pixels, height * width), numbers, everywhere
        self.step = 0
        self.colours = clean.double()
        self.mask = torch.zeros(count, height * width, dtype=torch.float64, device=clean.device)
        self.chosen = torch.zeros_like(self.mask, dtype=torch.bool)
        self.same = torch.zeros(count, dtype=torch.int64, device=clean.device)

    def next(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        assert isinstance(evaluation, LocatedEvaluation)
        rows = evaluation.ids.tolist()
        if self.step == 0:
            self._begin(x, rows)
        self.step += 1
        gradient = evaluation.slope
        inside = self.chosen.view(len(x), 1, *x.shape[2:])
        move = _ALPHA * gradient.sign()
        self.colours = (self.colours + (move if self.everywhere else move * inside)).clamp(0.0, 1.0)
        soft = torch.sigmoid(self.mask)
        slope = channel_sum(gradient * (self.colours - self.clean.double())) * soft * (1.0 - soft)
        length = row_sum(slope.square()).sqrt()[:, None]
        unit = torch.where(length > 0, slope / torch.where(length > 0, length, 1.0), 0.0)
        self.mask = self.mask + _BETA * math.sqrt(slope.shape[1]) * unit
        chosen = self._largest()
        self.same = torch.where((chosen == self.chosen).all(dim=1), self.same + 1, 0)
        if stuck := (self.same >= _PATIENCE).nonzero()[:, 0].tolist():
            self.mask[stuck] = self._normal([rows[place] for place in stuck])
            self.same[stuck] = 0
            chosen = self._largest()
        self.chosen = chosen
        return torch.where(self.chosen.view(inside.shape), self.colours.float(), self.clean)

    def keep(self, rows: Tensor) -> None:
        for name in ("clean", "colours", "mask", "chosen", "same"):
            setattr(self, name, getattr(self, name)[rows])

    def _begin(self, x: Tensor, rows: list[int]) -> None:
        """First mask and colours: those of the starting point where it has changed a pixel, else random."""
        changed = (x != self.clean).any(dim=1)
        drawn = np.stack([generator.random(x[0].numel()) for generator in self.numbers(rows, 2**32 - 1)])
        colours = torch.from_numpy(drawn).view(x.shape).to(x.device)
        self.colours = torch.where(changed[:, None], x.double(), colours)
        normal = self._normal(rows)
        order = (normal + _FAR * changed.flatten(1)).argsort(dim=1, descending=True)
        self.mask = normal.scatter(
            1, order, normal.sort(dim=1, descending=True).values
        )  # the largest to what has changed
        self.chosen = self._largest()

    def _normal(self, rows: list[int]) -> Tensor:
        size = self.mask.shape[1]
        drawn = np.stack([generator.standard_normal(size) for generator in self.numbers(rows, self.step)])
        return torch.from_numpy(drawn).to(self.mask.device)

    def _largest(self) -> Tensor:
        """The places of largest mask, the first of equals: [n, H W] bool."""
        order = self.mask.argsort(dim=1, descending=True, stable=True)[:, : self.pixels]
        return torch.zeros_like(self.chosen).scatter(1, order, True)
