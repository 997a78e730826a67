"""Distillation: a class-conditional teacher into a multi-head student (arXiv 2305.15241, appendix).

A multi-head network trained on the plain conditional loss learns head y from images of class y only and classifies
poorly. Two things supply what is missing, what the other heads should say. The teacher,

    L_teacher   = E ||S_k - T_k||^2  +  a E ||(S_k - S_y) - (T_k - T_y)||^2

over noisy images x_t of every class y, with a few classes k (or the null label) each; its second term weighs what
decides, the differences between classes. And the labels,

    L_posterior = E ||S_y - F*||^2 + E ||S_null - F*||^2  +  b E [ -log softmax_k(-g(s) ||S_k - F*||^2)_y ]

the plain denoising loss and the cross-entropy of the student's own posterior at that noise level, with
g(s) = g c_out^2 / s^2, the weight that the level has in the ELBO over ln s. It needs no teacher pass and makes the student
partly discriminative. Either can be switched off; neither uses an adversarial example.

Two ways to train for a threat, both of which name its norm and radius. With ``margin_eps`` the cross-entropy is taken at the
first-order worst logits instead (:mod:`rdc.first_order`): margins have to exceed what their input gradient could take away,
and the network sees no perturbed image. With ``adversarial`` a step is adversarial training: the cross-entropy is shared
between the image and the end of a few steps of gradient ascent from it,

    (1 - s) CE(x0) + s CE(x0 + d)        d = argmax of what the first pass minimised, ||d|| <= eps, 0 <= x0 + d <= 1

at the same noise level and the same noise, which the adversary therefore knows. The first pass's backward gives both its own
weight gradients and the direction of ascent, so that one ascent step costs twice a plain step ("free" of the extra pass of
Shafahi et al., arXiv 1904.12843); the noise in front of the network stands for the random start without which a single step
overfits (de Jorge et al., arXiv 2202.01181). No second derivative is taken: ``torch.compile`` works.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.batches import normal, uniform
from rdc.denoiser import ConditionalDenoiser
from rdc.errors import ConfigError
from rdc.first_order import check_margin, draw_rivals, worst_logits
from rdc.networks.heads import MultiHeadUNet, PatchUNet
from rdc.networks.presets import build_network
from rdc.norm_balls import project, steepest_direction
from rdc.objective import NoiseDistribution

__all__ = ["Adversary", "DistillationObjective", "student_from_teacher"]


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The threat that a student is trained against on perturbed images.

    Args:
        eps: radius in [0, 1] pixel units, > 0.
        norm: "linf" or "l2".
        steps: of gradient ascent, each of length 2.5 eps / steps (and cut to the ball).
        share: s, of the cross-entropy at the perturbed image; strictly between 0 and 1.

    Raises:
        ConfigError: a setting is out of range.
    """

    eps: float
    norm: str = "linf"
    steps: int = 1
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise ConfigError(f"adversarial_norm: expected linf or l2; got {self.norm!r}")
        check_margin(self.eps, self.norm, "adversarial")
        if not self.eps > 0:
            raise ConfigError("adversarial_eps: expected a radius > 0, such as 8/255; got 0")
        if type(self.steps) is not int or self.steps < 1:
            raise ConfigError(f"adversarial_steps: expected a whole number >= 1; got {self.steps!r}")
        if not 0 < self.share < 1:
            raise ConfigError(f"adversarial_share: expected a share between 0 and 1, both left out; got {self.share}")

    def ascend(self, x: Tensor, gradient: Tensor, x0: Tensor) -> Tensor:
        """One step from x along the steepest direction of ``gradient``; all [B, C, H, W] in [-1, 1] units, x0 the centre."""
        pixels, centre = (x.detach() + 1) / 2, (x0.detach() + 1) / 2
        moved = pixels + 2.5 * self.eps / self.steps * steepest_direction(gradient.detach().float(), self.norm)
        return project(moved, centre, self.eps, self.norm).to(x0.dtype) * 2 - 1


