"""oneDNN's share of the bfloat16 convolutions: values and derivatives against loops in float64, what it takes, and what switches it off.

oneDNN computes the same sums on processors without tiles, so that all but its speed is tested everywhere.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.weak import WeakIdKeyDictionary

from rdc.execution.memory import peak_bytes
from rdc.ops import _native, backends, convolution_onednn, packed_weights
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


needs_packing = pytest.mark.skipif(
    not convolution_onednn._packs(), reason="this PyTorch or processor has no kept bfloat16 weights of oneDNN"
)


@pytest.fixture
def made(monkeypatch):
    """The layouts of weights that were made, with nothing kept before."""
    shapes, real = [], torch._C._nn.mkldnn_reorder_conv2d_weight
    monkeypatch.setattr(packed_weights, "_KEPT", WeakIdKeyDictionary())
    monkeypatch.setattr(packed_weights, "_limit", packed_weights.MOST_KEPT)
    monkeypatch.setattr(
        torch._C._nn,
        "mkldnn_reorder_conv2d_weight",
        lambda w, *more: (shapes.append(tuple(w.shape)), real(w, *more))[1],
    )
    return shapes


def both_ways(x, weight, bias, upstream):
    """Values and the gradient of the image, weights frozen."""
    x = x.detach().requires_grad_()
    y = convolution(x, weight, bias, None, 0.7)
    return y.detach(), *torch.autograd.grad(y, x, upstream)


@needs_extension
@needs_packing
def test_kept_weights_give_the_same_bits(taken, made, monkeypatch):
    for case in CASES:
        x, weight, bias, _, upstream = operands(case)
        x, upstream = (t.bfloat16().contiguous(memory_format=torch.channels_last) for t in (x, upstream))
        kept = [both_ways(x, weight, bias, upstream) for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(convolution_onednn, "_packs", lambda: False)
            plain = both_ways(x, weight, bias, upstream)
        assert len(made) == 2
        made.clear()
        for found in kept:
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, plain, strict=True))


@needs_extension
@needs_packing
def test_weights_are_made_once_and_again_when_they_change(taken, made):
    x, weight, bias, _, upstream = operands(CASES[2])
    x, upstream = (t.bfloat16().contiguous(memory_format=torch.channels_last) for t in (x, upstream))
    before = packed_weights.kept_bytes()
    first = [both_ways(x, weight, bias, upstream) for _ in range(3)][-1]
    assert len(made) == 2  # for values and for gradients
    assert packed_weights.kept_bytes() == before + 2 * 2 * weight.numel()
    weight.numpy()[0, 0, 0, 0] += 1  # nothing of PyTorch sees this
    second = both_ways(x, weight, bias, upstream)
    assert len(made) == 4 and not torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    assert packed_weights.kept_bytes() == before + 2 * 2 * weight.numel()
    with torch.inference_mode():
        fresh = weight.clone()
        y = convolution(x, fresh, bias)
    assert len(made) == 5
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    assert torch.equal(convolution(leaf, weight, bias).detach(), y)  # what was made there may be used in a graph
    del fresh
    assert packed_weights.kept_bytes() >= before + 2 * 2 * weight.numel()


@needs_extension
@needs_packing
def test_what_is_not_kept(taken, made, monkeypatch):
    x, weight, bias, _, _ = operands(CASES[2])
    x = x.bfloat16().contiguous(memory_format=torch.channels_last)
    expected = convolution(x, weight, bias)
    assert len(made) == 1
    assert torch.equal(convolution(x, weight.clone().requires_grad_(), bias).detach(), expected)  # trained
    counted = peak_bytes(lambda: convolution(x, weight, bias))  # a mode looks on
    assert counted >= expected.numel() * 2
    monkeypatch.setattr(packed_weights, "_limit", packed_weights.kept_bytes())  # no room
    assert torch.equal(convolution(x, weight.clone(), bias), expected)
    assert len(made) == 1


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
