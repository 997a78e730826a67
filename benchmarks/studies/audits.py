"""What ``rdc audit`` says of the shipped models: findings by severity, and what it cost.

    python -m benchmarks.studies.audits --out benchmarks/results/audits.json

32 images of fashion-mnist-sample (of cifar10's test images for cifar10, left out where they are not: docs/data.md), one thread, seed 0.
Models that take their time (likelihood maximisation, DiffPure, the conditional teacher) get short attacks on two images, the others on
four. A model that the file has is not audited again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import rdc
from benchmarks.measuring import about
from benchmarks.starting import start
from rdc.audits import AuditSettings
from rdc.errors import DataError
from rdc.models.choice import ModelChoice
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

__all__ = ["MODELS", "audited"]

DATA = "fashion-mnist-sample"
#: label -> (model, likelihood maximisation, images under short attacks)
MODELS: dict[str, tuple[str, str | None, int]] = {
    "fashion-mnist": ("fashion-mnist", None, 4),
    **{f"fashion-mnist-{kind}": (f"fashion-mnist-{kind}", None, 4) for kind in ("standard", "pgd-at", "trades", "mart", "jem", "hybvit")},
    "fashion-mnist-several": ("fashion-mnist-several", None, 4),
    "fashion-mnist-pgd-at-several": ("fashion-mnist-pgd-at-several", None, 4),
    "fashion-mnist --lm paper-v2": ("fashion-mnist", "paper-v2", 2),
    "fashion-mnist-lm-resnet": ("fashion-mnist-lm-resnet", None, 2),
    "fashion-mnist-teacher": ("fashion-mnist-teacher", None, 2),
    "fashion-mnist-diffpure": ("fashion-mnist-diffpure", None, 2),
    "cifar10": ("cifar10", None, 4),
}  # fmt: skip


def audited(model: str, lm: str | None, sanity: int) -> dict[str, Any]:
    """One model's findings, and what the rules that hold measured."""
    begun, wall = time.process_time(), time.monotonic()
    data = "cifar10" if model == "cifar10" else DATA
    report = rdc.audit(ModelChoice(model, lm=lm, device="cpu"), data, settings=AuditSettings(sanity=sanity))
    findings = [{"name": one.name, "severity": one.severity, "found": one.found} for one in report.findings]
    return {
        "findings": findings,
        "fine": dict(report.fine),
        "unchecked": dict(report.unchecked),
        "settings": dict(report.settings),
        "calls": report.calls,
        "images": report.images,
        "cpu_seconds": round(time.process_time() - begun, 1),
        "seconds": round(time.monotonic() - wall, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = read_json(args.out, kind=dict) if args.out.exists() else {"about": about(), "models": {}}
    for label, chosen in bar(list(MODELS.items()), unit="model"):
        if label in result["models"]:
            continue
        try:
            found = audited(*chosen)
        except DataError as error:
            print(f"{label}: not audited. {error}")
            continue
        result["models"][label] = {**found, "commit": about()["commit"]}  # the file may be older
        write_json(args.out, result)
    for label, found in result["models"].items():
        names = ", ".join(f"{one['severity']} {one['name']}" for one in found["findings"]) or "nothing"
        print(f"{label}: {names} ({found['cpu_seconds']:.0f} s of one thread)")


if __name__ == "__main__":
    start(main)
