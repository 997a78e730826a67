"""RDC with two networks: one moves the input, another classifies."""

import copy

import pytest
import torch

from rdc.contracts import NetworkUse
from rdc.defences import DiffusionPurifier, LikelihoodPurifier
from rdc.errors import ConfigError
from rdc.execution.memory import peak_bytes, tensor_bytes
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import Denoiser, make_denoiser
from rdc.method.likelihood_maximization import maximize_likelihood, resolve_lm
from rdc.networks.presets import build_network
from rdc.networks.vp import VPNetwork, vp_sigmas
from rdc.provenance.networks import described_networks, doubtful_null_labels
from rdc.provenance.run import weights_digest
from tests.tiny_models import CLASSES, CONFIG, LEVELS, SHAPE, pixels, randomize, tiny_denoiser
from tests.tolerances import BFLOAT16_LOGITS, CENTRAL_DIFFERENCE, FLOAT32_STEPS

LM = "paper-v2,steps=3,levels_per_step=2"
SMOOTH = "released,steps=2"  # Adam, no sign: smooth enough for central differences


def unconditional(dtype=torch.float32, width=8, seed=5) -> Denoiser:
    config = copy.deepcopy(CONFIG) | {"num_classes": 0}
    config["unet"]["model_channels"] = width
    with torch.random.fork_rng():
        network = randomize(build_network(config), seed=seed)
    return make_denoiser(network.to(dtype), config)


def rdc2(kind="conditional", dtype=torch.float32, other=None, **settings) -> DiffusionClassifier:
    other = unconditional(dtype) if other is None else other
    return DiffusionClassifier(
        tiny_denoiser(kind, dtype), **{"levels": LEVELS, "lm": LM, "lm_denoiser": other, **settings}
    )


def gradient(model, x, weights):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad((model(leaf) * weights).sum(), leaf)[0]


def weighting(x):
    return torch.randn(len(x), CLASSES, generator=torch.Generator().manual_seed(1), dtype=x.dtype)


@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_the_second_network_moves_and_the_first_classifies(kind):
    other, x = unconditional(), pixels()
    model = rdc2(kind, other=other)
    moved = (maximize_likelihood(other, 2 * x - 1, resolve_lm(LM)) + 1) / 2
    assert torch.equal(model.purify(x), moved)
    plain = DiffusionClassifier(model.denoiser, LEVELS)
    assert torch.allclose(model(x), plain(moved), atol=FLOAT32_STEPS)
    assert torch.equal(model.with_(lm=None)(x), plain(x))
    own = model.with_(lm_denoiser=None)
    assert not torch.equal(own.purify(x), moved) and torch.equal(
        own(x), DiffusionClassifier(model.denoiser, LEVELS, lm=LM)(x)
    )
    assert (
        torch.equal(model.with_(lm_denoiser=model.denoiser)(x), own(x))
        and model.with_(lm_denoiser=model.denoiser).lm_denoiser is None
    )


def test_exact_gradient_is_that_of_central_differences():
    model, x = rdc2(dtype=torch.float64, lm=SMOOTH), pixels(2, dtype=torch.float64)
    weights = weighting(x)
    found = gradient(model, x, weights)
    for seed in range(3):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            up, down = ((model(x + sign * 1e-6 * direction) * weights).sum() for sign in (1, -1))
        assert float((found * direction).sum()) == pytest.approx(float(up - down) / 2e-6, rel=CENTRAL_DIFFERENCE)


def test_bpda_is_the_classifiers_gradient_at_the_moved_image():
    model, x = rdc2(), pixels(2)
    bpda, weights = model.with_(gradient="bpda"), weighting(pixels(2))
    moved = model.purify(x).detach()
    expected = gradient(DiffusionClassifier(model.denoiser, LEVELS), moved, weights)
    assert torch.allclose(gradient(bpda, x, weights), expected, rtol=FLOAT32_STEPS, atol=FLOAT32_STEPS)
    assert not torch.allclose(gradient(model, x, weights), expected, rtol=FLOAT32_STEPS, atol=FLOAT32_STEPS)


def test_functional_call_reaches_both_networks():
    model, x = rdc2(lm=SMOOTH), pixels(1)
    doubled = {
        name: 1.5 * value
        for name, value in model.named_parameters()
        if name.startswith("lm_denoiser") and value.ndim > 1
    }
    assert doubled
    with_them = torch.func.functional_call(model, doubled, (x,))
    assert not torch.equal(with_them, model(x))

    def logits(pixels):
        return torch.func.functional_call(model, doubled, (pixels,)).sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(logits(leaf), leaf)
    assert torch.allclose(torch.func.grad(logits)(x), expected, rtol=FLOAT32_STEPS, atol=FLOAT32_STEPS)


# --- counts, memory, precision --------------------------------------------------------------------------------------
def test_counts_are_those_of_the_networks(monkeypatch):
    model, x, rows = rdc2(), pixels(4), {"own": 0, "other": 0}
    model(x)
    for name, denoiser in (("own", model.denoiser), ("other", model.lm_denoiser)):
        denoiser.network.register_forward_pre_hook(
            lambda network, inputs, name=name: rows.update({name: rows[name] + len(inputs[0])})
        )
    model.network_evaluations = 0
    with torch.no_grad():
        model(x)
    assert rows == {"own": 4 * 5 * CLASSES, "other": 4 * 3 * 2}
    assert model.network_evaluations == sum(rows.values()) == 4 * model.evaluations_per_image


