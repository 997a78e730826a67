"""The convolution of csrc/ against loops in float64 and PyTorch: values, derivatives, kept weights, and where it does not run."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.dlpack import to_dlpack

from rdc.execution.memory import peak_bytes
from rdc.networks.blocks import Conv2d
from rdc.networks.presets import build_network
from rdc.ops import _native, packed_weights
from rdc.ops.convolution import convolution, convolution_reference, usable, weight_gradient
from tests.tiny_models import CONFIG, randomize, tiny_classifier
from tests.tolerances import BFLOAT16_OP, CENTRAL_DIFFERENCE, FLOAT32_NETWORK, FLOAT32_SUM, FLOAT64_OP, close

needs_extension = pytest.mark.skipif(bool(_native.why_not("cpu")), reason=f"native kernels: {_native.why_not('cpu')}")

#: B, I, O, H, W: one tile and less; channels that fill no vector; many groups of outputs; more tiles than a strip, cut at both edges
CASES = [
    (1, 1, 1, 3, 3),
    (2, 5, 3, 4, 4),
    (3, 17, 33, 5, 9),
    (2, 48, 100, 7, 7),
    (5, 20, 68, 14, 10),
    (1, 160, 16, 8, 8),
]


def isas():
    if _native.why_not("cpu"):
        return []
    return _native.ISAS[: _native.ISAS.index(_native.extension().cpu_isa()) + 1]


def operands(case, doubled=False, seed=0):
    """float32: x in channels_last, weight, bias, skip, and an upstream gradient."""
    B, I, O, H, W = case  # noqa: E741 - inputs and outputs, as in csrc/convolution.h
    scale = 2 if doubled else 1
    make = torch.Generator().manual_seed(seed + sum(case))

    def drawn(*shape):
        return torch.randn(shape, generator=make)

    images = [drawn(B, channels, size * H, size * W) for channels, size in ((I, 1), (O, scale), (O, scale))]
    x, skip, upstream = (image.contiguous(memory_format=torch.channels_last) for image in images)
    return x, drawn(O, I, 3, 3) / (3 * I**0.5), drawn(O), skip, upstream


def by_loops(x, weight, bias, skip, factor, doubled):
    """float64, tap by tap."""
    x = x.numpy().astype(np.float64)
    if doubled:
        x = x.repeat(2, axis=2).repeat(2, axis=3)
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros((x.shape[0], weight.shape[0], height, width))
    for v, u in itertools.product(range(3), range(3)):
        y += np.einsum(
            "bihw,oi->bohw", padded[:, :, v : v + height, u : u + width], weight[:, :, v, u].double().numpy()
        )
    return factor * (torch.from_numpy(y) + bias.double()[:, None, None] + skip.double())


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_sum_over_taps(case, doubled):
    x, weight, bias, skip, _ = operands(case, doubled)
    given = [t.double() for t in (x, weight, bias, skip)]
    close(convolution_reference(*given, 0.7, doubled), by_loops(x, weight, bias, skip, 0.7, doubled), FLOAT64_OP)


@needs_extension
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_kernel_is_the_sum_over_taps(case, doubled, isa, monkeypatch):
    """At most twice the error of PyTorch's float32 convolution, root mean square."""
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    x, weight, bias, skip, _ = operands(case, doubled)
    truth = by_loops(x, weight, bias, skip, 0.7, doubled)
    made = convolution(x, weight, bias, skip, 0.7, doubled)
    naive = convolution_reference(x, weight, bias, skip, 0.7, doubled)
    assert made.is_contiguous(memory_format=torch.channels_last)
    errors = [(y.double() - truth).square().mean().sqrt() for y in (made, naive)]
    assert errors[0] <= 2 * errors[1] + FLOAT32_SUM * truth.square().mean().sqrt() / 10


@needs_extension
@pytest.mark.parametrize("isa", isas())
def test_long_sums_are_cut_into_chains(isa, monkeypatch):
    """Of 256 channels: at most 1.3 times PyTorch's error, where one chain has 1.7 times."""
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    x, weight, *_ = operands((4, 256, 16, 8, 8))
    truth = convolution_reference(x.double(), weight.double())
    errors = [(f(x, weight).double() - truth).square().mean().sqrt() for f in (convolution, convolution_reference)]
    assert errors[0] <= 1.3 * errors[1]


