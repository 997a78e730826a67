"""The table in docs/robustness.md is that of the kept reports."""

import copy
from pathlib import Path

from benchmarks.studies import robustness_table
from rdc.storage.json_files import read_json

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_has_the_table_of_the_reports():
    text = (ROOT / "docs/robustness.md").read_text()
    assert text.split(robustness_table.MARKER)[1].strip() == robustness_table.table().strip()


def test_every_cell_is_there_and_says_how_it_was_attacked():
    for row in robustness_table.ROWS:
        for threat, (norm, _, _) in robustness_table.THREATS.items():
            report = read_json(robustness_table._kept(row, threat))
            assert report["n"] == 128 and report["attacks"] and report["model"] == robustness_table.ROWS[row].model
            assert {attack["norm"] for attack in report["attacks"]} == {norm}
            assert (
                report["robust"]["accuracy"]
                == report["scores"]["known"]["accuracy"]
                == report["attacks"][-1]["accuracy"]
            )


def test_a_lower_number_by_further_attacks_replaces_the_cell():
    for (row, threat), path in robustness_table.FURTHER.items():
        found, cell = read_json(path), read_json(robustness_table._kept(row, threat))
        before, after = robustness_table.further(row, threat, cell)
        assert 0 <= found["left_by_both"] <= min(found["left_by_these"], found["left_by_the_cell"])
        assert before == cell["attacks"][-1]["survivors"] and after < before
        assert f"| **{100 * after / cell['n']:.1f}**\\* [" in robustness_table.table()
        reports = [read_json(path.parent / name) for name in found["reports"]]
        assert sum(report["n"] for report in reports) == found["images"] < cell["n"]
        assert sum(report["attacks"][-1]["survivors"] for report in reports) == found["left_by_these"]
        for report in reports:
            assert [attack["name"] for attack in report["attacks"]] == found["attacks"]
            assert report["classifier"] == cell["classifier"]


def test_the_worst_draw_is_bold_where_it_is_lower():
    scores = {name: {"accuracy": 0.5} for name in ("known", "average", "majority", "worst")}
    assert robustness_table._scorings(scores) == "50.0 / 50.0 / 50.0"
    lower = copy.deepcopy(scores) | {"worst": {"accuracy": 0.25}}
    assert robustness_table._scorings(lower) == "50.0 / 50.0 / **25.0**"
