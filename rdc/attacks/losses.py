"""Losses an attack maximises, and the Objective that evaluates one on a model together with its gradient.

All losses take logits z [N, K] (any floating dtype; computed in float64) and labels y [N]. ``margin`` and ``dlr`` are
> 0 exactly where another class beats y; ``ce`` is > 0 there too, and wherever the others together outweigh y.

    margin    max_{j != y} z_j - z_y                                             Carlini & Wagner 2017
    dlr       (max_{j != y} z_j - z_y) / (z_(1) - z_(3)),  z_(1) >= z_(2) >= ..   Croce & Hein 2020, eq. (4)
    ce        u = log sum_{j != y} exp(s z_j) - s z_y,  the log-odds against y    cross-entropy is softplus(u)

Why log-odds. Cross-entropy of s z is -log softmax(s z)_y = log(1 + e^u) = softplus(u): a strictly increasing function
of u. An attack that uses the sign or the direction of a gradient, and compares losses of one image, therefore does
exactly the same on u as on the cross-entropy. But d softplus(u) / du = sigmoid(u) is 0 in float32 for a confident,
right classifier (p_y rounds to 1), while du/dz = (softmax over the others) - (one-hot of y) never vanishes. Averaged
over EOT draws, u gives each draw the same weight, where cross-entropy would nearly ignore the draws that are still
classified right.

Why a scale. The gradient of u weighs the competitors by softmax_{j != y}(s z_j). Logits of a diffusion classifier may
lie 1e-4 apart (all competitors weigh the same, no class is aimed at) or hundreds apart. ``logit_scale="auto"`` puts,
for each image, s = 10 / (z_(1) - mean of the other logits) at the clean image, held fixed from then on: losses of later
iterates stay comparable, c z and z + c give the same attack for every c > 0, and the temperature is that of an ordinary
trained classifier. ``margin`` and ``dlr`` need no scale.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rdc.attacks.threat_model import check_labels
from rdc.errors import ConfigError, InputError
from rdc.execution.precision import in_own_type
from rdc.execution.upstream import all_classes_carry

__all__ = ["LOSSES", "Evaluation", "Objective", "auto_logit_scale", "dlr", "log_odds", "margin"]

LOSSES = ("ce", "dlr", "margin")
AUTO_SPREAD = 10.0

Model = Callable[[Tensor], Tensor]


def log_odds(logits: Tensor, labels: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Log-odds against the label, log sum_{j != y} exp(s z_j) - s z_y; cross-entropy of s z is its softplus.

    Args:
        logits: [N, K], K >= 2.
        labels: [N] int64.
        scale: [N] or a number, s > 0.

    Returns:
        [N] float64.

    Source: module docstring.
    """
    scaled = logits.double() * torch.as_tensor(scale, dtype=torch.float64, device=logits.device).reshape(-1, 1)
    return torch.logsumexp(_without_label(scaled, labels), dim=1) - _at_label(scaled, labels)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best other logit minus the label's, max_{j != y} z_j - z_y.

    Args:
        logits: [N, K], K >= 2.
        labels: [N] int64.

    Returns:
        [N] float64.

    Source: Carlini & Wagner 2017 (arXiv 1608.04644), f_6 without its constant.
    """
    logits = logits.double()
    return _without_label(logits, labels).amax(dim=1) - _at_label(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio: the margin over z_(1) - z_(3), which no shift or scale of the logits changes.

    No constant is added to the denominator (it would decide for logits 1e-12 apart); where it is zero the loss is the
    margin.

    Args:
        logits: [N, K], K >= 3.
        labels: [N] int64.

    Returns:
        [N] float64.

    Raises:
        ConfigError: fewer than three classes.

    Source: Croce & Hein 2020 (arXiv 2003.01690), eq. (4).
    """
    if logits.shape[1] < 3:
        raise ConfigError(f"dlr needs at least 3 classes, got {logits.shape[1]}; use margin")
    top = logits.double().topk(3, dim=1).values
    spread = top[:, 0] - top[:, 2]
    return margin(logits, labels) / torch.where(spread > 0, spread, 1.0)


