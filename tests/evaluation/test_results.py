"""results.jsonl at its limits: the longest line, what was cut short, which lines to delete."""

import pytest
import torch

from rdc.data import Dataset
from rdc.defences import as_defence
from rdc.errors import DataError
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.evaluation import results as results_module
from rdc.evaluation.comparison import compare_runs, read_run
from rdc.evaluation.records import SettingsRecord
from rdc.evaluation.results import count_images, read_results
from rdc.reports import write_reports
from tests.evaluation_models import CLASSES, NAMES, images

WEIGHT = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))
SETTINGS = EvaluationSettings(model="linear", dataset="blobs", n=5, batch=2, attacks=())


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Three batches of 2, 2 and 1 images: lines 3, 6 and 8 close them."""
    data = Dataset(images(5), torch.zeros(5, dtype=torch.int64), NAMES, "blobs", "test")
    out = tmp_path_factory.mktemp("run") / "run"
    evaluate(lambda x: (x.flatten(1) - 0.5) @ WEIGHT, data, SETTINGS, out, progress=False)
    return (out / "results.jsonl").read_bytes()


def read(path, content):
    path.write_bytes(content)
    return read_results(path, SettingsRecord.from_json(SETTINGS.to_json(), "settings"), sealed=True)


def test_a_file_that_is_whole(content, tmp_path):
    found = read(tmp_path / "results.jsonl", content)
    assert found.order == [0, 1, 2] and found.kept == found.length == len(content)
    assert [len(found.batches[index].images) for index in found.order] == [2, 2, 1]
    assert count_images(tmp_path / "results.jsonl") == 5
    missing = read_results(tmp_path / "no.jsonl", SettingsRecord.from_json(SETTINGS.to_json(), "settings"), True)
    assert (missing.batches, missing.order, missing.kept, missing.length) == ({}, [], 0, 0)


def test_the_longest_line_is_read_and_a_longer_one_is_not(content, tmp_path, monkeypatch):
    longest = max(map(len, content.splitlines()))
    monkeypatch.setattr(results_module, "_LINE_BYTES", longest)  # without what ends it
    assert read(tmp_path / "results.jsonl", content).order == [0, 1, 2]
    monkeypatch.setattr(results_module, "_LINE_BYTES", longest - 1)
    number = next(i for i, line in enumerate(content.splitlines(), 1) if len(line) == longest)
    begin = max(line for line in (1, 4, 7) if line <= number)
    words = rf"line {number} is damaged.*\(it is too long\).*delete everything from line {begin} on"
    with pytest.raises(DataError, match=words):
        read(tmp_path / "results.jsonl", content)


def test_what_was_cut_short_begins_after_the_last_whole_batch(content, tmp_path):
    ends = [len(b"".join(content.splitlines(keepends=True)[:count])) for count in (3, 6)]
    for length in (ends[1] + 1, ends[1] + 40, len(content) - 1):
        found = read(tmp_path / "results.jsonl", content[:length])
        assert found.order == [0, 1] and found.kept == ends[1] and found.length == length


@pytest.mark.parametrize(("damaged", "lines"), [(1, "1 to 3"), (3, "1 to 3"), (5, "4 to 6"), (6, "4 to 6")])
def test_a_damaged_line_names_the_lines_of_its_batch(content, tmp_path, damaged, lines):
    parts = content.splitlines(keepends=True)
    parts[damaged - 1] = parts[damaged - 1].replace(b'"crc', b'"xrc')
    with pytest.raises(DataError, match=rf"line {damaged} is damaged.*delete lines {lines}, "):
        read(tmp_path / "results.jsonl", b"".join(parts))


NUMBERS = [0, 1, 4, 2, 9]  # of images that are a part of a data set, in an order of the caller's


def part_of_a_data_set():
    return Dataset(images(5), torch.zeros(5, dtype=torch.int64), NAMES, "blobs", "test", indices=torch.tensor(NUMBERS))


def evaluated(out, data, **changes):
    settings = EvaluationSettings(model="linear", dataset="blobs", n=5, batch=2, attacks=(), **changes)
    return evaluate(lambda x: (x.flatten(1) - 0.5) @ WEIGHT, data, settings, out, progress=False)


def test_images_have_the_numbers_of_their_data_set(tmp_path):
    """The 512 images that ship are a selection, too: they are numbers 0 to 387, 389, ... of the test set."""
    for _ in range(2):  # the second is answered from the folder
        found = evaluated(tmp_path / "run", part_of_a_data_set())
        assert [record.image for record in found.records] == NUMBERS
    write_reports(found, as_defence(lambda x: (x.flatten(1) - 0.5) @ WEIGHT, part_of_a_data_set().pixels()))
    run = read_run(tmp_path / "run")
    assert compare_runs(run, run)["n"] == 5


def test_a_run_that_was_stopped_goes_on_with_them(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        settings = EvaluationSettings(model="linear", dataset="blobs", n=5, batch=2, attacks=())
        evaluate(
            lambda x: (x.flatten(1) - 0.5) @ WEIGHT,
            part_of_a_data_set(),
            settings,
            tmp_path / "run",
            progress=False,
            on_batch=stop,
        )
    assert [record.image for record in evaluated(tmp_path / "run", part_of_a_data_set()).records] == NUMBERS


@pytest.mark.parametrize(
    ("swapped", "message"),
    [((0, 1), "image 1 is where image 0 belongs"), ((0, 3), "image 4 is where image 0 belongs")],
)
def test_images_that_changed_places_are_found(tmp_path, swapped, message):
    evaluated(tmp_path / "run", part_of_a_data_set())
    file = tmp_path / "run" / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    first, second = swapped
    lines[first], lines[second] = lines[second], lines[first]
    file.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=message):
        evaluated(tmp_path / "run", part_of_a_data_set())


@pytest.mark.parametrize("place", [1, 4])
def test_an_image_is_there_once(content, tmp_path, place):
    """In its batch, and in the file; whoever reads without the data set knows no more."""
    lines = content.splitlines(keepends=True)
    lines[place] = lines[0]
    with pytest.raises(DataError, match="image 0 is there twice"):
        read(tmp_path / "results.jsonl", b"".join(lines))
