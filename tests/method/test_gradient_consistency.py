"""The classifier's gradient is that of the function it computes: autograd = central differences, whatever its parts."""

import dataclasses
import functools

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import ConditionalDenoiser, make_denoiser
from rdc.method.levels import SCHEMES, WEIGHTINGS
from rdc.method.likelihood_maximization import LM_PRESETS, LikelihoodMaximization
from rdc.networks.presets import build_network
from tests.oracles import GaussianNetwork
from tests.tiny_models import randomize
from tests.tolerances import CENTRAL_DIFFERENCE

SHAPE, CLASSES = (2, 4, 4), 3
SONG = {
    "architecture": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
#: kinds of network, each the smallest that has the part it is named after
NETWORKS = {
    "conditional": {},
    "attention, two resolutions": {"unet": SONG | {"attn_resolutions": [2], "channel_mult": [1, 1]}},
    "patches, adaptive scale": {"patch_size": 2, "unet": SONG | {"adaptive_scale": True, "middle_attention": False}},
    "ncsn++": {
        "unet": SONG
        | {
            "channel_mult": [1, 1],
            "embedding_type": "fourier",
            "channel_mult_noise": 2,
            "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
        }
    },
    "adm": {
        "unet": {
            "architecture": "DhariwalUNet",
            "model_channels": 8,
            "channel_mult": [1],
            "channel_mult_emb": 2,
            "num_blocks": 1,
            "attn_resolutions": [],
            "dropout": 0.0,
        }
    },
    "multi-head": {"kind": "multihead", "patch_size": 2, "wide_channels": 8},
    "multi-head, no patches": {"kind": "multihead", "patch_size": 1, "wide_channels": 8},
    "gaussian": None,
}
#: what happens before classification; numbers of steps that a test can afford
LM = {
    "none": None,
    "paper-v1": dataclasses.replace(LM_PRESETS["paper-v1"], levels=None, levels_per_step=2, steps=2),
    "paper-v2": dataclasses.replace(LM_PRESETS["paper-v2"], steps=2),
    "paper-v2, no projection": dataclasses.replace(LM_PRESETS["paper-v2"], steps=3, eta=None),
    "released": dataclasses.replace(LM_PRESETS["released"], steps=2),
    "rmsprop": LikelihoodMaximization(optimizer="rmsprop", steps=2, step_size=0.002, normalize="none"),
    "one step": LikelihoodMaximization(optimizer="sgd", steps=1, sign=False, step_size=0.03, normalize="mean_abs"),
}


@functools.lru_cache(None)
def denoiser(name):
    if name == "gaussian":
        means = 0.5 * torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        return ConditionalDenoiser(GaussianNetwork(means, 0.3), CLASSES, SHAPE)
    base = {"kind": "conditional", "image_shape": list(SHAPE), "num_classes": CLASSES, "sigma_data": 0.5, "unet": SONG}
    config = base | NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = randomize(build_network(config))
    return make_denoiser(network.double(), config)


@st.composite
def cases(draw):
    low = draw(st.floats(0.05, 1.0))
    levels = (
        draw(st.sampled_from(sorted(SCHEMES))),
        draw(st.integers(1, 6)),
        low,
        low * draw(st.floats(1.5, 8.0)),
        draw(st.sampled_from(sorted(WEIGHTINGS))),
    )
    return {
        "network": draw(st.sampled_from(sorted(NETWORKS))),
        "lm": draw(st.sampled_from(sorted(LM))),
        "levels": ":".join(map(str, levels)),
        "count": draw(st.integers(1, 2)),
        "contrast": draw(st.sampled_from([0.02, 0.3, 0.9])),
        "seed": draw(st.integers(0, 2**20)),
        "memory_budget_mb": draw(st.sampled_from([0.01, 1024.0])),
        "logit_scale": draw(st.sampled_from(["sum", "mean", 0.01])),
    }


def case(network, lm, memory_budget_mb=1024.0):
    levels = {"levels": "log:3:0.3:2:flat", "count": 2, "contrast": 0.5, "seed": 1}
    return {"network": network, "lm": lm, "memory_budget_mb": memory_budget_mb, "logit_scale": "mean", **levels}


def every_kind_once(function):
    """Each network and each LM at least once, whatever hypothesis draws; in pieces and whole."""
    for place, network in enumerate(NETWORKS):
        lm = list(LM)[place % len(LM)]
        function = example(case(network, lm, (0.01, 1024.0)[place % 2]))(function)
    return function


@pytest.mark.filterwarnings("ignore:memory_budget_mb")  # pieces of one image at one level are asked for
@settings(max_examples=16, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(cases())
@every_kind_once
def test_exact_gradient_is_that_of_central_differences(case):
    classifier = DiffusionClassifier(
        denoiser(case["network"]), case["levels"], lm=LM[case["lm"]], noise_seed=case["seed"],
        logit_scale=case["logit_scale"], memory_budget_mb=case["memory_budget_mb"],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(case["seed"])

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    draw = torch.rand(case["count"], *SHAPE, generator=generator, dtype=torch.float64)
    pixels = 0.5 + case["contrast"] * (draw - 0.5)
    upstream = normal(case["count"], CLASSES)
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((classifier(leaf) * upstream).sum(), leaf)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    for _ in range(2):
        way = normal(*pixels.shape)
        way /= way.norm()
        h = 1e-6
        with torch.no_grad():
            ends = [(classifier(pixels + sign * h * way) * upstream).sum() for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * h)
        assert abs((gradient * way).sum() - numeric) <= CENTRAL_DIFFERENCE * gradient.norm(), case
