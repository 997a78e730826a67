"""``rdc train``: train a class-conditional diffusion model, or a classifier to stand beside it."""

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
  rdc train --data fashion-mnist --out runs/teacher --images 360000 --lr 1.5e-3 --noise-mean -0.1 --noise-std 1.0
  rdc train --data pictures.npz --network medium --out runs/pictures --images 500000
  rdc train --data cifar10 --data-root ~/cifar10 --network small-32 --out runs/cifar10 --images 5000000 --flip --compile
  rdc train --init runs/teacher --posterior-weight 0.3 --images 200000 --lr 5e-4 --out runs/sharper
  rdc train --method trades --eps 8/255 --out runs/trades --images 160000 --precision bfloat16
  rdc train --method jem --out runs/jem --images 250000 --sgld-steps 10 --precision bfloat16
  torchrun --nproc-per-node 2 -m rdc train --data fashion-mnist --out runs/two --images 360000

A run that was stopped or killed is continued by the same command. The folder gets model.safetensors and model.json (the
averaged weights, at every checkpoint), state.safetensors (to continue), log.jsonl, loss.png and, for diffusion models,
samples.png.
"""

METHODS = (
    "diffusion",
    "standard",
    "pgd-at",
    "trades",
    "mart",
    "jem",
    "hybvit",
)  # those of rdc.training.recipes but "distill"; importing that takes a second

#: option -> setting of the recipe
_SETTINGS = {
    **SETTINGS,
    "method": "method",
    "network": "network",
    "label_dropout": "diffusion.label_dropout",
    "posterior_weight": "diffusion.posterior_weight",
    "posterior_scale": "diffusion.posterior_scale",
    "wrong_classes": "diffusion.wrong_classes",
    "norm": "attack.norm",
    "eps": "attack.eps",
    "threats": "attack.threats",
    "threat_choice": "attack.choice",
    "inner_steps": "attack.steps",
    "inner_step_size": "attack.step_size",
    "beta": "classifier.beta",
    "label_smoothing": "classifier.label_smoothing",
    "sgld_steps": "energy.steps",
    "sgld_step_size": "energy.step_size",
    "sgld_noise": "energy.noise",
    "replay_buffer": "energy.buffer",
    "restart": "energy.restart",
    "input_noise": "energy.input_noise",
    "energy_weight": "energy.weight",
    "largest_gap": "energy.largest_gap",
    "sgld_bounded": "energy.bounded",
    "denoising_weight": "hybrid.denoising_weight",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc train``."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--method", choices=METHODS, help="what to train (default: diffusion); others: classifiers")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--network",
        metavar="NAME",
        help="preset (small-28; for classifiers resnet-small-28; jem: resnet-energy-28; hybvit: vit-small-28; where the images are of "
        "another size: small); or tiny (to try things), small, medium or large, which are scaled to the images; or a .json or .toml "
        "file that describes a network (docs/training.md)",
    )
    model.add_argument("--init", metavar="MODEL", help="start from these weights: a model of the same network")
    diffusion = parser.add_argument_group("--method diffusion")
    diffusion.add_argument("--label-dropout", type=float, metavar="P", help="share of images seen unlabelled (0.1)")
    diffusion.add_argument("--posterior-weight", type=float, metavar="X", help="of naming the class (0.0)")
    diffusion.add_argument("--posterior-scale", type=float, metavar="X", help="of the same (2.0)")
    diffusion.add_argument("--wrong-classes", type=int, metavar="M", help="to tell the class from (2)")
    diffusion.add_argument("--augment", type=float, metavar="P", help=AUGMENT_HELP)
    others = parser.add_argument_group("--method standard, pgd-at, trades or mart")
    others.add_argument("--norm", choices=("linf", "l2"), help="of the perturbation trained against (linf)")
    others.add_argument("--eps", metavar="E", help="its radius, pixels in [0, 1] (8/255; l2: 0.5)")
    others.add_argument("--threats", metavar="LIST", help=f"in place of both: {THREATS_HELP}")
    others.add_argument(
        "--threat-choice",
        choices=(*THREAT_CHOICES, "steepest"),
        help=f"{THREAT_CHOICE_HELP}; steepest: at every step the one that gains most there",
    )
    others.add_argument(
        "--inner-steps", type=up_to(1_000_000), metavar="N", help="gradient steps of the inner attack (10)"
    )
    others.add_argument("--inner-step-size", metavar="E", help="length of one (2.5 eps / N: 2/255 for 8/255)")
    others.add_argument("--beta", type=float, metavar="X", help="of the divergence (trades: 6, mart: 5)")
    others.add_argument("--label-smoothing", type=float, metavar="P", help="not for mart (0)")
    others.add_argument("--shift", type=int, metavar="N", help="move each image by up to N pixels (0); hybvit too")
    jem = parser.add_argument_group("--method jem: in units of [-1, 1]")
    jem.add_argument("--sgld-steps", type=up_to(1_000_000), metavar="K", help="Langevin steps for every batch (20)")
    jem.add_argument("--sgld-step-size", type=float, metavar="X", help="of the energy's gradient (1)")
    jem.add_argument("--sgld-noise", type=float, metavar="X", help="of every step (0.01)")
    jem.add_argument("--replay-buffer", type=int, metavar="N", help="images that chains go on from (10000)")
    jem.add_argument("--restart", type=float, metavar="P", help="share of chains that start from noise (0.05)")
    jem.add_argument("--input-noise", type=float, metavar="X", help="on the images whose energy is lowered (0.03)")
    jem.add_argument("--energy-weight", type=float, metavar="X", help="of the energy beside the cross-entropy (1)")
    jem.add_argument(
        "--largest-gap", type=float, metavar="X", help="of the energies; beyond it the run goes back (100)"
    )
    bounded = "keep chains in [-1, 1], where images are (the paper does not)"
    jem.add_argument("--sgld-bounded", action=argparse.BooleanOptionalAction, help=bounded)
    hybrid = parser.add_argument_group("--method hybvit")
    hybrid.add_argument("--denoising-weight", type=float, metavar="X", help="beside the cross-entropy (1)")
    add_run_arguments(parser, learning_rate="diffusion: 1e-3, others: 5e-3, jem and hybvit: 1e-3")


def recipe(args: argparse.Namespace) -> Recipe:
    """What the options ask for."""
    return recipe_of(args, _SETTINGS, METHODS)


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit status."""
    return follow(args, recipe(args))
