"""``rdc certify``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rdc.arguments.defaults import CertificationDefaults
from rdc.cli.images import DATA, load_images
from rdc.cli.options import (
    add_format_options,
    add_model_options,
    count_all,
    image_count,
    model_choice,
    need,
    say_data,
    say_precision,
    warn_of_null_label,
)
from rdc.cli.shell import command_line
from rdc.errors import ConfigError, one_line

_HERE = {"--overwrite", "--quiet"}  # options that do not belong in the recorded command
_DEFAULT = CertificationDefaults()

ABOUT = """Certified accuracy by randomised smoothing: an l_2 radius for each image within which no attack can change the smoothed
classifier's decision, but with probability alpha. DIR gets report.json, report.md, certified.png and results.jsonl (per image, as they
come). Killed or interrupted, the same command goes on where it stopped. docs/certificates.md says what is proven."""
EXAMPLES = """methods:
  epndc   the posterior of the noised image, by a lower bound of its likelihood; a network pass a level and class (multi-head: a level)
  apndc   the same for the image that the network denoises from it; one pass more
  plain   any classifier, of the noisy pixels clipped to [0, 1]

examples:
  rdc certify --model fashion-mnist --data fashion-mnist-sample --n-images 100 --sigma 0.25 --noised-levels 1 --n 1000 --out runs/epndc
  rdc certify --model fashion-mnist-teacher --method apndc --n-images 100 --sigma 0.25 --n 10000 --out runs/apndc
  rdc certify --model fashion-mnist-standard --method plain --sigma 0.5 --attack-radii 0.25,0.5,1 --out runs/resnet
  torchrun --nproc-per-node 2 -m -- rdc certify --n-images 500 --threads 1 --out runs/sharded   # mind the --
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc certify``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model_options(parser, "fashion-mnist")
    _add_images(parser.add_argument_group("images"))
    _add_certificate(parser.add_argument_group("certificate"))
    _add_attack(parser.add_argument_group("attack of the smoothed classifier"))
    run = parser.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/certify-MODEL-DATA-...)")
    run.add_argument("--overwrite", action="store_true", help="start afresh in a folder that holds results")
    run.add_argument(
        "--batch", type=int, default=_DEFAULT.batch, metavar="N", help="votes computed together (default: %(default)s)"
    )
    add_format_options(run)
    run.add_argument("--quiet", action="store_true", help="no progress bar, no closing words")


def _add_images(group: Any) -> None:
    group.add_argument(
        "--data",
        default="fashion-mnist",
        metavar="NAME",
        help=f"{DATA} (default: %(default)s)",
    )
    _number(group, "--n-images", "images, or all", image_count)
    _number(group, "--start", "position of the first", int, "I")
    group.add_argument("--split", default=_DEFAULT.split, metavar="SPLIT", help="test or train (default: %(default)s)")
    group.add_argument("--data-root", metavar="DIR", help="the only folder to look for the data in")


def _add_certificate(group: Any) -> None:
    group.add_argument(
        "--method", default=_DEFAULT.method, metavar="METHOD", help="epndc, apndc or plain (default: %(default)s)"
    )
    _number(group, "--sigma", "of the smoothing noise, in [0, 1] pixel units", float, "S")
    _number(group, "--n0", "votes that select a class", int)
    _number(group, "--n", "votes that bound its probability", _votes)
    _number(group, "--alpha", "how probable a wrong certificate of an image may be", float, "A")
    _number(
        group, "--noised-levels", "levels of epndc and apndc, from the noise's own up to the largest of --levels", int
    )
    group.add_argument(
        "--noise",
        default=_DEFAULT.noise,
        metavar="POLICY",
        help="draws at these levels; fresh: of every vote its own, known: one for all (default: %(default)s)",
    )
    _number(group, "--seed", "of all noise", int)


def _votes(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected an integer, of votes; got {one_line(repr(text))}. The number of images is --n-images"
        ) from None


def _add_attack(group: Any) -> None:
    group.add_argument(
        "--attack-radii",
        metavar="LIST",
        help="l_2 radii such as 0.25,0.5,1: attack the smoothed classifier there too, and say if it falls below its certificate "
        "(default: no attack)",
    )
    _number(group, "--attack-steps", "of PGD", int)
    _number(group, "--attack-draws", "draws averaged for a gradient", int)
    _number(group, "--attack-votes", "votes that judge an attacked image", int)


def _number(group: Any, name: str, about: str, kind: Any, metavar: str = "N") -> None:
    default = getattr(_DEFAULT, name[2:].replace("-", "_"))
    group.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{about} (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Certify; returns the exit status."""
    from rdc.certification import certify
    from rdc.certification.report import markdown
    from rdc.execution.processes import is_first_process, leave_processes

    count_all(args, "n_images")
    settings = _settings(args)
    need("matplotlib")  # for the plot
    dataset = load_images(args.data, args.split, args.data_root, progress=not args.quiet)
    choice, first = model_choice(args).joined()
    if first:
        say_data(args, [args.model])
    classifier = choice.load(dataset)
    if first:
        say_precision(classifier)
    if first and settings.method == "plain":  # the others refuse likelihood maximisation
        warn_of_null_label(classifier)
    out, done = Path(args.out or _default_folder(settings)), [0]

    def count(finished: int, total: int) -> None:
        done[0] = finished

    try:
        found = certify(
            classifier, dataset, settings, out, command=command_line(args.argv, without=_HERE), overwrite=args.overwrite,
            progress=not args.quiet, on_image=count,
        )  # fmt: skip
    except KeyboardInterrupt:
        again = command_line(args.argv, without=["--overwrite"])
        kept = f"{done[0]} of {settings.n_images} images are finished and kept in {one_line(out, 400)}"
        raise KeyboardInterrupt(f"{kept}; to continue, run the same command again:", f"  {again}") from None
    if is_first_process():
        print(json.dumps(found.report, indent=2) if args.format == "json" else markdown(found.report), end="")
        if not args.quiet:
            stream = sys.stderr if args.format == "json" else sys.stdout
            print(f"\nReport: {one_line(out / 'report.md', 400)}, plot: certified.png", file=stream)
    leave_processes()
    return 0


def _settings(args: argparse.Namespace) -> Any:
    from rdc.certification import CertificationSettings

    names = [
        "model", "n_images", "split", "start", "method", "sigma", "n0", "n", "alpha", "noised_levels", "noise", "seed", "batch",
        "attack_steps", "attack_draws", "attack_votes", "levels", "lm", "lm_model", "precision",
    ]  # fmt: skip
    fields = {name: getattr(args, name) for name in names}
    return CertificationSettings(dataset=args.data, attack_radii=_radii(args.attack_radii), **fields)


def _radii(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text[:2000].split(","))
    except ValueError:
        raise ConfigError(
            f"attack_radii: expected numbers separated by commas, such as 0.25,0.5,1; got {one_line(repr(text))}"
        ) from None


def _default_folder(settings: Any) -> str:
    def plain(text: object) -> str:
        return "".join(c if c.isalnum() or c in ".-" else "-" for c in str(text)[:60]).strip("-")

    parts = [Path(settings.model).name, Path(settings.dataset).name, settings.method, settings.sigma, settings.n_images]
    return str(Path("runs") / "-".join(["certify", *(plain(part) for part in parts)]))
