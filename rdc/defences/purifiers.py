"""Purifiers: pixels -> pixels by a diffusion model. Likelihood maximisation, and DiffPure's forward-backward diffusion.

Both are deterministic functions of (pixels, draw), differentiable in the pixels, and keep memory bounded: rows are cut
into pieces that fit, and each step is rebuilt in the backward pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rdc.arguments.scalars import as_integer, as_number, shown
from rdc.arguments.seeds import checked_seed
from rdc.contracts import Component, NetworkUse, NoisePolicy
from rdc.errors import ConfigError
from rdc.execution.memory import bytes_per_item, device_of, items_that_fit, memory_budget
from rdc.execution.surroundings import measured, never_inference, refuse_inference_weights, undisturbed
from rdc.method.denoiser import Denoiser
from rdc.method.latents import refuse_latents
from rdc.method.likelihood_maximization import (
    LikelihoodMaximization,
    lm_evaluations,
    lm_penalty,
    maximize_likelihood,
    resolve_lm,
)
from rdc.method.lm_network import row_bytes_without_label
from rdc.method.lm_pieces import lm_pieces
from rdc.method.noise import NoisePlan
from rdc.method.working_memory import gradient_bytes
from rdc.ops.packed_weights import share_budget

__all__ = ["DiffusionPurifier", "LikelihoodPurifier", "Purifier"]

MOST_STEPS = 10_000  # of the reverse process; DiffPure takes 100 or fewer


class Purifier(Component):
    """Common part.

    Args:
        denoiser: its label-free prediction is used; weights are frozen, and it stays in evaluation mode.
        memory_budget_mb: working memory of a call, in MiB; None: 2048, or, where the denoiser lies on a CUDA device, half of the
            memory that is free there at this moment, if that is more.

    Call: ``(pixels [N, C, H, W] in [0, 1], draw) -> pixels``. Without a draw it takes its own: draw 0, or, where it is inside a defence
    or was given other settings by ``with_``, what these say. The caller's autocast and inference mode change nothing.
    """

    stochastic = True
    purifies = True
    head = "purifier"
    ROLE = "purification"  # what its network is for, in reports

    @never_inference
    def __init__(self, denoiser: Denoiser, memory_budget_mb: float | None = None) -> None:
        super().__init__()
        refuse_inference_weights(denoiser)
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.memory_budget_mb = memory_budget(memory_budget_mb, device_of(denoiser))
        share_budget(self.memory_budget_mb)
        self._bytes: dict[Any, int] = {}

    @property
    def evaluations(self) -> int:
        """Network passes for one image."""
        raise NotImplementedError

    @property
    def evaluations_per_image(self) -> int:
        """Network passes for one image."""
        return self.evaluations

    def parts(self) -> tuple[Component, ...]:
        """None: it is made of a network alone."""
        return ()

    def networks(self) -> tuple[NetworkUse, ...]:
        """The denoiser, asked without a label."""
        return (NetworkUse(self.ROLE, self.denoiser, label_free=True),)

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values."""
        raise NotImplementedError

    def penalty(self, pixels: Tensor, draw: int) -> Tensor | None:
        """What the purifier makes small, [N], differentiable; None if it minimises nothing."""
        return None

    def forward(self, pixels: Tensor, draw: int | None = None) -> Tensor:
        if draw is not None:
            return self._counted(pixels, draw)
        number = self.draw_number(self._next_draw())
        return self._through(lambda pixels: self._counted(pixels, number), pixels)

    def path(self, pixels: Tensor, draw: int) -> Tensor:
        """The images after each of its steps, [N, steps, C, H, W] pixels; the last is what a call with this draw gives."""
        self.network_evaluations += len(pixels) * self.evaluations
        return undisturbed(lambda pixels: self._along(pixels, draw), pixels, self.denoiser)

    @property
    def steps_of_path(self) -> int:
        """How many images :meth:`path` has."""
        raise NotImplementedError

    def draw_number(self, call: int) -> int:
        """Which of its draws a call takes: far apart for different noise seeds, so that redraws of two seeds do not meet."""
        return call + self.noise_seed * 2**20

    def _counted(self, pixels: Tensor, draw: int) -> Tensor:
        self.network_evaluations += len(pixels) * self.evaluations
        return undisturbed(lambda pixels: self._moved(pixels, draw), pixels, self.denoiser)

    def _moved(self, pixels: Tensor, draw: int) -> Tensor:
        x0 = 2 * pixels - 1
        return (torch.cat([self._purify(part, draw) for part in x0.split(self._images_that_fit(x0))]) + 1) / 2

    def _along(self, pixels: Tensor, draw: int) -> Tensor:
        x0 = 2 * pixels - 1
        return (torch.cat([self._path(part, draw) for part in x0.split(self._images_that_fit(x0))]) + 1) / 2

    def _images_that_fit(self, like: Tensor) -> int:
        return self._that_fit("images", like, self._image_bytes)

    def _that_fit(self, what: str, like: Tensor, measure: Callable[[Tensor], int]) -> int:
        """How many of something fit the memory budget; what one needs is measured once."""
        key = (what, like.dtype, like.device)
        if key not in self._bytes:
            self._bytes[key] = measure(like)
        return items_that_fit(self.memory_budget_mb, self._bytes[key], like.device, "one image")

    def _image_bytes(self, like: Tensor) -> int:
        """Peak bytes that one more image needs in the exact gradient."""
        raise NotImplementedError

    def _purify(self, x0: Tensor, draw: int) -> Tensor:
        raise NotImplementedError

    def _path(self, x0: Tensor, draw: int) -> Tensor:
        raise NotImplementedError


