"""Folders of the diffusers library."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rdc.errors import CheckpointError, ConfigError, InputError
from rdc.models.checkpoints import load_model
from rdc.models.convert import convert_checkpoint
from rdc.networks.presets import build_network
from tests.bounds import bounded
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
    import rdc.models.zoo

    convert_checkpoint(diffusers_folder(tmp_path / "hub"), tmp_path / "out", info={"class_names": ["a", "b", "c", "d"]})
    classifier = rdc.models.zoo.load(tmp_path / "out", levels="log:3:0.5:3:flat")
    pixels = noise_like("pixels", (2, 3, 8, 8)).float().sigmoid().requires_grad_()
    logits = classifier(pixels)
    assert logits.shape == (2, 4) and torch.allclose(logits.exp().sum(1), torch.ones(2))
    assert torch.autograd.grad(logits[:, 0].sum(), pixels)[0].abs().max() > 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"num_class_embeds": 0},
            "num_class_embeds: expected a whole number >= 1, or null for an unconditional model; got 0",
        ),
        ({"num_class_embeds": "4"}, "num_class_embeds: expected a whole number >= 1"),
        ({"num_class_embeds": None}, "unexpected unet.class_embedding.weight"),
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


@pytest.mark.parametrize("missing", [False, True])
def test_an_unconditional_model_moves_the_input_and_does_not_classify(tmp_path, missing):
    import rdc

    unet = {key: value for key, value in UNET.items() if key != "num_class_embeds"}
    folder = diffusers_folder(tmp_path / "hub", unet if missing else {**unet, "num_class_embeds": None}, scheduler=DDPM)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    embedding = state.pop("class_embedding.weight")
    save_file(state, weights)
    summary = convert_checkpoint(folder, tmp_path / "uncond")
    assert summary["config"]["num_classes"] == 0 and summary["null_label"]["trained"] is True
    assert any("unconditional: it cannot classify" in note for note in summary["notes"])
    found = load_model(tmp_path / "uncond")[0]
    schedule = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500}
    conditional = vp_network(null_label="mean", schedule=schedule)
    with torch.no_grad():
        conditional.unet.class_embedding.weight.zero_()  # then the label says nothing
    x, at = noise_like("x", (4, 3, 8, 8)).float(), torch.tensor([-1.0, 0.1, 0.3, 0.9])
    with torch.no_grad():
        assert torch.equal(found(x, at, None), conditional(x, at, None)) and len(embedding) == 4
        assert torch.equal(found(x, at, x.new_zeros(4, 0)), found(x, at, None))
    with pytest.raises(ConfigError, match="cannot classify"):
        rdc.load(tmp_path / "uncond")
    convert_checkpoint(diffusers_folder(tmp_path / "cond"), tmp_path / "classes", null_label="none")
    settings = {"levels": "log:3:0.5:3:flat", "lm": "paper-v2,steps=2"}
    model = rdc.load(tmp_path / "classes", lm_denoiser=tmp_path / "uncond", **settings)
    pixels = noise_like("pixels", (2, 3, 8, 8)).float().sigmoid()
    assert not torch.equal(model.purify(pixels), pixels) and model(pixels).isfinite().all()
    with pytest.raises(InputError, match="no null label"):
        rdc.load(tmp_path / "classes", **settings)(pixels)


def test_an_unconditional_model_has_no_null_label(tmp_path):
    folder = diffusers_folder(tmp_path / "hub", {**UNET, "num_class_embeds": None})
    for label in (2, "mean", "none"):
        with pytest.raises(ConfigError, match="null_label: expected none, the model in .* takes no class labels"):
            convert_checkpoint(folder, tmp_path / "out", null_label=label)


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


def variant(folder, name):
    """The folder's weights under another name."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(folder / "unet" / name)
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_half_variants(tmp_path, dtype, kind):
    folder = diffusers_folder(tmp_path / "hub", scheduler=DDPM)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: value.to(dtype) for name, value in load_file(path).items()}
    path.unlink()
    name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    save = save_file if kind == "safetensors" else torch.save
    save(state, folder / "unet" / f"diffusion_pytorch_model.{name}.{kind}")
    convert_checkpoint(folder, tmp_path / "out")
    found = load_model(tmp_path / "out")[0].unet.state_dict()
    assert all(torch.equal(found[key], value.float()) for key, value in state.items())


