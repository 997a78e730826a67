"""Arithmetic, reductions and rearrangements as ONNX nodes; see ``layers.py`` for the form of the functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rdc.errors import ConfigError

if TYPE_CHECKING:
    from rdc.export.translate import Translator

__all__ = ["ELEMENTWISE"]


def _unary(kind: str) -> Callable[[Translator, Any], str]:
    return lambda t, node: t.graph.op(kind, t.args(node, 1)[0])


def _binary(kind: str, reverse: bool = False) -> Callable[[Translator, Any], str]:
    def translate(t: Translator, node: Any) -> str:
        a, b = t.args(node, 2)
        if node.kwargs.get("alpha", 1) != 1:
            b = t.graph.op("Mul", b, node.kwargs["alpha"])
        tensor = next(arg for arg, value in zip(node.args, (a, b), strict=False) if isinstance(value, str))
        a, b = t.number(a, tensor), t.number(b, tensor)
        return t.graph.op(kind, b, a) if reverse else t.graph.op(kind, a, b)

    return translate


def power(t: Translator, node: Any) -> str:
    base, exponent = t.args(node, 2)
    if exponent == 2:
        return t.graph.op("Mul", base, base)
    return t.graph.op("Pow", base, exponent)


def clamp(t: Translator, node: Any) -> str:
    x, low, high = t.args(node, 3)
    return t.graph.op("Clip", x, "" if low is None else low, *(() if high is None else (high,)))


def clamp_min(t: Translator, node: Any) -> str:
    x, low = t.args(node, 2)
    return t.graph.op("Max", x, low)


def where(t: Translator, node: Any) -> str:
    condition, a, b = t.args(node, 3)
    return t.graph.op("Where", condition, t.number(a, node), t.number(b, node))


def addcmul(t: Translator, node: Any) -> str:
    x, a, b = t.args(node, 3)
    product = t.graph.op("Mul", a, b)
    if node.kwargs.get("value", 1) != 1:
        product = t.graph.op("Mul", product, node.kwargs["value"])
    return t.graph.op("Add", x, product)


def gelu(t: Translator, node: Any) -> str:
    (x,) = t.args(node, 1)
    return t.graph.op("Mul", t.graph.op("Mul", x, 0.5), _gelu_step(t, node, x)[0])


def gelu_backward(t: Translator, node: Any) -> str:
    """With s(x) the step, x s(x) / 2 has the slope s(x) / 2 + x s'(x) / 2."""
    grad, x = t.args(node, 2)
    op = t.graph.op
    step, slope = _gelu_step(t, node, x)
    return op("Mul", grad, op("Mul", op("Add", step, op("Mul", x, slope)), 0.5))


def _gelu_step(t: Translator, node: Any, x: str) -> tuple[str, str]:
    """1 + erf(x / sqrt 2), or 1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)) (Hendrycks and Gimpel 2016); and its slope."""
    op = t.graph.op
    square = op("Mul", x, x)
    if node.kwargs.get("approximate", "none") == "none":
        slope = op("Mul", op("Exp", op("Mul", square, -0.5)), (2 / np.pi) ** 0.5)
        return op("Add", op("Erf", op("Mul", x, 0.5**0.5)), 1.0), slope
    root, cubic = (2 / np.pi) ** 0.5, 0.044715
    h = op("Tanh", op("Mul", op("Mul", x, op("Add", op("Mul", square, cubic), 1.0)), root))
    inner = op("Mul", op("Add", op("Mul", square, 3 * cubic), 1.0), root)
    return op("Add", h, 1.0), op("Mul", op("Sub", 1.0, op("Mul", h, h)), inner)


def tanh_backward(t: Translator, node: Any) -> str:
    grad, out = t.args(node, 2)
    return t.graph.op("Mul", grad, t.graph.op("Sub", 1.0, t.graph.op("Mul", out, out)))


def sigmoid_backward(t: Translator, node: Any) -> str:
    grad, out = t.args(node, 2)
    return t.graph.op("Mul", grad, t.graph.op("Mul", out, t.graph.op("Sub", 1.0, out)))


