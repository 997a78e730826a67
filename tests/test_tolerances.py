"""Tolerances come from the one table, ``tests/tolerances.py``, where each has its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
TABLE = TESTS / "tolerances.py"
ARGUMENTS = {"rtol", "atol", "rel", "abs", "rel_tol", "abs_tol"}
SMALL = 0.01  # a number up to this, on the larger side of an inequality that is asserted, is a tolerance


def _numbers(node: ast.AST) -> Iterator[ast.Constant]:
    """Numbers of an expression but 0 (none at all) and indices."""
    if isinstance(node, ast.Constant):
        if type(node.value) in (int, float) and node.value:
            yield node
    elif isinstance(node, ast.IfExp):
        yield from [*_numbers(node.body), *_numbers(node.orelse)]
    elif not isinstance(node, ast.Subscript):
        for child in ast.iter_child_nodes(node):
            yield from _numbers(child)


def _small(node: ast.AST) -> Iterator[ast.Constant]:
    """Small fractions of an expression; 2**-8 is arithmetic."""
    if isinstance(node, ast.Constant):
        if type(node.value) is float and 0 < node.value <= SMALL:
            yield node
    elif not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)):
        for child in ast.iter_child_nodes(node):
            yield from _small(child)


def _slack(node: ast.AST) -> Iterator[ast.Constant]:
    """1e-9 of ``low * (1 - 1e-9)`` and of ``-1e-9``."""
    if isinstance(node, ast.UnaryOp):
        yield from _small(node.operand)
    for sum_ in ast.walk(node):
        if isinstance(sum_, ast.BinOp) and isinstance(sum_.op, ast.Add | ast.Sub):
            for term in (sum_.left, sum_.right):
                if isinstance(term, ast.Constant):
                    yield from _small(term)


def _of_comparison(node: ast.Compare) -> Iterator[ast.Constant]:
    terms = [node.left, *node.comparators]
    for place, operator in enumerate(node.ops):
        left, right = terms[place], terms[place + 1]
        if isinstance(operator, ast.Lt | ast.LtE):
            yield from [*_small(right), *_slack(left)]
        elif isinstance(operator, ast.Gt | ast.GtE):
            yield from _slack(right)


def literals(source: str) -> Iterator[ast.Constant]:
    """Tolerances that stand in a test as numbers."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg in ARGUMENTS and "sqrt(" not in ast.unparse(keyword.value):  # of a sample's size
                    yield from _numbers(keyword.value)
            if getattr(node.func, "id", "") == "close" and len(node.args) == 3:
                yield from _numbers(node.args[2])
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in ARGUMENTS:
                    yield from _numbers(value)
        elif isinstance(node, ast.Assert):
            for part in ast.walk(node.test):
                if isinstance(part, ast.Compare):
                    yield from _of_comparison(part)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("assert_close(a, b, rtol=1e-5, atol=0)", 1),
        ("assert a == approx(b, abs=2 * 1e-3 if c else 0.5)", 3),
        ("assert_close(a, b, rtol=FLOAT32_SUM, atol=FLOAT32_SUM * scale[1])", 0),
        ("assert allclose(a, b, **{'rtol': 1e-2})", 1),
        ("assert mean == approx(0.7, abs=4 * math.sqrt(variance / len(drawn)))", 0),
        ("close(a, b, 1e-9)", 1),
        ("close(a, b, FLOAT64_STEPS * 10)", 1),
        ("assert abs(a - b).max() < 1e-9 * b.max()", 1),
        ("assert 1 - 1e-5 < a < 1 + 3e-4", 2),
        ("assert (a >= -1e-12).all() and a >= low * (1 - 1e-9)", 2),
        ("assert b > 1e-3 and a < 0.5 and c <= 2**-8 * d", 0),
        ("if a < 1e-3: pass", 0),
    ],
)
def test_what_counts_as_a_tolerance(source: str, count: int) -> None:
    assert len(list(literals(source))) == count


def test_tolerances_stand_in_the_table_alone() -> None:
    wrong = [
        f"{path.relative_to(TESTS).as_posix()}:{found.lineno}: {found.value}"
        for path in sorted(TESTS.glob("**/*.py"))
        if path not in (TABLE, Path(__file__).resolve())
        for found in literals(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "take an entry of tests/tolerances.py, or add one with its reason"


def test_every_entry_has_a_reason_and_a_user() -> None:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    entries = [node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.Assign)]
    names = [entry.targets[0].id for entry in entries]
    assert len(names) == len(set(names)) and all(isinstance(entry.value, ast.Constant) for entry in entries)
    assert not [name for name, entry in zip(names, entries, strict=True) if "#: " not in lines[entry.lineno - 2][:3]]
    used = {
        node.id
        for path in TESTS.glob("**/*.py")
        if path != TABLE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name)
    }
    assert not [name for name in names if name not in used]
