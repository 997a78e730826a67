"""From a traced PyTorch function to ONNX nodes.

``make_fx`` records a function, the gradients that it takes included, as a list of aten calls. There are about sixty
kinds in all networks of rdc; ``elementwise.py``, ``layers.py``, ``attention.py`` and ``resizing.py`` say what each is
in ONNX. The function is recorded twice, with two batch sizes: what differs between the two recordings must be a
multiple of N, everything else is a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.errors import ConfigError
from rdc.export.attention import ATTENTION, hidden_values
from rdc.export.elementwise import ELEMENTWISE
from rdc.export.graph import Graph
from rdc.export.layers import LAYERS
from rdc.export.resizing import RESIZING

__all__ = ["BATCHES", "Translator", "peak_bytes", "trace", "translate"]

#: batch sizes of the two recordings
BATCHES = (3, 5)
#: constants of at most so many values are computed when the file is written
_FOLDED = 4096


#: calls that may take N as an argument: their translations look at shapes instead
_SIZED = {
    f"aten.{name}"
    for name in (
        "view.default", "_unsafe_view.default", "reshape.default", "expand.default", "repeat.default", "new_zeros.default",
        "zeros.default", "full.default", "new_full.default", "native_group_norm.default", "native_group_norm_backward.default",
        "slice.Tensor", "slice_backward.default", "select_backward.default",
    )
} | {name for name in RESIZING if "backward" in name}  # fmt: skip

_TABLES = (ELEMENTWISE, LAYERS, ATTENTION, RESIZING)


def trace(function: Callable[..., Any], examples: Callable[[int], Sequence[Tensor]]) -> torch.fx.GraphModule:
    """Record ``function``, the gradients inside included.

    Args:
        function: of tensors.
        examples: batch size -> its arguments.

    Returns:
        The recording; each call's ``meta["dims"]`` is its shape: (size, False) or (c, True) for c * N.

    Raises:
        ConfigError: the two recordings differ by more than multiples of the batch size.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    traced, twin = (
        make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples(batch)) for batch in BATCHES
    )
    for recording in (traced, twin):
        recording.graph.eliminate_dead_code()
    pairs = list(zip(traced.graph.nodes, twin.graph.nodes, strict=True))
    for node, other in pairs:
        if node.op != other.op or str(node.target) != str(other.target) and node.op == "call_function":
            raise ConfigError(
                f"export: expected the same calls for any batch size; got {node.target} and {other.target}"
            )
        node.meta["twin"] = other
        value, again = node.meta.get("val"), other.meta.get("val")
        if isinstance(value, Tensor):
            node.meta["dims"] = [_size(a, b) for a, b in zip(value.shape, again.shape, strict=True)]
        if node.op == "call_function" and str(node.target) not in _SIZED and _numbers(node) != _numbers(other):
            raise ConfigError(f"export: {node.target} takes the batch size as a number; this is not translated")
    return traced


def _size(first: int, second: int) -> tuple[int, bool]:
    if first == second:
        return int(first), False
    factor = first // BATCHES[0]
    if (first, second) != (factor * BATCHES[0], factor * BATCHES[1]):
        raise ConfigError(
            f"export: expected dimensions that are numbers or multiples of N; got {first} and {second} for N = {BATCHES}"
        )
    return factor, True


def _numbers(node: Any) -> list[Any]:
    found: list[Any] = []
    torch.fx.node.map_aggregate(
        (node.args, dict(node.kwargs)), lambda value: found.append(value) if isinstance(value, (int, float)) else None
    )
    return found


def peak_bytes(traced: torch.fx.GraphModule) -> int:
    """Most bytes alive at once for one image when the calls run in order; what depends on weights only is left out.
    An estimate: a translation may need further buffers, so twice what the recording needs is assumed."""
    last: dict[Any, Any] = {}
    for node in traced.graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    ends: dict[Any, list[Any]] = {}
    for source, node in last.items():
        ends.setdefault(node, []).append(source)
    alive, now, most = {}, 0, 0
    for node in traced.graph.nodes:
        dims = node.meta.get("dims", []) if node.op != "get_attr" else []
        if any(dynamic for _, dynamic in dims):
            alive[node] = 4 * int(np.prod([size for size, _ in dims]))
            now += alive[node]
        most = max(most, now + 4 * hidden_values(node))
        now -= sum(alive.pop(source, 0) for source in ends.get(node, []))
    return 2 * most