@needs_extension
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("case", [(2, 5, 3, 4, 6), (3, 17, 33, 14, 10)])
def test_a_skip_of_half_the_size(case, isa, monkeypatch):
    """Every pixel of it counts for 2 x 2; values and gradients."""
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    x, weight, bias, skip, upstream = operands(case)
    skip = skip[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
    whole = skip.repeat_interleave(2, 2).repeat_interleave(2, 3)
    close(convolution(x, weight, bias, skip, 0.7).double(), by_loops(x, weight, bias, whole, 0.7, False), FLOAT32_SUM)
    truth = true_gradients(x, weight, bias, skip, upstream, False)
    given = [t.requires_grad_() for t in (x, weight, bias, skip)]
    made = torch.autograd.grad(convolution(*given, 0.7), given, upstream)
    for gradient, true in zip(made, truth, strict=True):
        close(gradient.double(), true, FLOAT32_SUM)


@needs_extension
@pytest.mark.parametrize("height", range(3, 17))
def test_every_side(height):
    """Tiles of four and of three, alone and in turns, and what is cut off."""
    for width in range(3, 17):
        x, weight, bias, skip, _ = operands((2, 3, 5, height, width))
        truth = by_loops(x, weight, bias, skip, 0.7, False)
        close(convolution(x, weight, bias, skip, 0.7).double(), truth, FLOAT32_SUM)


@needs_extension
def test_a_weight_whose_layout_changes_is_transformed_anew():
    """The same bytes in another order are another weight."""
    x, weight, bias, skip, _ = operands((1, 3, 3, 4, 4))
    convolution(x, weight)
    other = torch.as_strided(weight, (3, 3, 3, 3), (27, 1, 9, 3))  # these bytes, read in channels_last
    truth = by_loops(x, other, 0 * bias, 0 * skip, 1.0, False)
    weight.as_strided_((3, 3, 3, 3), (27, 1, 9, 3))
    close(convolution(x, weight).double(), truth, FLOAT32_SUM)


@needs_extension
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_rounded_once(case):
    x, weight, bias, skip, upstream = operands(case)
    x, skip = x.bfloat16().requires_grad_(), skip.bfloat16()
    y = convolution(x, weight, bias, skip, 0.7)
    truth = by_loops(x.detach().float(), weight, bias, skip.float(), 0.7, False)
    assert y.dtype == torch.bfloat16
    close(y.double(), truth, BFLOAT16_OP)
    (grad,) = torch.autograd.grad(y, x, upstream.bfloat16())
    close(
        grad.double(),
        true_gradients(x.detach().float(), weight, bias, skip.float(), upstream.bfloat16(), False)[0],
        BFLOAT16_OP,
    )


def true_gradients(x, weight, bias, skip, upstream, doubled):
    given = [t.double().requires_grad_() for t in (x, weight, bias, skip)]
    return torch.autograd.grad(convolution_reference(*given, 0.7, doubled), given, upstream.double())


@needs_extension
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients(case, doubled, isa, monkeypatch):
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    *given, upstream = operands(case, doubled)
    truth = true_gradients(*given, upstream, doubled)
    given = [t.requires_grad_() for t in given]
    made = torch.autograd.grad(convolution(*given, 0.7, doubled), given, upstream)
    for gradient, true in zip(made, truth, strict=True):
        close(gradient.double(), true, FLOAT32_SUM)


@needs_extension
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("case", [*CASES, (64, 16, 16, 14, 14), (32, 5, 7, 13, 8)])
def test_weight_gradient_errs_at_most_twice_as_much_as_pytorch(case, isa, monkeypatch):
    """Root mean square; sums over many tiles, too."""
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    x, weight, _, _, upstream = operands(case)
    truth = weight_gradient(x.double(), weight.double(), upstream.double(), 0.7)
    plain = weight_gradient(x.contiguous(), weight, upstream.contiguous(), 0.7)  # not in channels_last: PyTorch's
    for layout in (torch.contiguous_format, torch.channels_last):
        of = weight.contiguous(memory_format=layout)
        made = weight_gradient(x, of, upstream, 0.7)
        assert made.stride() == of.stride()
        errors = [(grad.double() - truth).square().mean().sqrt() for grad in (made, plain)]
        assert errors[0] <= 2 * errors[1] + FLOAT32_SUM * truth.square().mean().sqrt() / 10


@needs_extension
def test_weight_gradient_of_bfloat16_images_and_threads(monkeypatch):
    monkeypatch.setenv("RDC_CPU_ISA", _native.cpu_isa())  # no tiles of bfloat16
    x, weight, _, _, upstream = operands((9, 20, 36, 10, 7))
    x, upstream = x.bfloat16(), upstream.bfloat16()
    truth = weight_gradient(x.double(), weight.double(), upstream.double(), 0.7)
    made = weight_gradient(x, weight, upstream, 0.7)
    close(made.double(), truth, FLOAT32_SUM)  # products and sums are float32
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(weight_gradient(x, weight, upstream, 0.7), made)
    finally:
        torch.set_num_threads(before)


@needs_extension
@pytest.mark.parametrize("doubled", [False, True])
def test_second_derivatives(doubled):
    """Of the input and of the weight, in both; a cube makes them depend on everything."""
    x, weight, bias, skip, _ = operands((2, 7, 9, 6, 5), doubled)
    results = []
    for kind, run in ((torch.float32, convolution), (torch.float64, convolution_reference)):
        given = [t.to(kind).requires_grad_() for t in (x, weight, bias, skip)]
        first = torch.autograd.grad(run(*given, 0.7, doubled).pow(3).sum(), given, create_graph=True)
        total = sum(gradient.square().sum() for gradient in first)
        results.append([g.double() for g in torch.autograd.grad(total, given)])
    for made, true in zip(*results, strict=True):
        close(made, true, FLOAT32_NETWORK)


def by_parts(operands):
    """Pairs: answer and gradient of x of all images at once, and of parts of them by one, two and three threads, put together."""
    x, weight, bias, skip, upstream = operands

    def run(part, threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            leaf = x[part].requires_grad_()
            y = convolution(leaf, weight, bias, skip[part], 0.7)
            return y.detach(), torch.autograd.grad(y, leaf, upstream[part])[0]
        finally:
            torch.set_num_threads(before)

    whole = run(slice(0, 11), 1)
    for threads in (1, 2, 3):
        parts = [run(slice(0, 1), threads), run(slice(1, 8), threads), run(slice(8, 11), threads)]
        for made, one in zip(whole, zip(*parts, strict=True), strict=True):
            yield made, torch.cat(one)


@needs_extension
def test_rows_are_independent():
    """An image's answer and gradient do not depend on its batch, nor on the threads."""
    assert all(torch.equal(made, parts) for made, parts in by_parts(operands((11, 24, 40, 10, 7))))


@needs_extension
def test_a_weight_may_change_in_any_way():
    x, weight, _, _, _ = operands((1, 6, 8, 5, 5))
    convolution(x, weight)
    for change in (lambda w: w.mul_(2), lambda w: w.data.add_(1), lambda w: w.numpy().__setitem__((0, 0, 0, 0), 9.0)):
        change(weight)
        close(convolution(x, weight), convolution_reference(x, weight), FLOAT32_SUM)


@needs_extension
def test_transformed_weights_are_kept_and_let_go(monkeypatch):
    x, weight, _, _, _ = operands((1, 6, 8, 5, 5))
    packed_weights.share_budget(float("inf"))
    before, packs = packed_weights.kept_bytes(), []
    real = _native.extension().convolution_pack
    monkeypatch.setattr(_native.extension(), "convolution_pack", lambda *given: (packs.append(1), real(*given)))
    for _ in range(3):
        convolution(x, weight)
    assert len(packs) == 1 and packed_weights.kept_bytes() > before
    del weight
    assert packed_weights.kept_bytes() == before
    monkeypatch.setattr(packed_weights, "_limit", before)
    weight = operands((1, 6, 8, 5, 5))[1]
    for _ in range(2):
        convolution(x, weight)
    assert len(packs) == 3 and packed_weights.kept_bytes() == before


@needs_extension
def test_what_is_kept_is_a_share_of_the_memory_budget():
    x, weight, _, _, _ = operands((1, 6, 8, 5, 5))
    try:
        packed_weights.share_budget(float("inf"))
        convolution(x, weight)
        assert 0 < packed_weights.kept_bytes() <= packed_weights.MOST_KEPT
        tiny_classifier().with_(memory_budget_mb=0.001)
        assert packed_weights.kept_bytes() == 0
        convolution(x, weight)
        assert packed_weights.kept_bytes() == 0
    finally:
        packed_weights.share_budget(float("inf"))


@needs_extension
def test_memory_is_counted_through_the_kernel():
    """Tensors of a call are seen, transformed weights are not: they stay."""
    x, weight, _, _, _ = operands((1, 32, 32, 8, 8))
    assert peak_bytes(lambda: convolution(x, weight)) == x.numel() * 4


@needs_extension
def test_any_layout_of_weight_and_gradient():
    x, weight, bias, skip, upstream = operands((2, 6, 8, 5, 5))
    x.requires_grad_()
    plain = convolution(x, weight, bias, skip, 0.7)
    other = convolution(x, weight.contiguous(memory_format=torch.channels_last), bias, skip.contiguous(), 0.7)
    assert torch.equal(plain, other)
    for grad in (upstream.contiguous(), torch.ones(()).expand(upstream.shape)):
        close(
            torch.autograd.grad(other, x, grad, retain_graph=True)[0],
            true_gradients(x.detach(), weight, bias, skip, grad, False)[0].float(),
            FLOAT32_SUM,
        )


@needs_extension
def test_not_a_number_stays_in_its_tile():
    x, weight, bias, _, _ = operands((2, 6, 8, 12, 12))
    x[0, 0, 0, 0] = torch.nan
    y = convolution(x, weight, bias)
    assert y[0, :, :2, :2].isnan().all() and not y[0, :, 8:, 8:].isnan().any() and not y[1].isnan().any()


@needs_extension
def test_where_it_does_not_run(monkeypatch):
    x, weight, _, _, _ = operands((1, 6, 8, 5, 5))
    assert usable(x, weight)
    assert not usable(x.contiguous(), weight) and not usable(x.double(), weight) and not usable(x.half(), weight)
    assert not usable(x[:, :, :2], weight) and not usable(x[:0], weight) and not usable(x, weight[:, :, :1, :1])
    assert not usable(x[:, 1:].contiguous(memory_format=torch.channels_last), weight)  # PyTorch's to refuse
    assert torch.func.vmap(lambda one: torch.tensor(float(usable(one, weight))))(x[None]).item() == 0
    seen = []
    torch.compile(lambda t: seen.append(usable(t, weight)) or t * 2, backend="eager")(x)
    assert seen == [False]
    monkeypatch.setenv("RDC_DISABLE_NATIVE", "1")
    assert not usable(x, weight)


@needs_extension
def test_functional_derivatives_are_those_of_autograd():
    conv = Conv2d(6, 8, 3)
    x = operands((2, 6, 8, 5, 5))[0]
    f = lambda t: conv(t).square().sum()  # noqa: E731
    (plain,) = torch.autograd.grad(f(x.requires_grad_()), x)
    close(torch.func.grad(f)(x.detach()), plain, FLOAT32_SUM)
    tangent = torch.ones_like(x)
    close(torch.func.jvp(f, (x.detach(),), (tangent,))[1], (plain * tangent).sum(), FLOAT32_SUM)


@needs_extension
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("resampled", [{}, {"up": True}, {"down": True}, {"up": True, "resample_filter": (1, 3, 3, 1)}])
def test_module_gives_what_pytorch_gives(resampled, kernel, monkeypatch):
    conv = Conv2d(6, 8, kernel, **resampled)
    torch.nn.init.normal_(conv.bias)
    x = operands((2, 6, 8, 6, 8))[0].requires_grad_()
    results = []
    for disabled in ("0", "1"):
        monkeypatch.setenv("RDC_DISABLE_NATIVE", disabled)
        y = conv(x)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), [x, *conv.parameters()])))
    for made, plain in zip(*results, strict=True):
        close(made, plain, FLOAT32_SUM)


