"""Options of ``convert_checkpoint``."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from rdc.errors import CheckpointError, ConfigError
from rdc.models.convert import convert_checkpoint
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


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c", "d", "e"], ["a", "a", "b", "c"], "abcd"])
def test_there_is_a_name_for_each_class(names, tmp_path):
    network = edm_network("ddpmpp", torch.float32)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(ConfigError, match="class_names: expected 4 different names") as caught:
        convert_checkpoint(tmp_path / "net.safetensors", tmp_path / "out", info={"class_names": names})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_a_number_of_classes_is_never_passed_over(tmp_path):
    save_file(edm_network("ddpmpp", torch.float32).state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(ConfigError, match="num_classes: expected with network only"):
        convert_checkpoint(tmp_path / "net.safetensors", tmp_path / "out", num_classes=7)


def test_a_network_without_classes_has_no_names(tmp_path):
    save_file(edm_network("ddpmpp-uncond", torch.float32).state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(ConfigError, match="class_names: expected none"):
        convert_checkpoint(tmp_path / "net.safetensors", tmp_path / "out", info={"class_names": ["a"]})
