"""The files of an evaluation's folder, read with checks: run.json, sanity.json, the lines of results.jsonl, a batch's arrays.

Whoever reads a folder checks first: checksums where there are any (folders since schema 3), and structure always.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rdc.errors import ConfigError, DataError
from rdc.evaluation.records import AttackKey, BatchTotals, ImageRecord, RunRecord, SettingsRecord
from rdc.evaluation.sanity_records import Sanity
from rdc.models.precision import PrecisionChoice
from rdc.storage.json_records import ABSENT, JsonObject, given
from rdc.storage.reading import read_content, reading
from rdc.storage.sealed import read_sealed, seal_line

__all__ = [
    "OLDEST_SCHEMA",
    "SCHEMA",
    "Batch",
    "arrays_digest",
    "arrays_path",
    "batch_lines",
    "expected_images",
    "is_ours",
    "is_results",
    "read_arrays",
    "read_batch",
    "precision_chosen_before",
    "read_run_file",
    "read_sanity",
    "results_name",
]

SCHEMA = 3  #: of the folder; since 3 every file of it says whether it was damaged
OLDEST_SCHEMA = 2  #: that is still read, and brought up to date when it is continued
_AGAIN = "use --overwrite to start afresh, or another folder"
_NAMES = ("x_adv", "clean_logits", "adversarial_logits")
_EXPANSION = 1200  # zip's deflate makes at most about a thousand times of a file
_RESULTS = re.compile(r"results(\.\d+-of-\d+)?\.jsonl")


@dataclasses.dataclass(frozen=True)
class Batch:
    """A finished batch: its images, in order, and the record that closes it."""

    images: tuple[ImageRecord, ...]
    totals: BatchTotals


def read_run_file(path: Path) -> RunRecord:
    """run.json.

    Raises:
        ConfigError: of a schema that is not read any more, or not yet.
        DataError: missing or damaged.
    """
    run, sealed = read_sealed(path, advice=_AGAIN)
    identity = run.get("identity")
    schema = identity.get("schema") if isinstance(identity, dict) else None
    if isinstance(schema, int) and not isinstance(schema, bool) and not OLDEST_SCHEMA <= schema <= SCHEMA:
        raise ConfigError(
            f"{path.parent}: written by another version of rdc (schema {schema}, this one reads {OLDEST_SCHEMA} to {SCHEMA}). "
            "Evaluate again in a new folder"
        )
    with reading(path, DataError, "what rdc evaluate writes", _AGAIN[0].upper() + _AGAIN[1:]):
        record = RunRecord.from_json(run, "run.json")
        if schema == SCHEMA and not sealed:
            raise DataError(f"{path}: damaged, its digest is missing: {_AGAIN}")
    return record


def precision_chosen_before(folder: Path) -> PrecisionChoice | None:
    """What ``--precision auto`` chose for the run in a folder; None where there is no run, or none that asked for it.

    Raises:
        ConfigError, DataError: as of :func:`read_run_file`.
    """
    path = folder / "run.json"
    return given(read_run_file(path).precision_choice) if path.is_file() else None


def read_sanity(path: Path, sealed: bool) -> Sanity:
    """sanity.json; ``sealed``: it must have a digest.

    Raises:
        DataError: damaged.
    """
    advice = "delete it, and the same command makes the sanity checks again"
    found, has_digest = read_sealed(path, advice=advice)
    with reading(path, DataError, "the sanity checks of rdc evaluate", advice[0].upper() + advice[1:]):
        sanity = Sanity.from_json(found, "sanity.json")
        if not sanity.complete:
            raise ValueError("some of the checks are missing")
        if sealed and not has_digest:
            raise DataError(f"{path}: damaged, its digest is missing: {advice}")
    return sanity


def batch_lines(batch: Batch) -> bytes:
    """The lines of a batch: its images, then the record that closes it."""
    return b"".join(seal_line(record.to_json()) for record in (*batch.images, batch.totals))


def expected_images(settings: SettingsRecord, index: int) -> range:
    """The images of batch ``index``, by their positions in what is loaded; empty if there is no such batch."""
    first, last = settings.start, settings.start + settings.n
    begin = first + index * settings.batch
    return range(min(begin, last), min(begin + settings.batch, last))


def read_batch(
    images: list[JsonObject], closing: JsonObject, settings: SettingsRecord, ids: Sequence[int] | None = None
) -> Batch:
    """The records in these lines, which must be a whole batch of this run.

    Args:
        images, closing: the lines.
        settings: of the run.
        ids: of all images of the run, in their order, as the data set numbers them (``Dataset.indices``; a part of a data set
            keeps its numbers); None: not known here.

    Raises:
        ValueError: what is wrong with them.
    """
    totals = BatchTotals.from_json(closing, "the closing line")
    index = totals.end_of_batch
    expected = expected_images(settings, index)
    if not expected or totals.images != len(images) or len(images) != len(expected):
        raise ValueError(f"batch {index} has {len(images)} images; {len(expected)} belong to it")
    if index == 0 and not totals.checks.made:
        raise ValueError("the checks of the first batch are missing")
    made = {attack.attack for attack in totals.attacks}
    found: list[ImageRecord] = []
    for value, position in zip(images, expected, strict=True):
        record = ImageRecord.from_json(value, f"image {position}")
        if ids is not None and record.image != ids[position - settings.start]:
            raise ValueError(f"image {record.image} is where image {ids[position - settings.start]} belongs")
        _check_image(record, made, settings)
        found.append(record)
        if record.score_kinds != found[0].score_kinds:
            raise ValueError(f"image {position}: other scores than the images before it")
    return Batch(tuple(found), totals)


def _check_image(record: ImageRecord, made: set[AttackKey], settings: SettingsRecord) -> None:
    if not {outcome.attack for outcome in record.attacks} <= made:
        raise ValueError(f"image {record.image} has an attack that its batch does not have")
    attacked = bool(settings.attacks)
    if (record.adversarial is None) is attacked or (record.robust is None) is attacked:
        raise ValueError(f"image {record.image}: expected results under attack if and only if there is one")
    if not settings.score_kinds <= record.score_kinds:
        raise ValueError(f"image {record.image}: scores are missing")


def arrays_digest(content: bytes) -> str:
    """SHA-256 (32 digits) of a batch's .npz file."""
    return hashlib.sha256(content).hexdigest()[:32]


