"""Write a classifier into one ONNX file, and classify with it where there is no PyTorch.

python examples/export_and_predict.py
"""

import tempfile
from pathlib import Path

import rdc
from rdc.export import export_onnx
from rdc.runtime import OnnxClassifier

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "fashion.onnx"
    export_onnx(rdc.load("fashion-mnist"), path)
    found = OnnxClassifier(path)(
        rdc.load_dataset("fashion-mnist-sample")[:4].images.numpy()
    )  # uint8, or paths of pictures
    for name, confidence in zip(found.names, found.confidence, strict=True):
        print(f"{name}: {100 * confidence:.0f} %")
