"""Whatever defences are put together of: every network pass is counted, fresh noise is fresh in all parts, and seeds give it again.

The compositions are products: every core behind every purifier, and inside everything that a user may wrap around it.
"""

import functools

import pytest
import torch
from torch import nn

from rdc.certification.attack import SmoothedClassifier
from rdc.contracts import BaseDefence, Component, Defence
from rdc.decisions.anytime import AnytimeClassifier
from rdc.decisions.anytime.early import EarlyClassifier
from rdc.decisions.elimination import EliminatingClassifier
from rdc.defences import (
    DiffusionPurifier,
    ForeignDefence,
    LikelihoodPurifier,
    PlainClassifier,
    PurifiedClassifier,
    Purifier,
    ScoreBasedClassifier,
    as_defence,
)
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import ConditionalDenoiser
from rdc.method.likelihood import PROBE_STREAM
from rdc.method.noise import NoisePlan
from rdc.method.probability_flow import FlowSettings
from rdc.networks.presets import build_network
from tests.evaluation_models import CLASSES, NAMES, SHAPE, TINY, images
from tests.oracles import GaussianNetwork
from tests.tiny_models import randomize
from tests.tolerances import FLOAT32_GRADIENT

WEIGHT = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))
LM, STEPS = "paper-v2,steps=3", 3
LEVELS = "log:3:0.5:3:flat"
DC, LIKELIHOOD, DIFFPURE, SIGNS = 0, 1, 2, PROBE_STREAM  # streams of the draws


def pixels(n=2):
    return images(n, seed=2).float() / 255 * 0.8 + 0.1


# --- networks that count --------------------------------------------------------------------------------------------
class Counter:
    """Rows that went through all networks."""

    rows = 0


class Counting(nn.Module):
    """A network that counts its rows."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x, *rest):
        Counter.rows += len(x)
        return self.network(x, *rest)


class Net(nn.Module):
    def forward(self, x):
        return torch.tanh(3 * (x.flatten(1) - 0.5)) @ WEIGHT


def denoiser(seed=3):
    means = 0.6 * torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return ConditionalDenoiser(Counting(GaussianNetwork(means, 0.2)), CLASSES, SHAPE)


def dc(**settings):
    return DiffusionClassifier(denoiser(), LEVELS, class_names=NAMES, **settings)


def sbgc():
    config = {**TINY, "kind": "conditional"}
    config.pop("wide_channels")
    network = randomize(build_network(config), seed=1)
    flow = FlowSettings(steps=1, solver="heun", sigma_min=0.3, sigma_max=3.0)
    return ScoreBasedClassifier(ConditionalDenoiser(Counting(network), CLASSES, SHAPE), flow, class_names=NAMES)


@functools.cache
def anytime():
    made = AnytimeClassifier(dc(lm=LM), 0.2)
    made.calibrate(images(64, seed=9).float() / 255)
    return made


def lm():
    return LikelihoodPurifier(denoiser(5), LM)


def diffpure():
    return DiffusionPurifier(denoiser(5), sigma=0.5, steps=3)


def behind(purifier, core):
    return PurifiedClassifier(purifier, core, num_classes=CLASSES, class_names=NAMES)


# --- what users write -----------------------------------------------------------------------------------------------
class Ensemble(nn.Module):
    """Mean of the logits of its members."""

    def __init__(self, *members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        return torch.stack([member(x) for member in self.members]).mean(0)


class Listed:
    """The same with members in a plain list, called twice each; no module."""

    def __init__(self, *members):
        self.members = list(members)

    def __call__(self, x):
        return sum(member(image) for member in self.members for image in (x, x.flip(3)))


class Theirs:
    """Somebody's defence with a purifier of rdc and a classifier."""

    def __init__(self, purifier, classifier):
        self.parts = {"purifier": purifier, "classifier": classifier}

    def purify(self, x):
        return self.parts["purifier"](x)

    def classify(self, x):
        return self.parts["classifier"](x.clamp(0, 1))


class Derived(BaseDefence):
    """A user's own kind of defence."""

    def __init__(self, member):
        super().__init__(SHAPE, CLASSES, NAMES)
        self.member = member

    def forward(self, x):
        with self.counting():
            return self.member(x)


