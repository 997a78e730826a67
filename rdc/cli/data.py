"""``rdc data``: what a data set holds, and data sets as one ``.npz``."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdc.cli.images import load_images
from rdc.cli.options import add_format_options
from rdc.errors import one_line

if TYPE_CHECKING:
    from rdc.data import Dataset

ABOUT = """Look at a data set, or write it as one .npz that every command reads. SRC is whatever --data takes: a name, a .npz or
.parquet file or a folder of them, or a folder with a folder of pictures for each class (also below train and test).

  info     images, classes, how many of each, digest
  convert  SRC OUT.npz: both splits where there are two, else the one; images brought to one size, grey or colour"""
EXAMPLES = """examples:
  rdc data info pictures/
  rdc data convert pictures/ own.npz --size 64 64 --test-share 0.2
  rdc data convert cifar10-c:fog:3 fog3.npz --data-root ~/CIFAR-10-C
  rdc train --data own.npz --out runs/own
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc data``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=("info", "convert"))
    parser.add_argument("source", metavar="SRC", help="data set: a name or path, as for --data")
    parser.add_argument("out", metavar="OUT.npz", nargs="?", help="of convert: the file to write")
    parser.add_argument("--split", choices=("train", "test"), help="one split alone (default: those there are)")
    parser.add_argument("--data-root", metavar="DIR", help="the only folder to look for the data in")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="bring images to this height and width")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="1: grey, 3: colour (default: as they are)")
    parser.add_argument(
        "--filter",
        default="lanczos",
        choices=("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"),
        help="of a change of size (default: %(default)s)",
    )
    parser.add_argument(
        "--test-share",
        type=float,
        metavar="X",
        help="of images without splits: put this share aside as test images, as many of each class",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --test-share (default: %(default)s)")
    parser.add_argument("--no-verify", action="store_true", help="take files whose checksum is not the official one")
    add_format_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no closing words")


def run(args: argparse.Namespace) -> int:
    """Tell or write; returns the exit status."""
    from rdc.errors import ConfigError

    if args.action == "convert" and not args.out:
        raise ConfigError("convert: expected the file to write behind the data set: rdc data convert SRC OUT.npz")
    if args.action == "info" and args.out:
        raise ConfigError(f"info: expected a single data set; got {one_line(args.out)} too")
    if args.out and Path(args.out).suffix != ".npz":
        raise ConfigError(f"convert: expected a file that ends in .npz; got {one_line(args.out)}")
    if args.test_share is not None and not 0 < args.test_share < 1:
        raise ConfigError(f"--test-share: expected a number between 0 and 1; got {args.test_share}")
    found = _splits(args)
    if args.action == "info":
        facts = [_facts(data) for data in found]
        if args.format == "json":
            print(json.dumps(facts, indent=2))
        else:
            print("\n".join(line for about in facts for line in _about(about)))
        return 0
    return _convert(args, found)


def _splits(args: argparse.Namespace) -> list[Dataset]:
    """The splits there are, training images first; one where nothing tells them apart."""
    from rdc.errors import DataError

    options: dict[str, Any] = {"progress": not args.quiet, "verify": not args.no_verify, "resample": args.filter}
    options |= {"size": args.size and tuple(args.size), "channels": args.channels}
    if args.split:
        return [load_images(args.source, args.split, args.data_root, **options)]
    found, problems = [], []
    for split in ("train", "test"):
        try:
            found.append(load_images(args.source, split, args.data_root, **options))
        except DataError as error:
            problems.append(error)
            continue
        if any(notice.startswith("nothing tells train from test") for notice in found[-1].notices):
            break
    if not found:
        raise problems[-1]
    return found


def _convert(args: argparse.Namespace, found: list[Dataset]) -> int:
    from rdc.data import save_npz, save_splits, train_holdout
    from rdc.errors import ConfigError

    if args.test_share is not None:
        if len(found) > 1:
            raise ConfigError(
                "--test-share: expected images without splits; this data set has both (or name one with --split)"
            )
        count = min(max(1, round(args.test_share * len(found[0]))), len(found[0]) - 1)
        found = list(train_holdout(found[0], count, args.seed))
    if len(found) == 2:
        save_splits(found[0], found[1], args.out)
    else:
        save_npz(found[0], args.out)
    if not args.quiet:
        counts = " + ".join(f"{len(data):,}" for data in found)
        channels, height, width = found[0].image_shape
        size = Path(args.out).stat().st_size / 2**20
        print(
            f"{one_line(args.out, 400)}: {counts} images, {channels} x {height} x {width}, {found[0].num_classes} classes, "
            f"{size:.1f} MiB",
            file=sys.stderr,
        )
    return 0


def _facts(data: Dataset) -> dict[str, Any]:
    """What ``info`` says; the digest is the one that a folder of ``rdc evaluate`` keeps of the same images in the same order."""
    counts = data.labels.bincount(minlength=data.num_classes).tolist()
    digest = hashlib.sha256(data.images.numpy().tobytes() + data.labels.numpy().tobytes()).hexdigest()
    return {
        "name": str(data.name),
        "split": data.split,
        "source": str(data.source or "-"),
        "images": len(data),
        "image_shape": list(data.image_shape),
        "classes": dict(zip(data.class_names, counts, strict=True)),
        "digest": digest[:16],
    }


def _about(facts: dict[str, Any]) -> list[str]:
    channels, height, width = facts["image_shape"]
    classes: dict[str, int] = facts["classes"]
    lines = [
        f"{one_line(facts['name'])}, {one_line(facts['split'])} split",
        f"  from     {one_line(facts['source'], 400)}",
        f"  images   {facts['images']:,} of {channels} x {height} x {width} (channels, height, width)",
        f"  classes  {len(classes)}, {min(classes.values()):,} to {max(classes.values()):,} images each",
        f"  digest   {facts['digest']} (SHA-256 of images and labels)",
    ]
    shown = [f"{one_line(name, 60)} {count:,}" for name, count in classes.items()]
    more = f", and {len(shown) - 20} more" if len(shown) > 20 else ""
    return [*lines, f"  each     {', '.join(shown[:20])}{more}"]
