"""Every row of the table of defences and threats as a point: accuracy when clean against the mean over its threats.

    python -m benchmarks.studies.frontier --write docs/images/frontier.png --page docs/robustness.md

Trainings for several threats that are not shipped are points as well, and rows of a table of the page. Runs nothing: it reads
kept reports. A row with a missing cell is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
from pathlib import Path

from benchmarks.starting import start
from benchmarks.studies.robustness_table import OPEN, RESULTS, ROWS, THREATS, further, put
from rdc.storage.files import atomic_write
from rdc.storage.json_files import read_json

#: rows whose training named more than one threat; filled in the figure
SEVERAL = ("DC-several", "PGD-AT-several")
DIFFUSION = ("DC", "RDC", "DC-several", "SBGC", "DiffPure", "LM+ResNet")
#: where a name would stand on its neighbour's -> its offset in points, and its side
BESIDE = {"MART": ((-6, 3), "right"), "PGD-AT": ((6, -10), "left")}
BEGIN = "<!-- frontier: written by benchmarks/studies/frontier.py -->"
END = "<!-- end of frontier -->"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A training for several threats that was tried.

    Args:
        words: what was done.
        source: report of ``rdc evaluate --threats``, or a folder with a report for each threat, in benchmarks/results/.
        diffusion: whether a diffusion model was trained.
    """

    words: str
    source: str
    diffusion: bool = True


#: mark in the figure -> what was tried
TRIED = {
    "a": Variant("DC-several, a third stage of 160,000 images", "several-third"),
    "b": Variant("the same, half of every batch drawn by a teacher", "drawn/student.json"),
    "c": Variant("the same, with adversarial weight perturbation (`--awp 0.005`)", "awp/student.json"),
    "d": Variant("PGD-AT-several, half of every batch drawn", "drawn/pgd-at.json", False),
    "e": Variant("a student from nothing in 78 minutes, `--posterior-scale 0.1`", "one/student.json"),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """A defence.

    Args:
        name: of the row.
        clean: accuracy, in [0, 1].
        robust: accuracy under each threat, in the order of ``THREATS``; what further attacks left where there were any.
        images: how many.
        union: accuracy where every threat may be used, if that was asked for.
    """

    name: str
    clean: float
    robust: tuple[float, ...]
    images: int
    union: float | None = None

    @property
    def mean(self) -> float:
        return sum(self.robust) / len(self.robust)


def points() -> list[Point]:
    """The rows that have every cell, in the order of the table."""
    found = []
    for name in (*ROWS, *OPEN):
        files = {threat: RESULTS / f"{name.lower()}-{threat}.json" for threat in THREATS}
        if all(file.exists() for file in files.values()):
            reports = {threat: read_json(file) for threat, file in files.items()}
            robust = tuple(further(name, threat, report)[1] / report["n"] for threat, report in reports.items())
            first = next(iter(reports.values()))
            found.append(Point(name, first["clean"]["accuracy"], robust, first["n"]))
    return found


def tried() -> list[Point]:
    """The points of :data:`TRIED`."""
    found = []
    for mark, variant in TRIED.items():
        path = RESULTS.parent / variant.source
        if path.is_dir():
            reports = [read_json(path / f"{threat}.json") for threat in THREATS]
            first, union = reports[0], None
            robust = tuple(report["robust"]["accuracy"] for report in reports)
        else:
            first = read_json(path)
            asked = {f"{norm}:{eps}": threat for threat, (norm, eps, _) in THREATS.items()}
            cells = {asked[cell["threat"]]: cell["robust"]["accuracy"] for cell in first["threats"]}
            robust, union = tuple(cells[threat] for threat in THREATS), first["union"]["accuracy"]
        found.append(Point(mark, first["clean"]["accuracy"], robust, first["n"], union))
    return found


def table() -> str:
    """Markdown: what was tried beside the rows whose training named several threats."""
    lines = ["| | training | clean | mean | all five | " + " | ".join(words for _, _, words in THREATS.values()) + " |"]
    lines.append("|" + "---|" * (5 + len(THREATS)))
    shipped = [("", point) for point in points() if point.name in SEVERAL]
    for mark, point in [*shipped, *((point.name, point) for point in tried())]:
        words = TRIED[mark].words if mark else f"**{point.name}**"
        cells = " | ".join(f"{100 * value:.1f}" for value in point.robust)
        union = "-" if point.union is None else f"{100 * point.union:.1f}"
        lines.append(f"| {mark} | {words} | {100 * point.clean:.1f} | {100 * point.mean:.1f} | {union} | {cells} |")
    return "\n".join(lines) + "\n"


def figure(found: list[Point], others: list[Point]) -> bytes:
    """A PNG: filled where training named several threats, circles for diffusion models, squares for others.

    Args:
        found: rows, with their names.
        others: what was tried, smaller and with its mark.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    for point in found:
        own, several = point.name in DIFFUSION, point.name in SEVERAL
        colour = "#1f6f8b" if own else "#8a5a00"
        axes.plot(
            100 * point.clean, 100 * point.mean, "o" if own else "s", color=colour, markersize=8,
            markerfacecolor=colour if several else "white",
        )  # fmt: skip
        offset, side = BESIDE.get(point.name, ((6, 4), "left"))
        where = (100 * point.clean, 100 * point.mean)
        axes.annotate(point.name, where, offset, textcoords="offset points", fontsize=8, ha=side)
    for point in others:
        own = TRIED[point.name].diffusion
        where = (100 * point.clean, 100 * point.mean)
        axes.plot(*where, "o" if own else "s", color="#1f6f8b" if own else "#8a5a00", markersize=4)
        axes.annotate(point.name, where, (0, -10), textcoords="offset points", fontsize=7, ha="center")
    axes.set_xlabel("right when clean (%)")
    axes.set_ylabel("right under attack: mean of five threats (%)")
    axes.grid(alpha=0.25)
    axes.margins(0.12)
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=130)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="file of the figure; left out: figures are printed alone")
    parser.add_argument("--page", type=Path, help="page whose table of what was tried is written")
    args = parser.parse_args()
    found, others = points(), tried()
    for point in [*found, *others]:
        cells = "  ".join(f"{100 * value:5.1f}" for value in point.robust)
        about = f"{point.name:15s} {point.images:4d} images  clean {100 * point.clean:5.1f}"
        print(f"{about}  {cells}  mean {100 * point.mean:5.1f}")
    if args.write:
        with atomic_write(args.write) as file:
            file.write(figure(found, others))
    if args.page:
        put(args.page, table(), BEGIN, END)


if __name__ == "__main__":
    start(main)
