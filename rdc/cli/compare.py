"""``rdc compare``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rdc.cli.options import add_format_options, up_to
from rdc.errors import one_line

ABOUT = """Compare two finished runs of rdc evaluate on the same images: differences of clean and robust accuracy, A - B, with paired
bootstrap intervals and two-sided paired permutation tests. What differs between their settings is said below the table."""
EXAMPLES = """examples:
  rdc compare runs/dc runs/trades
  rdc compare --common runs/on-256 runs/on-64      (the images that both have)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc compare``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("a", metavar="A", help="folder of a run (--out of rdc evaluate)")
    parser.add_argument("b", metavar="B", help="folder of the other")
    parser.add_argument("--common", action="store_true", help="compare on the images that both runs have")
    parser.add_argument(
        "--draws", type=up_to(10**7), default=100_000, metavar="N", help="resamples, >= 100 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    add_format_options(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; returns the exit status."""
    from rdc.evaluation.comparison import compare_runs, read_run

    found = compare_runs(read_run(args.a), read_run(args.b), common=args.common, draws=args.draws, seed=args.seed)
    print(json.dumps(found, indent=2) if args.format == "json" else _table(found))
    return 0


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"A  {found['a']['model']}  ({found['a']['folder']})",
        f"B  {found['b']['model']}  ({found['b']['folder']})",
        f"{found['n']} images in common; differences A - B in points, {100 * found['confidence']:g} % intervals, two-sided p",
        "",
    ]
    wide = max(18, *(len(name) + 2 for name in found["differences"]))
    lines.append(f"  {'':<{wide}}{'A':>8}{'B':>9}{'A - B':>9}   {'interval':<16}{'p':>9}{'only A':>9}{'only B':>8}")
    for name, row in found["differences"].items():
        low, high = (100 * end for end in row["interval"])
        ends = f"[{low:+.1f}, {high:+.1f}]"
        lines.append(
            f"  {name:<{wide}}{100 * row['a']:>6.1f} %{100 * row['b']:>7.1f} %{100 * row['difference']:>+9.1f}   "
            f"{ends:<16}{_p(row['p_value']):>9}{row['only_a']:>9}{row['only_b']:>8}"
        )
    if found["notes"]:
        lines += ["", *(f"  note: {note}" for note in found["notes"])]
    return "\n".join(one_line(line, 4000) for line in lines)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0995 else f"{value:.2g}"