class DistillationObjective:
    """Training objective for :class:`rdc.training.Trainer`.

    Args:
        teacher: frozen conditional denoiser.
        noise: distribution of the noise levels.
        classes_per_image: m; the true class and m - 1 others (or the null label) are distilled per image.
            0: L_posterior alone.
        difference_weight: a.
        posterior_weight: b. 0: L_teacher alone.
        posterior_scale: g; one level stands for the whole ELBO when g is the width of the range of ln s, 2 to 4.
        margin_eps: radius in [0, 1] pixel units whose first-order worst case the posterior has to bear; 0: none. A step
            then differentiates twice, which ``torch.compile`` cannot.
        margin_norm: "linf", "l2" or "l1".
        adversarial: the threat whose perturbed images share the cross-entropy; None: none. Calling the objective then calls
            ``backward`` on the unperturbed images' part already: set gradients to zero before, not after.

    Raises:
        ConfigError: a setting is out of range, ``margin_eps`` or ``adversarial`` without ``posterior_weight``, or both.
    """

    def __init__(
        self,
        teacher: ConditionalDenoiser,
        noise: NoiseDistribution,
        classes_per_image: int = 3,
        difference_weight: float = 1.0,
        posterior_weight: float = 0.0,
        posterior_scale: float = 2.0,
        margin_eps: float = 0.0,
        margin_norm: str = "linf",
        adversarial: Adversary | None = None,
    ) -> None:
        check_margin(margin_eps, margin_norm)
        if margin_eps and adversarial:
            raise ConfigError("margin_eps and adversarial: expected at most one of them; got both")
        for name in ["margin_eps"] * bool(margin_eps) + ["adversarial"] * bool(adversarial):
            if not posterior_weight:
                raise ConfigError(
                    f"{name}: expected posterior_weight > 0 with it, it acts on the posterior's cross-entropy; got 0"
                )
        if not 0 <= classes_per_image <= teacher.num_classes + 1:
            raise ConfigError(f"classes_per_image: expected 0 to {teacher.num_classes + 1}; got {classes_per_image}")
        if not all(0 <= value < math.inf for value in (difference_weight, posterior_weight)) or not posterior_scale > 0:
            raise ConfigError(
                "distillation: expected weights >= 0 and a scale > 0; got difference_weight "
                f"{difference_weight}, posterior_weight {posterior_weight}, posterior_scale {posterior_scale}"
            )
        if classes_per_image == 0 and posterior_weight == 0:
            raise ConfigError("distillation: expected classes_per_image > 0 or posterior_weight > 0; got neither")
        self.teacher, self.noise, self.classes_per_image = (
            teacher.eval().requires_grad_(False),
            noise,
            classes_per_image,
        )
        self.difference_weight, self.posterior_weight = difference_weight, posterior_weight
        self.posterior_scale, self.margin_eps, self.margin_norm = posterior_scale, margin_eps, margin_norm
        self.adversarial, self.differentiates_twice = adversarial, bool(margin_eps)
        self.precondition, self.num_classes = teacher.precondition, teacher.num_classes

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        sigma = self.noise.sample(len(x0), generator).to(x0.device)
        noise = normal(x0.shape, generator).to(x0.device, x0.dtype)
        if self.margin_eps or self.adversarial:
            x0 = x0.detach().requires_grad_()
        classes = self._choose(labels, generator)
        x_t, target, predicted = self._predict(net, x0, sigma, noise)
        error = (predicted[torch.arange(len(x0), device=x0.device), labels] - target).square().mean()
        values = {"denoising": error.detach()}
        total = x0.new_zeros(())
        if self.classes_per_image:
            distilled, differences = self._match(predicted, x_t, sigma, classes)
            total = total + distilled + self.difference_weight * differences
            values |= {"distilled": distilled.detach(), "differences": differences.detach()}
        if self.posterior_weight:
            unlabelled = (predicted[:, self.num_classes] - target).square().mean()
            logits = self._logits(predicted, target, sigma)
            entropy, seen = self._posterior(logits, labels, x0, generator)
            share = 1.0 if self.adversarial is None else 1.0 - self.adversarial.share
            total = total + error + unlabelled + share * self.posterior_weight * entropy
            values |= {"unlabelled": unlabelled.detach(), "posterior": entropy.detach()}
            values |= {"hits": (logits.argmax(1) == labels).float().mean(), **seen}
        if self.adversarial is None:
            return total, {"loss": total.detach(), **values}
        with torch.autocast(x0.device.type, enabled=False):  # under it CUDA's backward threads would go on in float16
            total.backward()
        rest, seen = self._under_attack(net, x0, labels, sigma, noise)
        return rest, {"loss": (total + rest).detach(), **values, **seen}

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

    def _logits(self, predicted: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
        """[B, K]: -g(s) ||S_k - F*||^2."""
        loss = (predicted[:, : self.num_classes] - target[:, None]).square().flatten(2).sum(2)
        scale = self.posterior_scale * (self.precondition.c_out(sigma) / sigma) ** 2
        return -scale[:, None] * loss

    def _under_attack(
        self, net: nn.Module, x0: Tensor, labels: Tensor, sigma: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The perturbed images' share of the loss; x0 comes with the gradient of the first pass."""
        assert self.adversarial is not None
        x, gradient = x0, x0.grad
        for step in range(self.adversarial.steps):
            x = self.adversarial.ascend(x, gradient, x0).requires_grad_()  # grad also at the end: one compiled graph
            _, target, predicted = self._predict(net, x, sigma, noise)
            logits = self._logits(predicted, target, sigma)
            entropy = F.cross_entropy(logits, labels)
            if step < self.adversarial.steps - 1:
                with torch.autocast(x0.device.type, enabled=False):
                    (gradient,) = torch.autograd.grad(entropy, x)
        hits = (logits.argmax(1) == labels).float().mean()
        share = self.adversarial.share * self.posterior_weight
        return share * entropy, {"posterior_attacked": entropy.detach(), "hits_attacked": hits}

    def _posterior(
        self, logits: Tensor, labels: Tensor, x0: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the logits [B, K], or of their first-order worst case, and what the log shows of that."""
        if not self.margin_eps:
            return F.cross_entropy(logits, labels), {}
        rivals = draw_rivals(logits, labels, generator)
        worst, rise = worst_logits(logits, labels, rivals, x0, self.margin_eps, self.margin_norm)
        robust = (worst.argmax(1) == labels).float().mean()
        return F.cross_entropy(worst, labels), {"robust_first_order": robust, "rise": rise.mean()}

    def _choose(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """[B, m] classes: the true one first, then distinct others, K standing for the null label."""
        order = uniform((len(labels), self.num_classes + 1), generator).to(labels.device)
        order[torch.arange(len(labels), device=labels.device), labels] = -1
        return order.argsort(1)[:, : self.classes_per_image]

    def _match(self, predicted: Tensor, x_t: Tensor, sigma: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared distance to the teacher, of the predictions and of their differences to the true class's."""
        count = classes.shape[1]
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
    teacher: nn.Module, config: dict[str, Any], wide_channels: int = 156
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
    unet = teacher.unet if isinstance(teacher, PatchUNet) else teacher
    student.unet.load_state_dict(unet.state_dict())
    return student, made
