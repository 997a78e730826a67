import os
import subprocess
import sys
import time

import pytest

from rdc.storage.files import atomic_write, open_in_place, sweep_temporaries
from rdc.storage.json_files import read_json, write_json


def test_json_round_trip_and_no_left_overs(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"x": [1, 2.5, None]})
    assert read_json(tmp_path / "deep" / "a.json") == {"x": [1, 2.5, None]}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


# --- left-overs -------------------------------------------------------------------------------------------------------
KILLED = """
import os, signal, sys
from rdc.storage.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def writer(path, what):
    command = [sys.executable, "-c", KILLED, str(path), what]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def temporaries(folder):
    return sorted(path.name for path in folder.glob(".*.tmp"))


def test_what_a_killed_process_left_goes_with_the_next_write_of_that_file(tmp_path):
    for name in ("model.json", "other.json"):
        process = writer(tmp_path / name, "die")
        process.communicate()
        assert process.returncode == -9
    (tmp_path / ".model.json.notes.tmp").write_text("somebody else's")
    assert len(temporaries(tmp_path)) == 3
    with atomic_write(tmp_path / "model.json") as file:
        file.write(b"{}")
    left = temporaries(tmp_path)
    assert len(left) == 2 and left[0] == ".model.json.notes.tmp" and left[1].startswith(".other.json.")
    sweep_temporaries(tmp_path, lambda name: name == "other.json")
    assert temporaries(tmp_path) == [".model.json.notes.tmp"]


def test_what_a_living_process_writes_stays(tmp_path):
    path = tmp_path / "model.json"
    process = writer(path, "wait")
    assert process.stdout.readline() == "writing\n"
    with atomic_write(path) as file:  # in this process too, one inside the other
        file.write(b"outer")
        with atomic_write(path) as other:
            other.write(b"inner")
        sweep_temporaries(tmp_path, lambda name: True)
        assert path.read_bytes() == b"inner" and len(temporaries(tmp_path)) == 2
    assert path.read_bytes() == b"outer"
    process.communicate("")
    assert process.returncode == 0 and path.read_bytes() == b"half" and temporaries(tmp_path) == []


def test_where_locks_do_not_work_only_old_left_overs_go(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for name, age in ((".a.abcdefgh.tmp", 3600), (".a.zzzzzzzz.tmp", 2 * 86400)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"x")
    assert temporaries(tmp_path) == [".a.abcdefgh.tmp"] and (tmp_path / "a").read_bytes() == b"x"


def test_a_name_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("n" * 255)
    for content in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(content)
    assert path.read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1


# --- in place ---------------------------------------------------------------------------------------------------------
def test_nothing_is_written_through_a_symbolic_link(tmp_path):
    target, link = tmp_path / "precious", tmp_path / "log.jsonl"
    target.write_bytes(b"precious")
    link.symlink_to(target)
    for mode in ("ab", "r+b"):
        with pytest.raises(OSError, match="is a symbolic link") as error:
            open_in_place(link, mode)
        assert error.value.filename == str(link)
    with atomic_write(link) as file:
        file.write(b"new")
    assert target.read_bytes() == b"precious" and link.read_bytes() == b"new" and not link.is_symlink()
    with open_in_place(link, "ab") as file:
        file.write(b"er")
    with open_in_place(tmp_path / "made", "ab") as file:
        file.write(b"x")
    assert link.read_bytes() == b"newer" and (tmp_path / "made").read_bytes() == b"x"


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for mode in ("ab", "r+b"):
        with pytest.raises(OSError):
            open_in_place(tmp_path / "pipe", mode)
