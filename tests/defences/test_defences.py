"""Defences other than the diffusion classifier: exact gradients, interfaces, bad input."""

import sys

import pytest
import torch
from torch import nn

from rdc.data import Dataset
from rdc.defences import (
    DiffusionPurifier,
    ForeignDefence,
    LikelihoodPurifier,
    PlainClassifier,
    PurifiedClassifier,
    as_defence,
    is_factory,
    load_factory,
)
from rdc.errors import ConfigError, InputError
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.method.denoiser import ConditionalDenoiser
from rdc.method.lm_move import SOFTENED
from rdc.models.joined import diffpure_in_front, lm_in_front
from tests.evaluation_models import CLASSES, NAMES, gaussian_classifier, images, labelled_by
from tests.oracles import GaussianNetwork
from tests.tolerances import CENTRAL_DIFFERENCE, FLOAT32_NETWORK, FLOAT32_STEPS, HEUN_400, QUITE_DIFFERENT_GRADIENT

SHAPE = (1, 8, 8)
WEIGHT = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def forward(self, x):
        return torch.tanh(3 * (x.flatten(1) - 0.5)) @ WEIGHT.to(x.dtype)


def denoiser(dtype=torch.float32):
    means = 0.6 * torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(3))
    return ConditionalDenoiser(GaussianNetwork(means, 0.2), CLASSES, SHAPE).to(dtype)


def pixels(n=3, dtype=torch.float32):
    return images(n, seed=2).to(dtype) / 255 * 0.8 + 0.1


def purifiers(dtype=torch.float32, **settings):
    return {
        "lm": LikelihoodPurifier(denoiser(dtype), "paper-v2,steps=5,eta=none", **settings),
        "sde": DiffusionPurifier(denoiser(dtype), sigma=0.5, steps=4, **settings),
        "ode": DiffusionPurifier(denoiser(dtype), sigma=0.5, steps=4, sampler="ode", **settings),
    }


@pytest.mark.parametrize("name", ["lm", "sde", "ode"])
def test_exact_gradient_is_that_of_central_differences(name):
    """Float64, five steps of LM or the whole reverse diffusion, checkpointed."""
    model = PurifiedClassifier(purifiers(torch.float64)[name], Net(), num_classes=CLASSES)
    x = pixels(2, torch.float64).requires_grad_()
    logits = model(x)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((logits * weights).sum(), x)
    for seed in range(3):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            up, down = ((model(x + sign * 1e-8 * direction) * weights).sum() for sign in (1, -1))
        assert float((gradient * direction).sum()) == pytest.approx(float(up - down) / 2e-8, rel=CENTRAL_DIFFERENCE)


@pytest.mark.parametrize("name", ["lm", "sde", "ode"])
def test_pieces_and_batches_change_nothing(name):
    small = PurifiedClassifier(purifiers(memory_budget_mb=0.001)[name], Net(), num_classes=CLASSES)
    large = PurifiedClassifier(purifiers()[name], Net(), num_classes=CLASSES)
    x = pixels(5)
    assert torch.allclose(small(x), large(x), atol=FLOAT32_STEPS)  # float32, five steps along normalised gradients
    assert torch.allclose(large(x)[2:3], large(x[2:3]), atol=FLOAT32_NETWORK)


