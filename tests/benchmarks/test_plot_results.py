"""Tables and pictures come from the results files alone."""

import pytest

from benchmarks.studies import plot_results
from rdc.storage.json_files import read_json

THERE = [name for name in plot_results.PARTS if (plot_results.RESULTS / f"{name}.json").exists()]


@pytest.mark.parametrize("name", THERE)
def test_tables(name):
    table = plot_results.PARTS[name][1](read_json(plot_results.RESULTS / f"{name}.json"))
    tables = [part.splitlines() for part in table.split("\n\n") if part.startswith("|")]
    assert tables and all(len(rows) > 3 and len({row.count("|") for row in rows}) == 1 for rows in tables)
    assert "not yet run on a GPU" in table or "measured on" in table


def test_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(plot_results, "IMAGES", tmp_path)
    for name in THERE:
        plot = plot_results.PARTS[name][0]
        if plot is not None:
            plot(read_json(plot_results.RESULTS / f"{name}.json"))
    files = list(tmp_path.glob("benchmarks-*.svg"))
    assert files and all(file.read_bytes().startswith(b"<?xml") and file.stat().st_size < 100_000 for file in files)


def test_replaced():
    page = "a\n<!-- speed -->\nold\n<!-- end -->\nb\n<!-- suite -->\nother\n<!-- end -->\n"
    found = plot_results.replaced(page, "speed", "new \\1 | x")
    assert found == page.replace("old", "new \\1 | x")
    with pytest.raises(SystemExit, match="<!-- scaling -->"):
        plot_results.replaced(page, "scaling", "")


def test_the_page_has_a_place_for_every_table():
    page = plot_results.PAGE.read_text()
    for name in plot_results.PARTS:
        assert plot_results.replaced(page, name, "") != page, name  # raises where there is no place
