"""Which backend runs, why, and how `rdc info` says it."""

from __future__ import annotations

import types

import pytest
import torch
from torch.utils.dlpack import to_dlpack

from rdc.errors import ConfigError
from rdc.ops import _native, backends
from rdc.ops.multihead_loss import multihead_loss
from rdc.ops.multihead_reference import multihead_loss_reference
from rdc.provenance.info import format_info
from tests.tolerances import FLOAT32_NETWORK, FLOAT32_SUM

needs_extension = pytest.mark.skipif(bool(_native.why_not("cpu")), reason=f"native kernels: {_native.why_not('cpu')}")


def arguments() -> tuple[torch.Tensor, ...]:
    make = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 4, 4), (6, 5, 3, 3), (6,), (2, 1, 4, 4), (1,)]
    return tuple(torch.randn(s, generator=make) for s in shapes)


def test_describe_names_every_op_and_version():
    facts = backends.describe()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["rdc"] == "0.1.0"
    assert set(facts["ops"]) == {"multihead_loss", "empirical_denoiser", "convolution", "norm_act"}
    for backends_of_op in facts["ops"].values():
        assert set(backends_of_op) == {"cpu", "cuda"}
        for backend in backends_of_op.values():
            assert backend.startswith(("native (", "reference (torch): "))
    assert facts["ops"]["empirical_denoiser"]["cuda"].startswith("reference (torch): ")
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


def test_an_extension_of_an_earlier_version_is_not_used(monkeypatch):
    monkeypatch.setattr(_native.importlib, "import_module", lambda name: types.SimpleNamespace(cpu_isa=lambda: "avx2"))
    module, why = _native._load()
    assert module is None and "install rdc again" in why


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


# --- The binding believes nothing: whatever Python passes by mistake, no address is used before shapes, types and layouts fit ------------


def operands():
    """N, T, c, H, W, K, C = 2, 2, 3, 4, 5, 3, 1."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((4, 3, 4, 5), (3, 3, 3, 3), (3,), (4, 1, 4, 5), (2,))
    return [torch.randn(shape, generator=draw) for shape in shapes]


@needs_extension
@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(4, 3, 4), "h: expected 4 dimensions, got 3"),
        (0, torch.zeros(4, 3, 4, 5, dtype=torch.float64), r"h: expected float32, got float64"),
        (0, torch.zeros(5, 3, 4, 5), "level_weight: expected a divisor of the 5 rows, got 2 levels"),
        (1, torch.zeros(3, 3, 3, 2), r"weight: expected shape \[3, 3, 3, 3\], got \[3, 3, 3, 2\]"),
        (1, torch.zeros(3, 3, 3, 3).bfloat16(), "weight: expected float32, got bfloat16"),
        (1, torch.zeros(3, 3, 3, 6)[..., ::2], "weight: expected a dense row-major tensor"),
        (2, torch.zeros(3, dtype=torch.int32), "bias: expected float32, got int32"),
        (3, torch.zeros(4, 2, 4, 5), "bias: expected a multiple of 2 channels, got 3"),
        (3, torch.zeros(1).expand(4, 1, 4, 5), "target: expected a dense row-major tensor"),
        (4, torch.zeros(2, dtype=torch.float64), "level_weight: expected float32, got float64"),
        (5, torch.zeros(2, 4), r"loss: expected shape \[2, 3\], got \[2, 4\]"),
        (6, torch.zeros(4, 20, 15), r"kept: expected shape \[4, 20, 16\], got \[4, 20, 15\]"),
        (7, torch.zeros(4, 3), "row_loss: expected float64, got float32"),
        (0, 140737488355328, "h: expected a DLPack capsule"),
    ],
)
def test_the_binding_checks_what_it_gets(place, wrong, message):
    tensors = [*operands(), torch.zeros(2, 3), torch.zeros(4, 20, 16), torch.zeros(4, 3, dtype=torch.float64)]
    kernel = _native.extension().multihead_loss_cpu_forward
    kernel(*map(to_dlpack, tensors), 1, _native.cpu_isa())  # as it should be
    torch.testing.assert_close(
        tensors[5], multihead_loss(*tensors[:5], backend="reference"), rtol=FLOAT32_SUM, atol=FLOAT32_SUM
    )
    handed = [to_dlpack(t) for t in tensors]
    handed[place] = to_dlpack(wrong) if isinstance(wrong, torch.Tensor) else wrong
    with pytest.raises(ValueError, match=f"multihead_loss: {message}"):
        kernel(*handed, 1, _native.cpu_isa())


@needs_extension
def test_the_binding_checks_gradients():
    tensors = operands()
    kernel = _native.extension().multihead_loss_cpu_backward
    upstream, grads = torch.ones(2, 3), [torch.empty_like(t) for t in tensors[:4]]
    handed = [*map(to_dlpack, tensors), to_dlpack(upstream)]
    kernel(*handed, (*map(to_dlpack, grads), None), None, 1, _native.cpu_isa())
    leaves = [t.clone().requires_grad_() for t in tensors[:4]]
    loss = multihead_loss(*leaves, tensors[4], backend="reference")
    for found, expected in zip(grads, torch.autograd.grad(loss.sum(), leaves), strict=True):
        torch.testing.assert_close(found, expected, rtol=FLOAT32_NETWORK, atol=FLOAT32_NETWORK)
    wrong = (to_dlpack(grads[0]), to_dlpack(grads[0]), None, None, None)
    with pytest.raises(ValueError, match=r"gradient of weight: expected shape \[3, 3, 3, 3\], got \[4, 3, 4, 5\]"):
        kernel(*handed, wrong, None, 1, _native.cpu_isa())
    with pytest.raises(ValueError, match="gradients: expected five"):
        kernel(*handed, wrong[:4], None, 1, _native.cpu_isa())


@pytest.mark.skipif(
    not _native.extension().cuda_built() if not _native.why_not("cpu") else True, reason="no CUDA kernels"
)
def test_the_cuda_binding_refuses_tensors_elsewhere():
    kernel = _native.extension().multihead_loss_cuda_forward
    with pytest.raises(ValueError, match="expected device type 2, got 1"):
        kernel(*map(to_dlpack, operands()), to_dlpack(torch.zeros(2, 3)), to_dlpack(torch.zeros(1)), 0)
