"""``rdc train``: train a class-conditional diffusion model, or a classifier to stand beside it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rdc.cli.options import up_to
from rdc.cli.training_run import (
    AUGMENT_HELP,
    add_run_arguments,
    augmented,
    load_training_data,
    noise_distribution,
    open_device,
    run_training,
    seeded,
    start_from,
)
from rdc.errors import ConfigError

if TYPE_CHECKING:
    from rdc.data import Dataset
    from rdc.training.adversarial import ClassifierObjective
    from rdc.training.objective import ConditionalObjective

EXAMPLES = """examples:
  rdc train --data fashion-mnist --out runs/teacher --images 360000 --lr 1.5e-3 --noise-mean -0.1 --noise-std 1.0
  rdc train --data cifar10 --data-root ~/cifar10 --network small-32 --out runs/cifar10 --images 5000000 --flip --compile
  rdc train --init runs/teacher --posterior-weight 0.3 --images 200000 --lr 5e-4 --out runs/sharper
  rdc train --method trades --eps 8/255 --out runs/trades --images 160000 --precision bfloat16
  torchrun --nproc-per-node 2 -m rdc train --data fashion-mnist --out runs/two --images 360000

A run that was stopped or killed is continued by the same command. The folder gets model.safetensors and model.json (the
averaged weights, at every checkpoint), state.safetensors (to continue), log.jsonl, loss.png and, for diffusion models,
samples.png.
"""

_DIFFUSION = ("diffusion",)
_ATTACKED = ("pgd-at", "trades", "mart")
_CLASSIFIERS = ("standard", *_ATTACKED)  # rdc.training.adversarial.METHODS; importing that takes a second
METHODS = (*_DIFFUSION, *_CLASSIFIERS)

#: option -> (the methods that it goes with, value where it is not given)
_OPTIONS: dict[str, tuple[tuple[str, ...], Any]] = {
    "label_dropout": (_DIFFUSION, 0.1),
    "posterior_weight": (_DIFFUSION, 0.0),
    "posterior_scale": (_DIFFUSION, 2.0),
    "wrong_classes": (_DIFFUSION, 2),
    "augment": (_DIFFUSION, 0.0),
    "noise_mean": (_DIFFUSION, None),
    "noise_std": (_DIFFUSION, None),
    "norm": (_ATTACKED, "linf"),
    "eps": (_ATTACKED, None),
    "inner_steps": (_ATTACKED, 10),
    "inner_step_size": (_ATTACKED, None),
    "beta": (("trades", "mart"), None),
    "label_smoothing": (("standard", "pgd-at", "trades"), 0.0),
    "shift": (_CLASSIFIERS, 0),
}
_NETWORK = {"diffusion": "small-28", **dict.fromkeys(_CLASSIFIERS, "resnet-small-28")}
_LEARNING_RATE = {"diffusion": 1e-3, **dict.fromkeys(_CLASSIFIERS, 5e-3)}
_EPS = {"linf": "8/255", "l2": "0.5"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc train``."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--method",
        default="diffusion",
        choices=METHODS,
        help="what to train (default: %(default)s); others: classifiers",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--network", metavar="NAME", help="preset (small-28; for classifiers resnet-small-28)")
    model.add_argument("--init", metavar="MODEL", help="start from these weights: a model of the same network")
    diffusion = parser.add_argument_group("--method diffusion")
    diffusion.add_argument("--label-dropout", type=float, metavar="P", help="share of images seen unlabelled (0.1)")
    diffusion.add_argument("--posterior-weight", type=float, metavar="X", help="of naming the class (0.0)")
    diffusion.add_argument("--posterior-scale", type=float, metavar="X", help="of the same (2.0)")
    diffusion.add_argument("--wrong-classes", type=int, metavar="M", help="to tell the class from (2)")
    diffusion.add_argument("--augment", type=float, metavar="P", help=AUGMENT_HELP)
    others = parser.add_argument_group("--method standard, pgd-at, trades or mart")
    others.add_argument("--norm", choices=tuple(_EPS), help="of the perturbation trained against (linf)")
    others.add_argument("--eps", metavar="E", help="its radius, pixels in [0, 1] (8/255; l2: 0.5)")
    others.add_argument(
        "--inner-steps", type=up_to(1_000_000), metavar="N", help="gradient steps of the inner attack (10)"
    )
    others.add_argument("--inner-step-size", metavar="E", help="length of one (2.5 eps / N: 2/255 for 8/255)")
    others.add_argument("--beta", type=float, metavar="X", help="of the divergence (trades: 6, mart: 5)")
    others.add_argument("--label-smoothing", type=float, metavar="P", help="not for mart (0)")
    others.add_argument("--shift", type=int, metavar="N", help="move each image by up to N pixels (0)")
    add_run_arguments(parser, learning_rate="diffusion: 1e-3, others: 5e-3")


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit status."""
    from rdc.networks.presets import build_network, network_preset

    _complete(args)
    diffusion = args.method in _DIFFUSION
    device = open_device(args)
    data = load_training_data(args)
    config = network_preset(args.network, data.num_classes)
    if (config["kind"] == "resnet") is diffusion:
        expected = "a diffusion network such as small-28" if diffusion else "a classifier such as resnet-small-28"
        raise ConfigError(f"--network {args.network}: --method {args.method} trains {expected}")
    if tuple(config["image_shape"]) != data.image_shape:
        expected, got = ("x".join(map(str, shape)) for shape in (config["image_shape"], data.image_shape))
        raise ConfigError(f"--network {args.network}: expected images of {expected}; {data!r} has {got}")
    objective, settings = _diffusion(args, data, config["sigma_data"]) if diffusion else _classifier(args)
    with seeded(args.seed):
        network = build_network(config)
    if diffusion:
        config, objective = augmented(args, network, config, objective, settings)
    if args.init:
        settings["init"] = start_from(args.init, network, config)
    network.to(device)
    return run_training(args, network, config, objective, data, settings, samples=diffusion)


