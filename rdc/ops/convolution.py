"""3 x 3 convolutions of a U-Net on a CPU: minimal filtering instead of products tap by tap (csrc/convolution.h).

:func:`convolution` computes ``factor * (conv2d(x, weight, bias, padding=1) + skip)`` for images in channels_last, of x or of x with every
pixel doubled. It is differentiable any number of times: the gradient of x is the same kernel with the weight reversed, that of the weight
its transpose (:func:`weight_gradient`). Float32 sums, whatever the type of x; with bfloat16 images the weights stay float32, except on
processors with tiles of bfloat16, where oneDNN takes the larger ones (:mod:`rdc.ops.convolution_onednn`).
:func:`usable` says when the kernel runs; the caller computes with PyTorch where it does not.

Transformed weights are kept from call to call, and made anew when a weight's values have changed: every call compares a fingerprint
of all values, so that no way of writing to a weight goes unseen.

Source: Lavin and Gray, arXiv 1509.09308.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # torch does not list it, its pages do

from rdc.execution.opaque import asked, refuse_batches, transformed
from rdc.ops import _native, convolution_onednn
from rdc.ops.packed_weights import packed_for

__all__ = ["convolution", "convolution_reference", "differentiable", "images", "launch", "usable", "weight_gradient"]

_TYPES = (torch.float32, torch.bfloat16)
_LEAST = 3  # pixels of a side; below, most of a tile would be padding


def usable(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes x [B, I, H, W] and weight [O, I, 3, 3]: on a CPU, x in channels_last and in float32 or bfloat16, weight in
    float32, outside of tracing, compiling and the transforms of ``torch.func``."""
    if x.device.type != "cpu" or x.dtype not in _TYPES or weight.dtype != torch.float32 or weight.shape[2:] != (3, 3):
        return False
    if x.ndim != 4 or x.shape[1] != weight.shape[1]:  # the latter is PyTorch's to refuse, in its words
        return False
    if min(x.shape[2:]) < _LEAST or not x.numel() or not weight.numel():
        return False
    return (
        plain(x) and plain(weight) and x.is_contiguous(memory_format=torch.channels_last) and not _native.why_not("cpu")
    )


def plain(x: Tensor) -> bool:
    """Whether x is a tensor with memory, and nothing records, wraps or traces what is done with it."""
    if type(x) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_compiling() or transformed():
        return False
    mode = _get_current_dispatch_mode()  # what records operators, or swaps them, must see PyTorch's
    if (mode is not None and not getattr(mode, "takes_native", False)) or torch._C._functorch.is_legacy_batchedtensor(
        x
    ):
        return False
    return not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
    factor: float = 1.0,
    doubled: bool = False,
) -> Tensor:
    """``factor * (conv2d(x, weight, bias, padding=1) + skip)`` for x that is :func:`usable`.

    Args:
        x: [B, I, H, W] in channels_last.
        weight: [O, I, 3, 3] float32.
        bias: [O] or None.
        skip: [B, O, H, W] in the type of x, or [B, O, H/2, W/2], of which every pixel counts for 2 x 2, or None. Any layout.
        factor: of the whole sum.
        doubled: every pixel of x counts for 2 x 2 (nearest-neighbour upsampling): x is [B, I, H/2, W/2].

    Returns:
        [B, O, H, W] in channels_last and in the type of x.
    """
    if not differentiable(x, weight, bias, skip):  # autograd's own work is half of a small call
        return launch(x, weight, bias, skip, factor, doubled, False)
    out: Tensor = _Convolution.apply(x, weight, bias, skip, factor, doubled)  # type: ignore[no-untyped-call]
    return out


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether autograd has something to write down here."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def convolution_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
    factor: float = 1.0,
    doubled: bool = False,
) -> Tensor:
    """What :func:`convolution` computes, in PyTorch."""
    if doubled:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    y = F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)
    if skip is not None and skip.shape[2] != y.shape[2]:
        skip = F.interpolate(skip, scale_factor=2, mode="nearest")
    return (y if skip is None else y + skip) * factor


def launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, factor: float, doubled: bool, reversed_: bool
) -> Tensor:
    """One call of the kernel, or of oneDNN, for x that is :func:`usable`; ``reversed_``: the gradient of the input, of which x is the
    sum's. Nothing is written down for autograd."""
    if convolution_onednn.takes(x, weight, doubled):
        if reversed_:
            return convolution_onednn.input_gradient(x, weight, factor)
        return convolution_onednn.forward(x, weight, bias, skip, factor, doubled)
    outputs = weight.shape[1 if reversed_ else 0]
    scale = 2 if doubled else 1
    shape = (x.shape[0], outputs, scale * x.shape[2], scale * x.shape[3])
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    packed, isa = packed_for(weight, reversed_)
    bias = None if bias is None else bias.detach().to(torch.float32).contiguous()
    _native.extension().convolution_cpu_forward(
        images(x), to_dlpack(packed), None if bias is None else to_dlpack(bias), None if skip is None else images(skip.to(x.dtype)),
        images(y), doubled, factor, torch.get_num_threads(), isa,
    )  # fmt: skip
    return y


