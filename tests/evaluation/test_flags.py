"""Every sanity flag: a defence built to raise it, and one that does not."""

from pathlib import Path

import pytest
import torch

from rdc.data import Dataset
from rdc.defences import BaseDefence, ForeignDefence, PlainClassifier
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.evaluation.flags import FLAGS
from tests.evaluation_models import CLASSES, NAMES, gaussian_classifier, images, labelled_by

SHAPE = (1, 8, 8)
WEIGHT = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))
PIXELS = images(16, seed=5)


def linear(x):
    return 3 * (x.flatten(1) - 0.5) @ WEIGHT


def smooth(x):
    """Not linear, and nothing is masked."""
    return torch.tanh(3 * (x.flatten(1) - 0.5)) @ WEIGHT


def plain(function):
    return PlainClassifier(function, image_shape=SHAPE, num_classes=CLASSES, class_names=NAMES)


def data_for(model):
    with torch.no_grad():
        labels = model.with_(noise="fixed")(PIXELS.float() / 255).argmax(1)
    return Dataset(PIXELS, labels, NAMES, "blobs", "test")


def nearest(x):
    """The clean image closest to each row: what a masked purifier might hand on."""
    with torch.no_grad():
        bank = PIXELS.float().flatten(1) / 255
        return bank[torch.cdist(x.flatten(1), bank).argmin(1)].view_as(x)


def raised(model, folder, data=None, **changes):
    values = {
        "model": "m",
        "dataset": "blobs",
        "n": 16,
        "eps": "8/255",
        "steps": 20,
        "attacks": ("apgd-ce",),
        **changes,
    }
    report = evaluate(model, data or data_for(model), EvaluationSettings(**values), folder, progress=False).report
    return {flag["name"]: flag["evidence"] for flag in report["flags"]}


@pytest.fixture(scope="module")
def clean_bill(tmp_path_factory):
    return raised(plain(smooth), tmp_path_factory.mktemp("smooth") / "run", attacks=("apgd-ce", "square:queries=60"))


SANITY = (
    "zero-gradients", "vanishing-gradient", "constant-gradient", "randomised-output", "softmax-output",
    "test-time-optimisation", "square-beats-white-box", "budget-without-effect", "large-eps-not-zero",
    "loss-not-monotone", "budget-not-used", "bpda-above-exact", "known-below-fresh", "sanity-not-checked",
    "non-finite-logits",
)  # fmt: skip


@pytest.mark.parametrize("name", SANITY)
def test_a_smooth_model_raises_none(clean_bill, name):
    assert name not in clean_bill


def test_softmax_output(tmp_path):
    assert "softmax-output" in raised(plain(lambda x: smooth(x).softmax(1)), tmp_path / "run")


def test_constant_gradient(tmp_path):
    assert "constant-gradient" in raised(plain(linear), tmp_path / "run")


def test_vanishing_gradient(tmp_path):
    def some(x):  # three quarters of the pixels reach the decision through a rounding
        mask = (torch.arange(64) % 4 == 0).float().view(SHAPE)
        return smooth(x * mask + (1 - mask) * (x * 8).round() / 8)

    found = raised(plain(some), tmp_path / "run")
    assert "vanishing-gradient" in found and "75 %" in found["vanishing-gradient"]


def test_masked_purification(tmp_path):
    """Every image is replaced by the nearest known one: gradients vanish, attacks stand still at any radius."""
    found = raised(plain(lambda x: smooth(nearest(x)) + 0 * x.flatten(1)[:, :1]), tmp_path / "run")
    expected = {
        "zero-gradients",
        "vanishing-gradient",
        "budget-without-effect",
        "large-eps-not-zero",
        "budget-not-used",
    }
    assert expected <= set(found)


@pytest.mark.parametrize("black_box", ["square:queries=400", "hop-skip-jump:queries=1500"])
def test_reversed_gradient(tmp_path, black_box):
    """The gradient points the wrong way; a black box does not ask for it."""
    model = plain(lambda x: smooth(2 * x.detach() - x))
    found = raised(model, tmp_path / "run", attacks=("apgd-ce", black_box), eps="24/255")
    assert "square-beats-white-box" in found and "loss-not-monotone" in found


def test_shattered_gradient(tmp_path):
    """A ripple of high frequency and no height to speak of rules the gradient."""
    model = plain(lambda x: smooth(x) + 0.05 * torch.sin(4000 * x.flatten(1)) @ WEIGHT.abs())
    assert "loss-not-monotone" in raised(model, tmp_path / "run")


def test_test_time_optimisation(tmp_path):
    data = labelled_by(gaussian_classifier(), 16, 0)
    assert "test-time-optimisation" in raised(gaussian_classifier(lm="paper-v2"), tmp_path / "lm", data, steps=4)
    assert "test-time-optimisation" not in raised(gaussian_classifier(), tmp_path / "dc", data, steps=4)


class Mirror:
    """purify(x) = 1 - x: with the identity as its Jacobian an attacker walks the wrong way."""

    def purify(self, x):
        return 1 - x

    def classify(self, x):
        return smooth(x)


class Shift(Mirror):
    def purify(self, x):
        return x + 0.01


@pytest.mark.parametrize(("defence", "expected"), [(Mirror, True), (Shift, False)])
def test_bpda_above_exact(tmp_path, defence, expected):
    model = ForeignDefence(defence(), image_shape=SHAPE, num_classes=CLASSES)
    found = raised(model, tmp_path / "run", eps="24/255")
    assert ("bpda-above-exact" in found) is expected
    assert "bpda-gradient" not in found
    assert "bpda-gradient" in raised(model, tmp_path / "bpda", gradient="bpda")


class Keyed(BaseDefence):
    """Adds a random direction of each draw to the wrong classes: nothing on clean images, all an attacker needs who knows it."""

    stochastic = True

    def __init__(self, size):
        super().__init__(SHAPE, CLASSES, NAMES)
        self.size = size

    def forward(self, x):
        self.network_evaluations += len(x)
        generator = torch.Generator().manual_seed(self.noise_seed % 2**31 + 7919 * self._next_draw())
        key = torch.randn(64, generator=generator)
        logits = 6.0 * torch.nn.functional.one_hot(smooth(nearest(x)).argmax(1), CLASSES)
        return logits + (logits == 0) * (self.size * ((x - nearest(x)).flatten(1) @ key))[:, None]


@pytest.mark.parametrize(("size", "expected"), [(20.0, True), (0.0, False)])
def test_known_below_fresh(tmp_path, size, expected):
    found = raised(Keyed(size), tmp_path / "run", eps="3/255")
    assert ("known-below-fresh" in found) is expected


def test_hidden_randomness(tmp_path):
    generator = torch.Generator().manual_seed(0)
    noisy = plain(lambda x: smooth(x + 0.05 * torch.randn(x.shape, generator=generator)))
    assert "randomised-output" in raised(noisy, tmp_path / "run")


def test_sanity_can_be_left_out_and_says_so(tmp_path):
    assert "sanity-not-checked" in raised(plain(smooth), tmp_path / "run", sanity=0)


def test_a_model_without_gradients_is_told_so(tmp_path):
    from rdc.errors import InputError

    with pytest.raises(InputError, match="do not depend differentiably"):
        raised(plain(lambda x: smooth(x.detach())), tmp_path / "run")


def test_the_page_of_flags_is_true():
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation_flags.md").read_text()
    page = " ".join(page.split())  # wherever its lines end
    for flag in FLAGS:
        assert f"**`{flag.name}`** ({flag.severity}). Raised if {flag.raised_if}." in page
        assert f"{flag.explanation} *What to do:* {flag.what_to_do}" in page
