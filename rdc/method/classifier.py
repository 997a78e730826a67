"""The classifier: pixels in, log-probabilities out.

    DC(x)  = Bayes' rule on the class losses of x                        (``lm=None``)
    RDC(x) = DC(LM(x)), first uphill in likelihood, then classified      (arXiv 2305.15241)

An ordinary ``nn.Module``: [0, 1] NCHW -> [N, K], so that any attack library takes it as it is.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rdc.arguments.scalars import shown
from rdc.contracts import BaseDefence, Component, Defence, GradientMode, NetworkUse, NoisePolicy, PurificationPath
from rdc.errors import ConfigError
from rdc.execution.memory import items_that_fit, memory_budget, tensor_bytes
from rdc.execution.opaque import opaque_with, transformed
from rdc.execution.surroundings import never_inference, refuse_inference_weights, undisturbed
from rdc.images.pixels import checked_pixels
from rdc.method.class_gradients import in_pieces, joined
from rdc.method.denoiser import Denoiser
from rdc.method.draw import Draw
from rdc.method.latents import encoded, encoding_bytes
from rdc.method.levels import LEVEL_PRESETS, NoiseLevels, parse_levels
from rdc.method.likelihood_maximization import (
    LikelihoodMaximization,
    lm_evaluations,
    lm_penalty,
    maximize_likelihood,
    resolve_lm,
)
from rdc.method.lm_move import lm_surrogates
from rdc.method.lm_network import about_lm_network, checked_lm_denoiser, row_bytes_without_label
from rdc.method.lm_path import classifier_path, lm_path
from rdc.method.lm_pieces import lm_pieces
from rdc.method.noise import NoisePlan
from rdc.method.posterior import log_posterior, log_prior, resolve_scale
from rdc.method.working_memory import gradient_bytes
from rdc.ops.packed_weights import share_budget

__all__ = ["DiffusionClassifier"]


class DiffusionClassifier(BaseDefence):
    """(Robust) diffusion classifier.

    Args:
        denoiser: conditional or multi-head network under EDM preconditioning. Its weights are frozen, and it stays in evaluation
            mode: ``train()`` does not reach it.
        levels: noise levels, a preset name or ``scheme:count:min:max:weighting``.
        lm: likelihood maximisation before classification: preset name, settings, or None for the plain DC.
        gradient: "exact": through everything, LM included; "bpda": LM's Jacobian is taken as the identity.
        noise: "fixed": a deterministic function of the pixels; "fresh": another draw in every call.
        noise_seed: seed of the draws, any integer.
        logit_scale: "sum", "mean" or a number; sets how peaked the probabilities are, never the decision.
        class_prior: K probabilities; None: uniform.
        memory_budget_mb: working memory of a call and its gradient, in MiB; larger batches are cut into pieces, recomputed in
            the backward pass. Resident memory keeps it within a tenth (:mod:`rdc.execution.memory`), but for the batch itself and what is
            made of it; one image at one level is the least, and a warning says when it does not fit. None: 2048, or, where
            the denoiser lies on a CUDA device, half of the memory that is free there at this moment, if that is more.
            :meth:`settings` and :meth:`with_` have the number that came of it.
        class_names: K different names; None: "0", "1", ...
        lm_denoiser: another network that likelihood maximisation moves the input by, unconditional or with a null label; None: the
            classifier's own. As ``denoiser``: same images, device and type; ``precision`` and the memory budget hold for both, whose
            working sets follow each other (the larger one counts), their weights beside them.
        precision: what the network computes in: "float32", or "bfloat16" (1.06 times as many attack steps a
            second on an H200; slower on a CPU with AVX512-bf16: docs/benchmarks.md). Squared errors and sums keep the type of the pixels.

    Forward:
        pixels [N, C, H, W] float in [0, 1] -> log p(y|x) [N, K] (logsumexp over classes is 0), differentiable in pixels. The
        caller's ``torch.autocast`` and ``torch.inference_mode`` change nothing.

    Raises:
        InputError: pixels of another type, shape or range.
        ConfigError: unknown or inconsistent settings.
    """

    @never_inference
    def __init__(
        self,
        denoiser: Denoiser,
        levels: NoiseLevels | str,
        *,
        lm: LikelihoodMaximization | str | None = None,
        gradient: str = GradientMode.EXACT,
        noise: str = NoisePolicy.FIXED,
        noise_seed: int = 0,
        logit_scale: str | float = "sum",
        class_prior: Sequence[float] | None = None,
        memory_budget_mb: float | None = None,
        class_names: Sequence[str] | None = None,
        precision: str = "float32",
        lm_denoiser: Denoiser | None = None,
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise ConfigError(
                f"denoiser: expected a rdc.method.denoiser.Denoiser (make_denoiser gives one); got {shown(denoiser)}"
            )
        shape, count = denoiser.image_shape, denoiser.num_classes
        super().__init__(shape, count, class_names, gradient=gradient, noise=noise, noise_seed=noise_seed)
        refuse_inference_weights(denoiser)
        self.denoiser = denoiser.eval().requires_grad_(False).in_precision(precision)
        self.lm_denoiser = checked_lm_denoiser(lm_denoiser, denoiser, precision)
        self.levels = _levels(levels)
        self.lm = resolve_lm(lm)
        self.scale = resolve_scale(logit_scale, denoiser.image_shape)
        self.logit_scale = logit_scale if isinstance(logit_scale, (str, int, float)) else self.scale
        self.class_prior = class_prior
        self.memory_budget_mb = memory_budget(memory_budget_mb, self.device)
        share_budget(self.memory_budget_mb)
        self._log_prior = log_prior(class_prior, self.num_classes)
        self._bytes: dict[Any, int] = {}  # of one image at one level, or of one image in a step of LM
        self._cache: dict[tuple[Any, ...], Draw] = {}

    # --- settings -------------------------------------------------------------------------------------------------
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that would make this classifier again from its denoiser."""
        return {
            "levels": self.levels,
            "lm": self.lm,
            **super().settings(),
            "logit_scale": self.logit_scale,
            "class_prior": self.class_prior,
            "memory_budget_mb": self.memory_budget_mb,
            "class_names": self.class_names,
            "precision": self.denoiser.precision,
            "lm_denoiser": self.lm_denoiser,
        }

    def _changed(self, settings: dict[str, Any]) -> DiffusionClassifier:
        made = DiffusionClassifier(self.denoiser, **settings)
        if made.denoiser is self.denoiser and made.lm_denoiser is self.lm_denoiser:
            made._bytes = self._bytes
        if made.denoiser.precision == self.denoiser.precision:
            made.precision_choice = self.precision_choice
        return made

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values, for reports."""
        return {
            **super().describe(),
            "levels": {"sigma": list(self.levels.sigma), "weight": list(self.levels.weight), **self.levels.describe()},
            "weighting": self.levels.weighting,
            "lm": None if self.lm is None else self.lm.describe(),
            "logit_scale": self.logit_scale,
            "precision": self.denoiser.precision,
            **self.denoiser.describe(),
            **about_lm_network(self.lm, self.lm_denoiser),
        }

    @property
    def moved_by(self) -> Denoiser:
        """The denoiser that likelihood maximisation asks: ``lm_denoiser``, or the classifier's own."""
        return self.denoiser if self.lm_denoiser is None else self.lm_denoiser

    @property
    def head(self) -> str:  # type: ignore[override]  # of a defence it can only be read, as here
        """The kind of head of the denoiser."""
        return self.denoiser.head

    @property
    def noise(self) -> NoisePlan:
        """The family of draws that the noise settings stand for."""
        return NoisePlan(self.noise_seed, self.noise_policy)

    def parts(self) -> tuple[Component, ...]:
        """None: it is made of networks alone."""
        return ()

    def networks(self) -> tuple[NetworkUse, ...]:
        """The denoiser, and that of likelihood maximisation where it is another."""
        if self.lm is None:
            return (NetworkUse("classification", self.denoiser),)
        if self.lm_denoiser is None:
            return (NetworkUse("classification and likelihood maximisation", self.denoiser, label_free=True),)
        moves = NetworkUse("likelihood maximisation", self.lm_denoiser, label_free=True)
        return NetworkUse("classification", self.denoiser), moves

    @property
    def evaluations_per_image(self) -> int:
        """Network passes for one decision about one image."""
        return len(self.levels) * self.denoiser.passes_per_level + lm_evaluations(self.lm)

    # --- the function ---------------------------------------------------------------------------------------------
    def forward(self, pixels: Tensor) -> Tensor:
        loss = self.class_losses(pixels)
        return log_posterior(loss, self.scale, self._log_prior)

    def class_losses(self, pixels: Tensor) -> Tensor:
        """Weighted class losses [N, K] of pixels [N, C, H, W] in [0, 1], after LM if there is any."""
        pixels, draw = checked_pixels(pixels, self.image_shape), self._next_draw()
        return self._undisturbed(lambda pixels: self._class_losses(pixels, draw), pixels)

    def losses_per_level(self, pixels: Tensor) -> Tensor:
        """Unweighted class losses [N, T, K], in the order of ``levels.sigma``."""
        pixels, draw = checked_pixels(pixels, self.image_shape), self._next_draw()
        return self._undisturbed(lambda pixels: self._losses_per_level(pixels, draw), pixels)

    def maximize_likelihood(self, pixels: Tensor, *, return_path: bool = False) -> Tensor:
        """LM alone: the input itself when there is no LM.

        Args:
            pixels: [N, C, H, W] in [0, 1].
            return_path: every step in place of the last, without gradient, for :func:`rdc.plots.plot_likelihood_path`.

        Returns:
            Pixels [N, C, H, W]; with ``return_path`` [N, steps + 1, C, H, W], from the input to the same last image.
        """
        pixels, draw = checked_pixels(pixels, self.image_shape), self._draw
        if return_path:
            return self._undisturbed(lambda pixels: self._path(pixels, draw), pixels.detach())
        if self.lm is None:
            return pixels
        return self._undisturbed(lambda pixels: (self._uphill(2 * pixels - 1, draw) + 1) / 2, pixels)

    def purify(self, pixels: Tensor) -> Tensor:
        """:meth:`maximize_likelihood`, by the name that every defence has."""
        return self.maximize_likelihood(pixels)

    # --- what adaptive attacks ask for ----------------------------------------------------------------------------
    stochastic = True  # the noise policy changes what is computed

    @property
    def purifies(self) -> bool:
        """Whether the input is changed first, so that the exact gradient and BPDA differ."""
        return self.lm is not None

    has_levels = True  # losses_per_level

    @property
    def purification_length(self) -> int:
        """Steps of LM."""
        return 0 if self.lm is None else self.lm.steps

    def purification_path(self, pixels: Tensor) -> PurificationPath:
        """A call with the images after each step of LM."""
        return classifier_path(self, pixels)

    @property
    def has_penalty(self) -> bool:
        """Whether :meth:`penalty` can be asked for."""
        return self.lm is not None

    def _lm_number(self, draw: int) -> int:
        """Which of LM's draws call ``draw`` takes: under fresh noise two seeds share none, as of the classifier's own."""
        return draw + self.noise_seed * 2**20 if self.noise_policy == NoisePolicy.FRESH else draw

    def penalty(self, pixels: Tensor) -> Tensor:
        """Likelihood maximisation's own objective [N] at pixels [N, C, H, W], over its own draws; differentiable.

        Raises:
            ConfigError: there is no likelihood maximisation.
        """
        if self.lm is None:
            raise ConfigError('penalty: expected likelihood maximisation, e.g. lm="paper-v2"; this classifier has none')
        pixels, draw, lm = checked_pixels(pixels, self.image_shape), self._lm_number(self._draw), self.lm

        def objective(pixels: Tensor) -> Tensor:
            x0 = 2 * pixels - 1
            self.network_evaluations += len(x0) * lm_evaluations(lm)
            return lm_penalty(self.moved_by, x0, lm, draw, self._rows_without_label(x0))

        return self._undisturbed(objective, pixels)

    def surrogates(self) -> dict[str, Defence]:
        """Stand-ins for a transfer attack: "plain" (no LM), "fresh" (other noise), those of ``lm_move.lm_surrogates``."""
        found: dict[str, Defence] = {"plain": self.with_(lm=None)} if self.lm is not None else {}
        if self.lm is not None:
            found |= {name: self.with_(lm=other) for name, other in lm_surrogates(self.lm).items()}
        found["fresh"] = self.with_(noise=NoisePolicy.FRESH, noise_seed=self.noise_seed + 1)
        return found

    # --- parts ----------------------------------------------------------------------------------------------------
    def _undisturbed(self, function: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        # a list of two holds their weights where they are, so that functional_call reaches them
        networks = self.denoiser if self.lm_denoiser is None else nn.ModuleList([self.denoiser, self.lm_denoiser])

        def plain(pixels: Tensor) -> Tensor:
            return undisturbed(function, pixels, networks)

        return opaque_with(networks, plain, pixels) if transformed() else plain(pixels)

    def _class_losses(self, pixels: Tensor, draw: int) -> Tensor:
        x0 = self.encoded(self._uphill(2 * pixels - 1, draw))
        return self._losses(x0, self.drawn(draw, x0))

    def _losses_per_level(self, pixels: Tensor, draw: int) -> Tensor:
        x0 = self.encoded(self._uphill(2 * pixels - 1, draw))
        drawn = self.drawn(draw, x0)
        unweighted = dataclasses.replace(drawn, weight=torch.ones_like(drawn.weight))
        return torch.stack([self._losses(x0, unweighted[t : t + 1]) for t in range(len(drawn))], dim=1)

    def _uphill(self, x0: Tensor, draw: int) -> Tensor:
        lm, draw = self.lm, self._lm_number(draw)
        if lm is None:
            return x0
        self.network_evaluations += len(x0) * lm_evaluations(lm)
        size, rows = self._lm_pieces(x0)

        def uphill(start: Tensor) -> Tensor:
            parts = (maximize_likelihood(self.moved_by, part, lm, draw, rows=rows) for part in start.split(size))
            moved = joined(parts, len(start))
            # under BPDA rounded as a step from the start, as every figure of docs/ was made: the last bit differs from EXACT's
            return moved if self.gradient == GradientMode.EXACT else start + (moved - start)

        return self._through(uphill, x0)

    def _lm_pieces(self, like: Tensor) -> tuple[int, int | None]:
        """Images, and levels of a step, whose LM fits the memory budget; measured once."""
        assert self.lm is not None
        return lm_pieces(self.moved_by, self.lm, like, self.memory_budget_mb, self._bytes)

    def _path(self, pixels: Tensor, draw: int) -> Tensor:
        """Every image of LM, [N, steps + 1, C, H, W] pixels in [0, 1]."""
        return pixels[:, None] if self.lm is None else (lm_path(self, 2 * pixels - 1, draw) + 1) / 2

    def drawn(self, number: int, like: Tensor) -> Draw:
        """Levels, weights and noise of draw ``number``, in the type and on the device of ``like``; the last one is kept."""
        key = (number, like.device, like.dtype)
        if key not in self._cache:
            levels = self.levels.tensors(like.device, like.dtype)
            drawn = self.noise.draw(number, *levels, self.denoiser.noise_shape, self.levels.noise)
            self._cache = {key: drawn.to(like)}
        return self._cache[key]

    def encoded(self, x0: Tensor) -> Tensor:
        """What the denoiser noises, of images in [-1, 1]; a few images at a time where an encoder would not fit the memory budget."""
        if self.denoiser.latent_shape == self.image_shape:
            return x0
        key = ("encode", x0.dtype, x0.device)
        if key not in self._bytes:
            self._bytes[key] = encoding_bytes(self.denoiser, x0)
        return encoded(
            self.denoiser, x0, items_that_fit(self.memory_budget_mb, self._bytes[key], x0.device, "encoding one image")
        )

    def _losses(self, x0: Tensor, draw: Draw) -> Tensor:
        """Class losses [N, K], in pieces where they would not fit the memory budget together."""
        self.network_evaluations += len(x0) * len(draw) * self.denoiser.passes_per_level
        pairs = self.pairs_that_fit(x0)
        rows, room = self.rows_that_fit(x0, pairs), tensor_bytes(self.memory_budget_mb, x0.device)
        return in_pieces(self.denoiser, x0, draw, pairs, rows, room)

    def _rows_without_label(self, like: Tensor) -> int:
        """Images at one level whose label-free loss and gradient fit the budget."""
        if self.lm_denoiser is None:
            return self.pairs_that_fit(like)
        key = ("without label", like.dtype, like.device)
        if key not in self._bytes:
            self._bytes[key] = row_bytes_without_label(self.lm_denoiser, like)
        return items_that_fit(self.memory_budget_mb, self._bytes[key], like.device, "one image at one level")

    def pairs_that_fit(self, like: Tensor) -> int:
        """Pairs of image and level, all classes, whose losses and gradient fit the budget, at least 1; measured once."""
        passes = self.denoiser.passes_per_level
        what = "one image at one level" if passes == 1 else "one image at one level under one label"
        rows = items_that_fit(self.memory_budget_mb, self._pair_bytes(like) // passes, like.device, what)
        return max(1, rows // passes)

    def rows_that_fit(self, like: Tensor, pairs: int | None = None) -> int:
        """Passes of the network whose gradient fits: with one for every class, fewer than K where one pair is too much."""
        pairs = self.pairs_that_fit(like) if pairs is None else pairs
        passes = self.denoiser.passes_per_level
        if pairs > 1 or passes == 1:
            return pairs * passes
        fits = tensor_bytes(self.memory_budget_mb, like.device) / (self._pair_bytes(like) // passes)
        return min(passes, max(1, int(fits)))

    def _pair_bytes(self, like: Tensor) -> int:
        key = (like.dtype, like.device)
        if key not in self._bytes:
            self._bytes[key] = gradient_bytes(self.denoiser, like)
        return self._bytes[key]


def _levels(levels: NoiseLevels | str) -> NoiseLevels:
    if isinstance(levels, NoiseLevels):
        return levels
    if isinstance(levels, (str, os.PathLike)):
        return parse_levels(levels)
    raise ConfigError(
        f"levels: expected NoiseLevels, a preset ({', '.join(LEVEL_PRESETS)}), scheme:count:sigma_min:sigma_max:weighting such as "
        f"log:8:0.8:4:flat, or a JSON file; got {shown(levels)}"
    )
