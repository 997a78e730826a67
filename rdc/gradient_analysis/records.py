"""What is measured of one model, as frozen dataclasses: ``to_json`` gives the JSON on disk, ``from_json`` reads and checks it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rdc.storage.json_records import Absent, JsonObject, JsonRecord, anything, entry
from rdc.storage.structure import flag, integer, mapping, number, optional, sequence, text

__all__ = [
    "AnalysedImage",
    "ComparedModel",
    "ComparisonReport",
    "Curves",
    "MarginSlice",
    "MeasureSummary",
    "Measures",
    "ModelIdentity",
    "ModelPart",
]

_NUMBER = optional(number())
_NUMBERS = sequence(_NUMBER)
_ENDS = optional(sequence(number(), 2, 2))
_COUNT = integer(0)
_TEXT = text()
_COMMIT = optional(_TEXT)


@dataclasses.dataclass(frozen=True)
class AnalysedImage(JsonRecord):
    """One image: position in the data set, classes, whether they agree, scale of its logits, scaled margin."""

    image: int = entry(_COUNT)
    label: int = entry(_COUNT)
    predicted: int = entry(_COUNT)
    right: bool = entry(flag())
    logit_scale: float = entry(number())
    margin: float | None = entry(_NUMBER)


@dataclasses.dataclass(frozen=True)
class MeasureSummary(JsonRecord):
    """A measure over images, see ``measures.summarize_images``; None where no image has it."""

    n: int = entry(_COUNT)
    undefined: int = entry(_COUNT)
    mean: float | None = entry(_NUMBER)
    median: float | None = entry(_NUMBER)
    q05: float | None = entry(_NUMBER)
    q25: float | None = entry(_NUMBER)
    q75: float | None = entry(_NUMBER)
    q95: float | None = entry(_NUMBER)
    min: float | None = entry(_NUMBER)
    max: float | None = entry(_NUMBER)
    mean_ci95: tuple[float, float] | None = entry(_ENDS)
    median_ci95: tuple[float, float] | None = entry(_ENDS)


@dataclasses.dataclass(frozen=True)
class MarginSlice(JsonRecord):
    """The scaled margin on a plane through one image, see ``landscape.margin_slice``."""

    image: int = entry(_COUNT)
    offsets: tuple[float, ...] = entry(sequence(number()))
    margin: tuple[list[float | None], ...] = entry(sequence(_NUMBERS))
    plane_fit: float | None = entry(_NUMBER)


@dataclasses.dataclass(frozen=True)
class Curves(JsonRecord):
    """Mean and quartiles over images at each step of an attack path."""

    mean: tuple[float | None, ...] = entry(_NUMBERS)
    q25: tuple[float | None, ...] = entry(_NUMBERS)
    q75: tuple[float | None, ...] = entry(_NUMBERS)


@dataclasses.dataclass(frozen=True)
class Measures(JsonRecord):
    """Every measure of one model, see ``analysis.analyze_model``."""

    classes: int = entry(integer(1))
    stochastic: bool = entry(flag())
    fixed_noise: bool = entry(flag())
    note: str = entry(_TEXT)
    jacobian_method: str = entry(_TEXT)
    accuracy: float = entry(number(0, 1))
    images: tuple[AnalysedImage, ...] = entry(of=AnalysedImage, many=True)
    summary: Mapping[str, MeasureSummary] = entry(of=MeasureSummary, keyed=True)
    per_image: Mapping[str, list[float | None]] = entry(mapping(_NUMBERS))
    slices: tuple[MarginSlice, ...] = entry(of=MarginSlice, many=True)
    path: Mapping[str, Curves] = entry(of=Curves, keyed=True)
    forward_evaluations: int = entry(_COUNT)
    gradient_evaluations: int = entry(_COUNT)
    seconds: float = entry(number(0))

    @property
    def of_one_number_of_images(self) -> bool:
        """Whether every measure is of as many images as there are."""
        lengths = {len(values) for values in self.per_image.values()}
        return not lengths - {len(self.images)} and len(self.slices) <= len(self.images)


@dataclasses.dataclass(frozen=True)
class ModelIdentity(JsonRecord):
    """What decides the figures of one model: its text, what it says of itself, digest of its weights, kind of device, PyTorch."""

    text: str = entry(_TEXT)
    classifier: JsonObject | None = entry(optional(mapping(anything)))
    weights: str | None | Absent = entry(absent=True)
    device: str | Absent = entry(absent=True)
    torch: str | Absent = entry(absent=True)


@dataclasses.dataclass(frozen=True)
class _PartHead(JsonRecord):
    """A part's own keys; the measures are further ones."""

    identity: ModelIdentity = entry(of=ModelIdentity)
    label: str = entry(_TEXT)
    commit: str | None = entry(_COMMIT)


@dataclasses.dataclass(frozen=True)
class ModelPart:
    """models/<name>.json: a finished model.

    Args:
        identity: what it was measured on.
        label: what tables call it.
        commit: of the source tree that measured it; None: unknown.
        measures: of it; in the JSON their keys stand beside the others.
    """

    identity: ModelIdentity
    label: str
    commit: str | None
    measures: Measures

    @classmethod
    def from_json(cls, value: object, where: str) -> ModelPart:
        """See :meth:`rdc.storage.json_records.JsonRecord.from_json`."""
        head = _PartHead.from_json(value, where)
        return cls(head.identity, head.label, head.commit, Measures.from_json(dict(head.further), where))

    def to_json(self) -> JsonObject:
        """See :meth:`rdc.storage.json_records.JsonRecord.to_json`."""
        return {**_PartHead(self.identity, self.label, self.commit).to_json(), **self.measures.to_json()}


@dataclasses.dataclass(frozen=True)
class _ComparedHead(JsonRecord):
    """A compared model's own keys; the measures are further ones."""

    label: str = entry(_TEXT)
    text: str = entry(_TEXT)
    classifier: JsonObject | None = entry(optional(mapping(anything)))
    commit: str | None = entry(_COMMIT)


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """One model of gradients.json.

    Args:
        label, text: what tables call it, and what names it on the command line.
        classifier: what it says of itself.
        commit: of the source tree that measured it; None: unknown.
        measures: of it; in the JSON their keys stand beside the others.
    """

    label: str
    text: str
    classifier: JsonObject | None
    commit: str | None
    measures: Measures

    @classmethod
    def from_json(cls, value: object, where: str) -> ComparedModel:
        """See :meth:`rdc.storage.json_records.JsonRecord.from_json`."""
        head = _ComparedHead.from_json(value, where)
        measures = Measures.from_json(dict(head.further), where)
        return cls(head.label, head.text, head.classifier, head.commit, measures)

    def to_json(self) -> JsonObject:
        """See :meth:`rdc.storage.json_records.JsonRecord.to_json`."""
        head = _ComparedHead(self.label, self.text, self.classifier, self.commit)
        return {**head.to_json(), **self.measures.to_json()}


@dataclasses.dataclass(frozen=True)
class ComparisonReport(JsonRecord):
    """gradients.json: how it was made, ``GradientSettings`` as JSON values, and the models in order."""

    schema: str = entry(_TEXT)
    command: str = entry(_TEXT)
    commit: str | None = entry(_COMMIT)
    versions: Mapping[str, str] = entry(mapping(_TEXT))
    settings: JsonObject = entry(mapping(anything))
    dataset: str = entry(_TEXT)
    class_names: tuple[str, ...] = entry(sequence(_TEXT))
    models: tuple[ComparedModel, ...] = entry(of=ComparedModel, many=True)
