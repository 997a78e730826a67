"""The score-based generative classifier (SBGC): argmax_y of log p(x|y) + log p(y), with log p(x|y) by the probability-flow ODE.

Source: Zimmermann et al. 2021, arXiv 2110.00473. Theirs chooses its steps by an error estimate; this one has a fixed grid, so that it is a
differentiable function of the pixels whose cost is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rdc.arguments.scalars import shown
from rdc.contracts import BaseDefence, Component, Defence, GradientMode, NetworkUse, NoisePolicy
from rdc.errors import ConfigError
from rdc.execution.memory import items_that_fit, memory_budget
from rdc.execution.opaque import opaque_with, refuse_batches, transformed
from rdc.execution.surroundings import never_inference, refuse_inference_weights, undisturbed
from rdc.images.pixels import checked_pixels
from rdc.method.denoiser import Denoiser
from rdc.method.flow_gradient import SOLVER_GRADIENTS, density_gradient, step_bytes
from rdc.method.latents import refuse_latents
from rdc.method.likelihood import PROBE_STREAM, flow_log_density, row_bytes
from rdc.method.noise import NoisePlan
from rdc.method.posterior import log_posterior, log_prior, resolve_scale
from rdc.method.probability_flow import EXACT, FlowSettings, rademacher
from rdc.ops.packed_weights import share_budget

__all__ = ["SBGC_FLOW", "ScoreBasedClassifier"]

#: the shipped solver: half as many passes as of :class:`FlowSettings`' own, for attacks' sake (docs/likelihood.md has its accuracy)
SBGC_FLOW = FlowSettings(steps=3, solver="rk4", probes=1, sigma_min=0.05, sigma_max=20.0)


class ScoreBasedClassifier(BaseDefence):
    """argmax_y of the exact likelihood.

    Args:
        denoiser: class-conditional or multi-head; its weights are frozen, and it stays in evaluation mode.
        flow: how the ODE is solved; None: :data:`SBGC_FLOW`. The signs of Hutchinson's estimate are the defence's noise, shared by all
            classes and all images of a call: an attacker of fixed noise knows them.
        solver_gradient: "checkpoint", the gradient of what is computed; "adjoint", the continuous adjoint, which is not
            (:mod:`rdc.method.flow_gradient`).
        class_prior: K probabilities; None: uniform.
        logit_scale: "sum", "mean" or a number that log-likelihoods in nats are multiplied by; never changes the decision (but for a prior).
        memory_budget_mb: working memory of a call and its gradient, in MiB; None: as of ``DiffusionClassifier``.
        gradient, noise, noise_seed, class_names: as of :class:`rdc.contracts.BaseDefence`.

    Forward:
        pixels [N, C, H, W] in [0, 1] -> log p(y|x) [N, K]. Pixels are taken as they are, without dequantisation.

    Raises:
        ConfigError: unknown or inconsistent settings.
    """

    stochastic = True  # unless the divergence is exact, see `forward`
    head = "score-based"

    @never_inference
    def __init__(
        self,
        denoiser: Denoiser,
        flow: FlowSettings | None = None,
        *,
        solver_gradient: str = "checkpoint",
        class_prior: Sequence[float] | None = None,
        logit_scale: str | float = "sum",
        memory_budget_mb: float | None = None,
        class_names: Sequence[str] | None = None,
        gradient: str = GradientMode.EXACT,
        noise: str = NoisePolicy.FIXED,
        noise_seed: int = 0,
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise ConfigError(f"denoiser: expected a rdc.method.denoiser.Denoiser; got {shown(denoiser)}")
        if flow is not None and not isinstance(flow, FlowSettings):
            raise ConfigError(f"flow: expected rdc.method.probability_flow.FlowSettings or None; got {shown(flow)}")
        if not isinstance(solver_gradient, str) or solver_gradient not in SOLVER_GRADIENTS:
            raise ConfigError(
                f"solver_gradient: expected {' or '.join(SOLVER_GRADIENTS)}; got {shown(solver_gradient)}"
            )
        refuse_latents(denoiser, "score-based classifier")
        shape, count = denoiser.image_shape, denoiser.num_classes
        super().__init__(shape, count, class_names, gradient=gradient, noise=noise, noise_seed=noise_seed)
        refuse_inference_weights(denoiser)
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.flow = flow or SBGC_FLOW
        self.stochastic = self.flow.probes != EXACT
        self.solver_gradient, self.class_prior, self.logit_scale = solver_gradient, class_prior, logit_scale
        self.scale = resolve_scale(logit_scale, shape)
        self.memory_budget_mb = memory_budget(memory_budget_mb, self.device)
        share_budget(self.memory_budget_mb)
        self._log_prior = log_prior(class_prior, count)
        self._bytes: dict[Any, int] = {}

    # --- settings -------------------------------------------------------------------------------------------------
    def settings(self) -> dict[str, Any]:
        own = ("flow", "solver_gradient", "class_prior", "logit_scale", "memory_budget_mb", "class_names")
        return {**super().settings(), **{name: getattr(self, name) for name in own}}

    def _changed(self, settings: dict[str, Any]) -> ScoreBasedClassifier:
        made = ScoreBasedClassifier(self.denoiser, **settings)
        made._bytes = self._bytes
        return made

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values, for reports."""
        flow = {"name": "probability-flow ODE", **self.flow.describe(), "gradient": self.solver_gradient}
        return {**super().describe(), "flow": flow, "logit_scale": self.logit_scale}

    def parts(self) -> tuple[Component, ...]:
        """None: it is made of a network alone."""
        return ()

    def networks(self) -> tuple[NetworkUse, ...]:
        """The denoiser, asked for every class."""
        return (NetworkUse("classification", self.denoiser),)

    @property
    def evaluations_per_image(self) -> int:
        """Network passes for one decision, each with a vector-Jacobian product for every probe."""
        return self.num_classes * self.flow.evaluations

    def surrogates(self) -> dict[str, Defence]:
        """Stand-ins for a transfer attack: "fresh" (other signs)."""
        return {"fresh": self.with_(noise=NoisePolicy.FRESH, noise_seed=self.noise_seed + 1)} if self.stochastic else {}

    # --- the function ---------------------------------------------------------------------------------------------
    def forward(self, pixels: Tensor) -> Tensor:
        return log_posterior(-self.log_likelihoods(pixels), self.scale, self._log_prior)

    def log_likelihoods(self, pixels: Tensor) -> Tensor:
        """log p(x|y) [N, K] in nats of x = 2 pixels - 1, with one draw of the signs; differentiable as :meth:`forward` is."""
        pixels, draw = checked_pixels(pixels, self.image_shape), self._next_draw()

        def plain(pixels: Tensor) -> Tensor:
            return undisturbed(lambda pixels: self._of_every_class(2 * pixels - 1, draw), pixels, self.denoiser)

        return opaque_with(self.denoiser, plain, pixels) if transformed() else plain(pixels)

    def _of_every_class(self, x: Tensor, draw: int) -> Tensor:
        self.network_evaluations += len(x) * self.evaluations_per_image
        probes = None
        if self.flow.probes != EXACT:
            plan = NoisePlan(self.noise_seed, self.noise_policy, stream=PROBE_STREAM)
            probes = rademacher(plan, draw, int(self.flow.probes), self.image_shape).to(x)
        work = _Rows(self, probes, self._that_fit("rows", x), self._that_fit("steps", x))
        if x.requires_grad and torch.is_grad_enabled():
            found: Tensor = _Rebuilt.apply(x, work)  # type: ignore[no-untyped-call]
            return found
        return work.values(x)

    def _that_fit(self, what: str, x: Tensor) -> int:
        key = (what, self.flow, x.dtype, x.device)
        if key not in self._bytes:
            self._bytes[key] = (
                row_bytes(self.denoiser, x) if what == "rows" else step_bytes(self.denoiser, self.flow, x)
            )
        return items_that_fit(self.memory_budget_mb, self._bytes[key], x.device, "one class of one image")


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Pairs of image and class, ``most`` at a time without a graph and ``most_with_graph`` where a step is differentiated."""

    model: ScoreBasedClassifier
    probes: Tensor | None
    most: int
    most_with_graph: int

    def _density(self, x: Tensor, image: Tensor, label: Tensor) -> Tensor:
        return flow_log_density(self.model.denoiser, x[image], label, self.model.flow, self.probes)

    def values(self, x: Tensor) -> Tensor:
        """log p(x|y) [N, K]; where autograd is on and x wants a gradient, with a graph."""
        count = self.model.num_classes
        rows = torch.arange(len(x) * count, device=x.device)
        graph = x.requires_grad and torch.is_grad_enabled()
        parts = rows.split(self.most_with_graph if graph else self.most)
        found = [self._density(x, part // count, part % count) for part in parts]
        return torch.cat(found).view(len(x), count)

    def gradient(self, x: Tensor, upstream: Tensor) -> Tensor:
        """sum_k upstream_nk d log p(x_n|k) / dx_n over the pairs whose share is more than rounding; no graph."""
        share = upstream.abs()
        carries = ~(share <= share.amax(1, keepdim=True) * (torch.finfo(upstream.dtype).eps / 8))  # NaN carries, too
        images, classes = carries.nonzero(as_tuple=True)
        total = torch.zeros_like(x)
        if not len(images):
            return total
        for pick in torch.arange(len(images), device=x.device).split(self.most_with_graph):
            image, label = images[pick], classes[pick]
            operands = self.model.denoiser, x[image], label, self.model.flow, self.probes, upstream[image, label]
            total.index_add_(0, image, density_gradient(*operands, self.model.solver_gradient))
        return total


class _Rebuilt(torch.autograd.Function):
    """Log-likelihoods whose backward pass keeps nothing but the images; its derivative goes through the steps themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, work: _Rows) -> Tensor:
        ctx.work = work
        ctx.save_for_backward(x)
        return work.values(x.detach())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (x,), (amount,) = ctx.saved_tensors, upstream
        refuse_batches(amount)
        if not torch.is_grad_enabled():
            return ctx.work.gradient(x.detach(), amount), None
        x = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(ctx.work.values(x), x, amount, create_graph=True)[0], None
