"""Every reader of rdc: a small valid file, and what is read from it in words that can be compared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz.mutations import gzipped

__all__ = ["READERS", "Reader"]


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Args:
        make: writes valid files into a folder.
        read: reads them and says what came, as text; raises what the reader raises.
        files: the files (relative) that are changed, and how: "bytes", "json", "pickle", "text".
        inside: for zip files: kinds of members by the end of their names; half of the changes are made inside, with right checksums.
        checked: the files carry checksums: a change that is accepted must not change what is read.
        whole: reading needs every file of the folder anew (it is changed by reading).
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], str]
    files: dict[str, str]
    inside: dict[str, str] | None = None
    checked: bool = False
    whole: bool = False


def _digest(*values: Any) -> str:
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous().numpy()
        sha.update(
            value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode("utf-8", "backslashreplace")
        )
    return sha.hexdigest()[:16]


def _of_network(loaded: tuple) -> str:
    network, config, info = loaded
    return _digest(*network.state_dict().items(), json.dumps(config, sort_keys=True), json.dumps(info, sort_keys=True))


# --- Checkpoints ----------------------------------------------------------------------------------------------------------------------


def _converted(folder: Path, name: str) -> str:
    from rdc.models.checkpoints import load_model
    from rdc.models.convert import convert_checkpoint

    convert_checkpoint(folder / name, folder / "made" / "model")
    network, config, _info = load_model(folder / "made" / "model")
    return _of_network((network, config, {}))


def _state() -> dict[str, torch.Tensor]:
    from tests.networks.cases import edm_network

    return dict(edm_network("ddpmpp", torch.float32).state_dict())


def _make_pt(folder: Path) -> None:
    torch.save({"ema": _state(), "step": 5, "args": {"lr": 1e-4}}, folder / "net.pt")


def _make_legacy(folder: Path) -> None:
    torch.save(_state(), folder / "net.pt", _use_new_zipfile_serialization=False)


def _make_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(_state(), folder / "net.safetensors")


def _make_edm(folder: Path) -> None:
    import sys
    import types

    from tests.models.convert import edm_files

    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("code in a file was run")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    utils, easy = types.ModuleType("dnnlib"), types.ModuleType("dnnlib.util")
    before = edm_files.EasyDict.__module__, edm_files.EasyDict.__qualname__
    edm_files.EasyDict.__module__, edm_files.EasyDict.__qualname__, easy.EasyDict = (
        "dnnlib.util",
        "EasyDict",
        edm_files.EasyDict,
    )
    sys.modules |= {"dnnlib": utils, "dnnlib.util": easy}
    edm_files.write_pickle(folder / "net.pkl", edm_files.edm_object("ddpmpp"))
    edm_files.EasyDict.__module__, edm_files.EasyDict.__qualname__ = before
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        del sys.modules[name]


def _make_checkpoint(folder: Path) -> None:
    from tests.evaluation_models import save_tiny

    save_tiny(folder)


def _read_checkpoint(folder: Path) -> str:
    from rdc.models.checkpoints import load_model
    from rdc.models.zoo import load

    loaded = load_model(folder / "tiny")
    load(str(folder / "tiny"))
    return _of_network(loaded)


def _make_diffusers(folder: Path) -> None:
    from tests.models.convert.test_diffusers_folder import DDPM, diffusers_folder

    diffusers_folder(folder / "pipe", scheduler=DDPM)


# --- Data -----------------------------------------------------------------------------------------------------------------------------


def _of_data(dataset: Any) -> str:
    return _digest(dataset.images, dataset.labels, dataset.class_names, dataset.indices)


def _make_npz(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(
        folder / "data.npz",
        images=rng.integers(0, 256, (12, 8, 8), dtype=np.uint8),
        labels=np.arange(12, dtype=np.uint8) % 3,
        class_names=np.array(["a", "b", "c"]),
    )


def _read_npz(folder: Path) -> str:
    from rdc.data import load_dataset

    return _of_data(load_dataset(str(folder / "data.npz"), "test"))


def _small_cifar() -> None:
    from rdc.data import cifar10

    cifar10.RECORDS = 4


def _cifar_files() -> dict[str, np.ndarray]:
    from tests.data.test_cifar10 import records

    return records()


def _make_cifar(folder: Path, version: str, archive: bool = False) -> None:
    from tests.data.test_cifar10 import as_files

    _small_cifar()
    inner = "cifar-10-batches-bin" if version == "bin" else "cifar-10-batches-py"
    files = as_files(_cifar_files(), version)
    if archive:
        import tarfile

        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(f"{inner}/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        (folder / "cifar-10-python.tar.gz").write_bytes(gzipped(made.getvalue()))
        return
    (folder / inner).mkdir()
    for name, content in files.items():
        (folder / inner / name).write_bytes(content)


def _read_cifar(folder: Path) -> str:
    from rdc.data.cifar10 import load_cifar10

    _small_cifar()
    return _of_data(load_cifar10("test", folder, verify=False))


def _make_idx(folder: Path, zipped: bool) -> None:
    from rdc.data.fashion_mnist import FILES

    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8), rng.integers(0, 10, 6, dtype=np.uint8)
    for file, array in zip(FILES["test"], arrays, strict=True):
        head = (0x0800 + array.ndim).to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in array.shape)
        content = head + array.tobytes()
        (folder / (f"{file.stem}.gz" if zipped else file.stem)).write_bytes(gzipped(content) if zipped else content)


def _read_idx(folder: Path) -> str:
    from rdc.data.fashion_mnist import load_fashion_mnist

    return _of_data(load_fashion_mnist("test", folder, verify=False))


def _make_cifar100(folder: Path) -> None:
    import pickle

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 20, 8).tolist()
    found = {b"data": rng.integers(0, 256, (8, 3072), dtype=np.uint8), b"coarse_labels": labels, b"fine_labels": labels}
    (folder / "test").write_bytes(pickle.dumps(found, 2))


def _make_mat(folder: Path) -> None:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    arrays = {"X": rng.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8), "y": np.array([[1], [2], [10], [3]], np.uint8)}
    savemat(folder / "test_32x32.mat", arrays)
    savemat(folder / "train_32x32.mat", arrays, do_compression=True)


def _read_mat(folder: Path) -> str:
    return _read_named("svhn", "test")(folder) + _read_named("svhn", "train")(folder)


def _make_npy(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "fog.npy", rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(np.array([3, 7], np.uint8), 5))


def _make_class_folders(folder: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (folder / "pictures" / name).mkdir(parents=True)
        _make_picture(folder / "pictures" / name, f"{number}.png")
        _make_picture(folder / "pictures" / name, f"{number}.jpg", quality=90)


def _make_tiny_imagenet(folder: Path) -> None:
    root = folder / "tiny-imagenet-200"
    for below in ("train", "val/images"):
        (root / below).mkdir(parents=True)
    for number in range(3):
        _make_picture(root / "val" / "images", f"{number}.JPEG")
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n01\tgoldfish, fish\nn02\ttabby\n")
    (root / "val" / "val_annotations.txt").write_text(
        "0.JPEG\tn01\t0\t0\t1\t1\n1.JPEG\tn02\t0\t0\t1\t1\n2.JPEG\tn01\t0\n"
    )


def _read_named(name: str, split: str = "test") -> Callable[[Path], str]:
    """A data set of this name in the folder; names that begin with a slash are paths below it."""

    def read(folder: Path) -> str:
        import warnings

        from rdc.data import load_dataset

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = (
                load_dataset(folder / name[1:], split)
                if name.startswith("/")
                else load_dataset(name, split, folder, verify=False)
            )
        return _of_data(found)

    return read


def _make_picture(folder: Path, name: str, **options: Any) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
        folder / name, **options
    )


def _read_picture(folder: Path, name: str) -> str:
    from rdc.images.files import read_image

    read = read_image(folder / name, (3, 20, 24))
    return _digest(read.pixels, read.notices)


# --- Small JSON files -----------------------------------------------------------------------------------------------------------------


def _make_levels(folder: Path) -> None:
    (folder / "levels.json").write_text(
        json.dumps({"sigma": [0.5, 1.0, 2.0], "weight": [1.0, 2.0, 0.5], "scheme": "x"})
    )


def _read_levels(folder: Path) -> str:
    from rdc.method.levels import parse_levels

    return repr(parse_levels(str(folder / "levels.json")))


def _make_text(folder: Path) -> None:
    (folder / "levels.txt").write_text("log:8:0.8:4:flat")


def _read_text(folder: Path) -> str:
    from rdc.method.levels import parse_levels

    return repr(parse_levels((folder / "levels.txt").read_bytes().decode("utf-8", "surrogateescape").replace("\0", "")))


def _make_lm(folder: Path) -> None:
    (folder / "lm.txt").write_text("paper-v2,steps=10,eta=0.03")


def _read_lm(folder: Path) -> str:
    from rdc.models.zoo import load

    text = (folder / "lm.txt").read_bytes().decode("utf-8", "surrogateescape").replace("\0", "")
    return repr(load("fashion-mnist", lm=text).lm)


def _make_benchmarks(folder: Path) -> None:
    entry = {"fullname": "a::b", "stats": {"data": [0.1, 0.2, 0.3, 0.25], "median": 0.2}}
    value = {
        "benchmarks": [entry, {**entry, "fullname": "a::c"}],
        "machine_info": {"node": "x"},
        "commit_info": {"id": "1"},
    }
    (folder / "bench.json").write_text(json.dumps(value))


def _read_benchmarks(folder: Path) -> str:
    from rdc.statistics.benchmark_comparison import read_benchmarks

    return repr(read_benchmarks(folder / "bench.json"))


# --- ONNX -----------------------------------------------------------------------------------------------------------------------------


def _make_onnx(folder: Path) -> None:
    from rdc.export import export_onnx
    from tests.export.files import NETWORKS, classifier_of

    export_onnx(classifier_of(NETWORKS["multihead"]), folder / "model.onnx", check=False)


def _read_onnx(folder: Path, verify: bool = True) -> str:
    from rdc.runtime import OnnxClassifier

    classifier = OnnxClassifier(folder / "model.onnx", threads=1, verify=verify)
    pixels = np.full((1, *classifier.image_shape), 0.5, dtype=np.float32)
    found = classifier(pixels)
    return _digest(np.asarray(found.log_probabilities), classifier.class_names)


# --- Folders of runs ------------------------------------------------------------------------------------------------------------------


@functools.cache
def _evaluated() -> tuple[Any, Any, Any]:
    from rdc.evaluation import EvaluationSettings
    from tests.evaluation_models import gaussian_classifier, labelled_by

    classifier = gaussian_classifier()
    settings = EvaluationSettings(
        model="gaussian", dataset="blobs", n=8, batch=4, attacks=("apgd-ce",), steps=2, eps="8/255", sanity=2
    )
    return classifier, labelled_by(classifier, 12, 3), settings


def _make_run(folder: Path) -> None:
    from rdc.reports import write_reports

    classifier, data, settings = _evaluated()
    from rdc.evaluation import evaluate

    write_reports(evaluate(classifier, data, settings, folder / "run", progress=False), classifier)


def _figures(report: dict[str, Any]) -> str:
    kept = {
        key: value for key, value in report.items() if key not in ("command", "commits", "versions", "seconds", "run")
    }
    return _digest(json.dumps(_without_times(kept), sort_keys=True))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: _without_times(v)
            for k, v in value.items()
            if k not in ("seconds", "time", "versions", "commits", "commit", "command")
        }
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _continue_run(folder: Path) -> str:
    from rdc.evaluation import evaluate

    classifier, data, settings = _evaluated()
    found = evaluate(classifier, data, settings, folder / "run", progress=False)
    return _figures(found.report) + _digest(found.x_adv, found.clean_logits, found.adversarial_logits)


def _compare_run(folder: Path) -> str:
    from rdc.evaluation.comparison import read_run

    run = read_run(folder / "run")
    found = {key: run[key] for key in ("identity", "report", "images")}
    return _digest(json.dumps(_without_times(found), sort_keys=True, default=str))


def _make_training(folder: Path) -> None:
    from rdc.training.state import RunFolder, State

    generator = torch.Generator().manual_seed(0)
    tensors = {f"network.{i}": torch.randn(4, 5, generator=generator) for i in range(6)}
    run = RunFolder(folder / "train", {"train": {"images": 100, "lr": 0.1}, "network": {"kind": "x"}})
    (folder / "train").mkdir()
    run.save(State(10, tensors, 1.5, [{"loss": 0.5}]))


def _read_training(folder: Path) -> str:
    from rdc.training.state import RunFolder

    state = RunFolder(folder / "train", {"train": {"images": 100, "lr": 0.1}, "network": {"kind": "x"}}).load()
    return "none" if state is None else _digest(state.step, *sorted(state.tensors.items()), state.window)


def _make_adversarial(folder: Path, ending: str) -> None:
    from rdc.evaluation.adversarial_files import AdversarialImages, save_adversarial

    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    save_adversarial(folder / f"adv{ending}", AdversarialImages(x, torch.arange(3), torch.tensor([2, 0, 1])))


def _read_adversarial(folder: Path, ending: str) -> str:
    from rdc.evaluation.adversarial_files import load_adversarial

    found = load_adversarial(folder / f"adv{ending}")
    return _digest(found.x_adv, found.images, found.labels)


def _make_threats(folder: Path) -> None:
    from rdc.evaluation.threat_folder import ThreatFolder
    from rdc.evaluation.threats import parse_threats

    threats = [{"threat": one.text, "folder": one.folder} for one in parse_threats("linf:8/255,l2:0.5")]
    with ThreatFolder(folder / "run", {"schema": 1, "rdc": "0", "threats": threats}):
        pass


def _read_threats(folder: Path) -> str:
    from rdc.evaluation.threat_folder import read_threats

    return _digest(json.dumps(read_threats(folder / "run"), sort_keys=True))


def _copying(read: Callable[[Path], str]) -> Callable[[Path], str]:
    """Reading changes the folder: it is done on a copy."""

    def on_copy(folder: Path) -> str:
        copy = folder.parent / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        return read(copy)

    return on_copy


_ZIP = {"data.pkl": "pickle", "version": "text", "byteorder": "text"}
READERS = {
    reader.name: reader
    for reader in (
        Reader("edm-pickle", _make_edm, lambda f: _converted(f, "net.pkl"), {"net.pkl": "pickle"}),
        Reader("pt", _make_pt, lambda f: _converted(f, "net.pt"), {"net.pt": "bytes"}, inside=_ZIP, checked=True),
        Reader("pt-legacy", _make_legacy, lambda f: _converted(f, "net.pt"), {"net.pt": "pickle"}),
        Reader("safetensors", _make_safetensors, lambda f: _converted(f, "net.safetensors"), {"net.safetensors": "text"}),
        Reader("checkpoint", _make_checkpoint, _read_checkpoint, {"tiny.json": "json", "tiny.safetensors": "bytes"}, checked=True),
        Reader(
            "diffusers", _make_diffusers, lambda f: _converted(f, "pipe"),
            {"pipe/unet/config.json": "json", "pipe/scheduler/scheduler_config.json": "json"},
        ),
        Reader("npz", _make_npz, _read_npz, {"data.npz": "bytes"}, inside={".npy": "text"}, checked=True),
        Reader("cifar10-bin", lambda f: _make_cifar(f, "bin"), _read_cifar, {"cifar-10-batches-bin/test_batch.bin": "bytes"}),
        Reader("cifar10-python", lambda f: _make_cifar(f, "python"), _read_cifar, {"cifar-10-batches-py/test_batch": "pickle"}),
        Reader("cifar10-tar", lambda f: _make_cifar(f, "python", True), _read_cifar, {"cifar-10-python.tar.gz": "bytes"}),
        Reader("cifar100-python", _make_cifar100, _read_named("cifar100"), {"test": "pickle"}),
        Reader("mat", _make_mat, _read_mat, {"test_32x32.mat": "bytes", "train_32x32.mat": "bytes"}),
        Reader("npy", _make_npy, _read_named("cifar10-c:fog:2"), {"fog.npy": "bytes", "labels.npy": "text"}),
        Reader(
            "class-folders", _make_class_folders, _read_named("/pictures"),
            {"pictures/cat/0.png": "bytes", "pictures/dog/1.jpg": "bytes"},
        ),
        Reader(
            "tiny-imagenet", _make_tiny_imagenet, _read_named("tiny-imagenet"),
            {
                "tiny-imagenet-200/wnids.txt": "text", "tiny-imagenet-200/words.txt": "text",
                "tiny-imagenet-200/val/val_annotations.txt": "text", "tiny-imagenet-200/val/images/1.JPEG": "bytes",
            },
        ),
        Reader("idx", lambda f: _make_idx(f, False), _read_idx, {"t10k-images-idx3-ubyte": "bytes", "t10k-labels-idx1-ubyte": "bytes"}),
        Reader("idx-gz", lambda f: _make_idx(f, True), _read_idx, {"t10k-images-idx3-ubyte.gz": "bytes"}),
        Reader("png", lambda f: _make_picture(f, "a.png"), lambda f: _read_picture(f, "a.png"), {"a.png": "bytes"}),
        Reader("jpeg", lambda f: _make_picture(f, "a.jpg", quality=90), lambda f: _read_picture(f, "a.jpg"), {"a.jpg": "bytes"}),
        Reader("levels-json", _make_levels, _read_levels, {"levels.json": "json"}),
        Reader("levels-text", _make_text, _read_text, {"levels.txt": "text"}),
        Reader("lm-text", _make_lm, _read_lm, {"lm.txt": "text"}),
        Reader("benchmarks", _make_benchmarks, _read_benchmarks, {"bench.json": "json"}),
        Reader("onnx", _make_onnx, _read_onnx, {"model.onnx": "bytes"}, checked=True),
        Reader("onnx-unverified", _make_onnx, lambda f: _read_onnx(f, False), {"model.onnx": "text"}),
        Reader(
            "run", _make_run, _copying(_continue_run),
            {"run/results.jsonl": "json", "run/run.json": "json", "run/sanity.json": "json", "run/batches/00000.npz": "bytes"},
            checked=True,
        ),
        Reader(
            "run-compare", _make_run, _compare_run,
            {"run/results.jsonl": "json", "run/run.json": "json", "run/report.json": "json"}, checked=True,
        ),
        Reader(
            "adversarial-npz", lambda f: _make_adversarial(f, ".npz"), lambda f: _read_adversarial(f, ".npz"), {"adv.npz": "bytes"},
            inside={".npy": "text"}, checked=True,
        ),
        Reader(
            "adversarial-pt", lambda f: _make_adversarial(f, ".pt"), lambda f: _read_adversarial(f, ".pt"), {"adv.pt": "bytes"},
            inside=_ZIP, checked=True,
        ),
        Reader("run-threats", _make_threats, _read_threats, {"run/threats.json": "json"}, checked=True),
        Reader("training", _make_training, _read_training, {"train/state.safetensors": "bytes"}, checked=True),
    )
}  # fmt: skip
