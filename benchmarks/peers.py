"""The same classifier in other engines: prediction and attack step, each engine beside rdc in one run.

    python -m benchmarks.peers --out peers.json                       # all models and engines
    python -m benchmarks.peers --out peers.json --model fashion-mnist --engine onnxruntime --engine OpenVINO
    python -m benchmarks.peers --show peers.json                      # the table, runs nothing
    python -m benchmarks.peers --dry-run --out /tmp/dry.json          # every engine on a tiny network: does all of it work here?

Every engine is a process of its own that has rdc beside it: the two take turns, so that whatever else the machine does hits both, and
ratios are within one run. What is finished is kept in the file, engine by engine: a killed run goes on with the same command, and an
engine that failed, or took longer than --limit, says so there (--again tries those once more). Decisions, and by how much log
p(y|x) differs from rdc's in float32, are compared before anything is timed. An attack step is one exact gradient to which every class
contributes; onnxruntime and OpenVINO have none. CPU seconds of the process and the clock are kept beside each other, medians and
spread. "edm" is EDM's CIFAR-10 network (DDPM++, 56 M weights) with random weights, one image and one level: ten passes a prediction.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import about, alternate, median
from benchmarks.peer_engines import DRY, ENGINES, Call, Engine, classifier_of, images_for, rdc_calls
from benchmarks.starting import start
from rdc.errors import one_line
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

MODELS = ("fashion-mnist", "fashion-mnist-teacher", "cifar10", "edm")
#: of a model: images whose decisions are compared, and the batches that are timed, with the rounds of each
SIZES: dict[str, tuple[int, dict[int, int]]] = {
    "fashion-mnist": (480, {1: 9, 8: 7, 64: 5}),
    "fashion-mnist-teacher": (32, {1: 7, 8: 3}),
    "cifar10": (64, {1: 7, 8: 5, 64: 3}),
    "edm": (1, {1: 2}),
    DRY: (4, {1: 2, 2: 1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=[*MODELS, DRY], help="repeatable (default: all but dry)")
    parser.add_argument("--engine", action="append", choices=list(ENGINES), help="repeatable (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="of every engine (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=900.0, help="seconds for one engine and model (default: %(default)s)"
    )
    parser.add_argument("--work", type=Path, help="folder for exported files (default: one beside the file of results)")
    parser.add_argument("--again", action="store_true", help="try engines that failed once more")
    parser.add_argument(
        "--dry-run", action="store_true", help="a tiny network with random weights in place of the models"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "ENGINE", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.show:
        print(table(read_json(args.show)))
        return
    if args.child:
        model, engine, out = args.child
        write_json(Path(out), measured(model, ENGINES[engine], args.work, args.threads))
        return
    if args.out is None:
        parser.error("--out FILE is needed: what is finished is kept there")
    print(table(run(args)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All that is not in the file yet; the file is written after every engine."""
    found: dict[str, Any] = read_json(args.out) if args.out.exists() else {"about": about(), "models": {}}
    if found["about"].setdefault("engine_threads", args.threads) != args.threads:
        raise SystemExit(f"{args.out} was measured with {found['about']['engine_threads']} threads: use another file")
    work = args.work or args.out.with_name(f"{args.out.stem}-files")
    work.mkdir(parents=True, exist_ok=True)
    models = [DRY] if args.dry_run else args.model or MODELS
    wanted = [(model, engine) for model in models for engine in args.engine or ENGINES]
    for model, engine in bar(wanted, desc="engines"):
        kept = found["models"].setdefault(model, {})
        if engine in kept and not (args.again and "failed" in kept[engine]):
            continue
        kept[engine] = in_a_process(model, engine, work, args)
        write_json(args.out, found)
    return found


def in_a_process(model: str, engine: str, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What one engine does with one model; or ``failed``, and why."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.peers", "--child", model, engine, str(out)]
        command += ["--work", str(work), "--threads", str(args.threads)]
        try:
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=args.limit, check=False)
        except subprocess.TimeoutExpired:
            return {"failed": f"took longer than {args.limit:g} s"}
        if done.returncode or not out.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return {"failed": one_line(lines[-1] if lines else f"exit status {done.returncode}", 300)}
        read: dict[str, Any] = json.loads(out.read_text())
        return read


