"""Reading files that anybody may have made: bounds before memory is taken, one clear error whatever is wrong.

Every reader of rdc has one outer edge, :func:`reading`, and takes memory only after asking a :class:`Budget`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rdc.errors import RdcError, one_line

__all__ = ["EXPANSION", "FLOOR_BYTES", "Budget", "read_content", "reading", "regular_file"]

FLOOR_BYTES = 64 * 2**20  #: what any file may unpack to, however small it is
EXPANSION = 16  #: and beyond that, how many times its own size
_POINTER = b"version https://git-lfs.github.com/spec/"


class Budget:
    """What reading one file may take: ``max(floor, expansion * size of the file)`` bytes in all.

    Args:
        name: what to call the file in errors.
        size: its size in bytes.
        error: the class of errors.
        floor, expansion: see above.
    """

    def __init__(
        self, name: str, size: int, error: type[RdcError], *, floor: int = FLOOR_BYTES, expansion: float = EXPANSION
    ) -> None:
        self.name, self.size, self.error = name, size, error
        self.total = self.left = max(floor, int(expansion * size))

    def take(self, count: int, what: str) -> None:
        """Ask for ``count`` bytes before they are allocated.

        Args:
            count: bytes.
            what: for the error, such as ``"array images"``.

        Raises:
            RdcError: (of the class given) what is left of the budget is less.
        """
        if count > self.left:
            raise self.error(
                f"{self.name}: {what} asks for {count:,} bytes of memory; a file of {self.size:,} bytes may take "
                f"{self.total:,}, of which {self.left:,} are left. It is damaged, or made to fill the memory"
            )
        self.left -= count


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], error: type[RdcError], expected: str, advice: str = "") -> Iterator[None]:
    """The outer edge of a reader: whatever goes wrong inside comes out as one ``error`` of one line.

    rdc's own errors pass unchanged; KeyboardInterrupt and SystemExit too.

    Args:
        path: what is read, for the message.
        error: the class to raise.
        expected: what the file should have been, such as ``"a NumPy zip archive (.npz)"``.
        advice: what to do about it.
    """
    name = one_line(os.fspath(path), 400)
    try:
        yield
    except RdcError:
        raise
    except FileNotFoundError as problem:
        raise error(f"{name}: no such file; expected {expected}") from problem
    except MemoryError as problem:
        raise error(f"{name}: not enough memory to read it as {expected}") from problem
    except OSError as problem:
        if problem.strerror is None:  # not the system's, but a library's word for damage
            raise error(_unreadable(name, expected, problem, advice)) from problem
        raise error(f"{name}: could not be read ({problem.strerror}); expected {expected}") from problem
    except RecursionError as problem:
        raise error(f"{name}: not {expected}: nested too deeply{_sentence(advice)}") from problem
    except Exception as problem:
        raise error(_unreadable(name, expected, problem, advice)) from problem


def _unreadable(name: str, expected: str, problem: Exception, advice: str) -> str:
    return f"{name}: not {expected} ({type(problem).__name__}: {one_line(problem, 200)}){_sentence(advice)}"


def _sentence(advice: str) -> str:
    return f". {advice}" if advice else ""


def regular_file(path: str | os.PathLike[str], error: type[RdcError], expected: str) -> int:
    """Check that ``path`` is a plain file and not a pointer that Git LFS left in its place.

    Returns:
        Its size in bytes.

    Raises:
        RdcError: (of the class given) it is missing, a folder, a device or pipe, not readable, or such a pointer.
    """
    with reading(path, error, expected):
        found = os.stat(path)
        name = one_line(os.fspath(path), 400)
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or pipe"
            raise error(f"{name}: is {kind}; expected {expected}")
        if found.st_size < 1000:
            with open(path, "rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise error(
                        f"{name}: is a Git LFS pointer, not the file itself; expected {expected}. Fetch it with `git lfs pull`"
                    )
        return found.st_size


def read_content(path: str | os.PathLike[str], error: type[RdcError], expected: str, limit: int | None = None) -> bytes:
    """The whole content of a plain file.

    Args:
        path: the file.
        error: the class to raise.
        expected: what it should be, for errors.
        limit: most bytes; None: any size.

    Raises:
        RdcError: (of the class given) see :func:`regular_file`; or it is larger than ``limit``.
    """
    size = regular_file(path, error, expected)
    if limit is not None and size > limit:
        raise error(f"{one_line(os.fspath(path), 400)}: {size:,} bytes; expected {expected} of at most {limit:,} bytes")
    with reading(path, error, expected):
        return Path(path).read_bytes()
