"""The figures in docs/robustness.md and docs/robustness_attacks.md are those of the kept reports."""

import copy
import json
import sys
from pathlib import Path

import pytest

from benchmarks.studies import robustness_table
from rdc import reports
from rdc.errors import DataError
from rdc.storage.json_files import json_text, read_json
from tests.evaluation_models import save_tiny

ROOT = Path(__file__).resolve().parents[2]


def test_the_pages_have_the_figures_of_the_reports():
    assert list(robustness_table.PAGES) == ["robustness.md", "robustness_attacks.md"]
    for name, made in robustness_table.PAGES.items():
        _, _, rest = (ROOT / "docs" / name).read_text().partition(robustness_table.BEGIN)
        assert rest.partition(robustness_table.END)[0].strip() == made().strip()


def test_a_page_is_written_between_its_marks(tmp_path):
    page = tmp_path / "robustness.md"
    page.write_text(f"by hand\n{robustness_table.BEGIN}\nold\n{robustness_table.END}\nafter\n")
    robustness_table.put(page, "new\n")
    assert page.read_text() == f"by hand\n{robustness_table.BEGIN}\n\nnew\n\n{robustness_table.END}\nafter\n"
    page.write_text("by hand alone\n")
    with pytest.raises(DataError, match="expected the lines"):
        robustness_table.put(page, "new\n")
    assert page.read_text() == "by hand alone\n"


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
        assert sum(report["n"] for report in reports) == found["images"] <= cell["n"]
        assert sum(report["attacks"][-1]["survivors"] for report in reports) == found["left_by_these"]
        for report in reports:
            assert [attack["name"] for attack in report["attacks"]] == found["attacks"]
            assert report["classifier"] == cell["classifier"]


def test_the_worst_draw_is_bold_where_it_is_lower():
    scores = {name: {"accuracy": 0.5} for name in ("known", "average", "majority", "worst")}
    assert robustness_table._scorings(scores) == "50.0 / 50.0 / 50.0"
    lower = copy.deepcopy(scores) | {"worst": {"accuracy": 0.25}}
    assert robustness_table._scorings(lower) == "50.0 / 50.0 / **25.0**"


def test_figures_with_a_draw_that_the_attacker_knew_are_marked():
    """Only likelihood maximisation inside a diffusion classifier drew the same for every seed, and reports have networks since."""
    old = {"classifier": {"lm": {"steps": 5}, "levels": {"count": 4}}}
    assert robustness_table.shared_a_draw(old)
    assert not robustness_table.shared_a_draw({**old, "networks": []})
    assert not robustness_table.shared_a_draw({"classifier": {"lm": {"steps": 5}, "levels": None}})
    assert not robustness_table.shared_a_draw({"classifier": {"lm": None, "levels": {"count": 4}}})
    fresh = robustness_table.details().split("## The same images under fresh noise")[1].split("## l_inf")[0]
    rows = {line.split("|")[1].strip(): line.count("‡") for line in fresh.splitlines() if line.startswith("| ")}
    assert rows["RDC"] == len(robustness_table.THREATS) - 1  # all but StAdv, which was drawn anew
    assert not any(marks for name, marks in rows.items() if name != "RDC")


def test_how_much_too_low_the_mean_of_ten_draws_may_be():
    """One image, right in the nine draws that nobody knew and wrong in the known one: 0.9, and 1 without it."""
    report = {"scores": {"average": {"accuracy": 0.9}, "worst": {"accuracy": 0.0}}}
    assert robustness_table.too_low_at_most(report) == pytest.approx(1 - 0.9)


def test_which_cells_are_run_together(monkeypatch):
    """No norm twice, where a larger radius would begin with another cell's images; sanity checks and steps as of the cell alone."""
    every = list(robustness_table.THREATS)
    assert robustness_table.runs_of("DC", every) == [["linf-8"], ["linf-25", "l2-0.5", "stadv"], ["l2-1.5"]]
    assert robustness_table.runs_of("SBGC", every) == [
        ["linf-8", "l2-0.5", "stadv"],
        ["linf-25", "l2-1.5"],
    ]  # no sanity checks
    assert robustness_table.runs_of("DC", every, whole=True) == [
        ["linf-8"],
        ["linf-25", "l2-0.5"],
        ["l2-1.5"],
        ["stadv"],
    ]
    assert robustness_table.runs_of("DC", every, single=True) == [[threat] for threat in every]
    assert robustness_table.runs_of("DC", ["stadv"]) == [["stadv"]] and robustness_table.runs_of("DC", []) == []


def test_cells_run_together_are_those_run_alone(tmp_path, monkeypatch):
    model, data = save_tiny(tmp_path)
    row = robustness_table.Row(model, ("apgd-ce", "square:queries=4"), 2)
    monkeypatch.setattr(robustness_table, "ROWS", {"tiny": row})
    monkeypatch.setattr(robustness_table, "DATA", data)
    pages = {"report.html": "", "report.md": ""}  # drawn by other tests
    monkeypatch.setattr(reports, "_contents", lambda run, _: {"report.json": json_text(run.report), **pages})
    asked, made = [], {}

    def listened(words, run=robustness_table.rdc_main):
        asked.append(words)
        return run(words)

    monkeypatch.setattr(robustness_table, "rdc_main", listened)
    for name, more in (("together", []), ("alone", ["--single"])):
        monkeypatch.setattr(robustness_table, "RESULTS", tmp_path / name)
        options = [
            "--rows",
            "tiny",
            "--threats",
            "l2-0.5,stadv",
            "--n",
            "6",
            "--batch",
            "4",
            "--work",
            str(tmp_path / f"work-{name}"),
        ]
        monkeypatch.setattr(sys, "argv", ["robustness_table", *options, *more])
        robustness_table.main()
        made[name] = [plain(read_json(robustness_table._kept("tiny", threat))) for threat in ("l2-0.5", "stadv")]
        robustness_table.main()  # what is there is not run again
    assert [("--threats" in words, "--norm" in words) for words in asked] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    assert made["together"] == made["alone"]
    for work in ("work-together/tiny-l2-0.5-stadv/l2-0.5", "work-together/tiny-l2-0.5-stadv/flow-0.05"):
        alone = {"l2-0.5": "l2-0.5", "flow-0.05": "stadv"}[work.rpartition("/")[2]]
        lines = [(tmp_path / folder / "results.jsonl").read_text() for folder in (work, f"work-alone/tiny-{alone}")]
        assert images_of(lines[0]) == images_of(lines[1]) and len(images_of(lines[0])) == 6


def images_of(lines):
    return [line for line in lines.splitlines() if not line.startswith('{"end_of_batch"')]


def plain(report):
    """Without times, and without the command, which says how the cells were run."""
    kept = {
        key: value
        for key, value in json.loads(json.dumps(report)).items()
        if key not in ("seconds", "command", "crc", "digest")
    }
    kept["attacks"] = [{**attack, "seconds": 0} for attack in kept["attacks"]]
    return kept
