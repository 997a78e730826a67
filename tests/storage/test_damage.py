"""One changed bit anywhere in a run's folder is found, or changes no figure.

Run as a script, this file tries every bit: ``python -m tests.storage.test_damage [every]``.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdc.errors import RdcError
from rdc.evaluation import EvaluationSettings, RunFolder, evaluate, summarize
from rdc.evaluation.comparison import read_run
from rdc.evaluation.records import RunRecord
from rdc.gradient_analysis import GradientSettings, NamedModel, compare_models
from rdc.gradient_analysis.folder import ComparisonFolder
from rdc.gradient_analysis.records import ModelIdentity
from rdc.reports import write_reports
from rdc.storage.json_files import read_json
from rdc.training.state_file import read_state
from tests.evaluation_models import gaussian_classifier, labelled_by
from tests.training.test_trainer import trainer

SETTINGS = EvaluationSettings(
    model="gaussian", dataset="blobs", n=8, eps="4/255", steps=2, batch=4, sanity=2, attacks=("apgd-ce",)
)


def make_evaluation(folder: Path) -> Path:
    classifier = gaussian_classifier()
    evaluation = evaluate(classifier, labelled_by(classifier, 8, 2), SETTINGS, folder, progress=False)
    write_reports(evaluation, classifier)
    return folder


BEGUN: dict[Path, RunRecord] = {}  #: what each folder was begun with


def opened(folder: Path) -> Any:
    """What a run that is continued would keep: run.json, sanity.json and, by number, batches with their arrays."""
    if folder not in BEGUN:
        content = read_json(folder / "run.json")
        BEGUN[folder] = RunRecord.from_json({key: content[key] for key in content if key != "digest"}, "run.json")
    with RunFolder(folder, BEGUN[folder]) as run:
        batches = {index: (batch, run.arrays(index)) for index, batch in run._closed.items()}
        return (
            run.run,
            run.sanity,
            batches,
            summarize(run.run, run.batches, run.sanity) if run.sanity is not None and len(batches) == 2 else None,
        )


def compared(folder: Path) -> Any:
    """What a comparison of two runs takes from one."""
    run = read_run(folder)
    return run["identity"], run["report"], run["images"]


def same(found: Any, expected: Any) -> bool:
    """Equal, or without batches that are to be computed again."""
    run, sanity, batches, report = found
    if (run, sanity) != expected[:2] or (report is not None and report != expected[3]):
        return False
    for index, (batch, arrays) in batches.items():
        whole, others = expected[2][index]
        if batch != whole or any(not np.array_equal(arrays[name], others[name]) for name in others):
            return False
    return True


def flips(path: Path, every: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
    """(bit, the file's content with this bit changed) for every so many bits."""
    content = path.read_bytes()
    for bit in range(first % max(1, 8 * len(content)), 8 * len(content), every):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)


