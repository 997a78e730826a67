"""Files of adversarial images: written in RobustBench's layout, read from anybody without running anything.

    .npz    x_adv float32 [N, C, H, W] in [0, 1]; images int64 [N], positions in the data set; labels int64 [N]
    .pt     the tensor x_adv alone (torch.save), as RobustBench hands images around; row i is the i-th image of the data

Read are, too: a .pt with a dict that holds the tensor as x_adv or as adv_complete (AutoAttack's evaluations), and a .npz without images or
labels.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rdc.data.npy import array_names, read_arrays
from rdc.errors import CheckpointError, ConfigError, DataError, one_line
from rdc.models.convert.torch_files import load_torch_file
from rdc.storage.files import atomic_write
from rdc.storage.reading import Budget, reading, regular_file

if TYPE_CHECKING:
    from rdc.evaluation.run import Evaluation

__all__ = ["IN_A_RUN", "AdversarialImages", "adversarial_images", "check_name", "load_adversarial", "save_adversarial"]

IN_A_RUN = "adversarial.npz"  #: name of the file in a run's own folder
_FORMS = (".npz", ".pt")
_EXPECTED = "a file of adversarial images (.npz or .pt)"
_KEYS = ("x_adv", "adv_complete")
_FLOOR, _EXPANSION = 128 * 2**20, 32  # what an archive's arrays may unpack to: bytes, and times the file's size


@dataclasses.dataclass(frozen=True, eq=False)
class AdversarialImages:
    """N images that somebody says are adversarial.

    Args:
        x_adv: [N, C, H, W] float32; nothing else is promised of the values.
        images: [N] int64, positions in the data set; None: the file does not say.
        labels: [N] int64, true classes; None: the file does not say.
    """

    x_adv: Tensor
    images: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x_adv.dim() != 4 or self.x_adv.dtype != torch.float32 or 0 in self.x_adv.shape:
            raise DataError(
                f"x_adv: expected float32 images [N, C, H, W]; got {str(self.x_adv.dtype).removeprefix('torch.')} "
                f"{list(self.x_adv.shape)}"
            )
        for name in ("images", "labels"):
            found: Tensor | None = getattr(self, name)
            if found is not None and (found.dtype != torch.int64 or list(found.shape) != [len(self.x_adv)]):
                raise DataError(
                    f"{name}: expected {len(self.x_adv)} integers (int64), one for each image; got "
                    f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
                )


def adversarial_images(run: Evaluation) -> AdversarialImages:
    """Those of a finished run."""
    return AdversarialImages(torch.from_numpy(run.x_adv), run.dataset.indices, run.dataset.labels)


def check_name(path: str | os.PathLike[str]) -> Path:
    """The path, if its ending says how to write it.

    Raises:
        ConfigError: it ends otherwise.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMS:
        raise ConfigError(
            f"{one_line(os.fspath(path), 400)}: expected a name that ends in {' or '.join(_FORMS)} for adversarial images"
        )
    return path


def save_adversarial(path: str | os.PathLike[str], images: AdversarialImages) -> None:
    """Write a file, atomically; its folder is made if missing.

    Args:
        path: ends in .npz, or in .pt, which holds the images alone.
        images: what to write.

    Raises:
        ConfigError: another ending.
    """
    path = check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        if path.suffix.lower() == ".pt":
            torch.save(images.x_adv.contiguous(), file)
            return
        given = {"x_adv": images.x_adv, "images": images.images, "labels": images.labels}
        arrays: dict[str, Any] = {name: value.numpy() for name, value in given.items() if value is not None}
        np.savez_compressed(file, **arrays)


def load_adversarial(path: str | os.PathLike[str]) -> AdversarialImages:
    """Read a file that anybody made: nothing in it is run, and sizes are checked before memory is taken.

    Args:
        path: ends in .npz or .pt.

    Raises:
        ConfigError: another ending.
        DataError: missing, damaged, or without such images.
    """
    path = check_name(path)
    name = one_line(os.fspath(path), 400)
    found = _from_torch(path, name) if path.suffix.lower() == ".pt" else _from_arrays(path, name)
    try:
        return AdversarialImages(**found)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _from_torch(path: Path, name: str) -> dict[str, Any]:
    try:
        content = load_torch_file(path)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    if isinstance(content, dict):
        content = next((content[key] for key in _KEYS if key in content), content)
    if not isinstance(content, Tensor):
        raise DataError(
            f"{name}: expected a tensor, or a dict with one under {' or '.join(_KEYS)}; it holds a {type(content).__name__}"
        )
    return {"x_adv": content}


def _from_arrays(path: Path, name: str) -> dict[str, Any]:
    size = regular_file(path, DataError, _EXPECTED)
    budget = Budget(name, size, DataError, floor=_FLOOR, expansion=_EXPANSION)
    with reading(path, DataError, _EXPECTED):
        key = next((key for key in _KEYS if key in array_names(path)), _KEYS[0])
        arrays = read_arrays(path, (key, "images", "labels"), (key,), budget)
        if odd := [name for name, array in arrays.items() if array.dtype.kind not in "fiu"]:
            raise DataError(f"{name}: {odd[0]}: expected numbers; got {arrays[odd[0]].dtype}")
        return {("x_adv" if own == key else own): _tensor(array) for own, array in arrays.items()}


def _tensor(array: np.ndarray) -> Tensor:
    """The numbers as they are, in this machine's byte order."""
    return torch.from_numpy(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="), copy=False))
