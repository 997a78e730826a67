"""``rdc evaluate``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdc.arguments.defaults import EvaluationDefaults
from rdc.cli.failures import words
from rdc.cli.options import (
    add_image_options,
    add_model_options,
    join_processes,
    leave_processes,
    model_choice,
    need,
)
from rdc.cli.shell import command_line
from rdc.errors import RdcError, one_line

if TYPE_CHECKING:
    from rdc.evaluation import EvaluationSettings
    from rdc.models.choice import ModelChoice

_HERE = {"--overwrite", "--quiet"}  # options that do not belong in the recorded command
_DEFAULT = EvaluationDefaults()

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
    add_image_options(parser, _DEFAULT)
    _add_attack_options(parser.add_argument_group("attack"))
    _add_run_options(parser.add_argument_group("run"))


def _add_attack_options(threat: Any) -> None:
    def add(name: str, about: str, **more: Any) -> None:
        default = {"default": getattr(_DEFAULT, name), **more}
        threat.add_argument(f"--{name}", help=f"{about}(default: %(default)s)", **default)

    add("norm", "linf, l2, l1 or flow ", metavar="NORM")
    add("eps", "radius in [0, 1] pixel units ")
    add(
        "attacks",
        "names separated by commas, see below; each attacks what is still robust; none: clean accuracy alone ",
        default=",".join(_DEFAULT.attacks),
        metavar="LIST",
    )
    add("steps", "of each restart ", type=int)
    add("restarts", "", type=int)
    add("gradient", "exact, or bpda: likelihood maximisation counts as the identity ", metavar="MODE")
    add(
        "noise",
        "known: fixed noise that the attacker has; fresh: another draw in every call; all: both, the lowest score counts ",
        metavar="POLICY",
    )
    threat.add_argument(
        "--eot",
        type=int,
        metavar="N",
        help=f"draws averaged per gradient against fresh noise (default: {_DEFAULT.eot})",
    )
    add("resubmissions", "fresh noise: how often each image is scored ", type=int, metavar="N")
    add("sanity", "images on which short extra attacks look for masked gradients; 0: none ", type=int, metavar="N")
    add("seed", "of random starts and fresh draws ", type=int)


def _add_run_options(run: Any) -> None:
    run.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the run (default: runs/MODEL-DATA-...); the same command continues a run that was stopped",
    )
    run.add_argument("--overwrite", action="store_true", help="start afresh in a folder that holds results")
    run.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help=f"images worked on together (default: {_DEFAULT.batch} on a CPU, {_DEFAULT.batch_on_a_gpu} on a GPU)",
    )
    run.add_argument(
        "--format",
        default="text",
        choices=("text", "json", "markdown"),
        help="what is printed at the end (default: %(default)s)",
    )
    run.add_argument("--quiet", action="store_true", help="no progress bars, no closing words")


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of ``rdc evaluate``, read and checked.

    Args:
        settings: what to evaluate; its batch is for a CPU unless ``batch_given``.
        attacks: as they were named, suites not written out.
        model: which model.
        data_root: the only folder to look for the data in; None: the usual ones.
        out: folder of the run.
        command: the command line for the report.
        again: the command line that continues the run.
        batch_given: whether the size of a batch was asked for.
        overwrite, quiet, form: the options of these names; ``form`` is ``--format``.
    """

    settings: EvaluationSettings
    attacks: tuple[str, ...]
    model: ModelChoice
    data_root: str | None
    out: Path
    command: str
    again: str
    batch_given: bool
    overwrite: bool
    quiet: bool
    form: str

    def settings_for(self, classifier: Any) -> EvaluationSettings:
        """The settings on this classifier's device, without the parts of suites that it does not offer."""
        settings = self.settings
        if not self.batch_given and classifier.device.type == "cuda":
            settings = dataclasses.replace(settings, batch=_DEFAULT.batch_on_a_gpu)
        return settings.for_defence(classifier, self.attacks)


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit status."""
    from rdc.data import load_dataset

    request = _request(args)
    need("matplotlib", "PIL")  # for the report
    settings, quiet = request.settings, request.quiet
    dataset = load_dataset(settings.dataset, settings.split, request.data_root, progress=not quiet)
    model, first = join_processes(request.model)
    _evaluate(request, model.load(dataset), dataset, first)
    leave_processes()
    return 0


def _request(args: argparse.Namespace) -> Request:
    from rdc.evaluation import EvaluationSettings, parse_attacks

    attacks = parse_attacks(args.attacks)
    named = {field.name for field in dataclasses.fields(EvaluationSettings)} - {"dataset", "attacks", "batch"}
    fields = {name: getattr(args, name) for name in named}
    batch = {} if args.batch is None else {"batch": args.batch}
    settings = EvaluationSettings(dataset=args.data, attacks=attacks, **fields, **batch)
    return Request(
        settings,
        attacks,
        model_choice(args),
        args.data_root,
        out=Path(args.out or _default_folder(settings)),
        command=command_line(args.argv, without=_HERE),
        again=command_line(args.argv, without=["--overwrite"]),
        batch_given=args.batch is not None,
        overwrite=args.overwrite,
        quiet=args.quiet,
        form=args.format,
    )


def _evaluate(request: Request, classifier: Any, dataset: Any, first: bool) -> None:
    """The run and, in the first process, its reports and what is printed."""
    from rdc.evaluation import evaluate
    from rdc.reports import write_reports

    settings, done = request.settings_for(classifier), [0]

    def count(finished: int, total: int) -> None:
        done[0] = finished

    options: dict[str, Any] = {
        "command": request.command,
        "overwrite": request.overwrite,
        "progress": not request.quiet,
    }
    with _what_is_kept(request, done):
        evaluation = evaluate(classifier, dataset, settings, request.out, on_batch=count, **options)
        done[0] = len(evaluation.images)
        files = write_reports(evaluation, classifier) if first else {}
    if first:
        _print(evaluation, request, files)


@contextlib.contextmanager
def _what_is_kept(request: Request, done: list[int]) -> Iterator[None]:
    """An interrupt, and an error of the system (a full disk), say what is kept and how to go on."""
    out, again = request.out, f"  {request.again}"

    def kept_any() -> bool:
        return bool(done[0]) or any(out.glob("results*.jsonl"))  # of this process, or of any

    def kept(goal: str) -> str:
        if not kept_any():
            return f"No batch is finished yet; {goal}, run the same command again:"
        finished = f"{done[0]} of {request.settings.n} images are finished and" if done[0] else "Finished batches are"
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


def _default_folder(settings: EvaluationSettings) -> str:
    def plain(text: object) -> str:
        kept = (character if character.isalnum() or character in ".-" else "-" for character in str(text)[:60])
        return "".join(kept).strip("-")

    parts: list[object] = [Path(settings.model).name, Path(settings.dataset).name, settings.n]
    parts += [settings.norm, settings.eps, settings.gradient, settings.noise] if settings.attacks else ["clean"]
    return str(Path("runs") / "-".join(plain(part) for part in parts))


def _print(evaluation: Any, request: Request, files: dict[str, Path]) -> None:
    from rdc.reports.markdown import markdown_report

    if request.form == "json":
        print(json.dumps(evaluation.report, indent=2))
    elif request.form == "markdown":
        print(markdown_report(evaluation), end="")
    else:
        print(_table(evaluation))
    if not request.quiet:
        print(
            f"Report: {one_line(files['report.html'], 400)}", file=sys.stderr if request.form == "json" else sys.stdout
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
