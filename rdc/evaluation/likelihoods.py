"""Exact likelihoods and their bounds over a data set: a resumable run and its report (docs/likelihood.md)."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.data import Dataset
from rdc.errors import ConfigError
from rdc.evaluation.likelihood_folder import SCHEMA, ImageLikelihood, LikelihoodFolder, LikelihoodRun
from rdc.method.classifier import DiffusionClassifier
from rdc.method.likelihood import LikelihoodSettings, bits_per_dimension, dequantised, elbo, log_likelihood
from rdc.provenance.run import commit, versions, weights_digest
from rdc.statistics import bootstrap_interval, wilson_interval
from rdc.storage.json_files import write_json
from rdc.storage.json_records import JsonObject
from rdc.terminal.progress import bar, say_begin

__all__ = ["likelihoods", "report_of"]


def likelihoods(
    classifier: DiffusionClassifier,
    dataset: Dataset,
    settings: LikelihoodSettings,
    out: str | os.PathLike[str],
    *,
    model: str = "model",
    n: int | None = None,
    start: int = 0,
    batch: int = 8,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    on_batch: Callable[[int, int], None] | None = None,
) -> JsonObject:
    """log p(x|y) and ELBO of every class for images of a data set; goes on where a killed run stopped.

    Image number i of the split takes draw i of probes, noise and dequantisation, so that no figure depends on batches.

    Args:
        classifier: whose denoiser it is; its own decisions are kept for comparison.
        dataset: 8-bit images.
        settings: of the ODE and the ELBO.
        out: folder of the run, see :class:`LikelihoodFolder`.
        model: what the report calls it.
        n: images, from ``start`` on; None: all.
        start: position of the first.
        batch: images worked on together, and what is lost at most when the process is killed.
        command: the command line, for the report.
        overwrite: start afresh in a folder that holds results.
        progress: draw a bar on stderr.
        on_batch: called after each batch with images finished and all images.

    Returns:
        The report, as it is in report.json: see :func:`report_of`.

    Raises:
        ConfigError: settings that do not fit data or model; a folder of another command.
        DataError: the folder's files are damaged.
    """
    chosen = _chosen(classifier, dataset, model, len(dataset) - start if n is None else n, start)
    if batch < 1:
        raise ConfigError(f"batch: expected an integer >= 1; got {batch}")
    run = _described(classifier, chosen, settings, model, start, command)
    places = list(zip(_positions(chosen).tolist(), chosen.labels.tolist(), strict=True))
    with LikelihoodFolder(out, run, places, overwrite) as folder:
        done = len(folder.records)
        say_begin(folder.path, done, len(chosen), "images", enabled=progress)
        with bar(total=len(chosen), initial=done, unit=" images", enabled=progress and done < len(chosen)) as line:
            for begin in range(done, len(chosen), batch):
                part = chosen.subset(slice(begin, min(begin + batch, len(chosen))))
                folder.append(_records(classifier, part, settings))
                line.update(len(part))
                if on_batch is not None:
                    on_batch(len(folder.records), len(chosen))
        report = report_of(folder.run, folder.records, math.prod(classifier.image_shape), classifier.class_names)
        write_json(folder.path / "report.json", report)
    return report


def _described(
    classifier: DiffusionClassifier,
    chosen: Dataset,
    settings: LikelihoodSettings,
    model: str,
    start: int,
    command: str | None,
) -> LikelihoodRun:
    """What run.json says of this run."""
    identity = {
        "schema": SCHEMA, "model": model, "dataset": chosen.name, "split": chosen.split, "n": len(chosen), "start": start,
        "settings": settings.describe(), "classifier": classifier.describe(), "weights": weights_digest(classifier),
        "images": hashlib.sha256(chosen.images.numpy().tobytes() + chosen.labels.numpy().tobytes()).hexdigest()[:16],
        "device": classifier.device.type, "torch": torch.__version__,
    }  # fmt: skip
    versions_here = versions(classifier.device)
    return LikelihoodRun(
        schema=SCHEMA, identity=identity, command=command or "python", commits=(commit(),), versions=versions_here
    )


def _positions(dataset: Dataset) -> Tensor:
    assert dataset.indices is not None  # arange(N) where none were given
    return dataset.indices


def _chosen(classifier: Any, dataset: Dataset, model: str, n: int, start: int) -> Dataset:
    if not isinstance(classifier, DiffusionClassifier):
        raise ConfigError(
            f"model {model}: expected a diffusion classifier; got {type(classifier).__name__}, which has no density"
        )
    if n < 1 or start < 0 or start + n > len(dataset):
        raise ConfigError(f"n: expected 1 to {max(0, len(dataset) - start)} images from image {start} on; got {n}")
    if tuple(dataset.image_shape) != tuple(classifier.image_shape):
        raise ConfigError(
            f"model {model} takes images {list(classifier.image_shape)}, the data set has {list(dataset.image_shape)}; choose a "
            "model trained on such images, or other data with --data"
        )
    chosen = dataset.subset(slice(start, start + n))
    if int(chosen.labels.max()) >= classifier.num_classes:
        raise ConfigError(
            f"the data set has label {int(chosen.labels.max())}, model {model} knows {classifier.num_classes} classes"
        )
    return chosen


def _records(classifier: DiffusionClassifier, part: Dataset, settings: LikelihoodSettings) -> list[ImageLikelihood]:
    begin = time.perf_counter()
    draws = _positions(part).tolist()
    x = dequantised(part.images, settings.seed, draws).to(classifier.device)
    budget = {"memory_budget_mb": classifier.memory_budget_mb}
    exact = log_likelihood(classifier.denoiser, x, settings, draws, **budget)
    bound = elbo(classifier.denoiser, x, settings, draws, **budget)
    with torch.no_grad():
        logits = classifier(part.pixels(slice(0, len(part))).to(classifier.device))
    seconds = round((time.perf_counter() - begin) / len(part), 3)
    rows = zip(draws, part.labels.tolist(), exact.tolist(), bound.tolist(), logits.tolist(), strict=True)
    return [
        ImageLikelihood(image=image, label=label, log_likelihood=a, elbo=b, logits=c, seconds=seconds)
        for image, label, a, b, c in rows
    ]


def report_of(
    run: LikelihoodRun, records: Sequence[ImageLikelihood], size: int, class_names: Sequence[str]
) -> JsonObject:
    """The figures of a run.

    Args:
        run: run.json.
        records: of all images.
        size: d, pixels times channels of an image.
        class_names: K.

    Returns:
        JSON values: ``bits_per_dimension`` of the right class by the ODE and by the ELBO, and their ``gap``, means over images with
        bootstrap intervals; ``gap_of_class``, the same of every class as a hypothesis for all images; ``decisions`` by ODE, ELBO and
        the classifier itself, and where they differ, with Wilson intervals.
    """
    label = np.array([record.label for record in records])
    exact = np.array([record.log_likelihood for record in records])
    bound = np.array([record.elbo for record in records])
    own = np.array([record.logits for record in records])
    bits = {"ode": _bits(exact, size), "elbo": _bits(bound, size)}
    gap, rows = bits["elbo"] - bits["ode"], np.arange(len(label))
    decided = {"ode": exact.argmax(1), "elbo": bound.argmax(1), "classifier": own.argmax(1)}
    pairs = (("ode", "elbo"), ("ode", "classifier"), ("elbo", "classifier"))
    seconds = sum(record.seconds for record in records)
    return {
        "schema": SCHEMA,
        **{key: run.identity[key] for key in ("model", "dataset", "split", "n", "start", "settings")},
        "prior": "N(0, (sigma_max^2 + sigma_data^2) I)",
        "dequantisation": "uniform: (k + u) / 256",
        "bits_per_dimension": {name: _mean(found[rows, label]) for name, found in bits.items()},
        "gap": _mean(gap[rows, label]),
        "gap_of_class": {name: _mean(gap[:, place]) for place, name in enumerate(class_names)},
        "gap_spread_over_classes": _mean(gap.std(1, ddof=1)) if gap.shape[1] > 1 else None,
        "decisions": {name: _share(found == label) for name, found in decided.items()},
        "differ": {f"{a} and {b}": _share(decided[a] != decided[b]) for a, b in pairs},
        "seconds": round(seconds, 3),
        "command": run.command,
        "commit": ", ".join(map(str, run.commits)) if run.commits != (None,) else None,
        "versions": run.versions,
    }


def _bits(nats: np.ndarray, size: int) -> np.ndarray:
    return bits_per_dimension(torch.from_numpy(nats), size).numpy()


def _mean(values: np.ndarray) -> dict[str, Any]:
    """Mean, 95 % bootstrap interval, and standard deviation over images."""
    if not np.isfinite(values).all():
        return {"mean": None, "ci95": None, "sd": None}
    found = bootstrap_interval(values)
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(found.mean[0]), "ci95": [float(found.low[0]), float(found.high[0])], "sd": sd}


def _share(right: np.ndarray) -> dict[str, Any]:
    count, n = int(right.sum()), len(right)
    return {"share": count / n, "count": count, "ci95": list(wilson_interval(count, n))}
