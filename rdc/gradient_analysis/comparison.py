"""Several models beside each other, in one folder (``folder.py``) that a killed run goes on in.

A part is used again when the model's text, settings, weights, device and PyTorch are the same, and refused when they are not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rdc.contracts import Defence
from rdc.data import Dataset
from rdc.defences import as_defence
from rdc.errors import ConfigError, InputError
from rdc.gradient_analysis.analysis import STAGES, analyze_model
from rdc.gradient_analysis.folder import SCHEMA, ComparisonFolder
from rdc.gradient_analysis.records import ComparedModel, ComparisonReport, Measures, ModelIdentity, ModelPart
from rdc.gradient_analysis.settings import GradientSettings
from rdc.provenance.networks import notable_networks
from rdc.provenance.run import commit, versions, weights_digest
from rdc.storage.json_files import write_json
from rdc.storage.json_records import JsonObject
from rdc.storage.run_folder import as_written
from rdc.terminal.progress import bar, say_begin

__all__ = ["SCHEMA", "NamedModel", "compare_models"]


@dataclasses.dataclass(frozen=True, eq=False)
class NamedModel:
    """A model of the comparison.

    Args:
        label: what tables and plots call it; unique.
        text: what names it on the command line; decides, with its settings and weights, whether a part is used again.
        model: see ``analyze_model``.
    """

    label: str
    text: str
    model: Defence | Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class _NamedDefence(NamedModel):
    model: Defence

    @classmethod
    def of(cls, named: NamedModel, dataset: Dataset) -> _NamedDefence:
        example = dataset.pixels(slice(0, 2))
        made = as_defence(named.model, example, class_names=dataset.class_names, name=named.text)
        return cls(named.label, named.text, made)


def compare_models(
    models: Sequence[NamedModel],
    dataset: Dataset,
    settings: GradientSettings,
    out: str | os.PathLike[str],
    *,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    on_model: Callable[[int, int], None] | None = None,
) -> JsonObject:
    """Analyse, or go on analysing, models one after another; a model's measures are kept as soon as they are there.

    Args:
        models: at least one.
        dataset: images settings.start .. settings.start + settings.n - 1 of it are used.
        settings: what to measure.
        out: folder of the run; made if missing.
        command: the command line, for the report.
        overwrite: start afresh in a folder that holds results.
        progress: draw a bar on stderr.
        on_model: called after each model with finished models and all models.

    Returns:
        The report, gradients.json's content, which has been written: ``schema``, ``command``, ``commit``, ``versions``,
        ``settings``, ``dataset``, and ``models``: for each ``label``, ``text``, ``classifier`` (its settings),
        ``commit`` (of its measures) and what ``analyze_model`` returns.

    Raises:
        ConfigError: settings that do not fit the data or a model, two equal labels, or a folder of another command or in use.
        DataError: a part is damaged.
        InputError: a model's answers mean nothing, or it has no gradient.
    """
    _check_names(models)
    defences = [_NamedDefence.of(named, dataset) for named in models]
    images = _chosen(defences, dataset, settings)
    content = images.images.numpy().tobytes() + images.labels.numpy().tobytes()
    shared = {"schema": SCHEMA, "settings": settings.to_json(), "images": hashlib.sha256(content).hexdigest()[:16]}
    with ComparisonFolder(out, shared, overwrite) as folder:
        source = commit()
        parts = _parts(defences, images, settings, folder, source, progress, on_model)
        report = ComparisonReport(
            schema=SCHEMA,
            command=command or "python",
            commit=source,
            versions=versions(defences[0].model.device),
            settings=settings.to_json(),
            dataset=images.name,
            class_names=tuple(images.class_names),
            models=tuple(_entry(named, part) for named, part in zip(defences, parts, strict=True)),
        ).to_json()
        write_json(folder.path / "gradients.json", report)
        return report


def _parts(
    models: Sequence[_NamedDefence],
    images: Dataset,
    settings: GradientSettings,
    folder: ComparisonFolder,
    source: str | None,
    progress: bool,
    on_model: Callable[[int, int], None] | None,
) -> list[ModelPart]:
    """The measures of every model, kept as soon as they are there."""
    kept = [folder.load(named.label, named.text, _identity(named)) for named in models]
    done = sum(part is not None for part in kept)
    say_begin(folder.path, done, len(models), "models", enabled=progress)
    bar, parts = _bar(len(models), settings, progress and done < len(models)), []
    try:
        for number, (named, part) in enumerate(zip(models, kept, strict=True), 1):
            bar.begin(named.label)
            if part is None:
                found = _analyze(named, images, settings, bar)
                part = ModelPart(_identity(named), named.label, source, Measures.from_json(found, named.label))
                folder.save(named.label, named.text, part)
            parts.append(part)
            bar.end(number)
            if on_model is not None:
                on_model(number, len(models))
    finally:
        bar.close()
    return parts


def _check_names(models: Sequence[NamedModel]) -> None:
    if not models:
        raise ConfigError("models: expected at least one")
    labels = [named.label for named in models]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ConfigError(f"models: two are called {twice!r}; name them apart with @label=...")


def _entry(named: _NamedDefence, part: ModelPart) -> ComparedModel:
    return ComparedModel(named.label, named.text, part.identity.classifier, part.commit, part.measures)


def _analyze(named: _NamedDefence, images: Dataset, settings: GradientSettings, bar: _Bar) -> JsonObject:
    pixels, labels = images.pixels(slice(0, len(images))), images.labels.long()
    try:
        return analyze_model(named.model, pixels, labels, images.indices.tolist(), settings, bar.step)
    except InputError as error:
        raise InputError(f"model {named.text}: {error}") from error


def _chosen(models: Sequence[_NamedDefence], dataset: Dataset, settings: GradientSettings) -> Dataset:
    if settings.start + settings.n > len(dataset):
        most = max(0, len(dataset) - settings.start)
        raise ConfigError(
            f"n: {settings.dataset}, {settings.split} split, has {len(dataset)} images; expected n <= {most} from image "
            f"{settings.start} on, got {settings.n}"
        )
    chosen = dataset.subset(slice(settings.start, settings.start + settings.n))
    for named in models:
        if tuple(named.model.image_shape) != tuple(dataset.image_shape):
            raise ConfigError(
                f"model {named.text} takes images {list(named.model.image_shape)} (channels, height, width), data set {settings.dataset} "
                f"has {list(dataset.image_shape)}; choose a model trained on such images, or other data with --data"
            )
        classes = named.model.num_classes
        if int(chosen.labels.max()) >= classes:
            raise ConfigError(
                f"data set {settings.dataset} has label {int(chosen.labels.max())}, model {named.text} knows {classes} "
                f"classes (0..{classes - 1})"
            )
    return chosen


def _identity(named: _NamedDefence) -> ModelIdentity:
    """What decides the figures of one model, apart from the shared settings."""
    model, networks = named.model, notable_networks(named.model)
    found = {
        "text": named.text,
        "classifier": {**model.describe(), **({"networks": networks} if networks else {})},
        "weights": weights_digest(model),
        "device": model.device.type,
        "torch": torch.__version__,
    }
    return ModelIdentity.from_json(as_written(found), "identity")


class _Bar:
    """One bar on stderr; a unit is one stage of one image."""

    def __init__(self, models: int, per_model: int, enabled: bool) -> None:
        self._models, self._per_model, self._label = models, per_model, ""
        self.bar = bar(
            total=models * per_model,
            enabled=enabled,
            dynamic_ncols=True,
            bar_format="gradients {percentage:3.0f}%|{bar:20}| {desc}[{elapsed}, {remaining} left]",
        )
        self._number = 0

    def begin(self, label: str) -> None:
        self._label, self._number = label, self._number + 1
        self._show("")

    def step(self, stage: str, images: int) -> None:
        following = STAGES[(STAGES.index(stage) + 1) % len(STAGES)]
        self._show(following)
        self.bar.update(images)

    def end(self, number: int) -> None:
        self.bar.update(max(0, number * self._per_model - self.bar.n))

    def close(self) -> None:
        self.bar.set_description_str("", refresh=False)
        self.bar.close()

    def _show(self, stage: str) -> None:
        text = f"model {self._number} of {self._models}, {self._label}{f': {stage}' if stage else ''} "
        self.bar.set_description_str(text, refresh=False)


def _bar(models: int, settings: GradientSettings, enabled: bool) -> _Bar:
    return _Bar(models, settings.n * len(STAGES), enabled)
