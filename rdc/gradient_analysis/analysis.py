"""All measures of one model on some images, in chunks of bounded memory."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import SupportsFloat

import numpy as np
import torch
from torch import Tensor

from rdc.attacks.losses import Objective
from rdc.attacks.threat_model import check_images
from rdc.contracts import Defence, GradientMode, NoisePolicy
from rdc.defences import as_defence
from rdc.errors import ConfigError, InputError
from rdc.evaluation.answers import meaningless
from rdc.gradient_analysis.landscape import attack_path, margin_slice, slice_directions
from rdc.gradient_analysis.measures import (
    gradient_agreement,
    image_cosines,
    redraw_measures,
    size_measures,
    summarize_images,
)
from rdc.gradient_analysis.records import AnalysedImage, Curves, MarginSlice, Measures, MeasureSummary
from rdc.gradient_analysis.settings import GradientSettings
from rdc.gradient_analysis.slopes import Probe, dual_norm, jacobian_norms, local_lipschitz
from rdc.images.pixels import boxed
from rdc.storage.json_records import JsonObject

__all__ = ["STAGES", "analyze_model"]

#: parts of the work on a chunk of images, in order
STAGES = ("gradients", "redraws", "jacobian", "lipschitz linf", "lipschitz l2", "slices", "path", "bpda")
_MOST_BYTES = 8 * 2**30  # of gradients kept at once
MAX_COMPARED = 256  # images whose gradients are compared with one another

Progress = Callable[[str, int], None]


def analyze_model(
    model: Defence | Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    settings: GradientSettings,
    progress: Progress | None = None,
) -> JsonObject:
    """Every measure of one model. What is not said otherwise is measured with fixed noise.

    Args:
        model: a defence, whose noise is fixed or redrawn as a measure needs it; or what ``rdc.defences.as_defence`` makes one of:
            any callable pixels [n, C, H, W] in [0, 1] -> logits [n, K], each row depending on its own image only.
        pixels: [N, C, H, W] float32 in [0, 1], on any device.
        labels: [N] int64 true labels.
        ids: N integers >= 0, positions in the data set; they fix random points and directions, with the seed.
        settings: what to measure; n, start, split and dataset are not looked at.
        progress: called after each stage of a chunk with its name and the number of images.

    Returns:
        JSON values: ``classes``; ``stochastic``, ``fixed_noise`` (bools) and ``note``; ``jacobian_method``; ``accuracy``;
        ``images`` (position, label, predicted, logit_scale, margin); ``per_image`` (measure -> N values, None where
        undefined) and ``summary`` (measure -> ``summarize_images``), with the measures of docs/gradients.md; ``slices``;
        ``path`` (mean curves); ``forward_evaluations``, ``gradient_evaluations`` (images), ``seconds``.

    Raises:
        InputError: images, labels or the model's answers are not as above, or there is no gradient.
    """
    begun = time.monotonic()
    pixels = boxed(pixels)
    ids = check_images(pixels, labels, ids)
    work = _Work(as_defence(model, pixels[:2]), settings, progress or (lambda stage, images: None))
    work.look(pixels)
    for begin in range(0, len(pixels), settings.batch):
        part = slice(begin, begin + settings.batch)
        work.chunk(pixels[part], labels[part], ids[part])
    return work.result(time.monotonic() - begun).to_json()


class _Work:
    """The measures of the chunks so far."""

    def __init__(self, model: Defence, settings: GradientSettings, progress: Progress) -> None:
        self.settings, self.device, self.progress = settings, model.device, progress
        self.model = model
        self.fixed = model.with_(noise=NoisePolicy.FIXED)
        word = hashlib.sha256(f"rdc gradients {settings.seed}".encode()).digest()[:8]
        self.draw_seed = int.from_bytes(word, "little")
        self.twin = self.fixed.with_(gradient=model.gradient.other) if model.purifies else None
        self.stochastic, self.fixed_noise = False, True
        self.note, self.method, self.classes = "", "", 0
        self.count = [0, 0]
        self.images: list[AnalysedImage] = []
        self.columns: dict[str, list[float]] = {}
        self.kept: list[np.ndarray] = []
        self.slices: list[MarginSlice] = []
        self.curves: dict[str, list[np.ndarray]] = {"loss": [], "gain": [], "cosine": []}

    def _fresh(self) -> Defence:
        """The model whose draws start anew: every chunk meets the same ones."""
        return self.model.with_(noise=NoisePolicy.FRESH, noise_seed=self.draw_seed)

    def look(self, pixels: Tensor) -> None:
        """Does the model draw? Two draws of the same images tell."""
        few = pixels[:2].to(self.device)
        with torch.no_grad():
            fresh = self._fresh()
            self.fixed_noise = _same(_drawn(self.fixed, few, redraw=False), _drawn(self.fixed, few, redraw=False))
            self.stochastic = not (self.fixed_noise and _same(_drawn(fresh, few), _drawn(fresh, few)))
        if not self.stochastic:
            self.note = "deterministic: two draws gave the same logits, so there is nothing to compare over redraws"
        elif not self.fixed_noise:
            self.note = (
                "its noise cannot be fixed: every measure includes it, and differences of calls are partly noise"
            )

    def chunk(self, pixels: Tensor, labels: Tensor, ids: list[int]) -> None:
        """Measure n images."""
        x, y = pixels.to(self.device), labels.to(self.device)
        scale = self._begin(x, y, ids)
        redraw = None if self.fixed_noise else self.fixed.redraw
        probe = Probe(self.fixed, y, scale, redraw, self.count)
        _, gradient, _ = probe.gradient(x)
        flat = gradient.flatten(1).cpu().numpy()
        if sum(map(len, self.kept)) < MAX_COMPARED:
            self.kept.append(flat.astype(np.float32))
        self._add("gradient", size_measures(flat[None]))
        self.progress("gradients", len(x))
        self._redraws(x, y, scale, flat)
        jacobian = jacobian_norms(probe, x, self.classes)
        self.method = jacobian.pop("method")
        self._add("jacobian", {name: value.cpu().numpy() for name, value in jacobian.items()})
        self.progress("jacobian", len(x))
        self._lipschitz(probe, x, ids)
        self._slices(probe, x, gradient, ids)
        self._path(probe, x)
        self._bpda(x, y, scale, flat)

    def _begin(self, x: Tensor, y: Tensor, ids: list[int]) -> Tensor:
        """Classify; returns the logit scale [n]."""
        seen: list[Tensor] = []

        def watched(pixels: Tensor) -> Tensor:
            seen.append(self.fixed(pixels))
            return seen[-1]

        objective = Objective(watched, "margin", logit_scale=self.settings.logit_scale)
        correct, _, scale = objective.start(x, y)  # also checks the answer's type and shape
        logits = seen[0].detach().double()
        wrong = meaningless(logits) if not self.images and (len(x) > 1 or self.settings.n == 1) else None
        if wrong is not None:
            raise InputError(f"{wrong}. Check the weights, the noise levels and the precision")
        self.count[0] += len(x)
        self.classes = logits.shape[1]
        margins = Probe(lambda _: logits, y, scale).margin(x)
        for row, image in enumerate(ids):
            self.images.append(
                AnalysedImage(
                    image=image,
                    label=int(y[row]),
                    predicted=int(logits[row].argmax()),
                    right=bool(correct[row]),
                    logit_scale=float(scale[row]),
                    margin=_number(margins[row]),
                )
            )
        return scale

    def _redraws(self, x: Tensor, y: Tensor, scale: Tensor, fixed: np.ndarray) -> None:
        draws = self.settings.draws
        if self.stochastic and draws:
            size = 8 * draws * fixed.size
            if size > _MOST_BYTES:
                raise ConfigError(
                    f"draws: {draws:,} gradients of {len(x)} images take {size / 2**30:,.0f} GiB; expected at most "
                    f"{_MOST_BYTES / 2**30:.0f} GiB. Lower --draws or --batch"
                )
            fresh = self._fresh()
            probe = Probe(fresh, y, scale, fresh.redraw, self.count)
            stack = np.stack([probe.gradient(x)[1].flatten(1).cpu().numpy() for _ in range(draws)])
            found = redraw_measures(stack)
            if self.fixed_noise:
                found["cosine_fixed_to_mean"] = gradient_agreement(fixed, stack.mean(0))["cosine"]
            self._add("redraws", found)
        self.progress("redraws", len(x))

    def _lipschitz(self, probe: Probe, x: Tensor, ids: list[int]) -> None:
        settings = self.settings
        _, slope, logits = probe.gradient(x, "margin")
        clean = np.abs([record.margin or math.nan for record in self.images[-len(x) :]])
        for norm in ("linf", "l2"):
            eps = settings.radius(norm)
            found = local_lipschitz(
                probe,
                x,
                ids,
                norm,
                eps,
                samples=settings.samples,
                ascent_steps=settings.ascent_steps,
                seed=settings.seed,
            )
            columns = {name: value.cpu().numpy() for name, value in found.items()}
            columns["margin_at_image"] = dual_norm(slope, norm).cpu().numpy()
            best = np.fmax(columns["margin_sampled"], columns["margin_ascent"])
            columns["reach"] = eps * best / clean
            self._add(f"lipschitz_{norm}", columns)
            self.progress(f"lipschitz {norm}", len(x))

    def _slices(self, probe: Probe, x: Tensor, gradient: Tensor, ids: list[int]) -> None:
        settings, eps = self.settings, self.settings.radius(self.settings.norm)
        fits = np.full(len(x), np.nan)
        for row in range(min(len(x), settings.slices - len(self.slices))):
            finite = torch.where(gradient[row].isfinite(), gradient[row], 0.0)
            directions = slice_directions(finite, settings.norm, seed=settings.seed, image_id=ids[row])
            one = slice(row, row + 1)
            found = margin_slice(probe.rows(one), x[one], directions, eps, grid=settings.grid, batch=settings.batch)
            fits[row] = found["plane_fit"]
            margins = tuple([_number(value) for value in line] for line in found["margin"])
            self.slices.append(MarginSlice(ids[row], tuple(found["offsets"]), margins, _number(fits[row])))
        if settings.slices:
            self._add("slice", {"plane_fit": fits})
        self.progress("slices", len(x))

    def _path(self, probe: Probe, x: Tensor) -> None:
        settings = self.settings
        if settings.steps:
            measures, curves = attack_path(probe, x, settings.norm, settings.radius(settings.norm), settings.steps)
            self._add("path", measures)
            for name, values in curves.items():
                self.curves[name].append(values)
        self.progress("path", len(x))

    def _bpda(self, x: Tensor, y: Tensor, scale: Tensor, flat: np.ndarray) -> None:
        """Exact gradient through the purification (LM, say) against BPDA, whichever of them the model is set to."""
        if self.twin is not None:
            value = Probe(self.twin, y, scale, None, self.count).gradient(x)[1].flatten(1).cpu().numpy()
            exact, bpda = (flat, value) if self.twin.gradient == GradientMode.BPDA else (value, flat)
            self._add("bpda", gradient_agreement(exact, bpda))
        self.progress("bpda", len(x))

    def _add(self, group: str, columns: dict[str, np.ndarray]) -> None:
        for name, values in columns.items():
            self.columns.setdefault(f"{group}.{name}", []).extend(float(value) for value in values)

    def result(self, seconds: float) -> Measures:
        """Close: compare images, summarise."""
        gradients = np.concatenate(self.kept)[:MAX_COMPARED]
        missing = [np.nan] * (len(self.images) - len(gradients))
        for name, values in image_cosines(gradients).items():
            self.columns[f"images.{name}"] = [*map(float, values), *missing]
        order = sorted(self.columns, key=lambda name: _GROUPS.index(name.split(".")[0]))
        columns = {name: self.columns[name] for name in order if _measured(name, self.settings, self.method)}
        measured = {"slice": self.settings.slices, "images": MAX_COMPARED}  # of the first ones only
        summary = {
            name: MeasureSummary.from_json(
                summarize_images(
                    np.array(values[: measured.get(name.split(".")[0], len(values))]),
                    seed=self.settings.seed,
                    name=name,
                ),
                name,
            )
            for name, values in columns.items()
        }
        return Measures(
            classes=self.classes,
            stochastic=self.stochastic,
            fixed_noise=self.fixed_noise,
            note=self.note,
            jacobian_method=self.method,
            accuracy=sum(record.right for record in self.images) / len(self.images),
            images=tuple(self.images),
            summary=summary,
            per_image={name: [_number(value) for value in values] for name, values in columns.items()},
            slices=tuple(self.slices),
            path={name: _mean_curve(parts) for name, parts in self.curves.items() if parts},
            forward_evaluations=self.count[0],
            gradient_evaluations=self.count[1],
            seconds=seconds,
        )


_GROUPS = ("gradient", "redraws", "images", "jacobian", "lipschitz_linf", "lipschitz_l2", "slice", "path", "bpda")


def _measured(name: str, settings: GradientSettings, method: str) -> bool:
    """Whether settings and method measure this at all; what they do stays, also if undefined on every image."""
    group, _, measure = name.partition(".")
    if group == "jacobian":
        return measure == "l2" or method == "rows"
    if group.startswith("lipschitz"):
        needs = {"margin_at_image": 1, "reach": settings.samples + settings.ascent_steps}
        return bool(needs.get(measure, settings.samples if measure.endswith("_sampled") else settings.ascent_steps))
    return True


def _drawn(model: Defence, x: Tensor, redraw: bool = True) -> Tensor:
    if redraw:
        model.redraw()
    return model(x)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal answers."""
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _number(value: SupportsFloat) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _mean_curve(parts: list[np.ndarray]) -> Curves:
    """Mean and quartiles over images at each step, of [n, S] parts."""
    table = np.concatenate(parts)
    table = np.where(np.isfinite(table), table, np.nan)
    found: dict[str, list[float | None]] = {"mean": [], "q25": [], "q75": []}
    for column in table.T:
        known = column[~np.isnan(column)]
        found["mean"].append(float(known.mean()) if len(known) else None)
        for key, place in (("q25", 25), ("q75", 75)):
            found[key].append(float(np.percentile(known, place)) if len(known) else None)
    return Curves(tuple(found["mean"]), tuple(found["q25"]), tuple(found["q75"]))