@needs_extension
def test_the_binding_refuses_what_does_not_fit():
    x, weight, bias, _, _ = operands((2, 6, 8, 5, 5))
    isa, y = _native.cpu_isa(), torch.empty(2, 8, 5, 5, memory_format=torch.channels_last)
    packed = packed_weights.packed_for(weight, False)[0]
    native = _native.extension().convolution_cpu_forward

    def call(x=x, packed=packed, bias=bias, y=y, doubled=False):
        return native(to_dlpack(x), to_dlpack(packed), to_dlpack(bias), None, to_dlpack(y), doubled, 1.0, 1, isa)

    call()
    for wrong in (
        {"packed": packed[:-1]}, {"bias": bias[:-1]}, {"x": x.double()}, {"x": x[:, :, :4]}, {"y": y[..., ::2]},
        {"doubled": True}, {"x": x.contiguous()}, {"x": torch.empty(2, 6, 0, 5), "y": torch.empty(2, 8, 0, 5)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="convolution: "):
            call(**wrong)


def test_difference_of_the_reference():
    given = [t.double().requires_grad_() for t in operands((1, 2, 3, 4, 3))[:4]]
    assert torch.autograd.gradcheck(lambda *t: convolution_reference(*t, 0.7), given, atol=CENTRAL_DIFFERENCE)


@needs_extension
def test_training_runs_on_the_kernels_whatever_the_layout_of_the_weights(monkeypatch):
    """Forward pass, gradient of the input and of the weight, of a U-Net and of a multi-head, from contiguous images and weights."""
    calls: list[str] = []
    native = _native.extension()
    for name in (
        "convolution_cpu_forward",
        "convolution_cpu_weight_gradient",
        "norm_act_cpu_forward",
        "norm_act_cpu_backward",
    ):
        real = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *given, name=name, real=real: (calls.append(name), real(*given))[1])
    for kind in ("conditional", "multihead"):
        network = randomize(build_network({**CONFIG, "kind": kind, "image_shape": [2, 16, 16], "wide_channels": 12}))
        x = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
        labels = () if kind == "multihead" else (torch.eye(3)[:2],)
        calls.clear()
        network(x, torch.zeros(2), *labels).square().sum().backward()
        threes = [w for w in network.parameters() if w.ndim == 4 and w.shape[-1] == 3]
        assert all(w.is_contiguous() and w.grad is not None for w in threes)
        assert calls.count("convolution_cpu_weight_gradient") == len(threes)
        assert calls.count("norm_act_cpu_forward") == calls.count("norm_act_cpu_backward") > 0


@needs_extension
def test_gradients_that_nobody_asks_for_are_not_computed(monkeypatch):
    """Of a weight that requires one, where the image's alone is wanted; and the other way round; derivatives of derivatives too."""
    calls: list[str] = []
    native = _native.extension()
    for name in ("convolution_cpu_forward", "convolution_cpu_weight_gradient"):
        real = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *given, name=name, real=real: (calls.append(name), real(*given))[1])
    x, weight, bias, skip, _ = (t.requires_grad_() for t in operands((2, 6, 8, 5, 5)))
    y = convolution(x, weight, None, skip, 0.7).square().sum()
    for wanted, images, weights in ((x, 1, 0), (weight, 0, 1), ([x, weight], 1, 1)):
        calls.clear()
        assert all(g is not None for g in torch.autograd.grad(y, wanted, retain_graph=True))
        assert (calls.count("convolution_cpu_forward"), calls.count("convolution_cpu_weight_gradient")) == (
            images,
            weights,
        )
    calls.clear()
    y.backward(retain_graph=True)
    assert weight.grad is not None and x.grad is not None and skip.grad is not None and bias.grad is None
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    calls.clear()
    torch.autograd.grad(grad.sum(), x)
    assert "convolution_cpu_weight_gradient" not in calls
