"""``torch.save`` files without ``torch.load``: the same values bit for bit, and everything else refused in one line."""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rdc.errors import CheckpointError
from rdc.models.convert.torch_files import load_torch_file
from rdc.storage.nesting import Stub
from tests.bounds import bounded
from tests.models.convert.edm_files import Call
from tests.networks.formula import noise_like

DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]
NEW_DTYPES = ["float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64", "complex32"]


def numbers(dtype: str, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(dtype))
    count = torch.Size(shape).numel() * getattr(torch, dtype).itemsize
    content = torch.randint(0, 2 if dtype == "bool" else 256, (count,), generator=generator, dtype=torch.uint8)
    return content.view(getattr(torch, dtype)).reshape(shape)


def same(a, b) -> bool:
    """The same types, structure and bits."""
    if isinstance(a, torch.Tensor):
        if type(b) not in (torch.Tensor, nn.Parameter) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        raw = [x.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        return torch.equal(*raw) and (a.numel() == 0 or b.is_conj() or b.is_neg() or a.stride() == b.stride())
    if isinstance(b, dict):
        return isinstance(a, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def contents() -> dict[str, object]:
    """What people save."""
    base = noise_like("base", (6, 8)).float()
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net(torch.zeros(5, 3)).sum().backward()
    optimizer = torch.optim.AdamW(net.parameters())
    optimizer.step()
    marked = nn.Parameter(torch.ones(3))
    marked.note = "kept by PyTorch"
    views = {
        "row": base[2],
        "columns": base[:, ::3],
        "transposed": base.T,
        "part": base[1:3, 2:5],
        "scalar": base[0, 0],
    }
    return {
        **{dtype: {"x": numbers(dtype, 3, 5), "empty": numbers(dtype, 0, 2)} for dtype in DTYPES},
        "views of one storage": {**views, "expanded": torch.ones(1).expand(3, 4), "permuted": torch.zeros(2, 3, 4).permute(2, 0, 1)},
        "channels last": {"w": noise_like("w", (4, 3, 3, 3)).float().to(memory_format=torch.channels_last)},
        "state dict": net.state_dict(),
        "parameters": {"p": nn.Parameter(base), "frozen": nn.Parameter(base[0], requires_grad=False)},
        "parameter with state": {"p": marked},
        "training checkpoint": {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.25, "best": None},
        "conjugate": {"c": torch.complex(base, base).conj(), "n": torch.complex(base, -base).conj().imag},
        "ordered": OrderedDict(b=torch.ones(2), a=torch.zeros(1)),
        "lists": [torch.ones(1), (torch.zeros(2), "x"), {"deep": {"er": [1, 2.5, True, None, b"x", 2**70]}}],
        "keys": {"text": 1, 5: torch.ones(1), 2.5: "x", None: 2, True: 3},
        "size": {"shape": tuple(base.shape)},
    }  # fmt: skip


@pytest.mark.parametrize("name", list(contents()))
@pytest.mark.parametrize("stream", [False, True])
def test_the_same_as_torch_load(tmp_path, name, stream):
    original, path = contents()[name], tmp_path / "x.pt"
    torch.save(original, path, _use_new_zipfile_serialization=not stream)
    expected = torch.load(path, weights_only=True)
    found = load_torch_file(path)
    assert same(found, expected) and same(found, original)


@pytest.mark.parametrize("dtype", [name for name in NEW_DTYPES if hasattr(torch, name)])
def test_new_types_of_numbers(tmp_path, dtype):
    torch.save({"x": numbers(dtype, 4, 2)[1:]}, tmp_path / "x.pt")
    assert same(load_torch_file(tmp_path / "x.pt"), torch.load(tmp_path / "x.pt"))


def test_shared_storages_stay_shared(tmp_path):
    base = torch.zeros(6)
    for stream in (False, True):
        torch.save({"a": base, "b": base[2:4]}, tmp_path / "x.pt", _use_new_zipfile_serialization=not stream)
        found = load_torch_file(tmp_path / "x.pt")
        found["b"].fill_(7)
        assert found["a"].tolist() == [0, 0, 7, 7, 0, 0]


class Config:
    """Somebody's own class."""

    def __init__(self, **values):
        self.__dict__.update(values)


def test_what_stands_beside_the_weights_is_kept_as_a_stub(tmp_path):
    weights = {"w": noise_like("w", (3, 4)).float()}
    beside = {
        "args": argparse.Namespace(lr=0.1, path=pathlib.Path("/data")),
        "config": Config(width=3, inner=Config()),
        "score": np.float32(0.5),
        "history": np.arange(4),
        "counts": Counter("abca"),
        "by": defaultdict(dict, a=1),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "set": {1, 2},
        "bytes": bytearray(b"x"),
        ("a", "tuple"): 1,
        "network": nn.Linear(2, 2),
    }
    for stream in (False, True):
        for protocol in (2, 4):
            torch.save(
                {**beside, "state_dict": weights},
                tmp_path / "x.pt",
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=not stream,
            )
            found = load_torch_file(tmp_path / "x.pt")
            assert same(found["state_dict"], weights)
            assert list(found) == [*(key for key in beside if isinstance(key, str)), "state_dict"]
            assert all(isinstance(found[key], Stub) for key in ("args", "config", "network", "score"))
            assert found["size"] == (2, 3) and found["set"] == {1, 2} and found["by"] == {"a": 1}
            with pytest.raises(pickle.UnpicklingError):
                torch.load(tmp_path / "x.pt", weights_only=True)  # fewer files than here


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a quantized tensor"),
        (lambda: torch.empty(3, device="meta"), "a tensor without values"),
    ],
)
def test_other_tensors_are_named(tmp_path, make, seen):
    torch.save({"x": make(), "w": torch.ones(2)}, tmp_path / "x.pt")
    found = load_torch_file(tmp_path / "x.pt")
    assert found["x"].class_name.startswith(seen) and torch.equal(found["w"], torch.ones(2))


