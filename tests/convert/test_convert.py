"""Options of ``convert_checkpoint``."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from rdc.convert import convert_checkpoint
from rdc.errors import CheckpointError, ConfigError
from tests.networks.cases import edm_network


def test_options(tmp_path):
    state = edm_network("ddpmpp", torch.float32).state_dict()
    torch.save(state, tmp_path / "net.pt")
    save_file(state, tmp_path / "net.safetensors")
    for options, match in (
        ({"kind": "odd"}, "kind"),
        ({"null_label": 3}, "diffusers folders only"),
        ({"kind": "edm-pickle", "network": "small-28"}, "describes itself"),
    ):
        with pytest.raises(ConfigError, match=match):
            convert_checkpoint(tmp_path / "net.pt", tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="another name"):
        convert_checkpoint(tmp_path / "net.safetensors", tmp_path / "net")
    with pytest.raises(CheckpointError, match="no such file"):
        convert_checkpoint(tmp_path / "nothing.pt", tmp_path / "out")
    with pytest.raises(CheckpointError, match="expected a folder"):
        convert_checkpoint(tmp_path / "net.pt", tmp_path / "out", kind="diffusers")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="name its kind"):
        convert_checkpoint(tmp_path / "text", tmp_path / "out")
