"""Accuracy of what train_diffusers.py trained: two runs of `rdc evaluate`, resumable, and their figures in one file.

    python -m benchmarks.studies.evaluate_diffusers --kind dit --run out/dit --levels log:2:0.2:0.6:flat --clean 10000
    python -m benchmarks.studies.evaluate_diffusers --write docs/any_model.md

Clean accuracy on the first --clean test images, and APGD with exact gradients against the classifier's own noise on the first --robust.
--hold-out N prints the accuracy of several --levels on N training images that were left out of the training, and runs nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import rdc
from benchmarks.starting import start
from benchmarks.studies.levels import holdout
from rdc.cli import main as rdc_main
from rdc.statistics import wilson_interval
from rdc.storage.json_files import read_json, write_json

__all__ = ["main", "name_of", "so_far", "table", "written"]

OUT = Path(__file__).resolve().parents[1] / "results" / "trained-diffusers.json"
BEGIN, END = "<!-- table of benchmarks/studies/evaluate_diffusers.py -->", "<!-- end of the table -->"
_KEPT = (
    "n",
    "clean",
    "robust",
    "classifier",
    "flags",
    "network_evaluations",
    "seconds",
    "command",
    "commit",
    "versions",
)


def name_of(kind: str, run: Path) -> str:
    """What rdc calls the model of a run."""
    more = {"dit": "", "latent": ",image=1x28x28", "prompts": f",image=1x28x28,prompts={run / 'prompts.csv'}"}
    return f"diffusers:{run / 'pipeline'}{more[kind]}"


def evaluated(args: argparse.Namespace, part: str, words: str) -> dict[str, Any]:
    """One `rdc evaluate`, or what it left before."""
    out = args.run / part
    command = [
        "evaluate",
        "--model",
        name_of(args.kind, args.run),
        "--data",
        "fashion-mnist",
        "--levels",
        args.levels[0],
    ]
    command += [*words.split(), "--batch", str(args.batch), "--threads", str(args.threads), "--out", str(out)]
    if status := rdc_main(command):
        raise SystemExit(status)
    report = read_json(out / "report.json")
    attacks = [{**attack} for attack in report["attacks"]]
    flags = [flag["name"] for flag in report["flags"]]
    return {**{name: report[name] for name in _KEPT}, "flags": flags, "attacks": attacks, "sanity": report["sanity"]}


def so_far(run: Path) -> dict[str, Any]:
    """Clean accuracy on the images that an unfinished run is through with."""
    lines = [json.loads(line) for line in (run / "clean" / "results.jsonl").read_text().splitlines()]
    right = [round(line["clean"]["right"]) for line in lines if "clean" in line]
    found = wilson_interval(sum(right), len(right))
    return {"n": len(right), "clean": {"accuracy": sum(right) / len(right), "ci95": list(found)}, "finished": False}


def table(rows: dict[str, Any]) -> str:
    """Markdown, a line a model."""
    names = ("", "weights", "images seen", "minutes", "levels", "clean accuracy", "n", "robust, 8/255", "n")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for kind, row in rows.items():
        stages, clean, robust = row["trained"], row.get("clean"), row.get("robust")
        parts = [f"`{kind}`", " + ".join(f"{count:,}" for count in stages[-1]["weights"])]
        parts.append(" + ".join(f"{stage['images']:,}" for stage in stages))
        parts.append(" + ".join(f"{stage['seconds'] / 60:.0f}" for stage in stages))
        parts += [f"`{row['levels']}`", _accuracy(clean, "clean"), f"{clean['n']:,}" if clean else "-"]
        parts += [_accuracy(robust, "robust"), str(robust["n"]) if robust else "-"]
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


def written(page: str, rows: dict[str, Any]) -> str:
    """The page with the table in place of what stands between its two marks."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise SystemExit(f"--write: expected the marks {BEGIN} and {END}")
    return f"{before}{mark}\n\n{table(rows)}\n\n{end}{after}"


def _accuracy(report: dict[str, Any] | None, name: str) -> str:
    if report is None:
        return "not measured"
    low, high = report[name]["ci95"]
    return f"{100 * report[name]['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _held_out(args: argparse.Namespace) -> None:
    data = holdout(args.hold_out, args.data_root)
    for levels in args.levels:
        classifier = rdc.load(name_of(args.kind, args.run), levels=levels)
        with torch.no_grad():
            answers = torch.cat([classifier(part) for part in data.pixels().split(100)]).argmax(1)
        print(f"{levels}  {(answers == data.labels).double().mean():.4f}", flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("dit", "latent", "prompts"))
    parser.add_argument("--run", type=Path, help="folder of train_diffusers.py")
    parser.add_argument(
        "--first", type=Path, nargs="*", default=[], help="folders of the stages before it, for the record"
    )
    parser.add_argument("--levels", nargs="+", help="noise levels; several with --hold-out")
    parser.add_argument(
        "--hold-out", type=int, help="print the accuracy on so many images that were left out, and stop"
    )
    parser.add_argument("--data-root", help="with --hold-out")
    parser.add_argument("--clean", type=int, default=1000, help="test images; 0: none (default: %(default)s)")
    parser.add_argument(
        "--robust", type=int, default=64, help="test images under attack; 0: none (default: %(default)s)"
    )
    parser.add_argument("--attacks", default="apgd-ce", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--so-far", action="store_true", help="write clean accuracy on what an unfinished run is through with, and stop"
    )
    parser.add_argument("--write", type=Path, help="write the table of --out into this page, and stop")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    if args.write:
        args.write.write_text(written(args.write.read_text(), read_json(args.out)))
        return
    if args.kind is None or args.run is None or args.levels is None:
        parser.error("expected --kind, --run and --levels")
    if args.hold_out:
        _held_out(args)
        return
    rows = read_json(args.out) if args.out.exists() else {}
    row = rows.setdefault(args.kind, {})
    row |= {
        "levels": args.levels[0],
        "trained": [read_json(stage / "trained.json") for stage in (*args.first, args.run)],
    }
    if args.so_far:
        row["clean"] = so_far(args.run)
        write_json(args.out, rows)
        return
    attack = f"--n {args.robust} --norm linf --eps 8/255 --attacks {args.attacks} --steps {args.steps} --noise known"
    if args.robust:
        row["robust"] = evaluated(args, "apgd", f"{attack} --sanity 8")
        write_json(args.out, rows)
    if args.clean:
        row["clean"] = evaluated(args, "clean", f"--n {args.clean} --attacks none")
        write_json(args.out, rows)
    print(table({args.kind: row}))


if __name__ == "__main__":
    start(main)