def rewritten(path: Path, method: int = zipfile.ZIP_STORED, **members: bytes | None) -> None:
    """The archive with other members: ``data_pkl=b"..."``, None removes one."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(content)).split("/")[0]
    for name, value in members.items():
        content[f"{folder}/{name.replace('__', '/').replace('_pkl', '.pkl')}"] = value
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, value in content.items():
            if value is not None:
                archive.writestr(name, value)


def test_archives_of_others(tmp_path):
    """Compressed, without the newer records, or of a machine of the other byte order."""
    path, expected = (
        tmp_path / "x.pt",
        {"a": numbers("float32", 3, 4), "b": numbers("int16", 5), "c": numbers("complex64", 2)},
    )
    torch.save(expected, path)
    rewritten(path, zipfile.ZIP_DEFLATED)
    assert same(load_torch_file(path), expected)
    rewritten(path, byteorder=None)
    assert same(load_torch_file(path), expected)
    swapped = [
        value.view(torch.uint8 if value.dtype != torch.complex64 else torch.float32).numpy()
        for value in expected.values()
    ]
    raw = [
        np.ascontiguousarray(expected["a"].numpy()).byteswap().tobytes(),
        expected["b"].numpy().byteswap().tobytes(),
        swapped[2].byteswap().tobytes(),
    ]
    rewritten(path, byteorder=b"big", data__0=raw[0], data__1=raw[1], data__2=raw[2])
    assert same(load_torch_file(path), expected) and same(torch.load(path), expected)
    rewritten(path, byteorder=b"odd")
    with pytest.raises(CheckpointError, match="byte order b'odd'"):
        load_torch_file(path)


@pytest.mark.parametrize("stream", [False, True])
def test_truncated(tmp_path, stream):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(50), "v": torch.ones(3)}, path, _use_new_zipfile_serialization=not stream)
    content = path.read_bytes()
    for keep in [0, 3, 10, 20, 60, *range(100, len(content) - 1, 97), len(content) - 1]:
        path.write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match=r"x\.pt: (not|.*)") as caught:
            load_torch_file(path)
        assert "\n" not in str(caught.value)


def test_every_flipped_bit_of_an_archive_is_found_or_changes_nothing(tmp_path):
    """Checksums cover the members; what is outside them (padding, dates) does not matter."""
    path, expected = tmp_path / "x.pt", {"w": noise_like("w", (4, 4)).float()}
    torch.save(expected, path)
    content, found = path.read_bytes(), 0
    with zipfile.ZipFile(path) as archive:
        inside = sum(archive.getinfo(name).file_size for name in archive.namelist())
    for at in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            assert same(load_torch_file(path), expected), at
        except CheckpointError:
            found += 1
    assert found > inside / 3


def test_a_flipped_bit_in_the_numbers(tmp_path):
    """torch.load believes this one."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.full((16,), 3.0)}, path)
    content = path.read_bytes()
    at = content.index(struct.pack("<16f", *[3.0] * 16)) + 5
    path.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
    assert not torch.equal(torch.load(path)["w"], torch.full((16,), 3.0))
    with pytest.raises(CheckpointError, match="CRC-32"):
        load_torch_file(path)


