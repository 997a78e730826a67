"""Which backend runs, why, and how `rdc info` says it."""

from __future__ import annotations

import pytest
import torch

from rdc.errors import ConfigError
from rdc.ops import _native, backends
from rdc.ops.multihead_loss import multihead_loss
from rdc.ops.multihead_reference import multihead_loss_reference
from rdc.provenance.info import format_info

needs_extension = pytest.mark.skipif(bool(_native.why_not("cpu")), reason=f"native kernels: {_native.why_not('cpu')}")


def arguments() -> tuple[torch.Tensor, ...]:
    make = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 4, 4), (6, 5, 3, 3), (6,), (2, 1, 4, 4), (1,)]
    return tuple(torch.randn(s, generator=make) for s in shapes)


def test_describe_names_every_op_and_version():
    facts = backends.describe()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["rdc"] == "0.1.0"
    assert set(facts["ops"]) == {"multihead_loss"}
    assert set(facts["ops"]["multihead_loss"]) == {"cpu", "cuda"}
    for backend in facts["ops"]["multihead_loss"].values():
        assert backend.startswith(("native (", "reference (torch): "))
    assert (facts["extension"] is None) == bool(facts["extension_missing"])


def test_info_is_readable():
    text = format_info()
    assert "\nnorms          cuda  " in text
    for word in ("versions", "extension", "instruction set", "multihead_loss cpu", "multihead_loss cuda", "gpus"):
        assert word in text


@needs_extension
def test_disabled_at_run_time(monkeypatch):
    monkeypatch.setenv("RDC_DISABLE_NATIVE", "1")
    assert "RDC_DISABLE_NATIVE=1 is set" in format_info()
    x = arguments()
    assert torch.equal(multihead_loss(*x), multihead_loss_reference(*x))
    with pytest.raises(ConfigError, match="RDC_DISABLE_NATIVE=1 is set"):
        multihead_loss(*x, backend="native")
    monkeypatch.setenv("RDC_DISABLE_NATIVE", "0")
    multihead_loss(*x, backend="native")


def test_missing_extension_falls_back(monkeypatch):
    monkeypatch.setattr(_native, "_EXTENSION", None)
    monkeypatch.setattr(_native, "_WHY_NOT", "it was not built")
    x = arguments()
    assert torch.equal(multihead_loss(*x), multihead_loss_reference(*x))
    assert "reference (torch): it was not built" in format_info()
    with pytest.raises(ConfigError, match="it was not built"):
        multihead_loss(*x, backend="native")


@needs_extension
@pytest.mark.parametrize("isa", ["sse9", "AVX2"])
def test_unknown_instruction_set(monkeypatch, isa):
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    with pytest.raises(ConfigError, match="expected one of baseline"):
        multihead_loss(*arguments(), backend="native")


@needs_extension
def test_instruction_set_is_shown(monkeypatch):
    monkeypatch.setenv("RDC_CPU_ISA", "baseline")
    assert "native (baseline)" in format_info()


def test_other_devices_have_a_reason():
    assert "no kernels" in _native.why_not("mps") or _native.why_not("mps")


def test_unknown_backend():
    with pytest.raises(ConfigError, match="'auto', 'native', 'triton', 'gram' or 'reference'"):
        multihead_loss(*arguments(), backend="cuda")
