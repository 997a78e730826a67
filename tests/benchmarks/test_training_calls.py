"""Studies and benchmarks train through rdc.training.run: no option strings for rdc.cli.main, no loop of their own."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COMMANDS = ("train", "distill")
#: modules that make a Trainer to measure one step; nothing is trained
STEPS = ("test_training.py", "studies/cifar10/speed.py")
#: modules that train networks of other libraries, which no recipe names
FOREIGN = ("studies/train_diffusers.py",)


def option_strings(source: str) -> list[int]:
    """Lines whose code says ``rdc train`` or ``rdc distill``: a list that begins with the command, or has it after "rdc", or a
    text that is split into words."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if any(map(says_training, sayings(node)))]


def sayings(node: ast.AST) -> list[list[object]]:
    """Words of a list, and of the texts that a call of ``split`` has; None for what is not written out."""
    if isinstance(node, ast.List):
        return [[item.value if isinstance(item, ast.Constant) else None for item in node.elts]]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "split":
        values = [item.value for item in (node.func.value, *node.args) if isinstance(item, ast.Constant)]
        return [[*value.split()] for value in values if isinstance(value, str)]
    return []


def says_training(words: list[object]) -> bool:
    return any(before == "rdc" and word in COMMANDS for before, word in pairwise(["rdc", *words]))


def trainers(source: str) -> list[int]:
    """Lines that make a ``Trainer``."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if ast.unparse(call.func).split(".")[-1] == "Trainer"]


def files() -> list[str]:
    return sorted(path.relative_to(BENCHMARKS).as_posix() for path in BENCHMARKS.rglob("*.py"))


def test_the_benchmarks_are_there() -> None:
    assert {"studies/secant.py", "studies/cifar10/parts.py", "studies/cifar10/training.py", *STEPS, *FOREIGN} <= set(
        files()
    )


@pytest.mark.parametrize("name", files())
def test_nothing_trains_but_by_a_recipe(name: str) -> None:
    source = (BENCHMARKS / name).read_text(encoding="utf-8")
    assert not option_strings(source), "expected rdc.training.run(recipe, data, out) in place of option strings"
    assert name in (*STEPS, *FOREIGN) or not trainers(source), "expected rdc.training.run in place of a Trainer"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('rdc_main(["train", "--out", x])', 1),
        ('start(run, ["distill", *words, "--init", begin])', 1),
        ('subprocess.run([sys.executable, "-m", "rdc", "train", *words])', 1),
        ('main("train --images 16".split())', 1),
        ('main(shlex.split("rdc distill --images 16"))', 1),
        ('main(["evaluate", "--model", "train"]); load(name, "train"); PARTS = ("train", "distill")', 0),
    ],
)
def test_option_strings_are_seen(source: str, count: int) -> None:
    assert len(option_strings(source)) == count
