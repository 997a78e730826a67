"""Files that are written: whole or not at all, never through a symbolic link, and what a killed process left is removed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

__all__ = ["atomic_write", "open_in_place", "sweep_temporaries"]

_TEMPORARY = re.compile(
    r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL
)  # what `tempfile.mkstemp` makes of our prefix and suffix
_LONGEST = 200  # bytes of a name that is part of a temporary one
_DAY = 24 * 3600.0
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success fsync it and move it onto ``path``.

    If the body or the disk fails, the temporary file is removed and an existing ``path`` is untouched. What a killed process
    left beside ``path`` is removed first.

    Args:
        path: the file to replace or create; its folder is created if missing.
        mode: ``"wb"`` or ``"w"`` (UTF-8; what UTF-8 cannot hold, such as half of a surrogate pair, is written as an escape).

    Yields:
        The open temporary file.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(path.parent, _short(path.name).__eq__)
    handle, temporary = _temporary(path)
    guard = None
    try:
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        with os.fdopen(handle, mode, encoding=encoding, errors=errors) as file:
            if fcntl is not None:
                guard = os.dup(handle)  # keeps the lock until the file has its name
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        if guard is not None:
            os.close(guard)


def sweep_temporaries(folder: str | os.PathLike[str], ours: Callable[[str], bool]) -> None:
    """Remove temporary files that a killed process left in ``folder``; those of a living one are locked, and stay.

    Args:
        folder: where; nothing is done if it is missing or cannot be read.
        ours: whether a file of this name is ours to write: temporary files on the way to others are left alone.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found and ours(found[1]):
                with contextlib.suppress(OSError):
                    _remove_abandoned(entry.path)


def open_in_place(path: str | os.PathLike[str], mode: str) -> IO[bytes]:
    """Open a plain file for changes in place; one that is reached through a symbolic link is not touched.

    Args:
        path: the file.
        mode: ``"ab"`` (made if missing) or ``"r+b"``.

    Raises:
        OSError: it is a symbolic link, no plain file, or cannot be opened.
    """
    flags = {"ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT, "r+b": os.O_RDWR}[mode]
    try:
        handle = os.open(path, flags | _SAFE, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error = OSError(
                errno.ELOOP, "is a symbolic link, through which nothing is written; remove it", os.fspath(path)
            )
        raise error from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no plain file; remove it", os.fspath(path))
    return os.fdopen(handle, mode)


def _temporary(path: Path) -> tuple[int, str]:
    """A new temporary file for ``path``, locked for as long as it is open: (descriptor, name)."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{_short(path.name)}.", suffix=".tmp", dir=path.parent)
        with contextlib.suppress(OSError):  # a file system without locks
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink or fcntl is None:
            return handle, name
        os.close(handle)  # another process swept it away before it was locked


def _remove_abandoned(path: str) -> None:
    """Remove a temporary file unless it is in use; where locks do not work, only if it is a day old."""
    handle = os.open(path, os.O_RDWR | _SAFE)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            return
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            except OSError:
                if time.time() - found.st_mtime < _DAY:
                    return
            os.unlink(path)
    finally:
        os.close(handle)
    if fcntl is None:
        os.unlink(path)  # fails while a process has it open


def _short(name: str) -> str:
    """``name``, or of a very long one a digest, so that a temporary file's name is not too long."""
    return name if len(os.fsencode(name)) <= _LONGEST else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