def threshold_backward(t: Translator, node: Any) -> str:
    """The gradient of ReLU: its upstream where the result is above the threshold."""
    grad, out, threshold = t.args(node, 3)
    above = t.graph.op("Greater", out, t.number(threshold, node))
    return t.graph.op("Where", above, grad, t.number(0, node))


def _reduce(kind: str) -> Callable[[Translator, Any], str]:
    def translate(t: Translator, node: Any) -> str:
        x, dims, keep = t.args(node, 3)
        dims = [dims] if isinstance(dims, int) else dims
        axes = () if not dims else (t.graph.ints(*dims),)
        return t.graph.op(kind, x, *axes, keepdims=int(bool(keep)))

    return translate


def sum_all(t: Translator, node: Any) -> str:
    return t.graph.op("ReduceSum", t.args(node, 1)[0], keepdims=0)


def reshape(t: Translator, node: Any) -> str:
    return t.graph.reshape(t.args(node, 1)[0], t.dims(node))


def same(t: Translator, node: Any) -> str:
    x: str = t.args(node, 1)[0]
    return x


def permute(t: Translator, node: Any) -> str:
    x, order = t.args(node, 2)
    rank = len(t.dims(node))
    return t.graph.op("Transpose", x, perm=[d % rank for d in order])


def transpose(t: Translator, node: Any) -> str:
    x, a, b = t.args(node, 3)
    order = list(range(len(t.dims(node))))
    order[a], order[b] = order[b], order[a]
    return t.graph.op("Transpose", x, perm=order)


def matrix_transpose(t: Translator, node: Any) -> str:
    return t.graph.op("Transpose", t.args(node, 1)[0], perm=[1, 0])


def expand(t: Translator, node: Any) -> str:
    x, before, after = t.args(node, 1)[0], t.dims(node.args[0]), t.dims(node)
    before = [(1, False)] * (len(after) - len(before)) + before
    return t.graph.op(
        "Expand", x, t.graph.shape([(1, False) if a == b else b for a, b in zip(before, after, strict=True)])
    )


def repeat(t: Translator, node: Any) -> str:
    x, before = t.args(node, 1)[0], t.dims(node.args[0])
    times = t.sizes(node, 1)
    if len(times) > len(before):
        x = t.graph.reshape(x, [(1, False)] * (len(times) - len(before)) + before)
    return t.graph.op("Tile", x, t.graph.shape(times))


def _filled(value: float | None, place: int = 0) -> Callable[[Translator, Any], str]:
    """A value everywhere; None: argument number ``place``."""

    def translate(t: Translator, node: Any) -> str:
        filling = node.args[place] if value is None else value
        if not isinstance(filling, (bool, int, float)) or value is None and filling != node.meta["twin"].args[place]:
            raise ConfigError(
                "export: filling with a value that is computed, or with the batch size, is not translated"
            )
        start = t.graph.value(np.full((1,) * max(1, len(t.dims(node))), filling, t.dtype(node)))
        return t.graph.op("Expand", start, t.graph.shape(t.dims(node)))

    return translate


def _in_place(translation: Callable[[Translator, Any], str]) -> Callable[[Translator, Any], str]:
    """A call that writes over its first argument, as older PyTorch's gradients do: a new value, where nobody else looks at the old one."""

    def translate(t: Translator, node: Any) -> str:
        if len(node.args[0].users) > 1:
            raise ConfigError(f"export: {node.target} changes a value that is used again; this is not translated")
        return translation(t, node)

    return translate


def cat(t: Translator, node: Any) -> str:
    parts, axis = t.args(node, 2, default=0)
    return t.graph.op("Concat", *parts, axis=axis)


def stack(t: Translator, node: Any) -> str:
    parts, axis = t.args(node, 2, default=0)
    axis %= len(t.dims(node))
    return t.graph.op("Concat", *(t.graph.op("Unsqueeze", part, t.graph.ints(axis)) for part in parts), axis=axis)


def unbind(t: Translator, node: Any) -> tuple[str, ...]:
    x, axis = t.args(node, 2, default=0)
    axis %= len(t.dims(node.args[0]))
    count, dynamic = t.dims(node.args[0])[axis]
    if dynamic:
        raise ConfigError("export: unbind over images is not translated")
    return tuple(t.graph.op("Gather", x, np.array(i, np.int64), axis=axis) for i in range(count))


