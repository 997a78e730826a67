"""Two files of pytest-benchmark: what got slower beyond noise?

A benchmark counts as slower when its median rose by more than a threshold (what two runs of the same code differ by on a machine that
does other things too) *and* the rounds of the two runs tell them apart: the interval of the ratio of medians, from bootstrapped rounds,
lies above 1, and an exact or sampled permutation test of the rounds' difference in mean rank gives p <= ``level``.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from rdc.arguments.seeds import checked_seed, random
from rdc.errors import ConfigError, DataError, one_line
from rdc.statistics.kernels import resampled_rows
from rdc.storage.json_files import JSON_BYTES, parse_json
from rdc.storage.reading import read_content, reading
from rdc.storage.structure import number, optional, record, sequence, text

__all__ = ["MOST_ROUNDS", "Change", "compare_benchmarks", "read_benchmarks"]

MOST_ROUNDS = 100_000  #: largest number of rounds in a file, all benchmarks together
_CHUNK = 2**21  # numbers drawn at once

_SHORTEST = 1e-12  # seconds of a round
_SECONDS = number(0, 1e9)
_FILE = record(
    {
        "benchmarks": sequence(
            record({"fullname": text(), "stats": record({}, {"data": optional(sequence(_SECONDS))})}), most=MOST_ROUNDS
        )
    },
    {"machine_info": optional(record({})), "commit_info": optional(record({}))},
)


@dataclasses.dataclass(frozen=True)
class Change:
    """One benchmark in both files.

    Args:
        name: pytest-benchmark's full name.
        old, new: medians, seconds.
        ratio: new / old.
        low, high: 95 % interval of the ratio, from the rounds.
        p_value: two-sided, of the rounds' ranks.
        verdict: "slower", "faster" or "same".
    """

    name: str
    old: float
    new: float
    ratio: float
    low: float
    high: float
    p_value: float
    verdict: str


def read_benchmarks(path: str | os.PathLike[str]) -> dict[str, Any]:
    """``rounds`` {full name: seconds of each round}, ``machine`` and ``commit`` of a pytest-benchmark JSON file.

    Raises:
        ConfigError: no such file, or it has no rounds.
        DataError: it is no file of pytest-benchmark.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file; expected what pytest --benchmark-only --benchmark-json={path.name} writes"
        )
    words = "the JSON of pytest-benchmark (--benchmark-json)"
    content = read_content(path, DataError, words, JSON_BYTES)
    try:
        content = parse_json(content, path)
    except DataError as error:
        raise DataError(f"{error}; expected {words}") from error
    with reading(path, DataError, words):
        _FILE(content, "file")
        rounds = {
            entry["fullname"]: list(map(float, entry["stats"].get("data") or ())) for entry in content["benchmarks"]
        }
        machine, commit = content.get("machine_info") or {}, (content.get("commit_info") or {}).get("id")
        cpu = machine.get("cpu")
        cpu = (
            (cpu.get("brand_raw") if isinstance(cpu, dict) else None)
            or machine.get("processor")
            or machine.get("machine")
        )
    empty = [name for name, seconds in rounds.items() if not seconds or min(seconds) < _SHORTEST]
    if empty or not rounds:
        raise ConfigError(
            f"{path}: expected the seconds of every round; {one_line(empty[0]) if empty else 'the file'} has none. Write the file with "
            "--benchmark-json, not with --benchmark-save without data"
        )
    total = sum(map(len, rounds.values()))
    if total > MOST_ROUNDS:
        raise ConfigError(
            f"{path}: {total:,} rounds in all; expected at most {MOST_ROUNDS:,}. See --benchmark-max-time"
        )
    cpu, commit = (None if value is None else one_line(value) for value in (cpu, commit))
    return {"path": str(path), "rounds": rounds, "machine": cpu, "commit": commit}


