"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rdc.cli.images import DATA, load_images
from rdc.errors import one_line

if TYPE_CHECKING:
    from rdc.arguments.defaults import AuditDefaults, EvaluationDefaults, GradientDefaults, LikelihoodDefaults
    from rdc.arguments.paper_presets import PaperPreset
    from rdc.models.choice import ModelChoice

__all__ = [
    "add_device_options",
    "add_format_options",
    "add_image_options",
    "add_model_options",
    "add_preset",
    "add_several_models",
    "apply_preset",
    "batch_size",
    "count_all",
    "image_count",
    "load_classifier",
    "megabytes",
    "model_choice",
    "need",
    "positive_int",
    "say_data",
    "say_precision",
    "some_or_all",
    "thread_count",
    "up_to",
    "warn_if_other_classes",
    "warn_if_sorted",
    "warn_of_null_label",
]

ALL = "all"  #: in place of a number of images
MOST = 10**18  # of what has no limit of its own
MOST_MEGABYTES = 2**24  #: --memory-mb: 16 TiB


def add_model_options(parser: argparse.ArgumentParser, default: str) -> None:
    """--model, --prompts, --preset, --levels, --lm, --lm-model, --precision, --memory-mb, --device, --threads."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=default,
        metavar="NAME",
        help="preset, checkpoint path, optimal:DATA, sbgc:NAME, diffusers:FOLDER, timm:NAME, torchvision:NAME or robustbench:NAME:THREAT "
        "(docs/optimal.md, likelihood.md, any_model.md), or file.py:factory or "
        "package.module:factory, whose code is run: a function without arguments that returns any callable "
        "pixels [N, C, H, W] in [0, 1] -> logits [N, K], or an object with purify(x) and classify(x) "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help="for a diffusers:FOLDER that takes text: CSV with a line class,prompt a prompt; the same as diffusers:FOLDER,prompts=FILE",
    )
    add_preset(group)
    group.add_argument(
        "--levels",
        metavar="LEVELS",
        help="noise levels in place of the model's own: fast, accurate (where it has these), edm, rdc-released, "
        "scheme:count:min:max:weighting, "
        "e.g. log:8:0.8:4:flat, behind it :draws=N, :noise=shared or antithetic, :seed=N (docs/levels.md); or a JSON file with the lists "
        "sigma and weight",
    )
    group.add_argument(
        "--lm",
        metavar="LM",
        help="likelihood maximisation in place of the model's own: none, paper-v1, paper-v2, released; a preset with "
        "changes: paper-v2,steps=10,eta=16/255",
    )
    group.add_argument(
        "--lm-model",
        metavar="NAME",
        help="the diffusion model that likelihood maximisation moves the input by, in place of the model's own network: preset, "
        "checkpoint path (an unconditional one, too) or optimal:DATA",
    )
    group.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "auto"),
        help="what the network computes in; auto: bfloat16 where that is at least 1.1 times as fast and, on the first images, changes no "
        "decision and moves no log-probability by more than 0.01; else float32 (default: the model's own, else float32)",
    )
    group.add_argument(
        "--memory-mb",
        type=megabytes,
        metavar="MB",
        help="working memory of a diffusion model, in MiB; larger batches are cut into pieces, whose backward pass computes "
        "them again (default: 2048; on a GPU half of what is free, if that is more)",
    )
    add_device_options(group)


def add_device_options(group: Any) -> None:
    """--device and --threads."""
    group.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto (cuda if there is one, else cpu), cpu, cuda, cuda:N or mps (default: %(default)s)",
    )
    group.add_argument("--threads", type=thread_count, metavar="N", help="CPU threads (default: as PyTorch chooses)")


def add_preset(group: Any) -> None:
    """--preset: a version of the paper."""
    group.add_argument(
        "--preset",
        metavar="PRESET",
        help="a version of the paper: paper-v1, paper-v2 or released; stands for --levels and --lm, in evaluate for --noise too, where "
        "these are not given (docs/reproduce_paper.md)",
    )


def add_several_models(parser: argparse.ArgumentParser, default: str) -> None:
    """The same, with a --model that may be given several times, as ``NAME[@setting=value]...``."""
    add_model_options(parser, default)
    several = parser.add_argument_group("models to compare", conflict_handler="resolve")  # in place of one --model
    several.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help="NAME[@setting=value]..., see below; may be given several times; the options of the group above are for models "
        f"that set nothing else (default: {default})",
    )


def apply_preset(args: argparse.Namespace, *more: str) -> PaperPreset | None:
    """Put what ``--preset`` sets into the options that were not given, and say on stderr what it set; once, then it is None.

    Args:
        args: parsed options; ``levels`` and ``lm`` are None where they were not given.
        more: further options of the command that a preset sets.

    Returns:
        The preset, if one was named.

    Raises:
        ConfigError: no preset has that name.
    """
    from rdc.arguments.paper_presets import paper_preset

    if getattr(args, "preset", None) is None:
        return None
    preset, args.preset = paper_preset(args.preset), None
    names = ("levels", "lm", *more)
    given = [name for name in names if getattr(args, name) is not None]
    for name in names:
        if name not in given:
            setattr(args, name, getattr(preset, name))
    if not getattr(args, "quiet", False):
        settings = " ".join(f"--{name} {getattr(preset, name)}" for name in names if name not in given)
        kept = " ".join(f"--{name} {one_line(str(getattr(args, name)))}" for name in given)
        print(
            f"rdc: preset {preset.name} ({preset.about}) sets {settings or 'nothing'}"
            + (f"; as given: {kept}" if kept else ""),
            file=sys.stderr,
        )
    return preset


def add_format_options(group: Any, *forms: str, default: str = "text") -> None:
    """--format, and --json, which is short for --format json.

    Args:
        group: parser or group.
        forms: what else than text and json there is.
        default: one of these.
    """
    group.add_argument(
        "--format",
        default=default,
        choices=("text", "json", *forms),
        help="what is printed at the end (default: %(default)s)",
    )
    group.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")


def add_image_options(
    parser: argparse.ArgumentParser,
    default: AuditDefaults | EvaluationDefaults | GradientDefaults | LikelihoodDefaults,
    *,
    count: bool = True,
) -> None:
    """--data, --n (unless ``count`` is False), --start, --split, --data-root; the defaults are those of the command's settings."""
    data = parser.add_argument_group("images")
    data.add_argument(
        "--data",
        default="fashion-mnist",
        metavar="NAME",
        help=f"{DATA} (default: %(default)s)",
    )
    if count:
        data.add_argument(
            "--n", type=image_count, default=default.n, metavar="N", help="images, or all (default: %(default)s)"
        )
    data.add_argument(
        "--start", type=int, default=default.start, metavar="I", help="position of the first (default: %(default)s)"
    )
    data.add_argument("--split", default=default.split, metavar="SPLIT", help="test or train (default: %(default)s)")
    data.add_argument("--data-root", metavar="DIR", help="the only folder to look for the data in")


