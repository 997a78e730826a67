"""Class elimination: what is computed, what it costs, and that attacks never see it."""

from __future__ import annotations

import json

import pytest
import torch

import rdc
from rdc.cli import main
from rdc.data import Dataset
from rdc.decisions.anytime import AnytimeClassifier
from rdc.decisions.anytime.calibration import _looks, calibrate_anytime
from rdc.decisions.elimination import (
    SCHEDULES,
    EliminatingClassifier,
    EliminationSchedule,
    measure_agreement,
)
from rdc.decisions.elimination.stages import spread_order
from rdc.errors import ConfigError
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.models.checkpoints import save_model
from rdc.networks.presets import build_network
from rdc.statistics.proportions import wilson_interval
from tests.evaluation_models import CLASSES, NAMES, TINY, gaussian_classifier, images
from tests.tiny_models import randomize, tiny_classifier
from tests.tolerances import FLOAT64_ORDER

SIDE = 2
NOISE_OF_A_CLASS = 0.1


class Means(torch.nn.Module):
    """The denoiser of Gaussian classes in closed form, which counts its passes."""

    def __init__(self, classes):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.register_buffer("means", 0.4 * torch.randn(classes, 1, SIDE, SIDE, dtype=torch.float64, generator=g))
        self.passes = []

    def forward(self, x_t, sigma, labels):
        self.passes += labels.tolist()
        s2 = sigma.square().reshape(-1, 1, 1, 1)
        return (NOISE_OF_A_CLASS**2 * x_t + s2 * self.means[labels]) / (NOISE_OF_A_CLASS**2 + s2)

    def images(self, n, seed=1):
        g = torch.Generator().manual_seed(seed)
        labels = torch.randint(len(self.means), (n,), generator=g)
        noise = NOISE_OF_A_CLASS * torch.randn(n, 1, SIDE, SIDE, dtype=torch.float64, generator=g)
        return ((self.means[labels] + noise + 1) / 2).clamp(0, 1), labels


def gaussian(classes=40, levels="log:20:0.02:0.3:flat", **settings):
    net = Means(classes)
    made = rdc.from_denoiser(
        net, num_classes=classes, image_shape=(1, SIDE, SIDE), predicts="x0", schedule="edm", levels=levels, **settings
    )
    net.passes.clear()
    return net, made


# --- schedules --------------------------------------------------------------------------------------------------------


def test_the_published_schedule_is_a_tenth_of_the_passes():
    """Li et al. 2023: of 1,000 classes 500, 50, 10, 1 after 50, 100, 500, 1,000 of 1,000 draws."""
    published = EliminationSchedule.of("li-2023")
    assert published.sizes(1000, 1000) == ((50, 500), (100, 50), (500, 10), (1000, 1))
    assert published.passes(1000, 1000) == 50 * 1000 + 50 * 500 + 400 * 50 + 500 * 10 == 100_000
    assert EliminationSchedule.of("quick").passes(100, 1000) == 2 * 1000 + 3 * 300 + 15 * 50 + 80 * 10 <= 5000
    assert EliminationSchedule.of("quick").name == "quick" and set(SCHEDULES) == {"li-2023", "quick"}


