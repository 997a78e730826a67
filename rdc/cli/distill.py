"""``rdc distill``: distil a class-conditional teacher into a multi-head student."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from rdc.cli.options import up_to
from rdc.cli.training_run import (
    AUGMENT_HELP,
    add_run_arguments,
    augmented,
    fingerprint,
    load_training_data,
    noise_distribution,
    open_device,
    open_model,
    run_training,
    seeded,
    start_from,
)

if TYPE_CHECKING:
    from torch import nn

    from rdc.data import Dataset

EXAMPLES = """examples:
  rdc distill --teacher runs/teacher --data fashion-mnist --out runs/student --images 500000
  rdc distill --teacher runs/teacher --out runs/student --classes-per-image 4 --noise-mean 0.2 --noise-std 0.8 --compile
  rdc distill --teacher runs/teacher --init runs/student --out runs/robust --classes-per-image 0 --posterior-weight 1 --margin-eps 8/255
  rdc distill --teacher runs/teacher --out runs/robust --classes-per-image 0 --posterior-weight 1 --secant-eps 8/255 --compile
  rdc distill --init cifar10 --data cifar10 --out runs/longer --classes-per-image 0 --posterior-weight 1 --secant-eps 8/255

The student starts from the teacher's weights, or from another student's (--init). A run that was stopped or killed is
continued by the same command.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc distill``."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    model = parser.add_argument_group("model")
    model.add_argument("--teacher", metavar="MODEL", help="conditional model: its folder or name")
    model.add_argument("--init", metavar="MODEL", help="start from this student, not from the teacher's weights")
    model.add_argument("--classes-per-image", type=int, default=3, metavar="M", help="distilled per image (default: 3)")
    model.add_argument("--difference-weight", type=float, default=1.0, metavar="X", help="of class differences (1.0)")
    model.add_argument("--posterior-weight", type=float, default=0.0, metavar="X", help="of naming the class (0.0)")
    model.add_argument("--posterior-scale", type=float, default=2.0, metavar="X", help="of the same (2.0)")
    model.add_argument("--margin-eps", default="0", metavar="R", help="first-order radius (0: off)")
    model.add_argument("--margin-norm", default="linf", choices=("linf", "l2", "l1"), help="of that radius (linf)")
    model.add_argument("--secant-eps", default="0", metavar="R", help="first-order radius, by differences (0: off)")
    model.add_argument("--secant-norm", default="linf", choices=("linf", "l2", "l1"), help="of that radius (linf)")
    model.add_argument(
        "--secant-low", type=float, default=0.05, metavar="U", help="smallest fraction of a difference (0.05)"
    )
    model.add_argument("--secant-high", type=float, default=0.3, metavar="U", help="largest fraction (0.3)")
    model.add_argument(
        "--secant-share", type=float, default=1.0, metavar="S", help="of that in the cross-entropy (1.0)"
    )
    model.add_argument(
        "--secant-steps",
        type=up_to(1_000_000),
        default=1,
        metavar="N",
        help="of the search for the perturbation; above 1: an attack (1)",
    )
    model.add_argument("--wide-channels", type=int, default=156, metavar="N", help="of the last residual block (156)")
    model.add_argument("--shift", type=int, default=0, metavar="N", help="move each image by up to N pixels (0)")
    model.add_argument(
        "--cutmix", type=float, default=0.0, metavar="P", help="share of images with a rectangle of another (0)"
    )
    model.add_argument("--augment", type=float, default=0.0, metavar="P", help=AUGMENT_HELP)
    add_run_arguments(parser, learning_rate=1e-3)


