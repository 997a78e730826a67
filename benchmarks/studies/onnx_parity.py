"""PyTorch and an exported file on the same images: decisions, losses, log-probabilities, pixels after likelihood maximisation.

python -m benchmarks.studies.onnx_parity --model fashion-mnist --n 512 --out benchmarks/results/onnx-parity.json
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rdc
from benchmarks.starting import start
from rdc.export import export_onnx
from rdc.runtime import OnnxClassifier
from rdc.storage.json_files import write_json

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--data", default="fashion-mnist-sample")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--lm", default="paper-v2")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    classifier = rdc.load(args.model, lm=args.lm)
    pixels = rdc.load_dataset(args.data).pixels(range(args.n))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        started = time.monotonic()
        summary = export_onnx(classifier, path, precision=args.precision)
        seconds = time.monotonic() - started
        model = OnnxClassifier(path)
    result = {
        "model": args.model,
        "images": len(pixels),
        "lm": args.lm,
        "precision": args.precision,
        "export_seconds": round(seconds, 1),
        "bytes_over_float32_weights": summary["bytes"] / summary["weights_bytes"],
        "provider": model.provider,
        "torch": torch.__version__,
        "dc": compare(classifier.with_(lm=None), model, pixels, steps=0),
        "rdc": compare(classifier, model, pixels, steps=classifier.lm.steps),
        "dc against float64": against_float64(classifier.with_(lm=None), model, pixels),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        write_json(args.out, result)


def compare(classifier: Any, model: OnnxClassifier, pixels: torch.Tensor, steps: int) -> dict[str, Any]:
    """Largest differences over all images; those of losses and log-probabilities relative to the largest of each image."""
    found, log_p, losses, moved = [], [], [], []
    with torch.no_grad():
        for part in pixels.split(BATCH):
            found.append(model(part.numpy(), lm_steps=steps))
            purified = classifier.purify(part)
            losses.append(classifier.with_(lm=None).class_losses(purified.clamp(0, 1)))
            log_p.append(classifier.with_(lm=None)(purified.clamp(0, 1)))
            moved.append(purified)
    log_p, losses, moved = (torch.cat(parts).numpy() for parts in (log_p, losses, moved))
    onnx_log_p, onnx_losses = (
        np.concatenate([getattr(p, name) for p in found]) for name in ("log_probabilities", "class_losses")
    )
    away = np.abs(np.concatenate([p.purified_pixels for p in found]) - moved)
    return {
        "decisions_equal": int((onnx_log_p.argmax(1) == log_p.argmax(1)).sum()),
        "log_probabilities_relative": float(_relative(onnx_log_p, log_p)),
        "class_losses_relative": float(_relative(onnx_losses, losses)),
        "pixels_within_1e-5": float((away < 1e-5).mean()),
        "pixels_within_1e-4": float((away < 1e-4).mean()),
        "pixels_largest_difference": float(away.max()),
    }


def against_float64(classifier: Any, model: OnnxClassifier, pixels: torch.Tensor) -> dict[str, float]:
    """How far the log-probabilities of PyTorch and of the file, both float32, are from float64's, relative to an image's largest."""
    exact = type(classifier)(copy.deepcopy(classifier.denoiser).double(), **classifier.settings())
    truth, torch_log_p, onnx_log_p = [], [], []
    with torch.no_grad():
        for part in pixels.split(BATCH // 4):
            truth.append(exact(part.double()).numpy())
            torch_log_p.append(classifier(part).numpy())
            onnx_log_p.append(model(part.numpy(), lm_steps=0).log_probabilities)
    truth, torch_log_p, onnx_log_p = (np.concatenate(parts) for parts in (truth, torch_log_p, onnx_log_p))
    return {"torch": float(_relative(torch_log_p, truth)), "file": float(_relative(onnx_log_p, truth))}


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return (np.abs(a - b).max(1) / np.abs(b).max(1)).max()


if __name__ == "__main__":
    start(main)