def _complete(args: argparse.Namespace) -> None:
    """Fill in what was not given.

    Raises:
        ConfigError: an option was given that the method has no use for.
    """
    for name, (methods, default) in _OPTIONS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif args.method not in methods:
            raise ConfigError(
                f"--{name.replace('_', '-')}: has no meaning for --method {args.method}; "
                f"it goes with {', '.join(methods)}. Leave it out or choose another --method"
            )
    if args.network is None:
        args.network = _NETWORK[args.method]
    if args.lr is None:
        args.lr = _LEARNING_RATE[args.method]


def _diffusion(
    args: argparse.Namespace, data: Dataset, sigma_data: float
) -> tuple[ConditionalObjective, dict[str, Any]]:
    """The objective of a diffusion model, and what to record about it."""
    from rdc.training.objective import ConditionalObjective

    noise = noise_distribution(args, -1.2, 1.2)
    posterior = {
        "posterior_weight": args.posterior_weight,
        "wrong_classes": args.wrong_classes,
        "posterior_scale": args.posterior_scale,
    }
    objective = ConditionalObjective(data.num_classes, noise, sigma_data, args.label_dropout, **posterior)
    settings = {"command": "train", "noise": [noise.mean, noise.std], "label_dropout": args.label_dropout}
    if args.posterior_weight:
        settings["posterior"] = posterior
    return objective, settings


def _classifier(args: argparse.Namespace) -> tuple[ClassifierObjective, dict[str, Any]]:
    """The objective of a classifier, and what to record about it."""
    import dataclasses

    from rdc.attacks import parse_eps
    from rdc.training.adversarial import DEFAULT_BETA, ClassifierObjective, InnerAttack

    attack = None
    if args.method in _ATTACKED:
        radius = parse_eps(_EPS[args.norm] if args.eps is None else args.eps, name="--eps")
        size = args.inner_step_size
        size = None if size is None else parse_eps(size, name="--inner-step-size")
        attack = InnerAttack(radius, args.norm, args.inner_steps, size)
    objective = ClassifierObjective(args.method, attack, args.beta, args.label_smoothing, args.shift)
    settings: dict[str, Any] = {"command": "train", "method": args.method}
    if attack is not None:
        settings["attack"] = dataclasses.asdict(attack)
    if args.method in DEFAULT_BETA:
        settings["beta"] = objective.beta
    return objective, settings | {"label_smoothing": objective.label_smoothing, "shift": objective.shift}
