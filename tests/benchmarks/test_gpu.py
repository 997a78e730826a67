"""benchmarks.gpu works from end to end without a GPU (--dry-run): what it would do there is not tested here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import device_timing
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import op as gpu_op
from rdc.ops import _native
from tests.tolerances import BFLOAT16_OP

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def dry(monkeypatch, capsys, tmp_path, only, *more):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--only", only, "--out", str(out), *more])
    status = gpu.main()
    return status, capsys.readouterr().out, json.loads(out.read_text())


def test_op_part(monkeypatch, capsys, tmp_path):
    status, printed, found = dry(monkeypatch, capsys, tmp_path, "sanitize,op,build")
    assert status == 0 and list(found["parts"]) == ["build", "sanitize", "op"]  # the build comes first
    rows = found["parts"]["op"]["rows"]
    assert len(rows) == 4 and all(row["eager"]["median"] > 0 and 0 < row["eager"]["of_roofline"] for row in rows)
    assert "NOT YET RUN ON A GPU" in printed and found["about"]["machine"]["gpu_label"] == "not yet run on a GPU"
    assert all("native" not in row and row["triton"].keys() & {"error", "tried"} for row in rows)


@pytest.mark.skipif(bool(_native.why_not("cpu")), reason="needs a second implementation: the native one")
def test_what_differs_is_not_timed(monkeypatch, capsys, tmp_path):
    rows = dry(monkeypatch, capsys, tmp_path, "op", "--native")[2]["parts"]["op"]["rows"]
    assert all(row["native"]["median"] > 0 and row["native"]["difference"] < BFLOAT16_OP for row in rows)
    monkeypatch.setattr(gpu_op, "MOST", {"tf32": 1e-30, "bfloat16": 1e-30})
    rows = dry(monkeypatch, capsys, tmp_path, "op", "--native")[2]["parts"]["op"]["rows"]
    assert all("not timed" in row["native"]["error"] and "median" not in row["native"] for row in rows)
    assert not any(row["speedup"] for row in rows)


def test_network_part(monkeypatch, capsys, tmp_path):
    status, _, found = dry(monkeypatch, capsys, tmp_path, "network")
    rows = found["parts"]["network"]["rows"]
    cases = {(row["work"], row["precision"]) for row in rows}
    assert status == 0 and len(rows) == 4 and len(cases) == 4
    assert all(row["images_per_second"] > 0 and row["tflops"] > 0 for row in rows)
    flops = {row["work"]: row["tflops"] * row["median"] for row in rows}
    assert 1.8 < flops["input gradient"] / flops["prediction"] < 2.1  # as much again backwards, but for the first layer


@pytest.mark.slow
def test_timed_parts(monkeypatch, capsys, tmp_path):
    parts = [name for name in gpu.PARTS if name != "test"]
    status, printed, found = dry(monkeypatch, capsys, tmp_path, ",".join(parts))
    assert status == 0, printed
    assert list(found["parts"]) == parts and "NOT YET RUN ON A GPU" in found["label"] and found["label"] in printed
    assert printed.strip().splitlines()[-1].lstrip().startswith("train")  # the table comes last
    for name in ("op", "classify", "attack", "network", "batch", "train"):
        rows = found["parts"][name]["rows"]
        assert rows and all(row.get("median", row.get("eager", {}).get("median", 0)) > 0 for row in rows)
    assert {row["mode"] for row in found["parts"]["attack"]["rows"]} == {"dc exact", "rdc exact", "rdc bpda"}
    assert all(row["cosine_to_float32"] > 0.9 for row in found["parts"]["classify"]["rows"])
    assert set(found["peaks"]) == {"float32", "tf32", "bfloat16", "bytes"}


@pytest.mark.slow
def test_the_part_that_tests(monkeypatch, capsys, tmp_path):
    status, printed, found = dry(monkeypatch, capsys, tmp_path, "test")
    assert status == 0 and found["parts"]["test"]["status"] == 0 and "selected" in found["parts"]["test"]["line"]


def test_a_part_that_fails_does_not_end_the_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(gpu.PARTS, "op", lambda run: 1 / 0)
    status, printed, found = dry(monkeypatch, capsys, tmp_path, "op,sanitize")
    assert status == 1 and "FAILED: ZeroDivisionError" in printed and "sanitize" in found["parts"]


def test_no_time_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--minutes", "0.01", "--only", "op"])
    assert gpu.main() == 0 and "left out: no time left" in capsys.readouterr().out


def test_wrong_use(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--cases", "K10 c64,K7"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--cases: expected some of K10 c64" in capsys.readouterr().err

    def start(*words):
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", *words], cwd=ROOT, capture_output=True, text=True
        )

    if not torch.cuda.is_available():
        done = start("--only", "op")
        assert done.returncode == 2 and "--dry-run" in done.stderr


def test_flops_are_counted():
    """Two convolutions whose operations are known; one gradient costs twice a forward pass's."""
    x, w = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    forward = 2 * 2 * 5 * 3 * 9 * 64
    assert device_timing.flops_of(lambda: torch.conv2d(x, w, padding=1)) == forward
    leaf = x.clone().requires_grad_()
    assert device_timing.flops_of(lambda: torch.conv2d(leaf, w, padding=1).sum().backward()) == 2 * forward


def test_roofline():
    top = {"float32": 1e12, "bytes": 1e11}
    found = device_timing.roofline(0.01, 5e9, 2e8, top, "float32")
    assert found == {"tflops": 0.5, "of_peak": 0.5, "bound": "compute", "of_roofline": 0.5}
    found = device_timing.roofline(0.01, 1e9, 8e8, top, "float32")
    assert found["bound"] == "memory" and found["of_roofline"] == pytest.approx(0.8) and found["of_peak"] == 0.1


def test_precision_is_put_back():
    before = torch.backends.cuda.matmul.allow_tf32
    with device_timing.precision("tf32", CPU):
        assert torch.backends.cuda.matmul.allow_tf32
    with device_timing.precision("bfloat16", CPU):
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == torch.bfloat16
    assert torch.backends.cuda.matmul.allow_tf32 == before