def image_count(text: str) -> int | str:
    """argparse type: an integer, or ``all``."""
    if text.lower() == ALL:
        return ALL
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, or all; got {one_line(repr(text))}") from None


def some_or_all(text: str) -> int | str:
    """argparse type: an integer >= 1, or ``all``."""
    return ALL if text.lower() == ALL else positive_int(text)


def count_all(args: argparse.Namespace, name: str = "n") -> None:
    """Put the number of images from ``--start`` on in the place of ``all``.

    Args:
        args: parsed options of a command with :func:`add_image_options`.
        name: the option, as argparse stores it.

    Raises:
        DataError: the data cannot be read.
    """
    if getattr(args, name) == ALL:
        data = load_images(args.data, args.split, args.data_root, notices=False, progress=not args.quiet)
        setattr(args, name, max(0, len(data) - args.start))


def say_data(args: argparse.Namespace, models: Sequence[str]) -> None:
    """Say on stderr which images are taken for a model of somebody's where ``--data`` was not given."""
    if any(word == "--data" or word.startswith("--data=") for word in args.argv):
        return
    from rdc.defences.factory import is_factory
    from rdc.models.derived import is_derived

    if any(is_factory(name) and not is_derived(name) for name in models):
        print(f"rdc: --data was not given: the images of {args.data} are taken", file=sys.stderr)


