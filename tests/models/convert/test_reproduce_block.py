"""The block of docs/reproduce_paper.md, command by command, on pickles of small networks and a few images."""

from __future__ import annotations

import json

import pytest
import torch

from rdc.cli import main
from rdc.data import Dataset, save_npz
from tests.benchmarks.test_paper_pages import REPRODUCE, commands
from tests.models.convert.edm_files import edm_object, write_pickle
from tests.networks.cases import EDM_CASES

SMALLER = [
    "--n",
    "2",
    "--batch",
    "2",
    "--steps",
    "2",
    "--levels",
    "log:2:0.2:1:flat",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--quiet",
]


@pytest.mark.slow
def test_the_block_runs(tmp_path, edm_modules, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pickle(tmp_path / "edm-cifar10-32x32-cond-vp.pkl", edm_object("ddpmpp"))
    write_pickle(tmp_path / "edm-cifar10-32x32-uncond-vp.pkl", edm_object("ddpmpp-uncond"))
    shape, classes = EDM_CASES["ddpmpp"]["image_shape"], EDM_CASES["ddpmpp"]["num_classes"]
    assert EDM_CASES["ddpmpp-uncond"]["image_shape"] == shape
    pixels = torch.randint(0, 256, (4, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = tuple(map(str, range(classes)))
    save_npz(Dataset(pixels, torch.tensor([2, 0, 1, 3]) % classes, names, "few", "test"), tmp_path / "few.npz")
    run = [words[1:] for words in commands(REPRODUCE, inline=False) if words[0] == "rdc"]
    assert [words[0] for words in run] == ["convert"] * 2 + ["evaluate"] * 5 + ["compare"] * 2
    for words in run:
        if words[0] == "evaluate":
            words += [*SMALLER, "--data", str(tmp_path / "few.npz"), *(["--eot", "2"] if "20" in words else [])]
            words += ["--attacks", "lagrange,transfer:surrogate=plain"] if "adaptive" in words else []
        assert main(words) == 0, capsys.readouterr().err
    for name, gradient, noise in (
        ("as-published", "bpda", "fresh"),
        ("exact", "exact", "fixed"),
        ("fresh", "exact", "fresh"),
    ):
        report = json.loads((tmp_path / "runs" / name / "report.json").read_text())
        assert report["classifier"]["lm"]["name"] == "paper-v2" and report["n"] == 2
        assert {attack["gradient"] for attack in report["attacks"]} == {gradient}
        assert len(report["networks"]) == 2 and (tmp_path / "runs" / name / "report.html").stat().st_size, noise
