"""Autocast, inference mode and train(): what the caller is in changes neither answers nor gradients nor anything that is kept."""

import copy
import functools
import warnings

import pytest
import torch
from torch import nn

import rdc
from rdc.decisions.anytime import AnytimeClassifier
from rdc.defences import (
    DiffusionPurifier,
    ForeignDefence,
    LikelihoodPurifier,
    PlainClassifier,
    PurifiedClassifier,
    as_defence,
)
from rdc.errors import ConfigError
from rdc.execution.frozen import at_rest
from rdc.execution.surroundings import undisturbed
from rdc.method.classifier import DiffusionClassifier
from rdc.method.lm_pieces import lm_bytes
from rdc.method.sampling import sample_classes
from rdc.method.working_memory import gradient_bytes
from rdc.models.joined import lm_in_front
from tests.tiny_models import CLASSES, CONFIG, SHAPE, pixels, randomize, tiny_classifier, tiny_denoiser
from tests.tolerances import FLOAT32_NETWORK, FLOAT64_ORDER, FLOAT64_STEPS

KINDS = ["conditional", "multihead"]
LM = "paper-v2,steps=1"


class Net(nn.Module):
    """Dropout and batch norm: training mode shows in the answer and in the buffers."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.last = nn.BatchNorm2d(SHAPE[0]), nn.Dropout(0.5), nn.Linear(2 * 64, CLASSES)

    def forward(self, x):
        return self.last(self.drop(self.norm(x)).flatten(1))


def purified(kind):
    purifiers = {"lm": LikelihoodPurifier(tiny_denoiser(), LM), "diffpure": DiffusionPurifier(tiny_denoiser(), steps=2)}
    return purifiers[kind]


def anytime():
    made = AnytimeClassifier(tiny_classifier("conditional"), error_rate=0.4)
    made.calibrate(pixels(40, seed=3))
    return made


#: fresh models: pixels -> a tensor, differentiable
MODELS = {
    "conditional": lambda: tiny_classifier("conditional"),
    "multihead": lambda: tiny_classifier("multihead"),
    "conditional-lm": lambda: tiny_classifier("conditional", lm=LM),
    "multihead-lm": lambda: tiny_classifier("multihead", lm=LM, class_prior=[0.2, 0.3, 0.5]),
    "multihead-bpda": lambda: tiny_classifier("multihead", lm=LM, gradient="bpda"),
    "bfloat16": lambda: tiny_classifier("conditional", precision="bfloat16"),
    "pieces": lambda: tiny_classifier("multihead", memory_budget_mb=0.5),
    "pieces-by-class": lambda: tiny_classifier("conditional", lm=LM, memory_budget_mb=0.5),
    "losses": lambda: tiny_classifier("multihead", lm=LM).losses_per_level,
    "purify": lambda: tiny_classifier("conditional", lm=LM).purify,
    "penalty": lambda: tiny_classifier("multihead", lm=LM).penalty,
    "purifier-lm": lambda: purified("lm"),
    "purifier-diffpure": lambda: purified("diffpure"),
    "purifier-penalty": lambda: functools.partial(purified("lm").penalty, draw=0),
    "anytime": anytime,
}


def answer(model, x):
    """The value and the gradient of a random combination of it."""
    leaf = x.clone().requires_grad_()
    value = model(leaf)
    mix = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
    (gradient,) = torch.autograd.grad((value * mix).sum(), leaf)
    return value.detach(), gradient


@functools.cache
def undisturbed_answer(name):
    return answer(MODELS[name](), pixels(2))


@pytest.mark.filterwarnings("ignore:memory_budget_mb")
@pytest.mark.parametrize("name", MODELS)
def test_autocast_changes_nothing(name):
    x, dtype = pixels(2), torch.float16 if name == "multihead" else torch.bfloat16
    expected, slope = undisturbed_answer(name)
    model = MODELS[name]()
    with torch.autocast("cpu", dtype):
        found, gradient = answer(model, x)
        with torch.no_grad():
            plain = model(x)
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == dtype
    assert found.dtype == expected.dtype and torch.equal(found, expected) and torch.equal(plain, expected)
    assert torch.equal(gradient, slope)
    assert torch.equal(answer(model, x)[1], slope)  # nor anything that was kept


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_under_autocast(kind):
    x = pixels(2, dtype=torch.float64)

    def curvature(model):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), leaf)[0]

    expected = curvature(tiny_classifier(kind, torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        found = curvature(tiny_classifier(kind, torch.float64))
        single = curvature(tiny_classifier(kind).double())
    assert torch.allclose(found, expected, rtol=FLOAT64_STEPS, atol=FLOAT64_ORDER * float(expected.abs().max()))
    assert torch.allclose(single, expected, rtol=FLOAT32_NETWORK)


@pytest.mark.parametrize("kind", KINDS)
def test_unfrozen_weights_keep_their_gradient_under_autocast(kind):
    model, x = tiny_classifier(kind), pixels(2).requires_grad_()
    model.denoiser.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)[:, 0].sum().backward()
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in model.denoiser.parameters())


def test_backward_passes_can_be_repeated_under_autocast():
    model, x = tiny_classifier("multihead"), pixels(2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        first = torch.autograd.grad(out[:, 0].sum(), x, retain_graph=True)[0]
        second = torch.autograd.grad(out[:, 0].sum(), x)[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:memory_budget_mb")
def test_inference_mode_first_and_a_gradient_afterwards(name):
    x, model = pixels(2), MODELS[name]()
    expected, slope = undisturbed_answer(name)
    with torch.inference_mode():
        found = model(x.clone())  # the first call; the image is an inference tensor
        assert torch.is_inference_mode_enabled() and not found.requires_grad
    assert torch.equal(found, expected)
    assert torch.equal(answer(model, x)[1], slope)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_may_be_made_inside_inference_mode(kind):
    denoiser = tiny_denoiser(kind)
    with torch.inference_mode():
        made = DiffusionClassifier(denoiser, "log:5:0.3:3:flat", lm=LM, class_prior=torch.ones(3))
        other = made.with_(noise_seed=3)
        shipped = rdc.load("fashion-mnist" if kind == "multihead" else "fashion-mnist-teacher")
        assert made(pixels(2)).shape == (2, CLASSES)
    for model, x in ((made, pixels(2)), (other, pixels(2)), (shipped, torch.full((1, 1, 28, 28), 0.5))):
        assert answer(model, x)[1].isfinite().all()
    assert not any(tensor.is_inference() for tensor in (*shipped.parameters(), *shipped.buffers()))


def test_weights_made_inside_inference_mode_are_refused():
    with torch.inference_mode():
        denoiser = tiny_denoiser("multihead")
    for use in (lambda: DiffusionClassifier(denoiser, "edm"), lambda: LikelihoodPurifier(denoiser)):
        with pytest.raises(ConfigError, match=r"made inside torch.inference_mode\(\)"):
            use()


def test_an_image_made_inside_inference_mode_is_an_image():
    with torch.inference_mode():
        x = pixels(2)
    model = tiny_classifier("conditional", lm=LM)
    assert torch.equal(model(x), model(pixels(2)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_does_not_depend_on_the_caller(kind):
    denoiser, x = tiny_denoiser(kind), pixels(1)
    lm = tiny_classifier(lm=LM).lm
    expected = gradient_bytes(denoiser, x), lm_bytes(denoiser, lm, x)
    with torch.inference_mode():
        assert (gradient_bytes(denoiser, x), lm_bytes(denoiser, lm, x)) == expected
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert (gradient_bytes(denoiser, x), lm_bytes(denoiser, lm, x)) == expected


def test_the_grad_mode_stays_the_callers():
    model, x = tiny_classifier(), pixels(1).requires_grad_()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not model(x).requires_grad
        assert not undisturbed(lambda v: v * 2, x).requires_grad
    assert model(x).requires_grad


def test_samples_do_not_depend_on_autocast_or_inference_mode():
    denoiser = tiny_denoiser()
    draw = lambda: sample_classes(denoiser, 1, steps=3, sigma_max=2.0, sigma_min=0.1, progress=False)  # noqa: E731
    expected = draw()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(draw(), expected)
    with torch.inference_mode():
        assert torch.equal(draw(), expected)


# --- train() ----------------------------------------------------------------------------------------------------------


def with_dropout(kind="conditional"):
    """A classifier whose network has dropout 0.13, as EDM's CIFAR-10 networks."""
    from rdc.method.denoiser import make_denoiser
    from rdc.networks.presets import build_network

    config = copy.deepcopy(CONFIG) | {"kind": kind}
    config["unet"]["dropout"] = 0.13
    if kind == "multihead":
        config |= {"wide_channels": 12}
    with torch.random.fork_rng():
        network = randomize(build_network(config))
    return DiffusionClassifier(make_denoiser(network, config), "log:5:0.3:3:flat", lm=LM)


