"""Plain state dicts: prefixes, wrappers, inferred architectures."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from rdc.checkpoints import load_model, save_model
from rdc.convert import convert_checkpoint
from rdc.errors import CheckpointError, ConfigError
from rdc.networks.presets import build_network, network_preset
from tests.convert.edm_files import Call, outputs
from tests.networks.cases import EDM_CASES, edm_network
from tests.networks.formula import fill


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "unet.", "module.model.", "_orig_mod.model."])
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict(tmp_path, prefix, legacy):
    state = {prefix + name: value for name, value in edm_network("ddpmpp", torch.float32).state_dict().items()}
    torch.save(state, tmp_path / "net.pt", _use_new_zipfile_serialization=not legacy)
    summary = convert_checkpoint(tmp_path / "net.pt", tmp_path / "out")
    assert summary["kind"] == "state-dict" and any("inferred" in note for note in summary["notes"])
    assert torch.equal(outputs(load_model(tmp_path / "out")[0]), outputs(edm_network("ddpmpp", torch.float32)))


@pytest.mark.parametrize("name", ["ddpmpp", "ddpmpp-uncond", "ncsnpp", "skip", "adm"])
def test_architecture_is_inferred(tmp_path, name):
    case = EDM_CASES[name]
    save_file(edm_network(name, torch.float32).state_dict(), tmp_path / "net.safetensors")
    summary = convert_checkpoint(tmp_path / "net.safetensors", tmp_path / "out")
    assert summary["kind"] == "safetensors"
    found = {**summary["config"], "unet": {**summary["config"]["unet"], "dropout": 0.1}}
    for key, value in {**case["unet"], **{k: v for k, v in case.items() if k != "unet"}}.items():
        assert {**found, **found["unet"]}[key] == value, key
    expected = outputs(edm_network(name, torch.float32), case["num_classes"])
    assert torch.equal(outputs(load_model(tmp_path / "out")[0], case["num_classes"]), expected)


@pytest.mark.parametrize("preset", ["edm-ddpmpp-32", "edm-ncsnpp-32", "edm-adm-32"])
def test_presets_are_inferred(preset):
    """The full-size EDM architectures from their shapes alone (55.7 M weights, so without memory behind them)."""
    from rdc.convert.state_dicts import infer_config

    with torch.device("meta"):
        net = build_network(network_preset(preset, 10))
    state = {
        k: torch.empty(v.shape) if "resample_filter" not in k else filter_of(preset)
        for k, v in net.state_dict().items()
    }
    config = infer_config(state, "net.pt")
    assert config["image_shape"] == [3, 32, 32] and config["num_classes"] == 10
    with torch.device("meta"):
        again = build_network(config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    for key, value in network_preset(preset, 10)["unet"].items():
        assert key == "dropout" or config["unet"][key] == value, key
    weights = sum(parameter.numel() for parameter in net.parameters())
    assert preset != "edm-ddpmpp-32" or round(weights / 1e6, 1) == 55.7


def filter_of(preset: str) -> torch.Tensor:
    taps = torch.tensor([1.0, 3, 3, 1] if "ncsnpp" in preset else [1.0, 1])
    return (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]


def test_wrapped_state_dict(tmp_path):
    state = edm_network("ddpmpp", torch.float32).state_dict()
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"model": other, "ema": state, "step": 5}, tmp_path / "net.pt")
    summary = convert_checkpoint(tmp_path / "net.pt", tmp_path / "out")
    assert "read the entry ema; left out: model, step" in summary["notes"]
    assert torch.equal(outputs(load_model(tmp_path / "out")[0]), outputs(edm_network("ddpmpp", torch.float32)))


def test_named_network(tmp_path):
    """Networks that cannot be inferred: a preset, a JSON file, a description."""
    config = network_preset("small-28", 10)
    with torch.random.fork_rng():
        net = fill(build_network(config))
    torch.save({f"module.{name}": value for name, value in net.state_dict().items()}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="network=PRESET"):
        convert_checkpoint(tmp_path / "net.pt", tmp_path / "out")
    (tmp_path / "net.json").write_text(json.dumps(config))
    for network in ("small-28", tmp_path / "net.json", config):
        convert_checkpoint(tmp_path / "net.pt", tmp_path / "out", network=network)
        loaded, found, _ = load_model(tmp_path / "out")
        assert found == config and all(map(torch.equal, loaded.state_dict().values(), net.state_dict().values()))
    save_model(tmp_path / "own", net, config)  # and the description of a checkpoint of rdc
    convert_checkpoint(tmp_path / "own.safetensors", tmp_path / "out", network=tmp_path / "own.json")
    with pytest.raises(CheckpointError, match="wrong shapes"):
        convert_checkpoint(tmp_path / "net.pt", tmp_path / "out", network="small-28", num_classes=7)
    with pytest.raises(CheckpointError, match="missing"):
        convert_checkpoint(tmp_path / "net.pt", tmp_path / "out", network="edm-ddpmpp-32")
    with pytest.raises(ConfigError, match="preset"):
        convert_checkpoint(tmp_path / "net.pt", tmp_path / "out", network="nothing")


def test_bad_state_dicts(tmp_path):
    path, state = tmp_path / "net.pt", edm_network("ddpmpp", torch.float32).state_dict()

    def refused(content, match, **options):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=match):
            convert_checkpoint(path, tmp_path / "out", **options)

    refused([1], "found a list")
    refused({"a": 1}, "expected a state dict")
    refused({"a": torch.zeros(1)}, "expected one U-Net")
    refused({"unet.a": torch.zeros(1)}, "missing", network=EDM_CASES["ddpmpp"])
    refused(
        {f"{part}.{name}": value for part in ("model", "ema_model") for name, value in state.items()},
        "expected one U-Net",
    )
    refused({name: value for name, value in state.items() if "8x8_block0" not in name}, "cannot be inferred|not those")
    refused({**state, "surprise": torch.zeros(1)}, "unexpected surprise")
    heads = {**state, "dec.8x8_aux_conv.weight": torch.zeros(12, 8, 3, 3), "dec.8x8_aux_conv.bias": torch.zeros(12)}
    refused(heads, "3 to 12 channels.*multi-head")
    refused({"model": Call(os.system, f"touch {tmp_path / 'ran'}")}, "posix.system")
    assert not (tmp_path / "ran").exists()
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="net.pt"):
        convert_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out.json").exists()
