"""``rdc verify``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from rdc.arguments.defaults import EvaluationDefaults
from rdc.cli.images import load_images
from rdc.cli.options import add_format_options, add_image_options, add_model_options, batch_size, load_classifier
from rdc.errors import one_line

if TYPE_CHECKING:
    from rdc.evaluation.verification import Verification

_DEFAULT = EvaluationDefaults()
_SHOWN = 20  # images that break the budget and are named

ABOUT = """Check stored adversarial images: budget to the last bit, pixel range, which image each belongs to, and what the model says
of them. FILE is what `rdc evaluate --save-adversarial` writes, or a tensor of RobustBench or AutoAttack. Nothing in it is run. The
exit status is 1 if an image breaks its budget."""
EXAMPLES = """examples:
  rdc evaluate --model fashion-mnist --data fashion-mnist-sample --n 64 --save-adversarial adv.npz
  rdc verify adv.npz --model fashion-mnist --data fashion-mnist-sample --norm linf --eps 8/255
  rdc verify aa_standard_1_1000_eps_0.03137.pt --model mynet.py:make --data cifar10 --eps 8/255 --format json

files: .npz with x_adv, float32 [N, C, H, W] in [0, 1], and, if it has them, images (positions in the data) and labels; .pt with that
tensor, or a dict with it under x_adv or adv_complete, whose row i is image START + i.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc verify``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", metavar="FILE", help="the adversarial images, .npz or .pt")
    add_model_options(parser, "fashion-mnist")
    add_image_options(parser, _DEFAULT, count=False)
    budget = parser.add_argument_group("budget")
    budget.add_argument(
        "--norm", default=_DEFAULT.norm, metavar="NORM", help="linf, l2, l1 or l0 (default: %(default)s)"
    )
    budget.add_argument("--eps", default=_DEFAULT.eps, help="radius in [0, 1] pixel units (default: %(default)s)")
    parser.add_argument(
        "--batch", type=batch_size, default=64, metavar="N", help="images classified together (default: %(default)s)"
    )
    add_format_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no notices")


def run(args: argparse.Namespace) -> int:
    """Verify; returns the exit status."""
    from rdc.attacks import parse_eps
    from rdc.evaluation.adversarial_files import load_adversarial
    from rdc.evaluation.verification import verify

    parse_eps(args.eps, name="--eps")
    stored = load_adversarial(args.file)
    data = load_images(args.data, args.split, args.data_root, progress=not args.quiet)
    classifier = load_classifier(args, data)
    found = verify(
        classifier, data, stored, args.norm, args.eps, start=args.start, batch=args.batch, progress=not args.quiet
    )
    print(json.dumps(found.to_json(), indent=2, allow_nan=False) if args.format == "json" else _text(found, args))
    if not found.holds:
        print(
            f"rdc: {found.n - found.allowed} of {found.n} images are outside of what the threat allows", file=sys.stderr
        )
    return 0 if found.holds else 1


def _text(found: Verification, args: argparse.Namespace) -> str:
    longest = "not finite" if found.longest is None else f"{found.longest:.9g}"
    rows = [
        ("within the budget", sum(image.within for image in found.images), f"largest distance {longest}, radius {found.radius:.9g}"),
        ("finite, in [0, 1]", sum(image.in_range for image in found.images), ""),
        ("right when clean", sum(image.clean for image in found.images), _rate(found.clean.accuracy, found.clean.ci95)),
        ("still right", sum(image.standing for image in found.images), _rate(found.robust.accuracy, found.robust.ci95)),
    ]  # fmt: skip
    about = f"{found.n} images, {found.norm} {one_line(found.eps)}; {one_line(args.model)} on {one_line(args.data)}"
    lines = [
        f"{one_line(args.file, 400)}: {about}",
        "",
        *(f"  {name:<20}{count:>7}   {about}".rstrip() for name, count, about in rows),
    ]
    wrong = [image for image in found.images if not image.allowed]
    lines += [""] * bool(wrong)
    for image in wrong[:_SHOWN]:
        why = [] if image.in_range else ["a pixel is not in [0, 1]"]
        why += [] if image.within else ["not finite" if image.distance is None else f"distance {image.distance:.9g}"]
        other = f"; it is within the budget of image {image.belongs_to}" if isinstance(image.belongs_to, int) else ""
        lines.append(f"  image {image.image}: {', '.join(why)}{other}")
    if len(wrong) > _SHOWN:
        lines.append(f"  ... and {len(wrong) - _SHOWN} more (--format json names all)")
    return "\n".join(lines)


def _rate(accuracy: float, ends: tuple[float, float]) -> str:
    return f"{100 * accuracy:.1f} % [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
