"""Calibrations that are kept on disk, so that a command pays for one once."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from rdc.data import Dataset
from rdc.decisions.anytime.calibration import AnytimeCalibration, calibrate_anytime, fingerprint
from rdc.decisions.anytime.classifier import AnytimeClassifier
from rdc.errors import ConfigError, RdcError
from rdc.method.classifier import DiffusionClassifier
from rdc.storage.home import cache_folder
from rdc.storage.sealed import read_sealed, write_sealed

__all__ = ["calibrated"]


def calibrated(
    classifier: DiffusionClassifier,
    dataset: Dataset,
    error_rate: float,
    *,
    folder: Path | None = None,
    progress: bool = True,
) -> AnytimeClassifier:
    """An anytime classifier calibrated on all images of a data set, or by what an earlier call with the same of all found.

    Args:
        classifier: with noise "fixed".
        dataset: images like those to be classified; labels are not used.
        error_rate: largest rate of decisions that differ from the full one.
        folder: where calibrations are kept; default ``~/.cache/rdc/anytime``. One that cannot be written to, or a user without a home
            folder, is no error.
        progress: draw a bar on stderr while calibrating.

    Raises:
        ConfigError: images of another shape; too few for that rate; settings out of range.
    """
    anytime = AnytimeClassifier(classifier, error_rate)
    if tuple(dataset.image_shape) != tuple(classifier.image_shape):
        raise ConfigError(
            f"anytime calibration: expected images {list(classifier.image_shape)} (channels, height, width); {dataset.name} has "
            f"{list(dataset.image_shape)}. Name a data set of such images with --anytime-data"
        )
    images = hashlib.sha256(dataset.images.numpy().tobytes()).hexdigest()[:16]
    folder = cache_folder("anytime") if folder is None else Path(folder)
    file = folder and folder / f"{fingerprint(classifier)}-{images}-{error_rate:g}.json"
    with contextlib.suppress(RdcError):  # missing, damaged, or of another version: made again
        if file:
            content, _ = read_sealed(file, advice="it is made again")
            anytime.use(AnytimeCalibration.from_json(content))
            return anytime
    made = calibrate_anytime(classifier, dataset.pixels(), error_rate, progress=progress)
    anytime.use(made)
    with contextlib.suppress(OSError):
        if file:
            write_sealed(file, made.to_json())
    return anytime
