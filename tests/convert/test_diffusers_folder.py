"""Folders of the diffusers library."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rdc.checkpoints import load_model
from rdc.convert import convert_checkpoint
from rdc.errors import CheckpointError, InputError
from rdc.networks.presets import build_network
from tests.networks.cases import DIFFUSERS_UNET
from tests.networks.formula import fill, noise_like

UNET = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 3, "out_channels": 3, **DIFFUSERS_UNET}
VP = {"kind": "conditional", "image_shape": [3, 8, 8], "num_classes": 4}


def vp_network(**vp) -> nn.Module:
    unet = {"architecture": "UNet2DModel", "out_channels": 3, **DIFFUSERS_UNET}
    null = isinstance(vp.get("null_label"), int)
    with torch.random.fork_rng():
        return fill(build_network({**VP, "num_classes": 4 - null, "unet": unet, "vp": vp})).eval()


def diffusers_folder(path, unet=UNET, scheduler=None, bin_file=False, rename=None):
    (path / "unet").mkdir(parents=True, exist_ok=True)
    (path / "model_index.json").write_text(
        json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]})
    )
    (path / "unet" / "config.json").write_text(json.dumps(unet))
    if scheduler is not None:
        (path / "scheduler").mkdir(exist_ok=True)
        (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    state = {name: value.contiguous() for name, value in vp_network().unet.state_dict().items()}
    state = {rename(name) if rename else name: value for name, value in state.items()}
    if bin_file:
        torch.save(state, path / "unet" / "diffusion_pytorch_model.bin")
    else:
        save_file(state, path / "unet" / "diffusion_pytorch_model.safetensors")
    return path


DDPM = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 500,
    "clip_sample": True,
}


def compare(found: nn.Module, expected: nn.Module, classes: int = 4) -> None:
    x, at = noise_like("x", (4, 3, 8, 8)).float(), torch.tensor([-1.0, 0.1, 0.3, 0.9])
    onehot = torch.eye(classes)[[0, 1, 2, classes - 1]]
    with torch.no_grad():
        assert torch.equal(found(x, at, onehot), expected(x, at, onehot))


@pytest.mark.parametrize("bin_file", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_diffusers(tmp_path, bin_file, prediction):
    folder = diffusers_folder(tmp_path / "hub", scheduler={**DDPM, "prediction_type": prediction}, bin_file=bin_file)
    summary = convert_checkpoint(folder, tmp_path / "out")
    loaded, config, _ = load_model(tmp_path / "out")
    schedule = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500}
    assert summary["kind"] == "diffusers" and config["num_classes"] == 4 and config["image_shape"] == [3, 8, 8]
    assert config["vp"] == {"prediction": prediction, "null_label": "mean", "schedule": schedule}
    assert any("null label" in note for note in summary["notes"])
    compare(loaded, vp_network(prediction=prediction, schedule=schedule))


def test_diffusers_variants(tmp_path):
    """No scheduler; the UNet's own folder; old names of attention weights; null labels."""
    folder = diffusers_folder(tmp_path / "hub")
    summary = convert_checkpoint(folder / "unet", tmp_path / "out")
    assert any("linear schedule" in note for note in summary["notes"])
    compare(load_model(tmp_path / "out")[0], vp_network())

    def old(name: str) -> str:
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{before}.")
        return name

    convert_checkpoint(diffusers_folder(tmp_path / "old", rename=old), tmp_path / "out")
    compare(load_model(tmp_path / "out")[0], vp_network())
    summary = convert_checkpoint(folder, tmp_path / "out", null_label=3)
    assert summary["config"]["num_classes"] == 3 and not any("null label" in note for note in summary["notes"])
    compare(load_model(tmp_path / "out")[0], vp_network(null_label=3), classes=3)
    convert_checkpoint(folder, tmp_path / "out", null_label="none")
    with pytest.raises(InputError, match="no null label"):
        load_model(tmp_path / "out")[0](torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, 4))
    convert_checkpoint(folder, tmp_path / "out", null_label="mean", dtype=torch.float16)
    assert torch.equal(load_model(tmp_path / "out")[0].log_sigmas, vp_network().log_sigmas)
    with pytest.raises(CheckpointError, match="null_label"):
        convert_checkpoint(folder, tmp_path / "out", null_label=9)


def test_converted_diffusers_model_classifies(tmp_path):
    """End to end: a converted VP model under the diffusion classifier."""
    import rdc.presets

    convert_checkpoint(diffusers_folder(tmp_path / "hub"), tmp_path / "out", info={"class_names": ["a", "b", "c", "d"]})
    classifier = rdc.presets.load(tmp_path / "out", levels="log:3:0.5:3:flat")
    pixels = noise_like("pixels", (2, 3, 8, 8)).float().sigmoid().requires_grad_()
    logits = classifier(pixels)
    assert logits.shape == (2, 4) and torch.allclose(logits.exp().sum(1), torch.ones(2))
    assert torch.autograd.grad(logits[:, 0].sum(), pixels)[0].abs().max() > 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_class_embeds": None}, "num_class_embeds is not set"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"_class_name": "UNet2DConditionModel"}, "expected a UNet2DModel"),
        ({"sample_size": None}, "sample_size"),
        ({"sample_size": [8, 16]}, "sample_size"),
        ({"out_channels": 5}, "out_channels"),
        ({"down_block_types": ["ResnetDownsampleBlock2D"] * 2}, "down_block_types"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"block_out_channels": [8, 24]}, "wrong shapes"),
        ({"num_class_embeds": 9}, "wrong shapes"),
    ],
)
def test_bad_diffusers_config(tmp_path, change, match):
    folder = diffusers_folder(tmp_path / "hub", {**UNET, **change})
    with pytest.raises(CheckpointError, match=match):
        convert_checkpoint(folder, tmp_path / "out")


def test_class_embedding_missing_entirely(tmp_path):
    folder = diffusers_folder(
        tmp_path / "hub", {key: value for key, value in UNET.items() if key != "num_class_embeds"}
    )
    with pytest.raises(CheckpointError, match="labels would be ignored"):
        convert_checkpoint(folder, tmp_path / "out")


def test_bad_diffusers_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="config.json: missing"):
        convert_checkpoint(tmp_path / "empty", tmp_path / "out")
    for scheduler, match in (
        ({"_class_name": "KarrasVeScheduler"}, "variance-preserving"),
        ({**DDPM, "prediction_type": "flow"}, "prediction_type"),
        ({**DDPM, "beta_schedule": "odd"}, "beta_schedule"),
    ):
        with pytest.raises(CheckpointError, match=match):
            convert_checkpoint(diffusers_folder(tmp_path / "hub", scheduler=scheduler), tmp_path / "out")
    folder = diffusers_folder(tmp_path / "hub", scheduler=DDPM)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="truncated"):
        convert_checkpoint(folder, tmp_path / "out")
    weights.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        convert_checkpoint(folder, tmp_path / "out")
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        convert_checkpoint(folder, tmp_path / "out")