def compare_benchmarks(
    old: dict[str, Any],
    new: dict[str, Any],
    *,
    threshold: float = 0.1,
    level: float = 0.05,
    relative: bool = False,
    draws: int = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two runs.

    Args:
        old, new: what :func:`read_benchmarks` returns.
        threshold: smallest relative change that counts.
        level: largest p-value that counts.
        relative: divide by the median ratio of all benchmarks first: for runs on machines of different speed.
        draws: resamples of the rounds.
        seed: any integer; of them.

    Returns:
        ``changes``: a :class:`Change` for every benchmark in both, the slowest-grown first; ``only_old``, ``only_new`` names;
        ``drift``: the median ratio; ``divided``: whether ratios were divided by it; ``notes``.

    Raises:
        ConfigError: no benchmark is in both, or the threshold is out of range.
    """
    if not 0 <= threshold < 10 or not 0 < level < 1:
        raise ConfigError(f"expected 0 <= threshold < 10 and 0 < level < 1; got {threshold} and {level}")
    seed = checked_seed(seed)
    both = [name for name in old["rounds"] if name in new["rounds"]]
    if not both:
        raise ConfigError(
            f"expected benchmarks with the same names; {old['path']} and {new['path']} have none in common"
        )
    pairs = {name: (np.array(old["rounds"][name]), np.array(new["rounds"][name])) for name in both}
    drift = float(np.median([np.median(b) / np.median(a) for a, b in pairs.values()]))
    scale = drift if relative else 1.0
    changes = [_change(name, a, b / scale, threshold, level, draws, seed) for name, (a, b) in pairs.items()]
    return {
        "changes": sorted(changes, key=lambda change: -change.ratio),
        "only_old": [name for name in old["rounds"] if name not in new["rounds"]],
        "only_new": [name for name in new["rounds"] if name not in old["rounds"]],
        "drift": drift,
        "divided": relative,
        "notes": _notes(old, new, drift, relative, len(both)),
    }


def _change(
    name: str, old: np.ndarray, new: np.ndarray, threshold: float, level: float, draws: int, seed: int
) -> Change:
    ratios = _medians(new, draws, seed + 1) / _medians(old, draws, seed)
    low, high = np.quantile(ratios, [0.025, 0.975])
    before, after = float(np.median(old)), float(np.median(new))
    p_value = _rank_test(old, new, draws, seed + 2)
    verdict = "same"
    if p_value <= level and low > 1 and after > before * (1 + threshold):
        verdict = "slower"
    elif p_value <= level and high < 1 and after < before / (1 + threshold):
        verdict = "faster"
    return Change(name, before, after, after / before, float(low), float(high), p_value, verdict)


def _medians(seconds: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Medians [draws] of resampled rounds; as many draws at once as fit."""
    step, found = max(1, _CHUNK // len(seconds)), []
    for begin in range(0, draws, step):
        rows = resampled_rows(len(seconds), min(step, draws - begin), seed, begin)
        found.append(np.median(seconds[rows], 1))
    return np.concatenate(found)


def _rank_test(a: np.ndarray, b: np.ndarray, draws: int, seed: int) -> float:
    """Two-sided permutation test of the rank sum (Mann & Whitney 1947), by random relabellings."""
    joined = np.concatenate([a, b])
    order = np.argsort(joined, kind="stable")
    rank = np.empty(len(joined))
    rank[order] = np.arange(len(joined))
    _, place, times = np.unique(joined, return_inverse=True, return_counts=True)
    rank = (np.bincount(place, rank) / times)[place]  # ties share their mean rank
    middle = len(a) * (len(joined) - 1) / 2
    observed = abs(rank[: len(a)].sum() - middle)
    labels = random(seed, 0xBE)
    step, extreme = max(1, _CHUNK // len(rank)), 0
    for begin in range(0, draws, step):
        rows = np.broadcast_to(rank, (min(step, draws - begin), len(rank)))
        shuffled = labels.permuted(rows, axis=1)[:, : len(a)].sum(1)
        extreme += int((np.abs(shuffled - middle) >= observed - 1e-9).sum())
    return float((1 + extreme) / (1 + draws))


def _notes(old: dict[str, Any], new: dict[str, Any], drift: float, relative: bool, count: int) -> list[str]:
    found = []
    if old["machine"] != new["machine"]:
        found.append(
            f"different machines: {old['machine']} and {new['machine']}; --relative divides the difference out"
        )
    if count >= 5 and abs(np.log(drift)) > 0.05 and not relative:
        found.append(
            f"half of the benchmarks take at least {drift:.2f} times as long: the machine's doing perhaps; see --relative"
        )
    return found
