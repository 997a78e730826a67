"""``rdc sample``: draw images of every class from a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rdc.cli.options import add_device_options, add_format_options
from rdc.errors import one_line

EXAMPLES = """examples:
  rdc sample runs/teacher --out grid.png
  rdc sample runs/student --out grid.png --per-class 8 --steps 18 --seed 0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc sample``."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or a shipped model's name")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), metavar="PNG", help="(default: %(default)s)")
    parser.add_argument("--per-class", type=int, default=8, metavar="N", help="images a class (default: 8)")
    parser.add_argument("--steps", type=int, default=18, metavar="N", help="Heun steps (default: 18)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="any integer; of the starting noise (default: 0)"
    )
    parser.add_argument("--sigma-min", type=float, default=0.002, metavar="X", help="(default: 0.002)")
    parser.add_argument("--sigma-max", type=float, default=80.0, metavar="X", help="(default: 80)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_format_options(parser)
    add_device_options(parser)


def run(args: argparse.Namespace) -> int:
    """Draw the grid; returns the exit status."""
    from rdc.method.denoiser import make_denoiser
    from rdc.method.sampling import sample_classes
    from rdc.plots.figures import plot_samples
    from rdc.training.device import open_device
    from rdc.training.preparation import open_model

    device = open_device(args.device, args.threads)
    network, config, info = open_model(args.model)
    images = sample_classes(
        make_denoiser(network.to(device), config),
        args.per_class,
        steps=args.steps,
        seed=args.seed,
        sigma_min=args.sigma_min,
        sigma_max=args.sigma_max,
        progress=not args.quiet,
    )
    names = info.get("class_names") or [str(label) for label in range(config["num_classes"])]
    plot_samples(images, names, args.out, f"{args.model}: {args.steps} Heun steps, seed {args.seed}")
    if args.format == "json":
        print(json.dumps({"picture": str(args.out), "model": args.model, "steps": args.steps, "seed": args.seed}))
    else:
        print(one_line(args.out, 4000))
    return 0
