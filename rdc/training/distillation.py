"""Distillation: a class-conditional teacher into a multi-head student (arXiv 2305.15241, appendix).

A multi-head network trained on the plain conditional loss learns head y from images of class y only and classifies
poorly. Two things supply what is missing, what the other heads should say. The teacher,

    L_teacher   = E ||S_k - T_k||^2  +  a E ||(S_k - S_y) - (T_k - T_y)||^2

over noisy images x_t of every class y, with a few classes k (or the null label) each; its second term weighs what
decides, the differences between classes. And the labels,

    L_posterior = E ||S_y - F*||^2 + E ||S_null - F*||^2  +  b E [ -log softmax_k(-g(s) ||S_k - F*||^2)_y ]

the plain denoising loss and the cross-entropy of the student's own posterior at that noise level, with
g(s) = g c_out^2 / s^2, the weight that the level has in the ELBO over ln s. It needs no teacher pass and makes the student
partly discriminative. Either can be switched off; neither makes an adversarial example. What follows may.

Two ways to train for a threat, both of which name its norm and radius. With ``margin_eps`` the cross-entropy is taken at the
first-order worst logits instead (:mod:`rdc.training.first_order`): margins have to exceed what their input gradient could take away,
and the network sees no perturbed image. With ``secant`` the derivative becomes a difference. Let d be the first-order worst
perturbation of the ball and u a fraction drawn for each image from low .. high; then

    (1 - s) CE(z(x0)) + s CE(z')            z' = z(x0) + (z(x0 + u d) - z(x0)) / u

where both z are taken at the same noise level and with the same noise. For u = 1 this is adversarial training with one step
(Goodfellow et al., arXiv 1412.6572), for u -> 0 it is the first order itself. One step of a fixed length can be learnt by
heart: the loss falls at its end and nowhere else (Kim et al., arXiv 2010.01799, who vary the length too); a drawn u leaves no
such place. The network does see perturbed images; with ``steps`` above 1 d is searched for, and **they are adversarial examples**.
No second derivative is taken, and ``torch.compile`` works. In place of one ball there may be several threats, with radii from ranges
and flows among them (:mod:`rdc.training.threats`).

With ``cutmix`` a share of the images has a rectangle of another image, and y becomes a distribution over two classes: its share
of each weighs both the denoising losses and the cross-entropies. Together with averaged weights this keeps robust training from
learning its images by heart (Rebuffi et al., arXiv 2111.05328).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.errors import ConfigError
from rdc.method.denoiser import Denoiser
from rdc.networks.heads import MultiHeadUNet, PatchUNet
from rdc.networks.presets import build_network
from rdc.training.augmentation import cut_and_mixed
from rdc.training.batches import normal, uniform
from rdc.training.first_order import check_margin, draw_rivals, worst_logits
from rdc.training.objective import NoiseDistribution
from rdc.training.secant import Secant, lead, moved
from rdc.training.threats import Perturbation

__all__ = [
    "POSTERIOR_SCALE",
    "SOFT_SCALE",
    "WIDE_CHANNELS",
    "DistillationObjective",
    "DistillationTerms",
    "Secant",
    "student_from_teacher",
]

WIDE_CHANNELS = 156  #: of a student's last residual block
POSTERIOR_SCALE = 2.0  #: g where no threat is trained for by differences
SOFT_SCALE = 80.0  #: g times the values of an image where one is; measured at 784 and 3,072 (docs/training.md)


@dataclasses.dataclass(frozen=True)
class DistillationTerms:
    """What :class:`DistillationObjective` minimises, whatever the teacher.

    Args:
        classes_per_image: m; the true class and m - 1 others (or the null label) are distilled per image.
            0: L_posterior alone.
        difference_weight: a.
        posterior_weight: b. 0: L_teacher alone.
        posterior_scale: g > 0; one level stands for the whole ELBO when g is the width of the range of ln s, 2 to 4. With a
            threat a softer answer trains far better (docs/training.md). None: :data:`POSTERIOR_SCALE`, with ``secant``
            :data:`SOFT_SCALE` over the number of values of an image.
        margin_eps: radius in [0, 1] pixel units whose first-order worst case the posterior has to bear; 0: none. A step
            then differentiates twice, which ``torch.compile`` cannot.
        margin_norm: "linf", "l2" or "l1".
        secant: the threat that is trained for by differences; None: none.
        cutmix: probability of an image to have a rectangle of another (:func:`rdc.training.augmentation.cut_and_mixed`).
        label_smoothing: share of the cross-entropy's target that is spread over all classes, 0 <= s < 1.

    Raises:
        ConfigError: a setting is out of range, ``margin_eps`` or ``secant`` without ``posterior_weight``, or both, or
            ``margin_eps`` with ``cutmix``.
    """

    classes_per_image: int = 3
    difference_weight: float = 1.0
    posterior_weight: float = 0.0
    posterior_scale: float | None = None
    margin_eps: float = 0.0
    margin_norm: str = "linf"
    secant: Secant | None = None
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_margin(self.margin_eps, self.margin_norm)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing: expected a share in [0, 1); got {self.label_smoothing}")
        if self.label_smoothing and not self.posterior_weight:
            raise ConfigError(
                "label_smoothing: expected posterior_weight > 0 with it, it is of the posterior's cross-entropy; got 0"
            )
        if not 0 <= self.cutmix <= 1:
            raise ConfigError(f"cutmix: expected a probability in 0..1; got {self.cutmix}")
        if self.cutmix and self.margin_eps:
            raise ConfigError("margin_eps and cutmix: expected at most one of them; got both. Use secant with cutmix")
        if self.margin_eps and self.secant:
            raise ConfigError("margin_eps and secant: expected at most one of them; got both")
        for name in ["margin_eps"] * bool(self.margin_eps) + ["secant"] * bool(self.secant):
            if not self.posterior_weight:
                raise ConfigError(
                    f"{name}: expected posterior_weight > 0 with it, it acts on the posterior's cross-entropy; got 0"
                )
        if self.classes_per_image < 0:
            raise ConfigError(f"classes_per_image: expected 0 or more; got {self.classes_per_image}")
        if self.posterior_scale is None and self.secant is None:
            object.__setattr__(self, "posterior_scale", POSTERIOR_SCALE)
        weights = (self.difference_weight, self.posterior_weight)
        scale = SOFT_SCALE if self.posterior_scale is None else self.posterior_scale
        if not all(0 <= value < math.inf for value in weights) or not 0 < scale < math.inf:
            raise ConfigError(
                "distillation: expected weights >= 0 and a scale > 0; got difference_weight "
                f"{weights[0]}, posterior_weight {weights[1]}, posterior_scale {scale}"
            )
        if self.classes_per_image == 0 and self.posterior_weight == 0:
            raise ConfigError("distillation: expected classes_per_image > 0 or posterior_weight > 0; got neither")

    def fitted(self, image_shape: Sequence[int]) -> DistillationTerms:
        """These terms with a number for ``posterior_scale``, for images [C, H, W]."""
        if self.posterior_scale is not None:
            return self
        return dataclasses.replace(self, posterior_scale=SOFT_SCALE / math.prod(image_shape))

    def describe(self) -> dict[str, Any]:
        """For the run's folder; what was added since 0.1 and is off is left out, so that older runs continue."""
        terms = dataclasses.asdict(self)
        del terms["secant"]
        cutmix, smoothing = terms.pop("cutmix"), terms.pop("label_smoothing")
        if not self.margin_eps:
            del terms["margin_eps"], terms["margin_norm"]
        terms |= {"label_smoothing": smoothing} if smoothing else {}
        return (
            terms | ({"cutmix": cutmix} if cutmix else {}) | ({"secant": self.secant.describe()} if self.secant else {})
        )


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A batch as the network saw it.

    Args:
        x0: [B, C, H, W] in [-1, 1], which requires a gradient.
        labels: [B].
        own: [B, K], the images' shares of the classes.
        logits: [B, K] of x0.
        sigma: [B].
        noise: like x0.
    """

    x0: Tensor
    labels: Tensor
    own: Tensor
    logits: Tensor
    sigma: Tensor
    noise: Tensor


class DistillationObjective:
    """Training objective for :class:`rdc.training.trainer.Trainer`.

    Args:
        teacher: conditional denoiser, which is frozen. Without ``classes_per_image`` nothing is asked of it but its number of
            classes and its preconditioning; the student's own denoiser will do.
        noise: distribution of the noise levels.
        others: as of :class:`DistillationTerms`, which says what is refused.
    """

    def __init__(
        self,
        teacher: Denoiser,
        noise: NoiseDistribution,
        classes_per_image: int = DistillationTerms.classes_per_image,
        difference_weight: float = DistillationTerms.difference_weight,
        posterior_weight: float = DistillationTerms.posterior_weight,
        posterior_scale: float | None = DistillationTerms.posterior_scale,
        margin_eps: float = DistillationTerms.margin_eps,
        margin_norm: str = DistillationTerms.margin_norm,
        secant: Secant | None = DistillationTerms.secant,
        cutmix: float = DistillationTerms.cutmix,
        label_smoothing: float = DistillationTerms.label_smoothing,
    ) -> None:
        weights = (difference_weight, posterior_weight, posterior_scale)
        terms = DistillationTerms(
            classes_per_image, *weights, margin_eps, margin_norm, secant, cutmix, label_smoothing
        ).fitted(teacher.image_shape)
        assert terms.posterior_scale is not None
        if classes_per_image > teacher.num_classes + 1:
            raise ConfigError(f"classes_per_image: expected 0 to {teacher.num_classes + 1}; got {classes_per_image}")
        self.teacher = teacher.eval().requires_grad_(False) if classes_per_image else None
        self.noise, self.classes_per_image = noise, classes_per_image
        self.difference_weight, self.posterior_weight = difference_weight, posterior_weight
        self.posterior_scale, self.margin_eps, self.margin_norm = terms.posterior_scale, margin_eps, margin_norm
        self.secant, self.differentiates_twice, self.cutmix = secant, bool(margin_eps), cutmix
        self.threats, self.label_smoothing = secant.threat_set() if secant else None, label_smoothing
        self.precondition, self.num_classes = teacher.precondition, teacher.num_classes
        #: rivals, d and u of the batch, while they are to be kept (:func:`rdc.training.weight_perturbation.same_perturbations`)
        self.found: dict[str, tuple[Tensor, Perturbation, Tensor]] | None = None

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        own = (labels[:, None] == torch.arange(self.num_classes + 1, device=labels.device)).to(x0.dtype)  # [B, K + 1]
        truth = labels
        if self.cutmix:
            x0, other, share = cut_and_mixed(x0, self.cutmix, generator)
            share = share.to(x0.dtype)[:, None]
            own = share * own + (1 - share) * own[other]
            labels, truth = own.argmax(1), own[:, : self.num_classes]
        sigma = self.noise.sample(len(x0), generator).to(x0.device)
        noise = normal(x0.shape, generator).to(x0.device, x0.dtype)
        if self.margin_eps or self.secant:
            x0 = x0.detach().requires_grad_()
        classes = self._choose(labels, generator)
        x_t, target, predicted = self._predict(net, x0, sigma, noise)
        errors = self._errors(predicted, target)
        pixels = target[0].numel()
        error = (errors * own).sum() / (len(x0) * pixels)
        values = {"denoising": error.detach()}
        total = x0.new_zeros(())
        if self.classes_per_image:
            distilled, differences = self._match(predicted, x_t, sigma, classes)
            total = total + distilled + self.difference_weight * differences
            values |= {"distilled": distilled.detach(), "differences": differences.detach()}
        if self.posterior_weight:
            unlabelled = errors[:, self.num_classes].mean() / pixels
            logits = self._logits(errors, sigma)
            entropy, seen = self._posterior(logits, labels, truth, x0, generator)
            if self.secant:
                shown = _Shown(x0, labels, own[:, : self.num_classes], logits, sigma, noise)
                far, seen = self._extrapolated(net, shown, generator)
                entropy = (1 - self.secant.share) * entropy + self.secant.share * far
            total = total + error + unlabelled + self.posterior_weight * entropy
            values |= {"unlabelled": unlabelled.detach(), "posterior": entropy.detach()}
            values |= {"hits": (logits.argmax(1) == labels).float().mean(), **seen}
        return total, {"loss": total.detach(), **values}

    def _predict(self, net: nn.Module, x0: Tensor, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t and F* [B, C, H, W], and what the network says of x_t: F [B, K + 1, C, H, W]."""
        level = sigma.reshape(-1, 1, 1, 1)
        x_t = x0 + level * noise
        scaled = self.precondition.c_in(level) * x_t
        predicted = net(self._laid_out(scaled), self.precondition.c_noise(sigma))
        return x_t, self.precondition.target(x0, x_t, level), predicted

    def _laid_out(self, x: Tensor) -> Tensor:
        """On a CPU channels_last; on a GPU as the weights are, which the Trainer decides."""
        return x if x.device.type == "cuda" else x.contiguous(memory_format=torch.channels_last)

    def _errors(self, predicted: Tensor, target: Tensor) -> Tensor:
        """[B, K + 1]: ||S_k - F*||^2."""
        return (predicted - target[:, None]).square().flatten(2).sum(2)

    def _logits(self, errors: Tensor, sigma: Tensor) -> Tensor:
        """[B, K]: -g(s) ||S_k - F*||^2."""
        scale = self.posterior_scale * (self.precondition.c_out(sigma) / sigma) ** 2
        return -scale[:, None] * errors[:, : self.num_classes]

    def _extrapolated(
        self, net: nn.Module, shown: _Shown, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of z', and what the log shows of it."""
        rivals, worst, u = self._found(net, shown, generator)
        x = moved(shown.x0, worst, u).requires_grad_()  # like x0: one graph, where it is compiled
        logits, labels, own = shown.logits, shown.labels, shown.own
        far = logits + (self._logits_at(net, x, shown) - logits) / u[:, None]
        rise = lead(far, rivals, own) - lead(logits, rivals, own)
        hits = (far.argmax(1) == labels).float().mean()
        entropy = F.cross_entropy(far, own if self.cutmix else labels, label_smoothing=self.label_smoothing)
        return entropy, {"robust_first_order": hits, "rise": rise.detach().mean()}

    def _found(self, net: nn.Module, shown: _Shown, generator: torch.Generator) -> tuple[Tensor, Perturbation, Tensor]:
        """Rivals [B], their d, and u [B]."""
        assert self.secant is not None and self.threats is not None
        if self.found:
            return self.found["perturbations"]
        x0, logits, own = shown.x0, shown.logits, shown.own
        pixels = (x0.detach() + 1) / 2
        taken = (own > 0) if self.num_classes > 2 else torch.zeros_like(own, dtype=torch.bool)  # no rivals
        rivals = draw_rivals(logits.masked_fill(taken, -math.inf), shown.labels, generator)
        with torch.autocast(x0.device.type, enabled=False):  # the gradient's types are those of the forward pass
            (gradient,) = torch.autograd.grad(lead(logits, rivals, own).sum(), x0, retain_graph=True)
        reach = self.threats.drawn(len(x0), generator, x0)
        worst = reach.furthest(gradient, pixels)
        for count in range(2, self.secant.steps + 1):
            slope = self._slope(net, moved(x0, worst).requires_grad_(), rivals, shown)
            worst = worst.towards(reach.onward(slope, pixels, worst), count)
        u = uniform((len(x0),), generator).to(x0) * (self.secant.high - self.secant.low) + self.secant.low
        if self.found is not None:
            self.found["perturbations"] = rivals, worst, u
        return rivals, worst, u

    def _logits_at(self, net: nn.Module, x: Tensor, shown: _Shown) -> Tensor:
        """[B, K] of x [B, C, H, W] at the batch's levels, with its noise."""
        _, target, predicted = self._predict(net, x, shown.sigma, shown.noise)
        return self._logits(self._errors(predicted, target), shown.sigma)

    def _slope(self, net: nn.Module, x: Tensor, rivals: Tensor, shown: _Shown) -> Tensor:
        """Gradient of the rivals' lead at x [B, C, H, W], which requires one."""
        ahead = lead(self._logits_at(net, x, shown), rivals, shown.own)
        with torch.autocast(x.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(ahead.sum(), x)
        return gradient

    def _posterior(
        self, logits: Tensor, labels: Tensor, truth: Tensor, x0: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the logits [B, K], or of their first-order worst case, and what the log shows of that.

        ``truth`` is ``labels`` [B], or the images' shares of the classes [B, K].
        """
        if not self.margin_eps:
            return F.cross_entropy(logits, truth, label_smoothing=self.label_smoothing), {}
        rivals = draw_rivals(logits, labels, generator)
        worst, rise = worst_logits(logits, labels, rivals, x0, self.margin_eps, self.margin_norm)
        robust = (worst.argmax(1) == labels).float().mean()
        entropy = F.cross_entropy(worst, labels, label_smoothing=self.label_smoothing)
        return entropy, {"robust_first_order": robust, "rise": rise.mean()}

    def _choose(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """[B, m] classes: the true one first, then distinct others, K standing for the null label."""
        order = uniform((len(labels), self.num_classes + 1), generator).to(labels.device)
        order = order.scatter(1, labels[:, None], -1.0)
        return order.argsort(1)[:, : self.classes_per_image]

    def _match(self, predicted: Tensor, x_t: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared distance to the teacher, of the predictions and of their differences to the true class's."""
        count = classes.shape[1]
        assert self.teacher is not None
        with torch.no_grad():
            taught = self.teacher.f(
                x_t.repeat_interleave(count, 0), sigma.repeat_interleave(count), classes.flatten()
            ).unflatten(0, classes.shape)
        chosen = predicted[torch.arange(len(classes), device=classes.device)[:, None], classes]
        gap = chosen - taught
        if count == 1:
            return gap.square().mean(), gap.new_zeros(())
        return gap.square().mean(), (gap[:, 1:] - gap[:, :1]).square().mean()


def student_from_teacher(
    teacher: nn.Module, config: dict[str, Any], wide_channels: int = WIDE_CHANNELS
) -> tuple[MultiHeadUNet, dict[str, Any]]:
    """A multi-head student whose trunk has the teacher's weights; it begins with the teacher's unlabelled prediction.

    Args:
        teacher: conditional network made from ``config`` (a SongUNet, possibly on patches).
        config: the teacher's description.
        wide_channels: see :class:`MultiHeadUNet`.

    Returns:
        (student, its description).

    Raises:
        ConfigError: the teacher is not a conditional SongUNet.
    """
    if config.get("kind") != "conditional" or config["unet"].get("architecture") != "SongUNet":
        raise ConfigError("teacher: expected a conditional network with unet.architecture SongUNet; got another kind")
    made = {
        **copy.deepcopy(config),
        "kind": "multihead",
        "patch_size": config.get("patch_size", 1),
        "wide_channels": wide_channels,
    }
    student = build_network(made)
    assert isinstance(student, MultiHeadUNet)
    unet = teacher.unet if isinstance(teacher, PatchUNet) else teacher
    student.unet.load_state_dict(unet.state_dict())
    return student, made
