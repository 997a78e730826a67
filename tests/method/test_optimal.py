"""The optimal denoiser against loops, and the classifier on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdc.errors import ConfigError, InputError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.draw import Draw
from rdc.method.optimal import OptimalDenoiser
from tests.oracles import class_losses, empirical_mean
from tests.tolerances import (
    CLASSIFIER_DIFFERENCE,
    FLOAT32_NETWORK,
    FLOAT64_NETWORK,
    ONNX_PARITY,
    close,
)

SHAPE, CLASSES = (2, 3, 4), 3
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 0, 0, 1, 2, 2, 0])


def pictures(count, seed=0, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    return (torch.rand(count, *SHAPE, generator=make, dtype=torch.float64) * 1.8 - 0.9).to(dtype)


def optimal(dtype=torch.float64, **settings):
    return OptimalDenoiser(pictures(len(LABELS), dtype=dtype), LABELS, CLASSES, **settings)


def a_draw(levels=(0.2, 0.7, 3.0), dtype=torch.float64):
    make = torch.Generator().manual_seed(5)
    noise = torch.randn(len(levels), *SHAPE, generator=make, dtype=torch.float64)
    return Draw(*(t.to(dtype) for t in (torch.tensor(levels), torch.tensor([1.0, 0.5, 2.0]), noise)))


def oracle_mean(x_t, s, y, exponent="gaussian"):
    """D*(x_t; s, y) of one image by loops; y = CLASSES: of all images."""
    chosen = pictures(len(LABELS))[LABELS == y] if y < CLASSES else pictures(len(LABELS))
    level = s if exponent == "gaussian" else np.sqrt(s)  # 2 s in place of 2 s^2
    return empirical_mean(x_t.reshape(1, -1), np.array([level]), chosen.flatten(1).numpy()).reshape(x_t.shape)


@pytest.mark.parametrize("exponent", ["gaussian", "released"])
def test_class_losses_are_those_of_the_oracle(exponent):
    x0, draw = pictures(4, seed=1), a_draw()
    expected = class_losses(
        lambda x, s, y: oracle_mean(x, s, y, exponent),
        x0.numpy(),
        draw.noise.numpy(),
        draw.sigma.tolist(),
        draw.weight.tolist(),
        CLASSES,
    )
    denoiser = optimal(exponent=exponent)
    close(denoiser.class_losses(x0, draw), torch.from_numpy(expected), FLOAT64_NETWORK)
    close(denoiser.losses_of(*denoiser.noisy(x0, draw), draw), torch.from_numpy(expected), FLOAT64_NETWORK)


def test_float32_is_near_the_oracle():
    x0, draw = pictures(4, seed=1), a_draw()
    losses = optimal(torch.float32).class_losses(x0.float(), a_draw(dtype=torch.float32))
    close(losses.double(), optimal().class_losses(x0, draw), FLOAT32_NETWORK)


def test_losses_of_labels_are_entries_of_class_losses():
    x0, draw, labels = pictures(5, seed=1), a_draw(), torch.tensor([2, 0, 2, 1, 0])
    denoiser = optimal()
    picked = denoiser.class_losses(x0, draw).gather(1, labels[:, None])[:, 0]
    close(denoiser.losses_of_labels(x0, draw, labels), picked, FLOAT64_NETWORK)
    assert denoiser.losses_of_labels(x0[:0], draw, labels[:0]).shape == (0,)


def test_denoising_by_label_and_without():
    x_t, sigma, labels = (
        pictures(5, seed=2) * 2,
        torch.tensor([0.3, 0.5, 1.0, 2.0, 0.4]).double(),
        torch.tensor([1, 3, 0, 3, 2]),
    )
    denoiser = optimal()
    expected = [oracle_mean(x.numpy(), float(s), int(y)) for x, s, y in zip(x_t, sigma, labels, strict=True)]
    close(denoiser.denoise(x_t, sigma, labels), torch.from_numpy(np.stack(expected)), FLOAT64_NETWORK)
    null = denoiser.precondition.denoised(denoiser.f_null(x_t, sigma), x_t, sigma.reshape(-1, 1, 1, 1))
    expected = [oracle_mean(x.numpy(), float(s), CLASSES) for x, s in zip(x_t, sigma, strict=True)]
    close(null, torch.from_numpy(np.stack(expected)), FLOAT64_NETWORK)


def central_difference(function, x, direction, step=1e-5):
    with torch.no_grad():
        return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.mark.parametrize("lm", [None, "paper-v2,steps=2"])
@pytest.mark.parametrize("budget", [2048, 1])
def test_gradients_of_the_classifier_are_exact(lm, budget):
    """RDC on it too: LM differentiates the null label twice. In pieces as well as at once."""
    made = DiffusionClassifier(optimal(), "log:3:0.4:2:flat", lm=lm, memory_budget_mb=budget)
    x = (pictures(3, seed=3) + 1) / 2
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype)

    def margin(pixels):
        return (made(pixels) * torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype)).sum()

    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(margin(leaf), leaf)
    slope = (grad * direction).sum()
    assert float((slope - central_difference(margin, x, direction)).abs() / slope.abs()) < CLASSIFIER_DIFFERENCE


def test_it_is_a_classifier_like_any_other():
    made = DiffusionClassifier(optimal(torch.float32), "log:4:0.3:2:flat")
    x = (pictures(6, seed=3, dtype=torch.float32) + 1) / 2
    answer = made(x)
    assert answer.shape == (6, CLASSES)
    assert made.network_evaluations == 6 * 4 * CLASSES
    assert made.describe()["head"] == "optimal"
    assert made.describe()["denoiser"] == {"kind": "optimal", "images": len(LABELS), "exponent": "gaussian"}
    leaf = x.clone().requires_grad_()
    assert torch.equal(made(leaf).detach(), answer)
    known = (pictures(len(LABELS), dtype=torch.float32) + 1) / 2
    assert torch.equal(DiffusionClassifier(optimal(torch.float32), "log:4:0.05:0.2:flat")(known).argmax(1), LABELS)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(12, 24), LABELS, r"images: expected float32 or float64 \[n, C, H, W\]"),
        (torch.zeros(12, *SHAPE, dtype=torch.uint8), LABELS, "images: expected float32 or float64"),
        (torch.full((12, *SHAPE), 1.5), LABELS, r"images: expected values in \[-1, 1\]"),
        (torch.full((12, *SHAPE), torch.nan), LABELS, r"images: expected values in \[-1, 1\]"),
        (torch.zeros(12, *SHAPE), LABELS[:11], r"labels: expected int64 \[12\]"),
        (torch.zeros(12, *SHAPE), LABELS.float(), r"labels: expected int64 \[12\]"),
        (torch.zeros(12, *SHAPE), LABELS + 1, r"labels: expected 0..2; got 1 to 3"),
        (torch.zeros(12, *SHAPE), LABELS.clamp(max=1), "there is none of class 2"),
    ],
)
def test_wrong_images(images, labels, message):
    with pytest.raises(InputError, match=message):
        OptimalDenoiser(images, labels, CLASSES)


def test_wrong_settings():
    with pytest.raises(ConfigError, match="exponent: expected gaussian or released"):
        optimal(exponent="2s")
    with pytest.raises(ConfigError, match="the optimal denoiser computes in float32"):
        DiffusionClassifier(optimal(), "log:3:0.4:2:flat", precision="bfloat16")


def test_export_gives_the_same_answers(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")  # noqa: F841
    from rdc.export import export_onnx
    from rdc.runtime import OnnxClassifier

    made = DiffusionClassifier(optimal(torch.float32), "log:3:0.3:2:flat")
    export_onnx(made, tmp_path / "optimal.onnx")
    x = (pictures(5, seed=3, dtype=torch.float32) + 1) / 2
    answer = torch.from_numpy(OnnxClassifier(tmp_path / "optimal.onnx")(x.numpy()).class_losses)
    close(answer, made.class_losses(x), ONNX_PARITY)
    assert made.denoiser.distribution.backend == "auto"