class LikelihoodPurifier(Purifier):
    """Likelihood maximisation as a purifier for any classifier (arXiv 2305.15241, section 3.3).

    Args:
        denoiser, memory_budget_mb: as of :class:`Purifier`.
        lm: settings or the name of a preset, see ``rdc.method.likelihood_maximization``.

    Raises:
        ConfigError: ``lm`` is none or unknown.
    """

    ROLE = "likelihood maximisation"

    def __init__(
        self, denoiser: Denoiser, lm: LikelihoodMaximization | str = "paper-v2", memory_budget_mb: float | None = None
    ) -> None:
        super().__init__(denoiser, memory_budget_mb)
        resolved = resolve_lm(lm)
        if resolved is None:
            raise ConfigError(f"lm: expected likelihood maximisation with at least one step; got {lm!r}")
        self.lm = resolved

    @property
    def evaluations(self) -> int:
        return lm_evaluations(self.lm)

    @property
    def steps_of_path(self) -> int:
        """Steps of likelihood maximisation."""
        return self.lm.steps

    def describe(self) -> dict[str, Any]:
        return self.lm.describe()

    def penalty(self, pixels: Tensor, draw: int) -> Tensor:
        def objective(pixels: Tensor) -> Tensor:
            pairs = self._that_fit("pairs", pixels, self._row_bytes)
            return lm_penalty(self.denoiser, 2 * pixels - 1, self.lm, draw, pairs)

        self.network_evaluations += len(pixels) * self.evaluations
        return undisturbed(objective, pixels, self.denoiser)

    def _row_bytes(self, like: Tensor) -> int:
        """Peak bytes of one image at one level; an unconditional network has no classes whose losses could stand for it."""
        measure = gradient_bytes if self.denoiser.num_classes else row_bytes_without_label
        return measure(self.denoiser, like)

    def _pieces(self, like: Tensor) -> tuple[int, int | None]:
        return lm_pieces(self.denoiser, self.lm, like, self.memory_budget_mb, self._bytes)

    def _images_that_fit(self, like: Tensor) -> int:
        return self._pieces(like)[0]

    def _purify(self, x0: Tensor, draw: int) -> Tensor:
        return maximize_likelihood(self.denoiser, x0, self.lm, draw, rows=self._pieces(x0)[1])

    def _path(self, x0: Tensor, draw: int) -> Tensor:
        rows = self._pieces(x0)[1]
        return maximize_likelihood(self.denoiser, x0, self.lm, draw, return_path=True, rows=rows)[:, 1:]


