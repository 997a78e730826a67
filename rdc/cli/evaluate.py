"""``rdc evaluate``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rdc.cli.failures import words
from rdc.cli.options import (
    add_image_options,
    add_model_options,
    join_processes,
    leave_processes,
    load_classifier,
    need,
)
from rdc.cli.shell import command_line
from rdc.errors import RdcError, one_line

_HERE = {"--overwrite", "--quiet"}  # options that do not belong in the recorded command
_DEFAULT_BATCH = {"cpu": 32, "cuda": 256}

ABOUT = """Clean and robust accuracy with 95 % intervals. DIR gets report.html, report.json, report.md, model_info.json
(RobustBench) and results.jsonl (per image, as they come). Killed or interrupted, the same command goes on where it
stopped."""
EXAMPLES = """examples:
  rdc evaluate --model fashion-mnist --data fashion-mnist-sample --n 64 --out runs/first
  rdc evaluate --attacks none --n 10000 --out runs/clean
  rdc evaluate --attacks autoattack,adaptive --lm paper-v2 --n 128 --out runs/everything
  rdc evaluate --norm flow --eps 0.05 --attacks stadv --steps 100 --out runs/stadv
  rdc evaluate --noise all --eot 20 --n 64 --out runs/stochastic
  rdc evaluate --model my_package.models:make --attacks autoattack --out runs/mine
  torchrun --nproc-per-node 2 -m -- rdc evaluate --n 512 --threads 1 --out runs/sharded   # mind the --

attacks: apgd-ce, apgd-dlr, apgd-margin, apgd-t, apgd-ce-t, fab, fab-t, square, pgd-ce, pgd-dlr, pgd-margin, stadv, low-frequency,
lagrange, objective, transfer, smoothed, selective, endpoints-ce, endpoints-dlr
(docs/threat_models.md, docs/adaptive_attacks.md), with options as in apgd-ce:gradient=bpda:steps=20,
transfer:surrogate=one-step, square:queries=1000; autoattack, autoattack-plus, autoattack-rand and adaptive stand for several.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc evaluate``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model_options(parser, "fashion-mnist")
    add_image_options(parser, 256)
    _add_attack_options(parser.add_argument_group("attack"))
    _add_run_options(parser.add_argument_group("run"))


def _add_attack_options(threat: Any) -> None:
    threat.add_argument("--norm", default="linf", metavar="NORM", help="linf, l2, l1 or flow (default: %(default)s)")
    threat.add_argument("--eps", default="8/255", help="radius in [0, 1] pixel units (default: %(default)s)")
    threat.add_argument(
        "--attacks",
        default="apgd-ce,apgd-dlr",
        metavar="LIST",
        help="names separated by commas, see below; each attacks what is still robust; none: clean accuracy alone "
        "(default: %(default)s)",
    )
    threat.add_argument("--steps", type=int, default=50, help="of each restart (default: %(default)s)")
    threat.add_argument("--restarts", type=int, default=1, help="(default: %(default)s)")
    threat.add_argument(
        "--gradient",
        default="exact",
        metavar="MODE",
        help="exact, or bpda: likelihood maximisation counts as the identity (default: %(default)s)",
    )
    threat.add_argument(
        "--noise",
        default="known",
        metavar="POLICY",
        help="known: fixed noise that the attacker has; fresh: another draw in every call; all: both, the lowest score "
        "counts (default: %(default)s)",
    )
    threat.add_argument(
        "--eot", type=int, metavar="N", help="draws averaged per gradient against fresh noise (default: 20)"
    )
    threat.add_argument(
        "--resubmissions",
        type=int,
        default=10,
        metavar="N",
        help="fresh noise: how often each image is scored (default: %(default)s)",
    )
    threat.add_argument(
        "--sanity",
        type=int,
        default=8,
        metavar="N",
        help="images on which short extra attacks look for masked gradients; 0: none (default: %(default)s)",
    )
    threat.add_argument("--seed", type=int, default=0, help="of random starts and fresh draws (default: %(default)s)")