def split(t: Translator, node: Any) -> tuple[str, ...]:
    x, size, axis = t.args(node, 3, default=0)
    whole, dynamic = t.dims(node.args[0])[axis]
    if dynamic:
        raise ConfigError("export: split over images is not translated")
    sizes = size if isinstance(size, (list, tuple)) else [min(size, whole - at) for at in range(0, whole, size)]
    return t.graph.ops("Split", x, t.graph.ints(*sizes), outputs=len(sizes), axis=axis)


def slice_(t: Translator, node: Any) -> str:
    x, axis, start, end, step = t.args(node, 5, default=None)
    axis, step = axis or 0, step or 1
    end = np.iinfo(np.int64).max if end is None else end
    if step == 1 and not start and t.dims(node) == t.dims(node.args[0]):
        return str(x)
    ints = t.graph.ints
    return t.graph.op("Slice", x, ints(start or 0), ints(end), ints(axis), ints(step))


def slice_backward(t: Translator, node: Any) -> str:
    """Zeros around the gradient."""
    grad, _, axis, start, _, step = t.args(node, 6)
    if step != 1:
        raise ConfigError(f"export: the gradient of a slice with step {step} is not translated")
    dims, (size, _) = t.dims(node), t.dims(node.args[0])[axis]
    whole, dynamic = dims[axis]
    if dims == t.dims(node.args[0]):
        return str(grad)
    if dynamic:
        raise ConfigError("export: slices of images are not translated")
    start = start + whole if start < 0 else start
    return _pad(t, grad, len(dims), axis, start, whole - start - size)


def select(t: Translator, node: Any) -> str:
    x, axis, index = t.args(node, 3)
    return t.graph.op("Gather", x, np.array(index, np.int64), axis=axis)


def select_backward(t: Translator, node: Any) -> str:
    """The gradient of ``select``: its upstream in the picked place, zeros elsewhere."""
    grad, _, axis, index = t.args(node, 4)
    dims = t.dims(node)
    axis %= len(dims)
    whole, dynamic = dims[axis]
    if dynamic:
        raise ConfigError("export: the gradient of picking one image is not translated")
    index %= whole
    grad = t.graph.op("Unsqueeze", grad, t.graph.ints(axis))
    return _pad(t, grad, len(dims), axis, index, whole - index - 1)


def _pad(t: Translator, x: str, rank: int, axis: int, before: int, after: int) -> str:
    pads = [0] * (2 * rank)
    pads[axis], pads[rank + axis] = before, after
    return t.graph.op("Pad", x, t.graph.ints(*pads))


def flip(t: Translator, node: Any) -> str:
    x, axes = t.args(node, 2)
    ints, count, far = t.graph.ints, len(axes), np.iinfo(np.int64).min
    return t.graph.op("Slice", x, ints(*[-1] * count), ints(*[far] * count), ints(*axes), ints(*[-1] * count))


def cast(t: Translator, node: Any) -> str:
    from onnx import helper

    return t.graph.op("Cast", t.args(node, 1)[0], to=helper.np_dtype_to_tensor_dtype(np.dtype(t.dtype(node))))


def index(t: Translator, node: Any) -> str:
    x, picks = t.args(node, 2)
    if len(picks) != 1:
        raise ConfigError("export: indexing by more than one tensor is not translated")
    return t.graph.op("Gather", x, picks[0], axis=0)


