"""Evaluation: clean and robust accuracy with intervals, resumable, one folder per run. Pages: ``rdc.reports``."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.contracts import Defence, NetworkUse
from rdc.data import Dataset
from rdc.defences import as_defence
from rdc.errors import ConfigError
from rdc.evaluation.answers import refuse_meaningless
from rdc.evaluation.batch import evaluate_batch
from rdc.evaluation.class_names import names_of_classes, names_that_differ
from rdc.evaluation.files import SCHEMA
from rdc.evaluation.folder import RunFolder
from rdc.evaluation.network_records import NetworkRecord
from rdc.evaluation.progress import ProgressBars, sanity_line
from rdc.evaluation.records import Identity, ImageRecord, RunRecord, SettingsRecord
from rdc.evaluation.report import Report
from rdc.evaluation.sanity import run_sanity
from rdc.evaluation.sanity_records import Sanity
from rdc.evaluation.settings import EvaluationSettings
from rdc.evaluation.smaller import Smaller
from rdc.evaluation.summary import summarize
from rdc.execution.processes import by_the_first, is_first_process, peers
from rdc.provenance.networks import described, described_networks
from rdc.provenance.run import commit, versions, weights_digest
from rdc.storage.json_records import ABSENT, JsonObject
from rdc.storage.sealed import digest_of
from rdc.terminal.progress import say_begin

__all__ = ["Evaluation", "chosen_images", "evaluate", "evaluate_part", "identity_of"]

_SANITY = -1  # among the numbers of batches: the sanity checks


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished run.

    ``report``, ``run`` and ``images`` are the JSON of report.json, run.json and results.jsonl, as plain dictionaries and lists;
    ``figures``, ``record`` and ``records`` are the same as frozen dataclasses.

    Args:
        figures: see ``summarize``.
        record: how the run came about.
        records: of the images, in order.
        x_adv: [n, C, H, W] float32, the adversarial images.
        clean_logits, adversarial_logits: [n, K] float32, means over draws.
        dataset: the n images.
        out: the folder.
        class_names: a name for each class of the model, see ``rdc.evaluation.class_names``.
        other_names: (the data set's name, the model's name) of classes that they call differently.
    """

    figures: Report
    record: RunRecord
    records: tuple[ImageRecord, ...]
    x_adv: np.ndarray
    clean_logits: np.ndarray
    adversarial_logits: np.ndarray
    dataset: Dataset
    out: Path
    class_names: tuple[str, ...]
    other_names: list[tuple[str, str]]

    @functools.cached_property
    def report(self) -> JsonObject:
        """report.json's content."""
        return self.figures.to_json()

    @functools.cached_property
    def run(self) -> JsonObject:
        """run.json's content."""
        return self.record.to_json()

    @functools.cached_property
    def images(self) -> list[JsonObject]:
        """Per-image records as results.jsonl has them, in order."""
        return [record.to_json() for record in self.records]

    @property
    def settings(self) -> JsonObject:
        """EvaluationSettings as JSON values."""
        settings: JsonObject = self.run["identity"]["settings"]
        return settings


def evaluate(
    classifier: Defence | Callable[[Tensor], Tensor],
    dataset: Dataset,
    settings: EvaluationSettings,
    out: str | os.PathLike[str],
    *,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    on_batch: Callable[[int, int], None] | None = None,
    smaller: Smaller | None = None,
) -> Evaluation:
    """Run, or continue, an evaluation; results go to ``out`` batch by batch.

    Under ``torchrun`` processes share the batches out, each taking the next that is free, those of a dead one included, and get the same
    finished run.

    Args:
        classifier: a defence, or what ``rdc.defences.as_defence`` makes one of: any callable pixels -> logits.
        dataset: images settings.start .. settings.start + settings.n - 1 of it are used.
        settings: what to do.
        out: folder of the run, see RunFolder. A killed run goes on where it stopped.
        command: the command line, for the report.
        overwrite: start afresh in a folder that holds results.
        progress: draw bars on stderr.
        on_batch: called after each finished batch with images finished and all images.
        smaller: what a smaller radius of the same norm left of the n images: it is submitted first, what it breaks is attacked no more,
            and attacks that take a start begin at the rest.

    Returns:
        The finished run; ``rdc.reports.write_reports(evaluation, classifier)`` writes the files.

    Raises:
        ConfigError: settings that do not fit the data or the model, or a folder of another command.
        DataError: the folder's files are damaged.
        InputError: the model's answers mean nothing, see ``rdc.evaluation.answers``.
    """
    classifier, images, start = _prepared(classifier, dataset, settings, command, smaller)
    with _opened(out, start, overwrite, images.indices.tolist()) as folder:
        _run(classifier, images, settings, folder, progress, on_batch, smaller, lambda batch: True)
        by_the_first(folder.gather)
        if not is_first_process():
            folder.reread()
        return _finished(folder, classifier, images, settings)