class DiffusionPurifier(Purifier):
    """DiffPure: noise the image to sigma*, then run the reverse diffusion to a clean image.

    The reverse process is discretised in EDM's variables. ``sde``: the posterior of each step (ancestral sampling, what
    Euler-Maruyama on the VP-SDE tends to); ``ode``: Euler steps of the probability-flow ODE. From s_i to s_{i+1}, with D the
    label-free denoiser and n standard normal noise:

        sde   x <- D + (s_{i+1} / s_i)^2 (x - D) + s_{i+1} sqrt(1 - (s_{i+1} / s_i)^2) n
        ode   x <- D + (s_{i+1} / s_i) (x - D)

    Args:
        denoiser, memory_budget_mb: as of :class:`Purifier`.
        sigma: sigma* in EDM units. DiffPure's t* = 0.1 of the VP-SDE (l_inf 8/255 on CIFAR-10) is sigma 0.34.
        steps: 1 to 10,000, of the reverse process, spaced evenly in ln sigma down to ``sigma_min``, the last one to 0.
        sigma_min: last level above 0.
        sampler: "sde" or "ode".
        seed: of its noise, any integer.

    Raises:
        ConfigError: a setting out of range.

    Source: Nie et al. 2022 (arXiv 2205.07460); Karras et al. 2022 (arXiv 2206.00364) for the variables.
    """

    ROLE = "purification (DiffPure)"

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma: float = 0.34,
        steps: int = 20,
        sigma_min: float = 0.02,
        sampler: str = "sde",
        seed: int = 2,
        memory_budget_mb: float | None = None,
    ) -> None:
        refuse_latents(denoiser, "diffpure")
        super().__init__(denoiser, memory_budget_mb)
        low, high, count = as_number(sigma_min), as_number(sigma), as_integer(steps)
        if low is None or high is None or not 0 < low < high < math.inf:
            raise ConfigError(
                f"sigma: expected 0 < sigma_min < sigma; got sigma_min {shown(sigma_min)}, sigma {shown(sigma)}"
            )
        if count is None or not 1 <= count <= MOST_STEPS:
            raise ConfigError(f"steps: expected an integer of 1 to {MOST_STEPS:,}; got {shown(steps)}")
        if not isinstance(sampler, str) or sampler not in ("sde", "ode"):
            raise ConfigError(f"sampler: expected sde or ode; got {shown(sampler)}")
        sigma, steps, sigma_min = high, count, low
        self.sigma, self.steps, self.sigma_min, self.sampler = sigma, steps, sigma_min, sampler
        self.seed = checked_seed(seed)
        between = [sigma * (sigma_min / sigma) ** (i / max(1, steps - 1)) for i in range(steps)]
        self.schedule: tuple[float, ...] = (*between, 0.0)

    @property
    def evaluations(self) -> int:
        return self.steps

    @property
    def steps_of_path(self) -> int:
        """Steps of the reverse process, each with the denoised image."""
        return self.steps

    def describe(self) -> dict[str, Any]:
        return {
            "name": "diffpure", "sigma": self.sigma, "steps": self.steps, "sigma_min": self.sigma_min,
            "sampler": self.sampler, "seed": self.seed,
        }  # fmt: skip

    def _image_bytes(self, like: Tensor) -> int:
        single = copy.copy(self)  # steps are rebuilt one at a time
        single.steps, single.schedule = 1, (self.sigma, 0.0)

        def work(count: int) -> Tensor:
            x = like.new_zeros(count, *self.denoiser.image_shape).requires_grad_()
            return torch.autograd.grad(single._purify(x, 0).sum(), x)[0]

        with measured():
            return bytes_per_item(work)

    def _purify(self, x0: Tensor, draw: int) -> Tensor:
        for _, x in self._reverse(x0, draw):
            purified = x
        return purified

    def _path(self, x0: Tensor, draw: int) -> Tensor:
        *before, (_, purified) = self._reverse(x0, draw)
        return torch.stack([*(clean for clean, _ in before), purified], dim=1)

    def _reverse(self, x0: Tensor, draw: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Of every step the denoised image D and where it goes."""
        plan = NoisePlan(self.seed, NoisePolicy.FRESH, stream=2)
        noise = plan.normal(draw, self.steps + 1, self.denoiser.image_shape).to(x0.device, x0.dtype)
        x = x0 + self.sigma * noise[0]

        def step(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
            now, after = self.schedule[i], self.schedule[i + 1]
            rows = x.new_full((len(x),), now)
            clean: Tensor = self.denoiser.precondition.denoised(
                self.denoiser.f_null(x, rows), x, rows.reshape(-1, 1, 1, 1)
            )
            ratio = after / now
            if self.sampler == "ode":
                return clean, clean + ratio * (x - clean)
            return clean, clean + ratio**2 * (x - clean) + after * math.sqrt(1 - ratio**2) * noise[i + 1]

        for i in range(self.steps):
            if x.requires_grad and torch.is_grad_enabled():
                clean, x = checkpoint(step, x, i, use_reentrant=False, preserve_rng_state=False)
            else:
                clean, x = step(x, i)
            yield clean, x
