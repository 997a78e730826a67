"""The shipped models are what their descriptions say."""

import json
import shutil

import pytest
import torch

import rdc
from rdc.errors import ConfigError
from rdc.models.assets import LEFT_OUT
from rdc.models.joined import JOINED
from rdc.models.single import ASSETS
from rdc.models.zoo import MODELS


@pytest.mark.parametrize(("name", "count", "least"), [("fashion-mnist", 64, 48), ("fashion-mnist-teacher", 16, 12)])
def test_shipped_model_classifies_shipped_images(name, count, least):
    classifier, data = rdc.load(name), rdc.load_dataset("fashion-mnist-sample")
    with torch.no_grad():
        log_p = classifier(data.pixels(range(count)))
    assert int((log_p.argmax(1) == data.labels[:count]).sum()) >= least
    assert classifier.class_names == tuple(data.class_names) and classifier.denoiser.passes_per_level in (1, 10)
    recommended = json.loads((ASSETS / f"{name}.json").read_text())["info"]["classifier"]
    assert classifier.logit_scale == recommended["logit_scale"]
    if isinstance(recommended["levels"], dict):
        assert list(classifier.levels.sigma) == recommended["levels"]["sigma"]


BASELINES = [
    ("fashion-mnist-standard", 57),
    ("fashion-mnist-pgd-at", 52),
    ("fashion-mnist-trades", 52),
    ("fashion-mnist-mart", 52),
    ("fashion-mnist-pgd-at-several", 46),
    ("fashion-mnist-jem", 47),
    ("fashion-mnist-hybvit", 48),
]


@pytest.mark.parametrize(("name", "least"), BASELINES)
def test_shipped_baseline_classifies_shipped_images(name, least):
    classifier, data = rdc.load(name), rdc.load_dataset("fashion-mnist-sample")
    assert int((classifier(data.pixels(range(64))).argmax(1) == data.labels[:64]).sum()) >= least
    assert classifier.class_names == tuple(data.class_names)


@pytest.mark.parametrize("name", sorted(JOINED))
def test_purifier_in_front_of_the_baseline(name):
    """It decides by the baseline's logits of the purified image, and takes the options of a defence."""
    classifier, data = rdc.load(name), rdc.load_dataset("fashion-mnist-sample")
    images, plain = data.pixels(range(8)), rdc.load("fashion-mnist-standard")
    with torch.no_grad():
        logits, moved = classifier(images), classifier.purify(images)
        torch.testing.assert_close(logits, plain(moved))
    assert not torch.equal(moved, images) and logits.shape == (8, 10)
    assert rdc.load(name, gradient="bpda", noise="fresh").gradient == "bpda"
    with pytest.raises(ConfigError, match=f"{name}: expected no levels, this model has none"):
        rdc.load(name, levels="edm")


def test_lm_of_the_joined_model_can_be_chosen():
    assert rdc.load("fashion-mnist-lm-resnet", lm="paper-v2,steps=2").describe()["lm"]["steps"] == 2
    with pytest.raises(ConfigError, match="fashion-mnist-diffpure: expected no lm"):
        rdc.load("fashion-mnist-diffpure", lm="paper-v2")


def test_the_weights_stay_small():
    files = {path.stem: path.stat().st_size for path in ASSETS.glob("*.safetensors")}
    assert set(MODELS) == set(files) | set(JOINED)
    assert files["fashion-mnist"] + files["fashion-mnist-teacher"] <= 12_000_000 and files["cifar10"] <= 20_000_000
    assert sum(size for name, size in files.items() if name not in LEFT_OUT) <= 20_000_000  # of a wheel of at most 25


def test_recommended_levels_are_checked(tmp_path):
    for suffix in (".json", ".safetensors"):
        shutil.copy(ASSETS / f"fashion-mnist{suffix}", tmp_path / f"model{suffix}")
    described = json.loads((tmp_path / "model.json").read_text())
    described.pop("digest", None)
    described["info"]["classifier"]["levels"] = {"sigma": [1.0]}
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="recommended levels: expected an object with the lists sigma and weight"):
        rdc.load(tmp_path)
    assert (
        len(rdc.load(tmp_path, levels="log:3:1:2:flat").levels) == 3
    )  # a choice of one's own is possible all the same


def test_levels_by_the_checkpoints_own_names(tmp_path):
    for suffix in (".json", ".safetensors"):
        shutil.copy(ASSETS / f"fashion-mnist{suffix}", tmp_path / f"model{suffix}")
    described = json.loads((tmp_path / "model.json").read_text())
    described.pop("digest", None)
    described["info"]["level_presets"] = {
        "fast": "log:2:1:2:flat",
        "accurate": {"sigma": [1.0, 2, 3], "weight": [1.0, 1, 1]},
    }
    (tmp_path / "model.json").write_text(json.dumps(described))
    assert rdc.load(tmp_path, levels="fast").levels.sigma == (1.0, 2.0)
    assert rdc.load(tmp_path, levels="accurate").levels.sigma == (1.0, 2.0, 3.0)
    del described["info"]["level_presets"]["accurate"]
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=r"no levels of the name 'accurate' \(fast\); leave --levels out"):
        rdc.load(tmp_path, levels="accurate")
