import json
import shutil

import numpy as np
import pytest

from rdc.cli import main
from rdc.errors import ConfigError, DataError
from rdc.evaluation import EvaluationSettings, comparison, evaluate
from rdc.evaluation.comparison import Difference, _after, compare_runs, read_run
from rdc.evaluation.records import AttackOutcome, Decision, ImageRecord
from rdc.reports import write_reports
from rdc.statistics import paired_permutation_test
from rdc.storage.json_files import read_json, write_json
from rdc.storage.sealed import open_line, seal_line, write_sealed
from tests.evaluation_models import gaussian_classifier, labelled_by

COMMON = {"model": "gauss", "dataset": "blobs", "eps": "8/255", "steps": 4, "sanity": 0}


def finished(folder, data, classifier, **changes):
    settings = EvaluationSettings(**{**COMMON, "n": 40, "attacks": ("apgd-ce", "apgd-dlr"), **changes})
    evaluation = evaluate(classifier, data, settings, folder, progress=False)
    write_reports(evaluation, classifier)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A: weak attacks. B: twice the radius, other attacks after the first. C: half of the images. D: fresh noise. E: no attack.

    F: the last image alone.
    """
    folder, classifier = tmp_path_factory.mktemp("runs"), gaussian_classifier()
    data = labelled_by(classifier)
    return {
        "a": finished(folder / "a", data, classifier),
        "b": finished(
            folder / "b", data, classifier, eps="16/255", attacks=("apgd-ce", "square:queries=20", "apgd-dlr")
        ),
        "c": finished(folder / "c", data, classifier, n=20),
        "d": finished(folder / "d", data, classifier, noise="fresh", eot=2, resubmissions=3, attacks=("apgd-ce",)),
        "e": finished(folder / "e", data, classifier, attacks=()),
        "f": finished(folder / "f", data, classifier, attacks=(), start=39, n=1),
    }


def test_differences(runs):
    a, b = read_run(runs["a"]), read_run(runs["b"])
    found = compare_runs(a, b, draws=2000)
    clean, robust = found["differences"]["clean"], found["differences"]["robust"]
    assert found["n"] == 40 and clean["difference"] == 0 and clean["p_value"] == 1
    assert robust["a"] == a["report"]["robust"]["accuracy"] and robust["b"] == b["report"]["robust"]["accuracy"]
    assert robust["difference"] == round(robust["a"] - robust["b"], 6) and robust["difference"] > 0
    assert robust["interval"][0] <= robust["difference"] <= robust["interval"][1]
    right = [np.array([run["images"][i]["robust"] for i in range(40)], float) for run in (a, b)]
    assert robust["p_value"] == float(f"{paired_permutation_test(*right, draws=2000).p_value:.4g}")
    assert robust["only_a"] - robust["only_b"] == round(40 * robust["difference"])
    assert any(note == "eps differs: 8/255 in A, 16/255 in B" for note in found["notes"])


def test_after_each_attack_is_what_the_reports_say(runs):
    """Each run's own cascade: an attack that only B made, or made earlier, does not count in A."""
    a, b = read_run(runs["a"]), read_run(runs["b"])
    found = compare_runs(a, b, draws=100)["differences"]
    assert list(found) == ["clean", "robust", "average of draws", "after apgd-ce", "after apgd-dlr"]
    for name in ("apgd-ce", "apgd-dlr"):
        for side, run in (("a", a), ("b", b)):
            reported = next(x for x in run["report"]["attacks"] if x["name"] == name)
            assert found[f"after {name}"][side] == reported["accuracy"]


def test_an_attack_counts_in_the_runs_own_order():
    """B made "late" before "shared", A after it: an image that only "late" broke stood after "shared" in A, not in B."""
    outcomes = (AttackOutcome("shared", "known", 1.0, -1, -1, 0), AttackOutcome("late", "known", 0.0, 2, 0, 0))
    record = ImageRecord(0, 0, Decision(0, 1.0), outcomes, Decision(1, 0.0), False)
    key, late = ("shared", "known"), ("late", "known")
    assert _after(key, [key, late])(record) == 1 and _after(key, [late, key])(record) == 0
    assert _after(key, [("late", "fresh"), key])(record) == 1