def silent(
    folder: Path, name: str, read: Callable[[Path], Any], equal: Callable[[Any, Any], bool], every: int
) -> tuple[list[int], int]:
    """Bits of a file that change what is read without an error; and how many were tried."""
    path, before = folder / name, {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    expected, bad, count = read(folder), [], 0
    for bit, content in flips(path, every, first=count_of(name)):
        count += 1
        path.write_bytes(content)
        try:
            found = read(folder)
            if not equal(found, expected):
                bad.append(bit)
        except RdcError as error:
            if (
                "\n" in error.args[0]
                or len(error.args[0]) > 2500
                or str(path.name) not in str(error)
                and str(folder) not in str(error)
            ):
                bad.append(bit)
        for file, old in before.items():
            if not file.exists() or file.read_bytes() != old:
                file.write_bytes(old)
    return bad, count


def count_of(name: str) -> int:
    """Another first bit for each file."""
    return sum(name.encode())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_evaluation(tmp_path_factory.mktemp("evaluated") / "run")


CONTINUED = ("run.json", "sanity.json", "results.jsonl", "batches/00000.npz", "batches/00001.npz")
COMPARED = ("run.json", "sanity.json", "results.jsonl", "report.json")


@pytest.mark.parametrize("name", CONTINUED)
def test_a_changed_bit_is_found_when_an_evaluation_goes_on(evaluated: Path, name: str, every: int = 389) -> None:
    bad, count = silent(evaluated, name, opened, same, every)
    assert not bad and count > 10


@pytest.mark.parametrize("name", COMPARED)
def test_a_changed_bit_is_found_when_runs_are_compared(evaluated: Path, name: str, every: int = 211) -> None:
    bad, count = silent(evaluated, name, compared, lambda one, other: one == other, every)
    assert not bad and count > 10


# --- gradients ---------------------------------------------------------------------------------------------------------
SMALL = GradientSettings("blobs", n=2, draws=0, samples=0, ascent_steps=0, steps=1, slices=1, grid=3)


def make_gradients(folder: Path) -> Path:
    classifier = gaussian_classifier()
    compare_models([NamedModel("a", "a", classifier)], labelled_by(classifier, 8, 2), SMALL, folder, progress=False)
    return folder


def opened_gradients(folder: Path) -> Any:
    shared, part = read_json(GRADIENTS["run"]), read_json(GRADIENTS["part"])
    with ComparisonFolder(folder, {key: value for key, value in shared.items() if key != "digest"}, False) as run:
        return run.load("a", "a", ModelIdentity.from_json(part["identity"], "identity"))


GRADIENTS: dict[str, Path] = {}


def keep_gradients(folder: Path, beside: Path) -> str:
    """Remember what identifies the comparison; returns the name of its part."""
    part = next((folder / "models").glob("*.json"))
    GRADIENTS.update(run=Path(shutil.copy(folder / "run.json", beside)), part=Path(shutil.copy(part, beside)))
    return f"models/{part.name}"


def test_a_changed_bit_is_found_in_a_folder_of_gradients(tmp_path: Path, every: int = 401) -> None:
    folder = make_gradients(tmp_path / "run")
    part = keep_gradients(folder, tmp_path)
    for name in ("run.json", part):
        bad, count = silent(folder, name, opened_gradients, lambda one, other: one == other, every)
        assert not bad and count > 5, name


# --- training ----------------------------------------------------------------------------------------------------------
def make_training(folder: Path) -> Path:
    run = trainer(folder)
    run.resume()
    for _ in range(2):
        run.window.append(run.train_step())
        run._log(1.0)
    run.window.append(run.train_step())
    run.save()
    return folder


def opened_training(folder: Path) -> Any:
    state, description = read_state(folder / "state.safetensors")
    trainer_folder = trainer(folder).folder
    trainer_folder.trim_log(state.step)
    return state, description, (folder / "log.jsonl").read_bytes().splitlines()


def same_training(found: Any, expected: Any) -> bool:
    """The same state; the log may lack a row that was damaged, which was said."""
    (state, description, rows), (whole, described, all_rows) = found, expected
    return (
        (state.step, state.seconds, state.window, description) == (whole.step, whole.seconds, whole.window, described)
        and state.tensors.keys() == whole.tensors.keys()
        and all(torch.equal(value, whole.tensors[key]) for key, value in state.tensors.items())
        and set(rows) <= set(all_rows)
    )


def test_a_changed_bit_is_found_in_a_training_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_training(tmp_path / "run")
    size = 8 * (folder / "state.safetensors").stat().st_size
    header = 8 * (8 + int.from_bytes((folder / "state.safetensors").read_bytes()[:8], "little"))
    assert header < size
    bad, count = silent(folder, "state.safetensors", opened_training, same_training, size // 60)
    assert not bad and count >= 60
    assert not capsys.readouterr().err
    bad, count = silent(folder, "log.jsonl", opened_training, same_training, 53)
    assert not bad and count > 10
    assert "damaged and dropped; the training itself is whole" in capsys.readouterr().err


def test_a_changed_bit_in_the_header_of_a_state(tmp_path: Path) -> None:
    """Names, shapes, the description, the digest itself."""
    folder = make_training(tmp_path / "run")
    path = folder / "state.safetensors"
    content = path.read_bytes()
    expected = (*read_state(path), [])
    header = 8 + int.from_bytes(content[:8], "little")
    assert b'"description"' in content[:header]
    for bit in range(0, 8 * header, 8 * header // 150):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = (*read_state(path), [])
        except RdcError:
            continue
        assert same_training(found, expected), bit


def main() -> None:
    """Try every bit, or every so many."""
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with tempfile.TemporaryDirectory() as place:
        evaluated, gradients = make_evaluation(Path(place) / "e"), make_gradients(Path(place) / "g")
        training, part = make_training(Path(place) / "t"), keep_gradients(gradients, Path(place))
        equal = lambda one, other: one == other  # noqa: E731
        rows = [(evaluated, name, opened, same, every) for name in CONTINUED]
        rows += [(evaluated, name, read_run, equal, every) for name in COMPARED]
        rows += [(gradients, name, opened_gradients, equal, every) for name in ("run.json", part)]
        rows += [(training, "log.jsonl", opened_training, same_training, every)]
        rows += [(training, "state.safetensors", opened_training, same_training, 97 * every)]
        for number, row in zip(itertools.count(), rows, strict=False):
            bad, count = silent(*row)
            print(f"{number:2} {row[1]:24} {count:8} bits, {len(bad)} silent {bad[:5]}", flush=True)


if __name__ == "__main__":
    main()