def evaluate_part(
    classifier: Defence | Callable[[Tensor], Tensor],
    dataset: Dataset,
    settings: EvaluationSettings,
    out: str | os.PathLike[str],
    mine: Callable[[int], bool],
    *,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    on_batch: Callable[[int, int], None] | None = None,
    smaller: Smaller | None = None,
) -> Smaller:
    """Run, or continue, some batches of an evaluation; ``rdc.evaluation.shards.merge_folders`` puts folders together.

    Args:
        classifier, dataset, settings, command, overwrite, progress, on_batch, smaller: see :func:`evaluate`; ``settings`` are of the
            whole run.
        out: folder of the part.
        mine: number of a batch -> whether it is of this part. Whoever has batch 0 makes the sanity checks.

    Returns:
        What it left, for a larger radius of the same norm: of batches that are not finished zeros, and no image that stands.
    """
    classifier, images, start = _prepared(classifier, dataset, settings, command, smaller)
    with _opened(out, start, overwrite, images.indices.tolist()) as folder:
        _run(classifier, images, settings, folder, progress, on_batch, smaller, mine)
        by_the_first(folder.gather)
        if not is_first_process():
            folder.reread()
        x_adv = np.zeros((settings.n, *classifier.image_shape), np.float32)
        standing = np.zeros(settings.n, bool)
        for batch in folder.batches:
            index = batch.totals.end_of_batch
            rows = _rows(index, settings)
            x_adv[rows] = folder.arrays(index)["x_adv"]
            standing[rows] = [record.standing for record in batch.images]
        return Smaller(str(settings.eps), digest_of(folder.run.identity.to_json()), x_adv, standing)


def _prepared(
    classifier: Defence | Callable[[Tensor], Tensor],
    dataset: Dataset,
    settings: EvaluationSettings,
    command: str | None,
    smaller: Smaller | None,
) -> tuple[Defence, Dataset, RunRecord]:
    """The defence, the images, and run.json of this start."""
    defence = as_defence(classifier, dataset.pixels(slice(0, 2)), class_names=dataset.class_names, name=settings.model)
    images = chosen_images(defence, dataset, settings)
    identity = identity_of(defence, images, settings, smaller)
    chosen = getattr(defence, "precision_choice", None) or ABSENT
    return defence, images, RunRecord(identity, command or "python", (commit(),), versions(defence.device), chosen)


def identity_of(
    classifier: Defence, images: Dataset, settings: EvaluationSettings, smaller: Smaller | None = None
) -> Identity:
    """What decides the figures of an evaluation of these images.

    Args:
        classifier: the defence.
        images: the n images that are evaluated.
        settings: of the evaluation.
        smaller: as of :func:`evaluate`.
    """
    return Identity(
        schema=SCHEMA,
        settings=SettingsRecord.from_json(settings.to_json(), "settings"),
        radius=settings.radius if settings.attacks else None,
        classifier={key: value for key, value in classifier.describe().items() if key != "gradient"},
        purifies=classifier.purifies,
        weights=weights_digest(classifier),
        networks=tuple(NetworkRecord.from_json(one, "networks") for one in _networks(classifier, settings)),
        images=_digest(images.images.numpy().tobytes() + images.labels.numpy().tobytes()),
        device=classifier.device.type,
        torch=torch.__version__,
        smaller=ABSENT if smaller is None else smaller.identity,
    )


def _networks(classifier: Defence, settings: EvaluationSettings) -> list[JsonObject]:
    """Those of the defence, and the one that the threat measures a distance by."""
    measuring = settings.threat.distance.network if settings.attacks and settings.norm == "lpips" else None
    if measuring is None:
        return described_networks(classifier)
    use = NetworkUse("perceptual distance", measuring.network)
    return [*described_networks(classifier), described(use, settings.lpips_model)]


def _finished(folder: RunFolder, classifier: Defence, images: Dataset, settings: EvaluationSettings) -> Evaluation:
    """What the folder of a finished run holds."""
    arrays = [folder.arrays(index) for index in range(len(folder.batches))]
    joined = {
        name: np.concatenate([part[name] for part in arrays])
        for name in ("x_adv", "clean_logits", "adversarial_logits")
    }
    refuse_meaningless(torch.from_numpy(joined["clean_logits"]), settings.model)
    records = tuple(record for batch in folder.batches for record in batch.images)
    report = summarize(folder.run, folder.batches, folder.sanity or Sanity())
    return Evaluation(
        report,
        folder.run,
        records,
        x_adv=joined["x_adv"],
        clean_logits=joined["clean_logits"],
        adversarial_logits=joined["adversarial_logits"],
        dataset=images,
        out=folder.path,
        class_names=names_of_classes(classifier, images),
        other_names=names_that_differ(classifier, images),
    )


