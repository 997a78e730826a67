"""Checkpoints: what is saved comes back, and everything else is refused in words that help."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import torch

import rdc
import rdc.models.descriptions
import rdc.storage.files
from rdc.errors import CheckpointError
from rdc.models.checkpoints import checkpoint_paths, is_safetensors, load_model, save_model
from rdc.networks.presets import build_network
from rdc.storage.sealed import digest_of
from tests.bounds import bounded
from tests.tiny_models import CONFIG, randomize

INFO = {"class_names": ["a", "b", "c"], "classifier": {"levels": "log:5:0.3:3:flat"}}


def tiny(seed: int = 0, **changes):
    config = {**CONFIG, **changes}
    with torch.random.fork_rng():
        return randomize(build_network(config), seed), config


@pytest.fixture
def saved(tmp_path):
    network, config = tiny()
    save_model(tmp_path / "net", network, config, INFO)
    return tmp_path / "net"


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_round_trip(tmp_path, kind):
    network, config = tiny(kind=kind)
    before = torch.get_rng_state()
    written = save_model(tmp_path / "folder" / "net.v1", network.train(), config, INFO)
    loaded, found_config, info = load_model(tmp_path / "folder" / "net.v1")
    assert torch.equal(before, torch.get_rng_state()), "the global generator was touched"
    assert written == tmp_path / "folder" / "net.v1.safetensors"
    assert equal(network, loaded) and found_config == config and info == INFO
    assert not loaded.training and all(p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = [] if kind == "multihead" else [torch.eye(3)[:2]]
    assert torch.equal(network.eval()(x, torch.zeros(2), *labels), loaded(x, torch.zeros(2), *labels))


def test_float16(tmp_path):
    network, config = tiny(unet={**CONFIG["unet"], "embedding_type": "fourier"})
    save_model(tmp_path / "half", network, config, dtype=torch.float16)
    loaded, _, info = load_model(tmp_path / "half")
    assert info == {}
    for name, value in network.state_dict().items():
        buffer = name.endswith("freqs")
        assert torch.equal(loaded.state_dict()[name], value if buffer else value.half().float()), name
    save_model(tmp_path / "full", network, config)
    half, full = (tmp_path / f"{name}.safetensors" for name in ("half", "full"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    with pytest.raises(CheckpointError, match="float64"):
        save_model(tmp_path / "other", network, config, dtype=torch.float64)


def test_ways_to_name_a_checkpoint(tmp_path):
    network, config = tiny()
    save_model(tmp_path / "a" / "model", network, config)
    for path in ("a", "a/model", "a/model.safetensors", "a/model.json"):
        assert equal(load_model(tmp_path / path)[0], network)
        assert equal(load_model(str(tmp_path / path))[0], network)
    assert checkpoint_paths("x/net.v1.5")[1].name == "net.v1.5.json"
    (tmp_path / "b").mkdir()  # a folder and a checkpoint of the same name: the checkpoint
    save_model(tmp_path / "b.safetensors", network, config)
    assert equal(load_model(tmp_path / "b")[0], network)


def test_missing(tmp_path, saved):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(tmp_path)
    json_path = tmp_path / "net.json"
    text = json_path.read_text()
    json_path.unlink()
    with pytest.raises(CheckpointError, match="rdc convert"):
        load_model(saved)
    json_path.write_text(text)
    (tmp_path / "net.safetensors").unlink()
    with pytest.raises(CheckpointError, match="net.safetensors: missing"):
        load_model(saved)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated(saved, keep):
    path = saved.with_suffix(".safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(saved)


def test_flipped_bit(saved):
    path = saved.with_suffix(".safetensors")
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        load_model(saved)


def test_files_of_two_saves(tmp_path, saved):
    network, config = tiny(seed=1)
    save_model(tmp_path / "other", network, config)
    os.replace(tmp_path / "other.safetensors", tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="different saves"):
        load_model(saved)


@pytest.mark.parametrize(
    "text", ["", "{", '{"format": "rdc-checkpoint"', "\xff", "[" * 100_000, "[]", '{"format": "x"}', "null"]
)
def test_corrupt_json(saved, text):
    saved.with_suffix(".json").write_bytes(text.encode("latin1"))
    with pytest.raises(CheckpointError, match="net.json"):
        load_model(saved)


def edit(saved, sealed=True, **changes):
    """Other entries (None: without), with a digest that fits, or without one."""
    path = saved.with_suffix(".json")
    described = {**json.loads(path.read_text()), **changes, "digest": None}
    described = {key: value for key, value in described.items() if value is not None}
    path.write_text(json.dumps({**described, "digest": digest_of(described)} if sealed else described))


def test_version(saved):
    edit(saved, version=2)
    with pytest.raises(CheckpointError, match="version 2; this rdc reads version 1"):
        load_model(saved)


def test_a_flipped_bit_anywhere_in_the_description(saved):
    """Found, or it changes nothing (white space, the E of an exponent)."""
    path = saved.with_suffix(".json")
    content, before = path.read_bytes(), load_model(saved)
    missed = 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            rdc.models.descriptions.read_description(path)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            missed, found = missed + 1, load_model(saved)
            assert json.loads(damaged) == json.loads(content) and found[1:] == before[1:] and equal(found[0], before[0])
    assert missed < len(content) / 20


def test_changed_by_hand(saved):
    path = saved.with_suffix(".json")
    described = json.loads(path.read_text())
    described["info"]["class_names"][0] = "other"
    path.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match='delete the line "digest" if the change was meant'):
        load_model(saved)
    del described["digest"]
    path.write_text(json.dumps(described))
    assert load_model(saved)[2]["class_names"][0] == "other"
    rdc.models.descriptions.reseal(path)
    assert json.loads(path.read_text()) == {**described, "digest": digest_of(described)}
    rdc.models.descriptions.update_info(path, {"note": "x"})
    assert load_model(saved)[2] == {**described["info"], "note": "x"}


def test_the_shipped_descriptions_are_sealed():
    for path in (Path(rdc.__file__).parent / "assets").glob("*.json"):
        described = json.loads(path.read_text())
        assert described.pop("digest") == digest_of(described), path.name


def test_files_without_a_digest(saved):
    """Those of rdc 0.1: read, but with no entry that could be a digest which lost its name."""
    edit(saved, sealed=False)
    assert load_model(saved)[2] == INFO
    edit(saved, sealed=False, digesu="0" * 32)
    with pytest.raises(CheckpointError, match="unknown entry digesu"):
        load_model(saved)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"info": "text"},
        {"info": [1]},
        {"tensors": "x"},
        {"tensors": True},
        {"tensors": -1},
        {"parameters": 1.5},
        {"dtype": "float8"},
        {"dtype": ["float32"]},
        {"sha256": "z" * 64},
        {"version": True},
        {"version": "1"},
        {"version": [1]},
    ],
)
def test_odd_types(saved, changes, sealed):
    edit(saved, sealed, **changes)
    with pytest.raises(CheckpointError, match=r"net\.json: ") as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


def test_what_a_description_may_leave_out(saved):
    edit(saved, dtype=None, tensors=None, parameters=None, info=None)
    assert load_model(saved)[2] == {}


@pytest.mark.parametrize("changes", [{"config": None}, {"config": []}, {"sha256": None}, {"sha256": 3}])
def test_incomplete_json(saved, changes):
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match="incomplete"):
        load_model(saved)


def test_tensor_count(saved):
    edit(saved, tensors=3)
    with pytest.raises(CheckpointError, match="expected 3 tensors"):
        load_model(saved)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**CONFIG, "kind": "other"},
        {**CONFIG, "unet": {"architecture": "SongUNet", "surprise": 1}},
        {**CONFIG, "image_shape": "none"},
        {**CONFIG, "num_classes": "many"},
        {**CONFIG, "unet": {"architecture": ["SongUNet"]}},
        {**CONFIG, "unet": []},
        {**CONFIG, "unet": {**CONFIG["unet"], "num_blocks": 10**9}},
        {**CONFIG, "unet": {**CONFIG["unet"], "channel_mult": [1] * 20_000}},
        {**CONFIG, "unet": {**CONFIG["unet"], "channel_mult": "12"}},
        {**CONFIG, "unet": {**CONFIG["unet"], "num_blocks": 64, "channel_mult": [1] * 4}},
        {**CONFIG, "unet": {**CONFIG["unet"], "num_blocks": 40, "channel_mult": [1] * 2}},
        {**CONFIG, "unet": {**CONFIG["unet"], "attn_resolutions": list(range(20_000))}},
        {**CONFIG, "unet": {**CONFIG["unet"], "resample_filter": [0.0, 0.0]}},
        {**CONFIG, "unet": {**CONFIG["unet"], "resample_filter": [1e300] * 9000}},
        {**CONFIG, "unet": {**CONFIG["unet"], "dropout": -1}},
        {**CONFIG, "unet": {**CONFIG["unet"], "embedding_type": {}}},
        {**CONFIG, "num_classes": 2**40},
        {**CONFIG, "num_classes": -1},
        {**CONFIG, "num_classes": 3.0},
        {**CONFIG, "kind": ["conditional"]},
        {**CONFIG, "kind": "multihead", "num_classes": 100_000, "wide_channels": 65_536},
        {**CONFIG, "kind": "multihead", "num_classes": 100_000, "wide_channels": 100},
        {**CONFIG, "image_shape": [2, 2**40, 2**40]},
        {**CONFIG, "image_shape": [2.0, 8.0, 8.0]},
        {**CONFIG, "image_shape": [10**6, 8, 8]},
        {**CONFIG, "patch_size": 0},
        {**CONFIG, "patch_size": None},
        {**CONFIG, "sigma_data": 0},
        {**CONFIG, "sigma_data": -0.5},
        {**CONFIG, "sigma_data": 1e30},
        {**CONFIG, "sigma_data": "0.5"},
        {**CONFIG, "sigma_data": None},
        {"kind": "resnet", "image_shape": [1, 8, 8], "num_classes": 3, "width": 8, "blocks": [10**9]},
        {"kind": "resnet", "image_shape": [1, 8, 8], "num_classes": 3, "width": 8, "blocks": [1] * 15},
    ],
)
def test_config_of_no_network(saved, config):
    edit(saved, config=config)
    with bounded(), pytest.raises(CheckpointError, match="net") as caught:
        load_model(saved)
    assert len(str(caught.value)) < 1500 and "\n" not in str(caught.value)


def test_absurd_config_takes_no_memory(saved):
    for channels, match in ((2_000_000, "model_channels.*from 1 to 65,536; got 2000000"), (8000, "wrong shapes")):
        edit(saved, config={**CONFIG, "unet": {**CONFIG["unet"], "model_channels": channels}})
        with bounded(), pytest.raises(CheckpointError, match=match):
            load_model(saved)


def test_weights_of_another_network(tmp_path):
    network, config = tiny()
    state = network.state_dict()
    first, *_, last = state
    changed = {**state, "surprise": torch.zeros(1), first: torch.zeros(2, 3)}
    changed.pop(last)

    def write(tensors):
        path = tmp_path / "net.safetensors"
        safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path)
        edit(tmp_path / "net", sha256=hashlib.sha256(path.read_bytes()).hexdigest(), tensors=len(tensors))

    save_model(tmp_path / "net", network, config)
    write(changed)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "net")
    for part in (f"missing {last}", "unexpected surprise", f"{first} is [2, 3], expected"):
        assert part in str(caught.value)
    write({first: state[first]})
    with pytest.raises(CheckpointError, match=r"missing .* and \d+ more"):
        load_model(tmp_path / "net")
    write({**state, last: torch.full_like(state[last], float("nan"))})
    with pytest.raises(CheckpointError, match="NaN"):
        load_model(tmp_path / "net")
    write({**state, last: torch.full_like(state[last], 3e30)})
    with pytest.raises(CheckpointError, match=r"weights beyond 1e\+08 in .*\(3e\+30\).*overflow"):
        load_model(tmp_path / "net")
    write({**state, last: state[last].to(torch.complex64)})
    with pytest.raises(CheckpointError, match="not floating point"):
        load_model(tmp_path / "net")
    write({**state, last: state[last].to(torch.int32)})
    with pytest.raises(CheckpointError, match="not floating point"):
        load_model(tmp_path / "net")
    write(state)
    assert equal(load_model(tmp_path / "net")[0], network)


@pytest.mark.parametrize("name", ["net.pt", "net.pkl", "net.bin", "net", "net.safetensors"])
@pytest.mark.parametrize("new", [True, False])
def test_pickle(tmp_path, name, new):
    path = tmp_path / name
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match="rdc convert"):
        load_model(path)


def test_safetensors_that_start_like_a_pickle_or_zip():
    """A safetensors file starts with the length of its header, whose first byte may be any multiple of eight."""
    for length in (0x80, 0x3_80, 0x04_03_4B_50):
        assert is_safetensors(length.to_bytes(8, "little") + b"{")
    assert not is_safetensors(pickle.dumps({"a": 1}))
    assert not is_safetensors(b"PK\x03\x04\x00\x00\x08\x08\x00\x00") and not is_safetensors(b"")


def test_header_of_a_length_like_a_pickle(tmp_path):
    """A whole checkpoint whose first byte is that of a pickle."""
    network, config = tiny()
    path = save_model(tmp_path / "net", network, config)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    length = (size // 256 + 1) * 256 + 0x80
    path.write_bytes(length.to_bytes(8, "little") + content[8 : 8 + size].ljust(length) + content[8 + size :])
    edit(tmp_path / "net", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert path.read_bytes()[0] == 0x80
    assert equal(load_model(tmp_path / "net")[0], network) and equal(load_model(path)[0], network)


def test_pickle_in_place_of_the_weights_is_not_run(tmp_path, saved):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    saved.with_suffix(".safetensors").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(CheckpointError, match="pickle"):
        load_model(saved)
    assert not (tmp_path / "run").exists()


def test_refused_to_save(tmp_path):
    network, config = tiny()
    with pytest.raises(CheckpointError, match="not written"):
        save_model(tmp_path / "net", network, {**config, "num_classes": 7})
    with pytest.raises(CheckpointError, match="JSON"):
        save_model(tmp_path / "net", network, config, {"x": object()})
    with pytest.raises(CheckpointError, match="JSON"):
        save_model(tmp_path / "net", network, config, {"x": float("nan")})
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = 1e6
        save_model(tmp_path / "large", network, config)
        with pytest.raises(CheckpointError, match="65504"):
            save_model(tmp_path / "net", network, config, dtype=torch.float16)
        next(network.parameters()).view(-1)[0] = 1e9
        with pytest.raises(CheckpointError, match=r"beyond 1e\+08"):
            save_model(tmp_path / "net", network, config)
        next(network.parameters()).view(-1)[0] = float("nan")
        with pytest.raises(CheckpointError, match="NaN"):
            save_model(tmp_path / "net", network, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.json", "large.safetensors"]


@pytest.mark.parametrize("fails", [1, 2])
def test_disk_full(tmp_path, saved, monkeypatch, fails):
    """The disk is full while the weights, or the description, are written: the old pair stays, whole."""
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls, fsync = [], os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) == fails:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(rdc.storage.files.os, "fsync", full)
    network, config = tiny(seed=1)
    with pytest.raises(CheckpointError, match="No space left.*unchanged"):
        save_model(saved, network, config)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert load_model(saved)[2] == INFO


def test_disk_full_for_real(tmp_path, saved):
    """A process whose files may not grow past 20 kB."""
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    program = f"""
        import resource
        from tests.models.test_checkpoints import tiny
        from rdc.models.checkpoints import save_model
        from rdc.errors import CheckpointError
        network, config = tiny(seed=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            save_model({str(saved)!r}, network, config)
        except CheckpointError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=_root())
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout and "unchanged" in done.stdout
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])


def test_not_writable(tmp_path):
    network, config = tiny()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_model(tmp_path / "file" / "net", network, config)
