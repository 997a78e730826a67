"""The newcomer's log: the page has the commands that were given, and the figures that were kept."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.studies.newcomer import ANSWERS, CLASSES, COMMANDS, SIDE, draw_pictures, judged
from rdc.statistics.proportions import wilson_interval

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/tutorials/train_on_your_own_pictures.md"
KEPT = json.loads((ROOT / "benchmarks/results/newcomer.json").read_text())


def test_the_page_has_the_commands():
    page = re.sub(r" *\\\n *", " ", PAGE.read_text(encoding="utf-8"))
    assert all(f"    {command}\n" in page for command in COMMANDS)
    assert [entry["command"] for entry in KEPT["commands"]] == list(COMMANDS)
    assert not any(entry["status"] for entry in KEPT["commands"])


@pytest.mark.parametrize("entry", KEPT["commands"], ids=lambda entry: " ".join(entry["command"].split()[:2]))
def test_the_page_has_the_times(entry):
    words = entry["command"].split()
    name = " ".join(words[: 3 if words[1] == "data" else 2])
    row = f"| `{name}` | {entry['processor_seconds']} | {entry['seconds']} |"
    assert row in PAGE.read_text(encoding="utf-8")


def test_the_page_has_the_accuracy():
    found = KEPT["predicted"]
    low, high = wilson_interval(found["right"], found["pictures"])
    share = found["right"] / found["pictures"]
    text = f"{found['right']} of {found['pictures']} right: {100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    assert text in PAGE.read_text(encoding="utf-8") and found["ci95"] == [low, high]


def test_pictures_of_every_class(tmp_path):
    """The same every time, of their size, and different from each other."""
    for name in ("a", "b"):
        draw_pictures(tmp_path / name, train=3, test=2)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").glob("*/*/*.png"))
    assert len(files) == 5 * len(CLASSES)
    arrays = [[np.asarray(Image.open(tmp_path / name / file)) for file in files] for name in ("a", "b")]
    assert all(np.array_equal(*pair) for pair in zip(*arrays, strict=True)) and arrays[0][0].shape == (SIDE, SIDE, 3)
    assert len({array.tobytes() for array in arrays[0]}) == len(files)


def test_answers_are_counted(tmp_path):
    rows = [
        {"file": "test/disc/0.png", "class": "disc"},
        {"file": "test/star/0.png", "class": "disc"},
        {"file": "x", "error": "y"},
    ]
    (tmp_path / ANSWERS).write_text("\n".join(json.dumps(row) for row in rows))
    found = judged(tmp_path)
    assert (found["right"], found["pictures"]) == (1, 3)
