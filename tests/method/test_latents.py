"""Diffusion in latents: the same numbers as an explicit composition, exact gradients in pixels, the budget kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rdc
from rdc.certification.noised import NoisedDiffusion
from rdc.defences import ScoreBasedClassifier
from rdc.defences.purifiers import DiffusionPurifier
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import ConditionalDenoiser
from rdc.method.latents import LatentDenoiser, latent_shape
from rdc.method.likelihood import LikelihoodSettings, elbo, log_likelihood
from rdc.method.sampling import sample_classes
from tests.oracles import GaussianNetwork
from tests.tolerances import CENTRAL_DIFFERENCE, FLOAT32_ULP, FLOAT64_NETWORK, FLOAT64_ORDER, ONNX_PARITY

IMAGE, LATENT, CLASSES, LEVELS = (1, 8, 6), (2, 4, 3), 3, "log:4:0.2:2:flat"
GENERATOR = torch.Generator().manual_seed(0)
MEANS = 0.6 * torch.randn(CLASSES, *LATENT, generator=GENERATOR, dtype=torch.float64)
PIXELS = 0.1 + 0.8 * torch.rand(5, *IMAGE, generator=GENERATOR, dtype=torch.float64)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 2, 2, stride=2)

    def forward(self, x):
        return torch.nn.functional.silu(self.convolution(x))


def inner(dtype=torch.float64):
    return ConditionalDenoiser(GaussianNetwork(MEANS, 0.1).to(dtype), CLASSES, LATENT)


def classifier(dtype=torch.float64, **settings):
    return DiffusionClassifier(LatentDenoiser(inner(dtype), Encoder().to(dtype), IMAGE), LEVELS, **settings)


def test_it_is_the_classifier_of_the_latents():
    latents = Encoder().double()(2 * PIXELS - 1)
    expected = DiffusionClassifier(inner(), LEVELS)((latents + 1) / 2)
    assert (classifier()(PIXELS) - expected).abs().max() < FLOAT64_NETWORK


@pytest.mark.parametrize("lm", [None, "paper-v2,steps=2"])
def test_the_gradient_in_pixels_is_that_of_differences(lm):
    model = classifier(lm=lm)
    pixels = PIXELS[:2].clone().requires_grad_()
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(model(pixels)[:, 1].sum(), pixels)
    step = 1e-6
    with torch.no_grad():
        rise = (model(pixels + step * direction) - model(pixels - step * direction))[:, 1].sum() / (2 * step)
    slope = (gradient * direction).sum()
    assert slope.abs() > 0.1
    assert (rise - slope).abs() < CENTRAL_DIFFERENCE * max(1, slope.abs())


def test_likelihood_maximisation_moves_pixels_within_its_budget():
    model = classifier(lm="paper-v2")
    moved = model.maximize_likelihood(PIXELS)
    assert moved.shape == PIXELS.shape
    assert 0 < (moved - PIXELS).abs().max() <= 8 / 255 + FLOAT64_ORDER


def test_a_small_budget_changes_no_number(monkeypatch):
    whole = classifier()
    pixels = PIXELS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(whole(pixels)[:, 0].sum(), pixels)
    calls = []
    pieces = classifier()
    pieces._bytes = {("encode", torch.float64, pixels.device): 2**21, (torch.float64, pixels.device): 2**21}
    pieces.memory_budget_mb = 4.0
    encode = pieces.denoiser.encode
    monkeypatch.setattr(pieces.denoiser, "encode", lambda x: calls.append(len(x)) or encode(x))
    (found,) = torch.autograd.grad(pieces(pixels)[:, 0].sum(), pixels)
    assert max(calls) < len(PIXELS)
    assert (found - expected).abs().max() < FLOAT64_NETWORK


def test_it_is_attacked_and_described():
    model = classifier(torch.float32)
    pixels = PIXELS.float()
    result = rdc.attack(model, pixels, model(pixels).argmax(1), eps=0.3, steps=10, attacks="apgd-ce")
    assert result.clean_accuracy == 1 and result.accuracy < 1
    assert (result.adversarial - pixels).abs().max() <= 0.3 + FLOAT32_ULP
    described = model.describe()
    assert described["latents"] == {"shape": list(LATENT), "likelihood_maximization": "in pixels"}
    assert model.head == "conditional, latent"
    assert model.evaluations_per_image == 4 * CLASSES


def test_the_exported_file_has_the_encoder_in_it(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from rdc.export import export_onnx

    model = classifier(torch.float32, lm="paper-v2,steps=2")
    export_onnx(model, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    pixels = (PIXELS * 255).round() / 255
    feed = {session.get_inputs()[0].name: pixels.float().numpy()}
    (found,) = session.run(["log_probabilities"], feed)
    expected = model(pixels.float())
    assert (torch.from_numpy(found) - expected).abs().max() < ONNX_PARITY * expected.abs().max()


def test_from_denoiser_takes_an_encoder():
    def net(z, time, labels):
        return z * 0.1 + labels.reshape(-1, 1, 1, 1).to(z)

    model = rdc.from_denoiser(
        net,
        num_classes=CLASSES,
        image_shape=IMAGE,
        predicts="eps",
        schedule="vp-linear",
        encoder=Encoder(),
        levels=LEVELS,
    )
    assert model.denoiser.latent_shape == LATENT and model.image_shape == IMAGE
    assert model(PIXELS.float()).shape == (5, CLASSES)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: log_likelihood(model.denoiser, 2 * PIXELS - 1, LikelihoodSettings(), range(5)),
        lambda model: elbo(model.denoiser, 2 * PIXELS - 1, LikelihoodSettings(), range(5)),
        lambda model: sample_classes(model.denoiser, 1),
        lambda model: NoisedDiffusion(model, 0.25, "epndc", 1),
        lambda model: ScoreBasedClassifier(model.denoiser),
        lambda model: DiffusionPurifier(model.denoiser),
    ],
)
def test_what_has_a_meaning_in_pixels_alone_is_refused(use):
    with pytest.raises(ConfigError, match="expected a diffusion model of pixels"):
        use(classifier())


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (nn.Conv2d(3, 2, 2, stride=2), "it raised RuntimeError"),
        (nn.Flatten(), "encoder: expected latents"),
        (nn.Conv2d(1, 2, 2, stride=1), r"expected latents \[2, 4, 3\] of images \[1, 8, 6\]; got \[2, 7, 5\]"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(encoder, words):
    with pytest.raises(ConfigError, match=words):
        LatentDenoiser(inner(torch.float32), encoder, IMAGE)


def test_shapes():
    assert latent_shape(Encoder(), IMAGE) == LATENT
