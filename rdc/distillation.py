"""Distillation: a class-conditional teacher into a multi-head student (arXiv 2305.15241, appendix).

A multi-head network trained on the plain conditional loss learns head y from images of class y only and classifies
poorly. Two things supply what is missing, what the other heads should say. The teacher,

    L_teacher   = E ||S_k - T_k||^2  +  a E ||(S_k - S_y) - (T_k - T_y)||^2

over noisy images x_t of every class y, with a few classes k (or the null label) each; its second term weighs what
decides, the differences between classes. And the labels,

    L_posterior = E ||S_y - F*||^2 + E ||S_null - F*||^2  +  b E [ -log softmax_k(-g(s) ||S_k - F*||^2)_y ]

the plain denoising loss and the cross-entropy of the student's own posterior at that noise level, with
g(s) = g c_out^2 / s^2, the weight that the level has in the ELBO over ln s. It needs no teacher pass and makes the student
partly discriminative. Either can be switched off; neither uses an adversarial example. With ``margin_eps`` the
cross-entropy is taken at the first-order worst logits instead (:mod:`rdc.first_order`): margins have to exceed what their
input gradient could take away.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.batches import uniform
from rdc.denoiser import ConditionalDenoiser
from rdc.errors import ConfigError
from rdc.first_order import check_margin, draw_rivals, worst_logits
from rdc.networks.heads import MultiHeadUNet, PatchUNet
from rdc.networks.presets import build_network
from rdc.objective import NoiseDistribution, noisy

__all__ = ["DistillationObjective", "student_from_teacher"]


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

    Raises:
        ConfigError: a setting is out of range, or ``margin_eps`` without ``posterior_weight``.
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
    ) -> None:
        check_margin(margin_eps, margin_norm)
        if margin_eps and not posterior_weight:
            raise ConfigError(
                "margin_eps: expected posterior_weight > 0 with it, it acts on the posterior's cross-entropy; got 0"
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
        self.precondition, self.num_classes = teacher.precondition, teacher.num_classes

    def __call__(
        self, net: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        sigma = self.noise.sample(len(x0), generator).to(x0.device)
        if self.margin_eps:
            x0 = x0.detach().requires_grad_()
        x_t, target = noisy(x0, sigma, generator, self.precondition)
        classes = self._choose(labels, generator)
        scaled = self.precondition.c_in(sigma).reshape(-1, 1, 1, 1) * x_t
        predicted = net(scaled.contiguous(memory_format=torch.channels_last), self.precondition.c_noise(sigma))
        error = (predicted[torch.arange(len(x0), device=x0.device), labels] - target).square().mean()
        values = {"denoising": error.detach()}
        total = x0.new_zeros(())
        if self.classes_per_image:
            distilled, differences = self._match(predicted, x_t, sigma, classes)
            total = total + distilled + self.difference_weight * differences
            values |= {"distilled": distilled.detach(), "differences": differences.detach()}
        if self.posterior_weight:
            unlabelled = (predicted[:, self.num_classes] - target).square().mean()
            loss = (predicted[:, : self.num_classes] - target[:, None]).square().flatten(2).sum(2)
            scale = self.posterior_scale * (self.precondition.c_out(sigma) / sigma) ** 2
            logits = -scale[:, None] * loss
            entropy, seen = self._posterior(logits, labels, x0, generator)
            total = total + error + unlabelled + self.posterior_weight * entropy
            values |= {"unlabelled": unlabelled.detach(), "posterior": entropy.detach()}
            values |= {"hits": (logits.argmax(1) == labels).float().mean(), **seen}
        return total, {"loss": total.detach(), **values}

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
