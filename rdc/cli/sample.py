"""``rdc sample``: draw images of every class from a model: a picture to look at, or a data set to train on."""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdc.cli.options import add_device_options, add_format_options, up_to
from rdc.cli.shell import command_line
from rdc.errors import ConfigError, one_line

if TYPE_CHECKING:
    from rdc.method.denoiser import Denoiser
    from rdc.training.drawn import Judge

ABOUT = """Draw images of every class from a model, by EDM's deterministic sampler: a picture of some of them, or, with --images, a data
set in a folder, for --data and --extra-data of rdc train and rdc distill. Killed or interrupted, the same command goes on."""
EXAMPLES = """examples:
  rdc sample runs/teacher --out grid.png
  rdc sample runs/student --out grid.png --per-class 8 --steps 18 --seed 0
  rdc sample runs/teacher --images 50000 --out runs/drawn --precision bfloat16
  rdc sample runs/teacher --images 50000 --out runs/chosen --judge fashion-mnist --judge-above 0.5
"""
_OF_DATA_SETS = ("batch", "judge", "judge_above", "overwrite")  # options; None where they were not given
_BATCH, _ABOVE = 100, 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc sample``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or a shipped model's name")
    parser.add_argument("--out", type=Path, metavar="PATH", help="PNG (samples.png); with --images: folder (drawn)")
    parser.add_argument("--per-class", type=int, metavar="N", help="images a class of the picture (8)")
    parser.add_argument("--steps", type=int, default=18, metavar="N", help="Heun steps (default: 18)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="any integer; of the starting noise (default: 0)"
    )
    parser.add_argument("--sigma-min", type=float, default=0.002, metavar="X", help="(default: 0.002)")
    parser.add_argument("--sigma-max", type=float, default=80.0, metavar="X", help="(default: 80)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the network (default: float32)",
    )
    data = parser.add_argument_group("data set")
    data.add_argument(
        "--images", type=int, metavar="N", help="draw a data set of so many images, of every class as many"
    )
    data.add_argument(
        "--batch", type=up_to(100_000), metavar="N", help="images at a time; ten times as many a file (100)"
    )
    data.add_argument(
        "--judge", metavar="MODEL", help="keep images whose class this classifier names: any model of rdc evaluate"
    )
    data.add_argument("--judge-above", type=float, metavar="P", help="with at least this probability (0.5)")
    data.add_argument(
        "--overwrite", action="store_true", default=None, help="start afresh in a folder that holds images"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_format_options(parser)
    add_device_options(parser)


def run(args: argparse.Namespace) -> int:
    """Draw; returns the exit status."""
    given = [name for name in _OF_DATA_SETS if getattr(args, name) is not None]
    if args.images is None and given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')}: goes with --images N, a data set; add that, or leave it out"
        )
    if args.images is not None and args.per_class is not None:
        raise ConfigError(
            "--images and --per-class: expected one of the two; --per-class is of a picture, --images of a data set"
        )
    if args.judge is None and args.judge_above is not None:
        raise ConfigError("--judge-above: goes with --judge MODEL; name one, or leave it out")
    from rdc.method.denoiser import make_denoiser
    from rdc.training.device import open_device
    from rdc.training.preparation import open_model

    device = open_device(args.device, args.threads)
    network, config, info = open_model(args.model)
    denoiser = make_denoiser(network.to(device), config).in_precision(args.precision)
    names = info.get("class_names") or [str(label) for label in range(config["num_classes"])]
    done = _picture(args, denoiser, names) if args.images is None else _data_set(args, denoiser, names)
    if args.format == "json":
        print(json.dumps({**done, "model": args.model, "steps": args.steps, "seed": args.seed}))
    else:
        print(one_line(next(iter(done.values())), 4000))
    return 0


def _picture(args: argparse.Namespace, denoiser: Denoiser, names: list[str]) -> dict[str, Any]:
    from rdc.method.sampling import sample_classes
    from rdc.plots.figures import plot_samples

    out = args.out or Path("samples.png")
    images = sample_classes(
        denoiser,
        8 if args.per_class is None else args.per_class,
        steps=args.steps,
        seed=args.seed,
        sigma_min=args.sigma_min,
        sigma_max=args.sigma_max,
        progress=not args.quiet,
    )
    plot_samples(images, names, out, f"{args.model}: {args.steps} Heun steps, seed {args.seed}")
    return {"picture": str(out)}


def _data_set(args: argparse.Namespace, denoiser: Denoiser, names: list[str]) -> dict[str, Any]:
    from rdc.training.drawn import draw_dataset
    from rdc.training.preparation import fingerprint

    out = args.out or Path("drawn")
    counted: list[tuple[int, int]] = []
    make = functools.partial(
        draw_dataset,
        denoiser,
        args.images,
        out,
        class_names=names,
        weights=fingerprint(*denoiser.network.state_dict().values()),
        steps=args.steps,
        seed=args.seed,
        sigma_min=args.sigma_min,
        sigma_max=args.sigma_max,
        batch_size=args.batch or _BATCH,
        judge=None if args.judge is None else _judge(args, denoiser, names),
        overwrite=bool(args.overwrite),
        progress=not args.quiet,
        on_part=lambda *now: counted.append(now),
    )
    try:
        data = make()
    except KeyboardInterrupt:
        kept, total = counted[-1] if counted else (0, args.images)
        said = (
            f"{kept:,} of {total:,} images are kept in {one_line(out, 400)}"
            if counted
            else "No part of the images is finished yet"
        )
        again = command_line(args.argv, without=["--overwrite"])
        raise KeyboardInterrupt(f"{said}; to continue, run the same command again:", f"  {again}") from None
    return {"folder": str(out), "images": len(data)}


def _judge(args: argparse.Namespace, denoiser: Denoiser, names: list[str]) -> Judge:
    """The classifier of ``--judge``, which takes the images that are drawn and knows their classes."""
    import torch

    from rdc.data import as_dataset
    from rdc.models.choice import ModelChoice
    from rdc.training.drawn import Judge
    from rdc.training.preparation import fingerprint

    blank = as_dataset(
        torch.zeros(2, *denoiser.image_shape, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), class_names=names
    )
    classifier = ModelChoice(args.judge, device=args.device, threads=args.threads).load(blank)
    shape = getattr(classifier, "image_shape", denoiser.image_shape)
    classes = getattr(classifier, "num_classes", len(names))
    if tuple(shape) != tuple(denoiser.image_shape) or classes != len(names):
        raise ConfigError(
            f"--judge {args.judge}: expected a classifier of images {list(denoiser.image_shape)} (channels, height, width) in {len(names)} "
            f"classes, like {args.model}; it takes {list(shape)} and knows {classes}"
        )
    weights = fingerprint(*classifier.state_dict().values()) if isinstance(classifier, torch.nn.Module) else ""
    return Judge(classifier, _ABOVE if args.judge_above is None else args.judge_above, args.judge, weights)
