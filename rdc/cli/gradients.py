"""``rdc gradients``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdc.arguments.defaults import GradientDefaults
from rdc.cli.images import load_images
from rdc.cli.options import (
    add_format_options,
    add_image_options,
    add_several_models,
    count_all,
    model_choice,
    need,
    say_data,
    say_precision,
    warn_if_sorted,
    warn_of_null_label,
)
from rdc.cli.shell import command_line
from rdc.errors import one_line

if TYPE_CHECKING:
    from rdc.models.choice import ModelChoice

_HERE = {"--overwrite", "--quiet"}  # options that do not belong in the recorded command
_DEFAULT = GradientDefaults()
_PARTS = ("levels", "lm", "lm_model")  # settings of one model, after @, that stand for a command's option

ABOUT = """Are a model's input gradients usable, and how rough is what an attack climbs? Models beside each other: agreement of
gradients over redraws of the noise and over images, local Lipschitz constants, slices of the margin, smoothness along an
attack, exact gradients against BPDA. DIR gets gradients.json and plots. Killed or interrupted, the same command goes on
after the last finished model; with another --model added, only that one is measured. docs/gradients.md says what each
measure means."""
EXAMPLES = """a model: NAME[@setting=value]...
  NAME is a preset, a checkpoint path or package.module:factory; settings are levels, lm, lm-model, gradient (exact or bpda) and label
  (its name in tables and plots). Values may hold colons and commas.

examples:
  rdc gradients --model fashion-mnist --data fashion-mnist-sample --n 16 --out runs/gradients
  rdc gradients --model fashion-mnist@label=DC --model fashion-mnist@lm=paper-v2@label=RDC \\
      --model "fashion-mnist@lm=paper-v2@gradient=bpda@label=RDC, BPDA" --data fashion-mnist-sample --n 8 --draws 5
  rdc gradients --model fashion-mnist@levels=log:8:0.8:4:flat --model my_models:adversarially_trained --eps 8/255
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc gradients``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_several_models(parser, "fashion-mnist")
    add_image_options(parser, _DEFAULT)
    _add_measures(parser.add_argument_group("measures"))
    run = parser.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/gradients-DATA-N)")
    run.add_argument("--overwrite", action="store_true", help="start afresh in a folder that holds results")
    run.add_argument(
        "--batch",
        type=int,
        default=_DEFAULT.batch,
        metavar="N",
        help="images worked on together (default: %(default)s)",
    )
    add_format_options(run)
    run.add_argument("--quiet", action="store_true", help="no progress bar, no closing words")


def _add_measures(group: Any) -> None:
    numbers = {
        "--draws": "redraws of a stochastic model's noise; 0: none",
        "--samples": "random points of each ball, for the sampled Lipschitz constants; 0: none",
        "--ascent-steps": "gradient steps of the refined Lipschitz constants; 0: none",
        "--steps": "of the attack path; 0: no path",
        "--slices": "images whose slices are drawn; 0: none",
        "--grid": "points of a slice along each direction, odd",
        "--seed": "of draws, points, directions and intervals",
    }
    group.add_argument("--eps", default=_DEFAULT.eps, help="l_inf radius in [0, 1] pixel units (default: %(default)s)")
    group.add_argument(
        "--eps-l2", default=_DEFAULT.eps_l2, help="l_2 radius in [0, 1] pixel units (default: %(default)s)"
    )
    group.add_argument(
        "--norm",
        default=_DEFAULT.norm,
        metavar="NORM",
        help="linf or l2, of slices and attack paths (default: %(default)s)",
    )
    for name, text in numbers.items():
        default = getattr(_DEFAULT, name[2:].replace("-", "_"))
        group.add_argument(name, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    group.add_argument(
        "--logit-scale",
        default=_DEFAULT.logit_scale,
        metavar="S",
        help="auto: logits of each image scaled to an ordinary spread, so that models are comparable; or a number that "
        "multiplies all logits, 1 for raw ones (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Analyse; returns the exit status."""
    from rdc.gradient_analysis import GradientSettings, compare_models, comparison_table, parse_model
    from rdc.gradient_analysis.plots import write_plots

    count_all(args)
    names = [field.name for field in dataclasses.fields(GradientSettings) if field.name != "dataset"]
    settings = GradientSettings(dataset=args.data, **{name: getattr(args, name) for name in names})
    need("matplotlib")  # for the plots
    texts = [parse_model(text) for text in args.model or ["fashion-mnist"]]
    dataset = load_images(args.data, args.split, args.data_root, progress=not args.quiet)
    warn_if_sorted(dataset, args.start, args.n)
    say_data(args, [text.name for text in texts])
    models = [_named(model_choice(args, text.name), text, dataset) for text in texts]
    out = Path(args.out or Path("runs") / f"gradients-{Path(args.data).name}-{args.n}")
    done = [0]

    def count(finished: int, total: int) -> None:
        done[0] = finished

    try:
        report = compare_models(
            models,
            dataset,
            settings,
            out,
            command=command_line(args.argv, without=_HERE),
            overwrite=args.overwrite,
            progress=not args.quiet,
            on_model=count,
        )
        files = write_plots(report, out)
    except KeyboardInterrupt:
        again = command_line(args.argv, without=["--overwrite"])
        kept = f"{done[0]} of {len(models)} models are finished and kept in {one_line(out, 400)}"
        raise KeyboardInterrupt(f"{kept}; to continue, run the same command again:", f"  {again}") from None
    print(json.dumps(report, indent=2) if args.format == "json" else comparison_table(report))
    if not args.quiet:
        print(
            f"Report: {one_line(out / 'gradients.json', 400)}, plots: {', '.join(files)}",
            file=sys.stderr if args.format == "json" else sys.stdout,
        )
    return 0


def _named(choice: ModelChoice, text: Any, dataset: Any) -> Any:
    """Load one model: the command's model options, with the model's own settings in their place."""
    from rdc.gradient_analysis import NamedModel

    own = {name: getattr(text, name) for name in _PARTS if getattr(text, name) is not None}
    model = dataclasses.replace(choice, **own).load(dataset)
    warn_of_null_label(model)
    say_precision(model)
    if text.gradient is not None:
        model = model.with_(gradient=text.gradient).eval()
    return NamedModel(label=text.label, text=text.text, model=model)