@pytest.mark.parametrize("wide", [False, True], ids=["the classifier is larger", "the mover is larger"])
def test_the_larger_working_set_keeps_the_budget(wide):
    budget = 6.0
    model = rdc2(
        "multihead", other=unconditional(width=32 if wide else 8), memory_budget_mb=budget, lm="paper-v2,steps=2"
    )
    x, weights = pixels(48), weighting(pixels(48))
    gradient(model, pixels(2), weights[:2])  # measures
    assert peak_bytes(lambda: gradient(model, x, weights)) < 1.25 * tensor_bytes(budget, torch.device("cpu"))
    large = model.with_(memory_budget_mb=2048)
    assert torch.allclose(model(x), large(x), rtol=FLOAT32_STEPS, atol=FLOAT32_STEPS)
    assert torch.allclose(model.penalty(x), large.penalty(x), rtol=FLOAT32_STEPS)


def test_what_one_image_takes_is_measured_on_the_network_that_is_asked():
    small, large = (rdc2(other=unconditional(width=width)) for width in (8, 32))
    for model in (small, large):
        model.penalty(pixels(2))
        model(pixels(2))
    measured = [
        {key[0]: size for key, size in model._bytes.items() if not isinstance(key[0], torch.dtype)}
        for model in (small, large)
    ]
    assert len(measured[0]) == 3  # steps of LM, a step at one of its levels, and its objective
    assert all(measured[1][key] > 2 * measured[0][key] for key in measured[0])


def test_precision_is_that_of_both_networks():
    model, x = rdc2(), pixels()
    half = model.with_(precision="bfloat16")
    assert half.denoiser.precision == half.lm_denoiser.precision == "bfloat16"
    assert model.denoiser.precision == model.lm_denoiser.precision == "float32"
    assert half.lm_denoiser.network is model.lm_denoiser.network
    assert not torch.equal(half.purify(x), model.purify(x))
    assert (half(x) - model(x)).abs().max() < BFLOAT16_LOGITS * model(x).abs().max()


def test_both_move_to_another_type_and_stay_frozen():
    model = rdc2()
    assert not any(p.requires_grad for p in model.parameters())
    assert model.train() is model and not any(part.training for part in model.modules())
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}
    assert model(pixels(1, dtype=torch.float64)).dtype == torch.float64


# --- what it says of itself -----------------------------------------------------------------------------------------
def test_both_are_in_the_digest_and_named():
    model, same, another = rdc2(), rdc2(), rdc2(other=unconditional(seed=6))
    assert weights_digest(model) == weights_digest(same) != weights_digest(another)
    assert model.describe() == same.describe() and model.describe()["lm_network"]["head"] == "unconditional"
    own, mover = described_networks(model)
    assert (own["role"], mover["role"]) == ("classification", "likelihood maximisation")
    assert own["weights"] == weights_digest(model.denoiser) and mover["weights"] == weights_digest(model.lm_denoiser)
    assert (own["null_label"], mover["null_label"]) == (None, "trained")
    assert "lm_network" not in model.with_(lm=None).describe() and len(described_networks(model.with_(lm=None))) == 1
    assert "lm_network" not in model.with_(lm_denoiser=None).describe()


def test_a_null_label_in_doubt_is_named_where_it_is_asked():
    model = rdc2()
    assert doubtful_null_labels(model) == []
    (line,) = doubtful_null_labels(model.with_(lm_denoiser=None))
    assert "nobody knows if the null label of conditional was trained" in line
    assert doubtful_null_labels(model.with_(lm=None, lm_denoiser=None)) == []
    assert isinstance(model.networks()[0], NetworkUse)


def test_an_anytime_calibration_belongs_to_both_networks():
    from rdc.decisions.anytime.calibration import fingerprint

    model, another = rdc2(), rdc2(other=unconditional(seed=6))
    assert fingerprint(model) == fingerprint(rdc2()) != fingerprint(another)
    assert fingerprint(model.with_(lm=None)) == fingerprint(another.with_(lm=None))


# --- what is refused ------------------------------------------------------------------------------------------------
def labels_only() -> Denoiser:
    network = VPNetwork(lambda x, step, weights: x, vp_sigmas({}), "epsilon", CLASSES)
    return make_denoiser(network, CONFIG)


def other_shape() -> Denoiser:
    config = copy.deepcopy(CONFIG) | {"num_classes": 0, "image_shape": [1, 8, 8]}
    return make_denoiser(build_network(config), config)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (other_shape, r"expected a network for images \[2, 8, 8\], which the classifier takes; it takes \[1, 8, 8\]"),
        (lambda: unconditional(torch.float64), r"weights of the classifier's type; got torch.float64"),
        (labels_only, "expected an unconditional network, or one with a null label"),
        (lambda: "fashion-mnist", "expected a rdc.method.denoiser.Denoiser"),
        (lambda: unconditional().to("meta"), "expected it on cpu, where the classifier's network is; it is on meta"),
    ],
)
def test_networks_that_do_not_go_together(other, match):
    with pytest.raises(ConfigError, match=match):
        rdc2(other=other())


def test_an_unconditional_network_cannot_classify():
    with pytest.raises(ConfigError, match="num_classes"):
        DiffusionClassifier(unconditional(), LEVELS)


@pytest.mark.parametrize("make", [lambda net: LikelihoodPurifier(net, LM), lambda net: DiffusionPurifier(net, steps=2)])
def test_an_unconditional_network_purifies(make):
    purifier, x = make(unconditional()), pixels(2)
    moved = purifier(x)
    assert moved.shape == x.shape and not torch.equal(moved, x)
    value = purifier.penalty(x, 0)
    assert value is None or (value.shape == (2,) and bool(value.isfinite().all()))
    assert unconditional().null_training.trained and SHAPE == unconditional().image_shape
