"""Numbers of NumPy and PyTorch are numbers; bools, text and lists are none, and one line says so."""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rdc
from rdc.arguments.scalars import as_flag, as_integer, as_number, shown
from rdc.defences import DiffusionPurifier, PlainClassifier
from rdc.errors import ConfigError, DataError, RdcError
from rdc.evaluation import EvaluationSettings
from rdc.method.levels import NoiseLevels, noise_levels
from rdc.method.likelihood_maximization import LikelihoodMaximization
from rdc.models.checkpoints import save_model
from rdc.training.config import TrainConfig
from tests.tiny_models import CLASSES, CONFIG, SHAPE, pixels, tiny_classifier, tiny_denoiser

#: one of every kind that callers have been seen to pass by mistake
ODD = [
    None, True, np.bool_(True), 1.5, float("nan"), float("inf"), -1, 0, 10**400, 1j, "", "a", "a\nb", b"a", [], [1], ["a"], {}, {"a": 1},
    object(), np.zeros(2), np.array("a"), np.array(True), torch.zeros(2), torch.tensor(True), torch.tensor(1.5), Fraction(1, 3), int, len,
    "x" * 10_000, np.datetime64("2020-01-01"), torch.empty((), device="meta"), range(0),
]  # fmt: skip


class Bad:
    """Something whose every answer is an exception."""

    dtype, ndim = "float32", 0

    def __repr__(self):
        raise RuntimeError("no repr")

    def __float__(self):
        raise RuntimeError("no float")

    __index__ = __float__


@given(st.integers(-(2**70), 2**70))
def test_an_integer_of_any_kind(value):
    kinds = [
        kind for kind in (np.int8, np.uint8, np.int64, np.uint64) if np.iinfo(kind).min <= value <= np.iinfo(kind).max
    ]
    for same in (value, *(kind(value) for kind in kinds), *(np.array(value, kind) for kind in kinds)):
        assert as_integer(same) == value and type(as_integer(same)) is int
        assert as_number(same) == float(value) and type(as_number(same)) is float
    if -(2**63) <= value < 2**63:
        assert as_integer(torch.tensor(value)) == value


@given(st.floats(allow_nan=False))
def test_a_number_of_any_kind(value):
    for same in (value, np.float64(value), np.array(value), torch.tensor(value, dtype=torch.float64)):
        assert as_number(same) == value and type(as_number(same)) is float and as_integer(same) is None
    with np.errstate(over="ignore"):
        assert as_number(np.float32(value)) == float(np.float32(value))


def test_what_is_no_number():
    for value in [
        None,
        True,
        np.bool_(0),
        "1",
        b"1",
        [1],
        (1,),
        np.ones(1),
        torch.ones(1),
        torch.tensor(True),
        1j,
        np.complex64(1),
        Bad(),
    ]:
        assert as_integer(value) is None and as_number(value) is None, type(value)
    assert as_integer(10**400) == 10**400 and as_number(10**400) is None and as_number(Fraction(1, 4)) == 0.25
    assert as_integer(torch.empty((), device="meta", dtype=torch.int64)) is None
    assert [as_flag(v) for v in (True, np.bool_(False), 1, "true", None)] == [True, False, None, None, None]
    assert shown(Bad()) == "a Bad" and shown("a\nb") == "'a\\nb'" and len(shown("x" * 10**6)) < 200
    assert shown(10**5000) == "a int"


def refused_in_one_line(use):
    """Either taken, or one line of rdc's own."""
    try:
        use()
    except RdcError as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 700, error
        return True
    return False


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EvaluationSettings)])
def test_every_setting_of_an_evaluation(name):
    taken = [
        odd
        for odd in ODD
        if not refused_in_one_line(lambda odd=odd: EvaluationSettings(**{"model": "m", "dataset": "d", name: odd}))
    ]
    for odd in taken:
        settings = EvaluationSettings(**{"model": "m", "dataset": "d", name: odd})
        assert EvaluationSettings(**json.loads(json.dumps(settings.to_json()))) == settings
    assert not any(isinstance(odd, (bool, np.bool_, complex, dict)) for odd in taken)


