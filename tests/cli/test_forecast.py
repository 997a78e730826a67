"""`rdc evaluate` says how long it will take, and --dry-run says it and stops; no figure knows of it."""

import json

import numpy as np
import pytest

from rdc.cli import main
from rdc.evaluation import cost
from tests.evaluation_models import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def command(tiny, out, *more):
    words = [
        "evaluate",
        "--model",
        tiny[0],
        "--data",
        tiny[1],
        "--n",
        "6",
        "--batch",
        "3",
        "--eps",
        "4/255",
        "--device",
        "cpu",
    ]
    return [
        *words,
        "--attacks",
        "apgd-ce",
        "--steps",
        "3",
        "--sanity",
        "2",
        "--noise",
        "all",
        "--eot",
        "2",
        "--out",
        str(out),
        *more,
    ]


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in ("seconds", "arrays")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def content(folder):
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    kept = [without_times({key: item for key, item in line.items() if key != "crc"}) for line in lines]
    arrays = [np.load(file) for file in sorted((folder / "batches").glob("*.npz"))]
    return kept, [array[name].tobytes() for array in arrays for name in sorted(array.files)]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tiny, tmp_path, capsys):
    assert main(command(tiny, tmp_path / "run", "--dry-run", "--preset", "paper-v2", "--lm", "none", "--quiet")) == 0
    text = capsys.readouterr().out
    assert text.endswith("Nothing was run (--dry-run).\n") and not (tmp_path / "run").exists()
    said = {line[:24].strip(): line[25:] for line in text.splitlines()}
    assert (
        said["attacks"] == "apgd-ce"
        and said["levels"] == "125, weighting edm"
        and said["steps x restarts"].startswith("3 x 1;")
    )
    assert said["threat"] == "linf 4/255, exact gradient, noise all, EOT 2"
    assert said["preset"] == "paper-v2, but for" and "likelihood maximisation: none in place of paper-v2" in text
    assert "on this device at most" in said["time"]


def test_the_prediction_changes_no_result(tiny, tmp_path, capsys):
    assert main(command(tiny, tmp_path / "loud")) == 0
    said = capsys.readouterr().err
    assert main(command(tiny, tmp_path / "quiet", "--quiet")) == 0
    assert "rdc: about " in said and " on this device at most" in said and "rdc: about" not in capsys.readouterr().err
    assert content(tmp_path / "loud") == content(tmp_path / "quiet")
    assert main(command(tiny, tmp_path / "loud")) == 0  # all is done
    assert "rdc: about" not in capsys.readouterr().err


def test_what_is_left_is_predicted(tiny, tmp_path, capsys):
    assert main(command(tiny, tmp_path / "run", "--quiet")) == 0
    results = tmp_path / "run" / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[: len(lines) // 2]))
    assert main(command(tiny, tmp_path / "run")) == 0
    assert ", for the 3 images that are left\n" in capsys.readouterr().err


def test_a_prediction_that_fails_is_not_worth_a_run(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cost, "predict", lambda *arguments, **options: 1 / 0)
    assert main(command(tiny, tmp_path / "run")) == 0
    assert "rdc: about" not in capsys.readouterr().err
    assert main(command(tiny, tmp_path / "other", "--dry-run")) == 70


def test_wrong_settings_are_refused_by_a_dry_run_too(tiny, tmp_path, capsys):
    assert main(command(tiny, tmp_path / "run", "--dry-run", "--n", "1000")) == 2
    assert "n: " in capsys.readouterr().err
