"""JSON that says whether it was damaged: a digest in a file's outermost object, a CRC-32 at the end of a line.

{"a": 1, ..., "digest": "..."}     SHA-256 (32 digits) of everything else, so that layout does not matter
{"a": 1, ..., "crc": "01234567"}   CRC-32 of the line's bytes without it: it finds every single changed bit
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from typing import Any

from rdc.errors import DataError, RdcError
from rdc.storage.json_files import JSON_BYTES, parse_json, read_json, write_json

__all__ = ["Sealed", "digest_of", "line_body", "open_line", "read_sealed", "seal_line", "write_sealed"]

_DIGEST, _CRC = "digest", "crc"
_SEAL = re.compile(rb', "crc": "([0-9a-f]{8})"\}')
_LENGTH = len(b', "crc": "01234567"}')

#: what was read, and whether it had a checksum (which then was right)
Sealed = tuple[dict[str, Any], bool]


def digest_of(value: Any) -> str:
    """SHA-256 (32 digits) of a JSON value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_sealed(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write ``value`` with its digest, atomically; see :func:`rdc.storage.json_files.write_json`."""
    value = json.loads(json.dumps(value, allow_nan=False))
    write_json(path, {**value, _DIGEST: digest_of(value)})


def read_sealed(
    path: str | os.PathLike[str], error: type[RdcError] = DataError, *, advice: str, limit: int = JSON_BYTES
) -> Sealed:
    """Read what :func:`write_sealed` wrote, or an older file without a digest.

    Args:
        path: the file.
        error: the class to raise.
        advice: what to do about a damaged file.
        limit: most bytes.

    Raises:
        RdcError: (of the class given) see :func:`rdc.storage.json_files.read_json`; or the digest is not that of the content.
    """
    try:
        value = read_json(path, error, kind=dict, limit=limit)
    except RdcError as problem:
        raise error(f"{problem}. It is damaged: {advice}") from problem
    if _DIGEST not in value:
        return value, False
    said = value.pop(_DIGEST)
    if said != digest_of(value):
        raise error(f"{os.fspath(path)}: damaged, its content does not have the digest that it names: {advice}")
    return value, True


def seal_line(record: dict[str, Any]) -> bytes:
    """A record (not empty) as one line with its CRC-32 and a line break.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    body = json.dumps(record, allow_nan=False).encode()
    return b'%b, "crc": "%08x"}\n' % (body[:-1], zlib.crc32(body))


def line_body(line: bytes) -> tuple[bytes, bool]:
    """A line's JSON without its CRC, and whether it had one.

    Raises:
        ValueError: it is not what its CRC says.
    """
    found = _SEAL.fullmatch(line, max(0, len(line) - _LENGTH))
    if found is None:
        return line, False
    body = line[: found.start()] + b"}"
    if zlib.crc32(body) != int(found[1], 16):
        raise ValueError("it does not have the checksum that it names")
    return body, True


def open_line(line: bytes, name: str, error: type[RdcError] = DataError) -> Sealed:
    """The record of a line without its line break.

    Args:
        line: what :func:`seal_line` made, or an older line without a CRC.
        name: file and line, for errors.
        error: the class to raise.

    Raises:
        RdcError: (of the class given) it is no JSON object, or not what its CRC says.
    """
    try:
        body, sealed = line_body(line)
    except ValueError as problem:
        raise error(f"{name}: {problem}") from problem
    record = parse_json(body, name, error, kind=dict)
    if _CRC in record:
        raise error(f"{name}: its checksum is damaged")
    return record, sealed
