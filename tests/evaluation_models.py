"""What the tests of evaluation, reports and command line evaluate: closed-form and tiny classifiers, small data."""

from __future__ import annotations

import numpy as np
import torch

from rdc.data import Dataset
from rdc.data.npz import save_npz
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import ConditionalDenoiser
from rdc.models.checkpoints import save_model
from rdc.models.zoo import load
from rdc.networks.presets import build_network
from tests.oracles import GaussianNetwork
from tests.tiny_models import randomize

SHAPE, CLASSES, NAMES = (1, 8, 8), 4, ("bag", "coat", "dress", "shirt")
TINY = {
    "kind": "multihead",
    "image_shape": list(SHAPE),
    "num_classes": CLASSES,
    "patch_size": 2,
    "sigma_data": 0.5,
    "wide_channels": 8,
    "unet": {
        "architecture": "SongUNet",
        "model_channels": 8,
        "channel_mult": [1],
        "num_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


def gaussian_classifier(**settings) -> DiffusionClassifier:
    """The exact diffusion classifier of four Gaussian classes, no training."""
    means = 0.6 * torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(3))
    denoiser = ConditionalDenoiser(GaussianNetwork(means, 0.2), CLASSES, SHAPE)
    return DiffusionClassifier(denoiser, **{"levels": "log:3:0.5:3:flat", "class_names": NAMES, **settings})


def images(n: int, seed: int = 0) -> torch.Tensor:
    """Blurred noise, uint8 [n, 1, 8, 8]."""
    noise = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    return (255 * (0.5 + 1.5 * (smooth - 0.5)).clamp(0, 1)).round().to(torch.uint8)


def labelled_by(classifier: DiffusionClassifier, n: int = 40, wrong: int = 4) -> Dataset:
    """Images whose labels are the classifier's own decisions, but for the last ``wrong``: clean accuracy is known."""
    pixels = images(n)
    with torch.no_grad():
        labels = classifier.with_(noise="fixed")(pixels.float() / 255).argmax(1)
    labels[n - wrong :] = (labels[n - wrong :] + 1) % CLASSES
    return Dataset(pixels, labels, NAMES, "blobs", "test")


def save_tiny(folder) -> tuple[str, str]:
    """A tiny multi-head model and a data set it knows, on disk: paths for --model and --data."""
    network = randomize(build_network(TINY), seed=1)
    info = {"class_names": list(NAMES), "classifier": {"levels": "log:3:0.5:3:flat"}}
    save_model(folder / "tiny", network, TINY, info)
    save_npz(labelled_by(load(folder / "tiny")), folder / "blobs.npz")
    return str(folder / "tiny"), str(folder / "blobs.npz")


def grey(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random uint8 array."""
    return np.random.Generator(np.random.Philox(key=seed)).integers(0, 256, shape, dtype=np.uint8)