def test_shares_are_rounded_up_and_numbers_are_numbers():
    made = EliminationSchedule.of("1:7, 50%:3 ,100%:1")
    assert made.sizes(12, 10) == ((1, 7), (6, 3), (12, 1)) and made.name == "own"
    assert made.sizes(3, 2) == ((1, 2), (2, 2), (3, 1))
    assert made.sizes(1, 5) == ((1, 1),)  # one level: nothing to leave out
    assert made.passes(1, 5) == 5
    assert EliminationSchedule(((0.5, 1), (1.0, 1))).passes(10, 8) == 40  # one class left: nothing more to do


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("li-2022", "did you mean 'li-2023'"),
        (7, "expected li-2023, quick or LEVELS:CLASSES"),
        ("", "expected li-2023"),
        ("5%:50%", "one class after the last stage"),
        ("5%:1%,100%:100%", "one class after the last stage"),
        ("5%:x,100%:1", "a share such as 5% or a number; got 'x'"),
        ("5%,100%:1", "LEVELS:CLASSES for a stage"),
        ("0%:5,100%:1", "shares in"),
        ("-1:5,100%:1", "shares in"),
        ("nan%:5,100%:1", "a share such as"),
        ("inf%:5,100%:1", "a share such as"),
        ("1:1," * 200, "stages"),
        ("50%:2,10%:1", "levels that grow"),
        ("5%:2,10%:4,100%:1", "classes that become fewer"),
        ("5%:2,50%:1", "all 20 levels"),
    ],
)
def test_schedules_that_are_none(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        EliminatingClassifier(gaussian()[1], text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_levels_of_a_stage_lie_evenly():
    order = spread_order(100, [2, 5, 20, 100])
    assert sorted(order) == list(range(100))
    assert order[:2] == (25, 75)
    gaps = torch.tensor(sorted(order[:20])).diff()
    assert gaps.max() <= 12


# --- decisions --------------------------------------------------------------------------------------------------------


def test_it_is_what_the_stages_say():
    """Against a loop over recorded losses, image by image; and the network is asked as often as is said."""
    net, classifier = gaussian()
    model = EliminatingClassifier(classifier, "10%:30%,25%:5,50%:2,100%:1")
    pixels, _ = net.images(30)
    with torch.no_grad():
        losses = classifier.losses_per_level(pixels) * torch.tensor(classifier.levels.weight).double()[None, :, None]
        net.passes.clear()
        found = model.decide(pixels)
    assert len(net.passes) == int(found.passes.sum()) == 30 * model.passes == model.network_evaluations
    assert model.passes == 2 * 40 + 3 * 12 + 5 * 5 + 10 * 2
    for scores, answer in zip(losses, found.log_probabilities, strict=True):
        alive, begin = list(range(40)), 0
        for until, keep in ((2, 12), (5, 5), (10, 2), (20, 1)):
            total = scores[list(model.order[:until])].sum(0)
            alive, begin = sorted(alive, key=lambda k: total[k])[:keep], until
        assert begin == 20 and int(answer.argmax()) == alive[0]
    assert (found.levels == 20).all()


def test_with_all_classes_it_is_the_full_decision():
    net, classifier = gaussian(class_prior=[1.0] * 39 + [9.0])
    pixels, _ = net.images(8)
    with torch.no_grad():
        found = EliminatingClassifier(classifier, "50%:100%,100%:1").decide(pixels).log_probabilities
        assert (found - classifier(pixels)).abs().max() < FLOAT64_ORDER * found.abs().max()


def test_agreement_is_counted():
    net, classifier = gaussian()
    model = EliminatingClassifier(classifier, "5%:10%,100%:1")
    pixels, _ = net.images(64)
    found = measure_agreement(model, pixels, batch=17)
    with torch.no_grad():
        same = int((model.decide(pixels).log_probabilities.argmax(1) == classifier(pixels).argmax(1)).sum())
    assert (found.n, found.agreeing) == (64, same) and 32 < same < 64  # bold enough to be wrong, not a guess
    assert found.mean_passes == model.passes and found.full_passes == 800
    assert found.interval == tuple(wilson_interval(same, 64))
    assert found.to_json()["share_of_passes"] == model.passes / 800
    with pytest.raises(ConfigError, match="at least one image"):
        measure_agreement(model, pixels[:0])


def test_a_small_budget_changes_no_decision():
    net, classifier = gaussian(levels="log:5:0.02:0.3:flat")
    pixels, _ = net.images(6)
    model = EliminatingClassifier(classifier, "20%:20%,100%:1")
    with torch.no_grad():
        expected = model.decide(pixels)
        classifier.memory_budget_mb = 0.01
        assert classifier.rows_that_fit(pixels) < classifier.num_classes
        found = model.decide(pixels)
    assert torch.equal(found.passes, expected.passes)
    assert (found.log_probabilities - expected.log_probabilities).abs().max() < FLOAT64_ORDER * 1000


def test_what_has_nothing_to_eliminate():
    with pytest.raises(ConfigError, match="all classes in one pass"):
        EliminatingClassifier(tiny_classifier("multihead"))
    with pytest.raises(ConfigError, match="fixed"):
        EliminatingClassifier(gaussian()[1].with_(noise="fresh"))
    with pytest.raises(ConfigError, match="DiffusionClassifier; got"):
        EliminatingClassifier(torch.nn.Flatten())
    with pytest.raises(ConfigError, match="positions 0 to 19, each once"):
        EliminatingClassifier(gaussian()[1], order=[0, 0, *range(2, 20)])


# --- under attack -----------------------------------------------------------------------------------------------------


def test_called_like_any_classifier_it_asks_for_all_classes():
    """With gradients and without: what attacks see, and what decides about them, is the full decision."""
    net, classifier = gaussian()
    model = EliminatingClassifier(classifier, "quick")
    pixels, _ = net.images(3)
    leaf = pixels.clone().requires_grad_()
    with torch.no_grad():
        assert torch.equal(model(pixels), classifier(pixels))
    ours, theirs = (torch.autograd.grad(one(leaf)[:, 0].sum(), leaf)[0] for one in (model, classifier))
    assert torch.equal(ours, theirs) and ours.abs().max() > 0
    assert model.network_evaluations == 2 * 3 * model.full_passes
    weak = EliminatingClassifier(classifier, "quick", under_attack=True)
    with torch.no_grad():
        assert torch.equal(weak(pixels), model.decide(pixels).log_probabilities)
    assert weak.with_(gradient="bpda").under_attack and weak.describe()["elimination"]["under_attack"]


@pytest.mark.parametrize("forced", [False, True])
def test_reports_flag_it_where_it_was_forced(tmp_path, forced):
    classifier = gaussian_classifier()
    with torch.no_grad():
        data = Dataset(images(8), classifier(images(8).float() / 255).argmax(1), NAMES, "blobs", "test")
    model = EliminatingClassifier(classifier, "30%:2,100%:1", under_attack=forced)
    settings = EvaluationSettings(model="m", dataset="blobs", n=8, eps="2/255", steps=2, sanity=0, attacks=("apgd-ce",))
    report = evaluate(model, data, settings, tmp_path / "run", progress=False).report
    flags = {flag["name"]: flag for flag in report["flags"]}
    assert ("class-elimination" in flags) is forced
    assert report["classifier"]["elimination"]["under_attack"] is forced
    if forced:
        assert flags["class-elimination"]["evidence"] == "8 of 12 passes (66.7 %), schedule own, in every call"


# --- the sequential test with many classes ------------------------------------------------------------------------------


def test_looks_double_where_the_first_costs_most():
    assert _looks(100, doubling=True) == [1, 2, 4, 8, 16, 32, 64, 100] and _looks(8, doubling=True) == [1, 2, 4, 8]
    net, classifier = gaussian(classes=120, levels="log:20:0.02:0.3:flat")
    held_out, others = net.images(60, seed=2)[0], net.images(60, seed=3)[0]
    rule = calibrate_anytime(classifier, held_out, 0.1)
    assert rule.looks == (1, 2, 4, 8, 16, 20)
    found = measure_agreement(AnytimeClassifier(classifier, 0.1, rule), others)
    assert found.rate >= 0.8 and found.mean_passes < 0.5 * found.full_passes
    few = calibrate_anytime(gaussian(classes=10)[1], Means(10).images(60, seed=2)[0], 0.1)
    assert len(few.looks) == 16


# --- rdc classify -----------------------------------------------------------------------------------------------------


def test_rdc_classify_says_what_was_left_out(tmp_path, capsys):
    from PIL import Image

    config = {**TINY, "kind": "conditional"}
    save_model(tmp_path / "tiny", randomize(build_network(config), seed=1), config, {"class_names": list(NAMES)})
    Image.fromarray(images(1)[0, 0].numpy()).save(tmp_path / "a.png")
    command = ["classify", str(tmp_path / "a.png"), "--model", str(tmp_path / "tiny"), "--levels", "log:4:0.5:2:flat"]
    assert main([*command, "--eliminate", "25%:2,100%:1"]) == 0
    assert "2 after 1 levels, 1 after 4 levels" in capsys.readouterr().out
    assert main([*command, "--eliminate", "25%:2,100%:1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["passes"] == CLASSES + 2 * 3
    for more, words in (
        (["--eliminate", "ten"], "LEVELS:CLASSES"),
        (["--eliminate", "quick", "--anytime", "0.1"], "--anytime"),
    ):
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
