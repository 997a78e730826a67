"""What an exported file says about itself, checked: everything that a classifier relies on is of the right kind."""

from __future__ import annotations

import json
from typing import Any

from rdc.errors import CheckpointError, one_line
from rdc.storage.json_files import parse_json
from rdc.storage.json_records import anything
from rdc.storage.reading import reading
from rdc.storage.structure import choice, flag, integer, mapping, number, record, sequence, text

__all__ = ["FORMAT", "MOST_STEPS", "properties_of"]

FORMAT = 2
_FORMATS = ("1", "2")  # that are read: in the first, inputs that may be left out are initializers
MOST_STEPS = 10_000  #: largest number of steps of likelihood maximisation
_MOST_CLASSES = 100_000
#: properties that are words, not JSON
_WORDS = ("version", "sha256", "precision", "created", "method", "head", "pixel_type", "preprocessing", "licence")
_CHECK = record(
    {
        "image_shape": sequence(integer(1, 2**16), 3, 3),
        "class_names": sequence(text(), 1, _MOST_CLASSES),
        "pixel_type": choice("float32", "uint8"),
        "max_lm_steps": integer(0, MOST_STEPS),
        "bytes_per_image": integer(1, 2**50),
    },
    {
        "lm_steps": integer(0, MOST_STEPS),
        "confidence_threshold": number(0, 1),
        "logit_scale": number(0),
        "calibrated": flag(),
        "card": mapping(anything),
    },
)


def properties_of(raw: dict[str, str], name: str) -> dict[str, Any]:
    """The ``rdc.*`` properties without that prefix, JSON read.

    Args:
        raw: all properties of the file.
        name: what to call it in errors.

    Raises:
        CheckpointError: another format, a property that is missing, or one that is not what it should be.
    """
    if raw.get("rdc.format") not in _FORMATS:
        said = raw.get("rdc.format")
        raise CheckpointError(
            f"{name}: format {said if said is None else repr(one_line(said, 40))}; this rdc reads {' and '.join(_FORMATS)}. Export "
            "the model again, or update rdc"
        )
    found = {}
    for key, value in raw.items():
        if key.startswith("rdc."):
            key = key.removeprefix("rdc.")
            found[key] = (
                value if key in _WORDS else parse_json(value, f"{name}, property {one_line(key, 40)}", CheckpointError)
            )
    with reading(name, CheckpointError, "a file by rdc export", "Export it again"):
        _CHECK(found, "properties")
        if len(set(found["class_names"])) < len(found["class_names"]):
            raise ValueError("a class name is there twice")
        if found.get("lm_steps", 0) > found["max_lm_steps"]:
            raise ValueError(f"lm_steps {found['lm_steps']} beyond max_lm_steps {found['max_lm_steps']}")
        json.dumps(found)  # deeper than can be printed again
    return found
