"""``rdc audit``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rdc.arguments.defaults import AuditDefaults
from rdc.cli.images import load_images
from rdc.cli.options import (
    add_format_options,
    add_image_options,
    add_model_options,
    count_all,
    model_choice,
    say_data,
)
from rdc.cli.shell import command_line
from rdc.errors import one_line

if TYPE_CHECKING:
    from rdc.models.choice import ModelChoice

_DEFAULT = AuditDefaults()
_MODEL, _DATA = "fashion-mnist", "fashion-mnist"
_CHOSEN = ("levels", "lm", "lm_model", "precision")  # of a model, and of a run's settings

ABOUT = """Does a model do what an evaluation takes it for, and was done for a run what it claims? Rules about the scale of the images,
roundings and clamps, randomness, memory of queries, dependence on the batch, leaked labels, gradients; with --run about its attacks,
steps and images. Each finding has figures, why it matters, what to do, and a command that shows it. Written to audit.json.
Exit status: 0 no finding but notes, 1 a warning or an error, 2 wrong input."""
EXAMPLES = """examples:
  rdc audit --model fashion-mnist --data fashion-mnist-sample
  rdc audit --model mynet.py:make --data cifar10 --n 64                  # runs the code in mynet.py
  rdc audit --model fashion-mnist --lm paper-v2 --data fashion-mnist-sample --sanity 2
  rdc audit --run runs/first                                             # its model and data, and what it claims
  rdc audit --model mynet.py:make --data cifar10 --sanity 0 --format json

docs/audit.md has every rule with an example, and what an audit cannot see.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc audit``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model_options(parser, _MODEL)
    add_image_options(parser, _DEFAULT)
    group = parser.add_argument_group("audit")
    group.add_argument(
        "--run",
        metavar="DIR",
        help="a folder of rdc evaluate: audit what it claims, too; its model and data are taken where --model and --data are not given",
    )
    group.add_argument(
        "--norm", default=_DEFAULT.norm, metavar="NORM", help="linf or l2, of the short attacks (default: %(default)s)"
    )
    group.add_argument("--eps", default=_DEFAULT.eps, help="their radius in [0, 1] pixel units (default: %(default)s)")
    numbers = {
        "sanity": "images under short attacks; 0: none, and the rules about them are not checked",
        "steps": "of the longest of them",
        "seed": "of changes of the images, random starts and generators",
    }
    for name, text in numbers.items():
        group.add_argument(
            f"--{name}", type=int, default=getattr(_DEFAULT, name), metavar="N", help=f"{text} (default: %(default)s)"
        )
    group.add_argument("--out", metavar="FILE", default="audit.json", help="the report as JSON (default: %(default)s)")
    add_format_options(group)
    group.add_argument("--quiet", action="store_true", help="no progress bar, no closing words")


def run(args: argparse.Namespace) -> int:
    """Audit; returns the exit status."""
    from rdc.audits import AuditSettings, audit

    if args.run is not None:
        _as_in_the_run(args)
    count_all(args)
    names = ("n", "split", "start", "norm", "eps", "sanity", "steps", "seed")
    settings = AuditSettings(**{name: getattr(args, name) for name in names})
    data = load_images(args.data, args.split, args.data_root, progress=not args.quiet)
    choice = model_choice(args)
    say_data(args, [args.model])
    report = audit(
        choice,
        data,
        settings=settings,
        run=args.run,
        name=args.model,
        opened_by=_opened_by(args, choice),
        command=command_line(["evaluate", "--model", args.model, "--data", args.data, "--attacks", "none", "--n", "8"]),
        progress=not args.quiet,
    )
    report.write(args.out)
    print(json.dumps(report.to_json(), indent=2) if args.format == "json" else report.text(), end="")
    if not args.quiet:
        print(f"Report: {one_line(args.out, 400)}", file=sys.stderr if args.format == "json" else sys.stdout)
    return int(report.warns)


def _as_in_the_run(args: argparse.Namespace) -> None:
    """The run's model, data and settings, where the command does not name others."""
    from rdc.audits.claims import settings_of_run
    from rdc.storage.json_records import given

    settings = settings_of_run(args.run).settings

    def named(option: str) -> bool:
        return any(word == option or word.startswith(f"{option}=") for word in args.argv)

    if not named("--model"):
        args.model = settings.model
        for name in _CHOSEN:
            if getattr(args, name) is None:
                setattr(args, name, given(getattr(settings, name)))
    if not named("--data"):
        args.data = settings.dataset
        args.split = args.split if named("--split") else settings.split
        args.start = args.start if named("--start") else settings.start
    if not args.quiet:
        print(f"rdc: auditing {one_line(args.model)} on {one_line(args.data)}", file=sys.stderr)


def _opened_by(args: argparse.Namespace, choice: ModelChoice) -> str:
    """Python that makes model, images and labels as this command has them."""
    data = repr(args.data)
    if args.data_root is not None:
        data = f"rdc.load_dataset({args.data!r}, {args.split!r}, {args.data_root!r})"
    parts = [repr(_found_again(args.model)), data, f"n={args.n}"]
    parts += [f"start={args.start}"] if args.start else []
    parts += [f"split={args.split!r}"] if args.split != _DEFAULT.split else []
    chosen = {name: getattr(choice, name) for name in _CHOSEN if getattr(choice, name) is not None}
    parts += [f"{name}={value!r}" for name, value in chosen.items()]
    return f"model, x, y = rdc.audits.subject({', '.join(parts)})"


def _found_again(model: str) -> str:
    """A file's factory by its whole path, so that the command works in any folder."""
    file, colon, factory = model.rpartition(":")
    return f"{os.fspath(Path(file).resolve())}:{factory}" if colon and file.endswith(".py") else model
