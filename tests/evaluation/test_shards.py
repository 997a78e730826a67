"""Parts of a run on machines of their own, put together: the files of one process; what is missing, damaged or another run's is named."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from rdc.cli import main
from rdc.errors import ConfigError, DataError
from rdc.evaluation import EvaluationSettings, evaluate, evaluate_threats, parse_threats, settings_of_threats
from rdc.evaluation.run import evaluate_part
from rdc.evaluation.shards import Shard, merge_folders, settings_of
from rdc.evaluation.threat_folder import read_threats
from rdc.evaluation.threat_run import evaluate_threats_part
from rdc.storage.sealed import write_sealed
from tests.evaluation_models import gaussian_classifier, labelled_by, save_tiny

SETTINGS = EvaluationSettings(
    model="g", dataset="blobs", n=14, batch=3, steps=3, sanity=2, attacks="apgd-ce", eps="3/255"
)
THREATS = settings_of_threats(SETTINGS, ("apgd-ce",), parse_threats("linf:2/255,l2:0.2,linf:6/255"))


@pytest.fixture(scope="module")
def classifier():
    return gaussian_classifier()


@pytest.fixture(scope="module")
def dataset(classifier):
    return labelled_by(classifier, 14, wrong=2)


@pytest.fixture(scope="module")
def whole(classifier, dataset, tmp_path_factory):
    return evaluate(classifier, dataset, SETTINGS, tmp_path_factory.mktemp("whole") / "run", progress=False)


@pytest.fixture(scope="module")
def parts(classifier, dataset, tmp_path_factory):
    """Three folders; five batches: 0 and 3, 1 and 4, 2."""
    folder, made = tmp_path_factory.mktemp("parts"), []
    for number in (3, 1, 2):
        evaluate_part(classifier, dataset, SETTINGS, folder / str(number), Shard(number, 3).has, progress=False)
        made.append(folder / str(number))
    return made


def plain(report):
    """Without what depends on the clock."""
    if isinstance(report, dict):
        return {
            key: plain(value) for key, value in report.items() if key not in ("seconds", "command", "arrays", "crc")
        }
    return [plain(item) for item in report] if isinstance(report, list) else report


def lines(folder):
    return [plain(json.loads(line)) for line in (folder / "results.jsonl").read_text().splitlines()]


def same_arrays(one, other):
    names = sorted(path.name for path in (one / "batches").iterdir())
    assert names == sorted(path.name for path in (other / "batches").iterdir())
    pairs = [(np.load(one / "batches" / name), np.load(other / "batches" / name)) for name in names]
    return all(np.array_equal(a[key], b[key]) for a, b in pairs for key in a.files)


def test_what_is_merged_is_the_run_of_one_process(classifier, dataset, whole, parts, tmp_path):
    assert sum((part / "sanity.json").exists() for part in parts) == 1
    merge_folders(parts, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(whole.out) and same_arrays(tmp_path / "run", whole.out)
    merged = evaluate(classifier, dataset, SETTINGS, tmp_path / "run", progress=False)
    assert plain(merged.report) == plain(whole.report) and merged.records == whole.records
    assert not list(tmp_path.glob("run/results.*-of-*"))
    assert settings_of(merged.record.identity.settings) == SETTINGS


def test_a_merge_goes_on_and_parts_may_overlap(whole, parts, tmp_path):
    merge_folders(parts, tmp_path / "run")
    results = tmp_path / "run" / "results.jsonl"
    results.write_bytes(results.read_bytes()[:-10])
    merge_folders([parts[0], *parts], tmp_path / "run")
    assert lines(tmp_path / "run") == lines(whole.out)


def test_what_cannot_be_merged(classifier, dataset, parts, tmp_path):
    with pytest.raises(ConfigError, match=r"2 of 5 batches are missing: 1, 4 \(the first has images 3 to 5\)"):
        merge_folders(parts[:2], tmp_path / "out")
    with pytest.raises(ConfigError, match="it is one of the parts"):
        merge_folders(parts, parts[1])
    with pytest.raises(ConfigError, match=r"no run\.json"):
        merge_folders([*parts, tmp_path], tmp_path / "out")
    other = dataclasses.replace(SETTINGS, steps=4)
    evaluate_part(classifier, dataset, other, tmp_path / "other", Shard(1, 3).has, progress=False)
    with pytest.raises(ConfigError) as caught:
        merge_folders([parts[0], tmp_path / "other"], tmp_path / "out")
    assert "another run" in str(caught.value) and any(
        "steps: 3 there, 4 now" in str(part) for part in caught.value.args
    )
    shutil.copytree(parts[0], tmp_path / "damaged")
    arrays = tmp_path / "damaged" / "batches" / "00002.npz"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"00002\.npz"):
        merge_folders([tmp_path / "damaged", *parts[1:]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_of_several_threats(classifier, dataset, tmp_path):
    """A larger radius of a part begins with the images of the smaller one of that part."""
    whole = evaluate_threats(classifier, dataset, THREATS, tmp_path / "whole", progress=False)
    for number in (1, 2):
        mine = Shard(number, 2).has
        evaluate_threats_part(classifier, dataset, THREATS, tmp_path / str(number), mine, progress=False)
    for threat in read_threats(tmp_path / "1")["threats"]:
        merge_folders([tmp_path / name / threat["folder"] for name in "12"], tmp_path / "both" / threat["folder"])
    shutil.copy(tmp_path / "1" / "threats.json", tmp_path / "both")
    both = evaluate_threats(classifier, dataset, THREATS, tmp_path / "both", progress=False)
    assert plain(both.report) == plain(whole.report) and both.images == whole.images
    found = read_threats(tmp_path / "1")
    found["threats"][0]["folder"] = "../../elsewhere"
    write_sealed(tmp_path / "1" / "threats.json", {key: value for key, value in found.items() if key != "digest"})
    with pytest.raises(DataError, match="not that of its threat"):
        read_threats(tmp_path / "1")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/", "/2", "a/b", "1/2/3", "-1/3", "1/1000000", "1" * 30 + "/2"])
def test_parts_that_there_are_not(text):
    with pytest.raises(ConfigError, match="shard: expected a part i/n"):
        Shard.parse(text)


def test_the_commands(tmp_path, capsys):
    model, data = save_tiny(tmp_path)
    words = [
        "evaluate",
        "--model",
        model,
        "--data",
        data,
        "--n",
        "5",
        "--batch",
        "2",
        "--steps",
        "1",
        "--sanity",
        "0",
        "--quiet",
    ]
    words += ["--attacks", "apgd-ce", "--threads", "1"]
    for number in (1, 2):
        assert main([*words, "--shard", f"{number}/2", "--out", str(tmp_path / str(number))]) == 0
        assert not (tmp_path / str(number) / "report.json").exists()
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    parts = [str(tmp_path / "1"), str(tmp_path / "2")]
    assert main(["merge", *parts, "--out", str(tmp_path / "both"), "--quiet", "--threads", "1"]) == 0
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "both")]
    assert plain(reports[0]) == plain(reports[1]) and "--shard" not in reports[1]["command"]
    pages = [(tmp_path / name / "model_info.json").read_bytes() for name in ("one", "both")]
    assert pages[0] == pages[1]
    assert main(["merge", *parts, "--out", str(tmp_path / "new"), "--quiet", "--model", "fashion-mnist"]) == 2
    assert "--model: the parts are of" in capsys.readouterr().err
    run = json.loads((tmp_path / "1" / "run.json").read_text())
    run["identity"]["settings"]["model"] = "os:getcwd"  # somebody's folder that names code
    for part in parts:
        write_sealed(f"{part}/run.json", {key: value for key, value in run.items() if key != "digest"})
    assert main(["merge", *parts, "--out", str(tmp_path / "new"), "--quiet"]) == 2
    assert "the code of os:getcwd would be run; say so by --model os:getcwd" in capsys.readouterr().err
    assert main([*words, "--shard", "1/2", "--save-adversarial"]) == 2
