"""Run folders of evaluations and gradients: damage of every kind, older folders, locks, left-overs, answers that mean nothing."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rdc.data import Dataset
from rdc.errors import ConfigError, DataError, InputError, RdcError
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.evaluation.class_names import names_of_classes, names_that_differ
from rdc.evaluation.comparison import read_run
from rdc.gradient_analysis import GradientSettings, NamedModel, compare_models
from rdc.reports import write_reports
from rdc.reports.markdown import markdown_row
from rdc.storage.json_files import write_json
from tests.evaluation.test_evaluation import Stub, counting, labelled_by_linear, linear
from tests.evaluation_models import CLASSES, NAMES, gaussian_classifier, images, labelled_by

OPTIONS = {
    "model": "gauss",
    "dataset": "blobs",
    "n": 12,
    "batch": 4,
    "eps": "4/255",
    "steps": 2,
    "sanity": 2,
    "attacks": ("apgd-ce",),
}


@pytest.fixture(scope="module")
def classifier():
    return gaussian_classifier()


@pytest.fixture(scope="module")
def dataset(classifier):
    return labelled_by(classifier, 12, 2)


def run(classifier, dataset, out, **changes):
    return evaluate(classifier, dataset, EvaluationSettings(**{**OPTIONS, **changes}), out, progress=False)


def finished(classifier, dataset, out, **changes):
    evaluation = run(classifier, dataset, out, **changes)
    return evaluation, write_reports(evaluation, classifier)


def one_line_error(error) -> bool:
    return "\n" not in error.value.args[0] and len(error.value.args[0]) < 2500


# --- damage -----------------------------------------------------------------------------------------------------------
def test_swapped_batches_are_computed_again(classifier, dataset, tmp_path, monkeypatch):
    whole = run(classifier, dataset, tmp_path / "run")
    first, last = (tmp_path / "run" / "batches" / name for name in ("00000.npz", "00002.npz"))
    contents = first.read_bytes(), last.read_bytes()
    first.write_bytes(contents[1])
    last.write_bytes(contents[0])
    seen = counting(monkeypatch)
    again = run(classifier, dataset, tmp_path / "run")
    assert seen == [0, 2] and again.images == whole.images and np.array_equal(again.x_adv, whole.x_adv)
    assert (first.read_bytes(), last.read_bytes()) == contents
    seen.clear()
    assert run(classifier, dataset, tmp_path / "run").images == whole.images and not seen


@pytest.mark.parametrize("damage", ["missing", "empty", "other shape", "text", "folder"])
def test_one_damaged_batch_is_computed_again_and_no_other(classifier, dataset, tmp_path, monkeypatch, damage):
    whole = run(classifier, dataset, tmp_path / "run")
    path = tmp_path / "run" / "batches" / "00001.npz"
    path.unlink()
    if damage == "other shape":
        np.savez_compressed(path, x_adv=np.zeros((3, 1, 2, 2), np.float32))
    elif damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_text({"empty": "", "text": "hello"}[damage])
    seen = counting(monkeypatch)
    if damage == "folder":
        with pytest.raises(OSError):
            run(classifier, dataset, tmp_path / "run")
        path.rmdir()
        seen.clear()
    again = run(classifier, dataset, tmp_path / "run")
    assert seen == [1] and again.images == whole.images and np.array_equal(again.x_adv, whole.x_adv)


@pytest.mark.parametrize("line", [0, 2, 4, 7, 9])
def test_what_a_damaged_line_asks_for_works(classifier, dataset, tmp_path, monkeypatch, line):
    """Delete the lines that the message names: these images are computed again, and no others."""
    whole = run(classifier, dataset, tmp_path / "run")
    path = tmp_path / "run" / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)  # 3 x (4 images + 1)
    path.write_bytes(b"".join([*lines[:line], lines[line].replace(b"right", b"wrong", 1), *lines[line + 1 :]]))
    with pytest.raises(DataError, match=rf"line {line + 1} is damaged.*checksum") as error:
        run(classifier, dataset, tmp_path / "run")
    assert one_line_error(error) and str(path) in str(error.value)
    begin, end = map(int, re.search(r"delete lines (\d+) to (\d+)", str(error.value)).groups())
    assert (begin, end) == (5 * (line // 5) + 1, 5 * (line // 5) + 5)
    path.write_bytes(b"".join([*lines[: begin - 1], *lines[end:]]))
    seen = counting(monkeypatch)
    again = run(classifier, dataset, tmp_path / "run")
    assert seen == [line // 5] and again.images == whole.images
    records = [json.loads(found) for found in path.read_text().splitlines()]
    assert [record["image"] for record in records if "image" in record] == list(range(12))


def test_damage_after_the_last_whole_batch_is_computed_again(classifier, dataset, tmp_path, monkeypatch):
    whole = run(classifier, dataset, tmp_path / "run")
    path = tmp_path / "run" / "results.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-30] + b"?" + content[-29:])  # in the last closing line
    seen = counting(monkeypatch)
    assert run(classifier, dataset, tmp_path / "run").images == whole.images and seen == [2]


# --- folders of the version before ----------------------------------------------------------------------------------------
def aged(folder: Path) -> Path:
    """As the version before checksums left it."""
    for name in ("run.json", "sanity.json"):
        if (folder / name).exists():
            content = json.loads((folder / name).read_text())
            del content["digest"]
            if name == "run.json":
                content["identity"]["schema"] = 2
            write_json(folder / name, content)
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    plain = [{key: value for key, value in record.items() if key not in ("crc", "arrays")} for record in records]
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in plain))
    return folder


def test_an_older_folder_is_read_and_continued(classifier, dataset, tmp_path, monkeypatch):
    whole, _ = finished(classifier, dataset, tmp_path / "run")
    expected = read_run(tmp_path / "run")
    new = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    before = (aged(tmp_path / "run") / "results.jsonl").read_bytes()
    found = read_run(tmp_path / "run")
    assert found["report"] == expected["report"] and found["images"] == expected["images"]
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before  # reading changes nothing
    lines = before.splitlines(keepends=True)
    (tmp_path / "run" / "results.jsonl").write_bytes(b"".join(lines[:10]))  # as if two batches were finished
    seen = counting(monkeypatch)
    again = run(classifier, dataset, tmp_path / "run")
    assert seen == [2] and again.images == whole.images and again.run["identity"]["schema"] == 3
    for name in ("run.json", "sanity.json"):
        assert (tmp_path / "run" / name).read_bytes() == new[name]  # the checksums were added
    now = (tmp_path / "run" / "results.jsonl").read_bytes().splitlines()
    assert [line for line in now if b'"image"' in line] == [
        line for line in new["results.jsonl"].splitlines() if b'"image"' in line
    ]


def edited(path: Path, line: int | None, keys: tuple, value) -> None:
    """Put a value into a JSON file, or into a line of one."""
    texts = path.read_text().splitlines() if line is not None else [path.read_text()]
    content = json.loads(texts[line or 0])
    part = content
    for key in keys[:-1]:
        part = part[key]
    if value is KeyError:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    texts[line or 0] = json.dumps(content)
    path.write_text("\n".join(texts) + "\n")


ODD = [
    ("results.jsonl", 0, ("image",), "zero"),
    ("results.jsonl", 0, ("image",), 3),
    ("results.jsonl", 0, ("label",), KeyError),
    ("results.jsonl", 0, ("clean",), None),
    ("results.jsonl", 0, ("clean", "right"), 17.0),
    ("results.jsonl", 0, ("attacks", 0, "step"), None),
    ("results.jsonl", 0, ("attacks", 0, "name"), "apgd-dlr"),
    ("results.jsonl", 0, ("robust",), None),
    ("results.jsonl", 0, ("scores",), KeyError),
    ("results.jsonl", 4, ("end_of_batch",), 99),
    ("results.jsonl", 4, ("attacks",), {}),
    ("results.jsonl", 4, ("attacks",), []),
    ("results.jsonl", 4, ("checks",), KeyError),
    ("results.jsonl", 4, ("checks", "repeat_difference"), KeyError),
    ("results.jsonl", 4, ("seconds",), -1),
    ("results.jsonl", 4, ("network_evaluations",), True),
    ("run.json", None, ("identity",), None),
    ("run.json", None, ("identity", "settings"), []),
    ("run.json", None, ("identity", "settings", "n"), "12"),
    ("run.json", None, ("identity", "settings", "attacks"), KeyError),
    ("run.json", None, ("commits",), "x"),
    ("run.json", None, ("versions",), None),
    ("sanity.json", None, ("budgets",), 3),
    ("sanity.json", None, ("path",), KeyError),
    ("sanity.json", None, ("gradient", "constant"), "high"),
    ("report.json", None, ("n",), 11),
    ("report.json", None, ("clean", "accuracy"), 0.99),
    ("report.json", None, ("attacks", 0), None),
    ("report.json", None, ("scores",), KeyError),
]


@pytest.fixture(scope="module")
def old(classifier, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "run"
    finished(classifier, dataset, folder)
    return {path.relative_to(folder): path.read_bytes() for path in aged(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "line", "keys", "value"), ODD)
def test_odd_content_without_checksums_is_one_line(classifier, dataset, old, tmp_path, name, line, keys, value):
    folder = tmp_path / "run"
    for path, content in old.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    read_run(folder)
    edited(folder / name, line, keys, value)
    with pytest.raises(RdcError) as error:
        read_run(folder)
    assert one_line_error(error) and str(folder) in str(error.value)
    if name != "report.json":
        with pytest.raises(RdcError) as error:
            run(classifier, dataset, folder)
        assert one_line_error(error) and str(folder) in str(error.value)


# --- folders ------------------------------------------------------------------------------------------------------------
def test_locks_and_results_behind_symbolic_links_are_left_alone(classifier, dataset, tmp_path):
    precious, out = tmp_path / "precious", tmp_path / "run"
    precious.write_text("precious")
    out.mkdir()
    (out / "run.lock").symlink_to(precious)
    with pytest.raises(ConfigError, match="run.lock.*symbolic link"):
        run(classifier, dataset, out)
    (out / "run.lock").unlink()
    run(classifier, dataset, out)
    (out / "results.jsonl").unlink()
    (out / "results.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(OSError, match="symbolic link"):
        run(classifier, dataset, out)
    assert precious.read_text() == "precious" and not (tmp_path / "nothing").exists()


def test_left_overs_of_a_killed_process_go_and_others_stay(classifier, dataset, tmp_path):
    out = tmp_path / "run"
    run(classifier, dataset, out)
    ours = [".report.html.abcdefgh.tmp", ".results.jsonl.abc_efgh.tmp", "batches/.00002.npz.12345678.tmp"]
    theirs = [".thesis.tex.abcdefgh.tmp", ".report.html.notes.tmp", "results-backup.jsonl"]
    for name in (*ours, *theirs):
        (out / name).write_text("half")
    run(classifier, dataset, out)
    assert not [name for name in ours if (out / name).exists()] and all((out / name).exists() for name in theirs)


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini"])
def test_what_file_managers_leave_is_no_reason_to_refuse(classifier, dataset, tmp_path, name):
    for out in (tmp_path / "evaluation", tmp_path / "gradients"):
        out.mkdir()
        (out / name).write_text("")
    run(classifier, dataset, tmp_path / "evaluation", attacks=(), n=2)
    gradients(classifier, dataset, tmp_path / "gradients")
    assert (tmp_path / "gradients" / name).exists()


SMALL = GradientSettings("blobs", n=2, draws=0, samples=0, ascent_steps=0, steps=1, slices=1, grid=3)


def gradients(model, dataset, out, **options):
    return compare_models([NamedModel("a", "a", model)], dataset, SMALL, out, progress=False, **options)


def test_two_comparisons_at_once_are_refused(classifier, dataset, tmp_path):
    pytest.importorskip("fcntl")
    refused = []

    def second(number, total):
        with pytest.raises(ConfigError, match="another rdc gradients is writing to this folder") as error:
            gradients(classifier, dataset, tmp_path)
        refused.append(one_line_error(error))

    gradients(classifier, dataset, tmp_path, on_model=second)
    assert refused == [True]
    gradients(classifier, dataset, tmp_path)


def test_left_overs_and_older_folders_of_gradients(classifier, dataset, tmp_path, monkeypatch):
    out = tmp_path / "run"
    first = gradients(classifier, dataset, out)
    for name in (".gradients.json.abcdefgh.tmp", "models/.a-1.json.abcdefgh.tmp"):
        (out / name).write_text("half")
    part = next(path for path in (out / "models").glob("*.json") if not path.name.startswith("."))
    monkeypatch.setattr("rdc.gradient_analysis.comparison.analyze_model", lambda *arguments: 1 / 0)
    for path in (part, out / "run.json"):  # first the part alone: in a folder with digests it must have one
        content = json.loads(path.read_text())
        assert content.pop("digest")
        write_json(path, content)
        if path is part:
            with pytest.raises(DataError, match="digest is missing.*Delete it") as error:
                gradients(classifier, dataset, out)
            assert one_line_error(error)
    again = gradients(classifier, dataset, out)
    assert [model["summary"] for model in again["models"]] == [model["summary"] for model in first["models"]]
    assert not list(out.rglob(".*.tmp"))
    edited(part, None, ("summary", "gradient.norm_l2", "median"), "large")
    with pytest.raises(DataError, match=r"summary.gradient.norm_l2.median: expected a number") as error:
        gradients(classifier, dataset, out)
    assert one_line_error(error)


# --- classes ------------------------------------------------------------------------------------------------------------
def few(names: tuple[str, ...], labels: int = 2) -> Dataset:
    return Dataset(images(12), torch.arange(12) % labels, names, "few", "test")


class Nameless(Stub):
    def __init__(self):
        super().__init__(linear)
        self.class_names = ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("names", "expected", "note"),
    [
        (("bag", "coat"), NAMES, False),  # fewer classes than the model: its names serve
        (("Bag ", "COAT"), NAMES, False),
        (("0", "1"), NAMES, False),
        (("cat", "dog"), NAMES, True),  # and what they are called there is said
        (("cat", "dog", "elk", "fox"), ("cat", "dog", "elk", "fox"), True),
        (
            tuple(f"class {k}" for k in range(1000)),
            ("class 0", "class 1"),
            True,
        ),  # more than images, and than the model knows
    ],
)
def test_classes_of_data_set_and_model(classifier, names, expected, note):
    data = few(names)
    assert names_of_classes(classifier, data)[: len(expected)] == tuple(expected)
    assert bool(names_that_differ(classifier, data)) is note


def test_a_data_set_with_fewer_classes_than_the_model(classifier, tmp_path):
    """Labels 0 and 1 alone, called otherwise; with attacks, pages and all, and on every resume."""
    known = labelled_by(classifier, 40, 0)
    pixels = known.images[
        known.labels.argsort(descending=True)[:12]
    ]  # taken for classes that the data set does not have
    data = Dataset(pixels, torch.arange(12) % 2, ("cat", "dog"), "few", "test")
    for _ in range(2):
        evaluation, files = finished(classifier, data, tmp_path / "run", n=12)
        page = files["report.html"].read_text()
        assert all(f">{name}<" in page for name in NAMES[:2]) and "the model has others: cat is bag there" in page
    assert {record["label"] for record in evaluation.images} == {0, 1}
    assert max(record["clean"]["predicted"] for record in evaluation.images) > 1


def test_a_model_without_names(tmp_path):
    evaluation, files = finished(Nameless(), few(("cat", "dog")), tmp_path / "run", n=12)
    assert evaluation.class_names == ("cat", "dog", "2", "3") and ">cat<" in files["report.html"].read_text()


# --- answers that mean nothing ------------------------------------------------------------------------------------------
MEANINGLESS = {
    "hold NaN": lambda x: linear(x) * math.nan,
    "hold infinity": lambda x: linear(x) + math.inf,
    "same value": lambda x: 0 * linear(x),
}


@pytest.mark.parametrize("words", list(MEANINGLESS))
def test_a_model_that_decides_nothing_is_an_error(tmp_path, words):
    data, out = labelled_by_linear(12), tmp_path / "run"
    with pytest.raises(InputError, match=f"model gauss: .*{words}.*--levels") as error:
        run(Stub(MEANINGLESS[words]), data, out)
    assert one_line_error(error) and not (out / "results.jsonl").exists() and not (out / "batches").exists()
    with pytest.raises(InputError, match=f"model a: .*{words}") as error:
        gradients(Stub(MEANINGLESS[words]), data, tmp_path / "gradients")
    assert one_line_error(error) and not (tmp_path / "gradients" / "gradients.json").exists()
    with pytest.raises(InputError, match=words):  # one image a batch: seen at the end at the latest
        run(Stub(MEANINGLESS[words]), data, tmp_path / "single", n=3, batch=1, sanity=0)


def test_a_report_with_some_answers_that_are_not_finite(tmp_path):
    def sometimes(x):
        return torch.where(x.flatten(1)[:, 27:28] > 0.5, math.nan, linear(x))

    data = labelled_by_linear(12)
    bad = data.pixels().flatten(1)[:, 27] > 0.5
    assert 0 < bad.sum() < 12
    evaluation, files = finished(Stub(sometimes), data, tmp_path / "run", sanity=12)
    page = files["report.html"].read_text()
    assert "no decision" in page and not re.search(r"\bnan\b", re.sub(r'src="[^"]*"', "", page), re.IGNORECASE)
    for path in (*(tmp_path / "run").glob("*.json"), tmp_path / "run" / "results.jsonl"):
        assert not re.search(r"\b(NaN|Infinity)\b", path.read_text().replace("NaN or infinity", ""))
    assert read_run(tmp_path / "run")["report"] == evaluation.report
    assert "non-finite-logits" in {flag["name"] for flag in evaluation.report["flags"]}


# --- sizes --------------------------------------------------------------------------------------------------------------
def test_sizes_are_checked_before_memory_is_taken(classifier, dataset, tmp_path):
    with pytest.raises(ConfigError, match="resubmissions: "):
        run(classifier, dataset, tmp_path / "run", noise="fresh", eot=1, resubmissions=10**9)
    with pytest.raises(ConfigError, match="has 12 images"):
        run(classifier, dataset, tmp_path / "other", n=10**6, batch=10**6)


@pytest.mark.parametrize(
    "changes", [{"grid": 10**9 + 1}, {"draws": 10**9}, {"steps": 10**12}, {"n": 10**15}, {"grid": 2001, "slices": 16}]
)  # fmt: skip
def test_sizes_of_gradients(changes):
    with pytest.raises(ConfigError, match=f"{next(iter(changes))}: .*at most"):
        GradientSettings("x", **changes)


def test_redraws_that_do_not_fit(dataset, tmp_path):
    noisy = gaussian_classifier()
    settings = GradientSettings("blobs", n=12, draws=10**5, samples=0, ascent_steps=0, steps=0, slices=0, batch=10**6)
    wide = Dataset(dataset.images.repeat(20, 1, 1, 1), dataset.labels.repeat(20), NAMES, "blobs", "test")
    settings = GradientSettings("blobs", n=240, draws=10**5, samples=0, ascent_steps=0, steps=0, slices=0, batch=10**6)
    with pytest.raises(ConfigError, match="draws: .*GiB"):
        compare_models([NamedModel("a", "a", noisy)], wide, settings, tmp_path, progress=False)


# --- texts --------------------------------------------------------------------------------------------------------------
def test_pages_show_what_users_name_letter_by_letter(tmp_path):
    evil = "<script>x</script>|`[a](b)\n\x1b[31m\ud800\u202e$\\frac$"
    names = (evil, *(f"{evil}{k}" for k in range(1, CLASSES)))
    stub = Stub(linear)
    data = labelled_by_linear(12)
    data = Dataset(data.images, data.labels, names, evil, "test")
    evaluation = evaluate(
        stub, data, EvaluationSettings(**{**OPTIONS, "model": evil, "dataset": evil}), tmp_path / "run",
        command=f"rdc evaluate --model '{evil}'", progress=False,
    )  # fmt: skip
    files = write_reports(evaluation, stub)
    page, table = (files[name].read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for text in (page, table):
        assert not set("\x1b\ud800\u202e") & set(text) and "<script" not in re.sub(r"`+[^\n]*`+", "", text)
    assert "<script" not in page and "&lt;script&gt;" in page
    row = markdown_row(evaluation)
    assert row.count("\n") == 0 and len(re.findall(r"(?<!\\)\|", row)) == 12
    assert row.split("|")[1].lstrip().startswith("&lt;script&gt;") and "\\[a\\](b)" in row


def test_file_names_that_are_no_text(classifier, dataset, tmp_path):
    out = tmp_path / os.fsdecode(b"run-\xff\xfe")
    try:
        out.mkdir()
    except OSError:
        pytest.skip("this file system takes text only")
    _, files = finished(classifier, dataset, out, model=os.fsdecode(b"m\xff"), n=4)
    assert "m\\udcff" in files["report.html"].read_text(encoding="utf-8")
    assert read_run(out)["report"]["model"] == os.fsdecode(b"m\xff")
    (out / "results.jsonl").write_text("x\n" + (out / "results.jsonl").read_text())
    with pytest.raises(DataError) as error:
        run(classifier, dataset, out, model=os.fsdecode(b"m\xff"), n=4)
    str(error.value).encode()