def run(args: argparse.Namespace) -> int:
    """Distil; returns the exit status."""
    import torch

    from rdc.errors import ConfigError
    from rdc.method.denoiser import make_denoiser
    from rdc.training.augmentation import Shifted
    from rdc.training.distillation import DistillationObjective

    threat = _threat(args)
    device = open_device(args)
    data = load_training_data(args)
    teacher, teacher_config, teacher_info, student, config = _models(args, data)
    noise = noise_distribution(args, *teacher_info.get("noise", (-1.2, 1.2)))
    terms = {
        "classes_per_image": args.classes_per_image,
        "difference_weight": args.difference_weight,
        "posterior_weight": args.posterior_weight,
        "posterior_scale": args.posterior_scale,
    }
    if device.type == "cuda" and args.memory_format == "channels_last":
        teacher.to(memory_format=torch.channels_last)  # like the student
    if args.cutmix:
        terms["cutmix"] = args.cutmix
    denoiser = make_denoiser(teacher.to(device), teacher_config)
    if args.compile and teacher is not student:
        denoiser.network.compile()  # in place: the teacher's passes are most of the work
    objective = Shifted(DistillationObjective(denoiser, noise, **terms, **threat), args.shift)
    if "secant" in threat:
        described = dataclasses.asdict(threat["secant"])
        threat = {
            "secant": {k: v for k, v in described.items() if (k, v) != ("steps", 1)}
        }  # as before there were steps
    settings = {"command": "distill", "noise": [noise.mean, noise.std], "distillation": terms | threat}
    if teacher is not student:
        settings["teacher"] = fingerprint(*teacher.state_dict().values())
    if args.shift:
        settings["shift"] = args.shift
    if args.augment and args.classes_per_image:
        raise ConfigError(
            "--augment: expected --classes-per-image 0 with it, the teacher is not told of transformations; leave one of the two out"
        )
    config, objective = augmented(args, student, config, objective, settings)
    if args.init:
        settings["init"] = start_from(args.init, student, config)
    return run_training(args, student.to(device), config, objective, data, settings)


def _threat(args: argparse.Namespace) -> dict[str, Any]:
    """What --margin-eps or --secant-eps asks of the objective; nothing where neither is given: runs of earlier versions continue."""
    from rdc.attacks import parse_eps
    from rdc.errors import ConfigError
    from rdc.training.distillation import Secant

    threat: dict[str, Any] = {}
    if margin := parse_eps(args.margin_eps, name="--margin-eps"):
        threat |= {"margin_eps": margin, "margin_norm": args.margin_norm}
    if radius := parse_eps(args.secant_eps, name="--secant-eps"):
        fractions = (args.secant_low, args.secant_high, args.secant_share)
        threat["secant"] = Secant(radius, args.secant_norm, *fractions, args.secant_steps)
    if margin and args.compile:
        raise ConfigError(
            "--margin-eps: expected no --compile with it, a step differentiates twice, which torch.compile cannot; "
            "leave one of the two out, or use --secant-eps"
        )
    return threat


def _models(
    args: argparse.Namespace, data: Dataset
) -> tuple[nn.Module, dict[str, Any], dict[str, Any], nn.Module, dict[str, Any]]:
    """Teacher, its description and record, student and its description; without --teacher the student stands for it."""
    from rdc.errors import ConfigError
    from rdc.training.distillation import student_from_teacher

    alone = args.teacher is None
    if alone and (args.init is None or args.classes_per_image):
        raise ConfigError(
            "--teacher: expected a conditional model; it may be left out with --init STUDENT and --classes-per-image 0, where "
            "nothing is asked of it"
        )
    option, name = ("--init", args.init) if alone else ("--teacher", args.teacher)
    teacher, config, info = open_model(name)
    expected = (config["num_classes"], tuple(config["image_shape"]))
    if expected != (data.num_classes, data.image_shape):
        raise ConfigError(
            f"{option} {name}: expected data of {expected[0]} classes, images {expected[1]}; "
            f"{data!r} has {data.num_classes} classes, images {data.image_shape}"
        )
    if not alone:
        with seeded(args.seed):
            return (teacher, config, info, *student_from_teacher(teacher, config, args.wide_channels))
    if config["kind"] != "multihead":
        raise ConfigError(f"--init {name}: expected a student (kind multihead); got kind {config['kind']}")
    return teacher, config, info, teacher, config
