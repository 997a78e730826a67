"""Tar archives: what ``tarfile`` writes, and what it would say of it."""

from __future__ import annotations

import io
import random
import tarfile

import pytest

from rdc.storage.tar_archives import tar_members


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("packed", ["", "gz", "bz2"])
def test_the_same_files_as_the_standard_library(tmp_path, form, packed):
    rng, path = random.Random(7), tmp_path / "a"
    with tarfile.open(path, f"w:{packed}", format=form) as tar:
        for number in range(60):
            length = rng.choice([3, 80, 99, 100, 101, 140])
            name = "/".join(["a" * rng.randrange(1, 30) for _ in range(10)])[:length] + str(number)
            if form == tarfile.PAX_FORMAT and number % 5 == 0:
                name = f"ä€/{name}"
            member = tarfile.TarInfo(name)
            member.type = rng.choice([tarfile.REGTYPE] * 4 + [tarfile.DIRTYPE, tarfile.SYMTYPE])
            member.size = rng.choice([0, 1, 511, 512, 513, 5000]) if member.isreg() else 0
            member.linkname, member.mtime = "x" * rng.choice([5, 90]), rng.random() * 1e9
            tar.addfile(member, io.BytesIO(bytes(rng.randrange(256) for _ in range(member.size))))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.size, tar.extractfile(m).read()) for m in tar if m.isreg()]
    assert [(name, size, read()) for name, size, read in tar_members(path, 10**7)] == expected
    assert [name for name, _, _ in tar_members(path, 10**7)] == [name for name, _, _ in expected]  # without reading


def test_damage_is_found_in_headers(tmp_path):
    member = tarfile.TarInfo("name")
    member.size = 3
    header = member.tobuf()
    path = tmp_path / "a"
    same = 0
    for at in range(512):
        damaged = bytearray(header)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(bytes(damaged) + b"abc" + bytes(509 + 1024))
        try:
            assert [(name, size) for name, size, _ in tar_members(path, 10**6)] == [("name", 3)]
            same += 1
        except ValueError as error:
            assert "header that is none of a tar archive" in str(error)
    assert same <= 4  # a leading zero of the checksum that became a space
