"""The loops of ``rdc.statistics``, each written twice: numpy, and numba (an optional dependency) where the loops are long.

Both give the same numbers to the last bit, for two reasons. Random numbers are counter-based: draw d, place i is the finaliser of
SplitMix64 at a counter made of (seed, d, i), so that neither order nor threads matter. And values are held as 64-bit integers
(:func:`to_fixed`), so that sums are exact whatever the order.

Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (the finaliser and the increment).
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from rdc.arguments.seeds import checked_seed
from rdc.arguments.seeds import word as seed_to_word
from rdc.errors import ConfigError, InputError

__all__ = ["choose_backend", "resampled_rows", "resampled_sums", "signed_sums", "stops", "to_fixed", "why_not_numba"]

_GAMMA, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1
_CHUNK = 2**20  # numbers that numpy holds at once
#: ``auto`` takes numba from this many inner steps on: below it, starting numba costs more than it saves
WORTH_NUMBA = 5 * 10**7
FIXED_BITS = 40  # resolution of to_fixed: 2^-40 of the largest magnitude
MAX_ROWS = 2**21


def why_not_numba() -> str:
    """Why numba is not used; empty if it can be. ``RDC_DISABLE_NUMBA=1`` turns it off."""
    if os.environ.get("RDC_DISABLE_NUMBA", "") not in ("", "0"):
        return f"RDC_DISABLE_NUMBA={os.environ['RDC_DISABLE_NUMBA']} is set"
    if importlib.util.find_spec("numba") is None:
        return 'numba is not installed (pip install "robust-diffusion-classifier[numba]")'
    return ""


def choose_backend(backend: str, work: int) -> str:
    """ "numpy" or "numba".

    Args:
        backend: "numpy", "numba", or "auto": numba where it is installed and ``work`` (inner steps) is worth starting it.

    Raises:
        ConfigError: unknown, or numba was asked for and is not there.
    """
    if backend not in ("auto", "numpy", "numba"):
        raise ConfigError(f'backend: expected "auto", "numpy" or "numba"; got {backend!r}')
    reason = why_not_numba()
    if backend == "numba" and reason:
        raise ConfigError(f'backend: expected "numpy" or "auto" here, because {reason}; got "numba"')
    if backend == "auto":
        return "numba" if not reason and work >= WORTH_NUMBA else "numpy"
    return backend


def to_fixed(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Integers [n, m] and the unit: values = integers * unit up to 2^-41 of the largest magnitude; 0 and 1 exactly.

    Raises:
        InputError: not a table of finite numbers with 1 .. 2^21 rows.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not 0 < len(values) <= MAX_ROWS or values.shape[1] == 0 or not np.isfinite(values).all():
        raise InputError(
            f"resampling: expected finite numbers [n images, m columns], 1 <= n <= {MAX_ROWS}; got shape {list(values.shape)}"
            f"{'' if np.isfinite(values).all() else ' with NaN or infinity'}"
        )
    largest = float(np.abs(values).max())
    unit = 2.0 ** (np.ceil(np.log2(largest)) - FIXED_BITS) if largest > 0 else 1.0
    return np.rint(values / unit).astype(np.int64), float(unit)


def seed_word(seed: int, stream: int) -> int:
    """A 64-bit word for (seed, stream); the seed is any integer.

    Raises:
        InputError: the seed is no integer.
    """
    word = (seed_to_word(checked_seed(seed, error=InputError)) * _GAMMA + (stream + 1) * _MIX1) & _MASK
    word = ((word ^ (word >> 30)) * _MIX1) & _MASK
    word = ((word ^ (word >> 27)) * _MIX2) & _MASK
    return word ^ (word >> 31)


# --- public: one function per loop --------------------------------------------------------------------------------------------


def resampled_sums(fixed: np.ndarray, draws: int, seed: int, backend: str = "auto") -> np.ndarray:
    """Sums [draws, m] of n rows drawn with replacement from ``fixed`` [n, m] int64, all columns by the same rows."""
    word = seed_word(seed, 0)
    if choose_backend(backend, draws * len(fixed)) == "numba":
        return _compiled("sums")(np.ascontiguousarray(fixed), draws, np.uint64(word))
    return _sums_numpy(fixed, draws, word)


def resampled_rows(count: int, draws: int, seed: int, begin: int = 0) -> np.ndarray:
    """The rows [draws, count] int64 that :func:`resampled_sums` adds up, from draw ``begin`` on, for statistics that are no sums; numpy."""
    return _rows(seed_word(seed, 0), begin, begin + draws, count)


def signed_sums(fixed: np.ndarray, draws: int, seed: int, backend: str = "auto") -> np.ndarray:
    """Sums [draws] of ``fixed`` [n] int64 with every sign drawn by a fair coin."""
    word = seed_word(seed, 1)
    if choose_backend(backend, draws * len(fixed)) == "numba":
        return _compiled("signs")(np.ascontiguousarray(fixed), draws, np.uint64(word))
    return _signs_numpy(fixed, draws, word)


def stops(margin: np.ndarray, boundary: np.ndarray, backend: str = "auto") -> np.ndarray:
    """First step at which ``margin`` [n, T] reaches each boundary [G, T], as int32 [G, n]; T - 1 where it never does."""
    work = margin.size * len(boundary)
    if choose_backend(backend, work) == "numba":
        return _compiled("stops")(np.ascontiguousarray(margin), np.ascontiguousarray(boundary))
    last = margin.shape[1] - 1
    found = np.empty((len(boundary), len(margin)), dtype=np.int32)
    for g, line in enumerate(boundary):
        reached = margin >= line
        reached[:, last] = True
        found[g] = reached.argmax(1)
    return found


# --- numpy --------------------------------------------------------------------------------------------------------------------


def _mixed(word: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 on uint64, in place."""
    word ^= word >> np.uint64(30)
    word *= np.uint64(_MIX1)
    word ^= word >> np.uint64(27)
    word *= np.uint64(_MIX2)
    word ^= word >> np.uint64(31)
    return word


