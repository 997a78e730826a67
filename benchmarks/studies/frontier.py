"""Every row of the table of defences and threats as a point: accuracy when clean against the mean over its threats.

    python -m benchmarks.studies.frontier --write docs/images/frontier.png

Runs nothing: it reads the reports that benchmarks/studies/robustness_table.py has kept. A row with a missing cell is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
from pathlib import Path

from benchmarks.starting import start
from benchmarks.studies.robustness_table import OPEN, RESULTS, ROWS, THREATS, further
from rdc.storage.files import atomic_write
from rdc.storage.json_files import read_json

#: rows whose training named more than one threat; filled in the figure
SEVERAL = ("DC-several", "PGD-AT-several")
DIFFUSION = ("DC", "RDC", "DC-several", "SBGC", "DiffPure", "LM+ResNet")
#: where a name would stand on its neighbour's -> its offset in points, and its side
BESIDE = {"MART": ((-6, 3), "right"), "PGD-AT": ((6, -10), "left")}


@dataclasses.dataclass(frozen=True)
class Point:
    """A defence.

    Args:
        name: of the row.
        clean: accuracy, in [0, 1].
        robust: accuracy under each threat, in the order of ``THREATS``; what further attacks left where there were any.
        images: how many.
    """

    name: str
    clean: float
    robust: tuple[float, ...]
    images: int

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


def figure(found: list[Point]) -> bytes:
    """A PNG: filled where training named several threats, circles for diffusion models, squares for others."""
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
    args = parser.parse_args()
    found = points()
    for point in found:
        cells = "  ".join(f"{100 * value:5.1f}" for value in point.robust)
        about = f"{point.name:15s} {point.images:4d} images  clean {100 * point.clean:5.1f}"
        print(f"{about}  {cells}  mean {100 * point.mean:5.1f}")
    if args.write:
        with atomic_write(args.write) as file:
            file.write(figure(found))


if __name__ == "__main__":
    start(main)
