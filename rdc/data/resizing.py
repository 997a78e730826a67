"""A data set's images in another size, or in grey or colour."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from rdc.data.dataset import Dataset
from rdc.data.pictures import Form
from rdc.images.files import from_picture

__all__ = ["reshaped"]


def reshaped(data: Dataset, form: Form) -> Dataset:
    """``data`` with images of this size and so many channels; the same object where nothing changes.

    Args:
        data: the data set.
        form: size (H, W), channels and filter; None in it keeps what there is.
    """
    from PIL import Image

    channels, height, width = data.image_shape
    shape = (form.channels or channels, *(form.size or (height, width)))
    if shape == data.image_shape:
        return data
    images = np.empty((len(data), *shape), np.uint8)
    for place, image in enumerate(data.images.permute(0, 2, 3, 1).numpy()):
        picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if channels == 1 else image))
        images[place] = np.rint(255 * from_picture(picture, shape, resample=form.resample)[0])
    said = []
    if shape[1:] != (height, width):
        changed = abs(width * shape[1] - height * shape[2]) > 0.02 * max(width * shape[1], height * shape[2])
        said.append(
            f"images resized from {width} x {height} to {shape[2]} x {shape[1]} ({form.resample})"
            f"{', proportions changed' if changed else ''}"
        )
    if shape[0] != channels:
        said.append("images turned to grey" if shape[0] == 1 else "grey images turned to RGB")
    return dataclasses.replace(data, images=torch.from_numpy(images), notices=(*data.notices, *said))
