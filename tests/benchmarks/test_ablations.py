"""The ablations: what can be asked for, what is kept of a cell, and the page made of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import ablation_cells, ablation_page, ablations
from benchmarks.studies.ablation_cells import ATTACKS, EXPERIMENTS, GRIDS, RESULTS, N, defences, optimizer_lm
from rdc.attacks.registry import parse_attack
from rdc.method.levels import parse_levels
from rdc.method.likelihood_maximization import resolve_lm
from rdc.statistics import wilson_interval
from rdc.storage.json_files import read_json, write_json
from tests.tolerances import RECORDED_DIGITS

ROOT = Path(__file__).resolve().parents[2]


def test_every_row_and_attack_can_be_read():
    known = defences()
    for experiment in EXPERIMENTS.values():
        assert experiment.default in experiment.rows and set(experiment.rows) <= set(known)
        assert set(experiment.attacks) <= set(ATTACKS)
    for name, defence in known.items():
        lm = resolve_lm(defence.lm)
        assert (lm.steps if lm else 0) == defence.steps, name
        if defence.levels:
            assert len(parse_levels(defence.levels)) == defence.rows, name
    for text in ATTACKS.values():
        assert dict(parse_attack(text).options)["steps"] == ablation_cells.STEPS
    for changes, _, grid in GRIDS.values():
        assert all(resolve_lm(optimizer_lm(changes, size)).step_size == pytest.approx(size / 255) for size in grid)


def test_the_shipped_levels_are_those_of_the_default_row():
    import rdc

    assert rdc.load("fashion-mnist").levels == parse_levels("log:4:0.08:0.7:eps")


def cells(**given):
    named = {"experiment": None, "cells": None, "attacks": None, **given}
    return ablations._cells(argparse.ArgumentParser(), argparse.Namespace(**named))


def test_cells_are_chosen_by_name():
    assert cells(experiment="budget", cells="eta-8,eta-0") == [("dc", "exact"), ("rdc", "exact")]
    assert cells(experiment="attacks", attacks="bpda") == [("n-1", "bpda"), ("rdc", "bpda")]
    assert ("dc", "redraws") in cells(experiment="variance") and ("dc", "bpda") not in cells()
    assert len(cells()) == len(set(cells()))
    for given in ({"experiment": "budget", "cells": "n-1"}, {"cells": "none"}, {"attacks": "fab"}):
        with pytest.raises(SystemExit):
            cells(**given)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder of results with two rows: eight images, all right when clean."""
    monkeypatch.setattr(ablation_cells, "RESULTS", tmp_path)

    def keep(row, attack, standing, **more):
        hits = standing.count("1")
        rate = {"accuracy": hits / 8, "ci95": list(wilson_interval(hits, 8))}
        clean = {"accuracy": 1.0, "ci95": list(wilson_interval(8, 8))}
        found = {"clean": clean, "robust": rate, "right": "1" * 8, "standing": standing, "seconds": 1, "n": 8, **more}
        write_json(tmp_path / f"{row}--{attack}.json", found)

    return keep


def test_together_is_what_stands_under_each(kept):
    kept("rdc", "exact", "11110000")
    kept("rdc", "bpda", "11001100")
    kept("n-1", "exact", "11111111")
    found = ablation_page.cells_of("attacks")
    assert ablation_page.standing(found["rdc"], ["exact", "bpda"]).tolist() == [True, True] + [False] * 6
    table = "\n".join(ablation_page._table("attacks"))
    (row,) = [line for line in table.splitlines() if line.startswith("| **RDC")]
    assert "50.0 [21.5, 78.5]" in row and "25.0 [7.1, 59.1]" in row and row.endswith("| - |")
    (other,) = [line for line in table.splitlines() if line.startswith("| RDC: N = 1")]
    assert "+50.0 [" in other and "p = 0.12" in other
    assert "`n-1` bpda 1 min" in " ".join(table.split()) and "`rdc` exact" not in table


def test_a_cell_keeps_every_image(tmp_path, monkeypatch):
    """Run for real on a tiny model: what is kept is what the run's folder says."""
    from tests.evaluation_models import save_tiny

    model, data = save_tiny(tmp_path)
    monkeypatch.setattr(ablation_cells, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(ablations, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(ablations, "DATA", data)
    monkeypatch.setattr(ablations, "N", 40)
    args = argparse.Namespace(work=tmp_path / "work", batch=20, threads=1)
    row = ablation_cells.Defence("tiny", model=model)
    ablations.run_attack("tiny", row, "exact", args)
    ablations.run_redraws("tiny", row, args)
    cell = read_json(tmp_path / "kept" / "tiny--exact.json")
    report = json.loads((tmp_path / "work" / "tiny--exact" / "report.json").read_text())
    assert cell["schema"] == "rdc.ablation/1" and cell["n"] == 40 == len(cell["right"]) == len(cell["standing"])
    assert cell["robust"] == report["robust"] and cell["clean"] == report["clean"]
    for key, rate in (("right", "clean"), ("standing", "robust")):
        assert abs(cell[key].count("1") / 40 - cell[rate]["accuracy"]) < RECORDED_DIGITS
    assert report["attacks"][0]["attacked"] == cell["right"].count("1")  # from the clean images
    drawn = read_json(tmp_path / "kept" / "tiny--redraws.json")
    assert len(drawn["draws"]) == 10 and drawn["right"] == cell["right"] and 0 <= drawn["changed"] <= 1
    assert abs(np.mean(drawn["draws"]) - drawn["mean"]) < RECORDED_DIGITS
    assert "10 draws" in ablation_page.summary(drawn) and "robust" in ablation_page.summary(cell)


def test_kept_cells_are_those_of_the_script():
    known, found = defences(), sorted(RESULTS.glob("*--*.json"))
    assert found
    for path in found:
        row, _, attack = path.stem.partition("--")
        cell, defence = read_json(path), known[row]
        assert (cell["row"], cell["attack"], cell["n"], cell["schema"]) == (row, attack, N, "rdc.ablation/1")
        assert cell["about"]["commit"] and "dirty" not in cell["about"]["commit"]
        if attack == "redraws":
            continue
        settings = cell["settings"]
        assert settings["model"] == defence.model and settings["attacks"] == [parse_attack(ATTACKS[attack]).text]
        assert (settings["levels"], settings["lm"], settings["noise"]) == (defence.levels, defence.lm, "known")
        for key, rate in (("right", "clean"), ("standing", "robust")):
            assert abs(cell[key].count("1") / N - cell[rate]["accuracy"]) < RECORDED_DIGITS
        assert all(
            right == "1" or standing == "0" for right, standing in zip(cell["right"], cell["standing"], strict=True)
        )


def test_the_page_has_the_tables_of_the_cells():
    text = (ROOT / "docs/ablations.md").read_text()
    assert text.split(ablation_page.MARKER)[1].strip() == ablation_page.tables().strip()
