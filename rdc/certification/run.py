"""Certify images of a data set: resumable, sharded over processes, one folder per run."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rdc.arguments.seeds import word
from rdc.certification.attack import attack_image
from rdc.certification.folder import SCHEMA, CertificationFolder
from rdc.certification.noised import base_classifier
from rdc.certification.records import CertifiedImage, Identity, RunRecord
from rdc.certification.report import certified_plot, markdown, summarize
from rdc.certification.settings import CertificationSettings
from rdc.certification.smoothing import NoisyVotes, certify_image
from rdc.contracts import Defence
from rdc.data import Dataset
from rdc.defences import as_defence
from rdc.errors import ConfigError
from rdc.execution.processes import by_the_first, is_first_process, peers
from rdc.provenance.run import commit, versions, weights_digest
from rdc.storage.files import atomic_write
from rdc.storage.json_files import write_json
from rdc.storage.json_records import JsonObject
from rdc.terminal.progress import bar, say_begin

__all__ = ["Certification", "certify"]


@dataclasses.dataclass(frozen=True, eq=False)
class Certification:
    """A finished run.

    Args:
        report: report.json's content.
        images: of each image, in order.
        out: the folder.
    """

    report: JsonObject
    images: tuple[CertifiedImage, ...]
    out: Path


def certify(
    classifier: Defence | Callable[..., Any],
    dataset: Dataset,
    settings: CertificationSettings,
    out: str | os.PathLike[str],
    *,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    on_image: Callable[[int, int], None] | None = None,
) -> Certification:
    """Certify, or go on certifying, by randomised smoothing. The same arguments give the same results, bit for bit, killed or not.

    Args:
        classifier: a defence, or any callable pixels [N, C, H, W] in [0, 1] -> logits [N, K].
        dataset: images settings.start .. settings.start + settings.n_images - 1 of it are used.
        settings: what to do.
        out: folder of the run; made if missing. Under ``torchrun`` each process takes the next image that is free, those of a dead one
            included.
        command: the command line, for the report.
        overwrite: start afresh in a folder that holds results.
        progress: draw a bar on stderr.
        on_image: called after each image with (finished, all) of all processes.

    Returns:
        Certification; report.json, report.md and certified.png are in the folder.

    Raises:
        ConfigError: settings that do not fit model or data, or a folder of another command or in use.
        DataError: the folder's files are damaged.
    """
    classifier = as_defence(
        classifier, dataset.pixels(slice(0, 2)), class_names=dataset.class_names, name=settings.model
    )
    images = _chosen(classifier, dataset, settings)
    base = base_classifier(classifier, settings.sigma, settings.method, settings.noised_levels)
    start = RunRecord(
        Identity(
            schema=SCHEMA,
            settings=settings.to_json(),
            base=base.describe(),
            weights=weights_digest(classifier),
            images=hashlib.sha256(images.images.numpy().tobytes() + images.labels.numpy().tobytes()).hexdigest()[:16],
            device=classifier.device.type,
            torch=torch.__version__,
        ),
        command or "python",
        (commit(),),
        versions(classifier.device),
    )
    votes = NoisyVotes(
        base, settings.sigma, seed=word(settings.seed), fresh=settings.noise == "fresh", batch=settings.batch
    )
    with _opened(out, start, overwrite) as folder:
        _run(votes, images, settings, folder, progress and is_first_process(), on_image)
        by_the_first(folder.gather)
        if not is_first_process():
            folder.reread()
        found = tuple(folder.images[position] for position in sorted(folder.images))
        report = summarize(folder.run, found, settings.largest_radius)
        by_the_first(lambda: _write(folder.path, report, found))
    return Certification(report, found, Path(out))


def _run(
    votes: NoisyVotes,
    images: Dataset,
    settings: CertificationSettings,
    folder: CertificationFolder,
    progress: bool,
    on_image: Callable[[int, int], None] | None,
) -> None:
    """Every image that is to be done; of several processes each takes the next that is free."""
    assert images.indices is not None
    positions, sharing = [int(position) for position in images.indices], peers()
    left = [row for row, position in enumerate(positions) if position not in folder.images]
    before = done = len(positions) - len(left)
    say_begin(folder.path, done, len(positions), "images", enabled=progress)
    with bar(
        total=len(positions),
        initial=done,
        desc="certify",
        unit="image",
        enabled=progress and bool(left),
        smoothing=0.1,
    ) as line:
        for row in left if sharing is None else sharing.shared_out(left):
            folder.append(_certified(votes, images, row, positions[row], settings))
            finished = done + 1 if sharing is None else min(before + sharing.add(str(folder.path), 1), len(positions))
            line.update(finished - done)
            done = finished
            right = sum(image.right for image in folder.images.values())
            line.set_postfix_str(f"{100 * right / len(folder.images):.1f} % right", refresh=False)
            if on_image is not None:
                on_image(done, len(positions))


def _certified(
    votes: NoisyVotes, images: Dataset, row: int, position: int, settings: CertificationSettings
) -> CertifiedImage:
    pixels, label = images.pixels([row])[0], int(images.labels[row])
    votes.network_evaluations = 0
    found = certify_image(votes, pixels, position, n0=settings.n0, n=settings.n, alpha=settings.alpha)
    passes = votes.network_evaluations
    attacks = attack_image(
        votes, pixels, label, position, selected=found.selected, radii=settings.attack_radii, steps=settings.attack_steps,
        draws=settings.attack_draws, judges=settings.attack_votes,
    ) if settings.attack_radii else ()  # fmt: skip
    return CertifiedImage(
        image=position,
        label=label,
        **dataclasses.asdict(found),
        right=not found.abstained and found.selected == label,
        network_evaluations=passes,
        attacks=attacks,
    )


def _chosen(classifier: Defence, dataset: Dataset, settings: CertificationSettings) -> Dataset:
    last = settings.start + settings.n_images
    if last > len(dataset):
        raise ConfigError(
            f"n_images: {settings.dataset}, {settings.split} split, has {len(dataset)} images; expected n_images <= "
            f"{max(0, len(dataset) - settings.start)} from image {settings.start} on, got {settings.n_images}"
        )
    if tuple(dataset.image_shape) != tuple(classifier.image_shape):
        raise ConfigError(
            f"model {settings.model} takes images {list(classifier.image_shape)} (channels, height, width), data set "
            f"{settings.dataset} has {list(dataset.image_shape)}; choose a model trained on such images, or other data with --data"
        )
    chosen = dataset.subset(slice(settings.start, last))
    if int(chosen.labels.max()) >= classifier.num_classes:
        raise ConfigError(
            f"data set {settings.dataset} has label {int(chosen.labels.max())}, model {settings.model} knows "
            f"{classifier.num_classes} classes (0..{classifier.num_classes - 1})"
        )
    return chosen


def _write(path: Path, report: JsonObject, images: tuple[CertifiedImage, ...]) -> None:
    write_json(path / "report.json", report)
    with atomic_write(path / "report.md", "w") as text:
        text.write(markdown(report))
    with atomic_write(path / "certified.png") as picture:
        picture.write(certified_plot([(report["settings"]["method"], images)]))


def _opened(out: str | os.PathLike[str], start: RunRecord, overwrite: bool) -> CertificationFolder:
    """The folder; the first process opens it before the others, and they only if it could."""
    sharing = peers()
    shard = (0, 1) if sharing is None else (sharing.rank, sharing.count)
    first = by_the_first(lambda: CertificationFolder(out, start, overwrite=overwrite, shard=shard))
    return first or CertificationFolder(out, start, shard=shard, alone=False)
