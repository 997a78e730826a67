"""``precision="auto"``: who is chosen, on which images, and that nothing but the choice is left behind."""

import dataclasses

import pytest
import torch

import rdc
from rdc.data import Dataset
from rdc.errors import ConfigError, InputError
from rdc.models import precision
from rdc.models.checkpoints import save_model
from rdc.models.choice import ModelChoice
from rdc.models.precision import FASTER, MOST_MOVED, faster_precision
from tests.tiny_models import CONFIG, LEVELS, pixels, tiny_classifier


class Clock:
    """Every call takes as long as is said of it: float32 and bfloat16 in turn, the first of a round moving on."""

    def __init__(self, plain, half):
        turns = [plain, half, half, plain, plain, half]
        self.readings = [value for length in turns for value in (0.0, length)]

    def __call__(self):
        return self.readings.pop(0)


def chosen(classifier, plain=2.0, half=1.0, x=None):
    x = pixels(6) if x is None else x
    return faster_precision(lambda name: classifier.with_(precision=name), x, read=Clock(plain, half))


@pytest.fixture(scope="module")
def classifier():
    """Rounding moves its answers by far less than what is allowed."""
    return tiny_classifier(logit_scale=1e-4)


def test_the_faster_one_is_taken_and_what_was_measured_is_kept(classifier):
    found = chosen(classifier)
    about = found.precision_choice
    assert found.describe()["precision"] == about.precision == "bfloat16"
    assert (about.images, about.other_decisions) == (6, 0) and 0 < about.largest_movement <= MOST_MOVED
    assert (about.milliseconds_float32, about.milliseconds_bfloat16) == (333.3, 166.7)
    assert found.network_evaluations == classifier.network_evaluations == 0
    assert precision.PrecisionChoice.from_json(about.to_json(), "choice") == about
    assert about.words().startswith("bfloat16; on 6 images bfloat16 decides 0 otherwise")


def test_the_movement_is_that_of_all_classes(classifier):
    x = pixels(6)
    exact, half = classifier(x), classifier.with_(precision="bfloat16")(x)
    expected = float((exact - half).abs().max())
    assert chosen(classifier, x=x).precision_choice.largest_movement == float(f"{expected:.4g}")


@pytest.mark.parametrize(("ratio", "taken"), [(FASTER - 0.01, "float32"), (FASTER, "bfloat16"), (0.5, "float32")])
def test_a_tie_goes_to_float32(classifier, ratio, taken):
    assert chosen(classifier, plain=ratio).precision_choice.precision == taken


def test_the_fastest_call_counts(classifier):
    slow = Clock(2.0, 1.0)
    slow.readings[3] = 50.0  # one call of bfloat16 was disturbed
    found = faster_precision(lambda name: classifier.with_(precision=name), pixels(6), read=slow)
    assert found.precision_choice.precision == "bfloat16"


def test_answers_that_move_are_not_taken():
    found = chosen(tiny_classifier(logit_scale=1.0))
    about = found.precision_choice
    assert found.describe()["precision"] == about.precision == "float32" and about.largest_movement > MOST_MOVED


def test_a_decision_that_changes_is_not_taken(classifier):
    """Two models whose answers differ by less than what is allowed, and decide otherwise."""

    def made(name):
        small = tiny_classifier(logit_scale=1e-9)
        prior = (0.3333, 0.3334, 0.3333) if name == "float32" else (0.3334, 0.3333, 0.3333)
        return small.with_(precision=name, class_prior=prior)

    about = faster_precision(made, pixels(6), read=Clock(2.0, 1.0)).precision_choice
    assert (about.precision, about.other_decisions) == ("float32", 6) and about.largest_movement < MOST_MOVED


def test_answers_that_are_no_numbers_are_not_taken(classifier):
    def made(name):
        found = classifier.with_(precision=name)
        if name == "bfloat16":
            found.forward = lambda x: torch.full((len(x), 3), float("nan"))
            found.with_ = lambda **changes: found
        return found

    about = faster_precision(made, pixels(6), read=Clock(2.0, 1.0)).precision_choice
    assert about.precision == "float32" and about.largest_movement is None and "no finite number" in about.words()


