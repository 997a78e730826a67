"""results.jsonl at its limits: the longest line, what was cut short, which lines to delete."""

import pytest
import torch

from rdc.data import Dataset
from rdc.errors import DataError
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.evaluation import results as results_module
from rdc.evaluation.records import SettingsRecord
from rdc.evaluation.results import count_images, read_results
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
