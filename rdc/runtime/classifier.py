"""An exported classifier, ready to be called."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

import numpy as np

from rdc.errors import CheckpointError, ConfigError, one_line
from rdc.runtime.inputs import as_array, as_pixels
from rdc.runtime.predictions import Predictions
from rdc.runtime.session import open_session, read_model
from rdc.storage.reading import read_content

__all__ = ["OnnxClassifier"]

_OUTPUTS = ("log_probabilities", "class_losses", "log_likelihood", "decision")


class OnnxClassifier:
    """A classifier from one file. Calls may come from several threads at once: nothing is changed by them.

    It can be pickled, for worker processes and other machines: the pickle holds the file's bytes, read again and compared with those
    of the file that was opened.

    Args:
        path: a file written by ``rdc export``.
        provider: "auto" (CUDA where it works, else CPU), "cpu" or "cuda".
        threads: CPU threads; None: onnxruntime chooses.
        memory_budget_mb: working memory of a call in MiB, what onnxruntime keeps for later ones included; larger batches are cut into
            pieces. One image at least is worked on, whatever it needs.
        verify: compare the file's digest.

    Attributes:
        image_shape: (C, H, W).
        class_names: K names.
        properties: everything that the file says about itself; see docs/deployment.md.
        provider: what runs it and why, in words.
        images_at_once: how many images fit the memory budget (at least 1).
        max_lm_steps: largest ``lm_steps``; 0: no likelihood maximisation in this file.
        card: what is known of the model, for people: licence, training data, robust accuracy, origin, noise; see docs/deployment.md.

    Raises:
        CheckpointError: missing, damaged, or not such a file.
        ConfigError: onnxruntime or the provider is missing; a setting is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        provider: str = "auto",
        threads: int | None = None,
        memory_budget_mb: float = 1024,
        verify: bool = True,
    ) -> None:
        if not 0 < memory_budget_mb < math.inf:
            raise ConfigError(f"memory_budget_mb: expected a number > 0; got {memory_budget_mb}")
        if threads is not None and not 1 <= threads < 2**16:
            raise ConfigError(f"threads: expected None or an integer >= 1; got {threads}")
        self._file = os.path.abspath(path)
        content = read_model(path, verify)
        self._sha256 = hashlib.sha256(content).hexdigest()
        self._opened = (provider, threads, memory_budget_mb)
        self._open(content, one_line(os.fspath(path), 400))

    def _open(self, content: bytes, name: str) -> None:
        """Start a session on a file's bytes; ``name`` is what errors call it."""
        self._path = name
        provider, threads, memory_budget_mb = self._opened
        self._session, self.properties, self.provider = open_session(content, name, provider, threads)
        self.image_shape = tuple(self.properties["image_shape"])
        self.class_names = tuple(self.properties["class_names"])
        self.max_lm_steps = self.properties["max_lm_steps"]
        self.card: dict[str, Any] = self.properties.get("card", {})
        self._adjustable = self._session.get_inputs()[1:] + self._session.get_overridable_initializers() != []
        self.images_at_once = max(1, int(memory_budget_mb * 2**20 // self.properties["bytes_per_image"]))

    def __getstate__(self) -> dict[str, Any]:
        """The file's bytes and how it was opened.

        Raises:
            CheckpointError: the file is no longer the one that was opened.
        """
        content = read_content(self._file, CheckpointError, "the ONNX file of this classifier")
        if hashlib.sha256(content).hexdigest() != self._sha256:
            raise CheckpointError(
                f"{self._path}: another file than the one that was opened; to pickle this classifier, open the file again"
            )
        kept = ("_file", "_sha256", "_opened", "_path")
        return {"content": content, **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        content = state.pop("content")
        self.__dict__.update(state)
        self._open(content, state["_path"])

    def __call__(self, images: Any, *, lm_steps: int | None = None, threshold: float | None = None) -> Predictions:
        """Classify.

        Args:
            images: arrays, paths or PIL images; see :func:`rdc.runtime.inputs.as_array`.
            lm_steps: steps of likelihood maximisation, 0..max_lm_steps; None: as exported.
            threshold: confidence below which the decision is -1, in [0, 1]; None: as exported.

        Raises:
            InputError: images of another type, shape or range, or files that cannot be read.
            ConfigError: lm_steps or threshold out of range.
            CheckpointError: the file fails on these images.
        """
        more = self._options(lm_steps, threshold)
        batch = as_array(images, self.image_shape)
        parts = []
        for begin in range(0, len(batch), self.images_at_once):
            pixels = as_pixels(batch[begin : begin + self.images_at_once])
            if self.properties["pixel_type"] == "uint8":
                pixels = np.rint(pixels * np.float32(255)).astype(np.uint8)
            parts.append(self._run({"pixels": pixels, **more}))
        joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        log_probabilities, losses, likelihood, decision = joined[:4]
        if threshold is not None and not self._adjustable:
            sure = np.exp(log_probabilities).max(axis=1) >= np.float32(threshold)
            decision = np.where(sure, log_probabilities.argmax(axis=1), -1)
        purified = joined[4] if self.max_lm_steps else None
        return Predictions(log_probabilities, losses, likelihood, decision, self.class_names, purified)

    def _run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of one piece, of the shapes that they should have."""
        count = len(feed["pixels"])
        shapes = dict(zip(_OUTPUTS, ((count, len(self.class_names)),) * 2 + ((count,),) * 2, strict=True))
        if self.max_lm_steps:
            shapes["purified_pixels"] = (count, *self.image_shape)
        try:
            found: list[np.ndarray] = self._session.run(list(shapes), feed)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise CheckpointError(
                f"{self._path}: onnxruntime cannot run it on {count} images ({one_line(error, 300)}). Set a smaller memory budget, "
                "or export the model again"
            ) from error
        got = {name: np.shape(value) for name, value in zip(shapes, found, strict=True)}
        if got != shapes:
            raise CheckpointError(f"{self._path}: expected outputs {shapes}; got {got}. Export the model again")
        return found

    def _options(self, lm_steps: int | None, threshold: float | None) -> dict[str, np.ndarray]:
        chosen = {}
        if lm_steps is None and self.max_lm_steps:
            lm_steps = self.properties.get("lm_steps")  # not the file's own default, which nobody has checked
        if lm_steps is not None:
            if not 0 <= lm_steps <= self.max_lm_steps:
                hint = (
                    "export with a larger --max-lm-steps"
                    if self.max_lm_steps
                    else "this file was exported without LM (--lm)"
                )
                raise ConfigError(f"lm_steps: expected 0..{self.max_lm_steps}; got {lm_steps}: {hint}")
            if self.max_lm_steps and not self._adjustable and lm_steps != self.properties.get("lm_steps"):
                raise ConfigError(
                    f"lm_steps: expected {self.properties.get('lm_steps')}, of a file that was exported with --only-pixels; got {lm_steps}"
                )
            if self.max_lm_steps and self._adjustable:
                chosen["lm_steps"] = np.array(lm_steps, np.int64)
        if threshold is not None:
            if not (math.isfinite(threshold) and 0 <= threshold <= 1):
                raise ConfigError(f"threshold: expected a number in [0, 1]; got {threshold}")
            if self._adjustable:
                chosen["confidence_threshold"] = np.array(threshold, np.float32)
        return chosen