def constant_pad(t: Translator, node: Any) -> str:
    """Pads come as (before, after) of the last dimension, then of the one before it, ...; negative ones cut."""
    x, given = t.args(node, 2)
    if t.args(node, 3, default=0)[2] != 0:
        raise ConfigError("export: padding with another value than 0 is not translated")
    rank, pads = len(t.dims(node)), [0] * (2 * len(t.dims(node)))
    for place in range(len(given) // 2):
        pads[rank - 1 - place], pads[2 * rank - 1 - place] = given[2 * place], given[2 * place + 1]
    return t.graph.op("Pad", x, t.graph.ints(*pads))


def embedding(t: Translator, node: Any) -> str:
    table, rows = t.args(node, 2)
    return t.graph.op("Gather", table, rows, axis=0)


def bucketize(t: Translator, node: Any) -> str:
    """How many of the borders [M] lie below x [B]."""
    x, borders = t.args(node, 2)
    if node.kwargs.get("right", False):
        raise ConfigError("export: bucketize with right=True is not translated")
    op = t.graph.op
    below = op("Cast", op("Greater", op("Unsqueeze", x, t.graph.ints(-1)), borders), to=7)
    return op("ReduceSum", below, t.graph.ints(-1), keepdims=0)


#: aten overload -> function
ELEMENTWISE: dict[str, Callable[[Translator, Any], Any]] = {
    **{
        f"aten.{name}.default": _unary(kind)
        for name, kind in {
            "neg": "Neg", "abs": "Abs", "sign": "Sign", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "log": "Log", "exp": "Exp",
            "cos": "Cos", "sin": "Sin", "tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "round": "Round",
        }.items()
    },
    **{
        f"aten.{name}.{overload}": _binary(kind)
        for name, kind in {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}.items()
        for overload in ("Tensor", "Scalar")
    },
    **{
        f"aten.{name}.{overload}": _binary(kind)
        for name, kind in {"gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual"}.items()
        for overload in ("Tensor", "Scalar")
    },
    "aten.rsub.Scalar": _binary("Sub", reverse=True),
    "aten.minimum.default": _binary("Min"),
    "aten.maximum.default": _binary("Max"),
    "aten.pow.Tensor_Scalar": power,
    "aten.clamp.default": clamp,
    "aten.clamp_min.default": clamp_min,
    "aten.where.self": where,
    "aten.where.ScalarOther": where,
    "aten.where.ScalarSelf": where,
    "aten.where.Scalar": where,
    "aten.addcmul.default": addcmul,
    "aten.gelu.default": gelu,
    "aten.gelu_backward.default": gelu_backward,
    "aten.tanh_backward.default": tanh_backward,
    "aten.sigmoid_backward.default": sigmoid_backward,
    "aten.threshold_backward.default": threshold_backward,
    "aten.sum.dim_IntList": _reduce("ReduceSum"),
    "aten.mean.dim": _reduce("ReduceMean"),
    "aten.amax.default": _reduce("ReduceMax"),
    "aten.sum.default": sum_all,
    **dict.fromkeys(
        ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten.squeeze.dim", "aten.squeeze.dims",
         "aten.unsqueeze.default"),
        reshape,
    ),
    **dict.fromkeys(
        ("aten.detach.default", "aten.clone.default", "aten.alias.default", "aten.contiguous.default", "aten.lift_fresh_copy.default"),
        same,
    ),
    "aten.permute.default": permute,
    "aten.transpose.int": transpose,
    "aten.t.default": matrix_transpose,
    "aten.expand.default": expand,
    "aten.repeat.default": repeat,
    "aten.empty_like.default": _filled(0),
    "aten.fill_.Scalar": _in_place(_filled(None, 1)),
    "aten.add_.Tensor": _in_place(_binary("Add")),
    "aten.sub_.Tensor": _in_place(_binary("Sub")),
    "aten.mul_.Tensor": _in_place(_binary("Mul")),
    "aten.new_zeros.default": _filled(0),
    "aten.zeros.default": _filled(0),
    "aten.zeros_like.default": _filled(0),
    "aten.ones_like.default": _filled(1),
    "aten.full.default": _filled(None, 1),
    "aten.full_like.default": _filled(None, 1),
    "aten.new_full.default": _filled(None, 2),
    "aten.cat.default": cat,
    "aten.stack.default": stack,
    "aten.unbind.int": unbind,
    "aten.split.Tensor": split,
    "aten.split_with_sizes.default": split,
    "aten.slice.Tensor": slice_,
    "aten.slice_backward.default": slice_backward,
    "aten.select.int": select,
    "aten.select_backward.default": select_backward,
    "aten.flip.default": flip,
    "aten._to_copy.default": cast,
    "aten.index.Tensor": index,
    "aten.constant_pad_nd.default": constant_pad,
    "aten.embedding.default": embedding,
    "aten.bucketize.Tensor": bucketize,
}  # fmt: skip