def measured(model: str, engine: Engine, work: Path, threads: int) -> dict[str, Any]:
    """Seconds to start, agreement with rdc, and seconds of every batch and kind of work, rdc's beside them."""
    torch.set_num_threads(threads)
    compared, batches = SIZES[model]
    classifier, pixels = classifier_of(model), images_for(model, max(compared, *batches))
    begun = time.process_time(), time.perf_counter()
    calls = engine.calls(classifier, work / f"{model}.onnx", threads)
    ours = rdc_calls(classifier)
    most = max(batches)
    first = calls["prediction"](pixels[:1])
    result: dict[str, Any] = {
        "start": {"cpu": _short(time.process_time() - begun[0]), "wall": _short(time.perf_counter() - begun[1])}
    }
    del first
    result["agreement"] = agreement(ours["prediction"], calls["prediction"], pixels[:compared], most)
    result["rows"] = [
        {"work": work_name, "batch": batch, **timed(ours[work_name], call, pixels[:batch], rounds)}
        for work_name, call in calls.items()
        for batch, rounds in batches.items()
    ]
    return result


def agreement(ours: Call, theirs: Call, pixels: Tensor, most: int) -> dict[str, Any]:
    """On how many images both decide alike, and by how much log p(y|x) differs over all classes."""
    exact, other = (torch.cat([torch.as_tensor(call(part)) for part in pixels.split(most)]) for call in (ours, theirs))
    return {
        "images": len(pixels),
        "same_decision": int((exact.argmax(1) == other.argmax(1)).sum()),
        "largest_difference_of_log_p": float(f"{float((exact - other).abs().max()):.4g}"),
    }


def timed(ours: Call, theirs: Call, pixels: Tensor, rounds: int) -> dict[str, Any]:
    """CPU seconds and the clock of both, in turn; a call of each before."""
    named: dict[str, Callable[[], Any]] = {"rdc": lambda: ours(pixels), "engine": lambda: theirs(pixels)}
    for call in named.values():
        call()
    cpu: dict[str, list[float]] = {name: [] for name in named}

    def counted(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            begun = time.process_time()
            call()
            cpu[name].append(time.process_time() - begun)

        return run

    wall = alternate({name: counted(name, call) for name, call in named.items()}, rounds)
    return {name: {"cpu": _spread(cpu[name]), "wall": _spread(wall[name])} for name in named}


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": _short(median(seconds)), "fastest": _short(min(seconds)), "slowest": _short(max(seconds))}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def table(found: dict[str, Any]) -> str:
    """Markdown: milliseconds an image of every engine, and how many times as long as rdc's beside it."""
    threads = found["about"].get("engine_threads", 1)
    kind = "cpu" if threads == 1 else "wall"
    what = "CPU seconds of the process" if kind == "cpu" else f"wall clock, {threads} threads"
    lines = [f"Milliseconds an image ({what}), medians; in brackets: times as long as rdc in float32 in the same run."]
    for model, engines in found["models"].items():
        done = {name: entry for name, entry in engines.items() if "rows" in entry}
        columns = list(dict.fromkeys((row["work"], row["batch"]) for entry in done.values() for row in entry["rows"]))
        lines += ["", f"**{model}**", "", "| engine | " + " | ".join(f"{work}, {batch}" for work, batch in columns)]
        lines[-1] += " | same decisions | log p within | start, s |"
        lines.append("|" + "---|" * (len(columns) + 4))
        if done:
            lines.append(_row_of_rdc(done, columns, kind))
        lines += [_row(name, entry, columns, kind) for name, entry in done.items()]
        lines += [f"- {name}: {entry['failed']}" for name, entry in engines.items() if "failed" in entry]
    return "\n".join(lines)


def _row_of_rdc(done: dict[str, Any], columns: list[tuple[str, int]], kind: str) -> str:
    cells = []
    for work, batch in columns:
        rows = [row for entry in done.values() for row in entry["rows"] if (row["work"], row["batch"]) == (work, batch)]
        cells.append(f"{1000 * median([row['rdc'][kind]['median'] for row in rows]) / batch:.3g}")
    return "| rdc | " + " | ".join(cells) + " | | | |"


def _row(name: str, entry: dict[str, Any], columns: list[tuple[str, int]], kind: str) -> str:
    cells = []
    for work, batch in columns:
        row = next((row for row in entry["rows"] if (row["work"], row["batch"]) == (work, batch)), None)
        if row is None:
            cells.append("-")
            continue
        theirs, ours = row["engine"][kind]["median"], row["rdc"][kind]["median"]
        cells.append(f"{1000 * theirs / batch:.3g} ({theirs / ours:.2f})")
    same = entry["agreement"]
    words = f"{same['same_decision']} of {same['images']} | {same['largest_difference_of_log_p']:.2g} | {entry['start']['cpu']:.3g}"
    return f"| {name} | " + " | ".join(cells) + f" | {words} |"


if __name__ == "__main__":
    start(main)
