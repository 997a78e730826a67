"""Modules and functions of rdc stay short enough to be read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_OF_A_MODULE, MOST_OF_A_FUNCTION = 400, 60
#: written in one piece, and why
LONGER = {
    "rdc/certification/run.py: certify",  # half of it is its docstring
    "rdc/export/__init__.py: export_onnx",  # two thirds of it are keywords and what they mean
    "rdc/networks/diffusers_unet.py: DiffusersUNet.__init__",  # 24 options of UNet2DModel, a line each
    "rdc/ops/_triton_kernels.py: residuals",  # a kernel: Triton inlines what it calls, and values live in registers
}


def functions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, int]]:
    """Name and lines (signature, docstring and what is defined within included) of every function."""
    for child in ast.iter_child_nodes(node):
        name = inside
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{inside}.{child.name}".removeprefix(".")
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, child.end_lineno - child.lineno + 1
        yield from functions(child, name)


def long_functions(path: str, source: str) -> set[str]:
    return {f"{path}: {name}" for name, lines in functions(ast.parse(source)) if lines > MOST_OF_A_FUNCTION}


def sources() -> dict[str, str]:
    paths = sorted((ROOT / "rdc").rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_no_function_is_longer_but_those_named():
    assert set().union(*(long_functions(path, source) for path, source in sources().items())) == LONGER


def test_no_module_is_longer():
    lengths = {path: source.count("\n") for path, source in sources().items()}
    assert not {path: lines for path, lines in lengths.items() if lines > MOST_OF_A_MODULE}


def test_a_function_of_61_lines_is_found():
    lines = MOST_OF_A_FUNCTION * ["        x = 0"]
    source = "\n".join(["class A:", "    def long(self):", *lines])
    assert long_functions("a.py", source) == {"a.py: A.long"}
    assert not long_functions("a.py", source.removesuffix(lines[-1]))
