"""Fixtures of the conversion tests."""

from __future__ import annotations

import sys
import types

import pytest

from tests.models.convert.edm_files import EasyDict


@pytest.fixture
def edm_modules(monkeypatch):
    """The two modules under whose names EDM's pickles refer to their helpers; reconstruction runs the source."""
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