def translate(
    traced: torch.fx.GraphModule, graph: Graph, inputs: Sequence[str], weights: dict[int, str]
) -> tuple[str, ...]:
    """Append the nodes of ``traced`` to ``graph``.

    Args:
        traced: see :func:`trace`.
        graph: where to put them.
        inputs: names of the values of the function's arguments.
        weights: address of a network's parameter -> its name.

    Returns:
        Names of the function's results.

    Raises:
        ConfigError: the function calls something that has no translation yet.
    """
    return Translator(traced, graph, weights).run(inputs)


class Translator:
    """One function being translated. What ``elementwise.py`` and ``layers.py`` use: ``graph``, ``args``, ``dims``, ``number``."""

    def __init__(self, traced: torch.fx.GraphModule, graph: Graph, weights: dict[int, str]) -> None:
        self.traced, self.graph, self.weights = traced, graph, weights
        self.values: dict[Any, Any] = {}  # FX node -> name, tuple of names, or number
        self.known: dict[Any, Tensor] = {}  # FX node -> value, where it is a constant other than a weight

    def run(self, inputs: Sequence[str]) -> tuple[str, ...]:
        """Translate all nodes; returns the names of the results."""
        names = iter(inputs)
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(names)
            elif node.op == "get_attr":
                self._attribute(node)
            elif node.op == "output":
                results = node.args[0]
                results = results if isinstance(results, (tuple, list)) else (results,)
                return tuple(self._resolve(result) for result in results)
            else:
                self._call(node)
        raise AssertionError("a graph without output")

    def _attribute(self, node: Any) -> None:
        value: Any = self.traced
        for part in node.target.split("."):
            value = getattr(value, part)
        node.meta["dims"] = [(size, False) for size in value.shape]
        node.meta["dtype"] = value.dtype
        name = self.weights.get(value.data_ptr()) if value.numel() else None
        if name is None:
            self.known[node] = value.detach()
        else:
            self.values[node] = self.graph.constants.array(value.detach().cpu().contiguous().numpy(), name, weight=True)

    def _call(self, node: Any) -> None:
        target = str(node.target)
        if "getitem" in target:
            source, position = node.args
            if source in self.values and isinstance(self.values[source], tuple):
                self.values[node] = self.values[source][position]
            elif source in self.known:
                self.known[node] = self.known[source][position]
            return
        if self._fold(node):
            return
        translation = next((table[target] for table in _TABLES if target in table), None)
        if translation is None:
            raise ConfigError(
                f"export: {target} has no translation to ONNX yet (rdc/export/elementwise.py and its neighbours); this network uses it"
            )
        self.values[node] = translation(self, node)

    def _fold(self, node: Any) -> bool:
        """Compute what depends on constants only."""
        if not all(n in self.known for n in node.all_input_nodes) or _numbers(node) != _numbers(node.meta["twin"]):
            return False
        arguments = torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self.known[n])
        value = node.target(*arguments[0], **arguments[1])
        largest = value if isinstance(value, Tensor) else max(value, key=lambda v: v.numel())
        if largest.numel() > _FOLDED:
            return False
        self.known[node] = value
        return True

    # --- what translations ask for ----------------------------------------------------------------------------------
    def args(self, node: Any, count: int, default: Any = None) -> list[Any]:
        """The first ``count`` arguments: names of tensors, numbers, lists of these; ``default`` for those left out."""
        given = [self._resolve(value) for value in node.args[:count]]
        return given + [default] * (count - len(given))

    def name(self, node: Any) -> Any:
        """The name of one FX node's value."""
        return self._resolve(node)

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            if value in self.known:
                if value not in self.values:
                    array = self.known[value].detach().cpu().contiguous().numpy()
                    self.values[value] = self.graph.constants.array(array)
                return self.values[value]
            return self.values[value]
        if isinstance(value, (list, tuple)):
            return [self._resolve(v) for v in value]
        return value

    def dims(self, node: Any) -> list[tuple[int, bool]]:
        """Shape of a value: (size, False), or (c, True) for c * N."""
        dims: list[tuple[int, bool]] = node.meta["dims"]
        return dims

    def sizes(self, node: Any, position: int) -> list[tuple[int, bool]]:
        """The same for a list of sizes, argument number ``position``."""
        return [_size(a, b) for a, b in zip(node.args[position], node.meta["twin"].args[position], strict=True)]

    def dtype(self, node: Any) -> np.dtype:
        """numpy type of a value."""
        dtype = node.meta["dtype"] if "dtype" in node.meta else node.meta["val"].dtype
        return torch.empty(0, dtype=dtype).numpy().dtype

    def number(self, value: Any, like: Any) -> Any:
        """A number as a constant of the type of the FX node ``like``; names stay as they are."""
        return value if isinstance(value, str) else np.array(value, self.dtype(like))
