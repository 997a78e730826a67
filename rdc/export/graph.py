"""An ONNX graph under construction: nodes, and the constants that several graphs share.

Whatever depends on constants only goes into :class:`Constants`, which the main graph holds once; the body of a Loop
refers to it by name, so that weights are stored once and what is derived from them is computed once (and folded by
the runtime when it loads the file).
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["OPSET", "Constants", "Graph"]

Input = str | float | int | np.ndarray | np.floating[Any]

#: ONNX operator set that is written (December 2022), and the file format version that goes with it
OPSET, IR_VERSION = 18, 8


class Constants:
    """Initializers and the nodes that depend on nothing else.

    Args:
        half: store weights as float16.
    """

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self.initializers: dict[str, np.ndarray] = {}
        self.nodes: list[Any] = []
        self.names: set[str] = set()
        self.stored: dict[str, str] = {}  # float32 name -> float16 name
        self._seen: dict[tuple[Any, ...], str] = {}
        self._made: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._count = 0

    def fresh(self, stem: str) -> str:
        """A name not used before."""
        self._count += 1
        return f"{stem}_{self._count}"

    def array(self, value: np.ndarray, name: str | None = None, weight: bool = False) -> str:
        """Name of an initializer with this value; the same value is stored once.

        Args:
            value: any array.
            name: what to call it (the first time).
            weight: a weight of the network: stored as float16 if the constants are ``half``.
        """
        value = np.asarray(value, order="C")
        key = (value.dtype.str, value.shape, value.tobytes(), weight)
        if key in self._seen:
            return self._seen[key]
        name = name or self.fresh("c")
        if weight and self.half and value.dtype == np.float32:
            stored = f"{name}.half"
            self.initializers[stored] = value.astype(np.float16)
            self.names.add(stored)
            (out,) = self.node(Graph(self), "Cast", (stored,), 1, {"to": 1}, name)
            self.stored[out] = stored
        else:
            self.initializers[name], out = value, name
            self.names.add(name)
        self._seen[key] = out
        return out

    def node(
        self,
        graph: Graph,
        kind: str,
        inputs: tuple[str, ...],
        outputs: int,
        attributes: dict[str, Any],
        name: str | None,
    ) -> tuple[str, ...]:
        """Add a node to ``graph``, or to the constants if it depends on nothing else; equal nodes are made once."""
        from onnx import helper

        constant = all(not i or i in self.names for i in inputs)
        made = self._made if constant else graph.made
        key = (kind, inputs, outputs, repr(sorted(attributes.items())))
        if key not in made:
            outs = (name,) if name else tuple(self.fresh(kind.lower()) for _ in range(outputs))
            (self.nodes if constant else graph.nodes).append(
                helper.make_node(kind, list(inputs), list(outs), **attributes)
            )
            if constant:
                self.names.update(outs)
            made[key] = outs
        return made[key]


class Graph:
    """Nodes in order. ``batch`` names the int64 [1] tensor that holds the number of images N.

    Args:
        constants: shared with the other graphs of the file.
        half: compute convolutions and matrix products of weights in float16 (everything else in float32).
    """

    def __init__(self, constants: Constants, half: bool = False) -> None:
        self.constants, self.half = constants, half
        self.nodes: list[Any] = []
        self.made: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self.batch = ""
        self.notes: dict[str, Any] = {}  # what a layer's gradient takes over from its forward pass

    def op(self, kind: str, *inputs: Input, **attributes: Any) -> str:
        """Add a node of one output; returns its name.

        Args:
            kind: ONNX operator.
            inputs: names ("" for an input left out), or values: numbers become float32, arrays stay what they are.
            attributes: of the operator.
        """
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: Input, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """The same for a node of so many outputs; returns their names."""
        names = tuple(self.value(i) for i in inputs)
        return self.constants.node(self, kind, names, outputs, attributes, None)

    def value(self, value: Input) -> str:
        """Name of a value."""
        if isinstance(value, str):
            return value
        return self.constants.array(np.asarray(value, None if isinstance(value, np.ndarray) else np.float32))

    def ints(self, *values: int) -> str:
        """Name of an int64 vector."""
        return self.constants.array(np.array(values, np.int64))

    def shape(self, dims: list[tuple[int, bool]]) -> str:
        """Name of a shape: each dimension is (size, False) or (c, True) for c * N."""
        if not any(dynamic for _, dynamic in dims):
            return self.ints(*(size for size, _ in dims))
        parts = [
            self.op("Mul", self.batch, np.array([size], np.int64)) if dynamic else self.ints(size)
            for size, dynamic in dims
        ]
        return self.op("Concat", *parts, axis=0)

    def reshape(self, x: str, dims: list[tuple[int, bool]]) -> str:
        """Reshape; the one dimension that depends on N is left to the runtime."""
        moving = sum(dynamic for _, dynamic in dims)
        if moving > 1:
            return self.op("Reshape", x, self.shape(dims))
        return self.op("Reshape", x, self.ints(*(-1 if dynamic else size for size, dynamic in dims)))

    def in_half(self, kind: str, x: str, weight: str, bias: str | None, **attributes: Any) -> str:
        """``kind(x, weight, bias)``, in float16 where this graph is ``half`` and the weight is stored so."""
        stored = self.constants.stored
        if self.half and weight in stored and (bias is None or bias in stored):
            x = self.op("Cast", x, to=10)
            more = () if bias is None else (stored[bias],)
            return self.op("Cast", self.op(kind, x, stored[weight], *more, **attributes), to=1)
        return self.op(kind, x, weight, *(() if bias is None else (bias,)), **attributes)
