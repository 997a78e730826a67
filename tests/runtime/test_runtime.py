"""Exported files without PyTorch."""

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from rdc.cli import main
from rdc.errors import CheckpointError, ConfigError, InputError
from rdc.export import export_onnx
from rdc.runtime import OnnxClassifier
from tests.evaluation_models import NAMES, grey
from tests.runtime.conftest import THRESHOLD
from tests.tolerances import ONNX_LOG_PROBABILITIES, ONNX_PARITY, ONNX_PIXELS, PROBABILITIES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(path):
    return OnnxClassifier(path, threads=1)


@pytest.fixture
def pictures(tmp_path):
    """Three PNG files of the right size, their pixels uint8 [3, 1, 8, 8]."""
    pixels = grey((3, 1, 8, 8))
    for number, image in enumerate(pixels):
        Image.fromarray(image[0]).save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(3)], pixels


def test_answers_are_those_of_pytorch(model, tiny):
    pixels = grey((5, 1, 8, 8))
    x = torch.from_numpy(pixels).float() / 255
    found = model(pixels)
    with torch.no_grad():
        moved, log_p = tiny.purify(x), tiny(x)
    assert np.abs(found.purified_pixels - moved.numpy()).max() < ONNX_PIXELS
    assert np.abs(found.log_probabilities - log_p.numpy()).max() < ONNX_LOG_PROBABILITIES * np.abs(log_p.numpy()).max()
    p = log_p.double().exp().numpy()
    assert np.allclose(found.probabilities, p, atol=PROBABILITIES) and np.allclose(found.probabilities.sum(1), 1)
    assert (found.labels == p.argmax(1)).all() and np.allclose(found.confidence, p.max(1), atol=PROBABILITIES)
    assert found.names == [NAMES[label] for label in p.argmax(1)] and len(found) == 5
    assert (found.abstain == (p.max(1) < THRESHOLD)).all() and 0 < found.abstain.sum() < 5
    assert (found.decision == np.where(found.abstain, -1, found.labels)).all()


def test_all_kinds_of_images(model, pictures):
    """Paths, PIL images, arrays of either type, one or many: the same pixels, the same answer."""
    files, pixels = pictures
    opened = [Image.open(file) for file in files]
    expected = model(pixels).log_probabilities
    kinds = [pixels.astype(np.float32) / 255, pixels / 255, list(pixels), files, [str(f) for f in files], opened]
    kinds += [[pixels[0], files[1], opened[2]], [pixels[0, 0], pixels[1, 0], pixels[2]], (image for image in pixels)]
    for images in kinds:
        assert np.allclose(model(images).log_probabilities, expected, atol=ONNX_LOG_PROBABILITIES)
    for image in (pixels[0], pixels[0, 0], files[0], str(files[0]), opened[0]):
        assert np.allclose(model(image).log_probabilities, expected[:1], atol=ONNX_LOG_PROBABILITIES)


def test_pieces_change_nothing(model, path):
    pixels, small = grey((7, 1, 8, 8)), OnnxClassifier(path, threads=1, memory_budget_mb=1e-6)
    assert small.images_at_once == 1 < model.images_at_once
    fits = 2.5 * model.properties["bytes_per_image"] / 2**20
    assert OnnxClassifier(path, threads=1, memory_budget_mb=fits).images_at_once == 2
    one, many = small(pixels), model(pixels)
    assert np.allclose(one.class_losses, many.class_losses, rtol=ONNX_PARITY) and (one.labels == many.labels).all()
    assert one.purified_pixels.shape == many.purified_pixels.shape == pixels.shape


