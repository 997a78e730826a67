"""Training a classifier, plainly or on adversarial examples: the baselines beside which RDC is put.

Four objectives for :class:`rdc.training.trainer.Trainer`. With f the logits, p = softmax f, B(x) the images within eps of x,

    standard   CE(f(x), y)
    pgd-at     CE(f(x'), y)                                               x' maximises CE(f(x'), y) over B(x)
    trades     CE(f(x), y) + beta KL(p(x) || p(x'))                       x' maximises KL(p(x) || p(x')) over B(x)
    mart       BCE(f(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x))        x' maximises CE(f(x'), y) over B(x)

Sources: Madry et al. 2018 (arXiv 1706.06083), Zhang et al. 2019 (TRADES, arXiv 1901.08573), Wang et al. 2020 (MART, ICLR).
Every x' is the last iterate of projected gradient ascent by the network being trained. Its starting point is drawn from the
Trainer's generator, so that a resumed run, and one shared among processes, sees the same. B(x) may be of several threats
(:mod:`rdc.training.threats`): one drawn for each image, or the one whose x' has the largest loss (the average and the maximum of
Tramèr & Boneh 2019, arXiv 1904.13000), or at every step the one that gains most (multi steepest descent: Maini, Wong & Kolter
2020, arXiv 1909.04068).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.attacks.threat_model import ThreatModel
from rdc.errors import ConfigError
from rdc.norm_balls import linf_bounds, project, steepest_direction
from rdc.training.augmentation import shifted
from rdc.training.batches import normal, uniform
from rdc.training.threats import Reach, Threats, parse_threats

__all__ = [
    "DEFAULT_BETA",
    "METHODS",
    "ClassifierObjective",
    "ClassifierTerms",
    "InnerAttack",
    "gaussian_start",
    "mart_loss",
    "trades_loss",
    "uniform_start",
]

METHODS = ("standard", "pgd-at", "trades", "mart")

#: beta where none is given: the papers' (TRADES's 1 / lambda, MART's lambda)
DEFAULT_BETA = {"trades": 6.0, "mart": 5.0}

_TRADES_START = 1e-3  # standard deviation, in pixel units


# --- the inner maximisation -------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class InnerAttack:
    """Projected gradient ascent on a loss, within a ball around x and [0, 1].

    Args:
        eps: radius in [0, 1] pixel units, > 0; with ``threats`` 0.
        norm: "linf" or "l2".
        steps: gradient steps, >= 1.
        step_size: length of a step in pixel units and in the same norm; None: 2.5 eps / steps (2/255 for eps 8/255 and ten
            steps). With ``threats`` always the latter, of each radius.
        threats: several in place of ``eps`` and ``norm``, as :func:`rdc.training.threats.parse_threats` reads them.
        choice: which of these an image gets, one of :data:`rdc.training.threats.CHOICES`.

    Raises:
        ConfigError: a setting is out of range, or ``eps`` or ``step_size`` stands beside ``threats``.

    Source: Madry et al. 2018, arXiv 1706.06083, section 2.1.
    """

    eps: float = 0.0
    norm: str = "linf"
    steps: int = 10
    step_size: float | None = None
    threats: str = ""
    choice: str = "drawn"

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise ConfigError(f"inner steps: expected a whole number >= 1; got {self.steps!r}")
        if self.threats:
            self.threat_set()
            if self.eps or self.step_size is not None:
                raise ConfigError("threats: expected neither eps nor a step size beside them; leave these out")
            return
        if self.norm not in ("linf", "l2"):
            raise ConfigError(f"norm: expected linf or l2 to train against; got {self.norm!r}")
        object.__setattr__(self, "eps", ThreatModel(self.norm, self.eps).eps)
        if self.eps == 0:
            raise ConfigError('eps: expected a radius > 0 to train against; got 0; for no attack use method "standard"')
        size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        if not 0 < size < math.inf:
            raise ConfigError(f"inner step size: expected a positive number in pixel units; got {size!r}")
        object.__setattr__(self, "step_size", float(size))

    def __call__(self, net: nn.Module, x: Tensor, start: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Ascend from ``start``.

        Args:
            net: pixels [B, C, H, W] -> logits [B, K]. Its parameters take no gradient meanwhile, so that a compiled
                network has a graph for the gradient with respect to pixels alone.
            x: [B, C, H, W] float32 in [0, 1], centre of the ball.
            start: like x, within the ball.
            loss: logits [B, K] float32 -> loss summed over images, so that images do not weigh on each other.

        Returns:
            [B, C, H, W] float32 without graph, within the budget to the last bit.
        """
        x = x.detach()
        bounds = linf_bounds(x, self.eps) if self.norm == "linf" else None
        with _frozen(net):
            for _ in range(self.steps):
                start = self._stepped(start.detach(), _slope(net, start.detach(), loss), x, bounds)
        return start

    def threat_set(self) -> Threats:
        """What ``threats`` and ``choice`` say."""
        return Threats(parse_threats(self.threats), self.choice)

    def among(self, net: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
        """Ascend from random points under ``threats``.

        Args:
            net: as above.
            x: [B, C, H, W] float32 in [0, 1].
            loss: logits [B, K] float32 -> loss [B] of each image.
            generator: of the batch.

        Returns:
            [B, C, H, W] float32 without graph, within the budget up to rounding.
        """
        x = x.detach()
        reach = self.threat_set().drawn(len(x), generator, x)
        with _frozen(net):
            if self.choice == "steepest":
                return self._steepest(net, x, reach, loss, generator)
            if reach.which is not None:
                return self._climbed(net, x, reach, loss, generator)
            worst, most = x, torch.full((len(x),), -math.inf, device=x.device)
            for index in range(len(reach.norms)):
                x_adv = self._climbed(net, x, reach.only(index), loss, generator)
                with torch.no_grad():
                    found = loss(net(x_adv).float())
                more = found > most
                worst, most = torch.where(more[:, None, None, None], x_adv, worst), torch.where(more, found, most)
            return worst

    def _climbed(
        self, net: nn.Module, x: Tensor, reach: Reach, loss: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> Tensor:
        now = reach.start(x, generator)
        for _ in range(self.steps):
            now = reach.ascended(_slope(net, now.moved(x), loss), x, now, 2.5 / self.steps)
        return now.moved(x).clamp(0, 1)

    def _steepest(
        self, net: nn.Module, x: Tensor, reach: Reach, loss: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> Tensor:
        """Every step is tried under each threat, from where the last one ended, projected there; the largest loss goes on.

        A displaced image tried under a ball begins at the image itself, and the other way round. Source: Maini et al., algorithm 1.
        """
        now = reach.start(x, generator)
        for _ in range(self.steps):
            gradient = _slope(net, now.moved(x), loss)
            made = [reach.only(index).ascended(gradient, x, now, 2.5 / self.steps) for index in range(len(reach.norms))]
            with torch.no_grad():
                gained = torch.stack([loss(net(each.moved(x).clamp(0, 1)).float()) for each in made])
            now = reach.best_of(made, gained)
        return now.moved(x).clamp(0, 1)

    def describe(self) -> dict[str, Any]:
        """For the run's folder; what was added since 0.1 and is off is left out, so that older runs continue."""
        left_out = ("eps", "norm", "step_size") if self.threats else ("threats", "choice")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}

    def _stepped(self, x_adv: Tensor, gradient: Tensor, x: Tensor, bounds: tuple[Tensor, Tensor] | None) -> Tensor:
        assert self.step_size is not None
        if bounds is not None:
            return torch.clamp(x_adv + self.step_size * gradient.sign(), *bounds)
        return project(x_adv + self.step_size * steepest_direction(gradient, self.norm), x, self.eps, self.norm)


def _slope(net: nn.Module, moved: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of the summed loss at the images, in [0, 1]: like them."""
    x_adv = moved.clamp(0, 1).requires_grad_(True)
    with torch.enable_grad():
        value = loss(net(x_adv).float()).sum()
    with torch.autocast(moved.device.type, enabled=False):  # types as in the forward pass
        (gradient,) = torch.autograd.grad(value, x_adv)
    return gradient


@contextlib.contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """No gradients with respect to the parameters."""
    trained = [p for p in net.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def uniform_start(x: Tensor, attack: InnerAttack, generator: torch.Generator) -> Tensor:
    """A uniformly random point of each image's ball, cut to [0, 1]; x [B, C, H, W] float32 in [0, 1]."""
    if attack.norm == "linf":
        offset = attack.eps * (2 * uniform(x.shape, generator) - 1)
    else:
        direction = steepest_direction(normal(x.shape, generator), "l2")
        radius = uniform((len(x), 1, 1, 1), generator).double() ** (1 / x[0].numel())
        offset = attack.eps * radius * direction
    return project(x + offset.to(x.device), x, attack.eps, attack.norm)


def gaussian_start(x: Tensor, attack: InnerAttack, generator: torch.Generator, std: float = _TRADES_START) -> Tensor:
    """x and a little Gaussian noise, within the budget: the divergence's gradient is zero at x itself."""
    return project(x + std * normal(x.shape, generator).to(x.device), x, attack.eps, attack.norm)


# --- losses -----------------------------------------------------------------------------------------------------------
def _divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(adversarial)) of each image: [B, K], [B, K] -> [B]."""
    log_p, log_q = clean.log_softmax(1), adversarial.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def trades_loss(
    clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """Mean of CE(f(x), y) + beta KL(p(x) || p(x')).

    Args:
        clean, adversarial: logits [B, K] of x and x'; gradients flow through both.
        labels: [B] int64.
        beta: weight of the divergence, >= 0; 0 is standard training.
        label_smoothing: share of the target spread over all classes.

    Source: Zhang et al. 2019, arXiv 1901.08573, equation 5 (beta = 1 / lambda).
    """
    entropy = F.cross_entropy(clean, labels, label_smoothing=label_smoothing)
    return entropy + beta * _divergence(clean, adversarial).mean()


def mart_loss(clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Mean of BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)).

    BCE = -log p_y(x') - log(1 - max_{k != y} p_k(x')), the boosted cross-entropy; images that the network is unsure of
    weigh more in the divergence.

    Args:
        clean, adversarial: logits [B, K] of x and x', K >= 2; gradients flow through both.
        labels: [B] int64.
        beta: weight of the divergence (the paper's lambda), >= 0.

    Source: Wang et al. 2020, Improving adversarial robustness requires revisiting misclassified examples, equations 9, 11.
    """
    log_q = adversarial.log_softmax(1)
    own = F.one_hot(labels, clean.shape[1]).bool()
    rival = log_q.masked_fill(own, -math.inf).argmax(1)
    rest = log_q.masked_fill(F.one_hot(rival, clean.shape[1]).bool(), -math.inf).logsumexp(1)  # log(1 - p_rival)
    boosted = -log_q[own] - rest
    unsure = 1 - clean.softmax(1)[own]
    return (boosted + beta * unsure * _divergence(clean, adversarial)).mean()


# --- the objective ----------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class ClassifierTerms:
    """What :class:`ClassifierObjective` minimises, beside its method.

    Args:
        beta: weight of the divergence for "trades" and "mart"; None: :data:`DEFAULT_BETA`.
        label_smoothing: of the cross-entropy to minimise (not of the attack's), 0 <= s < 1; not for "mart", whose loss is
            no plain cross-entropy.

    Raises:
        ConfigError: a setting is out of range.
    """

    beta: float | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.beta is not None and not 0 <= self.beta < math.inf:
            raise ConfigError(f"beta: expected 0 or more; got {self.beta!r}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing: expected a share in [0, 1); got {self.label_smoothing!r}")


class ClassifierObjective:
    """Trains a classifier by one of :data:`METHODS`; see the module's head. An ``rdc.training.objective.Objective``.

    Args:
        method: which.
        attack: the inner maximisation; None for "standard" only.
        beta, label_smoothing: :class:`ClassifierTerms`.
        shift: largest random displacement of each training image, in pixels, along each axis; 0: none.

    Logged: loss; clean and (but for "standard") robust, the shares of the batch that the network, as it is before the
    step, classifies right at x and at x'.

    Raises:
        ConfigError: a setting is out of range or does not go with the method.
    """

    def __init__(
        self,
        method: str,
        attack: InnerAttack | None = None,
        beta: float | None = ClassifierTerms.beta,
        label_smoothing: float = ClassifierTerms.label_smoothing,
        shift: int = 0,
    ) -> None:
        if method not in METHODS:
            raise ConfigError(f"method: expected one of {', '.join(METHODS)}; got {method!r}")
        if (attack is None) != (method == "standard"):
            raise ConfigError(f'method {method!r}: expected an inner attack for all methods but "standard"')
        if beta is not None and method not in DEFAULT_BETA:
            raise ConfigError(f"beta: method {method!r} has none; only {' and '.join(DEFAULT_BETA)} do")
        ClassifierTerms(beta, label_smoothing)  # are they in range?
        if label_smoothing and method == "mart":
            raise ConfigError("label_smoothing: MART's loss has no smoothed form; leave it 0")
        if type(shift) is not int or shift < 0:
            raise ConfigError(f"shift: expected a whole number of pixels >= 0; got {shift!r}")
        self.method, self.attack = method, attack
        self.beta = DEFAULT_BETA.get(method, 0.0) if beta is None else beta
        self.label_smoothing, self.shift = label_smoothing, shift
        self.found: dict[str, Tensor] | None = None  # x', while it is to be kept

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x = ((x0 + 1) / 2).clamp(0, 1)
        if self.shift:
            x = shifted(x, self.shift, generator)
        if self.method == "pgd-at":
            with torch.no_grad(), _frozen(net):  # frozen: autocast must not keep weights that were cast without graph
                clean = net(x).float()
        else:
            clean = net(x).float()
        adversarial = clean
        if self.attack is not None:
            adversarial = net(self._worst(net, x, labels, clean.detach(), generator)).float()
        loss = self._loss(clean, adversarial, labels)
        values = {"loss": loss.detach(), "clean": _hits(clean, labels)}
        return loss, values if self.attack is None else {**values, "robust": _hits(adversarial, labels)}

    def _worst(self, net: nn.Module, x: Tensor, labels: Tensor, clean: Tensor, generator: torch.Generator) -> Tensor:
        """x' of the method."""
        assert self.attack is not None
        if self.found:
            return self.found["images"]
        worst = self._sought(net, x, labels, clean, generator)
        if self.found is not None:
            self.found["images"] = worst
        return worst

    def _sought(self, net: nn.Module, x: Tensor, labels: Tensor, clean: Tensor, generator: torch.Generator) -> Tensor:
        assert self.attack is not None
        if self.method == "trades":

            def rise(logits: Tensor) -> Tensor:
                return _divergence(clean, logits)

        else:

            def rise(logits: Tensor) -> Tensor:
                return F.cross_entropy(logits, labels, reduction="none")

        if self.attack.threats:
            return self.attack.among(net, x, rise, generator)
        start = (gaussian_start if self.method == "trades" else uniform_start)(x, self.attack, generator)
        return self.attack(net, x, start, lambda logits: rise(logits).sum())

    def _loss(self, clean: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        if self.method == "trades":
            return trades_loss(clean, adversarial, labels, self.beta, self.label_smoothing)
        if self.method == "mart":
            return mart_loss(clean, adversarial, labels, self.beta)
        return F.cross_entropy(adversarial, labels, label_smoothing=self.label_smoothing)


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()
