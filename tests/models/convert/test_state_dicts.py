"""Plain state dicts: prefixes, wrappers, inferred architectures."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rdc.errors import CheckpointError, ConfigError
from rdc.models.checkpoints import load_model, save_model
from rdc.models.convert import convert_checkpoint
from rdc.networks.presets import build_network, network_preset
from tests.bounds import bounded
from tests.models.convert.edm_files import Call, outputs
from tests.networks.cases import EDM_CASES, edm_network
from tests.networks.formula import fill


@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.", "unet.", "module.model.", "_orig_mod.model.", "inner_model."]
)
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
    from rdc.models.convert.state_dicts import infer_config

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


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"])
def test_wrappers_inside_names(tmp_path, wrapper):
    """FSDP, torch.compile and activation checkpointing wrap blocks, not only the whole."""
    state = edm_network("ddpmpp", torch.float32).state_dict()
    wrapped = {
        f"{wrapper}.module.{name.replace('.8x8_block0.', f'.8x8_block0.{wrapper}.')}": value
        for name, value in state.items()
    }
    assert sum(name.count(wrapper) for name in wrapped) > len(wrapped)
    save_file(wrapped, tmp_path / "net.safetensors")
    convert_checkpoint(tmp_path / "net.safetensors", tmp_path / "out")
    assert torch.equal(outputs(load_model(tmp_path / "out")[0]), outputs(edm_network("ddpmpp", torch.float32)))
    first = next(iter(state))
    save_file({**wrapped, f"module.{first}": state[first].clone()}, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="two tensors have one name"):
        convert_checkpoint(tmp_path / "net.safetensors", tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path, dtype):
    net = edm_network("ddpmpp", torch.float32).to(dtype)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    convert_checkpoint(tmp_path / "net.pt", tmp_path / "out")
    assert torch.equal(outputs(load_model(tmp_path / "out")[0]), outputs(net.float()))


def test_training_checkpoints(tmp_path):
    """k-diffusion's, deepspeed's, Lightning's: weights beside everything else."""
    net = edm_network("ddpmpp", torch.float32)
    state, expected = net.state_dict(), outputs(net)
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    inner = {f"inner_model.{name}": value for name, value in state.items()}
    args = argparse.Namespace(out=Path("runs"), lr=1e-4)
    optimizer = torch.optim.Adam(net.parameters()).state_dict()
    for content, note in (
        (
            {"model": other, "model_ema": inner, "opt": optimizer, "epoch": 3},
            "read the entry model_ema; left out: model, opt, epoch",
        ),
        ({"module": state, "optimizer": optimizer, "ds_config": {}, "args": args}, "read the entry module"),
        ({"state_dict": inner, "hyper_parameters": args, "callbacks": {("a", 1): args}}, "read the entry state_dict"),
        ({"args": args, "checkpoint": 1, "state_dict": {"model": state, "step": 4}}, "read the entry state_dict"),
    ):
        torch.save(content, tmp_path / "net.pt")
        summary = convert_checkpoint(tmp_path / "net.pt", tmp_path / "out")
        assert any(found.startswith(note) for found in summary["notes"]), summary["notes"]
        assert torch.equal(outputs(load_model(tmp_path / "out")[0]), expected)


def test_what_was_seen_is_said(tmp_path):
    path, state = tmp_path / "net.pt", edm_network("ddpmpp", torch.float32).state_dict()

    def refused(content, match):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=match) as caught:
            convert_checkpoint(path, tmp_path / "out")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500

    refused(nn.Linear(2, 2), r"found torch.nn.modules.linear.Linear. Of a whole network save the state dict alone")
    refused({**state, "x": torch.eye(3).to_sparse()}, "with 149 tensors and 1 other entries .x: a sparse tensor")
    refused({"net": nn.Linear(2, 2)}, "net: torch.nn.modules.linear.Linear")
    refused({}, "it is empty")
    refused({**state, "map_layer0.weight": torch.zeros(3)}, "cannot be inferred")
    refused({**state, "map_layer0.bias": torch.zeros(32, dtype=torch.int32)}, "not floating point: map_layer0.bias")
    refused({**state, "map_layer0.bias": torch.zeros(32, dtype=torch.complex64)}, "not floating point: map_layer0.bias")
    refused({**state, "map_layer0.bias": torch.full((32,), 1e300, dtype=torch.float64)}, "NaN or infinity")
    refused({**state, "a\nb\x1b[31m": torch.zeros(1)}, r"unexpected a\\nb\\x1b")
    refused(
        {"model": {"model": {"model": {"model": {"model": {"model": {"model": {"model": {"model": state}}}}}}}}},
        "found a dict",
    )


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_long_names(tmp_path, form):
    state = {"model." * 30_000 + "map_layer0.weight": torch.zeros(1)}
    if form == "pt":
        torch.save(state, tmp_path / "net.pt")
    else:
        save_file(state, tmp_path / "net.safetensors")
    with bounded(), pytest.raises(CheckpointError, match="name"):
        convert_checkpoint(tmp_path / f"net.{form}", tmp_path / "out")


