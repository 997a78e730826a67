"""Exported classifiers without PyTorch: needs numpy and onnxruntime (pillow for image files).

>>> from rdc.runtime import OnnxClassifier
>>> model = OnnxClassifier("fashion-mnist.onnx")
>>> model(["shoe.png"]).names
['Ankle boot']
"""

from __future__ import annotations

from rdc.runtime.classifier import OnnxClassifier
from rdc.runtime.predictions import Predictions

__all__ = ["OnnxClassifier", "Predictions"]
