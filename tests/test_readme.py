"""The README's commands: the first ten run as they stand, and every command of every page is one that rdc understands."""

import importlib
import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdc.cli import COMMANDS, _parser, main
from rdc.data import Dataset, load_dataset
from rdc.data.npz import save_npz

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FIRST = 10
MYNET = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
"""
_TRAIN = "--data DATA --images 64 --batch-size 32 --threads 1 --quiet"
#: command -> what is put behind it, so that it takes seconds; the last word on an option counts
SHORT = {
    "info": "",
    "classify": "--threads 1",
    "evaluate": "--n 4 --steps 2 --sanity 0 --attacks apgd-ce --threads 1",
    "compare": "--draws 100",
    "gradients": "--n 2 --draws 2 --samples 1 --ascent-steps 1 --steps 1 --slices 0 --threads 1",
    "export": "",
    "predict": "--threads 1",
    "train": f"{_TRAIN} --network tiny-28",
    "distill": _TRAIN,
}


def commands(page):
    """The words of every command in the indented blocks and fences of a page, continued lines joined, comments left out."""
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
    lines = re.findall(r"^(?: {4,}|\$ )?(rdc [a-z].*)$", text, re.MULTILINE)
    return [_words(line) for line in lines if line.split()[1] in COMMANDS]


def _words(line):
    """Of the first command of a line, without what belongs to the shell: variables, pipes, what follows."""
    shell = shlex.shlex(line, posix=True, punctuation_chars=True)
    shell.whitespace_split = True
    words = itertools.takewhile(lambda word: not set(word) <= set(";|&<>()"), shell)
    return [word for word in words if word not in ("...", "…") and not word.startswith("$")][1:]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder of a newcomer: a picture, a network, and images in place of 60,000."""
    sample = load_dataset("fashion-mnist-sample")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        part = Dataset(sample.images[:64], sample.labels[:64], sample.class_names, "few", split)
        save_npz(part, tmp_path / "data" / f"{split}.npz")
    Image.fromarray(np.asarray(sample.images[0, 0])).save(tmp_path / "picture.png")
    (tmp_path / "mynet.py").write_text(MYNET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_first_ten_commands_of_the_readme_run(place, capsys):
    pytest.importorskip("onnx")
    listed = commands(ROOT / "README.md")[:FIRST]
    assert len(listed) == FIRST
    for words in listed:
        more = [word.replace("DATA", str(place / "data")) for word in SHORT[words[0]].split()]
        status = main([*words, *more])
        printed = capsys.readouterr()
        assert status == 0, (words, printed.err)
        assert "Traceback" not in printed.err and printed.out or words[0] in ("train", "distill")
    for made in (
        "out/run/report.html",
        "out/mine/report.html",
        "rdc.onnx",
        "runs/teacher/model.json",
        "runs/student/loss.png",
    ):
        assert (place / made).is_file(), made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_is_understood(page):
    """Its options exist and have values that can be read; whether the files that it names are there is not asked."""
    for words in commands(page):
        parser, _ = _parser(words[0], importlib.import_module(f"rdc.cli.{words[0]}"))
        try:
            _, unknown = parser.parse_known_args(words)
        except SystemExit:
            pytest.fail(f"{page.name}: rdc {' '.join(words)}")
        assert not unknown, f"{page.name}: rdc {' '.join(words)}: {unknown}"
