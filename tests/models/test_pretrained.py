"""Classifiers as folders for others, and the Hugging Face Hub (a stand-in for its library: nothing is sent)."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import rdc
from rdc.errors import CheckpointError, ConfigError
from tests.evaluation_models import TINY, save_tiny
from tests.tolerances import FLOAT64_OP


@pytest.fixture
def tiny(tmp_path):
    return rdc.load(save_tiny(tmp_path)[0])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A module with the three functions that are called; repositories are folders."""
    made = types.ModuleType("huggingface_hub")
    store: dict[str, Path] = {}

    class HfApi:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, *, repo_id, private, exist_ok):
            assert exist_ok and private is None
            store.setdefault(repo_id, tmp_path / "hub" / repo_id)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, store[repo_id], dirs_exist_ok=True)
            return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(*, repo_id, revision, token, cache_dir, allow_patterns):
        assert allow_patterns == ["model.safetensors", "model.json"]
        if repo_id not in store:
            raise OSError("404 Client Error\nRepository Not Found")
        return str(store[repo_id])

    made.HfApi, made.snapshot_download = HfApi, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return store


def same(one, other):
    x = torch.rand(2, *one.image_shape, generator=torch.Generator().manual_seed(0))
    return torch.equal(one(x), other(x)) and one.describe() == other.describe() and one.class_names == other.class_names


def test_a_folder_holds_model_and_settings(tiny, tmp_path):
    changed = tiny.with_(lm="paper-v2,steps=2", levels="log:3:0.5:2:flat", noise="fresh", noise_seed=5, logit_scale=0.5)
    for number, model in enumerate((tiny, changed)):
        folder = rdc.save_pretrained(model, tmp_path / str(number), info={"licence": "MIT"})
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json", "README.md"}
        assert same(rdc.from_pretrained(folder), model.with_()) and same(rdc.load(folder), model.with_())
        assert json.loads((folder / "model.json").read_text())["info"]["licence"] == "MIT"
        assert "Licence: MIT" in (folder / "README.md").read_text()
    assert len(rdc.from_pretrained(tmp_path / "1", levels="log:2:1:2:flat").levels) == 2


def test_levels_that_no_text_gives_are_lists(tiny, tmp_path):
    own = rdc.NoiseLevels((0.5, 0.7), (1.0, 3.0))
    found = rdc.from_pretrained(rdc.save_pretrained(tiny.with_(levels=own), tmp_path / "a")).levels
    assert found.sigma == own.sigma and np.allclose(found.weight, own.weight, rtol=FLOAT64_OP)


def test_a_plain_network_and_half_the_bytes(tmp_path):
    model = rdc.load("fashion-mnist-standard")
    whole, half = (
        rdc.save_pretrained(model, tmp_path / name, dtype=kind)
        for name, kind in (("w", torch.float32), ("h", torch.float16))
    )
    assert same(rdc.from_pretrained(whole), model) and same(
        rdc.from_pretrained(half), model
    )  # it was shipped in float16
    assert (half / "model.safetensors").stat().st_size < 0.6 * (whole / "model.safetensors").stat().st_size


def test_to_the_hub_and_back(tiny, hub):
    assert rdc.push_to_hub(tiny, "me/tiny") == "https://hub/me/tiny/commit/1"
    assert {path.name for path in hub["me/tiny"].iterdir()} == {"model.safetensors", "model.json", "README.md"}
    assert same(rdc.from_pretrained("me/tiny"), tiny)
    with pytest.raises(CheckpointError, match=r"me/other: could not be downloaded .*404 Client Error") as raised:
        rdc.from_pretrained("me/other")
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match='repo_id: expected "user/model"'):
        rdc.push_to_hub(tiny, "no slash")


def test_a_folder_here_comes_before_the_hub(tiny, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rdc.save_pretrained(tiny, "me/tiny")
    assert same(rdc.from_pretrained("me/tiny"), tiny) and not hub


def test_without_the_library(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: rdc.from_pretrained("me/tiny"), lambda: rdc.push_to_hub(tiny, "me/tiny")):
        with pytest.raises(
            ConfigError, match=r"pip install huggingface_hub, or the extra robust-diffusion-classifier\[hub\]"
        ):
            call()


def test_what_no_folder_can_hold_is_said(tiny, tmp_path):
    import dataclasses

    own = dataclasses.replace(tiny.with_(lm="paper-v2").lm, step_size=0.01, name="mine")
    with pytest.raises(ConfigError, match="a text stands for"):
        rdc.save_pretrained(tiny.with_(lm=own), tmp_path / "a")
    with pytest.raises(ConfigError, match="a classifier of one network"):
        rdc.save_pretrained(rdc.load("fashion-mnist-lm-resnet"), tmp_path / "b")
    with pytest.raises(ConfigError, match='name: expected a folder or "user/model"; got 3'):
        rdc.from_pretrained(3)
    fresh = rdc.DiffusionClassifier(tiny.denoiser, tiny.levels)
    vars(fresh.denoiser.network).pop("rdc_origin")
    with pytest.raises(ConfigError, match="config: expected the description"):
        rdc.save_pretrained(fresh, tmp_path / "c")
    assert same(rdc.from_pretrained(rdc.save_pretrained(fresh, tmp_path / "c", config=TINY)), fresh)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
