"""The paper's commands on a network of the true size: 55.7 M random weights in a pickle as EDM's program writes them.

    python -m benchmarks.studies.edm_dry_run --work /tmp/edm --out out/edm-dry-run.json
    python -m benchmarks.studies.edm_dry_run --work /tmp/edm --parts convert --out out/edm-convert.json

The pickle is written by the tests' own writer (tests/models/convert/edm_files.py), with none of NVIDIA's code. Each part is a
process of its own, one thread. Counted: its CPU seconds, and the high-water mark of its resident memory (interpreter, PyTorch and
weights included).
"evaluate" labels two images of noise with what the network says of them, so that there is something to attack. "worst" asks for the
gradient of likelihood maximisation and of all classes at once, the most that an attack's step can hold. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.starting import start

__all__ = ["PARTS", "watched"]

MEMORY_MB = 2048
LEVELS, LM = "log:1:0.5:1:flat", "paper-v2,steps=1"

_LABELLED = """
import sys, numpy as np, torch, rdc
folder, levels, lm = sys.argv[1:]
torch.set_num_threads(1)
images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
classifier = rdc.load(f"{folder}/cond", levels=levels, lm=lm)
with torch.no_grad():
    labels = classifier(torch.from_numpy(images).float() / 255).argmax(1)
np.savez(f"{folder}/noise.npz", images=images, labels=labels.numpy())
"""
_WORST = """
import sys, torch, rdc
folder, levels, lm, budget = sys.argv[1:]
torch.set_num_threads(1)
classifier = rdc.load(f"{folder}/cond", levels=levels, lm=lm, memory_budget_mb=float(budget))
pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
weight = torch.linspace(-1, 1, 10)
torch.autograd.grad((classifier.class_losses(pixels) * weight).sum(), pixels)
"""


#: Linux counts a parent's memory as that of the process it starts; so a small one starts what is watched
_WATCH = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, used = os.wait4(process.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss]), flush=True)
"""


def watched(command: list[str]) -> dict[str, float]:
    """Run a command in a process of its own; CPU seconds and MiB of its largest resident memory.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    status, seconds, kibibytes = json.loads(done.stdout.splitlines()[-1])
    if status:
        raise subprocess.CalledProcessError(status, command)
    return {"cpu_seconds": round(seconds, 2), "resident_mib": round(kibibytes / 1024, 1)}


def write(folder: Path) -> dict[str, Any]:
    """The pickle."""
    program = "import sys, pathlib; from tests.models.convert.edm_files import write_true_size as w; w(pathlib.Path(sys.argv[1]))"
    found = watched([sys.executable, "-c", program, str(folder / "edm.pkl")])
    return {**found, "bytes": (folder / "edm.pkl").stat().st_size}


def convert(folder: Path) -> dict[str, Any]:
    """``rdc convert``."""
    return watched([sys.executable, "-m", "rdc", "convert", str(folder / "edm.pkl"), str(folder / "cond")])


def evaluate(folder: Path) -> dict[str, Any]:
    """A run that ends: two images, one level, one step of each kind, exact gradient."""
    watched([sys.executable, "-c", _LABELLED, str(folder), LEVELS, LM])
    words = f"evaluate --model {folder}/cond --data {folder}/noise.npz --n 2 --levels {LEVELS} --lm {LM} --attacks pgd-ce --steps 1"
    words += (
        f" --sanity 0 --resubmissions 1 --memory-mb {MEMORY_MB} --device cpu --threads 1 --quiet --out {folder}/run"
    )
    found = watched([sys.executable, "-m", "rdc", *words.split()])
    return {
        **found,
        "memory_mb": MEMORY_MB,
        "of_budget": round(found["resident_mib"] / MEMORY_MB, 3),
        "command": f"rdc {words}",
    }


def worst(folder: Path) -> dict[str, Any]:
    """The gradient that takes the most memory, of four images."""
    found = watched([sys.executable, "-c", _WORST, str(folder), LEVELS, LM, str(MEMORY_MB)])
    return {**found, **of_budget(found)}


def of_budget(found: dict[str, float]) -> dict[str, float]:
    """The budget, and resident memory as a part of it."""
    return {"memory_mb": MEMORY_MB, "of_budget": round(found["resident_mib"] / MEMORY_MB, 3)}


PARTS = {"write": write, "convert": convert, "evaluate": evaluate, "worst": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the pickle, the checkpoint and the run")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file, written after every part")
    args = parser.parse_args()
    from benchmarks.measuring import about
    from rdc.storage.json_files import read_json, write_json
    from rdc.terminal.progress import bar

    args.work.mkdir(parents=True, exist_ok=True)
    done = read_json(args.out) if args.out and args.out.exists() else {"about": about(), "rows": {}}
    for name in bar([name for name in args.parts.split(",") if name not in done["rows"]]):
        done["rows"][name] = PARTS[name](args.work)
        print(name, done["rows"][name], flush=True)
        if args.out:
            write_json(args.out, done)


if __name__ == "__main__":
    start(main)
