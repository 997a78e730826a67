"""The table of trainings for several threats in docs/robustness.md is that of the kept reports."""

from __future__ import annotations

from pathlib import Path

from benchmarks.studies import frontier
from benchmarks.studies.robustness_table import RESULTS, ROWS, THREATS
from rdc.storage.json_files import read_json

ROOT = Path(__file__).resolve().parents[2]


def test_page_has_the_table() -> None:
    _, _, rest = (ROOT / "docs/robustness.md").read_text().partition(frontier.BEGIN)
    assert rest.partition(frontier.END)[0].strip() == frontier.table().strip()


def test_rows_and_trials_are_complete_and_of_the_same_images() -> None:
    found = {point.name: point for point in [*frontier.points(), *frontier.tried()]}
    assert set(found) == {*ROWS, "SBGC", *frontier.TRIED}
    for point in found.values():
        assert len(point.robust) == len(THREATS) and point.images == (32 if point.name == "SBGC" else 128)
        assert max(point.robust) <= point.clean  # right when clean, too
        assert point.union is None or point.union <= min(point.robust)


def test_a_report_of_several_threats_is_read_by_their_names() -> None:
    """Cells belong to the threat that they name, wherever they stand."""
    for mark, variant in frontier.TRIED.items():
        path = RESULTS.parent / variant.source
        if path.is_dir():
            continue
        cells = {cell["threat"]: cell["robust"]["accuracy"] for cell in read_json(path)["threats"]}
        point = next(point for point in frontier.tried() if point.name == mark)
        assert point.robust == tuple(cells[f"{norm}:{eps}"] for norm, eps, _ in THREATS.values())
        every = 5 * point.images  # a mean is a whole number of these
        assert round(every * point.mean) == round(every * read_json(path)["mean"]["accuracy"])


def test_figure_is_drawn() -> None:
    assert frontier.figure(frontier.points(), frontier.tried()).startswith(b"\x89PNG")
