"""The lock of a run's folder: one process works in it, and the lock goes with that process, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from rdc.errors import ConfigError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

__all__ = ["IGNORED", "RunLock", "holds_nothing"]

#: what file managers leave in any folder, and our own lock; a folder with nothing else counts as empty
IGNORED = frozenset({"run.lock", ".DS_Store", "Thumbs.db", "desktop.ini", ".directory", ".localized"})


class RunLock:
    """Held from the moment it is made until :meth:`close`; a context manager.

    The file is opened as it is: nothing in it is changed, and no symbolic link is followed. Where the system or the file system has
    no locks, nothing is held.

    Args:
        path: the lock's file, made if missing; its folder must exist.
        busy: the message if another process holds it.

    Raises:
        ConfigError: another process holds it, or ``path`` is a symbolic link or no plain file.
        OSError: the file cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], busy: str) -> None:
        self._handle: int | None = None
        if fcntl is None:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            handle = os.open(path, flags, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise ConfigError(f"{path}: expected this run's own lock file; it is a symbolic link. Remove it") from error
        self._handle = handle
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ConfigError(f"{path}: expected this run's own lock file; it is no plain file. Remove it")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise ConfigError(busy) from error
        except ConfigError:
            self.close()
            raise
        except OSError:  # a file system without locks
            self.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder free."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)


def holds_nothing(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is empty but for :data:`IGNORED` files and half-written files of ours."""
    names = (entry.name for entry in Path(folder).iterdir())
    return all(name in IGNORED or (name.startswith(".") and name.endswith(".tmp")) for name in names)
