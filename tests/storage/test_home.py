"""A user without a home folder, as containers have them."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest
from PIL import Image

from rdc.cli import main
from rdc.data import download_fashion_mnist, load_dataset
from rdc.data import fashion_mnist as fashion_mnist_module
from rdc.errors import ConfigError, DataError
from rdc.storage.home import cache_folder, expanded
from tests.evaluation_models import grey, save_tiny


@pytest.fixture
def homeless(monkeypatch):
    """HOME is not set, and the user id is in no list."""

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("RDC_DATA", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", Path("/nowhere/debian"))
    with pytest.raises(RuntimeError):
        Path.home()


def test_with_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a") == tmp_path / "a" and expanded("b/~") == Path("b/~")
    assert cache_folder("x") == tmp_path / ".cache" / "rdc" / "x"


def test_without_one(homeless):
    assert expanded("b/~") == Path("b/~") and cache_folder("x") is None
    for path in ("~/a", "~nobody-of-this-name/a"):
        with pytest.raises(ConfigError, match="no home folder; write the path without ~"):
            expanded(path, ConfigError)
    with pytest.raises(DataError, match="zero byte"):
        expanded("a\0b")


def test_data_sets_without_a_home_folder(homeless, tmp_path, monkeypatch):
    assert len(load_dataset("fashion-mnist-sample")) == 512
    with pytest.raises(DataError, match=r"cifar10: no place to look in.*Set RDC_DATA, or name a folder with root="):
        load_dataset("cifar10")
    with pytest.raises(DataError, match="not found together"):
        load_dataset("fashion-mnist")
    with pytest.raises(DataError, match="no folder to download into.*Set RDC_DATA"):
        load_dataset("fashion-mnist", download=True)
    monkeypatch.setenv("RDC_DATA", str(tmp_path))
    for name in ("cifar10", "fashion-mnist"):
        with pytest.raises(DataError, match=f"(?s)not found together in\n  {tmp_path}/{name}"):
            load_dataset(name)
    monkeypatch.setenv("RDC_DATA", "~/data")
    for call in (
        lambda: load_dataset("cifar10"),
        lambda: load_dataset("~/own.npz"),
        lambda: download_fashion_mnist("~/x"),
    ):
        with pytest.raises(DataError, match="no home folder"):
            call()


def test_commands_without_a_home_folder(homeless, tmp_path, capsys):
    """Where no file in it is needed; a calibration that would be kept there is made and not kept."""
    model, data = save_tiny(tmp_path)
    Image.fromarray(grey((8, 8))).save(tmp_path / "a.png")
    command = ["classify", "--device", "cpu", "--model", model, str(tmp_path / "a.png")]
    assert main(command) == 0 and "confidence" in capsys.readouterr().out
    assert main([*command, "--anytime", "0.2", "--anytime-data", data]) == 0 and "anytime: " in capsys.readouterr().out
    assert main(["info"]) == 0
    assert main(["calibrate", "--model", model, "--data", "cifar10", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
