"""What ``rdc train`` and ``rdc distill`` share: options, data, devices, and the run from start to pictures."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdc.cli.options import thread_count
from rdc.cli.shell import command_line
from rdc.errors import ConfigError, DataError, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rdc.data import Dataset
    from rdc.training.objective import NoiseDistribution, Objective

__all__ = [
    "AUGMENT_HELP",
    "add_device_arguments",
    "add_run_arguments",
    "augmented",
    "fingerprint",
    "load_training_data",
    "noise_distribution",
    "open_device",
    "open_model",
    "run_training",
    "seeded",
    "start_from",
]

INTERRUPTED = 128  # exit status: this plus the signal's number
AUGMENT_HELP = "probability of each of EDM's transformations, of which the network is told (0; EDM: 0.12)"


def add_run_arguments(parser: argparse.ArgumentParser, learning_rate: float | str) -> None:
    """Options of every training command.

    Args:
        learning_rate: default of ``--lr``; or, where the command finds it itself, text that says what it is: ``args.lr`` is
            then None when it was not given.
    """
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder; a run in it is continued")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", default="fashion-mnist", metavar="NAME", help="fashion-mnist, cifar10, or a path of .npz"
    )
    data.add_argument("--data-root", type=Path, metavar="DIR", help="folder with the data set's files")
    data.add_argument("--download", action="store_true", help="fetch Fashion-MNIST if it is nowhere to be found")
    data.add_argument("--holdout", type=int, default=0, metavar="N", help="training images to leave out, balanced")
    data.add_argument("--flip", action="store_true", help="mirror half of the images left to right")
    length = parser.add_argument_group("training")
    length.add_argument("--images", type=int, default=360_000, metavar="N", help="images to process (360000)")
    length.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="in place of --images: end within M minutes of the start, with as many images as the measured speed allows",
    )
    parser.set_defaults(begun=time.monotonic())
    length.add_argument("--batch-size", type=int, default=64, metavar="N", help="images a step, all processes (64)")
    default = None if isinstance(learning_rate, str) else learning_rate
    length.add_argument("--lr", type=float, default=default, metavar="X", help=f"peak of Adam's ({learning_rate})")
    length.add_argument("--warmup-images", type=int, default=10_000, metavar="N", help="until the peak (10000)")
    length.add_argument("--ema-images", type=int, default=15_000, metavar="N", help="half-life of the average (15000)")
    length.add_argument("--clip", type=float, default=1.0, metavar="X", help="largest gradient norm (1.0)")
    length.add_argument("--weight-decay", type=float, default=0.0, metavar="X", help="AdamW's, of matrices (0: Adam)")
    length.add_argument("--noise-mean", type=float, metavar="X", help="mean of ln sigma (EDM: -1.2)")
    length.add_argument("--noise-std", type=float, metavar="X", help="standard deviation of ln sigma (EDM: 1.2)")
    length.add_argument("--seed", type=int, default=0, metavar="N")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    speed.add_argument("--compile", action="store_true", help="torch.compile: minutes to start, then faster")
    speed.add_argument(
        "--memory-format",
        default="channels_last",
        choices=("channels_last", "contiguous"),
        help="of the weights on a GPU (channels_last)",
    )
    speed.add_argument(
        "--cuda-graph",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="record a step once and replay it: no waiting for Python (GPU)",
    )
    speed.add_argument(
        "--checkpoint-seconds", type=float, default=60.0, metavar="S", help="time between checkpoints (default: 60)"
    )
    add_device_arguments(speed)
    speed.add_argument("--quiet", action="store_true", help="no progress bar")


def add_device_arguments(group: Any) -> None:
    """``--device`` and ``--threads``."""
    group.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, or auto: cuda if there (default)")
    group.add_argument("--threads", type=thread_count, metavar="N", help="CPU threads (default: torch's choice)")


def open_device(args: argparse.Namespace) -> torch.device:
    """The device asked for; joins the other processes under ``torchrun``.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    from rdc.training.trainer import start_processes

    if args.threads is not None:
        if args.threads < 1:
            raise ConfigError(f"--threads: expected 1 or more; got {args.threads}")
        torch.set_num_threads(args.threads)
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"--device: expected cpu, cuda or auto; got {name!r}") from error
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"--device: expected cpu, cuda or auto; got {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this PyTorch sees no CUDA GPU; use --device cpu")
    return start_processes(name)


