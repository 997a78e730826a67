"""What the attacker may do (ThreatModel), what an attack hands back (AttackResult), and the checks on both ends."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from rdc.arguments.scalars import as_integer, as_number, shown
from rdc.errors import ConfigError, InputError
from rdc.norm_balls import BUDGETS, check_budget

__all__ = ["AttackRecord", "AttackResult", "ThreatModel", "check_images", "check_labels", "parse_eps"]

_NUMBER = re.compile(r"\d{1,30}(\.\d{0,30})?(e[+-]?\d{1,2})?|\.\d{1,30}(e[+-]?\d{1,2})?", re.IGNORECASE | re.ASCII)


def parse_eps(text: str | float, *, name: str = "") -> float:
    """Read a budget: ``"8/255"``, ``"0.5"``, ``"1e-3"`` or a number; fractions are exact, rounded once at the end.

    Args:
        text: a non-negative number or a quotient of two, in [0, 1] pixel units.
        name: what the caller calls the budget, such as ``"--eps"``; errors begin with it.

    Returns:
        The float64 nearest to the exact value: ``parse_eps("8/255") == 8 / 255``.

    Raises:
        ConfigError: not such a number, negative, infinite, or a zero denominator.
    """
    said = f"{name}: " if name else ""
    if (number := as_number(text)) is not None:
        if math.isfinite(number) and number >= 0:
            return number
        raise ConfigError(f"{said}expected a finite budget >= 0 in [0, 1] pixel units, got {shown(text)}")
    parts = [part.strip() for part in text.split("/")] if isinstance(text, str) else []
    if len(parts) not in (1, 2) or not all(_NUMBER.fullmatch(part) for part in parts):
        raise ConfigError(
            f"{said}expected a budget such as '8/255' or '0.5' (>= 0, in [0, 1] pixel units), got {shown(text)}"
        )
    numbers = [Fraction(part) for part in parts]
    if len(numbers) == 2 and numbers[1] == 0:
        raise ConfigError(f"{said}the budget {text!r} divides by zero; write it like '8/255'")
    value = as_number(numbers[0] / numbers[1] if len(numbers) == 2 else numbers[0])
    if value is None:
        raise ConfigError(f"{said}expected a finite budget >= 0 in [0, 1] pixel units, got {shown(text)}")
    return value


@dataclass(frozen=True)
class ThreatModel:
    """Set of images the attacker may hand in: {x' in [0, 1] : ||x' - x|| <= eps}.

    Args:
        norm: ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``.
        eps: radius in [0, 1] pixel units (``parse_eps("8/255")``); for l_inf at most 1; for l_0 a whole number of pixels, each over all
            its channels.

    Raises:
        ConfigError: unknown norm, or eps not a number of that range.
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if not isinstance(self.norm, str) or self.norm not in BUDGETS:
            raise ConfigError(f"unknown norm {shown(self.norm)}; expected one of {', '.join(BUDGETS)}")
        eps = as_number(self.eps)
        if eps is None:
            raise ConfigError(f"eps must be a number, got {shown(self.eps)}; parse_eps reads text such as '8/255'")
        if not math.isfinite(eps) or eps < 0:
            raise ConfigError(f"eps must be finite and >= 0, got {eps!r}")
        if self.norm == "linf" and eps > 1:
            raise ConfigError(
                f"an l_inf eps is in [0, 1] pixel units, got {eps!r}; write {eps!r}/255 if grey levels were meant"
            )
        if self.norm == "l0" and not eps.is_integer():
            raise ConfigError(f"an l_0 eps is a number of pixels, a whole one such as 10; got {eps!r}")
        object.__setattr__(self, "eps", eps)


