"""What to do where no model has the name that was given: which was meant, and how a model of one's own is named."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable
from pathlib import Path

from rdc.arguments.close_names import close_name
from rdc.errors import one_line

__all__ = ["OWN", "how_to_name"]

_MOST_BYTES = 1 << 20  # of a source file that is looked into
_MOST_FILES = 1000  # of a folder that is looked through
#: what to do with a file of weights
OWN = "for a network of your own: --model FILE.py:FUNCTION, a function without arguments that builds it and loads its weights"


def how_to_name(name: str, known: Iterable[str]) -> str:
    """The end of a message about a model that is not there, or that is no checkpoint; empty where nothing is known. Nothing is run.

    Args:
        name: what was given.
        known: names of models.
    """
    path = Path(name)
    try:
        if path.suffix == ".py":
            return f". {_functions(path)}"
        if path.suffix == ".onnx":
            return f". For an exported file: rdc predict --onnx {one_line(name)}"
        if path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl"):
            return f". If it is a diffusion model's: rdc convert {one_line(name)} DESTINATION; {OWN}"
        source, _, function = name.rpartition(".")
        if source and function.isidentifier() and Path(f"{source.replace('.', '/')}.py").is_file():
            return f" (did you mean '{one_line(source)}:{function}'?)"
        close = close_name(name, known) or _beside(path)
    except (OSError, ValueError):  # a name that no file can have
        return ""
    return f" (did you mean {one_line(close)!r}?)" if close else ""


def _functions(path: Path) -> str:
    """What a source file has that can make a model."""
    names: list[str] = []
    if path.is_file() and path.stat().st_size <= _MOST_BYTES:
        try:
            body = ast.parse(path.read_bytes()).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            body = []
        kinds = (ast.FunctionDef, ast.ClassDef)
        names = [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]
    example = ", ".join(f"{path}:{name}" for name in names[:5]) or f"{path}:FUNCTION"
    return f"Name a function in it, without arguments, that returns the model: {one_line(example, 400)}"


def _beside(path: Path) -> str | None:
    """The folder or checkpoint beside it whose name is most like it."""
    if not path.parent.is_dir():
        return None
    found = {file.name for file in itertools.islice(path.parent.iterdir(), _MOST_FILES)}
    names = {Path(name).stem if name.endswith((".json", ".safetensors")) else name for name in found}
    close = close_name(path.name, names)
    return str(path.parent / close) if close else None
