"""What the files of an evaluation's folder hold: run.json, sanity.json, the lines of results.jsonl, a batch's arrays.

Whoever reads a folder checks first: checksums where there are any (folders since schema 3), and structure always.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from rdc.errors import ConfigError, DataError
from rdc.storage.reading import read_content, reading
from rdc.storage.sealed import read_sealed, seal_line
from rdc.storage.structure import choice, flag, integer, mapping, number, optional, record, sequence, text

__all__ = [
    "OLDEST_SCHEMA",
    "SCHEMA",
    "arrays_digest",
    "batch_lines",
    "check_batch",
    "expected_images",
    "is_ours",
    "is_results",
    "read_arrays",
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
_NOISE = choice("known", "fresh")
_SHARE = number(0, 1)

_RUN = record(
    {
        "identity": record(
            {
                "schema": integer(0),
                "settings": record(
                    {
                        "model": text(),
                        "dataset": text(),
                        "n": integer(1),
                        "split": text(),
                        "start": integer(0),
                        "attacks": sequence(text()),
                        "noise": choice("known", "fresh", "all"),
                        "seed": integer(0),
                        "batch": integer(1),
                        "resubmissions": integer(1),
                    },
                    {
                        "norm": optional(text()),
                        "eps": optional(text()),
                        "gradient": optional(text()),
                        "eot": optional(integer(1)),
                    },
                ),
                "radius": optional(number(0)),
                "classifier": record({"lm": lambda value, where: None}),
                "images": text(),
                "weights": text(),
            }
        ),
        "command": text(),
        "commits": sequence(optional(text()), 1),
        "versions": mapping(text()),
    }
)
_DECISION = record({"predicted": integer(0), "right": _SHARE})
_IMAGE = record(
    {
        "image": integer(0),
        "label": integer(0),
        "clean": _DECISION,
        "attacks": sequence(
            record(
                {
                    "name": text(),
                    "noise": _NOISE,
                    "right": _SHARE,
                    "step": integer(-1),
                    "restart": integer(-1),
                    "blind_steps": integer(0),
                },
                {"flow_penalty": optional(number())},
            )
        ),
        "adversarial": optional(_DECISION),
        "robust": optional(flag()),
    },
    {"scores": record({}, {"known": flag(), "fresh": record({"right": _SHARE, "majority": flag()})})},
)
_COUNTS = ("attacked", "survivors", "blind_images", "non_finite_images", "verify_mismatches", "evaluations")
_CLOSING = record(
    {
        "end_of_batch": integer(0),
        "images": integer(1),
        "attacks": sequence(
            record(
                {
                    "name": text(),
                    "policy": _NOISE,
                    "steps": integer(0),
                    "restarts": integer(0),
                    "gradient": optional(text()),
                    "loss": optional(text()),
                    "right": number(0),
                    "seconds": number(0),
                    **dict.fromkeys(_COUNTS, integer(0)),
                }
            )
        ),
        "checks": record(
            {},
            {
                **dict.fromkeys(("repeat_difference", "logit_spread", "log_sum_exp"), optional(number())),
                "repeat_decisions_changed": integer(0),
                "probabilities": flag(),
                "gradients_inside": integer(0),
            },
        ),
        "mismatches": integer(0),
        "non_finite": integer(0),
        "network_evaluations": integer(0),
        "seconds": number(0),
    },
    {"arrays": text()},
)
_FIRST_CHECKS = ("repeat_difference", "logit_spread", "repeat_decisions_changed", "log_sum_exp")
_SHORT = record({"eps": number(), "steps": integer(0), "accuracy": _SHARE, "loss": optional(number())})
_SANITY = record(
    {},
    {
        "n": integer(0),
        "budgets": sequence(_SHORT, 2, 2),
        "steps": sequence(_SHORT, 2, 2),
        "large_eps": _SHORT,
        "path": record({"steps": integer(0), **dict.fromkeys(("falls", "gain", "used"), optional(number()))}),
        "gradient": record(dict.fromkeys(("zero_entries", "constant"), optional(number()))),
        "bpda": record(dict.fromkeys(("exact", "bpda"), _SHARE)),
        "fresh": record(dict.fromkeys(("known", "fresh"), _SHARE)),
        "error": text(),
        "network_evaluations": integer(0),
    },
)


def read_run_file(path: Path) -> dict[str, Any]:
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
        _RUN(run, "run.json")
        if schema == SCHEMA and not sealed:
            raise DataError(f"{path}: damaged, its digest is missing: {_AGAIN}")
    return run


def read_sanity(path: Path, sealed: bool) -> dict[str, Any]:
    """sanity.json; ``sealed``: it must have a digest.

    Raises:
        DataError: damaged.
    """
    advice = "delete it, and the same command makes the sanity checks again"
    found, has_digest = read_sealed(path, advice=advice)
    with reading(path, DataError, "the sanity checks of rdc evaluate", advice[0].upper() + advice[1:]):
        _SANITY(found, "sanity.json")
        if (
            found.get("n")
            and "error" not in found
            and not {"budgets", "steps", "large_eps", "path", "gradient"} <= set(found)
        ):
            raise ValueError("some of the checks are missing")
        if sealed and not has_digest:
            raise DataError(f"{path}: damaged, its digest is missing: {advice}")
    return found


def batch_lines(batch: dict[str, Any]) -> bytes:
    """The lines of a batch: its images, then the record that closes it."""
    return b"".join(map(seal_line, (*batch["images"], batch["totals"])))


def expected_images(settings: dict[str, Any], index: int) -> range:
    """The images of batch ``index``, by their positions in the data set; empty if there is no such batch."""
    first, last = settings["start"], settings["start"] + settings["n"]
    begin = first + index * settings["batch"]
    return range(min(begin, last), min(begin + settings["batch"], last))


def check_batch(images: list[dict[str, Any]], totals: dict[str, Any], settings: dict[str, Any]) -> None:
    """Whether these lines are a whole batch of this run.

    Raises:
        ValueError: what is wrong with them.
    """
    _CLOSING(totals, "the closing line")
    index = totals["end_of_batch"]
    expected = expected_images(settings, index)
    if not expected or totals["images"] != len(images) or len(images) != len(expected):
        raise ValueError(f"batch {index} has {len(images)} images; {len(expected)} belong to it")
    made = {(attack["name"], attack["policy"]) for attack in totals["attacks"]}
    scores = (
        {"known": {"known"}, "fresh": {"fresh"}, "all": {"known", "fresh"}}[settings["noise"]]
        if settings["attacks"]
        else set()
    )
    if index == 0 and not set(_FIRST_CHECKS) <= set(totals["checks"]):
        raise ValueError("the checks of the first batch are missing")
    for image, position in zip(images, expected, strict=True):
        _IMAGE(image, f"image {position}")
        if image["image"] != position:
            raise ValueError(f"image {image['image']} is where image {position} belongs")
        if not {(attack["name"], attack["noise"]) for attack in image["attacks"]} <= made:
            raise ValueError(f"image {position} has an attack that its batch does not have")
        attacked = bool(settings["attacks"])
        if (image["adversarial"] is None) is attacked or (image["robust"] is None) is attacked:
            raise ValueError(f"image {position}: expected results under attack if and only if there is one")
        if attacked and not scores <= set(image.get("scores", ())):
            raise ValueError(f"image {position}: scores are missing")
        if set(image.get("scores", ())) != set(images[0].get("scores", ())):
            raise ValueError(f"image {position}: other scores than the images before it")


def arrays_digest(content: bytes) -> str:
    """SHA-256 (32 digits) of a batch's .npz file."""
    return hashlib.sha256(content).hexdigest()[:32]


def read_arrays(path: Path, totals: dict[str, Any], sealed: bool) -> dict[str, np.ndarray]:
    """The arrays of a batch, see BatchResult.

    Args:
        path: its .npz file.
        totals: the record that closes the batch.
        sealed: it must have the digest that ``totals`` names.

    Raises:
        DataError: missing, or not what ``totals`` says.
    """
    content = read_content(path, DataError, "the arrays of a batch")
    if (sealed or "arrays" in totals) and arrays_digest(content) != totals.get("arrays"):
        raise DataError(f"{path}: damaged, or of another batch: it does not have the digest that results.jsonl names")
    with reading(path, DataError, "the arrays of a batch"), zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > max(2**20, _EXPANSION * len(content)):
            raise ValueError("it would unpack to far more than its size")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _NAMES}
        n = totals["images"]
        for name, array in arrays.items():
            if array.dtype != np.float32 or array.ndim != (4 if name == "x_adv" else 2) or len(array) != n:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
        if arrays["clean_logits"].shape != arrays["adversarial_logits"].shape:
            raise ValueError("clean and adversarial logits have different shapes")
        if "arrays" not in totals and not (0 <= arrays["x_adv"].min() and arrays["x_adv"].max() <= 1):
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
    )