@dataclass(frozen=True, eq=False)
class AttackResult:
    """Outcome of one attack on N images.

    Args:
        name: attack and loss, e.g. ``"apgd-dlr"``.
        loss: the loss really maximised (``"dlr"`` falls back to ``"margin"`` below three classes).
        threat: budget.
        steps: steps of each restart.
        restarts: number of restarts.
        eot: model calls averaged for each gradient.
        x_adv: [N, C, H, W] float32. The first image found to be misclassified; for robust images the one of highest
            loss; the clean image where that was misclassified already.
        clean_correct: [N] bool, right on the clean image.
        correct: [N] bool, right on every image the attack tried (and on x_adv when verified): robust to this attack.
        broken_at: [N] int64, step (within its restart) of the first misclassified image; 0 is the clean image or the
            restart's starting point; -1 never broken.
        broken_restart: [N] int64, restart in which that was, -1 never broken or misclassified when clean.
        best_loss: [N] float64, loss of x_adv (see rdc.attacks.losses for units); -inf for images misclassified when
            clean.
        accuracy_per_step: steps + 1 numbers, fraction of images not broken by step k of any restart.
        zero_gradient_steps: [N] int64, steps at which a still robust image had a gradient that was zero everywhere or
            not finite: the attack was then blind, so the image was not attacked as meant (masked gradients).
        non_finite_logits: [N] bool, the model returned NaN for this image at some point; that counts as misclassified.
        forward_evaluations: images sent through the model without gradient.
        gradient_evaluations: images sent through the model with gradient.
        verify_mismatches: images broken in the attack but right on the final check, or the reverse (both count as
            broken): more than a few mean that the model is random or that its results depend on the batch. None: not
            verified.
        broken_target: [N] int64, class the attack aimed at when it first broke the image; -1 never broken,
            misclassified when clean, or found by an untargeted attack or the final check.
        minimal_distance: [N] float64, FAB: distance of the nearest misclassified image found, 0 where the clean image
            is one, inf if none was found. An upper bound: a search that stops at eps does not minimise further.
        queries: [N] int64, how often each image was sent to the model (or its stand-in), with or without gradient; neither the first look
            at the clean image nor the final check counts. Where images of one call differ, each has their mean, rounded up.
        wrong_on_the_way: [N] bool, some iterate within the budget was misclassified when submitted once: by the first draw of those that
            its evaluation took. Without randomness the same as broken.
        broken_query: [N] int64, which of these queries first found it misclassified; 0: the clean image was; -1: none.
    """

    name: str
    loss: str
    threat: ThreatModel
    steps: int
    restarts: int
    eot: int
    x_adv: Tensor
    clean_correct: Tensor
    correct: Tensor
    broken_at: Tensor
    broken_restart: Tensor
    best_loss: Tensor
    accuracy_per_step: list[float]
    zero_gradient_steps: Tensor
    non_finite_logits: Tensor
    forward_evaluations: int
    gradient_evaluations: int
    verify_mismatches: int | None
    broken_target: Tensor | None = None
    minimal_distance: Tensor | None = None
    queries: Tensor | None = None
    broken_query: Tensor | None = None
    wrong_on_the_way: Tensor | None = None

    @property
    def accuracy(self) -> float:
        """Fraction of images that survived."""
        return float(self.correct.double().mean())

    @property
    def zero_gradient_images(self) -> int:
        """Images with at least one step whose gradient was zero everywhere or not finite."""
        return int((self.zero_gradient_steps > 0).sum())


