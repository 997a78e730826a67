"""``rdc bench cost``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rdc.cli.images import load_images
from rdc.cli.options import add_format_options, add_several_models, model_choice, need, positive_int
from rdc.cli.shell import command_line
from rdc.errors import ConfigError, one_line

if TYPE_CHECKING:
    from rdc.costs import MeasuredModel

ABOUT = """What a prediction and an attack step cost: models beside each other, on the same images, machine and threads. They take turns, so
that whatever else the machine does hits all alike; with one thread the process's own CPU time is counted. The most memory that a process
holds is measured in a process of its own for every model, batch and kind of work. DIR gets cost.json and, with --report, cost.png."""
EXAMPLES = """a model: NAME[@setting=value]..., as for rdc gradients; settings are levels, lm, gradient (exact or bpda) and label

examples:
  rdc bench cost --model fashion-mnist@label=DC --model fashion-mnist@lm=paper-v2@label=RDC --threads 1
  rdc bench cost --model fashion-mnist --model fashion-mnist@levels=accurate --batch 1,32 --work prediction --memory off
  rdc bench cost --model fashion-mnist@label=DC --report DC=runs/dc --out runs/cost
"""
_DATA = "fashion-mnist-sample"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc bench cost``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_several_models(parser, "fashion-mnist")
    what = parser.add_argument_group("measures")
    what.add_argument("--data", default=_DATA, metavar="NAME", help="where images come from (default: %(default)s)")
    what.add_argument("--data-root", metavar="DIR", help="the only folder to look for the data in")
    what.add_argument(
        "--batch", default="1,8,32,128", metavar="LIST", help="images of a call, ascending (default: %(default)s)"
    )
    what.add_argument(
        "--work", default="prediction,gradient", metavar="LIST", help="prediction, gradient (default: %(default)s)"
    )
    what.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="timed calls of each (default: %(default)s)"
    )
    what.add_argument(
        "--memory", choices=("on", "off"), default="on", help="measure the memory of processes (default: %(default)s)"
    )
    what.add_argument(
        "--longest", type=float, default=120.0, metavar="S", help="longer calls are left out (default: %(default)s s)"
    )
    what.add_argument(
        "--report",
        action="append",
        default=[],
        metavar="LABEL=PATH",
        help="folder or report.json of an rdc evaluate of the model of this label: its accuracies are drawn against the costs",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--out", metavar="DIR", help="folder for cost.json and cost.png; made if missing (default: none is written)"
    )
    add_format_options(run)
    run.add_argument("--quiet", action="store_true", help="no progress bar, no closing words")


def run(args: argparse.Namespace) -> int:
    """Measure; returns the exit status."""
    from rdc.costs import CostSettings, cost_table, measure_costs, read_accuracy, write_plot
    from rdc.storage.json_files import write_json

    settings = CostSettings(
        batches=tuple(_numbers(args.batch)),
        work=tuple(word.strip() for word in args.work.split(",")),
        rounds=args.rounds,
        memory=args.memory == "on",
        longest=args.longest,
    )
    accuracies = [read_accuracy(text) for text in args.report]
    if args.out and accuracies:
        need("matplotlib")  # for the plot
    models = _models(args)
    dataset = load_images(args.data, "test", args.data_root, progress=not args.quiet)
    report = measure_costs(
        models,
        dataset,
        settings,
        accuracies=accuracies,
        command=command_line(args.argv, without=["--quiet"]),
        progress=not args.quiet,
    )
    written = []
    if args.out:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "cost.json", report)
        written = [out / "cost.json", *filter(None, [write_plot(report, out) if accuracies else None])]
    print(json.dumps(report, indent=2, allow_nan=False) if args.format == "json" else cost_table(report))
    if written and not args.quiet:
        names = ", ".join(one_line(path, 400) for path in written)
        print(f"Written: {names}", file=sys.stderr if args.format == "json" else sys.stdout)
    return 0


def _numbers(text: str) -> list[int]:
    """Integers >= 1, separated by commas."""
    try:
        return [positive_int(word.strip()) for word in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--batch: {error}") from None


def _models(args: argparse.Namespace) -> list[MeasuredModel]:
    from rdc.costs import MeasuredModel
    from rdc.gradient_analysis import parse_model

    found = []
    if args.precision == "auto":
        raise ConfigError(
            "--precision: expected float32 or bfloat16 here; got auto. This command measures what either costs"
        )
    for text in map(parse_model, args.model or ["fashion-mnist"]):
        own = {name: getattr(text, name) for name in ("levels", "lm") if getattr(text, name) is not None}
        choice = dataclasses.replace(model_choice(args, text.name), **own)
        found.append(MeasuredModel(text.label, choice, text.gradient))
    return found
