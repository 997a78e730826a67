"""``rdc distill``: distil a class-conditional teacher into a multi-head student."""

from __future__ import annotations

import argparse
import dataclasses

from rdc.cli.training_run import (
    add_run_arguments,
    fingerprint,
    load_training_data,
    noise_distribution,
    open_device,
    open_model,
    run_training,
    seeded,
    start_from,
)

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
    model.add_argument("--wide-channels", type=int, default=156, metavar="N", help="of the last residual block (156)")
    model.add_argument("--shift", type=int, default=0, metavar="N", help="move each image by up to N pixels (0)")
    add_run_arguments(parser, learning_rate=1e-3)


def run(args: argparse.Namespace) -> int:
    """Distil; returns the exit status."""
    import torch

    from rdc.attacks import parse_eps
    from rdc.augmentation import Shifted
    from rdc.denoiser import make_denoiser
    from rdc.distillation import DistillationObjective, Secant, student_from_teacher
    from rdc.errors import ConfigError

    margin, radius, secant = parse_eps(args.margin_eps), parse_eps(args.secant_eps), None
    if radius:
        secant = Secant(radius, args.secant_norm, args.secant_low, args.secant_high, args.secant_share)
    if margin and args.compile:
        raise ConfigError(
            "--margin-eps: expected no --compile with it, a step differentiates twice, which torch.compile cannot; "
            "leave one of the two out, or use --secant-eps"
        )
    device = open_device(args)
    data = load_training_data(args)
    alone = args.teacher is None
    if alone and (args.init is None or args.classes_per_image):
        raise ConfigError(
            "--teacher: expected a conditional model; it may be left out with --init STUDENT and --classes-per-image 0, where "
            "nothing is asked of it"
        )
    teacher, teacher_config, teacher_info = open_model(args.init if alone else args.teacher)
    expected = (teacher_config["num_classes"], tuple(teacher_config["image_shape"]))
    if expected != (data.num_classes, data.image_shape):
        raise ConfigError(
            f"--{'init' if alone else 'teacher'} {args.init if alone else args.teacher}: expected data of {expected[0]} classes, "
            f"images {expected[1]}; {data!r} has {data.num_classes} classes, images {data.image_shape}"
        )
    if alone and teacher_config["kind"] != "multihead":
        raise ConfigError(f"--init {args.init}: expected a student (kind multihead); got kind {teacher_config['kind']}")
    with seeded(args.seed):
        student, config = (
            (teacher, teacher_config) if alone else student_from_teacher(teacher, teacher_config, args.wide_channels)
        )
    recorded = teacher_info.get("noise", (-1.2, 1.2))
    noise = noise_distribution(args, *recorded)
    terms = {
        "classes_per_image": args.classes_per_image,
        "difference_weight": args.difference_weight,
        "posterior_weight": args.posterior_weight,
        "posterior_scale": args.posterior_scale,
    }
    if margin:  # absent otherwise: runs of earlier versions continue
        terms |= {"margin_eps": margin, "margin_norm": args.margin_norm}
    recorded_terms = terms | ({"secant": dataclasses.asdict(secant)} if secant else {})
    if device.type == "cuda" and args.memory_format == "channels_last":
        teacher.to(memory_format=torch.channels_last)  # like the student
    denoiser = make_denoiser(teacher.to(device), teacher_config)
    if args.compile == "network" and not alone:
        denoiser.network.compile()  # in place: the teacher's passes are most of the work
    objective = Shifted(DistillationObjective(denoiser, noise, **terms, secant=secant), args.shift)
    settings = {
        "command": "distill",
        "noise": [noise.mean, noise.std],
        **({} if alone else {"teacher": fingerprint(*teacher.state_dict().values())}),
        "distillation": recorded_terms,
    }
    if args.shift:
        settings["shift"] = args.shift
    if args.init:
        settings["init"] = start_from(args.init, student.requires_grad_(), config)
    return run_training(args, student.to(device), config, objective, data, settings)
