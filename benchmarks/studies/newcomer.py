"""Own pictures, 64 x 64, in colour, five classes: the commands of docs/tutorials/train_on_your_own_pictures.md, timed.

    python -m benchmarks.studies.newcomer --folder /tmp/newcomer --out benchmarks/results/newcomer.json

Draws the pictures (disc, ring, square, star, stripes; 240 of each to train on, 60 to test) as files in folders of classes, and gives every
command in a process of its own, as a newcomer would type it. Kept of each: exit status, seconds by the clock and of the processor, and what
it printed. A command that is in the file with status 0 is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.starting import start
from rdc.statistics.proportions import wilson_interval
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

CLASSES = ("disc", "ring", "square", "star", "stripes")
SIDE = 64
_STEPS = "--batch-size 16 --lr 3e-3 --warmup-images 300 --ema-images 300"
COMMANDS = (
    "rdc data info pictures",
    f"rdc train --data pictures --network tiny --images 4800 {_STEPS} --posterior-weight 0.3 --noise-mean -0.2 --noise-std 1 "
    "--out runs/teacher",
    f"rdc distill --teacher runs/teacher --data pictures --images 2400 {_STEPS} --posterior-weight 1 --posterior-scale 0.4 "
    "--wide-channels 48 --out runs/student",
    "rdc evaluate --model runs/student --data pictures --n 32 --attacks apgd-ce --steps 5 --out out/run",
    "rdc export runs/student shapes.onnx --evaluation out/run",
    "rdc predict --onnx shapes.onnx --recursive pictures/test",
)
ANSWERS = "answers.jsonl"


def drawn(kind: str, draw: random.Random) -> Image.Image:
    """A picture of a class: any place, size, turn and colours, with grain."""
    paper, ink = (tuple(draw.randrange(*span) for _ in range(3)) for span in ((0, 110), (130, 250)))
    x, y, size, turn = draw.uniform(24, 40), draw.uniform(24, 40), draw.uniform(13, 21), draw.uniform(-0.4, 0.4)
    canvas = Image.new("RGB", (SIDE, SIDE), paper)
    pen = ImageDraw.Draw(canvas)

    def corner(angle: float, share: float) -> tuple[float, float]:
        return x + share * size * math.cos(angle + turn), y + share * size * math.sin(angle + turn)

    if kind in ("disc", "ring"):
        around = [x - size, y - size, x + size, y + size]
        pen.ellipse(around, **({"fill": ink} if kind == "disc" else {"outline": ink, "width": draw.randrange(4, 8)}))
    elif kind == "square":
        pen.polygon([corner(math.pi * (0.25 + 0.5 * k), 1.2) for k in range(4)], fill=ink)
    elif kind == "star":
        pen.polygon([corner(math.pi * (k / 5 - 0.5), 0.5 if k % 2 else 1.3) for k in range(10)], fill=ink)
    else:
        width, across = draw.randrange(5, 9), np.array([math.cos(turn + math.pi / 4), math.sin(turn + math.pi / 4)])
        for place in range(-SIDE, 2 * SIDE, 2 * width):
            ends = [(place - 32) * across + along * across[::-1] * (-1, 1) + 32 for along in (-90, 90)]
            pen.line([tuple(end) for end in ends], fill=ink, width=width)
    grain = np.random.default_rng(draw.randrange(2**32)).normal(0, 18, (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(canvas) + grain).clip(0, 255).astype(np.uint8))


def draw_pictures(folder: Path, train: int = 240, test: int = 60) -> None:
    """``folder/train/CLASS/000.png`` ... and ``folder/test``; the same every time."""
    draw = random.Random(0)
    for split, count in (("train", train), ("test", test)):
        for kind in CLASSES:
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                drawn(kind, draw).save(folder / split / kind / f"{number:03d}.png")


def timed(command: str, folder: Path) -> dict[str, Any]:
    """Run it; what there is to know of it."""
    words = shlex.split(command)
    words = [sys.executable, "-m", *words]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    if "predict" in words:
        (folder / ANSWERS).write_text(done.stdout)
    of_processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "command": command,
        "status": done.returncode,
        "seconds": round(seconds, 1),
        "processor_seconds": round(of_processor, 1),
        "stdout": done.stdout.splitlines()[-30:] if "predict" not in words else [],
        "stderr": done.stderr.splitlines()[-30:],
    }


def judged(folder: Path) -> dict[str, Any]:
    """How many of the answers are the picture's class."""
    answers = [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()]
    right = sum(answer.get("class") == Path(answer["file"]).parent.name for answer in answers)
    return {"pictures": len(answers), "right": right, "ci95": list(wilson_interval(right, len(answers)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to work")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = read_json(args.out) if args.out.exists() else {"commands": []}
    done = {entry["command"]: entry for entry in found["commands"] if entry["status"] == 0}
    if not (args.folder / "pictures").exists():
        draw_pictures(args.folder / "pictures")
    entries = []
    for command in bar(COMMANDS, desc="commands", unit=""):
        entries.append(done[command] if command in done else timed(command, args.folder))
        write_json(args.out, {"commands": entries, "cores": os.cpu_count(), "load": os.getloadavg()})
        if entries[-1]["status"]:
            raise SystemExit("\n".join(entries[-1]["stderr"]))
    write_json(args.out, {**read_json(args.out), "predicted": judged(args.folder)})


if __name__ == "__main__":
    start(main)