def _opened(out: str | os.PathLike[str], start: RunRecord, overwrite: bool, ids: Sequence[int]) -> RunFolder:
    """The folder; the first process opens it before the others, and they only if it could."""
    sharing = peers()
    shard = (0, 1) if sharing is None else (sharing.rank, sharing.count)
    first = by_the_first(lambda: RunFolder(out, start, overwrite=overwrite, shard=shard, ids=ids))
    return first or RunFolder(out, start, shard=shard, ids=ids, alone=False)


def _sanity(classifier: Defence, images: Dataset, settings: EvaluationSettings, progress: bool) -> Sanity:
    part = slice(0, min(settings.sanity or 0, settings.n))
    if part.stop == 0:
        return Sanity()
    chosen = (images.pixels(part), images.labels[part], images.indices[part])
    with sanity_line(part.stop, enabled=progress) as step:
        return run_sanity(classifier, *chosen, settings, step)


def _run(
    classifier: Defence,
    images: Dataset,
    settings: EvaluationSettings,
    folder: RunFolder,
    progress: bool,
    on_batch: Callable[[int, int], None] | None,
    smaller: Smaller | None,
    mine: Callable[[int], bool],
) -> None:
    """The sanity checks and every batch that is to be done; of several processes each takes the next that is free."""
    progress, sharing = progress and is_first_process(), peers()
    every = [index for index in range(-(-settings.n // settings.batch)) if mine(index)]
    left = [index for index in every if not folder.has(index)]
    total = sum(len(range(settings.n)[_rows(index, settings)]) for index in every)
    before = finished = sum(len(batch.images) for batch in folder.batches)
    if not left:
        say_begin(folder.path, finished, total, "images", enabled=progress)
    unchecked = [_SANITY] * bool(settings.attacks and folder.sanity is None and mine(0))
    parts = [*unchecked, *left]
    bars: ProgressBars | None = None
    try:
        for index in parts if sharing is None else sharing.shared_out(parts):
            if index == _SANITY:
                folder.keep_sanity(_sanity(classifier, images, settings, progress))
                continue
            bars = bars or _begun(folder, settings, total, progress)
            part = _rows(index, settings)
            size = part.stop - part.start
            bars.begin(size)
            chosen = (images.pixels(part), images.labels[part], images.indices[part])
            more: dict[str, Any] = {} if smaller is None else {"smaller": smaller.part(part)}
            result = evaluate_batch(classifier, *chosen, settings, index, bars.step, **more)
            folder.append(index, result)
            finished = finished + size if sharing is None else before + sharing.add(str(folder.path), size)
            bars.end(size, _standing(result.images), finished)
            if on_batch is not None:
                on_batch(finished, total)
    finally:
        if bars is not None:
            bars.close()


def _rows(batch: int, settings: EvaluationSettings) -> slice:
    """The images of a batch, among those of the run."""
    return slice(batch * settings.batch, min((batch + 1) * settings.batch, settings.n))


def _begun(folder: RunFolder, settings: EvaluationSettings, total: int, progress: bool) -> ProgressBars:
    """The bars of a run that has something to do, where it stands now."""
    finished = sum(len(batch.images) for batch in folder.batches)
    standing = sum(_standing(batch.images) for batch in folder.batches)
    say_begin(folder.path, finished, total, "images", enabled=progress)
    names = [spec for _ in settings.policies for spec in settings.attacks]
    return ProgressBars(total, finished, standing, names, enabled=progress)


def _standing(records: Iterable[ImageRecord]) -> int:
    return sum(record.standing for record in records)


def chosen_images(classifier: Defence, dataset: Dataset, settings: EvaluationSettings) -> Dataset:
    """The images of a run.

    Raises:
        ConfigError: there are not as many, or the classifier does not know their shape or their labels.
    """
    if settings.start + settings.n > len(dataset):
        most = max(0, len(dataset) - settings.start)
        raise ConfigError(
            f"n: {settings.dataset}, {settings.split} split, has {len(dataset)} images; expected n <= {most} from "
            f"image {settings.start} on, got {settings.n}"
        )
    if tuple(dataset.image_shape) != tuple(classifier.image_shape):
        raise ConfigError(
            f"model {settings.model} takes images {list(classifier.image_shape)} (channels, height, width), "
            f"data set {settings.dataset} has {list(dataset.image_shape)}; choose a model trained on such images, or other data with --data"
        )
    chosen = dataset.subset(slice(settings.start, settings.start + settings.n))
    if int(chosen.labels.max()) >= classifier.num_classes:
        raise ConfigError(
            f"data set {settings.dataset} has label {int(chosen.labels.max())}, model {settings.model} knows "
            f"{classifier.num_classes} classes (0..{classifier.num_classes - 1})"
        )
    return chosen


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
