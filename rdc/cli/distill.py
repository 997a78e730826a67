"""``rdc distill``: distil a class-conditional teacher into a multi-head student."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rdc.cli.options import up_to
from rdc.cli.training_run import (
    AUGMENT_HELP,
    SETTINGS,
    THREAT_CHOICE_HELP,
    THREAT_CHOICES,
    THREATS_HELP,
    add_run_arguments,
    follow,
    recipe_of,
)

if TYPE_CHECKING:
    from rdc.training import Recipe

EXAMPLES = """examples:
  rdc distill --teacher runs/teacher --data fashion-mnist --out runs/student --images 500000
  rdc distill --teacher runs/teacher --out runs/student --classes-per-image 4 --noise-mean 0.2 --noise-std 0.8 --compile
  rdc distill --teacher runs/teacher --init runs/student --out runs/robust --classes-per-image 0 --posterior-weight 1 --margin-eps 8/255
  rdc distill --teacher runs/teacher --out runs/robust --classes-per-image 0 --posterior-weight 1 --secant-eps 8/255 --compile
  rdc distill --teacher runs/teacher --out runs/many --classes-per-image 0 --posterior-weight 1 --threats linf:8/255..0.1,flow:0.05
  rdc distill --init cifar10 --data cifar10 --out runs/longer --classes-per-image 0 --posterior-weight 1 --secant-eps 8/255

The student starts from the teacher's weights, or from another student's (--init). A run that was stopped or killed is
continued by the same command.
"""


#: option -> setting of the recipe
_SETTINGS = {
    **SETTINGS,
    "teacher": "teacher",
    "wide_channels": "wide_channels",
    "classes_per_image": "distillation.classes_per_image",
    "difference_weight": "distillation.difference_weight",
    "posterior_weight": "distillation.posterior_weight",
    "posterior_scale": "distillation.posterior_scale",
    "margin_eps": "distillation.margin_eps",
    "margin_norm": "distillation.margin_norm",
    "cutmix": "distillation.cutmix",
    "label_smoothing": "distillation.label_smoothing",
    "threats": "distillation.secant.threats",
    "threat_choice": "distillation.secant.choice",
    **{f"secant_{name}": f"distillation.secant.{name}" for name in ("eps", "norm", "low", "high", "share", "steps")},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc distill``."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    model = parser.add_argument_group("model")
    model.add_argument("--teacher", metavar="MODEL", help="conditional model: its folder or name")
    model.add_argument("--init", metavar="MODEL", help="start from this student, not from the teacher's weights")
    model.add_argument("--classes-per-image", type=int, metavar="M", help="distilled per image (default: 3)")
    model.add_argument("--difference-weight", type=float, metavar="X", help="of class differences (1.0)")
    model.add_argument("--posterior-weight", type=float, metavar="X", help="of naming the class (0.0)")
    model.add_argument(
        "--posterior-scale", type=float, metavar="X", help="its sharpness (2.0; for threats: 80 / values of an image)"
    )
    model.add_argument("--margin-eps", metavar="R", help="first-order radius (0: off)")
    model.add_argument("--margin-norm", choices=("linf", "l2", "l1"), help="of that radius (linf)")
    model.add_argument("--secant-eps", metavar="R", help="first-order radius, by differences (0: off)")
    model.add_argument("--secant-norm", choices=("linf", "l2", "l1"), help="of that radius (linf)")
    model.add_argument("--threats", metavar="LIST", help=f"in place of that radius and norm: {THREATS_HELP}")
    model.add_argument("--threat-choice", choices=THREAT_CHOICES, help=THREAT_CHOICE_HELP)
    model.add_argument("--secant-low", type=float, metavar="U", help="smallest fraction of a difference (0.05)")
    model.add_argument("--secant-high", type=float, metavar="U", help="largest fraction (0.3)")
    model.add_argument("--secant-share", type=float, metavar="S", help="of that in the cross-entropy (1.0)")
    model.add_argument(
        "--secant-steps",
        type=up_to(1_000_000),
        metavar="N",
        help="of the search for the perturbation; above 1: an attack (1)",
    )
    model.add_argument("--label-smoothing", type=float, metavar="P", help="of the posterior's cross-entropy (0)")
    model.add_argument("--wide-channels", type=int, metavar="N", help="of the last residual block (156)")
    model.add_argument("--shift", type=int, metavar="N", help="move each image by up to N pixels (0)")
    model.add_argument("--cutmix", type=float, metavar="P", help="share of images with a rectangle of another (0)")
    model.add_argument("--augment", type=float, metavar="P", help=AUGMENT_HELP)
    add_run_arguments(parser, learning_rate="0.001")


def recipe(args: argparse.Namespace) -> Recipe:
    """What the options ask for."""
    return recipe_of(args, _SETTINGS, ("distill",))


def run(args: argparse.Namespace) -> int:
    """Distil; returns the exit status."""
    return follow(args, recipe(args))
