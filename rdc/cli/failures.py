"""What the command line says, in one line, about an exception that reaches its edge; and the exit status."""

from __future__ import annotations

import argparse
import traceback
from pathlib import Path

from rdc.errors import RdcError, one_line

__all__ = ["BAD", "BUG", "explain", "words"]

BAD = 2  #: exit status: wrong use, bad input, or the system said no
BUG = 70  #: exit status: a defect of rdc

_PACKAGE = Path(__file__).resolve().parent.parent
_EXTRAS = "robust-diffusion-classifier"
#: module -> what pip calls it, where that is another name
_PIP = {"PIL": "pillow", "onnx": f"{_EXTRAS}[onnx]", "onnxruntime": f"{_EXTRAS}[onnx]", "numba": f"{_EXTRAS}[numba]"}
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED")
#: option (as argparse stores it) -> as it is written: what a command without memory may lower
_SIZES = {"batch": "--batch", "batch_size": "--batch-size", "memory_mb": "--memory-mb", "per_class": "--per-class"}


def explain(error: BaseException, args: argparse.Namespace | None = None) -> tuple[str, int]:
    """What to print, and the exit status.

    Args:
        error: rdc's own, the system's, or any other.
        args: the parsed options, where it came that far.

    Returns:
        Text of one line (and the details of an :class:`RdcError`) and 2; for a defect of rdc 70.
    """
    if isinstance(error, RdcError):
        return f"rdc: error: {error}", BAD
    if isinstance(error, MemoryError) or _out_of_memory(error):
        lower = [written for name, written in _SIZES.items() if hasattr(args, name)]
        advice = f"; lower {' or '.join(lower)}" if lower else "; close other programs or use a smaller file"
        return f"rdc: error: not enough memory ({words(error, 300)}){advice}", BAD
    if isinstance(error, ImportError) and not _ours(error):
        return f"rdc: error: {_missing(error)}", BAD
    if isinstance(error, OSError):
        return f"rdc: error: {words(error)}", BAD
    if isinstance(error, SystemExit):  # of a model's or a library's code
        return f"rdc: error: the code that ran ended the program (SystemExit: {one_line(error.code, 300)})", BAD
    return (
        f"rdc: bug: {type(error).__name__}: {words(error, 500)}{_place(error)}; please report it, RDC_DEBUG=1 shows the traceback",
        BUG,
    )


def words(error: BaseException, limit: int = 1500) -> str:
    """An exception's text as one line; of the system's ones the file and the reason."""
    if isinstance(error, OSError) and error.strerror:
        names = (name for name in (error.filename, error.filename2) if name is not None)
        return ": ".join([*(one_line(_text(name), 400) or "''" for name in names), one_line(error.strerror, limit)])
    return one_line(error, limit) or type(error).__name__


def _text(name: object) -> object:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


def _out_of_memory(error: BaseException) -> bool:
    """torch says so by a class (on a GPU) or by words (on a CPU)."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error)[:2000] for text in _NO_MEMORY)


def _ours(error: ImportError) -> bool:
    """A module of rdc is missing, or a name in one: no package would help."""
    return (error.name or "").partition(".")[0] == "rdc"


def _missing(error: ImportError) -> str:
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not name:
        return f"{one_line(name) or 'a package'} cannot be imported ({words(error, 500)}); install it again"
    known = "; `rdc predict` classifies without it" if name == "torch" else ""
    return f"{one_line(name)} is not installed: pip install {_PIP.get(name, one_line(name))}{known}"


def _place(error: BaseException) -> str:
    """`` (rdc/evaluation/batch.py, line 12)``: the innermost line of rdc."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if _PACKAGE in path.parents:
            return f" (rdc/{path.relative_to(_PACKAGE).as_posix()}, line {frame.lineno})"
    return ""