def test_swapped_runs_swap_signs(runs):
    a, b = read_run(runs["a"]), read_run(runs["b"])
    one, other = (compare_runs(*pair, draws=2000)["differences"]["robust"] for pair in ((a, b), (b, a)))
    assert one["difference"] == -other["difference"] and one["only_a"] == other["only_b"]
    assert one["interval"] == [-other["interval"][1], -other["interval"][0]]


def test_fresh_noise_has_averages(runs):
    d = read_run(runs["d"])
    found = compare_runs(d, d, draws=100)["differences"]
    assert "average of draws" in found
    assert found["average of draws"]["a"] == d["report"]["scores"]["average"]["accuracy"]


def test_clean_runs(runs):
    assert list(compare_runs(read_run(runs["e"]), read_run(runs["a"]), draws=100)["differences"]) == ["clean"]


def test_other_images_are_refused(runs):
    a, c = read_run(runs["a"]), read_run(runs["c"])
    with pytest.raises(ConfigError, match=r"40 images \(0 to 39\) of blobs.*20 images \(0 to 19\).*--common"):
        compare_runs(a, c)
    found = compare_runs(a, c, common=True, draws=100)
    assert found["n"] == 20
    assert found["differences"]["clean"]["a"] == np.mean([a["images"][i]["clean"]["right"] for i in range(20)])


def changed(run, folder, settings=None, label=None, digest="another"):
    """A copy that is in itself consistent: as if it had been evaluated with these settings and labels."""
    shutil.copytree(run, folder)
    content = read_json(folder / "run.json")
    del content["digest"]
    content["identity"]["images"] = digest
    content["identity"]["settings"].update(settings or {})
    write_sealed(folder / "run.json", content)
    report = read_json(folder / "report.json")
    write_json(folder / "report.json", {**report, "dataset": content["identity"]["settings"]["dataset"]})
    if label is not None:
        lines = (folder / "results.jsonl").read_bytes().splitlines(keepends=True)
        first, _ = open_line(lines[0][:-1], "line 1")
        (folder / "results.jsonl").write_bytes(seal_line({**first, "label": label}) + b"".join(lines[1:]))
    return read_run(folder)


def test_common_wants_the_same_data(runs, tmp_path):
    a = read_run(runs["a"])
    with pytest.raises(ConfigError, match="same data set and split"):
        compare_runs(a, changed(runs["c"], tmp_path / "1", {"dataset": "cats"}), common=True)
    label = (a["images"][0]["label"] + 1) % 4
    with pytest.raises(ConfigError, match="image 0 has label"):
        compare_runs(a, changed(runs["c"], tmp_path / "2", label=label), common=True)

    with pytest.raises(ConfigError, match="same data set and split; .* blobs, test split, .* blobs, train split"):
        compare_runs(a, changed(runs["c"], tmp_path / "3", {"split": "train"}), common=True)


def test_runs_without_a_common_image_are_told_which_they_have(runs):
    c, f = read_run(runs["c"]), read_run(runs["f"])
    with pytest.raises(ConfigError, match=r"no image in common; .*20 images \(0 to 19\).*1 images \(39 to 39\)"):
        compare_runs(c, f, common=True)
    found = compare_runs(read_run(runs["a"]), f, common=True, draws=100)
    assert found["n"] == 1 and list(found["differences"]) == ["clean"]


def test_each_run_is_measured_by_its_own_measure(runs, monkeypatch):
    """Of attacks in other orders the cascades differ, so a measure has one function for each side."""
    a, c = read_run(runs["a"]), read_run(runs["c"])
    measures = {"what": (lambda record: 1.0, lambda record: 0.25)}
    monkeypatch.setattr(comparison, "_measures", lambda one, other: measures if (one, other) == (a, c) else {})
    found = compare_runs(a, c, common=True, draws=100)["differences"]["what"]
    assert (found["a"], found["b"], found["difference"], found["only_a"], found["only_b"]) == (1, 0.25, 0.75, 20, 0)
    with pytest.raises(ValueError, match="interval"):
        Difference.from_json(found | {"interval": [0.5]}, "difference")
    with pytest.raises(ValueError, match="p_value"):
        Difference.from_json(found | {"p_value": 1.5}, "difference")
    assert Difference.from_json(found, "difference").to_json() == found


