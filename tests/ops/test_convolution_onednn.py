"""oneDNN's share of the bfloat16 convolutions: values and derivatives against loops in float64, what it takes, and what switches it off.

oneDNN computes the same sums on processors without tiles, so that all but its speed is tested everywhere.
"""

from __future__ import annotations

import pytest
import torch

from rdc.ops import _native, backends, convolution_onednn
from rdc.ops.convolution import convolution, convolution_reference, weight_gradient
from tests.ops.test_convolution import by_loops, by_parts, needs_extension, operands, true_gradients
from tests.tolerances import BFLOAT16_NETWORK, BFLOAT16_OP, close

CASES = [(2, 5, 3, 4, 4), (3, 17, 33, 5, 9), (2, 48, 100, 7, 7), (1, 160, 16, 8, 8)]


@pytest.fixture
def taken(monkeypatch):
    """Everything in bfloat16 goes to oneDNN; how often it did."""
    calls = []
    monkeypatch.setattr(convolution_onednn, "has_tiles", lambda: True)
    monkeypatch.setattr(convolution_onednn, "_LEAST_PRODUCTS", 0)
    for name in ("forward", "input_gradient", "weight_gradient"):
        real = getattr(convolution_onednn, name)
        monkeypatch.setattr(
            convolution_onednn, name, lambda *given, name=name, real=real: (calls.append(name), real(*given))[1]
        )
    return calls


def rounded(*tensors):
    return [tensor.bfloat16().float() for tensor in tensors]


@needs_extension
@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, doubled, taken):
    x, weight, bias, skip, upstream = rounded(*operands(case, doubled))
    truth = by_loops(x, weight, bias, skip, 0.7, doubled)
    true = true_gradients(x, weight, bias, skip, upstream, doubled)
    x, skip, upstream = x.bfloat16().contiguous(memory_format=torch.channels_last), skip.bfloat16(), upstream.bfloat16()
    given = [t.requires_grad_() for t in (x, weight, bias, skip)]
    y = convolution(*given, 0.7, doubled)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    close(y.detach().double(), truth, BFLOAT16_OP)
    made = torch.autograd.grad(y, given, upstream)
    for gradient, right, tensor in zip(made, true, given, strict=True):
        assert gradient.dtype == tensor.dtype
        close(gradient.double(), right, BFLOAT16_OP)
    assert taken == ["forward", "input_gradient", "weight_gradient"]


@needs_extension
def test_a_skip_of_half_the_size_is_left_as_it_was(taken):
    x, weight, bias, skip, _ = rounded(*operands((3, 17, 33, 14, 10)))
    half = skip[:, :, ::2, ::2].bfloat16().contiguous(memory_format=torch.channels_last)
    before = half.clone()
    whole = half.float().repeat_interleave(2, 2).repeat_interleave(2, 3)
    y = convolution(x.bfloat16().contiguous(memory_format=torch.channels_last), weight, bias, half, 0.7)
    close(y.double(), by_loops(x, weight, bias, whole, 0.7, False), BFLOAT16_OP)
    assert torch.equal(half, before) and taken == ["forward"]


@needs_extension
def test_second_derivatives(taken):
    """Of the input and of the weight, in both."""
    x, weight, bias, skip, _ = rounded(*operands((2, 7, 9, 6, 5)))
    results = []
    for kind, run in ((torch.bfloat16, convolution), (torch.float64, convolution_reference)):
        image = x.to(kind).contiguous(memory_format=torch.channels_last)
        given = [image, *(t.to(torch.promote_types(kind, torch.float32)) for t in (weight, bias)), skip.to(kind)]
        given = [t.requires_grad_() for t in given]
        first = torch.autograd.grad(run(*given, 0.7).square().sum(), given, create_graph=True)
        total = sum(gradient.double().square().sum() for gradient in first)
        results.append([g.double() for g in torch.autograd.grad(total, given)])
    for made, true in zip(*results, strict=True):
        close(made, true, BFLOAT16_NETWORK)
    assert taken.count("forward") > 1 and "weight_gradient" in taken


@needs_extension
def test_weight_gradient_keeps_type_and_layout(taken):
    x, weight, _, _, upstream = rounded(*operands((4, 20, 36, 10, 7)))
    x, upstream = (t.bfloat16().contiguous(memory_format=torch.channels_last) for t in (x, upstream))
    truth = weight_gradient(x.double(), weight.double(), upstream.double(), 0.7)
    for layout in (torch.contiguous_format, torch.channels_last):
        of = weight.contiguous(memory_format=layout)
        made = weight_gradient(x, of, upstream, 0.7)
        assert made.dtype == torch.float32 and made.stride() == of.stride()
        close(made.double(), truth, BFLOAT16_OP)


def test_what_it_takes(monkeypatch):
    """Large convolutions of bfloat16, by the shape of one image; nothing where an instruction set is asked for."""
    monkeypatch.setattr(convolution_onednn, "_supported", lambda: True)
    for name in ("RDC_CPU_ISA", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    x, weight = torch.empty(1, 48, 14, 14, dtype=torch.bfloat16), torch.empty(48, 48, 3, 3)
    takes = convolution_onednn.takes
    assert takes(x, weight) and takes(x.expand(64, -1, -1, -1), weight)
    assert not takes(x.float(), weight) and not takes(x[:, :, :3, :3], weight) and not takes(x[:, :1], weight[:, :1])
    small = x[:, :, :3, :4]
    assert not takes(small, weight) and takes(small, weight, doubled=True)
    for name, value in (("RDC_CPU_ISA", "avx512bf16"), ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")):
        monkeypatch.setenv(name, value)
        assert not takes(x, weight)
        monkeypatch.delenv(name)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert takes(x, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not takes(x, weight)
    monkeypatch.setattr(convolution_onednn, "_supported", lambda: False)
    assert not takes(x, weight)


@needs_extension
def test_batches_and_threads_change_at_most_a_rounding(taken):
    """oneDNN orders some sums by them, as PyTorch's own convolutions do."""
    x, weight, bias, skip, upstream = operands((11, 48, 40, 14, 14))
    for made, parts in by_parts((x.bfloat16(), weight, bias, skip.bfloat16(), upstream.bfloat16())):
        close(made.double(), parts.double(), BFLOAT16_OP)
    assert taken


def test_info_says_so(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(convolution_onednn, "has_tiles", lambda there=there: there)
        assert ("oneDNN" in backends._backend("convolution", "cpu")) == (there and not _native.why_not("cpu"))
        assert "oneDNN" not in backends._backend("norm_act", "cpu")
