"""What ``rdc train`` and ``rdc distill`` share: options, the recipe that they say, and what is printed of the run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdc.cli.images import DATA, load_images
from rdc.cli.options import add_device_options, add_format_options
from rdc.cli.shell import command_line
from rdc.errors import ConfigError, one_line

if TYPE_CHECKING:
    from rdc.training import Recipe, Training

__all__ = [
    "AUGMENT_HELP",
    "SETTINGS",
    "THREATS_HELP",
    "THREAT_CHOICES",
    "THREAT_CHOICE_HELP",
    "add_run_arguments",
    "follow",
    "recipe_of",
]

_JUDGED = 20  # held-out images that say something of a model
_WEAK = 0.5  # share of the held-out images that are right
_LONGER = (
    "that is little to go on: train longer (--images, --minutes), in smaller steps (--batch-size 16 --lr 3e-3), or with "
    "--posterior-weight (teacher 0.3, student 1); docs/training.md"
)
INTERRUPTED = 128  # exit status: this plus the signal's number
THREATS_HELP = "norms and radii, or ranges of radii, as in linf:2/255..0.1,l2:0.5..1.5,flow:0.05"
THREAT_CHOICES = ("drawn", "worst")  # those of rdc.training.threats that students have; its import takes a second
THREAT_CHOICE_HELP = "one of these for each image, or the one that it loses most by (drawn)"
AUGMENT_HELP = "probability of each of EDM's transformations, of which the network is told (0; EDM: 0.12)"

#: option -> setting of the recipe, of both commands; an option that was not given is None
SETTINGS = {
    "data": "data",
    "extra_data": "extra_data",
    "extra_share": "extra_share",
    "holdout": "holdout",
    "calibrate": "calibrate",
    "minutes": "minutes",
    "init": "init",
    "augment": "augment",
    "shift": "shift",
    "levels": "levels",
    **{f"select_{name}": f"selection.{name}" for name in ("every", "threats", "images", "steps")},
    "noise_mean": "noise.mean",
    "noise_std": "noise.std",
    "lr": "train.learning_rate",
    "seed": "train.seed",
    **{
        name: f"train.{name}"
        for name in (
            *("images", "batch_size", "warmup_images", "ema_images", "clip", "weight_decay", "awp", "flip"),
            *("precision", "compile", "memory_format", "cuda_graph", "checkpoint_seconds"),
        )
    },
}


def add_run_arguments(parser: argparse.ArgumentParser, learning_rate: str) -> None:
    """Options of every training command. Defaults are the recipe's; the texts name them.

    Args:
        learning_rate: what the text says of ``--lr``'s default.
    """
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder; a run in it is continued")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="recipe (TOML); options given beside it override it"
    )
    _add_data(parser)
    length = parser.add_argument_group("training")
    length.add_argument("--images", type=int, metavar="N", help="images to process (360000)")
    length.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="in place of --images: end within M minutes of the start, with as many images as the measured speed allows",
    )
    parser.set_defaults(begun=time.monotonic())
    length.add_argument("--batch-size", type=int, metavar="N", help="images a step, all processes (64)")
    length.add_argument("--lr", type=float, metavar="X", help=f"peak of Adam's ({learning_rate})")
    length.add_argument("--warmup-images", type=int, metavar="N", help="until the peak (10000)")
    length.add_argument("--ema-images", type=int, metavar="N", help="half-life of the average (15000)")
    length.add_argument("--clip", type=float, metavar="X", help="largest gradient norm (1.0)")
    length.add_argument("--weight-decay", type=float, metavar="X", help="AdamW's, of matrices (0: Adam)")
    length.add_argument(
        "--awp", type=float, metavar="X", help="adversarial weight perturbation, 0.005 is usual (0: off)"
    )
    length.add_argument("--noise-mean", type=float, metavar="X", help="mean of ln sigma (EDM: -1.2)")
    length.add_argument("--noise-std", type=float, metavar="X", help="standard deviation of ln sigma (EDM: 1.2)")
    length.add_argument(
        "--levels", metavar="LEVELS", help="to ask a diffusion model at; recorded as its own (default: log:4:...)"
    )
    length.add_argument("--seed", type=int, metavar="N")
    _add_selection(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--precision", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    _add_switch(speed, "--compile", "torch.compile: minutes to start, then faster")
    speed.add_argument(
        "--memory-format",
        choices=("channels_last", "contiguous"),
        help="of the weights on a GPU (channels_last)",
    )
    _add_switch(speed, "--cuda-graph", "record a step once and replay it: no waiting for Python (GPU)")
    speed.add_argument("--checkpoint-seconds", type=float, metavar="S", help="time between checkpoints (default: 60)")
    add_device_options(speed)
    speed.add_argument("--quiet", action="store_true", help="no progress bar")
    add_format_options(speed)


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="NAME", help=f"{DATA} (default: fashion-mnist)")
    data.add_argument("--data-root", type=Path, metavar="DIR", help="folder with the data set's files")
    data.add_argument(
        "--extra-data", metavar="NAME", help="more images, such as those of rdc sample --images, beside these (none)"
    )
    data.add_argument("--extra-share", type=float, metavar="S", help="of them in every batch (0.5)")
    data.add_argument("--download", action="store_true", help="fetch Fashion-MNIST if it is nowhere to be found")
    data.add_argument(
        "--holdout",
        type=int,
        metavar="N",
        help="training images to leave out, balanced (a tenth for --calibrate, at most 500; else none)",
    )
    text = "at the end, fit a diffusion model's confidence on images that were left out (on); the second form: off"
    data.add_argument("--calibrate", action=argparse.BooleanOptionalAction, default=None, help=text)
    _add_switch(data, "--flip", "mirror half of the images left to right")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_argument_group("selection: keep the averaged weights that held-out images stand best by")
    choice.add_argument("--select-every", type=int, metavar="N", help="attack them every N images of training (off)")
    choice.add_argument("--select-threats", metavar="LIST", help="under these: the mean counts (linf:8/255)")
    choice.add_argument("--select-images", type=int, metavar="N", help="held-out images (250)")
    choice.add_argument("--select-steps", type=int, metavar="N", help="of each attack (10)")


def _add_switch(group: Any, option: str, text: str) -> None:
    """An option and its ``--no-`` form, without value; None where neither was given: then the recipe decides."""
    about = f"{text} (off); the second form: off, whatever the recipe says"
    group.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=about)


def recipe_of(args: argparse.Namespace, settings: Mapping[str, str], methods: tuple[str, ...]) -> Recipe:
    """The recipe that the options say, over that of ``--config``.

    Args:
        settings: option -> setting of the recipe, such as ``{"lr": "train.learning_rate"}``.
        methods: those of the command; the first is taken where nothing names one.

    Raises:
        ConfigError: a setting is wrong, or the file's method is another command's.
    """
    from rdc.training.recipe_files import read_toml
    from rdc.training.recipe_settings import Source, merged, recipe_from
    from rdc.training.recipes import DEFAULT_DATA

    given = {key: getattr(args, name) for name, key in settings.items() if getattr(args, name, None) is not None}
    options = {key: f"--{name.replace('_', '-')}" for name, key in settings.items() if key in given}
    source = Source("" if args.config is None else str(args.config), options)
    tree = {} if args.config is None else read_toml(args.config)
    tree = {"method": methods[0], "data": DEFAULT_DATA, **merged(tree, given)}
    args.network_named = "network" in tree
    if tree["method"] not in methods:
        raise ConfigError(
            f"{source.name('method')}: expected {' or '.join(methods)} for rdc {args.command}; got {one_line(repr(tree['method']))}"
        )
    return recipe_from(tree, source)


def follow(args: argparse.Namespace, recipe: Recipe) -> int:
    """Load the data, train, and say how it ended.

    Returns:
        Exit status: 0, or 128 + the signal that stopped the run.
    """
    from rdc import training
    from rdc.training.preparation import fitted
    from rdc.training.trainer import TrainingStopped

    data = load_images(recipe.data, "train", args.data_root, args.download, progress=not args.quiet)
    if not args.network_named:
        recipe = fitted(recipe, data)
    surroundings: dict[str, Any] = {
        "device": args.device,
        "threads": args.threads,
        "progress": not args.quiet,
        "begun": args.begun,
    }
    if recipe.extra_data:
        surroundings["extra"] = load_images(
            recipe.extra_data, "train", args.data_root, progress=not args.quiet, notices=False
        )
    try:
        done = training.run(recipe, data, args.out, **surroundings)
    except TrainingStopped as stop:
        if stop.first:
            print(f"{one_line(args.out, 400)}: {stop}. To continue: {_same_command()}", file=sys.stderr)
        return INTERRUPTED + stop.number
    if args.format == "json" and done.first:
        print(json.dumps({**dataclasses.asdict(done), "out": str(done.out)}, indent=2))
    if args.format != "json" or not done.finished:
        _report(done)
    return 0


def _report(done: Training) -> None:
    name = one_line(done.out, 400)
    if not done.finished:
        print(
            f"{name}: the minutes ended after {done.images:,} of {done.planned:,} planned "
            f"images; the state is saved. To continue: {_same_command()}",
            file=sys.stderr,
        )
    elif done.first:
        print(f"{name}: {done.images:,} images in {done.seconds / 60:.1f} minutes;", end=" ")
        print(f"model.safetensors, model.json, loss.png{', samples.png' if done.samples else ''}")
        if done.calibration is not None:
            print(f"  {_confidence(done.calibration)}")
            if done.calibration["images"] >= _JUDGED and done.calibration.get("accuracy", 0.0) < _WEAK:
                print(f"  {_LONGER}")


def _confidence(calibration: dict[str, Any]) -> str:
    """What was fitted, on how many images, and what for."""
    scale, images = calibration["logit_scale"], calibration["images"]
    if scale is None:
        return f"confidence: not calibrated, {one_line(calibration['why'], 300)}"
    cost, others = calibration["negative_log_likelihood"], ", ".join(calibration.get("seen_by", ()))
    doubt = f"; {one_line(others, 300)} has seen some of them, so it is too sure" if others else ""
    return (
        f"confidence: logit scale {scale:.4g}, fitted on {images} images that training did not see (cross-entropy "
        f"{cost['before']:.3g} -> {cost['after']:.3g} nats, {100 * calibration['accuracy']:.1f} % right){doubt}"
    )


def _same_command() -> str:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "run the same torchrun command again"
    name = Path(sys.argv[0]).name
    return command_line(sys.argv[1:]) if name in ("rdc", "__main__.py") else "run the same command again"
