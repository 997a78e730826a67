"""``benchmarks.peers``: engines answer alike on a tiny network, a killed run goes on, and the table says what failed."""

import argparse

import pytest

from benchmarks import peers
from benchmarks.peer_engines import DRY, ENGINES
from rdc.storage.json_files import read_json
from tests.tolerances import PEER_LOG_P


@pytest.mark.parametrize("name", ["rdc bfloat16", "torch eager", "onnxruntime", "onnxruntime int8"])
def test_an_engine(name, tmp_path):
    found = peers.measured(DRY, ENGINES[name], tmp_path, 1)
    assert found["agreement"]["images"] == 4 and found["start"]["cpu"] > 0
    exact = name in ("torch eager", "onnxruntime")
    assert found["agreement"]["largest_difference_of_log_p"] <= PEER_LOG_P or not exact
    assert found["agreement"]["same_decision"] == 4 or not exact
    work = ["prediction"] if "onnx" in name else ["prediction", "attack step"]
    assert [(row["work"], row["batch"]) for row in found["rows"]] == [
        (kind, batch) for kind in work for batch in (1, 2)
    ]
    assert all(
        row[who][clock]["median"] > 0 for row in found["rows"] for who in ("rdc", "engine") for clock in ("cpu", "wall")
    )


def entry(engine, ours=0.5, theirs=1.0):
    def times(value):
        return {"cpu": {"median": value}, "wall": {"median": value}}

    row = {"work": "prediction", "batch": 2, "rdc": times(ours), "engine": times(theirs)}
    agreement = {"images": 4, "same_decision": 3, "largest_difference_of_log_p": 0.01}
    return {"start": {"cpu": 1.0, "wall": 2.0}, "agreement": agreement, "rows": [row]}


def settings(out, **more):
    given = {
        "threads": 1,
        "work": None,
        "model": [DRY],
        "engine": ["torch eager", "onnxruntime", "OpenVINO"],
        "dry_run": False,
    }
    return argparse.Namespace(**{**given, "again": False, "limit": 9.0, "out": out, **more})


def test_a_killed_run_goes_on_and_failures_are_kept(tmp_path, monkeypatch):
    out, asked = tmp_path / "found.json", []

    def one(model, engine, work, args):
        asked.append(engine)
        if engine == "OpenVINO" and len(asked) == 3:
            raise KeyboardInterrupt
        return {"failed": "no such thing"} if engine == "onnxruntime" else entry(engine)

    monkeypatch.setattr(peers, "in_a_process", one)
    with pytest.raises(KeyboardInterrupt):
        peers.run(settings(out))
    assert list(read_json(out)["models"][DRY]) == ["torch eager", "onnxruntime"]
    found = peers.run(settings(out))
    assert asked == ["torch eager", "onnxruntime", "OpenVINO", "OpenVINO"]
    peers.run(settings(out, again=True))
    assert asked[4:] == ["onnxruntime"]
    with pytest.raises(SystemExit, match="1 threads: use another file"):
        peers.run(settings(out, threads=2))
    text = peers.table(found)
    assert "| torch eager | 500 (2.00) | 3 of 4 | 0.01 | 1 |" in text and "- onnxruntime: no such thing" in text
    assert "| rdc | 250 | | | |" in text


def test_a_process_that_fails_says_why(tmp_path):
    found = peers.in_a_process("nonsense", "torch eager", tmp_path, settings(tmp_path / "x", limit=120))
    assert "KeyError: 'nonsense'" in found["failed"]
    found = peers.in_a_process(DRY, "torch eager", tmp_path, settings(tmp_path / "x", limit=0.01))
    assert found["failed"] == "took longer than 0.01 s"
