"""What is checked before a file is written: it is valid ONNX, and it answers as PyTorch does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rdc.errors import RdcError

__all__ = ["check_model"]

#: largest difference of class losses, relative to the largest loss: sums in another order, and half precision's 11 bits
_TOLERANCE = {"float32": 1e-4, "float16-weights": 1e-4, "float16": 2e-2}


def check_model(classifier: Any, content: bytes, precision: str) -> None:
    """Raise unless ``content`` is valid ONNX and, where onnxruntime is installed, gives PyTorch's class losses for two images.

    LM is left out of the comparison (its default presets move by signs, which amplify rounding); it has to run and to
    return finite numbers.

    Raises:
        RdcError: it does not.
    """
    import onnx

    try:
        onnx.checker.check_model(content, full_check=True)
    except onnx.checker.ValidationError as error:
        raise RdcError(f"export: the model made is not valid ONNX ({error}); this is a bug in rdc") from error
    if precision == "int8":  # it is compared with its file in float32, see rdc.export.int8
        return
    try:
        import onnxruntime
    except ImportError:
        return
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    grey = torch.rand((2, *classifier.image_shape), generator=torch.Generator().manual_seed(1))
    grey = (grey * 255).round()
    feed = {"pixels": grey.to(torch.uint8).numpy() if session.get_inputs()[0].type == "tensor(uint8)" else None}
    if feed["pixels"] is None:
        feed["pixels"] = (grey / 255).numpy()
    judged = grey / 255
    if classifier.lm is None:
        found = session.run(["class_losses"], feed)[0]
    else:
        found, moved = session.run(["class_losses", "purified_pixels"], feed)
        if not np.isfinite(found).all():
            raise RdcError("export: likelihood maximisation gives NaN or infinity in onnxruntime; nothing was written")
        if any(entry.name == "lm_steps" for entry in session.get_inputs()):
            (found,) = session.run(["class_losses"], {**feed, "lm_steps": np.array(0, np.int64)})
        else:
            judged = torch.from_numpy(moved)
    rounded = _rounded(classifier) if precision != "float32" else classifier
    with torch.no_grad():
        expected = rounded.with_(lm=None).class_losses(judged.clamp(0, 1)).numpy()
    far = np.abs(found - expected).max() / np.abs(expected).max()
    if not far <= _TOLERANCE[precision]:
        raise RdcError(
            f"export: class losses of onnxruntime and PyTorch differ by {far:.2g} of the largest (expected at most "
            f"{_TOLERANCE[precision]:g}); nothing was written"
        )


def _rounded(classifier: Any) -> Any:
    """The classifier with its weights rounded to float16, as they are stored."""
    import copy

    denoiser = copy.deepcopy(classifier.denoiser)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(parameter.half().float())
    return type(classifier)(denoiser, **{**classifier.settings(), "precision": "float32"})
