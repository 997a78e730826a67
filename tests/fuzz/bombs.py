"""Files and texts made to hurt: each is answered at once, in little memory, by one line (or read, where it is harmless)."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz import readers
from tests.fuzz.readers import READERS

__all__ = ["BOMBS", "Bomb"]

_GIB = 2**30
_DEEP = b"K\x01" + b"\x85" * 200_000  # (((...1...)))
_DOUBLED = b"K\x01" + b"\x85" + b"2\x86" * 60  # t = (t, t), sixty times: 2^60 leaves
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1000000\n"


@dataclasses.dataclass(frozen=True)
class Bomb:
    """One case.

    Args:
        make: writes it into a folder.
        read: tries it.
        answers: outcomes that are right: "refused", "accepted".
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    answers: tuple[str, ...] = ("refused",)


def _file(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content() if callable(content) else content)

    return make


def _pt_of(data_pkl: bytes, storages: dict[str, bytes] | None = None, deflated: bool = False) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        archive.writestr("net/data.pkl", data_pkl)
        archive.writestr("net/byteorder", b"little")
        archive.writestr("net/version", b"3\n")
        for key, content in (storages or {}).items():
            archive.writestr(f"net/data/{key}", content)
    return made.getvalue()


def _saved(value: Any, **options: Any) -> Callable[[], bytes]:
    def content() -> bytes:
        made = io.BytesIO()
        torch.save(value() if callable(value) else value, made, **options)
        return made.getvalue()

    return content


def _loop() -> dict:
    found: dict = {"step": 1}
    found["model"] = found
    return found


def _views() -> dict[str, torch.Tensor]:
    return {f"net.{i}": tensor for i, tensor in enumerate([torch.zeros(2**20)] * 1000)}


def _scaled(**unet: Any) -> Callable[[Path], None]:
    """A checkpoint whose description asks for something else; its digest, where there is one, is taken away."""

    def make(folder: Path) -> None:
        READERS["checkpoint"].make(folder)
        value = json.loads((folder / "tiny.json").read_text())
        for key in ("image_shape", "num_classes", "sigma_data", "wide_channels", "patch_size"):
            if key in unet:
                value["config"][key] = unet[key]
        value["config"]["unet"] |= {key: inner for key, inner in unet.items() if key not in value["config"]}
        for key in [key for key in value if "digest" in key]:
            del value[key]
        (folder / "tiny.json").write_text(json.dumps(value))

    return make


def _described(**unet: Any) -> Callable[[Path], None]:
    """A network's description for ``convert_checkpoint(network=...)``."""

    def make(folder: Path) -> None:
        READERS["safetensors"].make(folder)
        from tests.networks.cases import EDM_CASES

        config = json.loads(json.dumps(EDM_CASES["ddpmpp"]))
        for key, value in unet.items():
            (config if key in config else config["unet"])[key] = value
        (folder / "net.json").write_text(json.dumps(config))

    return make


def _convert_described(folder: Path) -> Any:
    from rdc.models.convert import convert_checkpoint

    return convert_checkpoint(folder / "net.safetensors", folder / "made", network=folder / "net.json")


def _npy(shape: tuple, dtype: str = "|u1", content: bytes = b"") -> bytes:
    head = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(head) + 1) + head + b"\n" + content


def _images(images: Any, count: int, names: Any = None) -> Callable[[], bytes]:
    """An .npz of these bytes, compressed; labels are zeros."""

    def content() -> bytes:
        members = {"images": images, "labels": _npy((count,), content=bytes(count)), "class_names": names}
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, value in members.items():
                if value is not None:
                    archive.writestr(f"{name}.npy", value() if callable(value) else value)
        return made.getvalue()

    return content


