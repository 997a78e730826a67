"""Inputs of a file that may be left out: of ONNX's type "optional", with the value that counts then beside them.

An initializer that is an input as well would do the same, but of those onnxruntime warns at every load: it may not fold them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdc.export.graph import Constants, Graph

__all__ = ["setting", "used_names"]


def setting(graph: Graph, constants: Constants, name: str, default: np.generic, adjustable: bool) -> tuple[str, Any]:
    """A scalar that the file's user may set.

    Args:
        graph: the main graph, before the nodes that take the value.
        constants: its own.
        name: of the input.
        default: the value where it is left out.
        adjustable: False: no input, always the default.

    Returns:
        Name of the value, and the input's description (None where there is none).
    """
    from onnx import helper

    own = f"{name}.default" if adjustable else name
    constants.initializers[own] = np.asarray(default)
    if not adjustable:
        return own, None
    kind = helper.np_dtype_to_tensor_dtype(default.dtype)

    def branch(what: str, operator: str, taken: str) -> Any:
        out = f"{name}.{what}"
        value = helper.make_tensor_value_info(out, kind, [])
        return helper.make_graph([helper.make_node(operator, [taken], [out])], f"{name}_{what}", [], [value])

    graph.nodes += [
        helper.make_node("OptionalHasElement", [name], [f"{name}.is_given"]),
        helper.make_node(
            "If",
            [f"{name}.is_given"],
            [f"{name}.used"],
            then_branch=branch("given", "OptionalGetElement", name),
            else_branch=branch("left_out", "Identity", own),
        ),
    ]
    of_one = helper.make_tensor_type_proto(kind, [])
    return f"{name}.used", helper.make_value_info(name, helper.make_optional_type_proto(of_one))


def used_names(nodes: list[Any]) -> set[str]:
    """Names that nodes take, those in the bodies of loops and branches included."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= used_names(list(attribute.g.node)) | {value.name for value in attribute.g.output}
    return found