def test_settings_of_numpy_are_those_of_python():
    integers = {"n": 8, "start": 2, "steps": 3, "restarts": 2, "sanity": 0, "seed": 5, "batch": 4, "resubmissions": 2}
    for kind in (np.int64, np.uint8, torch.tensor):
        made = EvaluationSettings(
            "m", "d", **{key: kind(value) for key, value in integers.items()}, eps=np.float64(0.25)
        )
        assert made == EvaluationSettings("m", "d", **integers, eps=0.25) and made.eps == "0.25"
        assert json.dumps(made.to_json())
    assert EvaluationSettings("m", "d", eps=np.float32(0.1)).radius == float(np.float32(0.1))
    assert EvaluationSettings("m", "d", noise="fresh", eot=np.int32(3)).eot == 3
    assert EvaluationSettings("m", "d", attacks="apgd-ce, square").attacks == ("apgd-ce", "square")
    assert EvaluationSettings("m", "d", seed=np.uint64(2**64 - 1)).seed == 2**64 - 1
    for bad in (
        {"attacks": "apgd-ce,nothing"},
        {"attacks": 3},
        {"attacks": [3]},
        {"eps": True},
        {"steps": True},
        {"n": np.float64(8)},
    ):
        with pytest.raises(ConfigError, match="expected"):
            EvaluationSettings("m", "d", **bad)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(LikelihoodMaximization)])
def test_every_setting_of_likelihood_maximisation(name):
    for odd in ODD:
        if not refused_in_one_line(lambda odd=odd: LikelihoodMaximization(**{name: odd})):
            json.dumps(LikelihoodMaximization(**{name: odd}).describe(), allow_nan=False)


def test_likelihood_maximisation_of_numpy_is_that_of_python():
    made = LikelihoodMaximization(
        steps=np.int64(2), step_size=np.float64(0.25), eta=torch.tensor(0.5), sigma_range=np.array([0.5, 1.0]),
        levels_per_step=np.uint8(2), seed=np.int32(-4), sign=np.bool_(False), momentum=np.float64(0.5),
    )  # fmt: skip
    plain = LikelihoodMaximization(
        steps=2, step_size=0.25, eta=0.5, sigma_range=(0.5, 1.0), levels_per_step=2, seed=-4, sign=False, momentum=0.5
    )
    assert made == plain and hash(made) == hash(plain) and json.dumps(made.describe()) == json.dumps(plain.describe())
    for bad in (
        {"steps": 4097},
        {"steps": True},
        {"eta": True},
        {"sign": 1},
        {"sigma_range": (1.0,)},
        {"levels": "edm"},
        {"levels_per_step": 10**9},
    ):
        with pytest.raises(ConfigError, match="likelihood maximisation, .*: expected .*; got"):
            LikelihoodMaximization(**bad)


@pytest.mark.parametrize("position", range(5))
def test_every_argument_of_noise_levels(position):
    for odd in ODD:
        arguments = ["log", 3, 0.5, 2.0, "flat"]
        arguments[position] = odd
        refused_in_one_line(lambda arguments=arguments: noise_levels(*arguments))
    for odd in ODD:
        refused_in_one_line(lambda odd=odd: NoiseLevels(odd, (1.0,)))
        refused_in_one_line(lambda odd=odd: NoiseLevels((1.0,), odd))
    assert noise_levels("log", np.int64(3), np.float64(0.5), torch.tensor(2.0), "flat") == noise_levels(
        "log", 3, 0.5, 2.0, "flat"
    )


SETTINGS = sorted(set(tiny_classifier().settings()))


@pytest.mark.parametrize("name", [*SETTINGS, "denoiser"])
def test_every_setting_of_a_classifier(name):
    denoiser = tiny_denoiser("multihead")
    for odd in ODD:
        settings = {"denoiser": denoiser, "levels": "log:2:0.5:1:flat", name: odd}
        if not refused_in_one_line(lambda settings=settings: rdc.DiffusionClassifier(**settings)):
            made = rdc.DiffusionClassifier(**settings)
            json.dumps(made.describe(), allow_nan=False)
            assert made.with_().settings().keys() == made.settings().keys()
            assert made(pixels(1)).isfinite().all()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = CONFIG | {"kind": "multihead", "wide_channels": 12}
    return save_model(tmp_path_factory.mktemp("tiny") / "tiny", tiny_denoiser("multihead").network, config).with_suffix(
        ""
    )


@pytest.mark.parametrize("name", [*SETTINGS, "device", "foo", "denoiser"])
def test_every_keyword_of_load(checkpoint, name):
    for odd in (None, True, 1.5, "", ["a"], {"a": 1}, np.zeros(2)):
        if not refused_in_one_line(lambda odd=odd: rdc.load(checkpoint, **{name: odd})):
            assert name not in ("foo", "denoiser", "levels")


