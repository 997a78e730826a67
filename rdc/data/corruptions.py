"""Six corruptions at five severities for images of about 32 pixels, by NumPy and Pillow.

The kinds and the strengths of each severity are those that CIFAR-10-C was made with (D. Hendrycks, T. Dietterich, arXiv 1903.12261),
which are published beside it; the code is ours, and noise is drawn from a Philox stream of its own for each image. The packages for
this (imagecorruptions and its forks) bring OpenCV and scikit-image, refuse images under 32 pixels, and have the strengths of ImageNet-C,
which leave little of an image of this size.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np

__all__ = ["KINDS", "SEVERITIES", "corrupted"]

SEVERITIES = (1, 2, 3, 4, 5)
Generator = np.random.Generator


def _gaussian_noise(x: np.ndarray, strength: float, generator: Generator) -> np.ndarray:
    return x + strength * generator.standard_normal(x.shape)


def _impulse_noise(x: np.ndarray, strength: float, generator: Generator) -> np.ndarray:
    """Salt and pepper: this share of the values becomes 0 or 1."""
    hit, salt = generator.random(x.shape) < strength, generator.random(x.shape) < 0.5
    return np.where(hit, salt.astype(x.dtype), x)


def _gaussian_blur(x: np.ndarray, sigma: float, generator: Generator) -> np.ndarray:
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in (0, 1):
        width = [(reach, reach) if a == axis else (0, 0) for a in range(x.ndim)]
        padded = np.pad(x, width, mode="edge")
        x = sum(w * np.take(padded, range(i, i + x.shape[axis]), axis) for i, w in enumerate(weights))
    return x


def _contrast(x: np.ndarray, strength: float, generator: Generator) -> np.ndarray:
    mean = x.mean(axis=(0, 1), keepdims=True)
    pale: np.ndarray = (x - mean) * strength + mean
    return pale


def _pixelate(x: np.ndarray, share: float, generator: Generator) -> np.ndarray:
    from PIL import Image

    height, width = x.shape[:2]
    image = Image.fromarray(np.rint(255 * x).astype(np.uint8))
    small = image.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


def _jpeg(x: np.ndarray, quality: float, generator: Generator) -> np.ndarray:
    from PIL import Image

    made = io.BytesIO()
    Image.fromarray(np.rint(255 * x).astype(np.uint8)).save(made, "jpeg", quality=int(quality))
    return np.asarray(Image.open(made)) / 255


#: name -> the corruption of one image [H, W] or [H, W, 3] in [0, 1], and its strength at each severity
KINDS: dict[str, tuple[Callable[[np.ndarray, float, Generator], np.ndarray], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg, (80, 65, 58, 50, 40)),
}


def corrupted(images: np.ndarray, kind: str, severity: int, ids: np.ndarray, seed: int = 0) -> np.ndarray:
    """Images after one corruption.

    Args:
        images: uint8 [N, C, H, W], C 1 or 3.
        kind: a key of :data:`KINDS`.
        severity: 1 to 5.
        ids: [N]; the noise of an image depends on its id, the kind, the severity and the seed, and on nothing else.
        seed: an integer.

    Returns:
        uint8 [N, C, H, W].
    """
    function, strengths = KINDS[kind]
    found = np.empty_like(images)
    for place, (image, number) in enumerate(zip(images, ids.tolist(), strict=True)):
        key = np.random.SeedSequence([seed, list(KINDS).index(kind), severity, number])
        generator = np.random.Generator(np.random.Philox(key))
        x = image.transpose(1, 2, 0).astype(np.float64) / 255
        x = x[..., 0] if x.shape[2] == 1 else x
        x = np.rint(255 * function(x, strengths[severity - 1], generator).clip(0, 1)).astype(np.uint8)
        found[place] = x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
    return found