def _add_run_options(run: Any) -> None:
    run.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the run (default: runs/MODEL-DATA-...); the same command continues a run that was stopped",
    )
    run.add_argument("--overwrite", action="store_true", help="start afresh in a folder that holds results")
    run.add_argument(
        "--batch", type=int, metavar="N", help="images worked on together (default: 32 on a CPU, 256 on a GPU)"
    )
    run.add_argument(
        "--format",
        default="text",
        choices=("text", "json", "markdown"),
        help="what is printed at the end (default: %(default)s)",
    )
    run.add_argument("--quiet", action="store_true", help="no progress bars, no closing words")


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit status."""
    from rdc.data import load_dataset
    from rdc.evaluation import parse_attacks

    settings = _settings(args)
    need("matplotlib", "PIL")  # for the report
    dataset = load_dataset(args.data, args.split, args.data_root, progress=not args.quiet)
    first = join_processes(args)
    classifier = load_classifier(args, dataset)
    if args.batch is None:
        settings = dataclasses.replace(settings, batch=_DEFAULT_BATCH[classifier.device.type])
    settings = settings.for_defence(classifier, parse_attacks(args.attacks))
    evaluation = _evaluate(args, classifier, dataset, settings)
    if first:
        _finish(args, evaluation, classifier)
    leave_processes()
    return 0


def _settings(args: argparse.Namespace) -> Any:
    """EvaluationSettings from the options of the same names."""
    from rdc.evaluation import EvaluationSettings, parse_attacks

    named = {field.name for field in dataclasses.fields(EvaluationSettings)} - {"dataset", "attacks", "batch"}
    fields = {name: getattr(args, name) for name in named}
    batch = {} if args.batch is None else {"batch": args.batch}
    return EvaluationSettings(dataset=args.data, attacks=parse_attacks(args.attacks), **fields, **batch)


def _evaluate(args: argparse.Namespace, classifier: Any, dataset: Any, settings: Any) -> Any:
    """The run; a KeyboardInterrupt says how to go on."""
    from rdc.evaluation import evaluate

    out, done = _folder(args, settings), [0]

    def count(finished: int, total: int) -> None:
        done[0] = finished

    options = {"command": _command(args.argv), "overwrite": args.overwrite, "progress": not args.quiet}
    with _what_is_kept(args, out, done, settings.n):
        return evaluate(classifier, dataset, settings, out, on_batch=count, **options)


def _finish(args: argparse.Namespace, evaluation: Any, classifier: Any) -> None:
    """Write the reports and print what was asked for."""
    from rdc.reports import write_reports

    count = len(evaluation.images)
    with _what_is_kept(args, evaluation.out, [count], count):
        files = write_reports(evaluation, classifier)
    _print(evaluation, args, files)


@contextlib.contextmanager
def _what_is_kept(args: argparse.Namespace, out: Path, done: list[int], total: int) -> Iterator[None]:
    """An interrupt, and an error of the system (a full disk), say what is kept and how to go on."""
    again = f"  {command_line(args.argv, without=['--overwrite'])}"

    def kept_any() -> bool:
        return bool(done[0]) or any(out.glob("results*.jsonl"))  # of this process, or of any

    def kept(goal: str) -> str:
        if not kept_any():
            return f"No batch is finished yet; {goal}, run the same command again:"
        finished = f"{done[0]} of {total} images are finished and" if done[0] else "Finished batches are"
        return f"{finished} kept in {one_line(out, 400)}; {goal}, run the same command again:"

    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept("to continue"), again) from None
    except BrokenPipeError:  # nobody reads any more
        raise
    except OSError as error:
        if error.errno is None or not kept_any():
            raise
        raise RdcError(f"{words(error)}. {kept('once this is mended')}", again) from error


def _folder(args: argparse.Namespace, settings: Any) -> Path:
    return Path(args.out or _default_folder(settings))


def _command(argv: list[str]) -> str:
    return command_line(argv, without=_HERE)


def _default_folder(settings: Any) -> str:
    def plain(text: str) -> str:
        kept = (character if character.isalnum() or character in ".-" else "-" for character in str(text)[:60])
        return "".join(kept).strip("-")

    parts = [Path(settings.model).name, Path(settings.dataset).name, settings.n]
    parts += [settings.norm, settings.eps, settings.gradient, settings.noise] if settings.attacks else ["clean"]
    return str(Path("runs") / "-".join(plain(part) for part in parts))


def _print(evaluation: Any, args: argparse.Namespace, files: dict[str, Path]) -> None:
    from rdc.reports.markdown import markdown_report

    if args.format == "json":
        print(json.dumps(evaluation.report, indent=2))
    elif args.format == "markdown":
        print(markdown_report(evaluation), end="")
    else:
        print(_table(evaluation))
    if not args.quiet:
        print(
            f"Report: {one_line(files['report.html'], 400)}", file=sys.stderr if args.format == "json" else sys.stdout
        )


def _table(evaluation: Any) -> str:
    from rdc.reports.words import interval, level_words, lm_words, percent, seconds_words, threat_words

    report, settings = evaluation.figures, evaluation.record.identity.settings
    classifier = report.classifier
    first, last = settings.start, settings.start + report.n - 1
    lines = [
        f"{one_line(report.model)} on {one_line(report.dataset)}, images {first} to {last} of the {settings.split} split",
        f"{classifier['head']} network; {level_words(classifier)}; likelihood maximisation: {lm_words(classifier)}",
    ]
    if settings.attacks:
        restarts = f"{settings.restarts} restart{'s' if settings.restarts > 1 else ''}"
        lines.append(
            f"{threat_words(settings)}; {settings.steps} steps, {restarts}; "
            "each attack continues on what the one before left"
        )
    rows = [("clean", report.clean, "")]
    rows += [(f"after {attack.name}", attack, seconds_words(attack.seconds)) for attack in report.attacks]
    if settings.attacks:
        rows.append(("robust to all", report.robust, ""))
    scores = report.scores
    if scores.average and settings.noise != "known":
        submissions = scores.submissions
        words = {
            "known": "known noise",
            "average": "average of draws",
            "majority": f"majority of {submissions}",
            "worst": f"worst of {submissions}",
        }
        rows += [(text, rate, "") for key, text in words.items() if (rate := getattr(scores, key))]
    wide = max(18, *(len(name) + 2 for name, _, _ in rows))
    lines += ["", f"  {'':<{wide}}{'accuracy':>10}   95 % interval"]
    for name, value, time in rows:
        share, ends = percent(value.accuracy), interval(value.ci95)
        lines.append(f"  {name:<{wide}}{share:>10}   {ends:<15}{time:>12}".rstrip())
    lines += ["", *(f"  {flag.severity}: {flag.name} ({flag.evidence})" for flag in report.flags)]
    if not settings.attacks:
        lines = [line for line in lines if "no-attack" not in line]
    return "\n".join(lines).rstrip() + "\n"