def _words(word: int, first: int, count: int) -> np.ndarray:
    """uint64 [count] at counters first, first + 1, ..."""
    counter = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    counter *= np.uint64(_GAMMA)
    counter += np.uint64(word)
    return _mixed(counter)


def _rows(word: int, begin: int, end: int, count: int) -> np.ndarray:
    """Rows of draws begin .. end - 1, [end - begin, count] int64: the upper half of each word, scaled to 0 .. count - 1."""
    rows = _words(word, begin * count, (end - begin) * count)
    rows >>= np.uint64(32)
    rows *= np.uint64(count)
    rows >>= np.uint64(32)
    return rows.astype(np.int64).reshape(end - begin, count)


def _sums_numpy(fixed: np.ndarray, draws: int, word: int) -> np.ndarray:
    count = len(fixed)
    sums = np.empty((draws, fixed.shape[1]), dtype=np.int64)
    step = max(1, _CHUNK // count)
    for begin in range(0, draws, step):
        end = min(draws, begin + step)
        rows = _rows(word, begin, end, count)
        for column in range(fixed.shape[1]):
            sums[begin:end, column] = np.ascontiguousarray(fixed[:, column])[rows].sum(1)
    return sums


def _signs_numpy(fixed: np.ndarray, draws: int, word: int) -> np.ndarray:
    count, total = len(fixed), int(fixed.sum())
    words = -(-count // 64)
    sums = np.empty(draws, dtype=np.int64)
    step = max(1, _CHUNK // (64 * words))
    for begin in range(0, draws, step):
        end = min(draws, begin + step)
        coins = _words(word, begin * words, (end - begin) * words).astype("<u8").view(np.uint8)
        heads = np.unpackbits(coins.reshape(end - begin, words * 8), axis=1, bitorder="little")[:, :count]
        sums[begin:end] = 2 * np.where(heads, fixed, 0).sum(1) - total
    return sums


# --- numba --------------------------------------------------------------------------------------------------------------------


@functools.cache
def _compiled(name: str) -> Callable[..., np.ndarray]:
    """A numba loop, compiled at its first use and cached on disk where numba can write."""
    import numba

    function = _numba_sources(numba)[name]
    compiled: Callable[..., np.ndarray]
    try:
        compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder that numba can write its cache to
        compiled = numba.njit(nogil=True)(function)
    return compiled


def _first_reached(margin: np.ndarray, boundary: np.ndarray) -> np.ndarray:
    """:func:`stops` as a loop."""
    count, steps = margin.shape
    found = np.empty((boundary.shape[0], count), dtype=np.int32)
    for g in range(boundary.shape[0]):
        for i in range(count):
            step = 0
            while step < steps - 1 and not margin[i, step] >= boundary[g, step]:
                step += 1
            found[g, i] = step
    return found


def _numba_sources(numba: Any) -> dict[str, Callable[..., np.ndarray]]:
    """The loops as numba compiles them; plain Python as well."""
    u64 = np.uint64
    gamma, mix1, mix2 = u64(_GAMMA), u64(_MIX1), u64(_MIX2)
    one, b27, b30, b31, b32, b63 = u64(1), u64(27), u64(30), u64(31), u64(32), u64(63)

    @numba.njit(inline="always")  # type: ignore[untyped-decorator]
    def mixed(word: Any) -> Any:
        word = (word ^ (word >> b30)) * mix1
        word = (word ^ (word >> b27)) * mix2
        return word ^ (word >> b31)

    def sums(fixed: np.ndarray, draws: int, word: Any) -> np.ndarray:
        count, columns = fixed.shape
        found = np.zeros((draws, columns), dtype=np.int64)
        counter, size = word, u64(count)
        for draw in range(draws):
            if columns == 1:
                total = np.int64(0)
                for _ in range(count):
                    counter += gamma
                    total += fixed[np.int64(((mixed(counter) >> b32) * size) >> b32), 0]
                found[draw, 0] = total
            else:
                for _ in range(count):
                    counter += gamma
                    row = np.int64(((mixed(counter) >> b32) * size) >> b32)
                    for column in range(columns):
                        found[draw, column] += fixed[row, column]
        return found

    def signs(fixed: np.ndarray, draws: int, word: Any) -> np.ndarray:
        count = fixed.shape[0]
        whole = np.int64(0)
        for i in range(count):
            whole += fixed[i]
        found = np.empty(draws, dtype=np.int64)
        counter = word
        for draw in range(draws):
            total, coins = np.int64(0), u64(0)
            for i in range(count):
                if u64(i) & b63 == 0:
                    counter += gamma
                    coins = mixed(counter)
                total += fixed[i] * np.int64(coins & one)
                coins >>= one
            found[draw] = 2 * total - whole
        return found

    return {"sums": sums, "signs": signs, "stops": _first_reached}