def test_bpda_has_the_value_of_exact_and_the_gradient_of_the_classifier():
    exact = PurifiedClassifier(purifiers()["sde"], Net(), num_classes=CLASSES)
    bpda = exact.with_(gradient="bpda")
    x = pixels().requires_grad_()
    assert torch.equal(exact(x), bpda(x))
    moved = exact.purify(x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(Net()(moved)[:, 0].sum(), moved)
    (found,) = torch.autograd.grad(bpda(x)[:, 0].sum(), x)
    assert torch.allclose(found, expected)
    (other,) = torch.autograd.grad(exact(x)[:, 0].sum(), x)
    assert not torch.allclose(found, other, rtol=QUITE_DIFFERENT_GRADIENT)


def test_diffpure_of_gaussian_data_by_the_ode_is_known():
    """One Gaussian class: the probability-flow ODE contracts towards the mean by sqrt(v / (v + sigma^2))."""
    mean, variance, sigma = torch.zeros(1, *SHAPE), 0.3, 0.5
    purifier = DiffusionPurifier(
        ConditionalDenoiser(GaussianNetwork(mean, variance), 1, SHAPE),
        sigma=sigma,
        steps=400,
        sigma_min=1e-3,
        sampler="ode",
    )
    x = pixels(4)
    noise = purifier(x, 0) - purifier(x, 1)
    assert float(noise.abs().max()) > 0.01  # other draws, other images
    noisy = x * 0 + 0.5  # x0 = 0: what is left is the noise, contracted
    left = 2 * purifier(noisy, 0) - 1
    from rdc.method.noise import NoisePlan

    start = sigma * NoisePlan(2, "fresh", stream=2).normal(0, 401, SHAPE)[0]
    expected = start * (variance / (variance + sigma**2)) ** 0.5
    assert torch.allclose(left[0], expected, atol=HEUN_400)


def test_noise_policies():
    model = PurifiedClassifier(purifiers()["sde"], Net(), num_classes=CLASSES)
    x = pixels()
    assert torch.equal(model(x), model(x))
    fresh = model.with_(noise="fresh", noise_seed=5)
    first, second = fresh(x), fresh(x)
    assert not torch.equal(first, second)
    fresh.set_draw(0)
    assert torch.equal(fresh(x), first)
    assert not torch.equal(model.with_(noise="fresh", noise_seed=6)(x), first)


def test_counts_evaluations():
    model = PurifiedClassifier(purifiers()["lm"], Net(), num_classes=CLASSES).with_()
    model(pixels(3))
    assert model.network_evaluations == 3 * 6 == 3 * model.evaluations_per_image


def test_penalty_is_what_the_purifier_makes_small():
    model = PurifiedClassifier(LikelihoodPurifier(denoiser(), "paper-v2"), Net(), num_classes=CLASSES)
    x = pixels(6)
    assert (model.penalty(model.purify(x).detach()) < model.penalty(x)).all()
    assert (
        set(model.surrogates())
        == {
            "plain",
            "one-step",
            "fresh",
            *SOFTENED,
            "straight-through",
            "unclipped",
        }
        and model.has_penalty
    )
    plain = as_defence(Net(), x)
    assert not plain.has_penalty and plain.surrogates() == {}
    with pytest.raises(ConfigError, match="optimises nothing"):
        plain.penalty(x)


def test_diffusion_classifier_offers_the_same():
    model, x = gaussian_classifier(lm="paper-v2"), pixels(4)
    assert (model.penalty(model.purify(x).detach()) < model.penalty(x)).all()
    assert set(model.surrogates()) == {
        "plain",
        "one-step",
        "fresh",
        *SOFTENED,
        "straight-through",
        "unclipped",
    }
    assert set(gaussian_classifier().surrogates()) == {"fresh"}
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.penalty(leaf).sum(), leaf)
    assert gradient.abs().sum() > 0


class Theirs:
    """Somebody's defence, with randomness of its own."""

    def purify(self, x):
        return x + 0.1 * torch.randn_like(x) * x

    def classify(self, x):
        return Net()(x)


