"""From a seed to random numbers: every integer, of any size and sign, has a stream of its own.

Seeds, streams and counters from 0 to 2^64 - 1 are the words of NumPy's Philox themselves. What does not fit into its words is
hashed together with the rest into a key of 128 bits. Words go to Philox as an array of uint64: a *list* of Python integers with
one of 2^63 or more becomes float64 on the way, and seeds that lie close together become one.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence

import numpy as np

from rdc.arguments.scalars import as_integer, shown
from rdc.errors import ConfigError, RdcError

__all__ = ["checked_seed", "combined", "random", "step_seed", "word"]

_WORD = 2**64
_FACTOR, _STRIDE = 1_000_003, 4099  # of step_seed: seeds and steps below 2^32


def checked_seed(value: object, what: str = "seed", error: type[RdcError] = ConfigError) -> int:
    """A seed as Python's own integer.

    Raises:
        RdcError: (of the class given) it is no integer: a bool, a float, text, None.
    """
    seed = as_integer(value)
    if seed is None:
        raise error(f"{what}: expected an integer, of any size and sign; got {shown(value)}")
    return seed


def random(seed: int, stream: int = 0, counter: Sequence[int] = (0, 0, 0, 0)) -> np.random.Generator:
    """NumPy's Philox for these integers.

    Args:
        seed, stream: integers; the two words of the key.
        counter: four integers, where the stream begins.
    """
    words = tuple(operator.index(part) for part in (seed, stream, *counter))
    if all(0 <= part < _WORD for part in words):
        key, start = words[:2], words[2:]
    else:
        digest = _digest(words, 16)
        key, start = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")), (0, 0, 0, 0)
    philox = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=np.array(start, dtype=np.uint64))
    return np.random.Generator(philox)


def word(seed: int) -> int:
    """A seed as an integer below 2^64: itself if it is one, else 64 bits of a hash."""
    return seed if 0 <= seed < _WORD else int.from_bytes(_digest((seed,), 8), "little")


def combined(*integers: int) -> int:
    """A seed below 2^64 that depends on all of these integers and on their order."""
    return int.from_bytes(_digest(integers, 8), "little")


def step_seed(seed: int, step: int) -> int:
    """What a ``torch.Generator`` is seeded with for a step, 0 .. 2^64 - 1; steps of one seed never share it.

    PyTorch's generator on a CPU looks at the lower 32 bits alone, so a seed beyond 32 bits is hashed first.

    Args:
        seed: any integer.
        step: 0 or more.
    """
    start = seed * _FACTOR if 0 <= seed < 2**32 else int.from_bytes(_digest((seed,), 8), "little")
    return (start + step) * _STRIDE % _WORD


def _digest(integers: Sequence[int], size: int) -> bytes:
    found = hashlib.blake2b(digest_size=size, person=b"rdc seed")
    for integer in integers:
        content = integer.to_bytes(integer.bit_length() // 8 + 1, "little", signed=True)
        found.update(len(content).to_bytes(8, "little") + content)
    return found.digest()
