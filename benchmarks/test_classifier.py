"""Classification and attack steps of the shipped networks: one thread, validated before timed.

pytest benchmarks/test_classifier.py --benchmark-only --benchmark-json=out/classifier.json
"""

from __future__ import annotations

import pytest
import torch

import rdc
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import ConditionalDenoiser, MultiHeadDenoiser
from rdc.networks.presets import build_network, network_preset
from rdc.training.distillation import student_from_teacher

LEVELS, BATCH = "log:8:0.5:4:flat", 4


@pytest.fixture(scope="module")
def images():
    return rdc.load_dataset("fashion-mnist-sample").pixels(range(BATCH))


@pytest.fixture(scope="module")
def classifiers():
    """The same trunk with K passes and with the multi-head last layers (weights do not matter for time)."""
    config = network_preset("small-28", 10)
    network = build_network(config)
    student, made = student_from_teacher(network, config)
    shape = tuple(config["image_shape"])
    kinds = {"conditional": ConditionalDenoiser(network, 10, shape), "multihead": MultiHeadDenoiser(student, 10, shape)}
    for denoiser in kinds.values():
        denoiser.to(memory_format=torch.channels_last)
    return {kind: DiffusionClassifier(denoiser, LEVELS) for kind, denoiser in kinds.items()}


@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_classification(benchmark, classifiers, images, kind):
    classifier = classifiers[kind]
    with torch.no_grad():
        log_p = classifier(images)
        assert torch.allclose(log_p.logsumexp(1), torch.zeros(BATCH), atol=1e-4)
        benchmark.extra_info |= {"images": BATCH, "network_passes_per_image": classifier.evaluations_per_image}
        benchmark(classifier, images)


@pytest.mark.parametrize("gradient", ["dc-exact", "rdc-exact", "rdc-bpda"])
def test_attack_step(benchmark, classifiers, images, gradient):
    """One all-pixel gradient of the multi-head classifier, through likelihood maximisation (five steps) where named."""
    name, mode = gradient.split("-")
    classifier = classifiers["multihead"].with_(lm="paper-v2" if name == "rdc" else None, gradient=mode)

    def step():
        x = images.clone().requires_grad_()
        return torch.autograd.grad(classifier(x)[:, 0].sum(), x)[0]

    assert torch.isfinite(step()).all() and step().abs().max() > 0
    benchmark.extra_info["images"] = BATCH
    benchmark(step)
