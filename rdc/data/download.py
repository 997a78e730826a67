"""Fetching one file from the first mirror that has it: checked before it is written, so never half a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rdc.errors import DataError
from rdc.storage.files import atomic_write

__all__ = ["fetch"]

_CHUNK = 1 << 16


class _MirrorError(Exception):
    """This mirror failed; another may do."""


def fetch(
    urls: Sequence[str],
    destination: str | os.PathLike[str],
    check: Callable[[bytes], None],
    *,
    limit: int,
    timeout: float = 30.0,
    progress: bool = True,
) -> None:
    """Download to ``destination``, atomically, from the first of ``urls`` whose file passes ``check``.

    Args:
        urls: mirrors, tried in order.
        destination: the file to write; an existing one is replaced, by a checked download only.
        check: gets what was downloaded, raises DataError unless it is the right file.
        limit: larger downloads are broken off (bytes; a download is held in memory).
        timeout: of connecting and of each read, in seconds.
        progress: draw a bar on stderr.

    Raises:
        DataError: no mirror delivered (each is listed with its reason), or the file cannot be written.
    """
    destination = Path(destination)
    reasons = []
    for url in urls:
        try:
            content = _get(url, destination.name, limit, timeout, progress)
            check(content)
        except (_MirrorError, DataError) as error:
            reasons += [f"  {url}", *(f"    {part}" for part in error.args)]
            continue
        _write(destination, content)
        return
    raise DataError(
        f"{destination.name} could not be downloaded; tried",
        *reasons,
        f"Is this machine offline? Put the file into {destination.parent} by hand, or name a folder that has it with root=",
    )


def _get(url: str, name: str, limit: int, timeout: float, progress: bool) -> bytes:
    """Everything ``url`` delivers. A connection cut short is an error where the server announced the length."""
    import http.client
    import urllib.request

    from rdc.terminal.progress import bar

    request = urllib.request.Request(url, headers={"User-Agent": "rdc"})
    parts, received = [], 0
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            announced = response.headers.get("Content-Length", "")
            total = int(announced) if announced.isdigit() else None
            with bar(total=total, desc=name, unit="B", unit_scale=True, enabled=progress) as line:
                while chunk := response.read(_CHUNK):
                    received += len(chunk)
                    if received > limit:
                        raise _MirrorError(f"delivers more than {limit:,} bytes; this is another file")
                    parts.append(chunk)
                    line.update(len(chunk))
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        raise _MirrorError(f"{type(error).__name__}: {error}") from error
    if total is not None and received != total:
        raise _MirrorError(f"connection cut after {received:,} of {total:,} bytes")
    return b"".join(parts)


def _write(destination: Path, content: bytes) -> None:
    try:
        with atomic_write(destination) as file:
            file.write(content)
    except OSError as error:
        raise DataError(f"{destination}: cannot be written ({error.strerror or error})") from error
