import os
import subprocess
import sys

import pytest

from rdc.errors import ConfigError
from rdc.storage.run_lock import RunLock, holds_nothing

pytest.importorskip("fcntl")

HOLD = """
import sys
from rdc.storage.run_lock import RunLock
lock = RunLock(sys.argv[1], "busy")
print("held", flush=True)
sys.stdin.read()
"""


def test_one_process_holds_it_until_it_ends_however_it_ends(tmp_path):
    path = tmp_path / "run.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="in use"):
        RunLock(path, "in use")
    process.kill()
    process.communicate()
    with RunLock(path, "in use"), pytest.raises(ConfigError):
        RunLock(path, "in use")
    RunLock(path, "in use").close()


def test_what_is_in_the_file_stays(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text("notes")
    RunLock(path, "").close()
    assert path.read_text() == "notes"


def test_links_pipes_and_folders_are_refused(tmp_path):
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ConfigError, match="symbolic link"):
        RunLock(tmp_path / "link", "")
    assert target.read_text() == "precious"
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="symbolic link"):
        RunLock(tmp_path / "dangling", "")
    assert not (tmp_path / "nothing").exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no plain file"):
        RunLock(tmp_path / "pipe", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        RunLock(tmp_path / "folder", "")


def test_no_descriptor_is_left_open(tmp_path):
    def count():
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    before = count()
    with RunLock(tmp_path / "run.lock", ""):
        for _ in range(3):
            with pytest.raises(ConfigError):
                RunLock(tmp_path / "run.lock", "busy")
    assert count() == before


def test_what_file_managers_leave_is_nothing(tmp_path):
    assert holds_nothing(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "run.lock"):
        (tmp_path / name).write_text("")
    assert holds_nothing(tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    assert not holds_nothing(tmp_path)