def test_the_best_of_several_variants_is_read(tmp_path):
    folder = diffusers_folder(tmp_path / "hub", scheduler=DDPM)
    unet = folder / "unet"
    (unet / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"never opened")
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"never opened")
    (unet / "diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b"a shard of an index that is not there")
    notes = convert_checkpoint(folder, tmp_path / "out")["notes"]
    left_out = "diffusion_pytorch_model.fp16.safetensors, diffusion_pytorch_model.bin"
    assert f"read diffusion_pytorch_model.safetensors; left out: {left_out}" in notes
    variant(folder, "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(CheckpointError, match="fp16.safetensors"):
        convert_checkpoint(folder, tmp_path / "out")
    (unet / "diffusion_pytorch_model.fp16.safetensors").unlink()
    (unet / "diffusion_pytorch_model.bin").unlink()
    notes = convert_checkpoint(folder, tmp_path / "out")["notes"]
    assert any("before averaging (non_ema)" in note for note in notes)
    variant_of_nobody = unet / "diffusion_pytorch_model.int8.safetensors"
    (unet / "diffusion_pytorch_model.non_ema.safetensors").rename(variant_of_nobody)
    with pytest.raises(CheckpointError, match=r"no weights; expected .*found config.json, .*int8.safetensors"):
        convert_checkpoint(folder, tmp_path / "out")


def test_averaged_weights_beside_the_others(tmp_path):
    folder = diffusers_folder(tmp_path / "hub", scheduler=DDPM)
    other = diffusers_folder(tmp_path / "other")
    state = {
        name: value + 1 for name, value in load_file(other / "unet" / "diffusion_pytorch_model.safetensors").items()
    }
    save_file(state, other / "unet" / "diffusion_pytorch_model.safetensors")
    (other / "unet").rename(folder / "unet_ema")
    summary = convert_checkpoint(folder, tmp_path / "out")
    assert "read unet_ema (averaged weights); left out: unet" in summary["notes"]
    found = load_model(tmp_path / "out")[0].unet.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def sharded(folder, index="diffusion_pytorch_model.safetensors.index.json", count=3, **changed):
    """The weights as shards with an index; ``changed``: other places of tensors."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    path.unlink()
    places = {
        name: f"diffusion_pytorch_model-{at % count + 1:05}-of-{count:05}.safetensors" for at, name in enumerate(state)
    }
    for file in set(places.values()):
        save_file({name: value for name, value in state.items() if places[name] == file}, folder / "unet" / file)
    (folder / "unet" / index).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": {**places, **changed}})
    )
    return folder


@pytest.mark.parametrize(
    "index",
    [
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
    ],
)
def test_shards(tmp_path, index):
    convert_checkpoint(sharded(diffusers_folder(tmp_path / "hub", scheduler=DDPM), index), tmp_path / "out")
    schedule = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500}
    compare(load_model(tmp_path / "out")[0], vp_network(schedule=schedule))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"conv_in.weight": "../secret.safetensors"}, r"names the shard \.\./secret"),
        ({"conv_in.weight": "/etc/passwd"}, "names the shard /etc/passwd"),
        ({"conv_in.weight": "..\\secret.safetensors"}, "names the shard"),
        ({"conv_in.weight": "config.json"}, "names the shard config.json"),
        ({"conv_in.weight": "missing.safetensors"}, "missing.safetensors: no such file|does not expect there"),
        ({"conv_in.weight": 5}, "expected weight_map"),
        ({"conv_in.weight": "diffusion_pytorch_model-00001-of-00003.safetensors"}, "does not expect there|lack"),
        ({"surprise": "diffusion_pytorch_model-00001-of-00003.safetensors"}, "the shards lack surprise"),
    ],
)
def test_shards_that_are_not_there(tmp_path, change, match):
    (tmp_path / "hub" / "secret.safetensors").parent.mkdir()
    (tmp_path / "hub" / "secret.safetensors").write_bytes(b"x")
    folder = sharded(diffusers_folder(tmp_path / "hub"), **change)
    with pytest.raises(CheckpointError, match=match) as caught:
        convert_checkpoint(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(CheckpointError, match="expected weight_map"):
        convert_checkpoint(folder, tmp_path / "out")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "unet."])
def test_wrapped_names(tmp_path, prefix):
    folder = diffusers_folder(tmp_path / "hub", rename=lambda name: prefix + name)
    convert_checkpoint(folder, tmp_path / "out")
    compare(load_model(tmp_path / "out")[0], vp_network())


@pytest.mark.parametrize(
    "change",
    [
        {"in_channels": "3"},
        {"sample_size": 2**40},
        {"num_class_embeds": 10**9},
        {"layers_per_block": 10**9},
        {"block_out_channels": [8] * 20_000},
        {"block_out_channels": "8"},
        {"down_block_types": {"a": 1}},
        {"norm_num_groups": 0},
        {"norm_eps": "small"},
        {"freq_shift": 4},
        {"act_fn": ["silu"]},
        {"attention_head_dim": -1},
        {"mid_block_scale_factor": 0},
        {"_class_name": ["x"] * 10_000},
        {"num_train_timesteps": 10**9, "time_embedding_type": "learned"},
    ],
)
def test_odd_numbers(tmp_path, change):
    folder = diffusers_folder(tmp_path / "hub", {**UNET, **change})
    with bounded(), pytest.raises(CheckpointError) as caught:
        convert_checkpoint(folder, tmp_path / "out")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("null_label", [-1, 4.0, 99, "odd", [1], True])
def test_odd_null_labels(tmp_path, null_label):
    with pytest.raises(CheckpointError, match="null_label"):
        convert_checkpoint(diffusers_folder(tmp_path / "hub"), tmp_path / "out", null_label=null_label)
