"""The shipped models are what their descriptions say."""

import json
import shutil

import pytest
import torch

import rdc
from rdc.errors import ConfigError
from rdc.presets import ASSETS, MODELS


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


def test_the_weights_stay_small():
    assert set(MODELS) == {path.stem for path in ASSETS.glob("*.safetensors")}
    assert sum(path.stat().st_size for path in ASSETS.glob("*.safetensors")) <= 12_000_000


def test_recommended_levels_are_checked(tmp_path):
    for suffix in (".json", ".safetensors"):
        shutil.copy(ASSETS / f"fashion-mnist{suffix}", tmp_path / f"model{suffix}")
    described = json.loads((tmp_path / "model.json").read_text())
    described["info"]["classifier"]["levels"] = {"sigma": [1.0]}
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="recommended levels: expected an object with the lists sigma and weight"):
        rdc.load(tmp_path)
    assert (
        len(rdc.load(tmp_path, levels="log:3:1:2:flat").levels) == 3
    )  # a choice of one's own is possible all the same