def test_many_prefixes(tmp_path):
    words = ("model", "module", "unet", "net", "network", "ema", "ema_model", "denoiser")
    names = {".".join(words[(at >> 3 * place) & 7] for place in range(5)) + ".w" for at in range(8**5)}
    save_file({name: torch.zeros(1) for name in sorted(names)[:4000]}, tmp_path / "net.safetensors")
    with bounded(5), pytest.raises(CheckpointError, match="expected one U-Net"):
        convert_checkpoint(tmp_path / "net.safetensors", tmp_path / "out")


def header(**tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        (2**63).to_bytes(8, "little") + b"{}",
        (10**9).to_bytes(8, "little") + b"{}",
        header() + bytes(4),
        header(a=F32),
        header(a=F32) + bytes(3),
        header(a=F32) + bytes(5),
        header(a=F32, b=F32) + bytes(4),
        header(a={**F32, "shape": [2**62, 2**62]}) + bytes(4),
        header(a={**F32, "shape": [0, 2**62], "data_offsets": [0, 0]}),
        header(a={**F32, "shape": [-1]}) + bytes(4),
        header(a={**F32, "shape": [1] * 20_000}) + bytes(4),
        header(a={**F32, "shape": "x"}) + bytes(4),
        header(a={**F32, "dtype": "F3"}) + bytes(4),
        header(a=[]) + bytes(4),
        header(a={**F32, "data_offsets": [4, 0]}) + bytes(4),
        header(a={**F32, "data_offsets": [0, 10**12]}) + bytes(4),
        header(**{"x" * 100_000: F32}) + bytes(4),
        (18).to_bytes(8, "little") + b'{"a":{},"a":{}}   ',
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        (9).to_bytes(8, "little") + b"[1, 2, 3]",
    ],
)
def test_safetensors_that_lie(tmp_path, content):
    (tmp_path / "net.safetensors").write_bytes(content)
    with bounded(), pytest.raises(CheckpointError, match=r"net\.safetensors: ") as caught:
        convert_checkpoint(tmp_path / "net.safetensors", tmp_path / "out")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_duplicates_in_a_header(tmp_path):
    """Two tensors of one name: every reader takes another one."""
    entry = json.dumps(F32)
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    (tmp_path / "net.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match="two entries of one name"):
        convert_checkpoint(tmp_path / "net.safetensors", tmp_path / "out")


@pytest.mark.parametrize("name", ["net.pt", "net.pkl", "net.safetensors", "net.bin"])
def test_files_that_are_none(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(CheckpointError, match="no such file"):
        convert_checkpoint(path, tmp_path / "out")
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=name):
        convert_checkpoint(path, tmp_path / "out")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        convert_checkpoint(path, tmp_path / "out")
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="diffusers folder"):
        convert_checkpoint(path, tmp_path / "out")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="device or pipe"):
        convert_checkpoint(tmp_path / "pipe", tmp_path / "out")


def test_names_that_are_not_utf8(tmp_path):
    state = edm_network("ddpmpp", torch.float32).state_dict()
    odd = tmp_path / os.fsdecode(b"n\xff\nt.pt")
    torch.save(state, tmp_path / "net.pt")
    (tmp_path / "net.pt").rename(odd)
    convert_checkpoint(odd, tmp_path / "out")
    assert load_model(tmp_path / "out")[2]["converted_from"]["file"] == odd.name
    odd.write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"n\\udcff\\nt.pt") as caught:
        convert_checkpoint(odd, tmp_path / "out")
    str(caught.value).encode("ascii")


@pytest.mark.parametrize("network", ["[1]", "{", "{}", '{"config": 5}', '{"kind": "conditional"}', "[" * 10_000])
def test_odd_descriptions(tmp_path, network):
    torch.save(edm_network("ddpmpp", torch.float32).state_dict(), tmp_path / "net.pt")
    (tmp_path / "net.json").write_text(network)
    with bounded(), pytest.raises((ConfigError, CheckpointError)) as caught:
        convert_checkpoint(tmp_path / "net.pt", tmp_path / "out", network=tmp_path / "net.json")
    assert "\n" not in str(caught.value)