def warn_if_other_classes(model: Any, data: Any, name: str) -> None:
    """Say on stderr that model and data have different numbers of classes: the labels of one may mean nothing to the other."""
    if tuple(model.image_shape) == tuple(data.image_shape) and model.num_classes != data.num_classes:
        print(
            f"rdc: model {one_line(name)} has {model.num_classes} classes, {one_line(data.name)} has {data.num_classes}: were they "
            "made for each other?",
            file=sys.stderr,
        )
    mine, theirs = list(model.class_names), list(data.class_names)
    if mine != theirs and sorted(mine) == sorted(theirs):
        place = next(number for number, name in enumerate(mine) if theirs[number] != name)
        print(
            f"rdc: warning: {one_line(data.name)} names the classes of model {one_line(name)} in another order: {place} is "
            f"{one_line(theirs[place])} there, {one_line(mine[place])} here. Labels are numbers: put prompts, or names, into the "
            "data's order",
            file=sys.stderr,
        )


def warn_if_sorted(data: Any, start: int, count: int) -> None:
    """Say on stderr that the chosen images lack classes because the data set is sorted by class."""
    labels = data.labels
    chosen, present = labels[start : start + count].unique(), labels.unique()
    in_blocks = int((labels[1:] != labels[:-1]).sum()) == len(present) - 1
    if len(chosen) and len(chosen) < len(present) and in_blocks:
        print(
            f"rdc: {one_line(data.name)} is sorted by class, and its images {start} to {min(start + count, len(data)) - 1} are of "
            f"{len(chosen)} of {len(present)} classes; shuffle the file",
            file=sys.stderr,
        )


def positive_int(text: str, most: int = MOST) -> int:
    """argparse type: an integer >= 1."""
    try:
        value = int(text) if len(text) <= 50 else 0  # of a text of a million digits int() takes seconds
    except ValueError:
        value = 0
    if not 1 <= value <= most:
        limit = f", at most {most:,}" if most < MOST or value > most else ""
        raise argparse.ArgumentTypeError(f"expected an integer >= 1{limit}, got {one_line(repr(text))}")
    return value


def up_to(most: int) -> Callable[[str], int]:
    """argparse type: an integer >= 1, at most this."""
    return functools.partial(positive_int, most=most)


thread_count = up_to(4096)  #: argparse type of --threads
batch_size = up_to(1_000_000)  #: argparse type of --batch: images, or files, worked on together


def megabytes(text: str) -> float:
    """argparse type: a number of MiB > 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MOST_MEGABYTES:
        limit = f"{MOST_MEGABYTES:,}"
        raise argparse.ArgumentTypeError(f"expected a number > 0, at most {limit}, got {one_line(repr(text))}")
    return value


def need(*modules: str) -> None:
    """Ask for what a command uses only at its end, before it computes for hours.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    import importlib.util

    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def model_choice(args: argparse.Namespace, name: str | None = None) -> ModelChoice:
    """What the options of :func:`add_model_options` say; ``name`` in place of ``--model``, which else gets what ``--prompts`` says."""
    from rdc.models.bare_folders import with_prompts
    from rdc.models.choice import ModelChoice

    apply_preset(args)
    prompts = getattr(args, "prompts", None)
    if name is None:
        args.model, args.prompts = with_prompts(args.model, prompts), None
    else:
        name = with_prompts(name, prompts)
    given = {name: getattr(args, name, None) for name in ("levels", "lm", "lm_model", "precision", "device", "threads")}
    given["device"] = None if given["device"] == "auto" else given["device"]
    return ModelChoice(name or args.model, memory_budget_mb=getattr(args, "memory_mb", None), **given)


def warn_of_null_label(model: Any) -> None:
    """Say on stderr that a network is asked without a label, and that it was never trained so, or that nobody knows."""
    from rdc.provenance.networks import doubtful_null_labels

    for line in doubtful_null_labels(model):
        print(f"rdc: warning: {one_line(line, 600)}; see docs/evaluation_flags.md", file=sys.stderr)


def load_classifier(args: argparse.Namespace, data: Any = None, **settings: Any) -> Any:
    """The classifier these options name, see ``rdc.models.choice.ModelChoice.load``; a warning where its null label is in doubt."""
    made = model_choice(args).load(data, **settings)
    warn_of_null_label(made)
    say_precision(made)
    return made


def say_precision(model: Any) -> None:
    """A line on stderr of what ``--precision auto`` chose, and why."""
    found = getattr(model, "precision_choice", None)  # somebody's defence may have no such thing
    if found is not None:
        print(f"rdc: precision auto: {found.words()}", file=sys.stderr)
