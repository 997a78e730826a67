"""RDC's adversarial images under fresh noise, drawn as before and after a fix: how far the older figures were off.

    python -m benchmarks.studies.fresh_noise --threats linf-8,linf-25,stadv --out out/rdc-fresh-noise.json
    python -m benchmarks.studies.fresh_noise --show out/rdc-fresh-noise.json

Until 2026-11-30 likelihood maximisation in a diffusion classifier drew the same noise whatever the seed: of the ten submissions of an
image, the first had the noise that the attacker knew. The images of the table's runs are not kept. Here the first attacks of each of
RDC's cells (transfer, BPDA; StAdv whole) make images anew, and the same images are submitted ten times under either rule.
Resumable: `rdc evaluate` for the images, a batch at a time for the submissions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.starting import start
from benchmarks.studies.robustness_table import ROWS, THREATS, evaluation_command

ATTACKS = 2  # of the cell's list
SUBMISSIONS = 10


def images(threat: str, n: int, work: Path) -> Path:
    """Folder of the evaluation that made the images, finished."""
    from rdc.cli import main as rdc_main

    out = work / f"rdc-{threat}-short"
    attacks = ("stadv",) if threat == "stadv" else ROWS["RDC"].attacks[:ATTACKS]
    if status := rdc_main([*evaluation_command("RDC", threat, attacks, n, 32, 1), "--sanity", "0", "--out", str(out)]):
        raise SystemExit(status)
    return out


def submitted(classifier: Any, pixels: Any, labels: Any, seed: int, *, old: bool) -> list[list[int]]:
    """Which submissions were right, [images][SUBMISSIONS] of 0 and 1."""
    import torch

    judge = classifier.with_(noise="fresh", noise_seed=seed)
    if old:
        judge._lm_number = lambda draw: draw  # the rule before the fix
    with torch.no_grad():
        right = [(judge(pixels).argmax(1) == labels).long() for _ in range(SUBMISSIONS)]
    found: list[list[int]] = torch.stack(right, 1).tolist()
    return found


def measure(threat: str, n: int, work: Path, rows: dict[str, Any]) -> bool:
    """One more batch of 32 images under both rules into ``rows``; False where none is left."""
    import numpy as np
    import torch

    import rdc
    from rdc.storage.json_files import read_json

    if threat in rows and len(rows[threat]["new"]) >= n:
        return False  # its images are not made again
    folder = images(threat, n, work)
    row = rows.setdefault(threat, {"n": n, "old": [], "new": [], "report": read_json(folder / "report.json")})
    done = len(row["new"])
    dataset = rdc.load_dataset("fashion-mnist-sample")
    classifier = rdc.load("fashion-mnist", lm="paper-v2")
    with np.load(folder / "batches" / f"{done // 32:05d}.npz", allow_pickle=False) as arrays:
        pixels = torch.from_numpy(arrays["x_adv"])
    labels = dataset.labels[done : done + len(pixels)]
    for rule in ("old", "new"):
        row[rule] += submitted(classifier, pixels, labels, 2026 + done, old=rule == "old")
    return True


def scores(row: dict[str, Any], rule: str) -> dict[str, Any]:
    """Average, worst of ten, and the first submission alone: share of images, with Wilson's interval."""
    from rdc.statistics import wilson_interval

    right = row[rule]
    n = len(right)
    worst, first = sum(all(one) for one in right), sum(one[0] for one in right)
    average = sum(map(sum, right)) / (n * SUBMISSIONS)
    others = sum(sum(one[1:]) for one in right) / (n * (SUBMISSIONS - 1))
    return {
        "average": average,
        "worst": {"accuracy": worst / n, "ci95": wilson_interval(worst, n)},
        "first": first / n,
        "others": others,
    }


def table(rows: dict[str, Any]) -> str:
    """A row for each threat and rule."""
    lines = [
        "| threat | known noise | rule | average | worst of ten | first submission | the nine others |",
        "|" + "---|" * 7,
    ]
    for threat, row in rows.items():
        for rule in ("old", "new"):
            found = scores(row, rule)
            low, high = found["worst"]["ci95"]
            known = row["report"]["scores"]["known"]["accuracy"]
            lines.append(
                f"| {THREATS[threat][2]} | {100 * known:.1f} | {rule} | {100 * found['average']:.1f} | "
                f"{100 * found['worst']['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | {100 * found['first']:.1f} | "
                f"{100 * found['others']:.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threats", default="linf-8", help="names of threats, separated by commas (default: linf-8)")
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--work", type=Path, default=Path("out/fresh-noise"), help="folders of the runs")
    parser.add_argument("--out", type=Path, help="JSON file, written after every batch")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of a file")
    args = parser.parse_args()
    import torch

    from benchmarks.measuring import about
    from rdc.storage.json_files import read_json, write_json

    if args.show:
        print(table(read_json(args.show)["rows"]))
        return
    torch.set_num_threads(1)
    done = read_json(args.out) if args.out and args.out.exists() else {"about": about(), "rows": {}}
    for threat in args.threats.split(","):
        while measure(threat, args.n, args.work, done["rows"]):
            if args.out:
                write_json(args.out, done)
    print(table(done["rows"]))


if __name__ == "__main__":
    start(main)