def test_foreign_defence_is_rebuilt_with_the_same_random_numbers():
    model = ForeignDefence(Theirs(), image_shape=SHAPE, num_classes=CLASSES)
    x = pixels().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (found,) = torch.autograd.grad(model(x).sum(), x)
        torch.manual_seed(0)
        (expected,) = torch.autograd.grad(Theirs().classify(Theirs().purify(x)).sum(), x)
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("make", [lambda: Net(), lambda: Theirs(), lambda: Net().forward])
def test_evaluation_takes_anything(tmp_path, make):
    x = images(12, seed=5)
    model = as_defence(make(), x[:2].float() / 255, class_names=NAMES)
    data = labelled_by(gaussian_classifier(), 12, 0)
    settings = EvaluationSettings("m", "d", n=12, steps=3, attacks=("apgd-ce",), sanity=4, eps="16/255")
    report = evaluate(model, data, settings, tmp_path / "run", progress=False).report
    assert 0 <= report["robust"]["accuracy"] <= report["clean"]["accuracy"] <= 1


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x.flatten(1).numpy(), "numpy.ndarray"),
        (lambda x: x, "got shape"),
        (lambda x: x.flatten(1)[:1], "got shape"),
        (lambda x: x.flatten(1)[:, :1], "got shape"),
        (lambda x: x.flatten(1).argmax(1), "got shape"),
        (lambda x: (255 * x.flatten(1)).long(), "floating"),
        (lambda x: torch.full((len(x), 4), torch.nan), "NaN"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_answers_that_are_no_logits(answer, words):
    with pytest.raises(InputError, match=words):
        as_defence(answer, pixels(2))


def test_what_is_no_model():
    with pytest.raises(ConfigError, match="purify"):
        as_defence(3, pixels(2))


def test_an_answer_may_go_wrong_later(tmp_path):
    model = as_defence(lambda x: Net()(x) if len(x) < 8 else None, pixels(2))
    data = labelled_by(gaussian_classifier(), 12, 0)
    settings = EvaluationSettings("m", "d", n=12, batch=4, attacks=())
    assert evaluate(model, data, settings, tmp_path / "run", progress=False).report["n"] == 12
    with pytest.raises(InputError, match="NoneType"):
        model(pixels(9))


def test_factories(tmp_path, monkeypatch):
    assert is_factory("package.module:make") and is_factory("m:Class.make")
    for text in ("fashion-mnist", "runs/teacher", "a-b:c", "x:", ":y", "log:8:1:4:flat"):
        assert not is_factory(text)
    (tmp_path / "their_models.py").write_text(
        "import torch\n"
        "def make():\n    return lambda x: x.flatten(1)[:, :4] * 3\n"
        "def needs(path):\n    pass\n"
        "def broken():\n    raise OSError('no weights')\n"
        "number = 3\n"
    )
    (tmp_path / "their_typo.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = load_factory("their_models:make", pixels(2), NAMES)
    assert isinstance(model, PlainClassifier) and model.class_names == NAMES and model.num_classes == 4
    for name, words in {
        "their_models:needs": "needs path",
        "their_models:broken": "no weights",
        "their_models:absent": "it has",
        "their_models:number": "expected a function",
        "their_typo:make": "nothing_of_that_name",
        "not_there:make": "cannot be imported",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load_factory(name, pixels(2), NAMES)


@pytest.mark.parametrize("settings", [{"sigma": 0.01}, {"steps": 0}, {"sampler": "euler"}, {"memory_budget_mb": 0}])
def test_diffpure_refuses(settings):
    with pytest.raises(ConfigError):
        DiffusionPurifier(denoiser(), **settings)


def test_settings_that_do_not_exist():
    with pytest.raises(ConfigError, match="no such setting"):
        as_defence(Net(), pixels(2)).with_(lm="paper-v2")
    with pytest.raises(ConfigError, match="gradient"):
        as_defence(Net(), pixels(2)).with_(gradient="none")
    with pytest.raises(ConfigError, match="at least one step"):
        LikelihoodPurifier(denoiser(), "none")


def test_examples_are_evaluated_with_all_adaptive_attacks(tmp_path):
    """LM + network and DiffPure + network: every attack of the suite that applies runs; exact gradients do no worse."""
    plain = as_defence(Net(), pixels(2), class_names=NAMES)
    shown = images(8, seed=5)
    data = Dataset(shown, plain(shown.float() / 255).argmax(1), NAMES, "blobs", "test")
    made = {
        "lm": lm_in_front(plain, gaussian_classifier(), lm="paper-v2,steps=2"),
        "diffpure": diffpure_in_front(plain, gaussian_classifier(), steps=3),
    }
    for name, defence in made.items():
        settings = EvaluationSettings("m", "d", n=8, steps=2, attacks=("apgd-ce", "adaptive"), sanity=2)
        settings = settings.for_defence(defence, ("apgd-ce", "adaptive"))
        report = evaluate(defence, data, settings, tmp_path / name, progress=False).report
        ran = {attack["name"] for attack in report["attacks"]}
        assert {"apgd-ce:gradient=bpda", "transfer:surrogate=plain"} <= ran and ("lagrange" in ran) is (name == "lm")
        assert report["classifier"]["head"].endswith("+ model") and "bpda" in report["sanity"]
        assert defence.purify(data.pixels(range(2))).shape == (2, *SHAPE)


def test_examples_refuse():
    wide = PlainClassifier(Net(), image_shape=(1, 9, 9), num_classes=4)
    with pytest.raises(ConfigError, match="same images"):
        lm_in_front(wide, gaussian_classifier())
    with pytest.raises(ConfigError, match="expected a diffusion model"):
        diffpure_in_front(wide, wide)


def test_purified_classifiers_take_pixels_as_the_classifier_does():
    model = PurifiedClassifier(purifiers()["sde"], Net(), num_classes=CLASSES)
    x = pixels()
    x[:, :, 0] = 1.0
    off = x.clone()
    off[:, :, 0] = 1 + 1.2e-7
    assert torch.equal(model(off), model(x)) and torch.equal(model.purify(off), model.purify(x))
    theirs = as_defence(Theirs(), pixels(2))
    for use in (model, model.purify, theirs, theirs.purify):
        with pytest.raises(InputError, match=r"values from .* to 1\.00100"):
            use(off + 1e-3)
        with pytest.raises(InputError, match="got torch.uint8"):
            use((x * 255).to(torch.uint8))


@pytest.mark.parametrize(
    "make",
    [lambda: PlainClassifier(Sub(), image_shape=SHAPE, num_classes=CLASSES), lambda: as_defence(Sub(), pixels(2))],
)
def test_a_model_that_changes_its_input_gets_a_copy(make):
    model, x = make(), pixels()
    kept = x.clone()
    leaf = x.clone().requires_grad_()
    value = model(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    (expected,) = torch.autograd.grad((WEIGHT.T @ (leaf.flatten(1) - 0.5).T).sum(), leaf)
    assert torch.equal(model(x), value) and torch.equal(x, kept) and torch.allclose(slope, expected)


class Sub(nn.Module):
    def forward(self, x):
        return x.sub_(0.5).flatten(1) @ WEIGHT


def test_what_cannot_be_put_together():
    with pytest.raises(ConfigError, match="purifier: expected one of rdc.defences"):
        PurifiedClassifier(Net(), Net(), num_classes=CLASSES)
    with pytest.raises(ConfigError, match="classifier: expected a callable"):
        PurifiedClassifier(purifiers()["sde"], 3, num_classes=CLASSES)
    for draw in (1.5, "1", True, None):
        with pytest.raises(ConfigError, match="draw: expected an integer"):
            as_defence(Net(), pixels(2)).set_draw(draw)
