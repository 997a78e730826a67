"""What the tests of the command line's edge work on: a tiny model, its images and runs, in a folder with a hostile name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from rdc.cli import main
from rdc.networks.unet import SongUNet
from tests.evaluation_models import grey, save_tiny
from tests.tiny_models import randomize

ROOT = Path(__file__).resolve().parents[2]
NAME = os.fsdecode(b"caf\xc3\xa9-\xff\n")  # a letter beyond ASCII, a byte that is no UTF-8, a line break
PROGRAM = """
import json, os, sys
sys.path.insert(0, sys.argv[3])
from rdc.cli import main
commands = [[os.fsdecode(bytes.fromhex(word)) for word in words] for words in json.load(open(sys.argv[1]))]
json.dump([main(words) for words in commands], open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """The folder: tiny(.json, .safetensors), blobs.npz, image.png, finished runs run and gradients, tiny.onnx, bench.json."""
    folder = tmp_path_factory.mktemp("edge") / NAME
    folder.mkdir()
    save_tiny(folder)
    Image.fromarray(grey((8, 8))).save(folder / "image.png")
    net = SongUNet(8, 1, 1, label_dim=3, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])
    save_file(randomize(net).state_dict(), str(folder / "weights.safetensors"))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    statistics = {"median": 1.0, "iqr": 0.1, "rounds": 5}
    rounds = {"name": "a\u221e", "fullname": "a\u221e", "stats": {**statistics, "data": [1.0, 1.1, 0.9, 1.0, 1.0]}}
    (folder / "bench.json").write_text(json.dumps({"benchmarks": [rounds], "commit_info": {"id": "0"}}))
    for name in ("run", "gradients", "export"):
        assert main([*commands(folder)[name], "--quiet"]) == 0
    return folder


def commands(folder, runs="run"):
    """Name -> a short command that prints, with hostile names in it; evaluations go on in the folder ``runs``."""
    model, data = str(folder / "tiny"), str(folder / "blobs.npz")
    evaluate = ["evaluate", "--model", model, "--data", data, "--n", "4", "--device", "cpu", "--eps", "4/255"]
    evaluate += ["--sanity", "0", "--steps", "2", "--attacks", "apgd-ce", "--out", str(folder / runs)]
    gradients = [
        "gradients",
        "--model",
        f"{model}@label=\u221e",
        "--data",
        data,
        "--n",
        "2",
        "--draws",
        "0",
        "--samples",
        "1",
    ]
    gradients += ["--ascent-steps", "1", "--steps", "2", "--slices", "0", "--device", "cpu"]
    likelihood = ["likelihood", "--model", model, "--data", data, "--n", "2", "--steps", "1", "--elbo-levels", "1"]
    likelihood += ["--device", "cpu"]
    images = [str(folder / name) for name in ("image.png", "broken.png", "absent.png")]
    return {
        "info": ["info"],
        "run": evaluate,
        "json": [*evaluate, "--format", "json"],
        "markdown": [*evaluate, "--format", "markdown"],
        "compare": ["compare", str(folder / runs), str(folder / runs), "--draws", "100"],
        "gradients": [*gradients, "--out", str(folder / f"{runs}-gradients")],
        "likelihood": [*likelihood, "--out", str(folder / f"{runs}-likelihood")],
        "classify": ["classify", "--model", model, *images],
        "export": ["export", model, str(folder / "tiny.onnx"), "--no-check"],
        "predict": ["predict", "--onnx", str(folder / "tiny.onnx"), *images],
        "bench": ["bench", "compare", str(folder / "bench.json"), str(folder / "bench.json")],
        "convert": ["convert", str(folder / "weights.safetensors"), str(folder / "converted")],
        "sample": ["sample", model, "--out", str(folder / "samples.png"), "--per-class", "1", "--steps", "1"],
        "help": ["gradients", "--help"],
    }


def run_all(wanted, folder, *, redirect="", **environment):
    """Run commands in one process with this environment: (status of each, stdout, stderr), the last two as bytes."""
    listed, answers = folder / "commands.json", folder / "statuses.json"
    listed.write_text(json.dumps([[os.fsencode(word).hex() for word in words] for words in wanted]))
    answers.unlink(missing_ok=True)
    start = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(listed), str(answers), str(ROOT)]
    if redirect:
        start = ["sh", "-c", f'exec "$@" {redirect}', "sh", *start]
    child = subprocess.run(
        start, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, cwd=folder, capture_output=True, timeout=300
    )
    assert answers.exists(), child.stderr.decode(errors="replace")
    return json.loads(answers.read_text()), child.stdout, child.stderr