@pytest.mark.parametrize("stream", [False, True])
def test_code_is_refused(tmp_path, stream):
    ran = tmp_path / "ran"
    for call, named in (
        (Call(os.system, f"touch {ran}"), "posix.system"),
        (Call(eval, f"open({str(ran)!r}, 'w')"), "builtins.eval"),
        (Call(getattr, dict, "fromkeys"), "builtins.getattr"),
        (Call(subprocess.call, ["touch", str(ran)]), "commands.call"),  # protocol 2 uses Python 2's names
    ):
        torch.save({"x": call, "w": torch.ones(1)}, tmp_path / "x.pt", _use_new_zipfile_serialization=not stream)
        with pytest.raises(CheckpointError, match=rf"asks for {named}.*nothing in it was run"):
            load_torch_file(tmp_path / "x.pt")
    torch.save(Call(torch.load, str(ran)), tmp_path / "x.pt")
    assert load_torch_file(tmp_path / "x.pt").class_name == "torch.serialization.load" and not ran.exists()


def test_other_files(tmp_path):
    path = tmp_path / "x.pt"
    net = torch.jit.script(nn.Linear(2, 2))
    net.save(str(path))
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_torch_file(path)
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with pytest.raises(CheckpointError, match="zip archive with 0 of the one"):
        load_torch_file(tmp_path / "a.npz")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(CheckpointError, match="Git LFS"):
        load_torch_file(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_torch_file(tmp_path)
    path.write_bytes(bytes(257) + b"ustar\x00" + bytes(1000))
    with pytest.raises(CheckpointError, match="tar file of PyTorch"):
        load_torch_file(path)
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(CheckpointError, match="no magic number"):
        load_torch_file(path)


PERSISTENT = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
REBUILT = b"ctorch._utils\n_rebuild_tensor_v2\n(h\x00K\x00%s\x89}tR"


def archive_with(path: Path, program: bytes, storage: bytes = b"\0\0\0\0") -> Path:
    torch.save({"w": torch.ones(1)}, path)
    rewritten(path, data_pkl=program, data__0=storage)
    return path


def long(number: int) -> bytes:
    return b"\x8a\x08" + number.to_bytes(8, "little")


BOMBS = {
    "contains itself": (b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.", "contains itself"),
    "tuples in a list": (b"\x80\x02]" + b")" + b"\x85" * 60_000 + b"a.", "nested more than 200 levels"),
    "one number expanded": (PERSISTENT + b"q\x00" + REBUILT % (long(175_000_000) + b"\x85K\x00\x85") + b".", "700,000,000 bytes of memory"),
    "one storage, 1,000 times": (
        PERSISTENT + b"q\x00](" + (REBUILT % (long(100_000) + b"\x85K\x00\x85")) * 1000 + b"e.",
        "bytes of memory",
    ),
    "20,000 axes": (PERSISTENT + b"q\x00" + REBUILT % (2 * (b"(" + b"K\x01" * 20_000 + b"t")) + b".", "tensor of size"),
    "a size of 2^63": (PERSISTENT + b"q\x00" + REBUILT % (long(2**63 - 1) + b"\x85K\x00\x85") + b".", "tensor of size"),
    "bytes of 3 GiB": (b"\x80\x05\x96" + struct.pack("<Q", 3 << 30) + b".", "bytes announced"),
    "copies of a list": (
        b"\x80\x02(" + b"N" * 100_000 + b"lq\x00](" + b"cbuiltins\nlist\nh\x00\x85R" * 1000 + b"e.",
        "a copy asks for",
    ),
    "another storage": (PERSISTENT.replace(b"\x000X", b"\x009X") + b".", "no storage 9"),
    "a key that leaves the archive": (PERSISTENT.replace(b"X\x01\x00\x00\x000X", b"X\x0b\x00\x00\x00../../../etX") + b".", "no storage"),
    "a storage of another size": (PERSISTENT.replace(b"cpuK\x01", b"cpuK\x07") + b".", "7 numbers with 4 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BOMBS))
def test_bombs(tmp_path, name):
    program, message = BOMBS[name]
    path = archive_with(tmp_path / "x.pt", program)
    with bounded(4), pytest.raises(CheckpointError, match=message) as caught:
        load_torch_file(path)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_nested_tuples_as_a_key_are_left_out(tmp_path):
    deep = b")" + b"\x85" * 60_000
    for program in (b"\x80\x02}" + deep + b"K\x01s.", b"\x80\x02}(" + deep + b"K\x01u."):
        with bounded(4):
            assert load_torch_file(archive_with(tmp_path / "x.pt", program)) == {}


def test_inflating_archives(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(20_000_000)}, path)
    rewritten(path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6
    with bounded(), pytest.raises(CheckpointError, match="tensor of size .* asks for 80,000,000 bytes"):
        load_torch_file(path)
    archive_with(path, b"\x80\x02}.", storage=b"")
    rewritten(path, zipfile.ZIP_DEFLATED, other=bytes(80_000_000))
    with bounded(), pytest.raises(CheckpointError, match="other asks for 80,000,000 bytes"):
        load_torch_file(path)
    rewritten(path, zipfile.ZIP_LZMA, other=b"")
    with pytest.raises(CheckpointError, match="packed by method 14"):
        load_torch_file(path)


def test_a_directory_without_end(tmp_path):
    path = tmp_path / "x.pt"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(60_000):
            archive.writestr(zipfile.ZipInfo(f"{'x' * 100}{number}"), b"")
    path.write_bytes(content.getvalue())
    with bounded(), pytest.raises(CheckpointError, match="directory has more than"):
        load_torch_file(path)


def test_streams_that_lie(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    at = content.index(struct.pack("<q4f", 4, 1, 1, 1, 1))
    for changed, message in (
        (content[:at] + struct.pack("<q", 2**40) + content[at + 8 :], "cut short"),
        (content[:at] + struct.pack("<q", 3) + content[at + 8 :], "cut short"),
        (content[: at - 1], "EOFError"),
    ):
        path.write_bytes(changed)
        with bounded(), pytest.raises(CheckpointError, match=message):
            load_torch_file(path)


def test_torch_load_is_not_used():
    """Nothing of rdc hands a file of somebody to PyTorch's own reader."""
    root = Path(sys.modules["rdc"].__file__).parent
    used = re.compile(r"(?<![\w`.])torch\.load\(")
    users = [path.name for path in root.rglob("*.py") if used.search(path.read_text(encoding="utf-8"))]
    assert users == []
