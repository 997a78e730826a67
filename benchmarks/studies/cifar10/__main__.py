"""CIFAR-10 on a machine with a GPU and little time: pack, train, distil, choose levels, evaluate.

    python -m benchmarks.studies.cifar10 --only pack --data-root ~/cifar10 --pack runs/cifar10-pack  # at home: files to send
    python -m benchmarks.studies.cifar10 --only unpack --pack runs/cifar10-pack --data-root /tmp/cifar10  # there, once for each file sent
    python -m benchmarks.studies.cifar10 --data-root /tmp/cifar10 --out out  # there: everything else, 8.6 minutes
    python -m benchmarks.studies.cifar10 --data-root /tmp/cifar10 --out out --resume earlier  # goes on from what came back, or cifar10
    python -m benchmarks.studies.cifar10 --only robust,attack --resume earlier --words "robust=--secant-eps 10/255"
    python -m benchmarks.studies.cifar10 --data-root /tmp/cifar10 --only attack --resume out --out report  # the full attacks, seven minutes
    python -m benchmarks.studies.cifar10 --dry-run  # on a CPU, tiny: does the script work?

Each part has a box of minutes (--box), --minutes ends everything. In --out, at every checkpoint and after every part: cifar10.json,
teacher-i-of-n.safetensors and student-i-of-n.safetensors (averaged weights, float16, at most 16 MiB a file), files.zip (logs,
pictures, reports). That is all --resume needs: Adam starts anew, with a warm-up. Everything else is in --work. A part that was
killed goes on by the same command while --work is there. The steps and a plan of minutes: docs/models/cifar10.md.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.starting import start
from benchmarks.studies.cifar10.parts import BOXES, PARTS
from benchmarks.studies.cifar10.run import Run
from rdc.errors import RdcError

DEFAULT = "teacher,robust,levels,evaluate,attack"


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", default=DEFAULT, help="parts, separated by commas (default: %(default)s)")
    made.add_argument("--list", action="store_true", help="list the parts and their minutes")
    made.add_argument("--dry-run", action="store_true", help="on the CPU, a few tiny steps of everything")
    made.add_argument("--processes", action="store_true", help="in a dry run: start commands as processes, as on a GPU")
    made.add_argument("--minutes", type=float, default=8.6, help="end of everything (default: %(default)s)")
    made.add_argument("--box", default="", metavar="PART=MINUTES,...", help="minutes of parts (defaults: see --list)")
    made.add_argument(
        "--words", action="append", default=[], metavar='"PART=OPTIONS"', help="more options of a part's rdc command"
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="what goes back; at most eight files")
    made.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="everything else, a new one for every --resume (default: rdc-cifar10 in /tmp)",
    )
    made.add_argument(
        "--resume", type=Path, metavar="DIR", help="the --out folder of an earlier run to go on from, or cifar10"
    )
    made.add_argument("--data-root", type=Path, metavar="DIR", help="where CIFAR-10 is (or, unpack: is to be)")
    made.add_argument("--pack", type=Path, metavar="DIR", help="folder of the packed files (runs/cifar10-pack)")
    made.add_argument("--part-mib", type=float, default=46.5, help="largest packed file (default: %(default)s)")
    made.add_argument("--network", metavar="NAME", help="the teacher's preset (medium-32; dry run: small-32)")
    made.add_argument("--n", type=int, default=512, help="test images that are attacked (default: %(default)s)")
    return made


def main() -> int:
    made = parser()
    args = made.parse_args()
    if args.list:
        rows = (f"{name:9s} {BOXES[name]:4.1f} min   {part.__doc__.splitlines()[0]}" for name, part in PARTS.items())
        print("\n".join(rows))
        return 0
    named = [name for name in args.only.split(",") if name]
    if unknown := [name for name in named if name not in PARTS]:
        made.error(f"--only: expected some of {', '.join(PARTS)}; got {unknown[0]!r}")
    if not 0 < args.minutes < float("inf"):
        made.error(f"--minutes: expected a positive number; got {args.minutes}")
    boxes, words = BOXES | _boxes(made, args.box), _words(made, args.words)
    here = {"pack", "unpack"} >= set(named)  # these need no GPU
    if not (args.dry_run or here or torch.cuda.is_available()):
        made.error("expected a CUDA device; there is none that torch sees. Use --dry-run to try the script on the CPU")
    args.network = args.network or ("small-32" if args.dry_run else "medium-32")
    if args.work is None:
        args.work = Path(tempfile.mkdtemp(prefix="rdc-cifar10-dry-") if args.dry_run else "/tmp/rdc-cifar10")
    return _all(args, [name for name in PARTS if name in named], boxes, words)


def _all(args: argparse.Namespace, chosen: list[str], boxes: dict[str, float], words: dict[str, list[str]]) -> int:
    try:
        run = Run(args, boxes, words)
    except RdcError as error:
        print(f"cifar10: error: {error}", file=sys.stderr)
        return 2
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for name in chosen:
            run.part(name, PARTS[name])
    except KeyboardInterrupt:
        run.result["interrupted"] = True
        run.save()
        print(
            f"\ninterrupted; what is finished is in {args.out or args.work}. The same command goes on", file=sys.stderr
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"\n{run.table()}")
    failed = any(found["line"].startswith("FAILED") for found in run.result["parts"].values())
    return 130 if run.result.get("interrupted") else int(failed)


def _boxes(made: argparse.ArgumentParser, text: str) -> dict[str, float]:
    boxes = {}
    for item in filter(None, text.split(",")):
        name, _, minutes = item.partition("=")
        try:
            boxes[name] = float(minutes)
        except ValueError:
            boxes[name] = -1.0
        if name not in PARTS or not 0 < boxes[name] < float("inf"):
            made.error(f"--box: expected PART=MINUTES with a part of {', '.join(PARTS)} and minutes > 0; got {item!r}")
    return boxes


def _words(made: argparse.ArgumentParser, items: list[str]) -> dict[str, list[str]]:
    words = {}
    for item in items:
        name, sign, text = item.partition("=")
        if name not in ("teacher", "draw", "student", "robust", "evaluate", "attack") or not sign:
            made.error(
                f'--words: expected "PART=OPTIONS", PART teacher, draw, student, robust, evaluate or attack; got {item!r}'
            )
        words[name] = shlex.split(text)
    return words


if __name__ == "__main__":
    start(main)