class Referring(nn.Module):
    """A module whose function refers back to it."""

    def __init__(self, member):
        super().__init__()
        self.member = member
        self.answer = lambda x: self.member(x)

    def forward(self, x):
        return self.answer(x)


def closure(core):
    return lambda x: core(x)


def scaled(core, factor, x):
    return factor * core(x)


CORES = {
    "net": (lambda: Counting(Net()), set()),
    "plain": (lambda: PlainClassifier(Counting(Net()), image_shape=SHAPE, num_classes=CLASSES), set()),
    "dc": (dc, {DC}),
    "rdc": (lambda: dc(lm=LM), {DC, LIKELIHOOD}),
    "two-networks": (lambda: dc(lm=LM, lm_denoiser=denoiser(8)), {DC, LIKELIHOOD}),
    "sbgc": (sbgc, {SIGNS}),
    "anytime": (anytime, set()),
    "eliminating": (lambda: EliminatingClassifier(dc(lm=LM), "50%:2,100%:1"), set()),
    "diffpure-dc": (lambda: behind(diffpure(), dc()), {DC, DIFFPURE}),
}
WRAPPERS = {
    "behind-lm": (lambda core: behind(lm(), core), {LIKELIHOOD}),
    "behind-diffpure": (lambda core: behind(diffpure(), core), {DIFFPURE}),
    "ensemble": (lambda core: as_defence(Ensemble(core, dc(noise_seed=7)), pixels()), {DC}),
    "listed": (lambda core: as_defence(Listed(core, dc()), pixels()), {DC}),
    "closure": (lambda core: as_defence(closure(core), pixels()), set()),
    "partial": (lambda core: as_defence(functools.partial(scaled, core, 2.0), pixels()), set()),
    "method": (lambda core: as_defence(Ensemble(core).forward, pixels()), set()),
    "referring": (lambda core: as_defence(Referring(core), pixels()), set()),
    "foreign": (lambda core: as_defence(Theirs(diffpure(), core), pixels()), {DIFFPURE}),
    "derived": (Derived, set()),
    "lm-before-an-ensemble": (lambda core: behind(lm(), Ensemble(core, dc())), {LIKELIHOOD, DC}),
}
ALL = [(wrapper, core) for wrapper in WRAPPERS for core in CORES if (wrapper, core) != ("derived", "net")]


#: every core, and every wrapper, once or twice
FEW = [pair for pair in ALL if pair[0] in ("behind-diffpure", "listed") or pair[1] == "rdc"]
of_few = pytest.mark.parametrize("parts", FEW, ids="+".join, indirect=True)


@pytest.fixture(params=ALL, ids="+".join)
def parts(request):
    return request.param


@functools.cache
def made_of(wrapper: str, core: str) -> Defence:
    model = WRAPPERS[wrapper][0](CORES[core][0]())
    with torch.no_grad():
        model(pixels())  # what a pass needs is measured once
    return model


@pytest.fixture
def model(parts) -> Defence:
    return made_of(*parts).with_()


@pytest.fixture
def streams(parts):
    wrapper, core = parts
    return WRAPPERS[wrapper][1] | CORES[core][1]


