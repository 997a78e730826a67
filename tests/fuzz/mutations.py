"""Changed copies of a file's bytes; the same numbers from the generator give the same copy."""

from __future__ import annotations

import io
import json
import pickletools
import random
import re
import zipfile
import zlib

__all__ = ["mutated", "mutated_inside"]

_EXTREMES = (0, 1, 2**7 - 1, 2**8 - 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
_ODD = (
    *(None, True, False, 0, -1, 1, 10**9, 2**40, 2**63, 10**400, 1e308, -1e308, 1e30, 5e-324, 0.5, "", "x", "0", "../../x"),
    *("\n\n", "\x1b[2J", "\ud800", "x" * 100_000, [], {}, [[]], [{}], {"": 0}, [0] * 20_000, [-1], ["x"], list(range(50))),
)  # fmt: skip
#: pickle instructions that a hostile file may hold, to be put between its own
_SNIPPETS = (
    b"(" * 5000,
    b")" + b"\x85" * 3000,  # a tuple in a tuple in a tuple ...
    b"K\x01" + b"\x85" * 60_000 + b"0",
    b"2" * 500,
    b"}\x94" + b"h\x00" * 50,
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"\x96" + (3 << 30).to_bytes(8, "little"),
    b"\x8e" + (1 << 62).to_bytes(8, "little"),
    b"\x95" + (1 << 40).to_bytes(8, "little"),
    b"\x8b\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f",
    b"\x98",
    b"\x97",
    b"Q",
    b"\x82\x01",
    b"R",
    b"b",
    b"\x81",
    b"s",
    b"\x90",
    b"t",
    b".",
)


def mutated(content: bytes, random: random.Random, kind: str = "bytes") -> bytes:
    """One change of ``content``: of its bytes, or (kind "json", "pickle", "text") of what they say."""
    special = {"json": _json, "pickle": _pickle, "text": _text}.get(kind)
    if special is not None and random.random() < 0.6:
        return special(content, random)
    return random.choice(_BYTES)(content, random)


def mutated_inside(content: bytes, random: random.Random, kinds: dict[str, str]) -> bytes:
    """The zip archive again, with right checksums, after one member was changed; ``kinds``: by the end of its name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = random.choice(sorted(members))
    kind = next((kind for end, kind in kinds.items() if name.endswith(end)), "bytes")
    action = random.random()
    if action < 0.05:
        del members[name]
    elif action < 0.1:
        members[name] = bytes(random.choice((0, 10**5, 3 * 10**8)))  # inflates: the archive is compressed
    else:
        members[name] = mutated(members[name], random, kind)
    made = io.BytesIO()
    with zipfile.ZipFile(
        made, "w", zipfile.ZIP_DEFLATED if random.random() < 0.5 or action < 0.1 else zipfile.ZIP_STORED
    ) as out:
        for key, value in members.items():
            out.writestr(key, value)
    return made.getvalue()


def _place(content: bytes, random: random.Random) -> int:
    return random.randrange(len(content) + 1) if random.random() < 0.6 else random.randrange(min(len(content), 200) + 1)


def _slice(content: bytes, random: random.Random) -> slice:
    begin = _place(content, random)
    return slice(begin, begin + 1 + int(2 ** (random.random() * 12)))


def _flip(content: bytes, random: random.Random) -> bytes:
    if not content:
        return b"\x00"
    made, place = bytearray(content), min(_place(content, random), len(content) - 1)
    made[place] ^= 1 << random.randrange(8)
    return bytes(made)


def _set(content: bytes, random: random.Random) -> bytes:
    place = _place(content, random)
    return content[:place] + bytes([random.randrange(256)]) + content[place + 1 :]


def _truncate(content: bytes, random: random.Random) -> bytes:
    return content[: _place(content, random)]


def _delete(content: bytes, random: random.Random) -> bytes:
    part = _slice(content, random)
    return content[: part.start] + content[part.stop :]


def _repeat(content: bytes, random: random.Random) -> bytes:
    part = _slice(content, random)
    return content[: part.stop] + content[part] * random.choice((1, 2, 100)) + content[part.stop :]


def _insert(content: bytes, random: random.Random) -> bytes:
    place = _place(content, random)
    return content[:place] + random.randbytes(1 + int(2 ** (random.random() * 8))) + content[place:]


def _zero(content: bytes, random: random.Random) -> bytes:
    part = _slice(content, random)
    return content[: part.start] + bytes(len(content[part])) + content[part.stop :]


def _swap(content: bytes, random: random.Random) -> bytes:
    size = max(1, len(content) // 4)
    a, b = sorted((random.randrange(size), random.randrange(2 * size, 3 * size + 1)))
    return content[:a] + content[b : b + size] + content[a + size : b] + content[a : a + size] + content[b + size :]


def _number(content: bytes, random: random.Random) -> bytes:
    place, size = _place(content, random), random.choice((1, 2, 4, 8))
    value = random.choice((*_EXTREMES, len(content), len(content) + 1)) % 2 ** (8 * size)
    return content[:place] + value.to_bytes(size, random.choice(("little", "big"))) + content[place + size :]


_BYTES = (_flip, _flip, _set, _truncate, _delete, _repeat, _insert, _zero, _swap, _number, _number)


def _json(content: bytes, random: random.Random) -> bytes:
    """A value, a key or the nesting changed."""
    try:
        lines = content.decode().splitlines() if b"\n{" in content else [content.decode()]
        number = random.randrange(len(lines))
        value = json.loads(lines[number])
    except (ValueError, IndexError):
        return _flip(content, random)
    places = []

    def walk(node: object) -> None:
        for key, inner in list(node.items()) if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(inner, (dict, list)) and inner:
                walk(inner)

    if not isinstance(value, (dict, list)) or not value:
        return _flip(content, random)
    walk(value)
    node, key = random.choice(places)
    action = random.random()
    if action < 0.7:
        node[key] = random.choice(_ODD)
    elif action < 0.8:
        del node[key]
    elif action < 0.9 and isinstance(node, dict):
        node[random.choice(("", "x", str(key) + "2", "format", "version"))] = node.pop(key)
    else:
        node[key] = [node[key]]
    text = json.dumps(value, allow_nan=True)
    if action > 0.97:
        text = random.choice(
            ("[" * 100_000, '{"a":' * 100_000, text + text, "\ufeff" + text, "NaN", '"' + "x" * 300_000 + '"')
        )
    lines[number] = text
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _text(content: bytes, random: random.Random) -> bytes:
    """A number written in digits replaced by another."""
    found = list(re.finditer(rb"\d+", content))
    if not found:
        return _flip(content, random)
    pick = random.choice(found)
    new = random.choice(
        (b"0", b"-1", b"1", b"999999999", b"1099511627776", b"1e30", b"nan", b"9" * 400, b"1," * 20_000, b"(" * 3000)
    )
    return content[: pick.start()] + new + content[pick.end() :]


def _pickle(content: bytes, random: random.Random) -> bytes:
    """Instructions left out, repeated, exchanged, or put in."""
    try:
        starts = [place for _op, _argument, place in pickletools.genops(content)]
    except Exception:
        return _flip(content, random)
    number = random.randrange(len(starts))
    begin, end = starts[number], [*starts, len(content)][min(number + random.choice((1, 1, 2, 5)), len(starts))]
    action = random.random()
    if action < 0.4:
        return content[:begin] + random.choice(_SNIPPETS) + content[begin:]
    if action < 0.6:
        return content[:begin] + content[end:]
    if action < 0.8:
        return content[:end] + content[begin:end] * random.choice((1, 3, 300)) + content[end:]
    other = random.choice(starts)
    return content[:begin] + content[other : other + (end - begin)] + content[end:]


def gzipped(content: bytes) -> bytes:
    """As gzip does it, but the same bytes every time."""
    made = zlib.compressobj(6, zlib.DEFLATED, 31)
    return made.compress(content) + made.flush()