def auto_logit_scale(logits: Tensor) -> Tensor:
    """s = 10 / (z_(1) - mean of the other logits), per image; 1 where that spread is zero or not finite.

    Args:
        logits: [N, K], K >= 2.

    Returns:
        [N] float64, no gradient.
    """
    logits = logits.detach().double()
    top = logits.amax(dim=1)
    spread = top - (logits.sum(dim=1) - top) / (logits.shape[1] - 1)
    scale = AUTO_SPREAD / spread
    return torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One iterate of n images.

    Args:
        loss: [n] float64, mean over the EOT draws; -inf where it is not a number.
        correct: [n] bool, the class of the highest logit, averaged over the draws, is the label (and no logit is NaN).
        gradient: [n, C, H, W] float64, finite, or None if not asked for.
        unusable: [n] bool, the gradient was zero everywhere or not finite (its bad entries are now zero).
        non_finite: [n] bool, a logit was NaN.
        first_draw: [n] bool, right in the first of the draws alone; None: in all that there was, as ``correct`` says.
    """

    loss: Tensor
    correct: Tensor
    gradient: Tensor | None
    unusable: Tensor
    non_finite: Tensor
    first_draw: Tensor | None = None

    @property
    def right_once(self) -> Tensor:
        """[n] bool, right where the iterate is submitted a single time."""
        return self.correct if self.first_draw is None else self.first_draw

    @property
    def slope(self) -> Tensor:
        """``gradient``, where it was asked for."""
        assert self.gradient is not None
        return self.gradient

    def rows(self, rows: Tensor) -> Evaluation:
        """The same for rows [m] int64 only."""
        gradient = None if self.gradient is None else self.gradient[rows]
        first = None if self.first_draw is None else self.first_draw[rows]
        bad = self.non_finite[rows]
        return Evaluation(self.loss[rows], self.correct[rows], gradient, self.unusable[rows], bad, first)


class Objective:
    """A loss on a model: one forward pass gives the loss, the correctness and (if asked) the gradient of an iterate.

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only.
        loss: ``"ce"``, ``"dlr"`` or ``"margin"``.
        eot: model calls averaged for each evaluation, >= 1.
        redraw: called before each model call; makes a random model draw fresh noise.
        logit_scale: ``"auto"`` or s > 0, for ``ce``.
        gradient_model: see ``rdc.attacks.options.AttackOptions``; None: the model itself.

    Raises:
        ConfigError: unknown loss or logit_scale.
        InputError: eot < 1, or ``gradient_model`` is no function.
    """

    runs = 1  # how often each restart is run, ``run`` counts them: once for each class aimed at
    run = 0

    def __init__(
        self,
        model: Model,
        loss: str,
        *,
        eot: int = 1,
        redraw: Callable[[], object] | None = None,
        logit_scale: float | str = "auto",
        gradient_model: Model | None = None,
    ) -> None:
        if loss not in LOSSES:
            raise ConfigError(f"unknown loss {loss!r}; expected one of {', '.join(LOSSES)}")
        if isinstance(eot, bool) or not isinstance(eot, int) or eot < 1:
            raise InputError(f"eot must be an integer >= 1, got {eot!r}")
        number = (
            logit_scale if isinstance(logit_scale, (int, float)) and not isinstance(logit_scale, bool) else math.nan
        )
        if logit_scale != "auto" and not (math.isfinite(number) and number > 0):
            raise ConfigError(f"logit_scale must be 'auto' or a finite number > 0, got {logit_scale!r}")
        self.model, self.loss, self.eot, self.redraw, self.logit_scale = model, loss, eot, redraw, logit_scale
        if gradient_model is not None and not callable(gradient_model):
            raise InputError(
                f"gradient_model: expected a function pixels -> logits, got {type(gradient_model).__name__}"
            )
        self.gradient_model = None if gradient_model is None else in_own_type(gradient_model)
        self.is_random = redraw is not None or eot > 1
        self.forward_evaluations = 0
        self.gradient_evaluations = 0

    @property
    def calls(self) -> int:
        """Images sent through the model so far, with or without gradient."""
        return self.forward_evaluations + self.gradient_evaluations

    def start(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Classify the clean images and fix what follows from them: each image's scale, and the fall-back of ``dlr``.

        Below three classes ``dlr`` is not defined; ``self.loss`` becomes ``"margin"``, which is scale-free under a
        normalised step as well.

        Args:
            x: [N, C, H, W] clean images.
            y: [N] int64.

        Returns:
            (correct [N] bool, non_finite [N] bool, scale [N] float64 for later calls).

        Raises:
            InputError: the model's answer is not floating [N, K] with K >= 2, or a label is not in 0..K-1.
        """
        logits = torch.stack([self._draw(x, grad=False).double() for _ in range(self.eot)]).mean(dim=0)
        check_labels(y, logits.shape[1])
        return *_correctness(logits, y), self._fix(logits, y)

    def title(self, attack: str) -> str:
        """Full name of an attack that maximises this."""
        return f"{attack}-{self.loss}"

    def aimed_at(self, scale: Tensor) -> Tensor | None:
        """Class each image's current run aims at, [n] int64, from ``start``'s third answer; None: untargeted."""
        return None

    def evaluate(self, x: Tensor, y: Tensor, scale: Tensor, *, gradient: bool) -> Evaluation:
        """Loss, correctness and gradient at x.

        Args:
            x: [n, C, H, W] float32.
            y: [n] int64.
            scale: [n] float64, from ``start``.
            gradient: whether the gradient is wanted; a forward pass without is cheaper.

        Returns:
            Evaluation.

        Raises:
            InputError: the model's answer has the wrong shape, or does not depend differentiably on its input.
        """
        losses, logits, gradients = [], [], []
        for _ in range(self.eot):
            if gradient:
                drawn, loss, steepest = self._with_gradient(x, y, scale)
                gradients.append(steepest.double())
            else:
                drawn = self._draw(x, grad=False)
                loss = self._value(drawn, y, scale)
            logits.append(drawn.detach().double())
            losses.append(loss.detach())
        mean_logits = torch.stack(logits).mean(dim=0)
        loss = torch.stack(losses).mean(dim=0).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        correct, non_finite = _correctness(mean_logits, y)
        slope: Tensor | None = None
        unusable = torch.zeros_like(correct)
        if gradient:
            slope = torch.stack(gradients).mean(dim=0)
            finite = slope.isfinite()
            unusable = ~finite.flatten(1).all(dim=1) | (slope == 0).flatten(1).all(dim=1)
            slope = torch.where(finite, slope, 0.0)
        first = _correctness(logits[0], y)[0] if self.eot > 1 else None
        found = Evaluation(loss, correct, slope, unusable, non_finite, first)
        return self._confirmed(found, x, y) if gradient and self.gradient_model is not None else found

    def _confirmed(self, found: Evaluation, x: Tensor, y: Tensor) -> Evaluation:
        """What the gradient's model says with what it misclassifies asked of the model itself."""
        rows = (~(found.correct & found.right_once)).nonzero()[:, 0]
        if not rows.numel():
            return found
        logits = self._asked_again(x, rows)
        correct, non_finite, first = found.correct.clone(), found.non_finite.clone(), found.right_once.clone()
        correct[rows], non_finite[rows] = _correctness(logits.mean(dim=0), y[rows])
        first[rows] = _correctness(logits[0], y[rows])[0]
        return dataclasses.replace(found, correct=correct, non_finite=non_finite, first_draw=first)

    def _asked_again(self, x: Tensor, rows: Tensor) -> Tensor:
        """What the model says of rows [m] of the points that were just evaluated: [eot, m, K] float64."""
        return torch.stack([self._draw(x[rows], grad=False).double() for _ in range(self.eot)])

    def _fix(self, logits: Tensor, y: Tensor) -> Tensor:
        """What later calls need of the clean logits [N, K], one row for each image: the scale."""
        if self.loss == "dlr" and logits.shape[1] < 3:
            self.loss = "margin"
        if isinstance(self.logit_scale, str):
            return auto_logit_scale(logits)
        return torch.full_like(logits[:, 0], self.logit_scale)

    def _value(self, logits: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        if self.loss == "ce":
            return log_odds(logits, y, scale)
        return dlr(logits, y) if self.loss == "dlr" else margin(logits, y)

    def _with_gradient(self, x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            with all_classes_carry(self.loss == "ce"):
                logits = self._draw(leaf, grad=True)
            loss = self._value(logits, y.clone(), scale.clone())
            slope = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)[0] if loss.requires_grad else None
        if slope is None:
            raise InputError(
                "the model's logits do not depend differentiably on its input; "
                "a gradient attack needs a model without no_grad or detach"
            )
        return logits, loss, slope

    def _draw(self, x: Tensor, *, grad: bool) -> Tensor:
        if self.redraw is not None:
            self.redraw()
        with torch.set_grad_enabled(grad):
            logits = self._called(x.clone(), grad)  # a copy: what a model changes in place stays its own
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != x.shape[0] or logits.shape[1] < 2:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"expected logits [{x.shape[0]}, K] with K >= 2 from the model, got {got}")
        if not logits.is_floating_point():
            raise InputError(f"expected floating logits from the model, got {logits.dtype}")
        if grad:
            self.gradient_evaluations += x.shape[0]
        else:
            self.forward_evaluations += x.shape[0]
        return logits

    def _called(self, x: Tensor, grad: bool) -> Any:
        try:
            return self.model(x) if not grad or self.gradient_model is None else self.gradient_model(x)
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
            raise InputError(
                "the model holds tensors that were made inside torch.inference_mode(), and gradients cannot pass through such a "
                f"tensor; make the model outside ({error})"
            ) from error


def _correctness(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(right, some logit is NaN); NaN is never right."""
    non_finite = logits.isnan().any(dim=1)
    return (logits.argmax(dim=1) == labels) & ~non_finite, non_finite


def _at_label(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0]


def _without_label(logits: Tensor, labels: Tensor) -> Tensor:
    """[N, K] with the label's entry at -inf: it wins no maximum and adds nothing to a log-sum-exp."""
    return logits.scatter(1, labels[:, None], -math.inf)