def images(x: Tensor) -> Any:
    """[B, C, H, W] as kernels take it: in channels_last."""
    return to_dlpack(x.detach().contiguous(memory_format=torch.channels_last))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, factor: float, doubled: bool
    ) -> Tensor:
        return launch(x, weight, bias, skip, factor, doubled, False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, skip, ctx.factor, ctx.doubled = inputs
        ctx.types = None if bias is None else bias.dtype, None if skip is None else skip.dtype
        ctx.present = True, True, bias is not None, skip is not None
        ctx.halved = skip is not None and skip.shape[2] != output.shape[2]
        ctx.save_for_backward(weight, x if ctx.needs_input_grad[1] else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """In functions that can be differentiated again."""
        refuse_batches(grad)
        weight, x = ctx.saved_tensors
        bias_type, skip_type = ctx.types
        needs = asked(ctx, ctx.present)
        whole = needs[3] and not ctx.halved
        scaled = grad * ctx.factor if whole and ctx.factor != 1 else grad
        found: list[Tensor | None] = [None] * 6
        if needs[0]:
            of_x = input_gradient(grad, weight, ctx.factor)
            found[0] = 4 * F.avg_pool2d(of_x, 2) if ctx.doubled else of_x
        if needs[1]:
            found[1] = weight_gradient(x, weight, grad, ctx.factor, ctx.doubled)
        if needs[2]:
            found[2] = (grad.sum((0, 2, 3), dtype=torch.float32) * ctx.factor).to(bias_type)
        if needs[3]:
            found[3] = (F.avg_pool2d(grad, 2) * (4 * ctx.factor) if ctx.halved else scaled).to(skip_type)
        return tuple(found)


def input_gradient(grad: Tensor, weight: Tensor, factor: float) -> Tensor:
    """Of x [B, I, H, W], from the gradient [B, O, H, W] of :func:`convolution`'s sum and its weight [O, I, 3, 3]."""
    if not plain(grad) or not plain(weight):
        return F.conv_transpose2d(grad, weight.to(grad.dtype), padding=1) * factor
    if not differentiable(grad, weight):
        return launch(grad, weight, None, None, factor, False, True)
    out: Tensor = _InputGradient.apply(grad, weight, factor)  # type: ignore[no-untyped-call]
    return out


def weight_gradient(x: Tensor, weight: Tensor, grad: Tensor, factor: float = 1.0, doubled: bool = False) -> Tensor:
    """[O, I, 3, 3] in the type and layout of the weight: of :func:`convolution` of x, from the gradient of its sum; differentiable again.

    Args:
        x, weight, factor, doubled: as of :func:`convolution`.
        grad: [B, O, H, W].
    """
    if not differentiable(x, grad) and plain(grad) and usable(x, weight):
        if convolution_onednn.takes(x, weight, doubled):
            return convolution_onednn.weight_gradient(x, weight, grad, factor, doubled)
        return _launch_weight_gradient(x, weight, grad.to(x.dtype), factor, doubled)
    seen = F.interpolate(x, scale_factor=2, mode="nearest") if doubled else x
    found: Tensor = torch.ops.aten.convolution_backward(
        grad.to(x.dtype), seen, weight.to(x.dtype), None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (False, True, False)
    )[1]
    return found.to(weight.dtype) * factor


def _launch_weight_gradient(x: Tensor, weight: Tensor, grad: Tensor, factor: float, doubled: bool) -> Tensor:
    native, isa = _native.extension(), _native.cpu_isa()
    out = torch.empty_like(weight, dtype=torch.float32)
    scratch = torch.empty(native.convolution_weight_scratch(images(x), images(grad), doubled, isa))
    native.convolution_cpu_weight_gradient(
        images(x), images(grad), to_dlpack(scratch), to_dlpack(out), doubled, factor, torch.get_num_threads(), isa
    )
    return out


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(grad: Tensor, weight: Tensor, factor: float) -> Tensor:
        return launch(grad, weight, None, None, factor, False, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, weight, ctx.factor = inputs
        ctx.save_for_backward(weight, grad if ctx.needs_input_grad[1] else None)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """In the gradient of the sum this is linear, and its transpose is the convolution."""
        refuse_batches(upstream)
        weight, grad = ctx.saved_tensors
        of_grad = of_weight = None
        needs = asked(ctx, (True, True))
        x = upstream.contiguous(memory_format=torch.channels_last)
        if needs[0]:
            run = convolution if usable(x, weight) else convolution_reference
            of_grad = run(x, weight, None, None, ctx.factor)
        if needs[1]:
            of_weight = weight_gradient(x, weight, grad, ctx.factor)
        return of_grad, of_weight, None
