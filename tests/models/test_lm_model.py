"""Which network moves the input: by name, path or object; and what is known of its null label."""

import copy

import pytest
import torch

import rdc
from rdc.errors import CheckpointError, ConfigError
from rdc.method.denoiser import make_denoiser
from rdc.method.null_label import NullLabel
from rdc.models.checkpoints import save_model
from rdc.models.choice import ModelChoice
from rdc.models.joined import lm_in_front
from rdc.models.null_labels import null_label_of
from rdc.models.single import SINGLE, load_denoiser
from rdc.networks.presets import DISCRIMINATIVE, build_network, network_preset
from tests.tiny_models import CONFIG, LEVELS, pixels, randomize

LM = "paper-v2,steps=2"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Paths of a conditional and of an unconditional checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    for name, classes in (("cond", 3), ("uncond", 0)):
        config = copy.deepcopy(CONFIG) | {"num_classes": classes}
        with torch.random.fork_rng():
            network = randomize(build_network(config), seed=classes)
        info = {"classifier": {"levels": LEVELS}, "class_names": ["a", "b", "c"]} if classes else {}
        save_model(folder / name, network, config, info)
    return str(folder / "cond"), str(folder / "uncond")


def test_by_path_by_object_and_by_choice_it_is_the_same(saved):
    own, other = saved
    model, x = rdc.load(own, lm=LM, lm_denoiser=other), pixels()
    assert (
        model.lm_denoiser.source == other and model.denoiser.source == own and model.lm_denoiser.head == "unconditional"
    )
    expected = model(x)
    denoiser = load_denoiser(other, torch.device("cpu"))
    assert torch.equal(rdc.load(own, lm=LM, lm_denoiser=denoiser)(x), expected)
    assert torch.equal(ModelChoice(own, lm=LM, lm_model=other, device="cpu").load()(x), expected)
    conditional = rdc.load(own)
    assert torch.equal(rdc.load(own, lm=LM, lm_denoiser=conditional)(x), rdc.load(own, lm=LM)(x))
    assert not torch.equal(rdc.load(own, lm=LM)(x), expected)


def test_of_another_kind_of_model(saved):
    x = pixels()
    custom = rdc.from_denoiser(
        lambda z, time, labels: z * (1 + labels.reshape(-1, 1, 1, 1)), num_classes=3, image_shape=(2, 8, 8), predicts="F",
        schedule="edm-network", levels=LEVELS, lm=LM, lm_denoiser=saved[1],
    )  # fmt: skip
    assert custom.lm_denoiser.source == saved[1] and not torch.equal(custom.purify(x), x)
    resnet = rdc.load("fashion-mnist-standard")
    with pytest.raises(ConfigError, match=r"takes images \[2, 8, 8\], the classifier \[1, 28, 28\]"):
        lm_in_front(resnet, saved[1])
    joined = rdc.load("fashion-mnist-lm-resnet", lm_denoiser="fashion-mnist")
    assert joined.purifier.denoiser.source == "fashion-mnist"
    assert rdc.load("fashion-mnist-lm-resnet").purifier.denoiser.source == "fashion-mnist-teacher"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lm_denoiser": "no-such-model", "lm": LM}, "lm_denoiser: expected fashion-mnist, .* no such file exists"),
        ({"lm_denoiser": "fashion-mnist-standard", "lm": LM}, "expected a diffusion model"),
        ({"lm_denoiser": "fashion-mnist", "lm": LM}, r"expected a network for images \[2, 8, 8\]"),
        ({"lm_denoiser": "sbgc:fashion-mnist", "lm": LM}, "expected a network, or optimal:DATA"),
        ({"lm_denoiser": 3, "lm": LM}, "lm_denoiser: expected the name of a diffusion model"),
    ],
)
def test_what_is_refused(saved, settings, match):
    with pytest.raises(ConfigError, match=match):
        rdc.load(saved[0], **settings)


def test_a_network_that_nothing_asks_is_refused(saved):
    for lm in ({}, {"lm": "none"}):
        with pytest.raises(ConfigError, match=r"\(--lm-model\): expected likelihood maximisation with it"):
            rdc.load(saved[0], lm_denoiser=saved[1], **lm)
    with pytest.raises(ConfigError, match="has no lm_denoiser"):
        rdc.load("fashion-mnist-standard", lm_denoiser="fashion-mnist")
    with pytest.raises(ConfigError, match="--lm and --lm-model: a model given as a function sets that itself"):
        ModelChoice("tests.tiny_models:tiny_classifier", lm=LM, lm_model=saved[1], device="cpu").load()


def test_an_unconditional_model_cannot_classify_and_says_what_it_can(saved):
    with pytest.raises(
        ConfigError, match="cannot classify. It can move the input of one that does: lm_denoiser=, --lm-model"
    ):
        rdc.load(saved[1])


# --- null labels ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("config", "info", "trained"),
    [
        ({"num_classes": 0}, {}, True),
        ({}, {}, None),
        ({}, {"null_label": {"trained": False, "why": "x"}}, False),
        ({}, {"null_label": {"trained": None, "why": "x"}, "command": "train", "label_dropout": 0.1}, None),
        ({}, {"command": "train", "label_dropout": 0.1}, True),
        ({}, {"command": "train", "label_dropout": 0.0}, False),
        ({}, {"command": "train"}, None),
        ({}, {"command": "distill", "distillation": {"posterior_weight": 1.0}}, True),
        ({}, {"command": "distill", "distillation": {"posterior_weight": 0.0}}, None),
        ({}, {"converted_from": {"kind": "edm-pickle"}}, False),
        ({}, {"converted_from": {"kind": "state-dict"}}, None),
        ({"unet": {"label_dropout": 0.2}}, {"converted_from": {"kind": "edm-pickle"}}, True),
        ({"unet": {"label_dropout": 0}}, {"converted_from": {"kind": "state-dict"}}, False),
        ({"vp": {"null_label": "mean"}}, {}, False),
        ({"vp": {"null_label": None}}, {}, False),
        ({"vp": {"null_label": 3}}, {}, True),
    ],
)
def test_what_a_checkpoint_tells_of_its_null_label(config, info, trained):
    found = null_label_of({"num_classes": 3, **config}, info, "file")
    assert found.trained is trained and found.why
    assert NullLabel.from_json(found.to_json(), "file") == found


@pytest.mark.parametrize(
    "entry",
    [
        3, {}, {"trained": 1, "why": "x"}, {"trained": True}, {"trained": True, "why": 3},
        {"trained": True, "why": "x" * 401}, {"trained": True, "why": "x", "more": 1},
    ],
)  # fmt: skip
def test_a_damaged_entry_is_refused(entry):
    with pytest.raises(CheckpointError, match="file: "):
        null_label_of({"num_classes": 3}, {"null_label": entry}, "file")


def test_shipped_networks_were_trained_without_a_label():
    for name in SINGLE:
        model = rdc.load(name)
        if hasattr(model, "denoiser"):
            assert model.denoiser.null_training.trained, name
    assert "resnet" in DISCRIMINATIVE


def test_training_records_it(tmp_path):
    from rdc.data import Dataset
    from rdc.training.exporter import Exporter

    config = network_preset("tiny-28", 2)
    data = Dataset(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), "d", "train")
    Exporter(tmp_path, config, data, {"command": "train", "label_dropout": 0.0}, "rdc train")(build_network(config), {})
    loaded = load_denoiser(str(tmp_path), torch.device("cpu"))
    assert loaded.null_training == NullLabel(False, "label dropout 0 of rdc train")
    assert make_denoiser(build_network(config), config).null_training == NullLabel()