@pytest.mark.parametrize("kind", KINDS)
def test_train_does_not_reach_the_network(kind):
    model, x = with_dropout(kind), pixels(2)
    expected, state = model(x), torch.get_rng_state()
    assert not model.training and not any(part.training for part in model.modules())
    assert model.train() is model and model.train(True) is model and model.eval() is model
    wrapper = nn.Sequential(nn.Identity(), model)
    wrapper.train()
    assert wrapper.training and not any(part.training for part in model.modules())
    assert torch.equal(model(x), expected) and torch.equal(model.with_().train()(x), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(copy.deepcopy(model).train()(x), expected)


@pytest.mark.parametrize(
    "name", ["fashion-mnist", "fashion-mnist-standard", "fashion-mnist-lm-resnet", "fashion-mnist-diffpure"]
)
def test_loaded_models_stay_in_evaluation_mode(name):
    model = rdc.load(name)
    x = rdc.load_dataset("fashion-mnist-sample").pixels(range(2))
    with torch.no_grad():
        expected = model(x)
        kept = copy.deepcopy(model.state_dict())
        assert not model.training
        model.train()
        assert not model.training and torch.equal(model(x), expected)
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def purify(self, x):
        return self.net.drop(self.net.norm(x)).sigmoid()

    def classify(self, x):
        return self.net(x)


LENT = {
    "plain": (Net, lambda net: PlainClassifier(net, image_shape=SHAPE, num_classes=CLASSES)),
    "as_defence": (Net, lambda net: as_defence(net, pixels(2))),
    "purified": (Net, lambda net: PurifiedClassifier(purified("lm"), net, num_classes=CLASSES)),
    "foreign": (Theirs, lambda net: as_defence(net, pixels(2))),
    "foreign-bpda": (Theirs, lambda net: ForeignDefence(net, image_shape=SHAPE, num_classes=CLASSES, gradient="bpda")),
    "example": (
        Net,
        lambda net: lm_in_front(PlainClassifier(net, image_shape=SHAPE, num_classes=CLASSES), tiny_classifier()),
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LENT)
def test_a_network_is_lent_and_comes_back_as_it_was(name, training):
    make, wrap = LENT[name]
    torch.manual_seed(0)
    net, x = make().train(training), pixels(3)
    parts = net.net if make is Theirs else net
    parts.last.bias.requires_grad_(False)
    parts.drop.train(not training)  # an owner may mix
    state = copy.deepcopy(net.state_dict())
    modes = [part.training for part in net.modules()]
    wants = [weight.requires_grad for weight in net.parameters()]
    model = wrap(net)

    def same():
        assert [part.training for part in net.modules()] == modes
        assert [weight.requires_grad for weight in net.parameters()] == wants
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        assert all(weight.grad is None for weight in net.parameters())

    same()
    generator = torch.get_rng_state()
    value, slope = answer(model, x)
    again, slope_again = answer(model.train(), x)
    assert torch.equal(value, again) and torch.equal(slope, slope_again)  # no dropout
    assert torch.equal(torch.get_rng_state(), generator)
    same()
    leaf = x.clone().requires_grad_()
    model(leaf).sum().backward()  # as foolbox does
    assert leaf.grad is not None
    for surrogate in model.surrogates().values():
        assert torch.equal(surrogate(x), surrogate(x)) or "noise" in model.describe()
    same()
    with pytest.raises(RuntimeError), at_rest(net):
        raise RuntimeError
    same()


def test_a_module_with_a_training_mode_of_its_own_is_asked_to_change():
    asked = []

    class Merging(Net):
        def train(self, mode=True):
            asked.append(mode)
            return super().train(mode)

    net = Merging()
    asked.clear()
    model = PlainClassifier(net, image_shape=SHAPE, num_classes=CLASSES)
    model(pixels(1))
    assert asked == [False, True] and net.training
    net.eval()
    asked.clear()
    model(pixels(1))
    assert asked == []


def test_the_callers_autocast_reaches_the_callers_network():
    net = Net().eval()
    model = PlainClassifier(net, image_shape=SHAPE, num_classes=CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(pixels(1)).dtype == net(pixels(1)).dtype == torch.bfloat16


def test_nothing_is_said_on_the_way():
    model = tiny_classifier("conditional", lm=LM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            model(pixels(1))