def test_threads(model):
    """Calls from several threads at once get their own answers."""
    batches = [grey((1 + seed % 3, 1, 8, 8), seed) for seed in range(24)]
    alone = [model(batch).class_losses for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda batch: model(batch).class_losses, batches))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_steps_and_threshold(model, tiny):
    pixels = grey((4, 1, 8, 8))
    x = torch.from_numpy(pixels).float() / 255
    none = model(pixels, lm_steps=0)
    with torch.no_grad():
        assert np.allclose(none.class_losses, tiny.with_(lm=None).class_losses(x).numpy(), rtol=ONNX_PARITY)
        two = tiny.with_(lm="paper-v2,steps=2").purify(x).numpy()
    assert np.abs(model(pixels, lm_steps=2).purified_pixels - two).max() < ONNX_PIXELS
    assert not model(pixels, threshold=0).abstain.any() and model(pixels, threshold=1).abstain.all()
    for wrong in ({"lm_steps": 3}, {"lm_steps": -1}, {"threshold": 1.5}, {"threshold": float("nan")}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: expected"):
            model(pixels, **wrong)


def test_file_without_lm(tiny, tmp_path):
    export_onnx(tiny.with_(lm=None), tmp_path / "dc.onnx", check=False, pixel_type="uint8")
    dc, pixels = OnnxClassifier(tmp_path / "dc.onnx", threads=1), grey((2, 1, 8, 8))
    assert dc.max_lm_steps == 0 and dc(pixels, lm_steps=0).purified_pixels is None
    with torch.no_grad():
        losses = tiny.with_(lm=None).class_losses(torch.from_numpy(pixels).float() / 255).numpy()
    assert np.allclose(dc(pixels).class_losses, losses, rtol=ONNX_PARITY)
    assert np.array_equal(dc(pixels / 255).class_losses, dc(pixels).class_losses)
    with pytest.raises(ConfigError, match="exported without LM"):
        dc(pixels, lm_steps=1)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), "resize or convert"),
        (np.zeros((2, 8, 8, 1), np.uint8), "channels come first"),
        (np.zeros((1, 28, 28), np.uint8), r"got shape \[1, 28, 28\]"),
        (np.zeros((0, 1, 8, 8), np.uint8), "empty batch"),
        (np.zeros((2, 1, 8, 8), np.int64), "got int64"),
        (np.full((1, 8, 8), 2.0), "values from 2 to 2"),
        (np.full((1, 8, 8), np.nan), "remove NaN"),
        ([], "empty sequence"),
        ([np.zeros((2, 1, 8, 8), np.uint8)], "one image in each entry"),
        (torch.zeros(1, 1, 8, 8), "use .numpy"),
        ([3], "got int"),
        (None, "got NoneType"),
        ("no-such-file.png", "no-such-file.png: no such file"),
    ],
)
def test_wrong_images(model, images, words):
    with pytest.raises(InputError, match=words):
        model(images)


def test_pixels_off_by_rounding_are_on_the_box(model):
    x = grey((2, 1, 8, 8)).astype(np.float32) / 255
    x[:, :, 0], x[:, :, 1] = 1, 0
    off = x.copy()
    off[:, :, 0], off[:, :, 1] = 1 + 1.2e-7, -1e-7
    assert np.array_equal(model(off).log_probabilities, model(x).log_probabilities)
    off[0, 0, 0, 0] = 1.00001
    with pytest.raises(InputError, match=r"to 1\.00001"):
        model(off)


def test_a_pickle_answers_the_same_where_the_file_is_not(tiny, path, tmp_path):
    own = tmp_path / "own.onnx"
    own.write_bytes(Path(path).read_bytes())
    model = OnnxClassifier(own, threads=1, memory_budget_mb=5)
    content = pickle.dumps(model)
    own.write_bytes(own.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="own.onnx: another file than the one that was opened"):
        pickle.dumps(model)
    own.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        pickle.dumps(model)
    again, images = pickle.loads(content), grey((3, 1, 8, 8))
    for name in ("images_at_once", "properties", "class_names", "provider", "image_shape", "max_lm_steps"):
        assert getattr(again, name) == getattr(model, name)
    assert np.array_equal(again(images).log_probabilities, model(images).log_probabilities)


def test_a_worker_process_gets_a_pickle(path):
    model, images = OnnxClassifier(path, threads=1), grey((3, 1, 8, 8))
    program = "import pickle, sys; m, x = pickle.load(sys.stdin.buffer); print(m(x).labels.tolist()); assert 'torch' not in sys.modules"
    given = pickle.dumps((model, images))
    done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == model(images).labels.tolist()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_one_unit_of_rounding_above_one_is_one(model, kind):
    x = np.full((1, 1, 8, 8), 1, kind)
    off = x + np.finfo(kind).eps
    assert off.max() > 1 and np.array_equal(model(off).log_probabilities, model(x).log_probabilities)


# --- files and providers --------------------------------------------------------------------------------------------


