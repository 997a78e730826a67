"""Every shipped kind of defence keeps what the protocol promises, member by member."""

import inspect
import json

import pytest
import torch
from torch import nn

from rdc.contracts import BaseDefence, Defence, GradientMode, NoisePolicy
from rdc.decisions.anytime import AnytimeClassifier
from rdc.decisions.elimination import EliminatingClassifier
from rdc.defences import DiffusionPurifier, LikelihoodPurifier, PurifiedClassifier, ScoreBasedClassifier, as_defence
from rdc.errors import ConfigError
from rdc.method.denoiser import make_denoiser
from rdc.method.probability_flow import FlowSettings
from rdc.networks.presets import build_network
from rdc.provenance.run import weights_digest
from tests.evaluation_models import CLASSES, NAMES, SHAPE, TINY, gaussian_classifier, images
from tests.tiny_models import randomize
from tests.tolerances import FLOAT32_GRADIENT, FLOAT32_ROUNDING, FLOAT32_SUM

WEIGHT = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))
LM = "paper-v2,steps=3"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())

    def forward(self, x):
        return torch.tanh(3 * (x.flatten(1) - 0.5)) @ self.weight


class Theirs(nn.Module):
    """Somebody's defence: blurs, then classifies."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def purify(self, x):
        return nn.functional.avg_pool2d(x, 3, 1, 1)

    def classify(self, x):
        return self.net(x)


def pixels(n=3):
    return images(n, seed=2).float() / 255 * 0.8 + 0.1


def anytime():
    made = AnytimeClassifier(gaussian_classifier(lm=LM), 0.2)
    made.calibrate(images(64, seed=9).float() / 255)
    return made


def purified(purifier, classifier=None):
    return PurifiedClassifier(purifier, classifier or Net(), num_classes=CLASSES, class_names=NAMES, name="purified")


def denoiser():
    return gaussian_classifier().denoiser


def sbgc():
    network = randomize(build_network(TINY), seed=1)
    flow = FlowSettings(steps=1, solver="heun", sigma_min=0.3, sigma_max=3.0)
    return ScoreBasedClassifier(make_denoiser(network, TINY), flow, class_names=NAMES)


KINDS = {
    "dc": gaussian_classifier,
    "rdc": lambda: gaussian_classifier(lm=LM),
    "lm": lambda: purified(LikelihoodPurifier(denoiser(), LM)),
    "lm-in-front-of-a-defence": lambda: purified(LikelihoodPurifier(denoiser(), LM), as_defence(Net(), pixels())),
    "diffpure": lambda: purified(DiffusionPurifier(denoiser(), sigma=0.5, steps=3)),
    "sbgc": sbgc,
    "anytime": anytime,
    "eliminating": lambda: EliminatingClassifier(gaussian_classifier(lm=LM), "50%:2,100%:1"),
    "eliminating-under-attack": lambda: EliminatingClassifier(gaussian_classifier(), "50%:2,100%:1", under_attack=True),
    "module": lambda: as_defence(Net(), pixels(), class_names=NAMES),
    "function": lambda: as_defence(lambda x: x.flatten(1) @ WEIGHT, pixels(), class_names=NAMES),
    "foreign": lambda: as_defence(Theirs(), pixels(), class_names=NAMES),
}
PURIFY = {"rdc", "lm", "lm-in-front-of-a-defence", "diffpure", "anytime", "eliminating", "foreign"}
STOCHASTIC = {"sbgc", "dc", "rdc", "lm", "lm-in-front-of-a-defence", "diffpure"}
PENALTY = PURIFY - {"diffpure", "foreign"}
OF_LM = {"one-step", "softened", "softened-sharp", "softened-wide", "straight-through", "unclipped"}
SURROGATES = {
    "dc": {"fresh"},
    "sbgc": {"fresh"},
    "rdc": {"plain", "fresh"} | OF_LM,
    "lm": {"plain", "fresh"} | OF_LM,
    "lm-in-front-of-a-defence": {"plain", "fresh"} | OF_LM,
    "diffpure": {"plain", "fresh"},
    "anytime": {"full", "plain", "fresh"} | OF_LM,
    "eliminating": {"full", "plain", "fresh"} | OF_LM,
    "eliminating-under-attack": {"full", "fresh"},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind) -> Defence:
    return KINDS[kind]()


def gradient(model, x):
    leaf = x.clone().requires_grad_()
    weights = torch.randn(len(x), CLASSES, generator=torch.Generator().manual_seed(4))
    return torch.autograd.grad((model(leaf) * weights).sum(), leaf)[0]


MEMBERS = sorted(
    name
    for name in {*vars(Defence), *Defence.__annotations__}
    if not name.startswith("_") and name != "register" or name == "__call__"
)


def test_every_member_is_there_and_documented(model):
    assert isinstance(model, Defence)
    for name in MEMBERS:
        assert hasattr(model, name), name  # a contract is what may be asked of anybody
        if name in vars(Defence):
            assert inspect.getdoc(inspect.getattr_static(Defence, name)), name
    assert not {name for name in MEMBERS if name.startswith("set_") and not callable(getattr(model, name))}


def test_what_is_no_defence():
    for stranger in (Net(), lambda x: x, 3, Theirs()):
        assert not isinstance(stranger, Defence)


def test_nobody_derives_from_the_protocol():
    class Mine(Defence):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Mine()


def test_a_defence_is_taken_as_it_is(model):
    assert as_defence(model, pixels()) is model


# --- what it takes and gives --------------------------------------------------------------------------------------


def test_shapes_and_names(model):
    assert tuple(model.image_shape) == SHAPE and model.num_classes == CLASSES
    assert model.class_names == NAMES or model.class_names == ("0", "1", "2", "3")
    assert model.device == torch.device("cpu") and isinstance(model.device, torch.device)
    logits = model(pixels())
    assert logits.shape == (3, CLASSES) and logits.is_floating_point() and logits.isfinite().all()


def test_images_of_a_batch_do_not_influence_each_other(model):
    x = pixels(4)
    assert torch.allclose(model(x)[2:3], model(x[2:3]), rtol=FLOAT32_SUM, atol=FLOAT32_SUM)


def test_gradient_reaches_the_pixels(model):
    found = gradient(model, pixels())
    assert found.isfinite().all() and (found.flatten(1).abs().sum(1) > 0).all()


def test_evaluation_mode_for_good(model):
    assert model.train() is model
    assert not any(part.training for part in model.modules() if isinstance(part, BaseDefence))
    x = pixels()
    assert not model(x).requires_grad  # weights ask for nothing during a call


def test_counts_evaluations(model):
    made = model.with_()
    assert made.network_evaluations == 0
    made(pixels(3))
    most = 3 * made.evaluations_per_image
    assert 3 <= made.network_evaluations <= most
    if not isinstance(made, AnytimeClassifier) and not getattr(made, "under_attack", False):
        assert made.network_evaluations == most
    made.network_evaluations = 0
    assert made.network_evaluations == 0


# --- what it is ---------------------------------------------------------------------------------------------------


def test_description_is_plain_json(kind, model):
    found = model.describe()
    assert json.loads(json.dumps(found)).keys() == found.keys()
    assert {"levels", "weighting", "lm", "noise", "head", "gradient"} <= set(found)
    assert found["head"] == model.head and found["gradient"] == model.gradient
    assert type(found["gradient"]) is str
    if model.stochastic:
        assert found["noise"] == {"policy": "fixed", "seed": model.noise_seed} and type(found["noise"]["policy"]) is str
        assert model.with_(noise="fresh", noise_seed=7).describe()["noise"] == {"policy": "fresh", "seed": 7}
    assert (found["levels"] is not None) is (
        kind in ("dc", "rdc", "anytime", "eliminating", "eliminating-under-attack")
    )


def test_weights_have_a_digest(model):
    assert len(weights_digest(model)) == 16 and weights_digest(model) == weights_digest(model.with_())


# --- gradient and noise -------------------------------------------------------------------------------------------


def test_settings_are_words_and_members_alike(model):
    assert model.gradient is GradientMode.EXACT and model.noise_policy is NoisePolicy.FIXED
    for word in (GradientMode.BPDA, "bpda"):
        assert model.with_(gradient=word).gradient is GradientMode.BPDA
    if model.stochastic:
        for word in (NoisePolicy.FRESH, "fresh"):
            assert model.with_(noise=word).noise_policy is NoisePolicy.FRESH
        assert model.with_(noise="known").noise_policy is NoisePolicy.FIXED
        assert model.with_(noise_seed=12).noise_seed == 12


@pytest.mark.parametrize(
    "changes", [{"gradient": "none"}, {"gradient": 3}, {"noise": "all"}, {"noise": None}, {"noise_seed": "x"}, {"colour": 1}]
)  # fmt: skip
def test_other_settings_are_refused(model, changes):
    with pytest.raises(ConfigError, match="settings" if "colour" in changes else next(iter(changes))):
        model.with_(**changes)


def test_with_leaves_the_one_that_was_asked_as_it_was(model):
    x = pixels()
    before, about = model(x), model.describe()
    model.network_evaluations = 5
    made = model.with_(gradient="bpda", noise="fresh", noise_seed=3)
    made(x)
    assert made is not model and type(made) is type(model)
    assert model.network_evaluations == 5 and model.describe() == about and torch.equal(model(x), before)
    shared = {id(tensor) for tensor in model.parameters()}
    assert {id(tensor) for tensor in made.parameters()} == shared  # weights are not copied


def test_fixed_noise_is_one_draw(model):
    x = pixels()
    before = model(x)
    model.redraw()
    assert torch.equal(model(x), before)


def test_fresh_noise_draws_in_every_call_and_can_be_set(kind, model):
    assert model.stochastic is (kind in STOCHASTIC)
    x, fresh = pixels(), model.with_(noise="fresh", noise_seed=5)
    first, second, third = fresh(x), fresh(x), fresh(x)
    assert torch.equal(first, second) is (not model.stochastic)
    fresh.set_draw(1)
    assert torch.equal(fresh(x), second) and torch.equal(fresh(x), third)
    fresh.set_draw(0)
    fresh.redraw()
    assert torch.equal(fresh(x), second)
    assert torch.equal(model.with_(noise="fresh", noise_seed=5)(x), first)
    assert torch.equal(model.with_(noise="fresh", noise_seed=6)(x), first) is (not model.stochastic)
    with pytest.raises(ConfigError, match="draw"):
        fresh.set_draw("one")


# --- what adaptive attacks ask for --------------------------------------------------------------------------------


def test_purification(kind, model):
    assert model.purifies is (kind in PURIFY)
    x = pixels()
    moved = model.purify(x)
    assert moved.shape == x.shape
    assert torch.allclose(moved, x, rtol=0, atol=FLOAT32_ROUNDING) is (not model.purifies)
    fresh = model.with_(noise="fresh", noise_seed=5)
    assert torch.equal(fresh.purify(x), fresh.purify(x))  # it takes no draw


def test_bpda_has_the_value_of_exact_and_the_identity_for_a_jacobian(model):
    x, bpda = pixels(), model.with_(gradient=GradientMode.BPDA)
    assert torch.equal(model(x), bpda(x))
    leaf = x.clone().requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad(bpda.purify(leaf), leaf, upstream)
    assert torch.equal(found, upstream)
    assert torch.allclose(gradient(model, x), gradient(bpda, x), rtol=FLOAT32_GRADIENT) is (not model.purifies)


def test_steps_are_there_or_refused(kind, model):
    x = pixels()
    assert model.purification_length == (3 if kind in PENALTY - {"anytime", "eliminating"} | {"diffpure"} else 0)
    if not model.purification_length:
        with pytest.raises(ConfigError, match="steps|likelihood"):
            model.purification_path(x)
        return
    assert model.purification_path(x).images.shape == (3, model.purification_length, *SHAPE)


def test_penalty_is_there_or_refused(kind, model):
    x = pixels(6)
    assert model.has_penalty is (kind in PENALTY)
    if not model.has_penalty:
        with pytest.raises(ConfigError, match="optimis|likelihood"):
            model.penalty(x)
        return
    leaf = x.clone().requires_grad_()
    value = model.penalty(leaf)
    assert value.shape == (6,) and torch.autograd.grad(value.sum(), leaf)[0].abs().sum() > 0
    assert (model.penalty(model.purify(x).detach()) < value).double().mean() > 0.8


def test_surrogates_are_defences_and_asking_for_them_changes_nothing(kind, model):
    x = pixels()
    before, about, passes = model(x), model.describe(), model.evaluations_per_image
    found = model.surrogates()
    assert set(found) == SURROGATES.get(kind, set())
    for name, surrogate in found.items():
        assert isinstance(surrogate, Defence), name
        assert surrogate is not model and surrogate.network_evaluations == 0
        assert surrogate(x).shape == before.shape and surrogate.network_evaluations > 0
        assert model.surrogates()[name].network_evaluations == 0  # each is new
    assert torch.equal(model(x), before) and model.describe() == about and model.evaluations_per_image == passes
    if "plain" in found:
        assert not found["plain"].purifies
    if "one-step" in found:
        assert found["one-step"].describe()["lm"]["steps"] == 1 and about["lm"]["steps"] == 3
    if "fresh" in found:
        assert found["fresh"].noise_policy is NoisePolicy.FRESH and found["fresh"].noise_seed != model.noise_seed


# --- what reports show --------------------------------------------------------------------------------------------


def test_losses_per_level_are_there_or_refused(kind, model):
    assert model.has_levels is (kind in ("dc", "rdc"))
    if model.has_levels:
        losses = model.losses_per_level(pixels())
        assert losses.shape == (3, len(model.describe()["levels"]["sigma"]), CLASSES) and (losses >= 0).all()
    else:
        with pytest.raises(ConfigError, match="no noise levels"):
            model.losses_per_level(pixels())


# --- the words ----------------------------------------------------------------------------------------------------


def test_words_are_texts_everywhere():
    assert GradientMode.EXACT == "exact" and {"exact": 1}[GradientMode.EXACT] == 1
    assert f"{GradientMode.BPDA}" == str(GradientMode.BPDA) == "bpda" and repr(GradientMode.BPDA) == "'bpda'"
    assert json.dumps([NoisePolicy.FRESH], indent=1) == json.dumps(["fresh"], indent=1)
    assert "|".join(NoisePolicy) == "fixed|fresh" and NoisePolicy("known") is NoisePolicy.FIXED
    assert [mode.other for mode in GradientMode] == [GradientMode.BPDA, GradientMode.EXACT]
    with pytest.raises(ConfigError, match=r"noise: expected one of fixed, fresh; got"):
        NoisePolicy.of("all", "noise")