class AttackRecord:
    """Best adversarial image and history of each image while an attack runs (rows are the N images of the call)."""

    def __init__(self, x: Tensor, clean_correct: Tensor, clean_non_finite: Tensor) -> None:
        """Start from the clean images: x [N, C, H, W], clean_correct [N] bool, clean_non_finite [N] bool."""
        count = x.shape[0]
        self.x_adv = x.clone()
        self.clean_correct = clean_correct
        self.correct = clean_correct.clone()
        self.broken_at = torch.where(clean_correct, -1, 0)
        self.broken_restart = torch.full_like(self.broken_at, -1)
        self.broken_target = torch.full_like(self.broken_at, -1)
        self.queries = torch.zeros_like(self.broken_at)
        self.broken_query = self.broken_at.clone()
        self.wrong_on_the_way = ~clean_correct
        self.best_loss = torch.full((count,), -math.inf, dtype=torch.float64, device=x.device)
        self.zero_gradient_steps = torch.zeros_like(self.broken_at)
        self.non_finite_logits = clean_non_finite.clone()

    def ask(self, rows: Tensor, calls: int) -> None:
        """Count queries, before what they found is taken in.

        Args:
            rows: [n] int64, which images were sent to the model.
            calls: how often, all together; each counts as many, rounded up.
        """
        if len(rows):
            self.queries[rows] += -(-calls // len(rows))

    def add(
        self,
        rows: Tensor,
        x: Tensor,
        loss: Tensor,
        correct: Tensor,
        *,
        step: int,
        restart: int,
        target: Tensor | None = None,
        right_once: Tensor | None = None,
    ) -> None:
        """Take in one iterate.

        Args:
            rows: [n] int64, which images these are.
            x: [n, C, H, W] float32 iterate.
            loss: [n] float64.
            correct: [n] bool, classified right at x.
            step: 0 is the starting point.
            restart: number of the restart.
            target: [n] int64, the class aimed at, if one was.
            right_once: [n] bool, classified right in a single draw; None: as ``correct``.
        """
        was_robust = self.correct[rows]
        first = was_robust & ~correct
        higher = loss > self.best_loss[rows]
        better = first | (higher & (was_robust | ~correct))  # a broken image is only replaced by a broken one
        self.x_adv[rows[better]] = x[better]
        self.best_loss[rows[better]] = loss[better]
        self.broken_at[rows[first]] = step
        self.broken_restart[rows[first]] = restart
        self.broken_query[rows[first]] = self.queries[rows[first]]
        if target is not None:
            self.broken_target[rows[first]] = target[first]
        self.correct[rows[first]] = False
        self.wrong_on_the_way[rows] |= ~(correct if right_once is None else right_once)

    def verify(self, correct_at_x_adv: Tensor, steps: int, restarts: int) -> int:
        """Merge a final evaluation of x_adv, [N] bool; returns how many images disagree."""
        mismatch = correct_at_x_adv != self.correct
        late = self.correct & ~correct_at_x_adv
        self.broken_at[late] = steps
        self.broken_restart[late] = restarts - 1
        self.broken_query[late] = self.queries[late]
        self.wrong_on_the_way |= late
        self.correct &= correct_at_x_adv
        return int(mismatch.sum())

    def result(self, x: Tensor, threat: ThreatModel, **about: object) -> AttackResult:
        """Check every budget and close the record; ``about`` holds the remaining fields of AttackResult."""
        check_budget(self.x_adv, x, threat.eps, threat.norm)
        steps = int(about["steps"])  # type: ignore[call-overload]
        count = len(self.broken_at)
        broken = torch.bincount(self.broken_at[self.broken_at >= 0].cpu(), minlength=steps + 1).cumsum(0)
        history = [(count - gone) / count for gone in broken.tolist()]
        return AttackResult(
            threat=threat,
            x_adv=self.x_adv,
            clean_correct=self.clean_correct,
            correct=self.correct,
            broken_at=self.broken_at,
            broken_restart=self.broken_restart,
            best_loss=self.best_loss,
            accuracy_per_step=history,
            zero_gradient_steps=self.zero_gradient_steps,
            non_finite_logits=self.non_finite_logits,
            broken_target=self.broken_target,
            queries=self.queries,
            broken_query=self.broken_query,
            wrong_on_the_way=self.wrong_on_the_way,
            **about,  # type: ignore[arg-type]
        )


def check_images(x: Tensor, y: Tensor, image_ids: Sequence[int] | Tensor | None) -> list[int]:
    """Refuse what no attack can start from; returns the image ids as a list.

    Args:
        x: [N, C, H, W] float32 in [0, 1], N >= 1.
        y: [N] int64.
        image_ids: N integers, >= 0; None: 0 to N - 1.

    Raises:
        InputError: says which of these does not hold.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        raise InputError(f"expected float32 pixels in [0, 1], got {_kind(x)}; for uint8 use pixels.float() / 255")
    if x.dim() != 4 or x.numel() == 0:
        raise InputError(f"expected a non-empty batch [N, C, H, W], got shape {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise InputError("pixels hold NaN or infinity; expected finite values in [0, 1]")
    if float(x.min()) < 0 or float(x.max()) > 1:
        raise InputError(
            f"pixels span [{float(x.min()):.9g}, {float(x.max()):.9g}]; expected [0, 1]: "
            "divide grey levels by 255, undo any normalisation"
        )
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        raise InputError(f"expected int64 labels, got {_kind(y)}; use y.long()")
    if y.shape != x.shape[:1]:
        raise InputError(f"expected labels of shape [{x.shape[0]}], one for each image, got {list(y.shape)}")
    if image_ids is None:
        return list(range(len(x)))
    if isinstance(image_ids, Tensor) and (
        image_ids.dim() != 1 or image_ids.is_floating_point() or image_ids.dtype == torch.bool
    ):
        raise InputError(f"expected image_ids [N] of integers, got {image_ids.dtype} {list(image_ids.shape)}")
    try:
        ids = image_ids.tolist() if isinstance(image_ids, Tensor) else list(image_ids)
    except TypeError as error:
        raise InputError(f"expected {x.shape[0]} image_ids, one for each image, got {shown(image_ids)}") from error
    if len(ids) != x.shape[0]:
        raise InputError(f"expected {x.shape[0]} image_ids, one for each image, got {len(ids)}")
    for image_id in ids:
        number = as_integer(image_id)
        if number is None or not 0 <= number < 2**64:
            raise InputError(f"image_ids must be integers >= 0 (position in the data set), got {shown(image_id)}")
    return [int(image_id) for image_id in ids]


def check_labels(y: Tensor, classes: int) -> None:
    """Refuse labels outside 0..classes-1.

    Args:
        y: [N] int64.
        classes: K, the width of the model's logits.

    Raises:
        InputError: names the label.
    """
    if int(y.min()) < 0 or int(y.max()) >= classes:
        bad = int(y.min()) if int(y.min()) < 0 else int(y.max())
        raise InputError(f"label {bad} is out of range; this model has {classes} classes, labels 0..{classes - 1}")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
