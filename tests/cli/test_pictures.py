"""Folders, lists and standard input for `rdc predict` and `rdc classify`; pictures that are bad among many; runs that are stopped."""

import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from rdc.cli import main
from rdc.images.files import image_of
from tests.cli.conftest import commands
from tests.evaluation_models import grey

COMMANDS = ("predict", "classify")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder as people have them, in the current folder."""
    for name in ("b.png", "a.JPG", "inside/c.jpeg", "inside/deep/d.png", ".hidden/e.png", "._b.png", "x y\nz.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey((8, 8), seed=len(name))).save(path)
    (tmp_path / "photos/notes.txt").write_text("no picture")
    (tmp_path / "photos/inside/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/inside/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.fixture
def ask(place, capsys, monkeypatch):
    """(command, words, standard input) -> exit status, answers, lines on stderr."""

    def run(command, *words, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main([*commands(place)[command][:3], "--json", *map(str, words)])
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if " on CPU" not in line and "not calibrated" not in line]
        if not out:
            return status, [], lines
        return (
            status,
            json.loads(out) if command == "classify" else [json.loads(row) for row in out.splitlines()],
            lines,
        )

    return run


def files(answers):
    return [os.path.relpath(answer["file"]) for answer in answers]


@pytest.mark.parametrize("command", COMMANDS)
def test_folders(command, ask, photos):
    status, answers, lines = ask(command, "photos")
    assert status == 0 and files(answers) == ["photos/a.JPG", "photos/b.png", "photos/x y\nz.png"]
    assert lines == ["rdc: photos: 3 pictures; left out: 1 other file, 1 folder inside (--recursive)"]
    status, answers, lines = ask(command, "-r", "photos", "photos/b.png")
    assert status == 1 and files(answers) == [
        "photos/a.JPG", "photos/b.png", "photos/x y\nz.png", "photos/inside/broken.png", "photos/inside/c.jpeg", "photos/inside/deep/d.png",
        "photos/b.png",
    ]  # fmt: skip
    assert answers[1] == answers[-1] and all("class" in answer for at, answer in enumerate(answers) if at != 3)
    (said,) = (line for line in lines if "error" in line)
    assert said.startswith("rdc: error: photos/inside/broken.png: not a PNG or JPEG file")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_pictures_is_an_error_of_its_own(command, ask, photos):
    status, answers, lines = ask(command, "empty", "photos/b.png", "absent.png")
    assert status == 1 and ["error" in answer for answer in answers] == [True, False, True]
    assert lines[-2:] == [
        "rdc: error: empty: a folder without PNG or JPEG files; --recursive looks into the folders inside",
        "rdc: error: absent.png: no such file",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_standard_input_is_a_picture(command, ask, photos):
    (_, (by_name,), _), (status, (piped,), _) = (
        ask(command, "photos/b.png"),
        ask(command, "-", stdin=(photos / "b.png").read_bytes()),
    )
    assert status == 0 and piped == {**by_name, "file": "-"}
    assert ask(command, "-", stdin=b"text")[:2] == (
        1,
        [{"file": "-", "error": "not a PNG or JPEG file; convert it first"}],
    )
    assert ask(command, "-")[1] == [{"file": "-", "error": "standard input is empty"}]


@pytest.mark.parametrize("command", COMMANDS)
def test_lists(command, ask, photos):
    (photos.parent / "list").write_bytes(b"photos/b.png\r\n\nphotos/inside\nphotos/a.JPG")
    expected = ["photos/b.png", "photos/inside/broken.png", "photos/inside/c.jpeg", "photos/a.JPG"]
    assert files(ask(command, "--files-from", "list")[1]) == expected
    assert files(ask(command, "photos/a.JPG", "--files-from", "-", stdin=b"photos/b.png\n")[1]) == expected[::-3]
    zero = b"photos/x y\nz.png\0photos/b.png\0"
    status, answers, _ = ask(command, "-0", "--files-from", "-", stdin=zero)
    assert status == 0 and files(answers) == ["photos/x y\nz.png", "photos/b.png"]
    status, answers, lines = ask(command, "--files-from", "-", stdin=b"\n")
    assert (status, answers, lines[0]) == (0, [], "rdc: the list names no pictures")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected pictures: files, folders, - for standard input, or a list of paths by --files-from; got none"),
        (["-", "-"], "-: expected once"),
        (["-", "--files-from", "-"], "-: expected once"),
        (["a.png", "--null"], "--null: expected with --files-from alone"),
        (["--files-from", "absent"], "--files-from absent: No such file"),
        (["--files-from", "photos"], "--files-from photos: Is a directory"),
    ],
)
def test_what_cannot_be_meant(command, ask, photos, words, said):
    status, answers, lines = ask(command, *words)
    assert status == 2 and not answers and lines[0].startswith(f"rdc: error: {said}") and len(lines) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_stopped_keeps_its_answers(command, ask, photos, monkeypatch):
    """Ctrl-C, or an error, while the second batch is read."""
    for stop, status in ((KeyboardInterrupt(), 130), (MemoryError("1 GiB"), 2)):

        def read(content, name, *rest, stop=stop, **settings):
            if str(name).endswith("z.png"):
                raise stop
            return image_of(content, name, *rest, **settings)

        monkeypatch.setattr("rdc.images.files.image_of", read)
        found, answers, _ = ask(command, "--batch", "2", "photos")
        assert found == status and files(answers) == ["photos/a.JPG", "photos/b.png"]


def test_content_and_file_are_one(photos):
    image = image_of((photos / "b.png").read_bytes(), "b", (1, 8, 8))
    assert image.path == "b" and np.array_equal(
        image.pixels, np.asarray(Image.open(photos / "b.png"))[None] / np.float32(255)
    )
