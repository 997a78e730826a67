"""Files of ``torch.save``, read without ``torch.load``: the zip archive of PyTorch 1.6 and later, and the stream before it.

    zip     NAME/data.pkl, NAME/data/KEY (one storage each), NAME/byteorder; the archive has a CRC-32 of every member
    stream  pickles of a magic number, a version, sizes of the writer's types, the content and the list of keys; then, for
            each key, the number of elements (8 bytes) and the bytes. There is no checksum.

``torch.load(weights_only=True)`` runs no code either, but nothing bounds what it allocates or how deep it recurses, and it does
not look at the archive's checksums.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.errors import CheckpointError, one_line
from rdc.models.convert.tensors import Held, Storage, bytes_of
from rdc.models.convert.torch_machine import TorchMachine
from rdc.storage.pickle_machine import STEPS
from rdc.storage.pickles import reading_pickle
from rdc.storage.reading import Budget, read_content, regular_file
from rdc.storage.zip_archives import ZipArchive, open_archive

__all__ = ["STREAM_START", "is_torch_file", "load_storage", "load_torch_file"]

STREAM_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  #: magic number of torch.save before 1.6, pickled
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_ZIP = b"PK\x03\x04"
_EXPECTED = "a readable torch file (torch.save)"
_PICKLE_LIMIT = 64 * 2**20


def is_torch_file(head: bytes) -> bool:
    """Whether a file that starts with these (300) bytes may be one of ``torch.save``."""
    return head[:4] == _ZIP or head[: len(STREAM_START)] == STREAM_START or head[257:262] == b"ustar"


def load_torch_file(path: Path) -> Any:
    """What was saved: dicts, lists, tuples, sets, text, numbers, tensors on the CPU, and :class:`rdc.storage.nesting.Stub` s for
    everything else. Tensors that share a storage share it still; entries whose key is no text or number are left out.

    Raises:
        CheckpointError: missing, damaged (checksums of zip archives are compared), made by ``torch.jit.save``, asks for something
            to be run, or for more memory than a file of its size may.
    """
    name = one_line(path, 400)
    size = regular_file(path, CheckpointError, _EXPECTED)
    with reading_pickle(name, CheckpointError, _EXPECTED, "a file of weights"):
        with open(path, "rb") as file:
            head = file.read(512)
        if head[:4] == _ZIP:
            with open_archive(path, CheckpointError, _EXPECTED) as archive:
                return _zip(archive)
        if head[257:262] == b"ustar":
            raise CheckpointError(
                f"{name}: a tar file of PyTorch before 0.2; load it there and save its state dict again (torch.save)"
            )
        content = read_content(path, CheckpointError, _EXPECTED)
        return _tensors(_stream(content, Budget(name, size, CheckpointError), STEPS)[0])


def load_storage(content: bytes, budget: Budget, steps: int) -> tuple[Storage, int]:
    """The one storage in a stream, as ``torch.storage._load_from_bytes`` gets it; and how many of the ``steps`` are left.

    Raises:
        Exception: it is damaged or holds anything else.
    """
    found, left = _stream(content, budget, steps, only_storages=True)
    if type(found) is not Storage:
        raise pickle.UnpicklingError(f"it holds a {type(found).__name__}")
    return found, left


def _zip(archive: ZipArchive) -> Any:
    pickles = [name for name in archive.sizes if name.endswith("/data.pkl")]
    folder = pickles[0].removesuffix("data.pkl") if len(pickles) == 1 else None
    if folder is None or f"{folder}constants.pkl" in archive.sizes:
        seen = "a TorchScript program" if folder else f"a zip archive with {len(pickles)} of the one data.pkl"
        raise CheckpointError(
            f"{archive.budget.name}: {seen}; save a plain state dict (torch.save(net.state_dict(), ...))"
        )
    if archive.sizes[pickles[0]] > _PICKLE_LIMIT:
        raise ValueError(f"data.pkl of {archive.sizes[pickles[0]]:,} bytes; expected {_PICKLE_LIMIT:,} at most")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.sizes else b"little"
    if order not in (b"little", b"big"):
        raise ValueError(f"byte order {one_line(order, 40)}; expected little or big")
    machine = TorchMachine(archive.read(pickles[0]), archive.budget)
    found = machine.load()
    for key, storage in machine.storages.items():
        member = f"{folder}data/{key}"
        if member not in archive.sizes:
            raise ValueError(f"no storage {one_line(key, 40)}")
        archive.budget.take(archive.sizes[member], "a storage")
        content = torch.empty(archive.sizes[member], dtype=torch.uint8)
        archive.read_into(member, content.numpy().data)
        storage.fill(_swapped(content, storage.dtype) if order == b"big" else content)
    archive.check_rest()
    return _tensors(found)


def _swapped(content: Tensor, dtype: torch.dtype) -> Tensor:
    """The bytes of every number (of both parts of a complex one) in the other order."""
    width = dtype.itemsize // (2 if dtype.is_complex else 1)
    whole = content[: len(content) // width * width]
    return torch.from_numpy(np.ascontiguousarray(whole.numpy().reshape(-1, width)[:, ::-1]).reshape(-1))


def _stream(content: bytes, budget: Budget, steps: int, only_storages: bool = False) -> tuple[Any, int]:
    """Content with described tensors, and how many of the ``steps`` are left."""
    machine = TorchMachine(content, budget, steps=steps, only_storages=only_storages)
    if machine.load() != _MAGIC or machine.load() != _VERSION:
        raise pickle.UnpicklingError("no magic number of torch.save")
    machine.load()  # sizes of the writer's types; numbers are stored with the lowest byte first whatever they were
    found = machine.load()
    keys = machine.load()
    if type(keys) is not list or sorted(map(str, keys)) != sorted(machine.storages):
        raise pickle.UnpicklingError("the storages are not those of the content")
    view, at = memoryview(content), machine.at
    for key in keys:
        storage = machine.storages[key]
        count = int.from_bytes(view[at : at + 8], "little")
        end = at + 8 + count * storage.dtype.itemsize
        if count != storage.count or end > len(content):
            raise EOFError(f"a storage of {storage.count:,} numbers is cut short")
        storage.fill(bytes_of(view[at + 8 : end], budget))
        at = end
    return found, machine.steps


def _tensors(found: Any, made: dict[int, Any] | None = None) -> Any:
    """Tensors in place of their descriptions; containers that occur twice are one again."""
    made = {} if made is None else made
    if id(found) in made:
        return made[id(found)]
    kind = type(found)
    if kind is Held:
        result: Any = found.tensor()
    elif kind is dict:
        result = {key: _tensors(value, made) for key, value in found.items()}
    elif kind in (list, tuple):
        result = kind([_tensors(value, made) for value in found])
    else:
        return found
    made[id(found)] = result
    return result
