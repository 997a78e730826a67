import pytest

from rdc.storage.files import atomic_write
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
