"""What ``import rdc`` has: every room and every public name, when it is asked for."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import rdc
from rdc.errors import ConfigError
from rdc.front.evaluation import Options

ROOT = Path(__file__).resolve().parents[2]


def test_every_room_is_an_attribute():
    rooms = {path.parent.name for path in (ROOT / "rdc").glob("*/__init__.py")}
    assert rooms == set(rdc._ROOMS) and rooms <= set(dir(rdc))
    text = (ROOT / "rdc" / "__init__.py").read_text(encoding="utf-8")
    for room in rooms:
        assert isinstance(getattr(rdc, room), types.ModuleType)
        assert room == "cli" or f"    from rdc import {room} as {room}\n" in text  # for type checkers


def test_every_public_name_is_there_and_no_room_hides_one():
    for name in rdc.__all__:
        assert getattr(rdc, name) is not None
    assert set(rdc._HOME) | {"__version__"} == set(rdc.__all__) and not set(rdc._HOME) & set(rdc._ROOMS)
    for name in rdc._ROOMS:
        importlib.import_module(f"rdc.{name}")  # sets attributes of the package
    assert all(callable(getattr(rdc, name)) for name in ("attack", "evaluate", "load", "list_models", "train"))
    with pytest.raises(AttributeError, match="module 'rdc' has no attribute 'atack'"):
        rdc.atack  # noqa: B018


def test_a_room_is_imported_when_it_is_asked_for():
    program = "import sys, rdc; assert 'torch' not in sys.modules; rdc.attacks.pgd; rdc.norm_balls.NORMS; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_options_say_their_defaults():
    about = Options.__doc__ or ""
    assert all(f"\n        {name}: " in about for name in Options.__annotations__)


def test_models_are_listed_by_pattern():
    assert rdc.list_models() == sorted(rdc.MODELS)
    assert rdc.list_models("fashion*") == [name for name in sorted(rdc.MODELS) if name.startswith("fashion")]
    assert rdc.list_models("FASHION*") == [] and rdc.list_models("cifar10") == ["cifar10"]
    with pytest.raises(ConfigError, match="expected a pattern"):
        rdc.list_models(3)


@pytest.mark.parametrize(
    "name", ["fashion-mnist", "fashion-mnist-standard", "fashion-mnist-lm-resnet", "sbgc:fashion-mnist"]
)
def test_a_loaded_model_is_in_evaluation_mode(name):
    model = rdc.load(name, device="cpu")
    assert not any(part.training for part in model.modules())
    assert not any(part.training for part in model.train().with_(noise="fresh").modules())


def test_a_pickled_attack_keeps_its_defaults():
    spec = pickle.loads(pickle.dumps(rdc.attacks.pgd.configured(rdc.attacks.ThreatModel("linf", 0.1), steps=2)))
    assert spec.options.seed == 0 and spec.options.image_ids is None
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    found = spec(lambda pixels: pixels.flatten(1)[:, :3], x, y)
    again = rdc.attacks.pgd(
        lambda pixels: pixels.flatten(1)[:, :3], x, y, spec.threat, seed=0, image_ids=[0, 1], steps=2
    )
    assert torch.equal(found.x_adv, again.x_adv)
