"""Pickles that want to run code do not, and damaged ones are refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch

from rdc.errors import CheckpointError
from rdc.models.convert import convert_checkpoint
from tests.bounds import bounded
from tests.models.convert.edm_files import Call, Persistent, edm_object, write_pickle


def hand_made(*calls: tuple[str, str, bytes]) -> bytes:
    """A protocol 2 pickle by hand: ``(module, name, argument opcodes)`` one after the other."""
    body = b"".join(b"c" + f"{module}\n{name}\n".encode() + arguments for module, name, arguments in calls)
    return b"\x80\x02" + body + b"."


def attacks(ran) -> dict[str, tuple]:
    """Name -> (pickle that creates the file ``ran`` or would hurt otherwise, what the error must name)."""
    touch, code = f"touch {ran}", f"open({str(ran)!r}, 'w').close()"
    system = {"nt": "nt", "posix": "posix"}[os.name] + ".system"
    in_state = Persistent()
    in_state.__dict__.update(kind="EDMPrecond", source="", bad=Call(os.system, touch))
    inner = pickle.dumps(Call(exec, code))
    module = f"S'{touch}'\n".encode()
    return {
        "os.system": (pickle.dumps(Call(os.system, touch)), system),
        "eval": (pickle.dumps(Call(eval, code)), "builtins.eval"),
        "exec, protocol 2": (pickle.dumps(Call(exec, code), 2), "exec"),
        "getattr": (pickle.dumps(Call(getattr, dict, "fromkeys")), "builtins.getattr"),
        "open": (pickle.dumps(Call(open, str(ran), "w")), "open"),
        "nested in ema": (pickle.dumps({"ema": {"x": [OrderedDict(a=Call(os.system, touch))]}}), system),
        "in the state": (lambda: pickle.dumps({"ema": in_state}), system),
        "as a key": (pickle.dumps({Call(os.system, touch): 1}), system),
        "torch.load": (pickle.dumps(Call(torch.load, str(ran))), "torch.serialization.load"),
        "pickle.loads": (pickle.dumps(Call(pickle.loads, inner)), "_pickle.loads"),
        "storage with code": (pickle.dumps(Call(torch.storage._load_from_bytes, inner)), "storage refused"),
        "random": (pickle.dumps(np.random.default_rng(0)), "numpy.random"),
        "generator": (pickle.dumps({"ema": Call(torch.Generator)}), "torch._C.Generator"),
        "functools": (pickle.dumps(Call(__import__("functools").partial, os.system, touch)), "functools.partial"),
        "old INST": (b"(" + module + b"iposix\nsystem\n.", "instruction"),
        "old OBJ": (b"\x80\x02(cposix\nsystem\n" + module + b"o.", "posix.system"),
        "dotted name": (
            hand_made(("torch.nn.modules.module", "torch.os.system", b"(" + module + b"tR")),
            "torch.os.system",
        ),
        "module path": (
            hand_made(("torch.nn.modules", "os.system", b"(" + module + b"tR")),
            "torch.nn.modules.os.system",
        ),
        "extension registry": (b"\x80\x02\x82\x01.", "registered object"),
        "external object": (b"\x80\x02Pabc\n.", "external object"),
        "state onto a name": (hand_made(("collections", "OrderedDict", b"}S'x'\nI1\nsb")), "state given"),
        "call of data": (b"\x80\x02](tR.", "made by a list"),
        "newobj of data": (b"\x80\x02](t\x81.", "made by a list"),
        "a class as an object": (hand_made(("builtins", "object", b"(tR")), "object called"),
    }


@pytest.mark.parametrize("name", list(attacks("x")))
def test_code_is_never_run(tmp_path, edm_modules, name):
    ran, path = tmp_path / "ran", tmp_path / "bad.pkl"
    content, named = attacks(ran)[name]
    path.write_bytes(content() if callable(content) else content)
    before = set(os.listdir(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(path, tmp_path / "out", kind="edm-pickle")
    assert named in str(caught.value) and not ran.exists()
    assert set(os.listdir(tmp_path)) == before


def test_the_attacks_work(tmp_path, edm_modules):
    """An ordinary unpickler does run them, so that the test above can fail."""
    for name in ("os.system", "exec, protocol 2", "nested in ema", "old OBJ", "dotted name", "storage with code"):
        ran = tmp_path / "ran"
        try:
            pickle.loads(attacks(ran)[name][0])
        except Exception:  # after the damage was done
            pass
        if name not in ("dotted name", "storage with code"):  # refused by pickle's protocol 2, by torch
            assert ran.exists(), name
            ran.unlink()


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((3, 5), (5, 1), 0),
        ((12,), (1,), 1),
        ((4,), (4,), 0),
        ((10**12,), (0,), 0),
        ((-1,), (1,), 0),
        ((4,), (1,), -1),
        ((2,), (1, 1), 0),
    ],
)
def test_tensor_outside_its_storage(tmp_path, edm_modules, size, stride, offset):
    storage = torch.zeros(12).storage()
    bad = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"ema": bad}))
    with pytest.raises(CheckpointError, match="tensor of size"):
        convert_checkpoint(path, tmp_path / "out")


def test_damaged_pickle(tmp_path, edm_modules):
    content = write_pickle(tmp_path / "edm.pkl", edm_object("ddpmpp")).read_bytes()
    generator = np.random.default_rng(0)
    for keep in [3, 50, *generator.integers(100, len(content), 8)]:
        (tmp_path / "edm.pkl").write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match="not a readable pickle"):
            convert_checkpoint(tmp_path / "edm.pkl", tmp_path / "out")
    for _ in range(25):  # damaged bytes: an error of ours, or a file that still makes sense; never anything else
        damaged = bytearray(content)
        for at in generator.integers(2, 4000, 3):
            damaged[at] = generator.integers(256)
        (tmp_path / "edm.pkl").write_bytes(damaged)
        try:
            convert_checkpoint(tmp_path / "edm.pkl", tmp_path / "out")
        except CheckpointError:
            pass


def storage(count: int) -> bytes:
    """Instructions that leave a storage of ``count`` zeros on the stack."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TypedStorage is deprecated; files hold it for ever
        torch.save(torch.zeros(count).storage(), content, _use_new_zipfile_serialization=False)
    content = content.getvalue()
    return b"ctorch.storage\n_load_from_bytes\n" + b"B" + struct.pack("<I", len(content)) + content + b"\x85R"