def test_names_of_models_that_are_none():
    for odd in ODD:
        if not isinstance(odd, str) or odd:
            assert refused_in_one_line(lambda odd=odd: rdc.load(odd)), odd
    for use, words in (
        (lambda: rdc.load(foo=1), "model: expected fashion-mnist, .* got None"),
        (
            lambda: rdc.load("fashion-mnist", foo=1),
            "settings: expected some of device, class_names, .*precision; got foo",
        ),
        (lambda: rdc.load("fashion-mnist", levels=None), "levels: expected NoiseLevels, a preset .*; got None"),
        (lambda: rdc.load("fashion-mnist", device="gpu"), "device: expected cpu, cuda, cuda:0, mps .*; got 'gpu'"),
        (lambda: rdc.load("fashion-mnist", device="meta"), "device: expected .* that holds values"),
        (lambda: rdc.load("fashion-mnist", noise_seed=1.5), "noise_seed: expected an integer.*; got 1.5"),
        (lambda: rdc.load("fashion-mnist", memory_budget_mb="a"), "memory_budget_mb: expected a number > 0; got 'a'"),
        (lambda: rdc.load("fashion-mnist-standard", foo=1), "has no foo"),
        (lambda: rdc.load("fashion-mnist-lm-resnet", lm=5), "lm: expected none, paper-v1, .*; got 5"),
    ):
        with pytest.raises(ConfigError, match=words):
            use()


@pytest.mark.parametrize("name", ["image_shape", "num_classes", "class_names", "gradient", "noise", "noise_seed"])
def test_every_setting_of_a_plain_classifier(name):
    for odd in ODD:
        settings = {"image_shape": SHAPE, "num_classes": CLASSES, name: odd}
        refused_in_one_line(lambda settings=settings: PlainClassifier(lambda x: x, **settings))


@pytest.mark.parametrize("name", ["sigma", "steps", "sigma_min", "sampler", "seed", "memory_budget_mb"])
def test_every_setting_of_a_purifier(name):
    denoiser = tiny_denoiser("multihead")
    for odd in ODD:
        refused_in_one_line(lambda odd=odd: DiffusionPurifier(denoiser, **{name: odd}))
    assert DiffusionPurifier(denoiser, sigma=np.float64(0.5), steps=np.int64(3)).describe()["sigma"] == 0.5


@pytest.mark.parametrize("names", ["abc", "ab", ["a", "b"], ["a", "b", "c", "d"], ["a", "b", "a"], 3, [], {}])
def test_class_names_that_are_not_one_for_each_class(names):
    for use in (
        lambda: tiny_classifier(class_names=names),
        lambda: PlainClassifier(lambda x: x, image_shape=SHAPE, num_classes=CLASSES, class_names=names),
    ):
        with pytest.raises(ConfigError, match="class_names: expected 3 different names"):
            use()
    if names not in (["a", "b"], ["a", "b", "c", "d"]):
        with pytest.raises(DataError, match="class_names: expected a list of different names|labels must be in"):
            rdc.data.Dataset(
                torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), names, "made", "test"
            )


def test_class_names_may_be_anything_with_a_name():
    for names in (
        ("a", "b", "c"),
        ["a", "b", "c"],
        range(3),
        np.array(["a", "b", "c"]),
        {"a": 1, "b": 2, "c": 3},
        iter("abc"),
    ):
        assert len(tiny_classifier(class_names=names).class_names) == 3
    assert tiny_classifier().class_names == ("0", "1", "2")


def test_settings_of_training():
    made = TrainConfig(images=np.int64(64), batch_size=np.int32(8), learning_rate=np.float64(0.5), seed=torch.tensor(3))
    assert made == TrainConfig(images=64, batch_size=8, learning_rate=0.5, seed=3) and json.dumps(made.describe())
    for name in ("images", "batch_size", "learning_rate", "seed", "clip", "ema_images"):
        for odd in ODD:
            refused_in_one_line(lambda name=name, odd=odd: TrainConfig(**{"images": 10**6, name: odd}))
        for odd in (True, "1", None, [1]):
            with pytest.raises(ConfigError, match=f"{name}: expected a"):
                TrainConfig(**{"images": 10**6, name: odd})
