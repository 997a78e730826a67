"""Weights that the wheel leaves out: where they are looked for, and the one line where they are not."""

import re
import shutil

import pytest
import torch

import rdc.models.assets as assets
from rdc.errors import CheckpointError
from rdc.models.zoo import load
from rdc.training.preparation import open_model

ROOT = assets.ASSETS.parent.parent
WEIGHTS = "fashion-mnist-hybvit.safetensors"  # small


@pytest.fixture
def left_out(monkeypatch, tmp_path):
    """As in the wheel, with another model than the large one: its description is in the package, its weights are not."""
    package = tmp_path / "package"
    package.mkdir()
    name = WEIGHTS.removesuffix(".safetensors")
    shutil.copy(assets.ASSETS / f"{name}.json", package)
    monkeypatch.setattr(assets, "LEFT_OUT", {name: "0.4 MB"})
    monkeypatch.setattr("rdc.models.single.ASSETS", package)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RDC_ASSETS", raising=False)
    kept, assets_before = assets.ASSETS, load(name)
    monkeypatch.setattr(assets, "ASSETS", package)
    return name, kept / WEIGHTS, assets_before


def test_one_line_says_where_they_belong(left_out, tmp_path):
    name, _, _ = left_out
    with pytest.raises(CheckpointError) as error:
        load(name)
    text = str(error.value)
    assert text.count("\n") == 0 and f"model {name}: its weights (0.4 MB) are not in the wheel" in text
    assert str(tmp_path / "home/.cache/rdc/assets") in text and "RDC_ASSETS" in text
    assert re.search(r"SHA-256 [0-9a-f]{64}$", text)


@pytest.mark.parametrize("place", ["named", "cache"])
def test_they_are_found_elsewhere(left_out, place, tmp_path, monkeypatch):
    name, weights, expected = left_out
    folder = tmp_path / ("named" if place == "named" else "home/.cache/rdc/assets")
    folder.mkdir(parents=True)
    shutil.copy(weights, folder)
    if place == "named":
        monkeypatch.setenv("RDC_ASSETS", str(folder))
    x = torch.rand(2, *expected.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load(name)(x), expected(x))
    assert open_model(name)[1]["kind"] == "vit"


def test_others_are_refused(left_out, tmp_path, monkeypatch):
    """A file of that name with other weights is not taken for them, wherever it lies."""
    name, weights, _ = left_out
    other = weights.with_name("fashion-mnist-jem.safetensors")
    shutil.copy(other, tmp_path / WEIGHTS)
    monkeypatch.setenv("RDC_ASSETS", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"sha256 is .* but fashion-mnist-hybvit.json expects"):
        load(name)


def test_without_a_home(left_out, monkeypatch):
    monkeypatch.setattr(assets, "cache_folder", lambda *parts: None)
    with pytest.raises(CheckpointError, match="into a folder of your choice, or name the folder"):
        load(left_out[0])


def test_the_large_ones_are_those_of_the_build():
    """What pyproject.toml leaves out of the wheel is what is looked for elsewhere, and its size is the file's."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.setuptools.exclude-package-data]")[2]
    listed = re.findall(r'"assets/([\w-]+)\.safetensors"', text.partition("\n[")[0])
    assert listed == list(assets.LEFT_OUT)
    for name, size in assets.LEFT_OUT.items():
        assert f"{assets.weights_of(name).stat().st_size / 1e6:.0f} MB" == size