def _idx() -> bytes:
    return _zeros_gz(_GIB, struct.pack(">4I", 0x803, _GIB // 784, 28, 28))


def _inflating() -> bytes:
    return _pt_of(b"\x80\x02}.", {"0": bytes(_GIB // 2)}, True)


def _saved_npz(**arrays: Any) -> Callable[[], bytes]:
    def content() -> bytes:
        made = io.BytesIO()
        np.savez(made, **arrays)
        return made.getvalue()

    return content


def _zeros_gz(count: int, head: bytes = b"") -> bytes:
    block = gzip.compress(bytes(10 * 2**20), 1, mtime=0)
    return gzip.compress(head, 1, mtime=0) + block * (count // (10 * 2**20))


def _tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w"):
        info = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        info.size = _GIB
        made.write(info.tobuf())
    return _zeros_gz(_GIB, made.getvalue())


def _picture(size: int, mode: str = "L") -> bytes:
    from PIL import Image

    made = io.BytesIO()
    Image.new(mode, (size, size)).save(made, "png", compress_level=9)
    return made.getvalue()


def _prefixed(prefix: str) -> Callable[[], bytes]:
    return _saved(lambda: {prefix + name: value for name, value in readers._state().items()})


def _wrapped(key: str, inside: str = "") -> Callable[[], bytes]:
    return _saved(lambda: {key: {inside + name: value for name, value in readers._state().items()}, "epoch": 3})


def _corrupted(folder: Path) -> Any:
    np.save(folder / "labels.npy", np.zeros(5, np.uint8))
    return READERS["npy"].read(folder)


def _mat() -> bytes:
    """A variable X of 1 GiB of zeros."""
    import zlib

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)

    head = (
        element(6, struct.pack("<II", 9, 0))
        + element(5, struct.pack("<4i", 32, 32, 3, _GIB // 3072))
        + element(1, b"X")
    )
    packer = zlib.compressobj(1)
    packed = packer.compress(
        struct.pack("<II", 14, len(head) + 8 + _GIB) + head + struct.pack("<II", 2, _GIB // 3072 * 3072)
    )
    packed += b"".join(packer.compress(bytes(2**24)) for _ in range(64)) + packer.flush()
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed


def _many_pictures(folder: Path) -> None:
    (folder / "pictures" / "x").mkdir(parents=True)
    content = _picture(3000)
    for number in range(100):
        (folder / "pictures" / "x" / f"{number}.png").write_bytes(content)


def _long_list(folder: Path) -> None:
    READERS["tiny-imagenet"].make(folder)
    (folder / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_bytes(b"0.JPEG\tn01\n" * 10**7)


def _levels(folder: Path) -> Any:
    from rdc.method.levels import parse_levels

    return parse_levels((folder / "text").read_text())


def _answer(folder: Path) -> Any:
    """What a classifier says with the levels or the LM of a text: it is used, so that only sense is accepted."""
    import rdc

    settings = json.loads((folder / "settings.json").read_text())
    return rdc.load("fashion-mnist", **settings)(torch.full((1, 1, 28, 28), 0.5)).isfinite().all()


def _settings(**settings: Any) -> tuple[Callable[[Path], None], Callable[[Path], Any]]:
    return _file("settings.json", json.dumps(settings).encode()), _answer


_PT, _EDM, _CIFAR = READERS["pt"].read, READERS["edm-pickle"].read, READERS["cifar10-python"].read
_BATCH = "cifar-10-batches-py/test_batch"
_NPZ, _CHECK, _IDX = READERS["npz"].read, READERS["checkpoint"].read, READERS["idx-gz"].read
_LEVELS = json.dumps({"sigma": [1.0], "weight": [1.0]})
_HARMLESS = ("accepted",)


def _pt(content: Any, answers: tuple[str, ...] = ("refused",)) -> Bomb:
    return Bomb(_file("net.pt", content), _PT, answers)


def _data(content: Any) -> Bomb:
    return Bomb(_file("data.npz", content), _NPZ)


def _config(**settings: Any) -> Bomb:
    return Bomb(_scaled(**settings), _CHECK)


def _text(content: bytes) -> Bomb:
    return Bomb(_file("text", content), _levels)


def _json(content: bytes, answers: tuple[str, ...] = ("refused",)) -> Bomb:
    return Bomb(_file("levels.json", content), READERS["levels-json"].read, answers)


def _pickles(name: str, content: bytes) -> dict[str, Bomb]:
    """The same pickle for every reader of pickles."""
    return {
        f"{name}, EDM pickle": Bomb(_file("net.pkl", content), _EDM),
        f"{name}, CIFAR-10 batch": Bomb(_file(_BATCH, content), _CIFAR),
        f"{name}, .pt": Bomb(_file("net.pt", lambda: _pt_of(content)), _PT),
        f"{name}, legacy .pt": Bomb(_file("net.pt", lambda: _legacy(content)), _PT),
    }


def _legacy(content: bytes) -> bytes:
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(head) + content


def _pointers() -> dict[str, Bomb]:
    found = {}
    for name, reader in READERS.items():
        if name.startswith(("levels-text", "lm-text")):
            continue
        file = sorted(reader.files)[-1] if name not in ("checkpoint",) else "tiny.safetensors"

        def make(folder: Path, reader: Any = reader, file: str = file) -> None:
            reader.make(folder)
            (folder / file).write_bytes(_POINTER)

        answers = ("refused", "accepted") if name == "run" else ("refused",)  # a batch that is lost is made again
        found[f"Git LFS pointer, {name}"] = Bomb(make, reader.read, answers)
    return found


BOMBS: dict[str, Bomb] = {
    **_pickles("nested tuple as a key", b"\x80\x02}" + _DEEP + b"K\x01s."),
    **_pickles("nested tuple in a set", b"\x80\x04\x8f(" + _DEEP + b"\x90."),
    **_pickles("nested tuple in a frozenset", b"\x80\x04(" + _DEEP + b"\x91."),
    **_pickles("nested lists", b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    **_pickles("doubled tuples", b"\x80\x02}U\x04data" + _DOUBLED + b"s."),
    **_pickles("doubled tuples as a key", b"\x80\x02}" + _DOUBLED + b"K\x01s."),
    **_pickles("3 GiB of bytes announced", b"\x80\x05\x96" + struct.pack("<Q", 3 * _GIB) + b"."),
    **_pickles("a frame of 2^62 bytes", b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"."),
    **_pickles("a number of 1 GiB", b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b"."),
    **_pickles("memo index 2^31", b"\x80\x02K\x01r\xff\xff\xff\x7f."),
    "a .pt that holds itself": _pt(_saved(_loop)),
    "a legacy .pt that holds itself": _pt(_saved(_loop, _use_new_zipfile_serialization=False)),
    "1,000 views of one storage": _pt(_saved(_views)),
    "one number expanded to 0.8 GB": _pt(_saved(lambda: {"map_layer0.weight": torch.zeros(1).expand(200_000_000)})),
    "tensor of 20,000 sizes": _pt(_saved(lambda: {"map_layer0.weight": torch.zeros(1).reshape((1,) * 60)})),
    "a .pt that inflates": _pt(_inflating),
    "sparse tensor": _pt(_saved(lambda: {"map_layer0.weight": torch.eye(3).to_sparse()})),
    "meta tensor": _pt(_saved(lambda: {"map_layer0.weight": torch.empty(3, device="meta")})),
    "complex tensor": _pt(_saved(lambda: {"map_layer0.weight": torch.zeros(3, 3, dtype=torch.complex64)})),
    "'model.' 30,000 times": _pt(_prefixed("model." * 30_000), ("refused", "accepted")),
    "inner_model.": _pt(_prefixed("inner_model."), _HARMLESS),
    "_fsdp_wrapped_module.": _pt(_prefixed("_fsdp_wrapped_module.model._fsdp_wrapped_module."), _HARMLESS),
    "deepspeed's module": _pt(_wrapped("module"), _HARMLESS),
    "config: 10^9 blocks": _config(num_blocks=10**9),
    "config: 2^40 classes": _config(num_classes=2**40),
    "config: image of 10^6 pixels a side": _config(image_shape=[1, 10**6, 10**6]),
    "config: 20,000 sizes": _config(image_shape=[1] * 20_000),
    "config: 20,000 levels": _config(channel_mult=[1] * 20_000),
    "config: 10^12 channels": _config(model_channels=10**12),
    "config: 10^12 wide channels": _config(wide_channels=10**12),
    "config: patches of 10^9": _config(patch_size=10**9),
    **{f"config: sigma_data {value}": _config(sigma_data=value) for value in (0, -1, 1e30, "x", None, 1e-30)},
    "network: 10^9 blocks": Bomb(_described(num_blocks=10**9), _convert_described),
    "network: 2^40 classes": Bomb(_described(num_classes=2**40), _convert_described),
    "network: 10^7 blocks at 1,000 levels": Bomb(
        _described(num_blocks=10**4, channel_mult=[1] * 1000), _convert_described
    ),
    "label 10^8": _data(_saved_npz(images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, 10**8]))),
    "label 2^62": _data(_saved_npz(images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, 2**62]))),
    "npy of 2^40 numbers": _data(_images(_npy((2**40, 8, 8)), 2)),
    "npy of 20,000 sizes": _data(_images(_npy((1,) * 20_000, content=b"\0"), 1)),
    "npy header of brackets": _data(_images(b"\x93NUMPY\x02\x00" + struct.pack("<I", 60_000) + b"(" * 60_000, 1)),
    "npz that inflates": _data(_images(lambda: _npy((10**6, 28, 28), content=bytes(784 * 10**6)), 10**6)),
    "class names of 100 MB": _data(
        _images(_npy((1, 8, 8), content=bytes(64)), 1, lambda: _npy((1,), "<U99999999", bytes(399_999_996)))
    ),
    "gz that inflates": Bomb(_file("t10k-images-idx3-ubyte.gz", _idx), _IDX),
    "tar.gz that inflates": Bomb(_file("cifar-10-python.tar.gz", _tar), READERS["cifar10-tar"].read),
    "picture of 7000 x 7000 in 95 KB": Bomb(_file("a.png", lambda: _picture(7000)), READERS["png"].read),
    "picture of 30000 x 30000": Bomb(_file("a.png", lambda: _picture(30_000, "1")), READERS["png"].read),
    ".mat that inflates": Bomb(_file("train_32x32.mat", _mat), readers._read_named("svhn", "train")),
    ".npy of 2^40 numbers": Bomb(_file("fog.npy", _npy((2**40, 32, 32, 3))), _corrupted),
    ".npy of objects": Bomb(_file("fog.npy", _npy((1,), "|O", bytes(8))), _corrupted),
    "100 pictures of 3000 x 3000": Bomb(_many_pictures, readers._read_named("/pictures")),
    "10^8 lines in a list": Bomb(_long_list, READERS["tiny-imagenet"].read),
    "10^8 levels": _text(b"log:100000000:0.5:3:flat"),
    "levels up to 1e30": _text(b"log:8:0.5:1e30:flat"),
    "levels from 1e-30": _text(b"log:8:1e-30:3:flat"),
    "levels 3 to 0.5": _text(b"log:8:3:0.5:flat"),
    "levels nan": _text(b"log:8:nan:3:flat"),
    "LM of 10^9 steps": Bomb(*_settings(lm="paper-v2,steps=1000000000")),
    "LM of radius nan": Bomb(*_settings(lm="paper-v2,eta=nan")),
    "LM at sigma 1e30": Bomb(*_settings(lm="paper-v2,sigma_max=1e30")),
    "JSON of 100,000 brackets, levels": _json(b"[" * 100_000),
    "JSON of 100,000 brackets, benchmarks": Bomb(_file("bench.json", b"[" * 100_000), READERS["benchmarks"].read),
    "JSON in UTF-16": _json(_LEVELS.encode("utf-16"), _HARMLESS),
    "JSON with a byte order mark": _json(b"\xef\xbb\xbf" + _LEVELS.encode(), _HARMLESS),
    **_pointers(),
}
