"""The example of somebody else's network: 166,406 weights from a file that an environment variable names."""

import pytest
import torch
from safetensors.torch import save_file

from examples.wong_kolter import VARIABLE, load, network
from rdc.cli import main
from rdc.errors import CheckpointError


def test_it_has_their_weights_and_loads_by_name(tmp_path, monkeypatch, capsys):
    made = network()
    assert sum(weight.numel() for weight in made.parameters()) == 166_406
    assert list(made.state_dict()) == [f"{layer}.{kind}" for layer in (0, 2, 5, 7) for kind in ("weight", "bias")]
    save_file(made.state_dict(), str(tmp_path / "theirs.safetensors"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "theirs.safetensors"))
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(load()(x), made(x)) and not load().training
    words = [
        "evaluate",
        "--model",
        "examples.wong_kolter:load",
        "--data",
        "fashion-mnist-sample",
        "--n",
        "4",
        "--device",
        "cpu",
    ]
    assert main([*words, "--attacks", "none", "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert "examples.wong_kolter:load" in capsys.readouterr().out


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(CheckpointError, match=f"set {VARIABLE} to"):
        load()
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "absent")
    save_file({"0.weight": torch.zeros(16, 1, 4, 4)}, str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match="expected the tensors"):
        load(tmp_path / "other")
