"""Pickles of the structure of the public EDM files, which cannot be shipped: a stand-in for ``torch_utils.persistence``
whose objects pickle as EDM's do, embedded source and all, around weights by formula.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from rdc.networks.presets import build_network, network_preset
from tests.networks.cases import EDM_CASES, edm_network, inputs
from tests.tiny_models import randomize


@contextlib.contextmanager
def edm_modules() -> Iterator[None]:
    """The two modules under whose names EDM's pickles refer to their helpers; reconstruction runs the source."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        exec(meta["module_src"], {})  # noqa: S102
        return meta

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    made, home = {}, EasyDict.__module__
    for name, module in (("torch_utils", persistence), ("dnnlib", util)):
        parent = types.ModuleType(name)
        setattr(parent, module.__name__.split(".")[1], module)
        made |= {name: parent, module.__name__: module}
    before = {name: sys.modules.get(name) for name in made}
    EasyDict.__module__, util.EasyDict = "dnnlib.util", EasyDict
    sys.modules.update(made)
    try:
        yield
    finally:
        EasyDict.__module__ = home
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


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
    return edm_object_of(EDM_CASES[name], edm_network(name, torch.float32), source, kind, positional)


def edm_object_of(
    config: dict[str, Any], inner: nn.Module, source: str = "", kind: str = "EDMPrecond", positional: int = 0
) -> nn.Module:
    """The same for any network of ``build_network(config)``."""
    inner, unet = inner.requires_grad_(False), dict(config["unet"])
    arguments = {
        "img_resolution": config["image_shape"][1],
        "img_channels": config["image_shape"][0],
        "label_dim": config["num_classes"],
        "use_fp16": False,
        "sigma_min": 0,
        "sigma_max": float("inf"),
        "sigma_data": np.float64(config.get("sigma_data", 0.5)),
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
    data = {
        "ema": network,
        "loss_fn": pipe,
        "augment_pipe": pipe,
        "dataset_kwargs": EasyDict(path="x.zip", use_labels=True),
    }
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return path


def write_true_size(path, preset: str = "edm-ddpmpp-32", classes: int = 10, seed: int = 0):
    """A pickle of the size of a public CIFAR-10 network (55.7 M weights, random); ``preset`` as of ``network_preset``."""
    config = network_preset(preset, classes)
    with torch.random.fork_rng():
        network = randomize(build_network(config), seed, 0.02)
    with edm_modules():
        return write_pickle(path, edm_object_of(config, network))


def outputs(net: nn.Module, classes: int = 4) -> torch.Tensor:
    x, c_noise, labels = inputs(torch.float32)
    with torch.no_grad():
        return net(x, c_noise, labels if classes else None)


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call