def test_damaged_files(path, tmp_path):
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "empty": b"",
        "short": content[:-100],
        "half": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "other": b"not a model at all",
        "longer": content + b"x",
    }
    for name, value in damaged.items():
        (tmp_path / name).write_bytes(value)
        with pytest.raises(CheckpointError, match=rf"{name}: .*(again|expected)"):
            OnnxClassifier(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        OnnxClassifier(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="not a file by rdc export"):
        OnnxClassifier(tmp_path / "longer", verify=False)


def test_format_of_the_future(path, tmp_path):
    import onnx

    model = onnx.load(path)
    next(entry for entry in model.metadata_props if entry.key == "rdc.format").value = "3"
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(CheckpointError, match="SHA-256"):
        OnnxClassifier(tmp_path / "a.onnx")
    with pytest.raises(CheckpointError, match="format '3'; this rdc reads 1 and 2"):
        OnnxClassifier(tmp_path / "a.onnx", verify=False)


def test_providers(path, model, monkeypatch):
    assert model.provider == f"CPU (this onnxruntime has no CUDA), onnxruntime {onnxruntime.__version__}"
    assert OnnxClassifier(path, provider="cpu").provider.startswith("CPU, onnxruntime")
    with pytest.raises(
        ConfigError, match=r"this onnxruntime has .*CPUExecutionProvider.*robust-diffusion-classifier\[gpu\]"
    ):
        OnnxClassifier(path, provider="cuda")
    with pytest.raises(ConfigError, match="expected auto, cpu or cuda; got 'tpu'"):
        OnnxClassifier(path, provider="tpu")
    # A build with CUDA on a machine without: onnxruntime warns and falls back to the CPU.
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    real, asked = onnxruntime.InferenceSession, []

    def fallback(content, options, providers):
        asked.append(providers)
        return real(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fallback)
    assert OnnxClassifier(path).provider.startswith("CPU (CUDA did not start)") and asked == [both]
    with pytest.raises(ConfigError, match="could not start CUDA"):
        OnnxClassifier(path, provider="cuda")


@pytest.mark.parametrize("setting", [{"memory_budget_mb": 0}, {"threads": 0}])
def test_wrong_settings(path, setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))}: expected"):
        OnnxClassifier(path, **setting)


def without_torch(program, *arguments):
    """Run Python where importing torch, onnx or anything else of the exporting side fails."""
    missing = "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'safetensors', 'matplotlib')))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", missing + program, *map(str, arguments)], env=environment, capture_output=True, text=True
    )


def test_needs_no_torch(path, pictures):
    program = (
        "from rdc.runtime import OnnxClassifier; model = OnnxClassifier(sys.argv[1], threads=1)\n"
        "print(*model(sys.argv[2:]).labels, [name for name in sys.modules if name.startswith('torch') and sys.modules[name]])"
    )
    done = without_torch(program, path, *pictures[0])
    assert done.returncode == 0, done.stderr
    expected = OnnxClassifier(path, threads=1)(pictures[0]).labels
    assert done.stdout.split() == [*map(str, expected), "[]"]


def test_without_onnxruntime(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="pip install onnxruntime"):
        OnnxClassifier(path)


# --- rdc predict ----------------------------------------------------------------------------------------------------


def test_command(path, model, pictures, tmp_path):
    files, pixels = pictures
    (tmp_path / "bad.png").write_text("no picture")
    program = "from rdc.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["predict", "--onnx", path, "--batch", 2, "--threads", 1, files[0], tmp_path / "bad.png", *files[1:]]
    done = without_torch(program, *arguments)
    assert done.returncode == 1, done.stderr
    assert "on CPU" in done.stderr and "bad.png: not a PNG or JPEG file" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["0.png", "bad.png", "1.png", "2.png"]
    assert "error" in lines.pop(1)
    found = model(pixels)
    for row, line in enumerate(lines):
        assert line["label"] == found.labels[row] and line["class"] == found.names[row]
        assert line["confidence"] == pytest.approx(found.confidence[row], abs=PROBABILITIES)
        assert line["abstain"] == found.abstain[row] and line["notices"] == []
        values = list(line["probabilities"].values())
        assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1)


def test_command_options(path, pictures, capsys):
    files, _ = pictures
    assert main(["predict", "--onnx", str(path), "--lm-steps", "0", "--threshold", "1", "--invert", str(files[0])]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["abstain"] and line["notices"] == ["inverted"]
    for change, words in (
        (["--lm-steps", "9"], "expected 0..2"),
        (["--provider", "cuda"], "robust-diffusion-classifier[gpu]"),
    ):
        assert main(["predict", "--onnx", str(path), *change, str(files[0])]) == 2
        assert words in capsys.readouterr().err
    assert main(["predict", str(files[0])]) == 2 and "--onnx" in capsys.readouterr().err
