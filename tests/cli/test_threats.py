"""``rdc evaluate --threats`` and ``--eps`` with several radii: words, files, going on after kill -9."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rdc.cli import main
from rdc.evaluation.threat_report import ThreatsReport
from rdc.reports.radius_curve import curves_of
from tests.evaluation_models import save_tiny


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    model, data = save_tiny(tmp_path_factory.mktemp("tiny"))
    words = ["evaluate", "--model", model, "--data", data, "--n", "12", "--batch", "4", "--steps", "2"]
    return [*words, "--attacks", "apgd-ce", "--threads", "1", "--sanity", "2", "--quiet"]


@pytest.fixture(scope="module")
def curve(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("curve") / "run"
    assert main([*words, "--eps", "8/255,2/255,0.1", "--out", str(out)]) == 0
    return out


def images_of(folder):
    return {path.parent.parent.name + path.name: dict(np.load(path)) for path in folder.glob("*/batches/*.npz")}


def same(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name][key], other[name][key]) for name in one for key in one[name]
    )


def test_the_curve_of_one_norm(curve, words, tmp_path, capsys):
    report = json.loads((curve / "report.json").read_text())
    assert [threat["threat"] for threat in report["threats"]] == ["linf:8/255", "linf:2/255", "linf:0.1"]
    assert [threat.get("smaller") for threat in report["threats"]] == ["linf:2/255", None, "linf:8/255"]
    found = ThreatsReport.from_json(report, "report")
    assert [[threat.eps for threat in one] for one in curves_of(found.threats)] == [["2/255", "8/255", "0.1"]]
    values = [threat.robust.accuracy for threat in curves_of(found.threats)[0]]
    assert values == sorted(values, reverse=True)
    page = (curve / "report.html").read_text()
    assert "Accuracy against the radius" in page and 'href="linf-8-255/report.html"' in page
    assert (curve / "linf-8-255" / "report.html").exists() and (curve / "linf-2-255" / "model_info.json").exists()
    head, _, row = (curve / "report.md").read_text().splitlines()[:3]
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "model", "images", "clean", "l∞ 8/255", "l∞ 2/255", "l∞ 0.1", "mean", "union",
    ]  # fmt: skip
    assert row.count("|") == head.count("|")
    assert main([*words, "--threats", "linf:8/255,l2:0.5", "--out", str(tmp_path / "both")]) == 0
    printed = capsys.readouterr().out
    assert "under every threat" in printed and "l∞ 8/255" in printed and printed.endswith("\n")
    assert "Accuracy against the radius" not in (tmp_path / "both" / "report.html").read_text()


def test_a_single_threat_is_the_run_that_it_always_was(words, tmp_path):
    for name, given in (("old", ["--norm", "l2", "--eps", "0.5"]), ("new", ["--threats", "l2:0.5"])):
        assert main([*words, *given, "--out", str(tmp_path / name)]) == 0
    old, new = (
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")) for name in ("old", "new")
    )
    assert old == new
    records = [
        [line for line in (tmp_path / name / "results.jsonl").read_text().splitlines() if '"image"' in line]
        for name in ("old", "new")
    ]
    assert records[0] == records[1]
    arrays = [(tmp_path / name / "batches" / "00002.npz").read_bytes() for name in ("old", "new")]
    assert arrays[0] == arrays[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--threats", "linf:8/255,l2:0.5", "--eps", "4/255"], "leave --eps out"),
        (["--threats", "linf:8/255,l2:0.5", "--norm=l2"], "leave --norm out"),
        (["--threats", "linf=8/255"], "expected norm:radius"),
        (["--eps", "8/255,"], "expected a budget"),
        (["--eps", "8/255,4/255", "--attacks", "stadv"], "stadv attacks in none of linf"),
        (["--threats", "linf:1/255,l2:0.5", "--attacks", "none"], "attacks: none"),
    ],
)
def test_what_does_not_go_together(given, said, words, tmp_path, capsys):
    assert main([*words, *given, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_dry_run_has_a_plan_for_each(words, tmp_path, capsys):
    assert main([*words, "--threats", "linf:8/255,flow:0.05", "--dry-run", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "linf 8/255" in out and "flow 0.05" in out and "stadv" in out and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_in_a_second_threat_it_goes_on_to_the_same_bits(words, tmp_path):
    given = [*words, "--threats", "linf:2/255,linf:8/255,l2:0.5", "--steps", "12"]
    assert main([*given, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "rdc", *given, "--out", str(out)])
    deadline = time.monotonic() + 120
    while (
        not (out / "linf-8-255" / "results.jsonl").exists() and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "report.json").exists()
    assert main([*given, "--out", str(out)]) == 0
    assert same(images_of(tmp_path / "whole"), images_of(out))
    results = [(tmp_path / name / "results.jsonl").read_bytes() for name in ("whole", "killed")]
    assert results[0] == results[1]
