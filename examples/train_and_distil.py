"""Train a diffusion model on pictures, make a fast student of it, and look at what it decides. Seconds, so far too short to be good.

python examples/train_and_distil.py
"""

import tempfile

import numpy as np

import rdc
from rdc.cli import main
from rdc.data import save_splits

generator = np.random.default_rng(0)
labels = np.arange(240) % 3
images = generator.integers(0, 60, (240, 16, 16, 3), dtype=np.uint8)
images[np.arange(240), :, :, labels] += 120  # three colours

with tempfile.TemporaryDirectory() as folder:
    data = rdc.data.as_dataset(images, labels, class_names=("red", "green", "blue"))
    save_splits(data[:200], data[200:], f"{folder}/colours.npz")
    common = ["--data", f"{folder}/colours.npz", "--batch-size", "32", "--threads", "1", "--quiet"]
    assert main(["train", *common, "--network", "tiny", "--images", "2560", "--out", f"{folder}/teacher"]) == 0
    teacher = ["--teacher", f"{folder}/teacher/model", "--images", "1280", "--out", f"{folder}/student"]
    assert main(["distill", *common, *teacher]) == 0
    student = rdc.load(f"{folder}/student/model")
    print("right:", float((student(data[200:].pixels()).argmax(1) == data[200:].labels).float().mean()))
