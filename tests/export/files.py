"""Exported tiny classifiers, and what PyTorch says about the same images."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import torch

from rdc.export import export_onnx
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import make_denoiser
from rdc.networks.presets import build_network
from tests.tiny_models import CONFIG, randomize
from tests.tolerances import ONNX_LM_PIXELS, ONNX_PARITY

LEVELS = "log:3:0.5:3:flat"
ATTENTION = copy.deepcopy(CONFIG)
PLAIN = copy.deepcopy(CONFIG)
PLAIN["unet"] |= {"attn_resolutions": [], "middle_attention": False, "adaptive_scale": True}
MULTIHEAD, MULTIHEAD_ATTENTION = (
    copy.deepcopy(config) | {"kind": "multihead", "wide_channels": 12} for config in (PLAIN, ATTENTION)
)
NETWORKS = {
    "conditional": PLAIN,
    "conditional-attention": ATTENTION,
    "multihead": MULTIHEAD,
    "multihead-attention": MULTIHEAD_ATTENTION,
}


def classifier_of(config: dict, **settings) -> DiffusionClassifier:
    with torch.random.fork_rng():
        network = randomize(build_network(config))
    return DiffusionClassifier(make_denoiser(network, config), **{"levels": LEVELS, **settings})


def images_of(classifier: DiffusionClassifier, count: int, seed: int = 1) -> torch.Tensor:
    """8-bit pixels in [0, 1]."""
    draw = torch.rand(count, *classifier.image_shape, generator=torch.Generator().manual_seed(seed))
    return (255 * draw).round() / 255


def open_file(path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def exported(classifier: DiffusionClassifier, folder, **settings) -> onnxruntime.InferenceSession:
    export_onnx(classifier, folder / "model.onnx", check=False, **settings)
    return open_file(folder / "model.onnx")


def answers(session: onnxruntime.InferenceSession, pixels: torch.Tensor, **more) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    feed = {name: np.asarray(value) for name, value in more.items()}
    return dict(zip(names, session.run(names, {"pixels": pixels.numpy(), **feed}), strict=True))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest value."""
    assert found.shape == expected.shape and np.isfinite(found).all()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def assert_parity(found: dict[str, np.ndarray], classifier: DiffusionClassifier, pixels: torch.Tensor) -> None:
    """The file's answers are PyTorch's; after LM they are compared on the file's own pixels."""
    if "purified_pixels" in found:
        moved = classifier.purify(pixels).numpy()
        assert (np.abs(found["purified_pixels"] - moved) < ONNX_LM_PIXELS).mean() >= 0.999
        classifier, pixels = classifier.with_(lm=None), torch.from_numpy(found["purified_pixels"]).clamp(0, 1)
    with torch.no_grad():
        log_p, losses = classifier(pixels).numpy(), classifier.class_losses(pixels).numpy()
    assert relative(found["class_losses"], losses) < ONNX_PARITY
    # log-probabilities are differences of losses, which in random networks hardly depend on the class: they are as good as these
    size = max(np.abs(log_p).max(), classifier.scale * np.abs(losses).max())
    assert np.abs(found["log_probabilities"] - log_p).max() < ONNX_PARITY * size
    assert (found["decision"] == log_p.argmax(1)).all()