def rebuilt(*numbers: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(h\x00" + b"".join(numbers) + b"\x89}tR"


DEEP = b")" + b"\x85" * 60_000
BOMBS = {
    "tuples as a key": (b"}" + DEEP + b"K\x01s", "a key that is a tuple"),
    "tuples in a set": (b"cbuiltins\nset\n]" + DEEP + b"a\x85R", "a key that is a tuple"),
    "tuples in a frozenset": (b"cbuiltins\nfrozenset\n]" + DEEP + b"a\x85R", "a key that is a tuple"),
    "pairs with tuples": (b"ccollections\nOrderedDict\n](" + DEEP + b"K\x01\x86e\x85R", "a key that is a tuple"),
    "deep tuples": (DEEP, "nested more than 200 levels"),
    "deep modules": (b"ctorch.nn.modules.module\nModule\nq\x05" + b"h\x05)R" * 9000 + b"b" * 8999, "nested more than 200"),
    "a module in itself": (b"ctorch.nn.modules.module\nModule\n)Rq\x01h\x01b", "contains itself"),
    "doubled tuples": (b"}U\x03ema)" + b"2\x86" * 60 + b"s", "more than 1,000,000 parts"),
    "one storage, 1,000 times": (
        storage(100_000) + b"q\x00](" + rebuilt(b"K\x00", b"J\xa0\x86\x01\x00\x85", b"K\x01\x85") * 1000 + b"e",
        "tensor of size",
    ),
    "one stream, 1,000 times": (
        storage(100_000).replace(b"bytes\nB", b"bytes\nq\x07B").replace(b"\x85R", b"q\x08(") + b"h\x07h\x08\x85R" * 1000 + b"l",
        "a storage asks for",
    ),
    "copies of a list": (b"(" + b"N" * 100_000 + b"lq\x00](" + b"cbuiltins\nlist\nh\x00\x85R" * 1000 + b"e", "a copy asks for"),
    "bytes of 3 GiB": (b"\x96" + struct.pack("<Q", 3 << 30), "bytes announced"),
    "a stream that is cut": (storage(50).replace(struct.pack("<q", 50), struct.pack("<q", 2**40)), "storage refused"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BOMBS))
def test_bombs(tmp_path, name):
    program, message = BOMBS[name]
    path = tmp_path / "bad.pkl"
    path.write_bytes(b"\x80\x02" + program + b".")
    with bounded(4), pytest.raises(CheckpointError, match=message) as caught:
        convert_checkpoint(path, tmp_path / "out", kind="edm-pickle")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"num_blocks": 10**9},
        {"model_channels": 10**9},
        {"channel_mult": [1] * 20_000},
        {"channel_mult": np.zeros((3, 3))},
        {"label_dim": 2**40},
        {"img_resolution": 2**40},
        {"img_channels": None},
        {"sigma_data": 0.0},
        {"sigma_data": "0.5"},
        {"sigma_data": np.float64(1e30)},
        {"model_type": ["SongUNet"]},
        {"dropout": np.array([0.1])},
        {3: 4},
    ],
)
def test_odd_arguments(tmp_path, edm_modules, change):
    network = edm_object("ddpmpp")
    network._init_kwargs.update(change)
    path = write_pickle(tmp_path / "edm.pkl", network)
    with bounded(), pytest.raises(CheckpointError, match="edm.pkl") as caught:
        convert_checkpoint(path, tmp_path / "out")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
