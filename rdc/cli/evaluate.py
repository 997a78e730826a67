"""``rdc evaluate``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdc.arguments.defaults import EvaluationDefaults
from rdc.cli.evaluation_request import Request, read_request
from rdc.cli.failures import words
from rdc.cli.images import load_images
from rdc.cli.options import (
    add_format_options,
    add_image_options,
    add_model_options,
    count_all,
    need,
    say_data,
    say_precision,
    warn_if_other_classes,
    warn_if_sorted,
    warn_of_null_label,
)
from rdc.errors import RdcError, one_line

if TYPE_CHECKING:
    from rdc.contracts import Defence
    from rdc.data import Dataset
    from rdc.evaluation import Evaluation, EvaluationSettings
    from rdc.reports import Presented

_DEFAULT = EvaluationDefaults()

ABOUT = """Clean and robust accuracy with 95 % intervals. DIR gets report.html, report.json, report.md, model_info.json
(RobustBench) and results.jsonl (per image, as they come). Killed or interrupted, the same command goes on where it
stopped."""
EXAMPLES = """examples:
  rdc evaluate --model fashion-mnist --data fashion-mnist-sample --n 64 --out runs/first
  rdc evaluate --attacks none --n all --out runs/clean
  rdc evaluate --attacks autoattack,adaptive --lm paper-v2 --n 128 --out runs/everything
  rdc evaluate --model models/edm-cond --lm paper-v2 --lm-model models/edm-uncond --data cifar10 --n 128 --out runs/two-networks
  rdc evaluate --model fashion-mnist-diffpure --attacks apgd-ce,per-step,per-step:measure=deviation --n 32 --out runs/steps
  rdc evaluate --norm corruption --eps 3 --attacks corruptions --n 64 --out runs/corrupted   # or corruptions:kind=contrast
  rdc evaluate --norm flow --eps 0.05 --attacks stadv --steps 100 --out runs/stadv
  rdc evaluate --norm lpips --eps 0.5 --lpips-model fashion-mnist-standard --attacks ppgd,lpa --n 32 --out runs/perceptual
  rdc evaluate --norm l0 --eps 10 --attacks sparse-pgd,sparse-rs:queries=1000 --n 32 --out runs/ten-pixels
  rdc evaluate --threats linf:8/255,l2:0.5,l0:10,flow:0.05 --attacks autoattack,stadv --steps 100 --out runs/threats
  rdc evaluate --n 64 --save-adversarial adv.npz --out runs/kept      # rdc verify adv.npz checks them
  rdc evaluate --attack-precision bfloat16 --attacks autoattack --out runs/faster    # decisions stay in float32
  rdc evaluate --eps 2/255,4/255,8/255,16/255 --out runs/curve
  rdc evaluate --noise all --eot 20 --n 64 --out runs/stochastic
  rdc evaluate --model mynet.py:make --data cifar10 --attacks autoattack --out runs/mine   # runs the code in mynet.py
  torchrun --nproc-per-node 2 -m -- rdc evaluate --n 512 --threads 1 --out runs/sharded   # mind the --

