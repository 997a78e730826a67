"""Conversion of other programs' checkpoints; nothing in them is ever run.

The public EDM files cannot be shipped, so pickles of the same structure are made here: a stand-in for the module
``torch_utils.persistence`` whose objects pickle as EDM's do, embedded source and all, around weights by formula.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rdc.checkpoints import load_model, save_model
from rdc.convert import convert_checkpoint
from rdc.errors import CheckpointError, ConfigError, InputError
from rdc.networks.presets import build_network, network_preset
from tests.networks.cases import DIFFUSERS_UNET, EDM_CASES, edm_network, inputs
from tests.networks.formula import fill, noise_like

# --- a stand-in for EDM's persistence ------------------------------------------------------------------------------


class EasyDict(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Persistent(nn.Module):
    """A module that pickles as EDM's persistent classes do: metadata with source, and its ``__dict__`` as state."""

    source, kind = "", ""

    def __reduce__(self):
        state = {key: value for key, value in self.__dict__.items() if key not in ("source", "kind")}
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.kind, "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


@pytest.fixture
def edm_modules(monkeypatch):
    """The two modules under whose names EDM's pickles refer to their helpers; reconstruction runs the source, as EDM's."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        exec(meta["module_src"], {})  # noqa: S102
        return meta

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setattr(EasyDict, "__module__", "dnnlib.util")
    util.EasyDict = EasyDict
    for name, module in (("torch_utils", persistence), ("dnnlib", util)):
        parent = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, parent)
        setattr(parent, module.__name__.split(".")[1], module)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def persist(module: nn.Module, source: str, kind: str = "", **extra) -> nn.Module:
    """A copy of a module tree whose own classes pickle persistently and whose torch.nn classes stay what they are."""
    if type(module).__module__.startswith("torch.nn."):
        children = {name: persist(child, source) for name, child in module.named_children()}
        return nn.ModuleDict(children)
    made = Persistent()
    made.__dict__.update(module.__dict__, training=False)
    made.__dict__["_modules"] = {
        name: None if child is None else persist(child, source) for name, child in module._modules.items()
    }
    made.__dict__.update(extra, source=source, kind=kind or type(module).__name__)
    return made


def edm_object(name: str, source: str = "", kind: str = "EDMPrecond", positional: int = 0) -> nn.Module:
    """What EDM keeps under "ema": a network under preconditioning, for a case of ``tests.networks.cases``."""
    config, inner = EDM_CASES[name], edm_network(name, torch.float32).requires_grad_(False)
    unet = dict(config["unet"])
    arguments = {
        "img_resolution": config["image_shape"][1],
        "img_channels": config["image_shape"][0],
        "label_dim": config["num_classes"],
        "use_fp16": False,
        "sigma_min": 0,
        "sigma_max": float("inf"),
        "sigma_data": np.float64(0.5),
        "model_type": unet.pop("architecture"),
    }
    args = tuple(arguments.pop(key) for key in list(arguments)[:positional])
    kwargs = EasyDict({**arguments, **unet, "channel_mult": np.array(unet["channel_mult"])})
    for block in inner.modules():  # EDM keeps np.sqrt(0.5) here
        if hasattr(block, "skip_scale"):
            block.skip_scale = np.float64(block.skip_scale)
    made = persist(inner, source, size=torch.Size([3]), things={1, 2}, dtype=torch.float32)
    outer = Persistent()
    outer.__dict__.update(_init_args=args, _init_kwargs=kwargs, sigma_max=float("inf"), source=source, kind=kind)
    outer.model = made
    return outer


def write_pickle(path, network, protocol=4):
    pipe = Persistent()
    pipe.__dict__.update(kind="AugmentPipe", source="raise SystemExit", p=0.12, _init_args=(), _init_kwargs=EasyDict())
    data = {"ema": network, "loss_fn": pipe, "augment_pipe": pipe, "dataset_kwargs": EasyDict(path="x.zip", use_labels=True)}
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return path


def outputs(net: nn.Module, classes: int = 4) -> torch.Tensor:
    x, c_noise, labels = inputs(torch.float32)
    with torch.no_grad():
        return net(x, c_noise, labels if classes else None)


# --- EDM pickles ---------------------------------------------------------------------------------------------------


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


# --- pickles that want to run code ---------------------------------------------------------------------------------


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hand_made(*calls: tuple[str, str, bytes]) -> bytes:
    """A protocol 2 pickle by hand: ``(module, name, argument opcodes)`` one after the other."""
    body = b"".join(b"c" + f"{module}\n{name}\n".encode() + arguments for module, name, arguments in calls)
    return b"\x80\x02" + body + b"."


def attacks(ran) -> dict[str, tuple]:
    """Name -> (pickle that creates the file ``ran`` or would hurt otherwise, what the error must name)."""
    touch, code = f"touch {ran}", f"open({str(ran)!r}, 'w').close()"
    system = {"nt": "nt", "posix": "posix"}[os.name] + ".system"
    in_state = Persistent()
    in_state.__dict__.update(kind="EDMPrecond", source="", bad=Call(os.system, touch))
    inner = pickle.dumps(Call(exec, code))
    module = f"S'{touch}'\n".encode()
    return {
        "os.system": (pickle.dumps(Call(os.system, touch)), system),
        "eval": (pickle.dumps(Call(eval, code)), "builtins.eval"),
        "exec, protocol 2": (pickle.dumps(Call(exec, code), 2), "exec"),
        "getattr": (pickle.dumps(Call(getattr, dict, "fromkeys")), "builtins.getattr"),
        "open": (pickle.dumps(Call(open, str(ran), "w")), "open"),
        "nested in ema": (pickle.dumps({"ema": {"x": [OrderedDict(a=Call(os.system, touch))]}}), system),
        "in the state": (lambda: pickle.dumps({"ema": in_state}), system),
        "as a key": (pickle.dumps({Call(os.system, touch): 1}), system),
        "torch.load": (pickle.dumps(Call(torch.load, str(ran))), "torch.serialization.load"),
        "pickle.loads": (pickle.dumps(Call(pickle.loads, inner)), "_pickle.loads"),
        "storage with code": (pickle.dumps(Call(torch.storage._load_from_bytes, inner)), "storage refused"),
        "random": (pickle.dumps(np.random.default_rng(0)), "numpy.random"),
        "generator": (pickle.dumps({"ema": Call(torch.Generator)}), "torch._C.Generator"),
        "functools": (pickle.dumps(Call(__import__("functools").partial, os.system, touch)), "functools.partial"),
        "old INST": (b"(" + module + b"iposix\nsystem\n.", "instruction"),
        "old OBJ": (b"\x80\x02(cposix\nsystem\n" + module + b"o.", "posix.system"),
        "dotted name": (hand_made(("torch.nn.modules.module", "torch.os.system", b"(" + module + b"tR")), "torch.os.system"),
        "module path": (hand_made(("torch.nn.modules", "os.system", b"(" + module + b"tR")), "torch.nn.modules.os.system"),
        "extension registry": (b"\x80\x02\x82\x01.", "registered object"),
        "external object": (b"\x80\x02Pabc\n.", "external object"),
        "state onto a name": (hand_made(("collections", "OrderedDict", b"}S'x'\nI1\nsb")), "state given"),
        "call of data": (b"\x80\x02](tR.", "made by a list"),
        "newobj of data": (b"\x80\x02](t\x81.", "made by a list"),
        "a class as an object": (hand_made(("builtins", "object", b"(tR")), "object called"),
    }


@pytest.mark.parametrize("name", list(attacks("x")))
def test_code_is_never_run(tmp_path, edm_modules, name):
    ran, path = tmp_path / "ran", tmp_path / "bad.pkl"
    content, named = attacks(ran)[name]
    path.write_bytes(content() if callable(content) else content)
    before = set(os.listdir(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(path, tmp_path / "out", kind="edm-pickle")
    assert named in str(caught.value) and not ran.exists()
    assert set(os.listdir(tmp_path)) == before


def test_the_attacks_work(tmp_path, edm_modules):
    """An ordinary unpickler does run them, so that the test above can fail."""
    for name in ("os.system", "exec, protocol 2", "nested in ema", "old OBJ", "dotted name", "storage with code"):
        ran = tmp_path / "ran"
        try:
            pickle.loads(attacks(ran)[name][0])
        except Exception:  # after the damage was done
            pass
        if name not in ("dotted name", "storage with code"):  # refused by pickle's protocol 2, by torch
            assert ran.exists(), name
            ran.unlink()


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((3, 5), (5, 1), 0), ((12,), (1,), 1), ((4,), (4,), 0), ((10**12,), (0,), 0), ((-1,), (1,), 0), ((4,), (1,), -1), ((2,), (1, 1), 0)],
)
def test_tensor_outside_its_storage(tmp_path, edm_modules, size, stride, offset):
    storage = torch.zeros(12).storage()
    bad = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"ema": bad}))
    with pytest.raises(CheckpointError, match="tensor of size"):
        convert_checkpoint(path, tmp_path / "out")


def test_damaged_pickle(tmp_path, edm_modules):
    content = write_pickle(tmp_path / "edm.pkl", edm_object("ddpmpp")).read_bytes()
    generator = np.random.default_rng(0)
    for keep in [3, 50, *generator.integers(100, len(content), 8)]:
        (tmp_path / "edm.pkl").write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match="not a readable pickle"):
            convert_checkpoint(tmp_path / "edm.pkl", tmp_path / "out")
    for _ in range(25):  # damaged bytes: an error of ours, or a file that still makes sense; never anything else
        damaged = bytearray(content)
        for at in generator.integers(2, 4000, 3):
            damaged[at] = generator.integers(256)
        (tmp_path / "edm.pkl").write_bytes(damaged)
        try:
            convert_checkpoint(tmp_path / "edm.pkl", tmp_path / "out")
        except CheckpointError:
            pass


# --- state dicts ---------------------------------------------------------------------------------------------------


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
    state = {k: torch.empty(v.shape) if "resample_filter" not in k else filter_of(preset) for k, v in net.state_dict().items()}
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
    refused({f"{part}.{name}": value for part in ("model", "ema_model") for name, value in state.items()}, "expected one U-Net")
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


# --- diffusers folders ---------------------------------------------------------------------------------------------

UNET = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 3, "out_channels": 3, **DIFFUSERS_UNET}
VP = {"kind": "conditional", "image_shape": [3, 8, 8], "num_classes": 4}


def vp_network(**vp) -> nn.Module:
    unet = {"architecture": "UNet2DModel", "out_channels": 3, **DIFFUSERS_UNET}
    null = isinstance(vp.get("null_label"), int)
    with torch.random.fork_rng():
        return fill(build_network({**VP, "num_classes": 4 - null, "unet": unet, "vp": vp})).eval()


def diffusers_folder(path, unet=UNET, scheduler=None, bin_file=False, rename=None):
    (path / "unet").mkdir(parents=True, exist_ok=True)
    (path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}))
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


DDPM = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500, "clip_sample": True}


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
    folder = diffusers_folder(tmp_path / "hub", {key: value for key, value in UNET.items() if key != "num_class_embeds"})
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


# --- options -------------------------------------------------------------------------------------------------------


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
