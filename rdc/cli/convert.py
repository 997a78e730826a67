"""``rdc convert``: checkpoints of others to safetensors + JSON, without running any code in them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rdc.cli.options import add_format_options
from rdc.errors import one_line

EXAMPLES = """examples:
  rdc convert edm-cifar10-32x32-cond-vp.pkl models/edm-cifar10
  rdc convert cifar10_uncond.pt models/cifar10 --network edm-ddpmpp-32 --classes 10
  rdc convert path/to/diffusers-folder models/ddpm --null-label mean

MODEL is written as MODEL.safetensors and MODEL.json; use it with `rdc evaluate --model MODEL` or rdc.load("MODEL").
Pickles are read by an allow-list: what asks for anything but tensors and containers is refused, and nothing in them is executed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc convert``."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help=".pkl, .pt, .pth, .safetensors, or a diffusers folder"
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="checkpoint to write")
    parser.add_argument(
        "--kind", default="auto", metavar="KIND", help="auto, edm-pickle, state-dict, safetensors or diffusers"
    )
    parser.add_argument(
        "--network", metavar="NAME", help="for state dicts: network preset or JSON description (default: inferred)"
    )
    parser.add_argument(
        "--classes", type=int, metavar="K", help="with --network only: number of classes (default: read off)"
    )
    parser.add_argument(
        "--null-label", metavar="LABEL", help="for diffusers: the embedding's index that means no label, or mean"
    )
    parser.add_argument(
        "--class-names", metavar="A,B,...", help="names to record, one for each class, separated by commas"
    )
    parser.add_argument("--half", action="store_true", help="store weights as float16")
    add_format_options(parser)


def run(args: argparse.Namespace) -> int:
    """Convert; returns the exit status."""
    import torch

    from rdc.models.convert import convert_checkpoint

    label = args.null_label
    summary = convert_checkpoint(
        args.source,
        args.model,
        kind=args.kind,
        network=args.network,
        num_classes=args.classes,
        null_label=int(label) if label and label.isdecimal() and len(label) < 10 else label,
        info={"class_names": [name.strip() for name in args.class_names.split(",")]} if args.class_names else None,
        dtype=torch.float16 if args.half else torch.float32,
    )
    if args.format == "json":
        print(json.dumps(summary, indent=2, default=str))
        return 0
    print(f"{one_line(summary['source'], 400)} ({summary['kind']}) -> {one_line(summary['destination'], 400)}")
    print(f"{summary['parameters']:,} weights in {summary['tensors']} tensors")
    for note in summary["notes"]:
        print(f"note: {one_line(note, 400)}")
    return 0
