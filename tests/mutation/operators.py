"""Mutants of a module: one small change of its source each.

The operators are cosmic-ray's (https://pypi.org/project/cosmic-ray), but for those that need arguments, and two of our own: a
statement left out, and a number that is no integer changed by a tenth (cosmic-ray adds and takes away 1). Nothing is changed
in annotations, docstrings and ``__all__``: no run of the program depends on them.
"""

from __future__ import annotations

import ast
import dataclasses
import random
import re
from pathlib import Path

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast, is_number
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.operators.operator import Operator
from parso.python import tree

__all__ = ["Mutant", "mutants", "mutated", "sample"]

#: == for ``is`` and the reverse: the same for None, for small integers and for texts
_IDENTITY = re.compile(r"Comparison.*(_(Eq|NotEq|Lt|LtE|Gt|GtE)_(Is|IsNot)|_Is_Eq|_IsNot_NotEq)$")
_LEFT_OUT = ("core/VariableReplacer", "core/VariableInserter", "core/NoOp")


class DropStatement(Operator):
    """A statement that does something (a call, an assignment to a part or in place, a raise) does nothing."""

    def mutation_positions(self, node):
        if node.type == "simple_stmt" and self._acts(node.children[0]):
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        word = tree.Keyword("pass", node.start_pos, prefix=node.get_first_leaf().prefix)
        return tree.PythonNode("simple_stmt", [word, tree.Newline("\n", node.start_pos)])

    @classmethod
    def examples(cls):
        return ()

    @staticmethod
    def _acts(node) -> bool:
        if node.type in ("raise_stmt", "assert_stmt"):
            return True
        if node.type in ("atom_expr", "power"):  # a call
            return True
        if node.type != "expr_stmt":
            return False
        changed = node.children[0].type in ("atom_expr", "power")  # x.y = ..., x[y] = ...
        return changed or node.children[1].type == "operator" and node.children[1].value != "="


class ChangeFraction(Operator):
    """0.9 -> 0.99 and 0.81."""

    def mutation_positions(self, node):
        if is_number(node) and isinstance(value := ast.literal_eval(node.value), float) and value:
            for _ in range(2):
                yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        value = ast.literal_eval(node.value) * (1.1, 0.9)[index]
        return tree.Number(f"{node.prefix}{value!r}", node.start_pos)

    @classmethod
    def examples(cls):
        return ()


_OWN = {"DropStatement": DropStatement, "ChangeFraction": ChangeFraction}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: the ``occurrence``-th place that ``operator`` finds in ``module`` (a path from the repository's root)."""

    module: str
    operator: str
    occurrence: int
    line: int
    column: int

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line}:{self.column} {self.operator.removeprefix('core/')} {self.occurrence}"


def _operators() -> dict[str, Operator]:
    names = [
        name for name in cosmic_ray.plugins.operator_names() if name not in _LEFT_OUT and not _IDENTITY.search(name)
    ]
    return {name: cosmic_ray.plugins.get_operator(name)() for name in sorted(names)} | {
        name: kind() for name, kind in _OWN.items()
    }


def _spared(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where nothing is changed: annotations and ``__all__``."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST | None] = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parts.append(node.returns)
        elif isinstance(node, (ast.arg, ast.AnnAssign)):
            parts.append(node.annotation)
        elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            parts.append(node)
        spans += [((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)) for part in parts if part]
    return spans


def mutants(root: Path, module: str) -> list[Mutant]:
    """Every mutant of one module."""
    source = (root / module).read_text()
    spared, found = _spared(source), []
    counts = dict.fromkeys(operators := _operators(), 0)
    for node in ast_nodes(get_ast(source)):
        for name, operator in operators.items():
            for start, _ in operator.mutation_positions(node):
                if not any(begin <= start < end for begin, end in spared):
                    found.append(Mutant(module, name, counts[name], *start))
                counts[name] += 1
    return found


def mutated(root: Path, mutant: Mutant) -> str:
    """The module's source with the change made."""
    source = (root / mutant.module).read_text()
    changed = MutationVisitor.mutate_code(source, _operators()[mutant.operator], mutant.occurrence)
    if changed is None or changed == source:
        raise ValueError(f"{mutant.name}: no such change")
    return changed


def sample(root: Path, modules: list[str], count: int, seed: int) -> list[Mutant]:
    """``count`` mutants: a place of any module is drawn first, then a change of it, so that ``a < b`` counts as often as ``a``."""
    places: dict[tuple[str, int, int], list[Mutant]] = {}
    for module in modules:
        for mutant in mutants(root, module):
            places.setdefault((mutant.module, mutant.line, mutant.column), []).append(mutant)
    draw, order = random.Random(seed), sorted(places)
    draw.shuffle(order)
    return [draw.choice(places[place]) for place in order][:count]  # fewer are the first of more
