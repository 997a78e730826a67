"""``rdc train``: train a class-conditional diffusion model."""

from __future__ import annotations

import argparse

from rdc.cli.training_run import (
    add_run_arguments,
    load_training_data,
    noise_distribution,
    open_device,
    run_training,
    seeded,
    start_from,
)

EXAMPLES = """examples:
  rdc train --data fashion-mnist --out runs/teacher --images 360000 --lr 1.5e-3 --noise-mean -0.1 --noise-std 1.0
  rdc train --data cifar10 --data-root ~/cifar10 --network small-32 --out runs/cifar10 --images 5000000 --flip --compile
  rdc train --init runs/teacher --posterior-weight 0.3 --images 200000 --lr 5e-4 --out runs/sharper
  torchrun --nproc-per-node 2 -m rdc train --data fashion-mnist --out runs/two --images 360000

A run that was stopped or killed is continued by the same command. The folder gets model.safetensors and model.json (the
averaged weights, at every checkpoint), state.safetensors (to continue), log.jsonl, loss.png and samples.png.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc train``."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    model = parser.add_argument_group("model")
    model.add_argument("--network", default="small-28", metavar="NAME", help="network preset (default: %(default)s)")
    model.add_argument(
        "--label-dropout", type=float, default=0.1, metavar="P", help="share of images seen unlabelled (default: 0.1)"
    )
    model.add_argument("--init", metavar="MODEL", help="start from these weights: a model of the same network")
    model.add_argument("--posterior-weight", type=float, default=0.0, metavar="X", help="of naming the class (0.0)")
    model.add_argument("--posterior-scale", type=float, default=2.0, metavar="X", help="of the same (2.0)")
    model.add_argument("--wrong-classes", type=int, default=2, metavar="M", help="to tell the class from (2)")
    add_run_arguments(parser, learning_rate=1e-3)


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit status."""
    from rdc.errors import ConfigError
    from rdc.networks.presets import build_network, network_preset
    from rdc.objective import ConditionalObjective

    device = open_device(args)
    data = load_training_data(args)
    config = network_preset(args.network, data.num_classes)
    if tuple(config["image_shape"]) != data.image_shape:
        expected, got = ("x".join(map(str, shape)) for shape in (config["image_shape"], data.image_shape))
        raise ConfigError(f"--network {args.network}: expected images of {expected}; {data!r} has {got}")
    noise = noise_distribution(args, -1.2, 1.2)
    posterior = {
        "posterior_weight": args.posterior_weight,
        "wrong_classes": args.wrong_classes,
        "posterior_scale": args.posterior_scale,
    }
    objective = ConditionalObjective(data.num_classes, noise, config["sigma_data"], args.label_dropout, **posterior)
    with seeded(args.seed):
        network = build_network(config)
    settings = {"command": "train", "noise": [noise.mean, noise.std], "label_dropout": args.label_dropout}
    if args.posterior_weight:
        settings["posterior"] = posterior
    if args.init:
        settings["init"] = start_from(args.init, network, config)
    network.to(device)
    return run_training(args, network, config, objective, data, settings)
