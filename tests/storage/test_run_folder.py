"""The base of every resumable folder, with a command of three files."""

from __future__ import annotations

import json

import pytest

from rdc.errors import ConfigError
from rdc.storage.run_folder import Difference, ResumableFolder, as_written, differences, differing_leaves


class Notes(ResumableFolder):
    """run.json, notes.txt and parts/*.json."""

    COMMAND = "rdc note"
    WRITTEN = {"": {"run.json", "notes.txt"}.__contains__, "parts": lambda name: name.endswith(".json")}

    def __init__(self, path, identity, overwrite=False, alone=True):
        super().__init__(path)
        self._claim(as_written(identity), overwrite, alone)

    def _read_identity(self, overwrite):
        return None if overwrite else json.loads((self.path / "run.json").read_text())

    def _write_identity(self, identity):
        (self.path / "run.json").write_text(json.dumps(identity))

    def _clear(self):
        for name in ("run.json", "notes.txt"):
            (self.path / name).unlink(missing_ok=True)


WANTED = {"schema": 1, "settings": {"n": 3, "levels": (1, 2)}, "model": {"lm": None}}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_is_begun_and_goes_on(tmp_path):
    with Notes(tmp_path / "new" / "run", WANTED) as folder:
        (folder.path / "notes.txt").write_text("kept")
    with Notes(tmp_path / "new" / "run", WANTED) as folder:
        assert (folder.path / "notes.txt").read_text() == "kept"


def test_another_command_is_refused_and_named_and_nothing_is_changed(tmp_path):
    Notes(tmp_path / "run", WANTED).close()
    before = contents(tmp_path)
    other = {**WANTED, "settings": {"n": 4, "levels": (1, 2)}, "model": {"lm": {"steps": 2}}}
    with pytest.raises(ConfigError) as error:
        Notes(tmp_path / "run", other)
    lines = error.value.args
    assert lines[0] == f"{tmp_path / 'run'} holds results of another command; nothing was changed. These differ:"
    assert lines[1:3] == ("  n: 3 there, 4 now", '  model.lm: null there, {"steps": 2} now')
    assert lines[3] == "Give the same settings to go on, name another --out, or use --overwrite to throw it away"
    assert contents(tmp_path) == before


def test_overwrite_begins_afresh(tmp_path):
    with Notes(tmp_path, WANTED) as folder:
        (folder.path / "notes.txt").write_text("old")
    with Notes(tmp_path, {"schema": 2}, overwrite=True) as folder:
        assert not (folder.path / "notes.txt").exists()
    assert json.loads((tmp_path / "run.json").read_text()) == {"schema": 2}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match=r"not empty, and no results of rdc note \(no run.json\)"):
        Notes(tmp_path, WANTED, overwrite)
    with pytest.raises(ConfigError, match="this is a file"):
        Notes(tmp_path / "thesis.tex", WANTED, overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_process_at_a_time_and_its_helpers(tmp_path):
    pytest.importorskip("fcntl")
    busy = "another rdc note is writing to this folder. Wait for it, or name another --out"
    with Notes(tmp_path, WANTED):
        with pytest.raises(ConfigError, match=busy):
            Notes(tmp_path, WANTED)
        Notes(tmp_path, WANTED, alone=False).close()
    Notes(tmp_path, WANTED).close()


def test_what_fails_leaves_the_folder_free(tmp_path):
    pytest.importorskip("fcntl")

    class Failing(Notes):
        def _write_identity(self, identity):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Failing(tmp_path, WANTED)
    Notes(tmp_path, WANTED).close()


def test_what_a_killed_process_left_is_swept_by_the_process_that_holds_the_folder(tmp_path):
    Notes(tmp_path, WANTED).close()
    (tmp_path / "parts").mkdir()
    ours = [tmp_path / name for name in (".notes.txt.abcdefgh.tmp", "parts/.a.json.abcdefgh.tmp")]
    theirs = [tmp_path / name for name in (".thesis.tex.abcdefgh.tmp", "parts/.a.txt.abcdefgh.tmp")]
    for path in (*ours, *theirs):
        path.write_text("half")
    Notes(tmp_path, WANTED, alone=False).close()
    assert all(path.exists() for path in ours)
    Notes(tmp_path, WANTED).close()
    assert not any(path.exists() for path in ours) and all(path.exists() for path in theirs)


def test_differences_name_what_differs():
    there, now = {"settings": {"a": 1, "same": 2}, "b": {"c": [1]}}, {"settings": {"same": 2}, "b": {"c": [2]}, "d": {}}
    found = differences(there, now)
    assert found == [Difference("a", 1, None), Difference("b.c", [1], [2]), Difference("d", None, {})]
    assert differences(there, there) == []
    assert str(Difference("a", "x" * 80, 1)) == f'a: "{"x" * 56}... there, 1 now'


def test_differing_leaves_go_down_to_the_last_value():
    found = differing_leaves({"b": {"c": 1, "d": 2}, "a": 1}, {"b": None, "a": 1})
    assert found == [Difference("b.c", 1, None), Difference("b.d", 2, None)]
    assert differing_leaves({"b": {}}, {}) == []