def arrays_path(folder: str | os.PathLike[str], index: int) -> Path:
    """Where the arrays of batch ``index`` of a run are."""
    return Path(folder) / "batches" / f"{index:05d}.npz"


def read_arrays(path: Path, totals: BatchTotals, sealed: bool) -> dict[str, np.ndarray]:
    """The arrays of a batch, see BatchResult.

    Args:
        path: its .npz file.
        totals: the record that closes the batch.
        sealed: it must have the digest that ``totals`` names.

    Raises:
        DataError: missing, or not what ``totals`` says.
    """
    content = read_content(path, DataError, "the arrays of a batch")
    if (sealed or totals.arrays is not ABSENT) and arrays_digest(content) != totals.arrays:
        raise DataError(f"{path}: damaged, or of another batch: it does not have the digest that results.jsonl names")
    with reading(path, DataError, "the arrays of a batch"), zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > max(2**20, _EXPANSION * len(content)):
            raise ValueError("it would unpack to far more than its size")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _NAMES}
        n = totals.images
        for name, array in arrays.items():
            if array.dtype != np.float32 or array.ndim != (4 if name == "x_adv" else 2) or len(array) != n:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
        if arrays["clean_logits"].shape != arrays["adversarial_logits"].shape:
            raise ValueError("clean and adversarial logits have different shapes")
        if totals.arrays is ABSENT and not (0 <= arrays["x_adv"].min() and arrays["x_adv"].max() <= 1):
            raise ValueError("adversarial images are not in [0, 1]")
    return arrays


def results_name(number: int, count: int) -> str:
    """The file of process ``number`` of ``count``."""
    return "results.jsonl" if count == 1 else f"results.{number}-of-{count}.jsonl"


def is_results(name: str) -> bool:
    """Whether this is what :func:`results_name` calls a file."""
    return _RESULTS.fullmatch(name) is not None


def is_ours(name: str) -> bool:
    """Whether rdc evaluate writes a file of this name into its folder."""
    return is_results(name) or name in (
        "run.json",
        "sanity.json",
        "report.json",
        "report.html",
        "report.md",
        "model_info.json",
        "adversarial.npz",
    )