def open_model(name: str) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """(network, its description, what is recorded about it) of a shipped model or of a path."""
    from rdc.models.checkpoints import load_model
    from rdc.models.single import ASSETS, SINGLE

    return load_model(ASSETS / name if name in SINGLE else name)


def start_from(name: str, network: nn.Module, config: dict[str, Any]) -> str:
    """Give ``network`` the weights of another model; returns their fingerprint.

    Raises:
        ConfigError: that model is of another network.
    """
    loaded, theirs, _ = open_model(name)
    if (length := _label_length(config)) and not _label_length(theirs):
        from rdc.networks.presets import with_augmentation_label

        theirs = with_augmentation_label(loaded, theirs, length)
    if theirs != config:
        differ = sorted(key for key in {*theirs, *config} if theirs.get(key) != config.get(key))
        raise ConfigError(
            f"--init {name}: expected a model of the same network; it differs in {', '.join(differ)}. "
            "Choose what that was made with, or leave --init out"
        )
    network.load_state_dict(loaded.state_dict())
    return fingerprint(*network.state_dict().values())


def augmented(
    args: argparse.Namespace, network: nn.Module, config: dict[str, Any], objective: Objective, settings: dict[str, Any]
) -> tuple[dict[str, Any], Objective]:
    """What ``--augment`` makes of the network's description and of the objective; recorded in ``settings``."""
    if not args.augment:
        return config, objective
    from rdc.networks.presets import with_augmentation_label
    from rdc.training.augmentation import AUGMENTATION_LABEL, Augmented

    settings["augment"] = args.augment
    return with_augmentation_label(network, config, AUGMENTATION_LABEL), Augmented(objective, args.augment)


def _label_length(config: dict[str, Any]) -> int:
    return config.get("unet", {}).get("augment_dim", 0)


def load_training_data(args: argparse.Namespace) -> Dataset:
    """The training split without the hold-out."""
    from rdc.data import load_dataset, train_holdout

    data = load_dataset(args.data, "train", args.data_root, args.download, progress=not args.quiet)
    if args.holdout < 0:
        raise ConfigError(f"--holdout: expected 0 or more images; got {args.holdout}")
    shift, (height, width) = getattr(args, "shift", None) or 0, data.image_shape[1:]
    if not 0 <= shift < min(height, width):  # before the folder of the run is made
        raise ConfigError(
            f"--shift: expected 0 or more, and fewer pixels than the image has ({height} x {width}); got {shift}"
        )
    return train_holdout(data, args.holdout)[0] if args.holdout else data


def noise_distribution(args: argparse.Namespace, mean: float, std: float) -> NoiseDistribution:
    """The noise levels asked for; log-normal ones with this mean and std where nothing was."""
    from rdc.training.objective import NoiseDistribution

    return NoiseDistribution(
        mean if args.noise_mean is None else args.noise_mean, std if args.noise_std is None else args.noise_std
    )


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from ``seed``; the global generator is as before afterwards."""
    import torch

    if not 0 <= seed < 2**31:
        raise ConfigError(f"--seed: expected 0..{2**31 - 1}; got {seed}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def fingerprint(*tensors: torch.Tensor) -> str:
    """CRC-32 of the tensors' bytes, as hexadecimal: tells data and teachers apart in a run's description."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), value)
    return f"{value:08x}"


def _train_config(args: argparse.Namespace) -> Any:
    """TrainConfig from the options; with --minutes the number of images is planned later."""
    from rdc.training.trainer import TrainConfig

    return TrainConfig(
        images=args.images if args.minutes is None else max(10**9, args.batch_size),  # for now: planned below
        batch_size=args.batch_size,
        learning_rate=args.lr,
        warmup_images=args.warmup_images,
        ema_images=args.ema_images,
        clip=args.clip,
        seed=args.seed,
        precision=args.precision,
        flip=args.flip,
        compile=args.compile,
        checkpoint_seconds=args.checkpoint_seconds,
        memory_format=args.memory_format,
        cuda_graph=args.cuda_graph,
        weight_decay=args.weight_decay,
    )