@pytest.fixture
def always_fixed(parts, drawn):
    """Anytime decisions and those of few classes have fixed noise, whatever they are part of."""
    early = parts[1] in ("anytime", "eliminating")
    return draws_of(lambda: CORES[parts[1]][0]().with_()(pixels()), drawn)[1] if early else set()


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn meanwhile: (seed, stream, draw, index) of every generator."""
    found, ask = [], NoisePlan._generator

    def spied(plan, draw, index):
        found.append((plan.seed, plan.stream, draw, index))
        return ask(plan, draw, index)

    monkeypatch.setattr(NoisePlan, "_generator", spied)
    return found


def draws_of(call, drawn):
    del drawn[:]
    with torch.no_grad():
        answer = call()
    return answer, set(drawn)


# --- counts ---------------------------------------------------------------------------------------------------------
def counted(call, model):
    """(what the networks saw, what the model says) of a call."""
    Counter.rows, before = 0, model.network_evaluations
    with torch.no_grad():
        call()
    return Counter.rows, model.network_evaluations - before


def networks_only(parts):
    """Whether all networks are known: of an ensemble with a bare network in it that one is not."""
    return parts[1] != "net" or parts[0] in (
        "behind-lm",
        "behind-diffpure",
        "closure",
        "partial",
        "method",
        "referring",
    )


def test_every_network_pass_is_counted(parts, model):
    x = pixels(3)
    for again in (model, model.with_(noise="fresh", noise_seed=4), model.with_(gradient="bpda")):
        seen, said = counted(lambda again=again: again(x), again)
        assert seen > 0
        assert said == seen or not networks_only(parts)
        at_most = 3 * again.evaluations_per_image * (2 if parts[0] == "listed" else 1)
        assert said <= at_most and (said == at_most or "anytime" in parts)


@of_few
def test_every_other_use_is_counted(parts, model):
    x = pixels(3)
    uses = [model.purify] + [model.penalty] * model.has_penalty + [model.losses_per_level] * model.has_levels
    for use in uses:
        use(x)
        seen, said = counted(lambda use=use: use(x), model)
        assert said == seen or not networks_only(parts)


@of_few
def test_what_a_surrogate_evaluates_is_its_own(model):
    before = model.network_evaluations
    for surrogate in model.surrogates().values():
        seen, said = counted(lambda surrogate=surrogate: surrogate(pixels()), surrogate)
        assert seen == 0 or said > 0
    assert model.network_evaluations == before


# --- draws ----------------------------------------------------------------------------------------------------------
def test_fresh_noise_is_fresh_in_every_part(model, streams, always_fixed, drawn):
    x, fresh = pixels(), model.with_(noise="fresh", noise_seed=5)
    assert model.stochastic is bool(streams)
    first, one = draws_of(lambda: fresh(x), drawn)
    second, two = draws_of(lambda: fresh(x), drawn)
    one, two = one - always_fixed, two - always_fixed
    assert {stream for _, stream, _, _ in one} == {stream for _, stream, _, _ in two} == streams
    assert not one & two  # nothing is drawn twice
    assert torch.equal(first, second) is (not streams)


def test_a_seed_gives_all_draws_again_and_another_seed_gives_others(model, streams, always_fixed, drawn):
    x = pixels()
    first, one = draws_of(lambda: model.with_(noise="fresh", noise_seed=5)(x), drawn)
    again, same = draws_of(lambda: model.with_(noise="fresh", noise_seed=5)(x), drawn)
    other, two = draws_of(lambda: model.with_(noise="fresh", noise_seed=6)(x), drawn)
    assert torch.equal(first, again) and one == same
    assert not one & two - always_fixed and torch.equal(first, other) is (not streams)


@of_few
def test_draws_can_be_set_and_called_for(parts, model):
    if parts[0] == "derived":
        pytest.skip("who derives calls the parts himself; they go on by themselves")
    x, fresh = pixels(), model.with_(noise="fresh", noise_seed=5)
    first, second, third = fresh(x), fresh(x), fresh(x)
    fresh.set_draw(1)
    assert torch.equal(fresh(x), second) and torch.equal(fresh(x), third)
    fresh.set_draw(0)
    assert torch.equal(fresh.purify(x), fresh.purify(x)) and torch.equal(fresh(x), first)
    fresh.set_draw(0)
    fresh.redraw()
    assert torch.equal(fresh(x), second)


@of_few
def test_fixed_noise_is_one_function(model):
    x = pixels()
    first = model(x)
    model.redraw()
    assert torch.equal(model(x), first) and torch.equal(model.with_()(x), first)
    assert torch.equal(model.with_(noise="fresh", noise_seed=9).with_(noise="fixed", noise_seed=0)(x), first)


@of_few
def test_the_gradient_is_that_of_the_draw(parts, model, streams):
    """A backward pass that computes again must not draw again."""
    x, fresh = pixels(), model.with_(noise="fresh", noise_seed=5)
    weights = torch.randn(len(x), CLASSES, generator=torch.Generator().manual_seed(4))

    def gradient(by):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad((by(leaf) * weights).sum(), leaf)[0]

    found = gradient(fresh)
    known = model.with_(noise="fresh", noise_seed=5)
    for _ in range(2):
        known.set_draw(0)
        assert torch.equal(gradient(known), found)
    assert not torch.equal(gradient(known), found) or not streams


# --- gradients, and what is lent ------------------------------------------------------------------------------------
@of_few
def test_bpda_reaches_every_purification(parts, model):
    x, bpda = pixels(), model.with_(gradient="bpda")
    assert torch.equal(model(x), bpda(x))

    def gradient(by):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(by(leaf)[:, 0].sum(), leaf)[0]

    same = torch.allclose(gradient(model), gradient(bpda), rtol=FLOAT32_GRADIENT)
    assert same is (not model.purifies)
    wrapper, core = parts
    assert model.purifies is (
        "lm" in wrapper
        or wrapper in ("behind-diffpure", "foreign")
        or core in ("rdc", "two-networks", "anytime", "eliminating", "diffpure-dc")
    )


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_is_put_in_is_lent(wrapper):
    core = dc(lm=LM)
    model = WRAPPERS[wrapper][0](core)
    x, before = pixels(), core(pixels())
    core.network_evaluations = 5
    model.with_(noise="fresh", noise_seed=3, gradient="bpda")(x)
    assert core.noise_policy == "fixed" and core.gradient == "exact" and core.network_evaluations == 5
    assert torch.equal(core(x), before)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_whole_says_what_the_noise_is(wrapper):
    """A part that was made with fresh noise is fixed where the whole is."""
    model = WRAPPERS[wrapper][0](dc(noise="fresh", noise_seed=3))
    if wrapper == "derived":
        model = model.with_()
    x = pixels()
    assert torch.equal(model(x), model(x))


@of_few
def test_weights_are_shared(model):
    shared = {id(tensor) for tensor in model.parameters()} | {id(tensor) for tensor in model.buffers()}
    made = model.with_(noise="fresh", noise_seed=2)
    assert {id(tensor) for tensor in made.parameters()} | {id(tensor) for tensor in made.buffers()} == shared


def test_a_composition_says_what_it_is_made_of():
    made = behind(lm(), dc(lm=LM))
    about = made.describe()
    assert about["levels"]["sigma"] == list(dc().levels.sigma) and about["weighting"] == "flat"
    assert about["lm"]["steps"] == STEPS and about["parts"][0]["lm"]["steps"] == STEPS
    assert made.evaluations_per_image == 2 * STEPS + 3 * CLASSES
    assert [use.role for use in made.networks()] == [
        "likelihood maximisation",
        "classification and likelihood maximisation",
    ]
    assert "parts" not in behind(lm(), Net()).describe()


def test_what_cannot_be_copied_is_refused():
    class Stubborn:
        def __init__(self):
            self.member = dc()

        def __call__(self, x):
            return self.member(x)

        def __copy__(self):
            raise RuntimeError("no")

    with pytest.raises(
        ConfigError, match=r"a Stubborn holds a defence of rdc and cannot be copied \(RuntimeError: no\)"
    ):
        as_defence(Stubborn(), pixels())


def test_every_kind_of_component_is_among_them():
    """A new kind belongs into the tables above."""

    def below(kind):
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))

    shipped = {kind for kind in below(Component) if kind.__module__.startswith("rdc.")}
    shipped = {
        kind for kind in shipped if not kind.__name__.startswith("_")
    }  # a stand-in that counts calls is no defence
    abstract = {Component, BaseDefence, Purifier, EarlyClassifier}
    here = {
        DiffusionClassifier,
        PlainClassifier,
        ForeignDefence,
        PurifiedClassifier,
        ScoreBasedClassifier,
        AnytimeClassifier,
        EliminatingClassifier,
    }
    here |= {LikelihoodPurifier, DiffusionPurifier}
    assert shipped - abstract == here | {SmoothedClassifier}  # whose base is a function, see certification