attacks: apgd-ce, apgd-dlr, apgd-margin, apgd-t, apgd-ce-t, fab, fab-t, square, hop-skip-jump, pgd-ce, pgd-dlr, pgd-margin, stadv,
sparse-pgd, sparse-rs (both l0), ppgd, lpa (both lpips), corruptions,
low-frequency, lagrange, objective, per-step, transfer, smoothed, selective, endpoints-ce, endpoints-dlr
(docs/threat_models.md, docs/adaptive_attacks.md), with options as in apgd-ce:gradient=bpda:steps=20,
transfer:surrogate=one-step, square:queries=1000; autoattack, autoattack-plus, autoattack-rand and adaptive stand for several;
pgd and apgd are short for pgd-ce and apgd-ce, and none is no attack.
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

    add(
        "norm",
        "linf, l2, l1, l0 (eps pixels), flow, lpips (eps: a distance of features) or corruption (eps: the largest severity, 1 to 5) ",
        metavar="NORM",
    )
    add(
        "eps",
        "radius in [0, 1] pixel units, of l0 a number of pixels; several, separated by commas, draw accuracy against the radius ",
    )
    threat.add_argument(
        "--threats",
        metavar="LIST",
        help="several threats in one run, as in linf:8/255,l2:0.5,flow:0.05, in place of --norm and --eps: each by itself, their mean, "
        "and images that stand under all; each gets those of --attacks that know its norm; where the list has none, a flow stadv, "
        "l0 sparse-pgd and sparse-rs, lpips ppgd and lpa, corruption corruptions; "
        "a larger radius of a norm begins with the images of the smaller one",
    )
    threat.add_argument(
        "--lpips-model",
        metavar="MODEL",
        help="of lpips: the convolutional classifier whose features measure the distance, such as fashion-mnist-standard, or "
        "torchvision:alexnet,image=3x32x32, whose layers are those of LPIPS",
    )
    add(
        "attacks",
        "names separated by commas, see below; each attacks what is still robust; none: clean accuracy alone ",
        default=",".join(_DEFAULT.attacks),
        metavar="LIST",
    )
    add("steps", "of each restart ", type=int)
    add("restarts", "", type=int)
    add("gradient", "exact, or bpda: likelihood maximisation counts as the identity ", metavar="MODE")
    threat.add_argument(
        "--attack-precision",
        choices=("float32", "bfloat16"),
        help="what the network of a diffusion model computes the attacks' gradients in; what they misclassify is decided again, and all "
        "decisions are made, in --precision (default: --precision)",
    )
    threat.add_argument(
        "--noise",
        metavar="POLICY",
        help="known: fixed noise that the attacker has; fresh: another draw in every call; all: both, the lowest score counts "
        f"(default: the preset's, else {_DEFAULT.noise})",
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
    run.add_argument(
        "--shard",
        metavar="I/N",
        help="do part I of N of the batches alone, counted from 1, for machines that share nothing; each part has a folder of its own, "
        "and rdc merge puts them together (examples/slurm_array.sh)",
    )
    run.add_argument(
        "--save-adversarial",
        nargs="?",
        const="",
        metavar="FILE",
        help="write the most damaging image found for each to FILE: .npz (images, positions, labels), or .pt (RobustBench's tensor, "
        "float32 [N, C, H, W] in [0, 1]); without FILE adversarial.npz in the run's folder; of several threats a file each; "
        "rdc verify checks them",
    )
    run.add_argument("--overwrite", action="store_true", help="start afresh in a folder that holds results")
    run.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help=f"images worked on together (default: {_DEFAULT.batch} on a CPU, {_DEFAULT.batch_on_a_gpu} on a GPU)",
    )
    add_format_options(run, "markdown")
    run.add_argument(
        "--quiet", action="store_true", help="no progress bars, no prediction of the time, no closing words"
    )
    run.add_argument(
        "--dry-run", action="store_true", help="print what would be run and how long it would take here, and stop"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit status."""
    from rdc.evaluation.files import precision_chosen_before
    from rdc.execution.processes import leave_processes
    from rdc.models.precision import AUTO

    count_all(args)
    request = read_request(args)
    if not request.dry_run:
        need("matplotlib", "PIL")  # for the report
    settings, quiet = request.settings, request.quiet
    dataset = load_images(settings.dataset, settings.split, request.data_root, progress=not quiet)
    model, first = request.model.joined()
    if first:
        say_data(args, [args.model])
        warn_if_sorted(dataset, settings.start, settings.n)
    if args.precision == AUTO and not request.overwrite:
        model = dataclasses.replace(model, chosen_precision=precision_chosen_before(request.first_folder))
    classifier = model.load(dataset)
    if first:
        say_precision(classifier)
        warn_if_other_classes(classifier, dataset, settings.model)
        warn_of_null_label(classifier)
    every = request.threats_for(classifier) if request.threats else (request.settings_for(classifier),)
    if request.dry_run:
        if first:
            print("\n".join(_forecast(classifier, dataset, one, request, request.out) for one in every), end="")
        leave_processes()
        return 0
    with _what_is_kept(request) as count:
        work = _part if request.shard else _several if request.threats else _one
        shown = work(classifier, dataset, every, request, first, count)
    if shown is not None:
        _print(shown, request)
    leave_processes()
    return 0


def _one(
    classifier: Defence,
    dataset: Dataset,
    every: tuple[EvaluationSettings, ...],
    request: Request,
    first: bool,
    count: Callable[[int, int], None],
) -> Presented | None:
    """Evaluate under one threat; what is to be printed, in the first process."""
    from rdc import reports
    from rdc.evaluation import evaluate
    from rdc.execution.processes import by_the_first

    (settings,) = every
    if first and not request.quiet:
        _say_how_long(classifier, dataset, settings, request, request.out)
    evaluation = evaluate(classifier, dataset, settings, request.out, on_batch=count, **request.options)
    count(settings.n, settings.n)  # all processes

    def told() -> Presented:
        _save(evaluation, request.adversarial_of())
        return reports.present(evaluation, classifier, request.form)

    return by_the_first(told)


def _several(
    classifier: Defence,
    dataset: Dataset,
    every: tuple[EvaluationSettings, ...],
    request: Request,
    first: bool,
    count: Callable[[int, int], None],
) -> Presented | None:
    """Evaluate under every threat; what is to be printed, in the first process."""
    from rdc import reports
    from rdc.evaluation import evaluate_threats
    from rdc.execution.processes import by_the_first

    def say(settings: EvaluationSettings, folder: Path) -> None:
        if first and not request.quiet:
            print(f"rdc: {settings.norm} {settings.eps}", file=sys.stderr, flush=True)
            _say_how_long(classifier, dataset, settings, request, folder)

    evaluation = evaluate_threats(
        classifier, dataset, every, request.out, on_batch=count, on_threat=say, **request.options
    )
    count(request.images, request.images)

    def told() -> Presented:
        for threat, run in zip(request.threats, evaluation.runs, strict=True):
            _save(run, request.adversarial_of(threat))
        return reports.present_threats(evaluation, classifier, request.form)

    return by_the_first(told)


def _part(
    classifier: Defence,
    dataset: Dataset,
    every: tuple[EvaluationSettings, ...],
    request: Request,
    first: bool,
    count: Callable[[int, int], None],
) -> None:
    """Evaluate a part of the batches; there is no report of it."""
    from rdc.evaluation.run import evaluate_part
    from rdc.evaluation.threat_run import evaluate_threats_part

    assert request.shard is not None
    given: dict[str, Any] = {"on_batch": count, **request.options}
    if request.threats:
        evaluate_threats_part(classifier, dataset, every, request.out, request.shard.has, **given)
    else:
        evaluate_part(classifier, dataset, every[0], request.out, request.shard.has, **given)
    if first and not request.quiet:
        where = one_line(request.out, 400)
        print(f"Part {request.shard} is finished in {where}; rdc merge puts the parts together", file=sys.stderr)


def _save(evaluation: Evaluation, path: Path | None) -> None:
    """Write the adversarial images of a run, if they are asked for."""
    if path is not None:
        from rdc.evaluation.adversarial_files import adversarial_images, save_adversarial

        save_adversarial(path, adversarial_images(evaluation))


def _say_how_long(
    classifier: Defence, dataset: Dataset, settings: EvaluationSettings, request: Request, folder: Path
) -> None:
    """A line on stderr; whatever prevents it is met again by the run itself, which says so."""
    try:
        text = _forecast(classifier, dataset, settings, request, folder)
    except Exception:
        return
    if text:
        print(f"rdc: {text}", file=sys.stderr, flush=True)


def _forecast(
    classifier: Defence, dataset: Dataset, settings: EvaluationSettings, request: Request, folder: Path
) -> str:
    """How long it will take, "" where all is done; for --dry-run what would be run, too."""
    from rdc.evaluation.cost import predict
    from rdc.evaluation.results import finished_batches
    from rdc.evaluation.run import chosen_images
    from rdc.reports.forecast import forecast_line, plan_text

    chosen_images(classifier, dataset, settings)
    finished = 0 if request.overwrite or request.dry_run else finished_batches(folder)
    left = settings.n - finished * settings.batch
    if left <= 0:
        return ""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    prediction = predict(classifier, dataset, settings, finished=finished, processes=processes)
    if request.dry_run:
        return plan_text(prediction, settings, classifier)
    return forecast_line(prediction, settings) + (f", for the {left} images that are left" if finished else "")


def _print(shown: Presented, request: Request) -> None:
    print(shown.text, end="")
    if not request.quiet:
        print(f"Report: {one_line(shown.page, 400)}", file=sys.stderr if request.form == "json" else sys.stdout)


@contextlib.contextmanager
def _what_is_kept(request: Request) -> Iterator[Callable[[int, int], None]]:
    """An interrupt, and an error of the system (a full disk), say what is kept and how to go on.

    Gives a function to be called with the images finished, and all images, after each batch.
    """
    out, again, done = request.out, f"  {request.again}", [0, request.images]

    def count(finished: int, total: int) -> None:
        done[:] = finished, total

    def kept_any() -> bool:
        return bool(done[0]) or any(
            out.glob(f"{'*/' if request.threats else ''}results*.jsonl")
        )  # of this process, or of any

    def kept(goal: str) -> str:
        if not kept_any():
            return f"No batch is finished yet; {goal}, run the same command again:"
        finished = f"{done[0]} of {done[1]} images are finished and" if done[0] else "Finished batches are"
        return f"{finished} kept in {one_line(out, 400)}; {goal}, run the same command again:"

    try:
        yield count
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept("to continue"), again) from None
    except BrokenPipeError:  # nobody reads any more
        raise
    except OSError as error:
        if error.errno is None or not kept_any():
            raise
        raise RdcError(f"{words(error)}. {kept('once this is mended')}", again) from error
