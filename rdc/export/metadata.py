"""What an exported file says about itself: ONNX metadata properties, all text; structured ones are JSON.

``rdc.runtime`` reads them; so can any program. ``rdc.sha256`` is the digest of the whole file with the digest's own
64 characters replaced by zeros.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from typing import Any

from rdc import __version__
from rdc.decisions.answers import uncalibrated
from rdc.errors import ConfigError
from rdc.export.card import card_of
from rdc.export.graph import OPSET
from rdc.method.classifier import DiffusionClassifier
from rdc.provenance.networks import notable_networks

__all__ = ["checkpoint_info", "describe_model", "seal"]

FORMAT, _ZEROS = 2, "0" * 64
_FITTED = (
    "logit_scale",
    "images",
    "split",
    "negative_log_likelihood",
    "accuracy",
)  # of the record: what is said of the scale
_PREPROCESSING = {
    "float32": "grey or RGB, channels first, 8-bit values / 255: float32 in [0, 1]; no mean, no deviation",
    "uint8": "grey or RGB, channels first, 8-bit values as they are; the graph divides by 255",
}


def checkpoint_info(name: str | os.PathLike[str]) -> dict[str, Any]:
    """The model card of a shipped model or checkpoint: the ``info`` of its JSON description, {} if it has none."""
    from rdc.models.single import recorded_info

    return recorded_info(name)


def describe_model(
    classifier: DiffusionClassifier,
    info: dict[str, Any],
    *,
    max_steps: int,
    threshold: float,
    precision: str,
    pixel_type: str,
    bytes_per_image: int,
    own_settings: bool = True,
    int8: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Metadata properties of an exported classifier; see :func:`rdc.export.export_onnx` for the arguments.

    ``int8``: what was quantised, and how it answers beside float32.
    """
    lm = classifier.lm
    why = uncalibrated(classifier.logit_scale, own_settings)
    known = info.get("calibration")
    fitted = {key: known[key] for key in _FITTED if key in known} if isinstance(known, dict) and not why else {}
    values: dict[str, Any] = {
        "rdc.format": FORMAT,
        "rdc.version": __version__,
        "rdc.sha256": _ZEROS,
        "rdc.opset": OPSET,
        "rdc.precision": precision,
        "rdc.created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "rdc.method": "DC" if lm is None else "RDC",
        "rdc.head": classifier.denoiser.head,
        "rdc.image_shape": list(classifier.image_shape),
        "rdc.pixel_type": pixel_type,
        "rdc.preprocessing": _PREPROCESSING[pixel_type],
        "rdc.class_names": list(classifier.class_names),
        "rdc.levels": classifier.levels.to_json(),
        "rdc.noise_seed": classifier.noise.seed,
        "rdc.logit_scale": classifier.scale,
        "rdc.calibrated": not why,
        "rdc.calibration": {"why": why} if why else fitted,
        "rdc.class_prior": None if classifier.class_prior is None else list(classifier.class_prior),
        "rdc.confidence_threshold": threshold,
        "rdc.lm": None if lm is None else lm.describe(),
        "rdc.lm_steps": 0 if lm is None else lm.steps,
        "rdc.max_lm_steps": 0 if lm is None else max_steps,
        "rdc.bytes_per_image": bytes_per_image,
        "rdc.licence": str(info.get("licence", "not stated")),
        "rdc.model_card": info,
        "rdc.card": card_of(classifier, info, int8),
    }
    if int8 is not None:
        values["rdc.int8"] = int8
    networks = notable_networks(classifier)
    if networks:
        values["rdc.networks"] = networks
    return {
        key: value if isinstance(value, str) else json.dumps(value, allow_nan=False) for key, value in values.items()
    }


def seal(content: bytes) -> bytes:
    """The serialised model with its digest filled in.

    Raises:
        ConfigError: the digest's place is not there exactly once.
    """
    if content.count(_ZEROS.encode()) != 1:
        raise ConfigError("export: the place of the digest was not found; a name or text of the model holds 64 zeros")
    return content.replace(_ZEROS.encode(), hashlib.sha256(content).hexdigest().encode())
