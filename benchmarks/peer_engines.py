"""The engines of ``benchmarks.peers``: each makes calls pixels -> log p(y|x), and pixels -> gradient where it has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rdc
from benchmarks.contenders import without_kernels
from rdc.execution.upstream import all_classes_carry
from rdc.export import Int8Images, export_onnx
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import make_denoiser
from rdc.networks.presets import build_network, network_preset
from rdc.runtime import OnnxClassifier

__all__ = ["DRY", "ENGINES", "Call", "Engine", "classifier_of", "images_for", "rdc_calls"]

DRY = "dry"  #: in place of a model: a tiny network with random weights
#: models with random weights: preset, levels, more of its description
_RANDOM: dict[str, tuple[str, str]] = {
    "edm": ("edm-ddpmpp-32", "log:1:0.5:1:flat"),
    DRY: ("tiny-28", "log:2:0.5:2:flat"),
}
_CALIBRATED = 32  # images of an int8 file, the last of those that come with rdc; one of a large network

Call = Callable[[Tensor], Any]
Calls = dict[str, Call]


@dataclasses.dataclass(frozen=True)
class Engine:
    """One row of the table.

    Args:
        name: of the row.
        calls: classifier, path of its ONNX file (made where it is missing) and threads -> "prediction" and,
            where there is one, "attack step".
    """

    name: str
    calls: Callable[[Any, Path, int], Calls]


def classifier_of(model: str) -> Any:
    """A shipped model; of those with random weights the same ones every time."""
    if model not in _RANDOM:
        return rdc.load(model)
    preset, levels = _RANDOM[model]
    config = network_preset(preset, 10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(config)
        with torch.no_grad():  # a fresh network answers almost zero: every part is to matter
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return DiffusionClassifier(make_denoiser(network, config), levels)


def images_for(model: str, count: int) -> Tensor:
    """The first test images that come with rdc; for other models, whose images do not, noise of their size: speed does not depend on it."""
    if model.startswith("fashion-mnist"):
        return rdc.load_dataset("fashion-mnist-sample").pixels(range(count))
    shape = (1, 28, 28) if model == DRY else (3, 32, 32)
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def rdc_calls(model: Any) -> Calls:
    """Prediction and attack step of a model of torch."""

    def prediction(x: Tensor) -> Any:
        with torch.no_grad():
            return model(x)

    def step(x: Tensor) -> Any:
        leaf = x.clone().requires_grad_()
        with all_classes_carry():  # as attacks by the cross-entropy say
            found = model(leaf)
        return torch.autograd.grad(found[:, 1:].sum(), leaf)[0]

    return {"prediction": prediction, "attack step": step}


def _half(classifier: Any, path: Path, threads: int) -> Calls:
    return rdc_calls(classifier.with_(precision="bfloat16"))


def _plain(precision: str) -> Callable[[Any, Path, int], Calls]:
    def calls(classifier: Any, path: Path, threads: int) -> Calls:
        return {name: without_kernels(call) for name, call in rdc_calls(classifier.with_(precision=precision)).items()}

    return calls


def _compiled(precision: str, mode: str) -> Callable[[Any, Path, int], Calls]:
    def calls(classifier: Any, path: Path, threads: int) -> Calls:
        whole = torch.compile(classifier.with_(precision=precision), dynamic=False, mode=mode)
        return {name: without_kernels(call) for name, call in rdc_calls(whole).items()}

    return calls


def _file(classifier: Any, path: Path, small: bool = False) -> Path:
    """The exported file, made once for all engines; in eight bits beside it."""
    made = path.with_suffix(".int8.onnx") if small else path
    if made.exists():
        return made
    if small:
        export_onnx(classifier, made, precision="int8", int8=_calibration(classifier), only_pixels=True, check=False)
    else:
        export_onnx(classifier, made, only_pixels=True, check=False)
    return made


def _calibration(classifier: Any) -> Int8Images:
    count = _CALIBRATED if classifier.evaluations_per_image <= 16 else 2
    if classifier.image_shape == (1, 28, 28):
        data = rdc.load_dataset("fashion-mnist-sample")
        pixels = data.pixels(range(len(data) - count, len(data)))
    else:
        pixels = torch.rand(count, *classifier.image_shape, generator=torch.Generator().manual_seed(1))
    return Int8Images(pixels, pixels[:1], torch.zeros(1, dtype=torch.int64), "for speed alone")


def _onnxruntime(small: bool) -> Callable[[Any, Path, int], Calls]:
    def calls(classifier: Any, path: Path, threads: int) -> Calls:
        session = OnnxClassifier(_file(classifier, path, small), threads=threads)
        return {"prediction": lambda x: session(x.numpy()).log_probabilities}

    return calls


def _openvino(kind: str, small: bool = False) -> Callable[[Any, Path, int], Calls]:
    def calls(classifier: Any, path: Path, threads: int) -> Calls:
        import openvino as ov  # no dependency of the project

        hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": kind, "NUM_STREAMS": 1}
        model = ov.compile_model(_file(classifier, path, small), "CPU", hints)

        def prediction(x: Tensor) -> np.ndarray:
            found: np.ndarray = model({"pixels": x.numpy()})["log_probabilities"]
            return found

        return {"prediction": prediction}

    return calls


#: by name, in the order of the table
ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("rdc bfloat16", _half),
        Engine("torch eager", _plain("float32")),
        Engine("torch eager bfloat16", _plain("bfloat16")),
        Engine("torch.compile", _compiled("float32", "default")),
        Engine("torch.compile bfloat16", _compiled("bfloat16", "default")),
        Engine("torch.compile max-autotune", _compiled("float32", "max-autotune")),
        Engine("onnxruntime", _onnxruntime(False)),
        Engine("onnxruntime int8", _onnxruntime(True)),
        Engine("OpenVINO", _openvino("f32")),
        Engine("OpenVINO bfloat16", _openvino("bf16")),
        Engine("OpenVINO int8", _openvino("f32", small=True)),
    )
}
