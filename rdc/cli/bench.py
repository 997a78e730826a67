"""``rdc bench``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from rdc.cli import model_costs
from rdc.errors import one_line

ABOUT = """cost: what a prediction and an attack step of one model or several cost, time and memory.
compare: two benchmark files, what got slower beyond noise."""
COMPARE = """Compare two benchmark files (pytest --benchmark-only --benchmark-json=FILE): what got slower beyond noise. A change counts when
the medians differ by more than --threshold and the rounds of the two runs tell them apart. Exit status 1 if anything got slower."""
EXAMPLES = """examples:
  rdc bench cost --model fashion-mnist --model fashion-mnist-trades --threads 1
  rdc bench compare benchmarks/results/suite.json new.json
"""
COMPARE_EXAMPLES = """examples:
  pytest --benchmark-only --benchmark-json=new.json
  rdc bench compare benchmarks/results/suite.json new.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc bench``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    model_costs.add_arguments(
        actions.add_parser("cost", help="time and memory of predictions and attack steps of models", allow_abbrev=False)
    )
    compare = actions.add_parser("compare", help="two benchmark files: OLD with NEW", allow_abbrev=False)
    compare.description, compare.epilog = COMPARE, COMPARE_EXAMPLES
    compare.formatter_class = argparse.RawDescriptionHelpFormatter
    compare.add_argument("old", metavar="OLD.json")
    compare.add_argument("new", metavar="NEW.json")
    _add_compare_options(parser, hidden=True)  # as they stand before the action, too
    _add_compare_options(compare, hidden=False)


def _add_compare_options(parser: argparse.ArgumentParser, hidden: bool) -> None:
    """The options of ``compare``; the hidden ones have the defaults."""

    def add(name: str, about: str, **how: Any) -> None:
        default = {} if hidden else {"default": argparse.SUPPRESS}
        parser.add_argument(name, help=argparse.SUPPRESS if hidden else about, **{**how, **default})

    add("--threshold", "smallest change that counts (default: 0.1, 10 %%)", type=float, default=0.1, metavar="X")
    add("--relative", "divide by the median ratio: for machines of different speed", action="store_true")
    add("--format", "what is printed (default: text)", choices=("text", "json"), default="text")
    add("--json", "the same as --format json", dest="format", action="store_const", const="json", default="text")


def run(args: argparse.Namespace) -> int:
    """Do what was asked for; returns the exit status."""
    return model_costs.run(args) if args.action == "cost" else _compare(args)


def _compare(args: argparse.Namespace) -> int:
    from rdc.statistics.benchmark_comparison import compare_benchmarks, read_benchmarks

    old, new = read_benchmarks(args.old), read_benchmarks(args.new)
    found = compare_benchmarks(old, new, threshold=args.threshold, relative=args.relative)
    changes = found["changes"]
    if args.format == "json":
        print(
            json.dumps(
                {**found, "changes": [dataclasses.asdict(change) for change in changes]}, indent=2, allow_nan=False
            )
        )
    else:
        print(_table(found, old, new))
    return 1 if any(change.verdict == "slower" for change in changes) else 0


def _table(found: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> str:
    lines = [
        f"old  {old['path']}  (commit {old['commit'] or '-'})",
        f"new  {new['path']}  (commit {new['commit'] or '-'})",
        "",
    ]
    shown = [change for change in found["changes"] if change.verdict != "same"]
    if shown:
        lines.append(f"  {'':8}{'old':>10}{'new':>11}{'new/old':>9}   {'95 % interval':<16}{'p':>7}")
    for change in shown:
        ends = f"[{change.low:.2f}, {change.high:.2f}]"
        lines.append(
            f"  {change.verdict:8}{_seconds(change.old):>10}{_seconds(change.new):>11}{change.ratio:>9.2f}   {ends:<16}"
            f"{change.p_value:>7.3f}   {change.name}"
        )
    same = len(found["changes"]) - len(shown)
    lines += [""] if shown else []
    lines.append(f"{same} of {len(found['changes'])} benchmarks: no change beyond noise")
    for words, names in (("only in old", found["only_old"]), ("only in new", found["only_new"])):
        if names:
            rest = f" and {len(names) - 5} more (--json names them)" if len(names) > 5 else ""
            lines.append(f"{words}: {', '.join(names[:5])}{rest}")
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join(one_line(line, 4000) for line in lines)


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"
