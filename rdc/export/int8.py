"""Weights and activations of an exported file in eight bits, calibrated on held-out images, by onnxruntime's static quantisation.

Convolutions alone are quantised: QDQ form, a scale for each output channel of the weights, which take seven bits, so that
processors without VNNI compute the same. In float32 stay the head, whose weights the graph makes, and convolutions whose output
reaches the losses with no activation or norm in between: their rounding would be part of the squares.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.errors import ConfigError, one_line
from rdc.images.pixels import checked_pixels
from rdc.statistics.proportions import wilson_interval

__all__ = ["Int8Images", "check_int8", "parity", "quantised"]

_AT_ONCE = 8  # images of a calibration or parity call
#: what turns values into others so that rounding before it is not rounding of what is squared
_BENDS = frozenset({"Sigmoid", "Tanh", "Relu", "Softplus", "Softmax", "LayerNormalization", "InstanceNormalization"})


@dataclasses.dataclass(frozen=True, eq=False)
class Int8Images:
    """What an int8 file is made and judged with.

    Args:
        calibration: pixels [M, C, H, W] in [0, 1], held out of training; ranges of activations are taken from them.
        test: pixels [N, C, H, W], others, on which the file is compared with the one in float32.
        labels: [N] int64.
        name: of the data.
    """

    calibration: Tensor
    test: Tensor
    labels: Tensor
    name: str


def check_int8(classifier: Any, images: Int8Images | None) -> None:
    """Whether such a file can be made.

    Raises:
        ConfigError: no images, likelihood maximisation, or the package is not installed.
        InputError: images that are none of the classifier's.
    """
    if images is None:
        raise ConfigError("export, int8: expected images to calibrate with (--calibration DATA, int8=Int8Images(...))")
    if classifier.lm is not None:
        raise ConfigError(
            "export, int8: expected a classifier without likelihood maximisation, whose gradients need float32; use lm=None (--lm none)"
        )
    for pixels in (images.calibration, images.test):
        checked_pixels(pixels, classifier.image_shape)
    if images.labels.shape != (len(images.test),):
        raise ConfigError(f"export, int8: expected {len(images.test)} labels; got shape {list(images.labels.shape)}")
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "export, int8: onnxruntime with its quantization is not installed; pip install robust-diffusion-classifier[onnx]"
        ) from error


def quantised(model: Any, images: Int8Images, pixel_type: str) -> tuple[Any, dict[str, Any]]:
    """An int8 copy of a model.

    Args:
        model: ``onnx.ModelProto`` of :func:`rdc.export.model.build_model`, without likelihood maximisation.
        images: for calibration.
        pixel_type: what the model takes.

    Returns:
        ``onnx.ModelProto``; and ``convolutions`` (number in int8), ``float32`` (names of the weights of those that stayed).

    Raises:
        ConfigError: no convolution is left to quantise.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    named = copy.deepcopy(model)
    kept = _prepared(named)
    every = [node for node in named.graph.node if node.op_type == "Conv"]
    if len(every) == len(kept):
        raise ConfigError("export, int8: the network has no convolution that could be in eight bits; use float32")
    parts: Iterator[Any] = iter(_parts(images.calibration, pixel_type))

    class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]  # Any, or typed: with or without the package
        def get_next(self) -> Any:
            part = next(parts, None)
            return None if part is None else {"pixels": part}

    # without this word it warns that it has not optimised the graph
    onnx.helper.set_model_props(named, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory(prefix="rdc-") as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            named,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in every if node.name in kept],
            calibrate_method=CalibrationMethod.MinMax,
        )
        made = onnx.load(str(path))
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    made.doc_string, made.ir_version = model.doc_string, model.ir_version
    return made, {"convolutions": len(every) - len(kept), "float32": sorted(kept.values())}


def _parts(pixels: Tensor, pixel_type: str) -> list[np.ndarray]:
    values = pixels.detach().cpu().float()
    array = (values * 255).round().byte().numpy() if pixel_type == "uint8" else values.numpy()
    return [array[begin : begin + _AT_ONCE] for begin in range(0, len(array), _AT_ONCE)]


def _prepared(model: Any) -> dict[str, str]:
    """Name every node, give every convolution a bias of its own; name -> weights of convolutions that stay in float32."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    makers, shared = {}, set()
    for place, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{place}"
        makers.update({output: node for output in node.output})
        if node.op_type != "Conv" or len(node.input) < 3:
            continue
        if (bias := node.input[2]) in shared:  # in int8 a bias has the scale of its convolution
            own = copy.deepcopy(values[bias])
            own.name = node.input[2] = f"{bias}_of_{node.name}"
            model.graph.initializer.append(own)
        shared.add(bias)
    return _straight_to_the_losses(makers, set(values))


def _straight_to_the_losses(makers: dict[str, Any], values: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting, seen = ["class_losses"], set()
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Conv":
            found[node.name] = node.input[1] if node.input[1] in values else "head"
            if node.input[1] in values:
                continue
        if node.op_type in _BENDS or (node.op_type == "Mul" and _is_silu(node, makers)):
            continue
        waiting += node.input
    return found


def _is_silu(node: Any, makers: dict[str, Any]) -> bool:
    """x sigmoid(x)."""
    return any(name in makers and makers[name].op_type == "Sigmoid" for name in node.input)


def parity(plain: bytes, small: bytes, images: Int8Images, pixel_type: str) -> dict[str, Any]:
    """How far an int8 file answers as the one in float32 does, both in onnxruntime.

    Returns:
        ``data``, ``images``; ``accuracy_float32`` and ``accuracy_int8`` with 95 % Wilson intervals ({"accuracy", "ci95"});
        ``same_decisions``; ``largest_movement_of_log_p`` of the class that float32 decides for.
    """
    exact, rounded = (_answers(content, images.test, pixel_type) for content in (plain, small))
    decided = exact.argmax(1)
    rows = np.arange(len(decided))
    moved = np.abs(exact[rows, decided] - rounded[rows, decided]).max()
    return {
        "data": one_line(images.name, 100),
        "images": len(decided),
        "accuracy_float32": _rate(decided, images.labels),
        "accuracy_int8": _rate(rounded.argmax(1), images.labels),
        "same_decisions": int((decided == rounded.argmax(1)).sum()),
        "largest_movement_of_log_p": round(float(moved), 4),
    }


def _answers(content: bytes, pixels: Tensor, pixel_type: str) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern, options.intra_op_num_threads = False, torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    parts = [session.run(["log_probabilities"], {"pixels": part})[0] for part in _parts(pixels, pixel_type)]
    found: np.ndarray = np.concatenate(parts)
    return found


def _rate(decisions: np.ndarray, labels: Tensor) -> dict[str, Any]:
    right, count = int((decisions == labels.numpy()).sum()), len(decisions)
    return {"accuracy": round(right / count, 6), "ci95": [round(end, 6) for end in wilson_interval(right, count)]}