def test_fresh_noise_is_compared_on_the_same_draws(classifier):
    fresh = classifier.with_(noise="fresh", noise_seed=3)
    found = chosen(fresh)
    assert found.precision_choice.largest_movement <= MOST_MOVED and found.noise_policy == "fresh"
    first = fresh.with_(precision="bfloat16")
    assert torch.equal(found(pixels(2)), first(pixels(2)))  # draws begin where they would have begun


def test_the_choice_goes_with_the_precision(classifier):
    found = chosen(classifier)
    assert found.with_(noise_seed=1).precision_choice is found.precision_choice
    assert found.with_(precision="float32").precision_choice is None
    assert classifier.precision_choice is None


def test_where_no_images_are_at_hand_it_is_refused(classifier):
    for refuse in (lambda: classifier.with_(precision="auto"), lambda: tiny_classifier(precision="auto")):
        with pytest.raises(ConfigError, match=r'expected float32 or bfloat16; got .auto.; "auto" is chosen on images'):
            refuse()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    info = {"classifier": {"levels": LEVELS, "logit_scale": 1e-4}, "class_names": ["a", "b", "c"]}
    save_model(path, tiny_classifier().denoiser.network, CONFIG, info)
    return str(path)


def test_load_takes_a_sample(saved, monkeypatch):
    monkeypatch.setattr(precision, "FASTER", 0.0)  # whatever the clock says
    model = rdc.load(saved, precision="auto", precision_sample=pixels(5))
    assert model.describe()["precision"] == "bfloat16" and model.precision_choice.images == 5
    monkeypatch.setattr(precision, "FASTER", 1e9)
    assert rdc.load(saved, precision="auto", precision_sample=pixels(5)).describe()["precision"] == "float32"
    with pytest.raises(
        ConfigError, match=r"rdc ships none that belong to this model; expected precision_sample=pixels"
    ):
        rdc.load(saved, precision="auto")
    with pytest.raises(ConfigError, match='precision_sample: expected precision="auto" beside it'):
        rdc.load(saved, precision_sample=pixels(5))
    with pytest.raises(InputError, match="pixels"):
        rdc.load(saved, precision="auto", precision_sample=pixels(5)[:, :1])


def test_the_shipped_sample_belongs_to_the_shipped_model(monkeypatch):
    monkeypatch.setattr(precision, "SAMPLE", 8)
    model = rdc.load("fashion-mnist", precision="auto")
    assert model.precision_choice.images == 8
    monkeypatch.setattr(precision, "load_dataset", lambda name: dataclasses.replace(real, class_names=names))
    real, names = rdc.load_dataset("fashion-mnist-sample"), tuple("abcdefghij")
    with pytest.raises(ConfigError, match="none that belong"):
        rdc.load("fashion-mnist", precision="auto")


def test_costly_models_have_smaller_samples(classifier):
    few = [precision.sample_size(classifier.with_(levels=f"log:{count}:0.3:3:flat")) for count in (1, 5, 12, 40, 1000)]
    assert few == [64, 64, 28, 8, 8]


def test_a_choice_that_was_made_before_stands(saved, monkeypatch):
    choice = ModelChoice(saved, precision="auto", device="cpu")
    images = (255 * pixels(4)).byte()
    data = Dataset(images, torch.zeros(4, dtype=torch.long), ("a", "b", "c"), name="d", split="test")
    monkeypatch.setattr(precision, "FASTER", 0.0)
    made = choice.load(data)
    assert made.precision_choice.precision == "bfloat16" and made.precision_choice.images == 4
    monkeypatch.setattr(precision, "FASTER", 1e9)
    again = dataclasses.replace(choice, chosen_precision=made.precision_choice).load(data)
    assert again.describe()["precision"] == "bfloat16" and again.precision_choice == made.precision_choice
    other = dataclasses.replace(data, images=data.images[..., :4, :4])
    with pytest.raises(ConfigError, match="auto is measured on images of the data"):
        choice.load(other)
