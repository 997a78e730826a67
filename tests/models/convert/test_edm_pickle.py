"""Public EDM pickles, read without running them."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch import nn

from rdc.errors import CheckpointError
from rdc.models.checkpoints import load_model
from rdc.models.convert import convert_checkpoint
from tests.models.convert.edm_files import edm_object, outputs, write_pickle
from tests.networks.cases import EDM_CASES, edm_network


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("ddpmpp", 2), ("ddpmpp", 3), ("ddpmpp", 4), ("ddpmpp", 5), ("ncsnpp", 4), ("adm", 4), ("ddpmpp-uncond", 4)],
)
def test_edm_pickle(tmp_path, edm_modules, name, protocol):
    ran = tmp_path / "ran"
    source = f"open({str(ran)!r}, 'w').close()"
    path = write_pickle(tmp_path / "edm.pkl", edm_object(name, source), protocol)
    pickle.loads(pickle.dumps(edm_object(name, source)))
    assert ran.exists(), "an ordinary loader runs the source, or this test proves nothing"
    ran.unlink()

    summary = convert_checkpoint(path, tmp_path / "out")
    assert not ran.exists()
    loaded, config, info = load_model(tmp_path / "out")
    case = EDM_CASES[name]
    assert summary["kind"] == "edm-pickle" and info["converted_from"]["file"] == "edm.pkl"
    assert config == json.loads(json.dumps(config)) == case == summary["config"]
    assert any("augment_pipe" in note for note in summary["notes"])
    expected = outputs(edm_network(name, torch.float32), case["num_classes"])
    assert torch.equal(outputs(loaded, case["num_classes"]), expected)


def test_the_null_label_is_recorded(tmp_path, edm_modules):
    """Public EDM networks are made without label dropout; who trained with it says so in the arguments."""
    for changes, trained in (({}, False), ({"label_dropout": 0.1}, True), ({"label_dropout": 0.0}, False)):
        network = edm_object("ddpmpp")
        network._init_kwargs.update(changes)
        summary = convert_checkpoint(write_pickle(tmp_path / "edm.pkl", network), tmp_path / "out")
        recorded = load_model(tmp_path / "out")[2]["null_label"]
        assert (
            recorded == summary["null_label"] and recorded["trained"] is trained and "label dropout" in recorded["why"]
        )
        assert any("null label: never trained" in note for note in summary["notes"]) is (not trained)
    summary = convert_checkpoint(write_pickle(tmp_path / "u.pkl", edm_object("ddpmpp-uncond")), tmp_path / "u")
    assert summary["null_label"] == {"trained": True, "why": "the network takes no label"}
    assert not any("null label" in note for note in summary["notes"])


def test_edm_pickle_variants(tmp_path, edm_modules):
    """Positional constructor arguments, half precision weights, the network as the whole file, float16 storage."""
    network = edm_object("ddpmpp", positional=3)
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps(network.half()))
    convert_checkpoint(path, tmp_path / "out", dtype=torch.float16, info={"licence": "CC BY-NC-SA"})
    loaded, config, info = load_model(tmp_path / "out")
    assert config == EDM_CASES["ddpmpp"] and info["licence"] == "CC BY-NC-SA"
    expected = edm_network("ddpmpp", torch.float32).half().float()
    assert torch.equal(outputs(loaded), outputs(expected))


@pytest.mark.parametrize("kind", ["VPPrecond", "VEPrecond", "iDDPMPrecond"])
def test_other_preconditioning(tmp_path, edm_modules, kind):
    path = write_pickle(tmp_path / "edm.pkl", edm_object("ddpmpp", kind=kind))
    with pytest.raises(CheckpointError, match=f"found {kind}"):
        convert_checkpoint(path, tmp_path / "out")


def test_edm_pickle_of_another_shape(tmp_path, edm_modules):
    def converted(change, match):
        network = edm_object("ddpmpp")
        change(network)
        path = write_pickle(tmp_path / "edm.pkl", network)
        with pytest.raises(CheckpointError, match=match):
            convert_checkpoint(path, tmp_path / "out")
        assert not (tmp_path / "out.json").exists()

    converted(lambda n: n.__dict__.pop("_init_kwargs"), "does not say how it was made")
    converted(lambda n: n._init_kwargs.pop("img_resolution"), "img_resolution")
    converted(lambda n: n._init_kwargs.update(model_channels=16), "wrong shapes")
    converted(lambda n: n._init_kwargs.update(surprise=1), "surprise")
    converted(lambda n: n._init_kwargs.update(dropout=nn.ModuleDict()), "argument dropout")
    converted(lambda n: n.register_buffer("extra", torch.zeros(3)), "EDMPrecond.model only; found extra")
    converted(lambda n: n.model.enc["8x8_conv"].__dict__.pop("_buffers"), "no _buffers")
    converted(lambda n: n.model._modules.update(map_layer1=n.model.map_layer0), "not a module of its own")
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps({"G": 1}))
    with pytest.raises(CheckpointError, match="'ema'"):
        convert_checkpoint(path, tmp_path / "out")
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(CheckpointError, match="found a list"):
        convert_checkpoint(path, tmp_path / "out")
