"""Two files of pytest-benchmark: what got slower beyond noise?

A benchmark counts as slower when its median rose by more than a threshold (what two runs of the same code differ by on a machine that
does other things too) *and* the rounds of the two runs tell them apart: the interval of the ratio of medians, from bootstrapped rounds,
lies above 1, and an exact or sampled permutation test of the rounds' difference in mean rank gives p <= ``level``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from rdc.errors import ConfigError, DataError
from rdc.resampling.kernels import resampled_rows

__all__ = ["Change", "compare_benchmarks", "read_benchmarks"]


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
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; expected what pytest --benchmark-only --benchmark-json={path.name} writes"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rounds = {
            entry["fullname"]: [float(s) for s in entry["stats"].get("data") or ()] for entry in content["benchmarks"]
        }
        machine, commit = content.get("machine_info") or {}, (content.get("commit_info") or {}).get("id")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected the JSON of pytest-benchmark (--benchmark-json); {error!r}") from error
    empty = [name for name, seconds in rounds.items() if not seconds or min(seconds) <= 0]
    if empty or not rounds:
        raise ConfigError(
            f"{path}: expected the seconds of every round; {empty[0] if empty else 'the file'} has none. Write the file with "
            "--benchmark-json, not with --benchmark-save without data"
        )
    cpu = (machine.get("cpu") or {}).get("brand_raw") or machine.get("processor") or machine.get("machine")
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
        seed: of them.

    Returns:
        ``changes``: a :class:`Change` for every benchmark in both, the slowest-grown first; ``only_old``, ``only_new`` names;
        ``drift``: the median ratio; ``divided``: whether ratios were divided by it; ``notes``.

    Raises:
        ConfigError: no benchmark is in both, or the threshold is out of range.
    """
    if not 0 <= threshold < 10 or not 0 < level < 1:
        raise ConfigError(f"expected 0 <= threshold < 10 and 0 < level < 1; got {threshold} and {level}")
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
    ratios = np.median(new[resampled_rows(len(new), draws, seed + 1)], 1) / np.median(
        old[resampled_rows(len(old), draws, seed)], 1
    )
    low, high = np.quantile(ratios, [0.025, 0.975])
    before, after = float(np.median(old)), float(np.median(new))
    p_value = _rank_test(old, new, draws, seed + 2)
    verdict = "same"
    if p_value <= level and low > 1 and after > before * (1 + threshold):
        verdict = "slower"
    elif p_value <= level and high < 1 and after < before / (1 + threshold):
        verdict = "faster"
    return Change(name, before, after, after / before, float(low), float(high), p_value, verdict)


def _rank_test(a: np.ndarray, b: np.ndarray, draws: int, seed: int) -> float:
    """Two-sided permutation test of the rank sum (Mann & Whitney 1947), by random relabellings."""
    joined = np.concatenate([a, b])
    order = np.argsort(joined, kind="stable")
    rank = np.empty(len(joined))
    rank[order] = np.arange(len(joined))
    for value in np.unique(joined):  # ties share their mean rank
        rank[joined == value] = rank[joined == value].mean()
    middle = len(a) * (len(joined) - 1) / 2
    observed = abs(rank[: len(a)].sum() - middle)
    random = np.random.Generator(np.random.Philox(key=[seed % 2**64, 0xBE]))
    shuffled = random.permuted(np.broadcast_to(rank, (draws, len(rank))), axis=1)[:, : len(a)].sum(1)
    return float((1 + (np.abs(shuffled - middle) >= observed - 1e-9).sum()) / (1 + draws))


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
