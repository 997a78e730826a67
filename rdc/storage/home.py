"""The user's home folder, which a container or an unknown user id may lack."""

from __future__ import annotations

import os
from pathlib import Path

from rdc.errors import DataError, RdcError, one_line

__all__ = ["cache_folder", "expanded"]


def expanded(path: str | os.PathLike[str], error: type[RdcError] = DataError) -> Path:
    """``path`` with a leading ``~`` replaced by the home folder.

    Raises:
        RdcError: (of the class given) it begins with ``~`` and there is no such home folder, or it holds a zero byte.
    """
    if "\0" in os.fspath(path):
        raise error(f"{one_line(os.fspath(path))}: no file name can hold a zero byte")
    try:
        return Path(path).expanduser()
    except RuntimeError as problem:
        raise error(f"{one_line(os.fspath(path))}: this user has no home folder; write the path without ~") from problem


def cache_folder(*parts: str) -> Path | None:
    """``~/.cache/rdc`` and below, which need not exist; None where there is no home folder."""
    try:
        return Path.home().joinpath(".cache", "rdc", *parts)
    except RuntimeError:
        return None
