"""Fused attention as ONNX nodes: matrix products and a softmax, and the gradients of its three operands.

Each function takes the :class:`~rdc.export.translate.Translator` and the FX node, and returns names of results, as in ``layers.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rdc.errors import ConfigError

if TYPE_CHECKING:
    from rdc.export.translate import Translator

__all__ = ["ATTENTION", "hidden_values"]

_FORWARD = "aten._scaled_dot_product_flash_attention_for_cpu.default"
_BACKWARD = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
_SWAPPED = [0, 1, 3, 2]  # the last two of [B, heads, L, E]


def attention(t: Translator, node: Any) -> tuple[str, None]:
    """softmax(q k^T scale + mask) v; of the results only the first has a translation (what the others hold is computed again)."""
    q, k, v, dropout, causal = t.args(node, 5, default=0)
    return t.graph.op("MatMul", _probabilities(t, node, node.args[:2], (q, k), dropout, causal), v), None


def attention_backward(t: Translator, node: Any) -> tuple[str, str, str]:
    """With P the probabilities and g the gradient of out: dv = P^T g, dS = P (g v^T - sum(g out)), dq = dS k scale, dk = dS^T q scale.
    P is the forward pass's own node: equal nodes are made once."""
    grad, q, k, v, out, _, dropout, causal = t.args(node, 8, default=0)
    op = t.graph.op
    p = _probabilities(t, node, node.args[1:3], (q, k), dropout, causal)
    along = op("ReduceSum", op("Mul", grad, out), t.graph.ints(-1), keepdims=1)
    scores = op("Mul", p, op("Sub", op("MatMul", grad, op("Transpose", v, perm=_SWAPPED)), along))
    scores = op("Mul", scores, _scale(t, node, node.args[1]))
    return (
        op("MatMul", scores, k),
        op("MatMul", op("Transpose", scores, perm=_SWAPPED), q),
        op("MatMul", op("Transpose", p, perm=_SWAPPED), grad),
    )


def _probabilities(t: Translator, node: Any, sources: Any, operands: tuple[str, str], dropout: Any, causal: Any) -> str:
    if dropout:
        raise ConfigError("export: attention with dropout is not translated; expected a network in evaluation mode")
    op, mask = t.graph.op, node.kwargs.get("attn_mask")
    q, k = operands
    scores = op("MatMul", q, op("Transpose", k, perm=_SWAPPED))
    scores = op("Mul", scores, _scale(t, node, sources[0]))
    if causal:
        (rows, moving), (columns, too) = (t.dims(source)[2] for source in sources)
        if moving or too:
            raise ConfigError("export: causal attention over images is not translated")
        scores = op("Add", scores, np.triu(np.full((rows, columns), -np.inf, np.float32), 1))
    if mask is not None:
        scores = op("Add", scores, t.name(mask))
    return op("Softmax", scores, axis=-1)


def _scale(t: Translator, node: Any, query: Any) -> float:
    scale = node.kwargs.get("scale")
    return float(t.dims(query)[3][0] ** -0.5 if scale is None else scale)


def hidden_values(node: Any) -> int:
    """How many numbers for one image the translation holds that PyTorch's own call does not: the scores."""
    if str(node.target) not in (_FORWARD, _BACKWARD):
        return 0
    q, k = (source.meta["dims"] for source in node.args[str(node.target) == _BACKWARD :][:2])
    return int(q[0][0] * q[1][0] * q[2][0] * k[2][0])


#: aten overload -> function
ATTENTION: dict[str, Callable[[Translator, Any], Any]] = {_FORWARD: attention, _BACKWARD: attention_backward}
