"""``rdc merge``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdc.cli.images import load_images
from rdc.cli.options import add_device_options, add_format_options, megabytes, need
from rdc.errors import ConfigError, one_line

if TYPE_CHECKING:
    from rdc.evaluation.records import RunRecord
    from rdc.evaluation.settings import EvaluationSettings

ABOUT = """Put the parts of a run together, as `rdc evaluate --shard 1/8` to `--shard 8/8` made them, and write the reports of the whole:
the same as those of one process, to the last bit. Every part is checked, and nothing is computed again. The parts are only read."""
EXAMPLES = """examples:
  for i in 1 2 3; do rdc evaluate --n 512 --shard $i/3 --out parts/$i; done     # on three machines
  rdc merge parts/1 parts/2 parts/3 --out runs/whole
  rdc merge parts/* --out runs/whole --model mynet.py:make                      # runs the code in mynet.py
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc merge``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="+", metavar="DIR", help="folders of the parts")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the whole; a merge that was killed goes on"
    )
    parser.add_argument("--overwrite", action="store_true", help="start afresh in a folder that holds results")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model of the parts; needed where it is a function of yours, whose code is run; its pictures are drawn for the report",
    )
    parser.add_argument("--data-root", metavar="DIR", help="the only folder to look for the data in")
    parser.add_argument("--memory-mb", type=megabytes, metavar="MB", help="working memory of a diffusion model, in MiB")
    add_device_options(parser)
    add_format_options(parser, "markdown")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no closing words")


def run(args: argparse.Namespace) -> int:
    """Merge; returns the exit status."""
    from rdc import reports
    from rdc.evaluation import evaluate, evaluate_threats
    from rdc.evaluation.shards import settings_of
    from rdc.evaluation.threat_folder import is_threat_folder, read_threats

    need("matplotlib", "PIL")  # for the report
    several = is_threat_folder(args.parts[0])
    _check_model(args, read_threats(Path(args.parts[0]))["threats"][0]["folder"] if several else "")
    runs = _merged_threats(args) if several else [_merged(args, args.parts, args.out)]
    every = [settings_of(run.identity.settings) for run in runs]
    dataset = load_images(every[0].dataset, every[0].split, args.data_root, progress=not args.quiet)
    classifier = _classifier(args, runs[0], every[0], dataset)
    options: dict[str, Any] = {"command": runs[0].command, "progress": not args.quiet}
    if several:
        shown = reports.present_threats(
            evaluate_threats(classifier, dataset, every, args.out, **options), classifier, args.format
        )
    else:
        shown = reports.present(evaluate(classifier, dataset, every[0], args.out, **options), classifier, args.format)
    print(shown.text, end="")
    if not args.quiet:
        print(f"Report: {one_line(shown.page, 400)}", file=sys.stderr if args.format == "json" else sys.stdout)
    return 0


def _merged(args: argparse.Namespace, parts: list[str], out: str) -> RunRecord:
    from rdc.evaluation.shards import merge_folders

    return merge_folders(parts, out, overwrite=args.overwrite)


def _merged_threats(args: argparse.Namespace) -> list[RunRecord]:
    """Every threat's folder put together; run.json of each, in the order in which the threats were given."""
    from rdc.evaluation.threat_folder import ThreatFolder, is_threat_folder, read_threats

    lacking = [part for part in args.parts if not is_threat_folder(part)]
    if lacking:
        raise ConfigError(f"{lacking[0]}: a part of one threat, {args.parts[0]} has several; expected parts of one run")
    named = read_threats(Path(args.parts[0]))
    for part in args.parts[1:]:
        ThreatFolder.expect_same(Path(part), read_threats(Path(part)), named)
    with ThreatFolder(args.out, named, overwrite=args.overwrite):
        return [
            _merged(args, [f"{part}/{threat['folder']}" for part in args.parts], f"{args.out}/{threat['folder']}")
            for threat in named["threats"]
        ]


def _check_model(args: argparse.Namespace, folder: str) -> None:
    """Code of somebody's is run only if the command names it; nothing is merged before."""
    from rdc.defences.factory import is_factory
    from rdc.evaluation.shards import run_of_part
    from rdc.models.derived import is_derived

    model = run_of_part(Path(args.parts[0]) / folder).identity.settings.model
    named = one_line(model, 200)
    if args.model is None and is_factory(model) and not is_derived(model):
        raise ConfigError(f"--model: the code of {named} would be run; say so by --model {named}")
    if args.model is not None and args.model != model:
        raise ConfigError(f"--model: the parts are of {named}; got {one_line(args.model, 200)}")


def _classifier(args: argparse.Namespace, whole: RunRecord, settings: EvaluationSettings, dataset: Any) -> Any:
    """The model that the parts name."""
    from rdc.models.choice import ModelChoice
    from rdc.storage.json_records import given

    choice = ModelChoice(
        settings.model,
        levels=settings.levels,
        lm=settings.lm,
        precision=settings.precision,
        lm_model=settings.lm_model,
        memory_budget_mb=args.memory_mb,
        device=None if args.device == "auto" else args.device,
        threads=args.threads,
    )
    return dataclasses.replace(choice, chosen_precision=given(whole.precision_choice)).load(dataset)
