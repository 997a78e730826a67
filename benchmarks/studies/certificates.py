"""Certified accuracy on Fashion-MNIST: run what is missing, then put results, table and picture together.

    python -m benchmarks.studies.certificates --list
    python -m benchmarks.studies.certificates --rows EPNDC-0.25 --threads 1            # runs, or goes on
    python -m benchmarks.studies.certificates --rows EPNDC-0.25 --start 50 --n-images 25   # a part, by another process
    python -m benchmarks.studies.certificates --collect                                # runs nothing

A row is one `rdc certify` in a folder of its own, resumable at any moment; parts of a row (ROW-START) give the same lines as one run,
since an image's votes depend on its position alone. --collect takes what is finished, says how many images that are, and writes
certificates.json into benchmarks/results (a row that is there and whose folder is gone stays), certificates.png and
certificates-attacked.png into docs/images.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.starting import start
from rdc.certification.folder import read_certified
from rdc.certification.records import CertifiedImage, RunRecord
from rdc.certification.report import certified_plot, markdown, summarize
from rdc.certification.settings import CertificationSettings
from rdc.cli import main as rdc_main
from rdc.errors import ConfigError
from rdc.storage.files import atomic_write
from rdc.storage.json_files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks/results/certificates.json"
PICTURE, ATTACKED_PICTURE = ROOT / "docs/images/certificates.png", ROOT / "docs/images/certificates-attacked.png"
FEWEST = 4  # images of a row that is drawn

_STUDENT = ("--model", "fashion-mnist", "--noised-levels", "1")
ROWS: dict[str, tuple[str, ...]] = {
    "EPNDC-0.25": (*_STUDENT, "--sigma", "0.25"),  # levels of the model: s_tau 0.5, one level at 0.7
    "EPNDC-0.5": (*_STUDENT, "--sigma", "0.5", "--levels", "log:2:0.08:1.5:eps"),  # beyond what it was trained for
    "APNDC-0.25": (*_STUDENT, "--method", "apndc", "--sigma", "0.25"),  # two passes a vote
    "standard-0.25": ("--model", "fashion-mnist-standard", "--method", "plain", "--sigma", "0.25"),
    "standard-0.5": ("--model", "fashion-mnist-standard", "--method", "plain", "--sigma", "0.5"),
    "PGD-AT-0.25": ("--model", "fashion-mnist-pgd-at", "--method", "plain", "--sigma", "0.25"),
    "PGD-AT-0.5": ("--model", "fashion-mnist-pgd-at", "--method", "plain", "--sigma", "0.5"),
}
#: A further row, which is not drawn: CIFAR-10 (its data is found as docs/data.md says).
TABLED: dict[str, tuple[str, ...]] = {
    "CIFAR-10-0.25": ("--model", "cifar10", "--data", "cifar10", "--noised-levels", "1", "--sigma", "0.25"),
}
ATTACK = ("--attack-radii", "0.25,0.5,1", "--attack-steps", "8", "--attack-draws", "4", "--attack-votes", "100")
ATTACKED = {f"{name}-attacked": (*ROWS[name], *ATTACK) for name in ("EPNDC-0.25", "PGD-AT-0.25")}  # of fewer images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="to run (default: none)")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--n-images", type=int, default=100)
    parser.add_argument("--n", type=int, default=1000, help="votes (default: 1000)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("out/certificates"), help="folders of the runs")
    parser.add_argument("--list", action="store_true", help="show what is finished")
    parser.add_argument("--collect", action="store_true", help="write results and picture of what is finished")
    args = parser.parse_args()
    known = {**ROWS, **TABLED, **ATTACKED}
    for row in filter(None, args.rows.split(",")):
        if row not in known:
            parser.error(f"--rows: expected names of {', '.join(known)}; got {row!r}")
        _run(row, known[row], args)
    found = {row: joined for row in known if (joined := _joined(args.work, row)) is not None}
    for row, (_, images) in found.items():
        print(f"{row:24s} {len(images)} images finished", flush=True)
    if args.collect:
        _collect(found)


def _run(row: str, options: Sequence[str], args: argparse.Namespace) -> None:
    words = ["certify", "--data", "fashion-mnist-sample", "--n", str(args.n), "--threads", str(args.threads), *options]
    words += [
        "--start",
        str(args.start),
        "--n-images",
        str(args.n_images),
        "--out",
        str(args.work / f"{row}-{args.start}"),
    ]
    if status := rdc_main(words):
        raise SystemExit(status)


def _joined(work: Path, row: str) -> tuple[RunRecord, list[CertifiedImage]] | None:
    """The finished images of all parts of a row, each once, under the settings of the first part."""
    images: dict[int, CertifiedImage] = {}
    first: RunRecord | None = None
    for folder in sorted(work.glob(f"{row}-*"), key=lambda path: path.name):
        if not folder.name.removeprefix(f"{row}-").isdigit() or not (folder / "run.json").exists():
            continue
        run, found = read_certified(folder)
        first = first or run
        if _same(run) != _same(first):
            raise ConfigError(
                f"{folder}: other settings, weights or device than the parts before it; collect them apart"
            )
        images |= {image.image: image for image in found}
    return (first, [images[place] for place in sorted(images)]) if first is not None and images else None


def _same(run: RunRecord) -> dict[str, Any]:
    """What must be equal in all parts: all but which images."""
    identity = run.identity.to_json()
    return {**identity, "images": None, "settings": {**identity["settings"], "start": 0, "n_images": 0}}


def _kept(row: dict[str, Any]) -> list[CertifiedImage]:
    """What a picture shows of a finished row's images, from the results file."""
    lines = row["per_image"]["rows"]
    return [
        CertifiedImage(
            image, label, selected, (most,), 0.0, radius, radius == 0, radius > 0 and selected == label, 0, ()
        )
        for image, label, selected, most, radius in lines
    ]


def _label(row: str, count: int) -> str:
    """ "EPNDC-0.25-attacked" -> "EPNDC, sigma 0.25 (16 images)"."""
    return re.sub(r"-(0\.\d+)(-attacked)?", r", sigma \1", row) + f" ({count} images)"


def _collect(found: dict[str, tuple[RunRecord, list[CertifiedImage]]]) -> None:
    report: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {}
    for row, (run, images) in found.items():
        settings = {**run.identity.settings, "start": images[0].image, "n_images": len(images)}
        run = dataclasses.replace(run, identity=dataclasses.replace(run.identity, settings=settings))
        whole = CertificationSettings(**settings)
        summary = summarize(run, images, whole.largest_radius)
        lines = [[image.image, image.label, image.selected, max(image.votes), image.radius] for image in images]
        report[row] = {
            **summary,
            "per_image": {"columns": ["image", "label", "selected", "most votes", "radius"], "rows": lines},
        }
        print(f"\n{row}\n{markdown(summary)}")
    write_json(RESULT, report)
    kept = {row: _kept(report[row]) for row in ROWS if row in report}
    attacked = {row: found[row][1] for row in ATTACKED if row in found}  # a result has no attack of a single image
    for picture, rows in ((PICTURE, kept), (ATTACKED_PICTURE, attacked)):
        curves = [(_label(row, len(images)), images) for row, images in rows.items() if len(images) >= FEWEST]
        if curves:
            picture.parent.mkdir(exist_ok=True)
            with atomic_write(picture) as file:
                file.write(certified_plot(curves))


if __name__ == "__main__":
    start(main)
