"""The tables of docs/other_data.md are those of the kept file; corruptions are what they are called; the synsets fit their positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import other_data
from rdc.data import load_dataset
from rdc.data.cifar10 import CLASS_NAMES
from rdc.data.corruptions import KINDS, SEVERITIES, corrupted
from rdc.storage.json_files import read_json
from tests.tolerances import EIGHT_BITS, HUNDREDS_SPREAD, THOUSANDS

ROOT = Path(__file__).resolve().parents[2]
IDS = np.arange(8)


def test_document_has_the_kept_figures():
    _, _, rest = (ROOT / "docs/other_data.md").read_text().partition(other_data.BEGIN)
    assert rest.partition(other_data.END)[0].strip() == other_data.tables().strip()


def test_what_the_text_says_is_in_the_kept_figures():
    text = " ".join((ROOT / "docs/other_data.md").read_text().partition(other_data.BEGIN)[0].split())
    table = other_data.tables().split("\n\n")[0].splitlines()[2:]
    told = [float(cells[7]) for line in table if (cells := line.split("|"))[7].strip() != "-"]
    assert f"(AUROC softmax at most {max(told):.2f})" in text

    rows = read_json(other_data.RESULTS)

    def right(model, kind):
        return np.array([int(one) for one in rows[model]["cells"][f"{kind}:5"]["right"].split()][:32])

    for kind, words in (
        (
            "impulse_noise",
            "impulse noise leaves {} of 32 images right (its student with margins {} of the same 32, *standard* {})",
        ),
        ("gaussian_noise", "gaussian noise {} ({}, {})"),
        ("gaussian_blur", "blur {} ({}, {})"),
    ):
        assert words.format(*(right(model, kind).sum() for model in ("teacher", "DC", "standard"))) in text
    teacher, student = right("teacher", "impulse_noise"), right("DC", "impulse_noise")
    differ, better = (teacher != student).sum(), (student > teacher).sum()
    assert f"student and teacher differ in {differ} images, {better} of them the student's" in text


def test_cells_are_whole():
    for name, row in read_json(other_data.RESULTS).items():
        assert row["model"] == (other_data.FASHION | other_data.CIFAR)[name]
        assert set(row["cells"]) <= set(other_data.cells(name))
        for cell in row["cells"].values():
            assert all(len(cell[key].split()) == cell["n"] for key in ("right", "confidence", "own") if key in cell)


def test_figures_of_cells_that_are_known():
    """Four images, two kinds: right 7 of 8; sure and right but once."""
    cells = {
        "clean": {"right": "1 1 1 1", "confidence": "0.9 0.9 0.9 0.9", "n": 4},
        "a:1": {"right": "1 1 1 0", "confidence": "0.9 0.9 0.9 0.9", "n": 4},
        "b:1": {"right": "1 1 1 1", "confidence": "0.6 0.6 0.6 0.6", "n": 4},
    }
    found = other_data.summary({"cells": cells, "threshold": 0.8}, ["a:1", "b:1"])
    assert (found["n"], found["accuracy"], found["coverage"], found["wrong"]) == (4, 7 / 8, 1 / 2, 1 / 4)
    assert found["ece"] == pytest.approx((4 * (0.9 - 0.75) + 4 * (1 - 0.6)) / 8)
    assert found["softmax"] == 0.75  # half of the pairs differ, half are ties
    low, high = found["ci95"]
    assert 0.5 <= low < 7 / 8 < high == 1  # by images: one of four is right in one of two kinds
    assert other_data.summary({"cells": cells, "threshold": None}, ["a:1"])["wrong"] is None


def test_synsets_have_positions_and_classes():
    synsets = [wnid for names in other_data.SYNSETS.values() for wnid in names]
    assert sorted(synsets) == sorted(other_data.POSITIONS) and len(set(synsets)) == len(synsets)
    assert len(set(other_data.POSITIONS.values())) == len(synsets) and set(other_data.SYNSETS) <= set(CLASS_NAMES)


@pytest.fixture(scope="module")
def images():
    return load_dataset("fashion-mnist-sample").images[: len(IDS)].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_grow_and_do_not_depend_on_company(images, kind):
    steps = [np.abs(corrupted(images, kind, s, IDS).astype(float) - images).mean() for s in SEVERITIES]
    assert steps[0] > 0 and steps[-1] > 1.2 * steps[0]
    alone = corrupted(images[5:6], kind, 3, IDS[5:6])
    assert np.array_equal(alone, corrupted(images, kind, 3, IDS)[5:6])
    assert np.array_equal(corrupted(images, kind, 3, IDS), corrupted(images, kind, 3, IDS))
    colour = np.repeat(images, 3, axis=1)
    assert corrupted(colour, kind, 2, IDS).shape == colour.shape


def test_corruptions_are_what_they_are_called():
    flat = np.full((1, 3, 64, 64), 128, np.uint8)
    noise = corrupted(flat, "gaussian_noise", 5, IDS[:1]).astype(float) / 255
    assert noise.std() == pytest.approx(0.1, rel=THOUSANDS) and noise.mean() == pytest.approx(128 / 255, rel=THOUSANDS)
    hit = corrupted(flat, "impulse_noise", 5, IDS[:1])
    assert (hit != 128).mean() == pytest.approx(0.07, rel=HUNDREDS_SPREAD) and set(np.unique(hit)) == {0, 128, 255}
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8), (1, 1, 64, 64)).copy()
    pale = corrupted(ramp, "contrast", 5, IDS[:1]).astype(float)
    assert pale.std() / ramp.std() == pytest.approx(0.15, rel=EIGHT_BITS) and pale.mean() == pytest.approx(
        ramp.mean(), rel=EIGHT_BITS
    )
    point = np.zeros((1, 1, 33, 33), np.uint8)
    point[0, 0, 16, 16] = 255
    blurred = corrupted(point, "gaussian_blur", 5, IDS[:1])[0, 0].astype(float) / 255
    assert blurred[16, 16] == pytest.approx(1 / (2 * np.pi), rel=EIGHT_BITS)
    assert blurred[16, 17] / blurred[16, 16] == pytest.approx(np.exp(-0.5), rel=EIGHT_BITS)