def test_a_report_of_impossible_figures_is_damaged(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["a"], folder)
    report = read_json(folder / "report.json")
    for words, change in (
        (r"attacks\[0\]\.accuracy", {"attacks": [report["attacks"][0] | {"accuracy": 1.5}]}),
        (r"clean\.accuracy", {"clean": {"accuracy": -0.5, "ci95": [0, 1]}}),
        (r"robust\.ci95", {"robust": {"accuracy": 0.5, "ci95": [0.5]}}),
        ("report.json: n", {"n": 0}),
    ):
        write_json(folder / "report.json", {**report, **change})
        with pytest.raises(DataError, match=words):
            read_run(folder)


def test_batches_that_are_missing_are_noticed(runs, tmp_path):
    """Images without the line that closes their batch; and a report about the batches that are left."""
    folder = tmp_path / "run"
    shutil.copytree(runs["a"], folder)
    lines = (folder / "results.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "results.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(DataError, match="some batches are missing"):
        read_run(folder)
    closing = [number for number, line in enumerate(lines) if b"end_of_batch" in line]
    assert len(closing) > 1
    (folder / "results.jsonl").write_bytes(b"".join(lines[: closing[0] + 1]))
    write_json(folder / "report.json", {**read_json(folder / "report.json"), "n": closing[0]})
    with pytest.raises(DataError, match="some batches are missing"):
        read_run(folder)
    (folder / "results.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=f"the report is about {closing[0]} images, results.jsonl has 40"):
        read_run(folder)


def test_folders_that_are_no_finished_runs(runs, tmp_path):
    with pytest.raises(ConfigError, match="no run.json"):
        read_run(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(runs["a"], broken)
    (broken / "report.json").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        read_run(broken)
    shutil.copy(runs["a"] / "report.json", broken)
    text = (broken / "results.jsonl").read_text()
    (broken / "results.jsonl").write_text("".join(text.splitlines(keepends=True)[2:]))
    with pytest.raises(DataError, match="40 images, results.jsonl has 38"):
        read_run(broken)
    (broken / "results.jsonl").write_text(text[:100])
    with pytest.raises(DataError, match="damaged"):
        read_run(broken)
    content = read_json(runs["a"] / "run.json")
    content["identity"]["schema"] = 1
    del content["digest"]  # which came later
    shutil.copy(runs["a"] / "results.jsonl", broken)
    write_json(broken / "run.json", content)
    with pytest.raises(ConfigError, match="schema 1"):
        read_run(broken)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("model", lambda shown: "other"),
        ("dataset", lambda shown: "other"),
        ("seed", lambda shown: shown + 1),
        ("clean", lambda shown: shown | {"accuracy": 0.125}),
        ("robust", lambda shown: shown | {"ci95": [0.0, 1.0]}),
        ("scores", lambda shown: {}),
        ("attacks", lambda shown: shown[:1]),
        ("attacks", lambda shown: [shown[0] | {"survivors": shown[0]["survivors"] + 1}, *shown[1:]]),
    ],
)
def test_a_figure_that_does_not_follow_from_the_results_is_named(runs, tmp_path, key, change):
    folder = tmp_path / "run"
    shutil.copytree(runs["a"], folder)
    report = read_json(folder / "report.json")
    report[key] = change(report[key])
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match=f"damaged, its {key} is not what results.jsonl says"):
        read_run(folder)


@pytest.mark.parametrize("name", ["run.json", "sanity.json", "results.jsonl"])
def test_a_checksum_taken_away_is_damage(runs, tmp_path, name):
    """Without it nobody could tell whether the rest is as it was written."""
    folder = tmp_path / "run"
    shutil.copytree(runs["a"], folder)
    if name == "results.jsonl":
        first, *others = (folder / name).read_bytes().splitlines(keepends=True)
        record, sealed = open_line(first[:-1], "line 1")
        assert sealed
        (folder / name).write_bytes(json.dumps(record).encode() + b"\n" + b"".join(others))
    else:
        content = read_json(folder / name) if name == "run.json" else {"digest": ""}
        del content["digest"]
        write_json(folder / name, content)
    with pytest.raises(DataError, match="(digest|checksum) is missing"):
        read_run(folder)


def test_command(runs, capsys):
    assert main(["compare", str(runs["a"]), str(runs["b"]), "--draws", "500"]) == 0
    out = capsys.readouterr().out
    assert "40 images in common" in out and "after apgd-dlr" in out and "note: eps differs" in out
    assert main(["compare", str(runs["a"]), str(runs["b"]), "--draws", "500", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"]["robust"]["exact"] in (True, False)
    assert main(["compare", str(runs["a"]), str(runs["c"])]) == 2
    assert "--common" in capsys.readouterr().err
