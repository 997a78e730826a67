"""``rdc likelihood``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rdc.arguments.defaults import LikelihoodDefaults
from rdc.cli.images import load_images
from rdc.cli.options import (
    add_format_options,
    add_image_options,
    add_model_options,
    count_all,
    model_choice,
    say_precision,
    up_to,
)
from rdc.cli.shell import command_line
from rdc.errors import one_line

_HERE = {"--overwrite", "--quiet"}  # options that do not belong in the recorded command
_DEFAULT = LikelihoodDefaults()

ABOUT = """How likely are images to a diffusion model, class by class? log p(x|y) by the probability-flow ODE, the ELBO beside it, and
the gap between the two, in bits per dimension of 8-bit images (uniform dequantisation). DIR gets results.jsonl (per image, nats, as they
come) and report.json. Killed or interrupted, the same command goes on where it stopped. docs/likelihood.md says what each number means."""
EXAMPLES = """examples:
  rdc likelihood --model fashion-mnist-teacher --data fashion-mnist-sample --n 16 --out runs/likelihood
  rdc likelihood --model fashion-mnist-teacher --n 200 --steps 20 --probes 2 --out runs/finer
  rdc likelihood --model runs/teacher --n 1 --probes exact --steps 12 --out runs/exact   # a product for every pixel: slow
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc likelihood``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model_options(parser, "fashion-mnist-teacher")
    add_image_options(parser, _DEFAULT)
    how = parser.add_argument_group("likelihood")

    def add(name: str, about: str, kind: Any, **more: Any) -> None:
        default = getattr(_DEFAULT, name.replace("-", "_"))
        how.add_argument(f"--{name}", type=kind, default=default, help=f"{about} (default: %(default)s)", **more)

    add("steps", "steps of the ODE, two (heun) or four (rk4) network passes each", int, metavar="N")
    add("solver", "rk4 or heun", str, choices=("rk4", "heun"))
    add("probes", "random signs for the divergence; or exact: a product for every pixel", _probes, metavar="N")
    add("sigma-min", "noise level of the density", float, metavar="X")
    add("sigma-max", "noise level of the prior", float, metavar="X")
    add("rho", "curvature of the ODE's grid: larger puts more steps at low levels", float, metavar="X")
    add("elbo-levels", "noise levels of the ELBO, two network passes each", int, metavar="N")
    add("seed", "of probes, noise and dequantisation: any integer", int, metavar="N")
    run = parser.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/likelihood-DATA-N)")
    run.add_argument("--overwrite", action="store_true", help="start afresh in a folder that holds results")
    run.add_argument(
        "--batch",
        type=up_to(100_000),
        default=_DEFAULT.batch,
        metavar="N",
        help="images worked on together (default: %(default)s)",
    )
    add_format_options(run)
    run.add_argument("--quiet", action="store_true", help="no progress bar, no closing words")


def _probes(text: str) -> int | str:
    return text if text == "exact" else int(text)


def run(args: argparse.Namespace) -> int:
    """Compute; returns the exit status."""
    from rdc.evaluation.likelihoods import likelihoods
    from rdc.method.likelihood import LikelihoodSettings
    from rdc.method.probability_flow import FlowSettings

    count_all(args)
    flow = FlowSettings(args.steps, args.probes, args.sigma_min, args.sigma_max, args.rho, args.solver)
    settings = LikelihoodSettings(flow, args.elbo_levels, args.seed)
    dataset = load_images(args.data, args.split, args.data_root, progress=not args.quiet)
    classifier = model_choice(args).load(dataset)
    say_precision(classifier)
    out, done = Path(args.out or Path("runs") / f"likelihood-{Path(args.data).name}-{args.n}"), [0]

    def count(finished: int, total: int) -> None:
        done[0] = finished

    try:
        report = likelihoods(
            classifier, dataset, settings, out, model=args.model, n=args.n, start=args.start, batch=args.batch,
            command=command_line(args.argv, without=_HERE), overwrite=args.overwrite, progress=not args.quiet, on_batch=count,
        )  # fmt: skip
    except KeyboardInterrupt:
        again = command_line(args.argv, without=["--overwrite"])
        kept = (
            f"{done[0]} of {args.n} images are finished and kept in {one_line(out, 400)}"
            if done[0]
            else "No batch is finished yet"
        )
        raise KeyboardInterrupt(f"{kept}; to continue, run the same command again:", f"  {again}") from None
    print(
        json.dumps(report, indent=2) if args.format == "json" else _table(report),
        end="\n" if args.format == "json" else "",
    )
    if not args.quiet:
        stream = sys.stderr if args.format == "json" else sys.stdout
        print(f"Report: {one_line(out / 'report.json', 400)}", file=stream)
    return 0


def _table(report: dict[str, Any]) -> str:
    first, last, how = report["start"], report["start"] + report["n"] - 1, report["settings"]
    lines = [
        f"{one_line(report['model'])} on {one_line(report['dataset'])}, images {first} to {last} of the {report['split']} split",
        f"sigma {how['sigma_min']:g} to {how['sigma_max']:g}, {how['steps']} steps of {how['solver']}, probes: {how['probes']}; "
        f"ELBO of {how['levels']} levels",
        "",
        f"  {'bits per dimension':<32}{'mean':>8}   95 % interval",
    ]
    named = {
        "right class, ODE": report["bits_per_dimension"]["ode"],
        "right class, ELBO": report["bits_per_dimension"]["elbo"],
    }
    named |= {"gap, right class": report["gap"]}
    named |= {f"gap, {one_line(name, 24)} for all": found for name, found in report["gap_of_class"].items()}
    for name, found in named.items():
        if found["mean"] is None:
            lines.append(f"  {name:<32}{'not finite':>8}")
            continue
        low, high = found["ci95"]
        lines.append(f"  {name:<32}{found['mean']:>8.4f}   [{low:.4f}, {high:.4f}]")
    lines += ["", f"  {'decisions':<32}{'share':>8}   95 % interval"]
    shares = {f"right by {name}": found for name, found in report["decisions"].items()}
    shares |= {f"{name} differ": found for name, found in report["differ"].items()}
    for name, found in shares.items():
        low, high = (100 * end for end in found["ci95"])
        lines.append(f"  {name:<32}{100 * found['share']:>7.1f}%   [{low:.1f}, {high:.1f}]")
    return "\n".join(lines) + "\n"
