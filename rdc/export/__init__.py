"""Export of a whole classifier to one ONNX file; see docs/deployment.md."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rdc.arguments.close_names import did_you_mean
from rdc.contracts import NoisePolicy
from rdc.errors import ConfigError
from rdc.export.int8 import Int8Images, check_int8, parity, quantised

__all__ = ["PIXEL_TYPES", "PRECISIONS", "Int8Images", "export_onnx"]

PRECISIONS = ("float32", "float16-weights", "float16", "int8")
PIXEL_TYPES = ("float32", "uint8")
_LIMIT = 2**31 - 2**20  # protobuf holds less than 2 GiB


def export_onnx(
    classifier: Any,
    path: str | os.PathLike[str],
    *,
    precision: str = "float32",
    pixel_type: str = "float32",
    max_lm_steps: int | None = None,
    confidence_threshold: float = 0.0,
    info: dict[str, Any] | None = None,
    own_settings: bool = True,
    only_pixels: bool = False,
    check: bool = True,
    int8: Int8Images | None = None,
    say: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """Write a diffusion classifier, likelihood maximisation (LM) and its gradients included, as one ONNX file: both networks where LM
    has one of its own.

    Inputs of the file: ``pixels`` [N, C, H, W] (any N); ``lm_steps`` int64 [] (files with LM; may be left out: the
    classifier's own number; 0: no LM); ``confidence_threshold`` float32 [] (may be left out). The last two are of ONNX's type
    "optional", which not every server takes (``only_pixels``). Outputs: see ``rdc.export.model.OUTPUTS``. Levels, weights and
    noise are in the file: the same pixels always give the same answer.

    Args:
        classifier: a :class:`~rdc.method.classifier.DiffusionClassifier` with noise "fixed"; it is not changed.
        path: the file; written atomically.
        precision: "float32"; "float16-weights": weights stored in half precision, arithmetic in float32; "float16": the
            classifier's convolutions in half precision too (normalisation, softmax, sums and LM stay in float32), for
            GPUs; "int8": weights and activations of its convolutions in eight bits, for CPUs (:mod:`rdc.export.int8`).
        pixel_type: what the file takes: "float32" in [0, 1] or "uint8".
        max_lm_steps: most steps ``lm_steps`` may ask for; each has its draw in the file. None: the classifier's own number.
        confidence_threshold: default of the input: below it the decision is -1.
        info: model card to put into the metadata (JSON values): of a checkpoint its description's ``info``. What it says of licence, data,
            origin and accuracy under attack is put into words as well (:mod:`rdc.export.card`).
        own_settings: levels and LM are those that the logit scale was fitted with; False: the file says "not calibrated".
        only_pixels: ``pixels`` is the file's only input, for servers that know no optional ones; steps and threshold are as exported.
        check: look the file over with ``onnx.checker`` and, where onnxruntime is installed, compare two images with PyTorch before writing.
        int8: for precision "int8" the images to calibrate with, and others to compare with the file in float32.
        say: called with a line of progress at each stage.

    Returns:
        ``path``, ``bytes``, ``weights_bytes`` (of all weights in float32), ``nodes``, ``opset``, ``bytes_per_image``,
        ``calibrated``; of an int8 file ``int8``: what was quantised, and how it answers beside float32.

    Raises:
        ConfigError: not a diffusion classifier, noise "fresh", settings out of range, or onnx is not installed.
        RdcError: the check found a difference; nothing was written.
    """
    if only_pixels and max_lm_steps is not None:
        raise ConfigError("export, only_pixels: such a file has no lm_steps; expected no max_lm_steps beside it")
    steps = _settings(classifier, precision, pixel_type, max_lm_steps, confidence_threshold)
    _require_onnx()
    if precision == "int8":
        check_int8(classifier, int8)
    elif int8 is not None:
        raise ConfigError('export, int8: expected precision "int8" beside these images; leave them out')
    from rdc.export.card import card_text
    from rdc.export.checks import check_model
    from rdc.export.metadata import describe_model, seal
    from rdc.export.model import build_model
    from rdc.storage.files import atomic_write

    frozen = _on_cpu(classifier)
    settings: dict[str, Any] = {
        "max_steps": steps,
        "threshold": confidence_threshold,
        "precision": precision,
        "pixel_type": pixel_type,
    }
    say("recording the network and its gradients" if classifier.lm is not None else "recording the network")
    model, bytes_per_image = build_model(frozen, **settings, only_pixels=only_pixels)
    about: dict[str, Any] = {"bytes_per_image": bytes_per_image, "own_settings": own_settings}
    if int8 is not None:
        model, about["int8"] = _in_int8(frozen, model, int8, pixel_type, check, say)
    properties = describe_model(frozen, info or {}, **about, **settings)
    model.doc_string += "\n" + card_text(json.loads(properties["rdc.card"]))
    content = seal(_serialized(model, properties))
    if check:
        say("checking against PyTorch" if int8 is None else "checking the file")
        check_model(frozen, content, precision)
    say(f"writing {path}")
    with atomic_write(path) as file:
        file.write(content)
    summary = _summary(classifier, model, path, content, bytes_per_image)
    known = {"int8": about["int8"]} if int8 is not None else {}
    return {**summary, "calibrated": json.loads(properties["rdc.calibrated"]), **known}


def _in_int8(
    classifier: Any, model: Any, images: Int8Images, pixel_type: str, check: bool, say: Callable[[str], None]
) -> tuple[Any, dict[str, Any]]:
    """The model in int8, and what the file says of it; the one in float32 is checked against PyTorch first."""
    from rdc.export.checks import check_model

    plain = model.SerializeToString()
    if check:
        say("checking float32 against PyTorch")
        check_model(classifier, plain, "float32")
    say(f"calibrating on {len(images.calibration)} images")
    made, about = quantised(model, images, pixel_type)
    say(f"comparing with float32 on {len(images.test)} images")
    found = parity(plain, made.SerializeToString(), images, pixel_type)
    return made, {**about, "calibration_images": len(images.calibration), **found}


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ConfigError("export: onnx is not installed; pip install robust-diffusion-classifier[onnx]") from error


def _serialized(model: Any, properties: dict[str, str]) -> bytes:
    """The bytes of the file, with these words about it."""
    import onnx

    texts = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in properties.items()}
    onnx.helper.set_model_props(model, texts)  # file names, and what is made of them, may be no text
    if model.ByteSize() > _LIMIT:
        raise ConfigError(f"export: {model.ByteSize():,} bytes do not fit one ONNX file (2 GiB); use float16-weights")
    content: bytes = model.SerializeToString()
    return content


def _summary(classifier: Any, model: Any, path: Any, content: bytes, bytes_per_image: int) -> dict[str, Any]:
    from rdc.export.graph import OPSET

    networks = [classifier.denoiser] + [classifier.moved_by] * (classifier.lm is not None)
    weights = sum(parameter.numel() for network in dict.fromkeys(networks) for parameter in network.parameters())
    return {
        "path": str(Path(path)),
        "bytes": len(content),
        "weights_bytes": 4 * weights,
        "nodes": len(model.graph.node) + sum(len(a.g.node) for node in model.graph.node for a in node.attribute),
        "opset": OPSET,
        "bytes_per_image": bytes_per_image,
    }


def _settings(classifier: Any, precision: str, pixel_type: str, max_lm_steps: int | None, threshold: float) -> int:
    """Check what was asked for; returns how many steps of LM the file holds."""
    from rdc.method.classifier import DiffusionClassifier

    if not isinstance(classifier, DiffusionClassifier):
        raise ConfigError(f"export: expected a diffusion classifier; got {type(classifier).__name__}")
    for what, value, allowed in (("precision", precision, PRECISIONS), ("pixel type", pixel_type, PIXEL_TYPES)):
        if value not in allowed:
            meant = did_you_mean(value, allowed)
            raise ConfigError(f"export, {what}: expected one of {', '.join(allowed)}; got {value!r}{meant}")
    if not (math.isfinite(threshold) and 0 <= threshold <= 1):
        raise ConfigError(f"export, confidence threshold: expected a number in [0, 1]; got {threshold}")
    if classifier.noise_policy != NoisePolicy.FIXED:
        raise ConfigError(
            'export: expected a classifier with noise "fixed"; a file holds one draw. Use classifier.with_(noise="fixed")'
        )
    own = 0 if classifier.lm is None else classifier.lm.steps
    if max_lm_steps is None:
        return own
    if classifier.lm is None:
        raise ConfigError("export, max_lm_steps: the classifier has no likelihood maximisation; set lm, e.g. paper-v2")
    if max_lm_steps < own:
        raise ConfigError(f"export, max_lm_steps: expected at least the classifier's own {own}; got {max_lm_steps}")
    return max_lm_steps


def _on_cpu(classifier: Any) -> Any:
    """A copy in float32 on the CPU; the weights are shared where they are there already."""
    import torch

    def plain(denoiser: Any) -> Any:
        if denoiser is None:
            return None
        denoiser = denoiser.recordable()
        tensors = *denoiser.parameters(), *denoiser.buffers()
        if any(t.device.type != "cpu" or (t.is_floating_point() and t.dtype != torch.float32) for t in tensors):
            denoiser = copy.deepcopy(denoiser).to("cpu", torch.float32)
        return denoiser

    changes = {"precision": "float32", "lm_denoiser": plain(classifier.lm_denoiser)}
    return type(classifier)(plain(classifier.denoiser), **{**classifier.settings(), **changes})