def run_training(
    args: argparse.Namespace,
    network: nn.Module,
    config: dict[str, Any],
    objective: Objective,
    data: Dataset,
    settings: dict[str, Any],
    samples: bool = True,
) -> int:
    """Train ``network``, exporting it at every checkpoint; then draw samples.

    Args:
        config: description of the network, for ``model.json``.
        settings: what identifies the run besides network, data and training settings.
        samples: draw them; a classifier has none.

    Returns:
        Exit status: 0, or 128 + the signal that stopped the run.
    """
    import torch.distributed as dist

    from rdc.training.time_box import plan_images
    from rdc.training.trainer import Trainer, TrainingStopped

    train = _train_config(args)
    source = {"name": str(args.data), "images": len(data), "crc32": fingerprint(data.images, data.labels)}
    description = {**settings, "network": config, "data": source, "holdout": args.holdout}
    exporter = Exporter(args.out, config, data, settings)
    trainer = Trainer(network, objective, data, train, args.out, description, not args.quiet, exporter)
    try:
        if args.minutes is not None:
            plan_images(trainer, args.minutes, args.begun)
        trainer.run()
    except TrainingStopped as stop:
        if trainer.rank == 0:
            print(f"{one_line(args.out, 400)}: {stop}. To continue: {_same_command()}", file=sys.stderr)
        return INTERRUPTED + stop.number
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if trainer.step < trainer.config.steps:
        print(
            f"{one_line(args.out, 400)}: the minutes ended after {trainer.step * train.batch_size:,} of {trainer.config.images:,} planned "
            f"images; the state is saved. To continue: {_same_command()}",
            file=sys.stderr,
        )
    elif trainer.rank == 0:
        if samples:
            exporter.samples(trainer.averaged_network(), not args.quiet)
        print(
            f"{one_line(args.out, 400)}: {trainer.step * train.batch_size:,} images in {trainer.seconds / 60:.1f} minutes;",
            end=" ",
        )
        print(f"model.safetensors, model.json, loss.png{', samples.png' if samples else ''}")
    return 0


class Exporter:
    """Writes what follows from a training state: the model, the loss curve and samples.

    Args:
        out: folder.
        config: description of the network.
        data: what it is trained on.
        settings: to record with the model.
    """

    def __init__(self, out: Path, config: dict[str, Any], data: Dataset, settings: dict[str, Any]) -> None:
        self.out, self.config, self.data, self.settings = out, config, data, settings
        method = f" --method {settings['method']}" if "method" in settings else ""
        self.title = f"rdc {settings['command']}{method}, {data.name}"

    def __call__(self, network: nn.Module, info: dict[str, Any]) -> None:
        """After every checkpoint: the averaged weights, and the loss curve so far."""
        from rdc.models.checkpoints import save_model
        from rdc.plots.figures import plot_losses

        about = {"dataset": self.data.name, "class_names": list(self.data.class_names)}
        save_model(self.out / "model", network, self.config, {**about, **self.settings, **info})
        log = self.out / "log.jsonl"
        if not log.exists() or not log.stat().st_size:
            return
        try:
            plot_losses(log, self.out / "loss.png", self.title)
        except DataError as error:  # a damaged row is no reason to stop training
            print(f"{error}; loss.png is not drawn", file=sys.stderr)

    def samples(self, network: nn.Module, progress: bool) -> None:
        """At the end: ``samples.png``."""
        from rdc.method.denoiser import make_denoiser
        from rdc.method.sampling import sample_classes
        from rdc.plots.figures import plot_samples

        images = sample_classes(make_denoiser(network, self.config), 8, progress=progress)
        plot_samples(images, self.data.class_names, self.out / "samples.png", self.title)


def _same_command() -> str:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "run the same torchrun command again"
    name = Path(sys.argv[0]).name
    return command_line(sys.argv[1:]) if name in ("rdc", "__main__.py") else "run the same command again"
