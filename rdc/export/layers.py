"""Convolutions, normalisation, pooling and attention as ONNX nodes, and their gradients with respect to the input.

Each function takes the :class:`~rdc.export.translate.Translator` and the FX node, and returns the name of the result (or names).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rdc.errors import ConfigError

if TYPE_CHECKING:
    from rdc.export.translate import Translator

__all__ = ["LAYERS"]


def convolution(t: Translator, node: Any) -> str:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = t.args(node, 9)
    attributes = {"strides": list(stride), "dilations": list(dilation), "group": groups, "pads": list(padding) * 2}
    if transposed:
        attributes["output_padding"] = list(output_padding)
    return t.graph.in_half("ConvTranspose" if transposed else "Conv", x, weight, bias, **attributes)


def convolution_backward(t: Translator, node: Any) -> tuple[str | None, ...]:
    """Gradient of the input. Of a convolution with stride 1 it is a convolution with the kernel turned round and its channels exchanged,
    for which runtimes have faster code than for a transposed convolution."""
    grad, x, weight, _, stride, padding, dilation, transposed, _, groups, wanted = t.args(node, 11)
    if not wanted[0] or any(wanted[1:]):
        raise ConfigError("export: expected frozen weights; a gradient of a weight was asked for")
    kernel = t.dims(node.args[2])[2:]
    common = {"strides": list(stride), "dilations": list(dilation), "group": groups, "pads": list(padding) * 2}
    if transposed:
        return t.graph.op("Conv", grad, weight, **common), None, None
    if tuple(stride) == (1, 1) and groups == 1:
        turned = t.graph.op("Transpose", weight, perm=[1, 0, 2, 3])
        if any(size > 1 for size, _ in kernel):
            far = np.iinfo(np.int64).min
            turned = t.graph.op(
                "Slice", turned, t.graph.ints(-1, -1), t.graph.ints(far, far), t.graph.ints(2, 3), t.graph.ints(-1, -1)
            )
        pads = [d * (size - 1) - p for (size, _), p, d in zip(kernel, padding, dilation, strict=True)]
        return t.graph.op("Conv", grad, turned, dilations=list(dilation), pads=pads * 2), None, None
    sizes, grown = t.dims(node.args[1])[2:], t.dims(node.args[0])[2:]
    extra = [
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for (size, _), (out, _), s, p, d, (k, _) in zip(sizes, grown, stride, padding, dilation, kernel, strict=True)
    ]
    return t.graph.op("ConvTranspose", grad, weight, output_padding=extra, **common), None, None


def addmm(t: Translator, node: Any) -> str:
    bias, x, weight = t.args(node, 3)
    if node.kwargs:
        raise ConfigError(f"export: addmm with {dict(node.kwargs)} is not translated")
    return t.graph.op("Gemm", x, weight, bias)


def matmul(t: Translator, node: Any) -> str:
    return t.graph.op("MatMul", *t.args(node, 2))


def group_norm(t: Translator, node: Any) -> tuple[str, str, str]:
    """(x - mean) / deviation over each group, then scale and shift of each channel; float32. By LayerNormalization, whose scale is one."""
    x, weight, bias, _, channels, _, groups, eps = t.args(node, 8)
    dims = t.dims(node.args[0])
    inner = int(np.prod([size for size, _ in dims[1:]])) // groups
    folded = t.graph.reshape(x, [dims[0], (groups, False), (inner, False)])
    one = t.graph.value(np.ones(inner, np.float32))
    normed, mean, rstd = t.graph.ops("LayerNormalization", folded, one, outputs=3, axis=-1, epsilon=eps)
    t.graph.notes[mean] = normed
    out = t.graph.reshape(normed, dims)
    column = [(channels, False)] + [(1, False)] * (len(dims) - 2)
    if weight is not None:
        out = t.graph.op("Mul", out, t.graph.reshape(weight, column))
    if bias is not None:
        out = t.graph.op("Add", out, t.graph.reshape(bias, column))
    return out, mean, rstd


def group_norm_backward(t: Translator, node: Any) -> tuple[str | None, ...]:
    """With z the normalised input and g the gradient that reaches it: (g - mean(g) - z mean(g z)) / deviation."""
    grad, _, mean, rstd, weight, _, channels, _, groups, wanted = t.args(node, 10)
    if not wanted[0] or any(wanted[1:]):
        raise ConfigError("export: expected frozen weights; a gradient of a weight was asked for")
    dims, op = t.dims(node.args[1]), t.graph.op
    if weight is not None:
        column = [(channels, False)] + [(1, False)] * (len(dims) - 2)
        grad = op("Mul", grad, t.graph.reshape(weight, column))
    inner = int(np.prod([size for size, _ in dims[1:]])) // groups
    g = t.graph.reshape(grad, [dims[0], (groups, False), (inner, False)])
    return t.graph.reshape(_centred(t, g, mean, rstd, [-1]), dims), None, None


def layer_norm(t: Translator, node: Any) -> tuple[str, str, str]:
    """(x - mean) / deviation over the last dimensions, then scale and shift of each of their places; float32."""
    x, shape, weight, bias, eps = t.args(node, 5)
    one = t.graph.value(np.ones(shape, np.float32))
    out, mean, rstd = t.graph.ops("LayerNormalization", x, one, outputs=3, axis=-len(shape), epsilon=eps)
    t.graph.notes[mean] = out
    if weight is not None:
        out = t.graph.op("Mul", out, weight)
    if bias is not None:
        out = t.graph.op("Add", out, bias)
    return out, mean, rstd


def layer_norm_backward(t: Translator, node: Any) -> tuple[str | None, ...]:
    """As of a group: (g - mean(g) - z mean(g z)) / deviation."""
    grad, _, shape, mean, rstd, weight, _, wanted = t.args(node, 8)
    if not wanted[0] or any(wanted[1:]):
        raise ConfigError("export: expected frozen weights; a gradient of a weight was asked for")
    g = grad if weight is None else t.graph.op("Mul", grad, weight)
    return _centred(t, g, mean, rstd, [-1 - place for place in range(len(shape))]), None, None


def _centred(t: Translator, g: str, mean: str, rstd: str, axes: list[int]) -> str:
    """(g - mean(g) - z mean(g z)) rstd, z the normalised input that belongs to ``mean``."""
    z, op, over = t.graph.notes[mean], t.graph.op, t.graph.ints(*axes)
    along = op("Mul", z, op("ReduceMean", op("Mul", g, z), over, keepdims=1))
    centred = op("Sub", op("Sub", g, op("ReduceMean", g, over, keepdims=1)), along)
    return op("Mul", centred, rstd)


def silu(t: Translator, node: Any) -> str:
    (x,) = t.args(node, 1)
    return t.graph.op("Mul", x, t.graph.op("Sigmoid", x))


def silu_backward(t: Translator, node: Any) -> str:
    grad, x = t.args(node, 2)
    op = t.graph.op
    s = op("Sigmoid", x)
    slope = op("Mul", s, op("Add", op("Mul", x, op("Sub", 1.0, s)), 1.0))
    return op("Mul", grad, slope)


def mish(t: Translator, node: Any) -> str:
    """x tanh(softplus(x))."""
    (x,) = t.args(node, 1)
    return t.graph.op("Mul", x, t.graph.op("Tanh", t.graph.op("Softplus", x)))


def mish_backward(t: Translator, node: Any) -> str:
    """With h = tanh(softplus(x)): h + x (1 - h^2) sigmoid(x)."""
    grad, x = t.args(node, 2)
    op = t.graph.op
    h = op("Tanh", op("Softplus", x))
    slope = op("Add", h, op("Mul", op("Mul", x, op("Sub", 1.0, op("Mul", h, h))), op("Sigmoid", x)))
    return op("Mul", grad, slope)


def softmax(t: Translator, node: Any) -> str:
    x, dim, _ = t.args(node, 3)
    return t.graph.op("Softmax", x, axis=dim)


def safe_softmax(t: Translator, node: Any) -> str:
    """Zeros where all that is looked at is minus infinity (a row of attention that is masked altogether)."""
    x, dim = t.args(node, 2)
    op, lowest = t.graph.op, float(np.finfo(np.float32).min)
    some = op("GreaterOrEqual", op("ReduceMax", x, t.graph.ints(dim), keepdims=1), lowest)
    return op("Where", some, op("Softmax", x, axis=dim), 0.0)


def softmax_backward(t: Translator, node: Any) -> str:
    grad, out, dim, _ = t.args(node, 4)
    op = t.graph.op
    product = op("Mul", grad, out)
    return op("Sub", product, op("Mul", out, op("ReduceSum", product, t.graph.ints(dim), keepdims=1)))


def _two_by_two(t: Translator, node: Any, first: int) -> None:
    kernel, stride, padding = t.args(node, first + 3)[first:]
    if list(kernel) != [2, 2] or list(stride or kernel) != [2, 2] or any(padding or []):
        raise ConfigError(f"export: expected 2 x 2 average pooling without padding; got {node.args[first:]}")


def avg_pool(t: Translator, node: Any) -> str:
    _two_by_two(t, node, 1)
    return t.graph.op("AveragePool", t.args(node, 1)[0], kernel_shape=[2, 2], strides=[2, 2])


def avg_pool_backward(t: Translator, node: Any) -> str:
    """A quarter of the gradient to each of four pixels; nearest-neighbour growth written as expand and reshape."""
    _two_by_two(t, node, 2)
    batch, channels, height, width = t.dims(node.args[0])
    one = (1, False)
    spread = t.graph.reshape(t.args(node, 1)[0], [batch, channels, height, one, width, one])
    spread = t.graph.op("Expand", spread, t.graph.ints(1, 1, 1, 2, 1, 2))
    return t.graph.op("Mul", t.graph.reshape(spread, t.dims(node)), 0.25)


def pixel_unshuffle(t: Translator, node: Any) -> str:
    x, r = t.args(node, 2)
    *before, (channels, _), (height, _), (width, _) = t.dims(node.args[0])
    return _regroup(t, node, x, before, (channels, height // r, r, width // r, r), (0, 2, 4, 1, 3))


def pixel_shuffle(t: Translator, node: Any) -> str:
    x, r = t.args(node, 2)
    *before, (channels, _), (height, _), (width, _) = t.dims(node.args[0])
    return _regroup(t, node, x, before, (channels // r**2, r, r, height, width), (0, 3, 1, 4, 2))


def _regroup(t: Translator, node: Any, x: str, before: list[Any], cut: tuple[int, ...], order: tuple[int, ...]) -> str:
    """Cut the last three dimensions into five, exchange these, and join them to the node's shape."""
    x = t.graph.reshape(x, before + [(size, False) for size in cut])
    perm = [*range(len(before)), *(len(before) + place for place in order)]
    return t.graph.reshape(t.graph.op("Transpose", x, perm=perm), t.dims(node))


#: aten overload -> function
LAYERS: dict[str, Callable[[Translator, Any], Any]] = {
    "aten.convolution.default": convolution,
    "aten.convolution_backward.default": convolution_backward,
    "aten.addmm.default": addmm,
    "aten.bmm.default": matmul,
    "aten.mm.default": matmul,
    "aten.mv.default": matmul,
    "aten.native_group_norm.default": group_norm,
    "aten.native_group_norm_backward.default": group_norm_backward,
    "aten.native_layer_norm.default": layer_norm,
    "aten.native_layer_norm_backward.default": layer_norm_backward,
    "aten.silu.default": silu,
    "aten.silu_backward.default": silu_backward,
    "aten.mish.default": mish,
    "aten.mish_backward.default": mish_backward,
    "aten._softmax.default": softmax,
    "aten._safe_softmax.default": safe_softmax,
    "aten._softmax_backward_data.default": softmax_backward,
    "aten.avg_pool2d.default": avg_pool,
    "aten.avg_pool2d_backward.default": avg_pool_backward,
    "aten.pixel_unshuffle.default": pixel_unshuffle,
    "aten.pixel_shuffle.default": pixel_shuffle,
}
