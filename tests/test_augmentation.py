"""Displacements: whole images, mirrored borders, every displacement, the same for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdc.augmentation import Shifted, mirror_shifted
from rdc.batches import BatchGenerator
from rdc.errors import ConfigError


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 2, 5, 6, generator=torch.Generator().manual_seed(0))


def test_images_move_as_a_whole_with_mirrored_borders() -> None:
    x, found = images(200), set()
    moved = mirror_shifted(x, 2, torch.Generator().manual_seed(1))
    for before, after in zip(x.numpy(), moved.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (2, 2)), mode="reflect")
        places = [(i, j) for i in range(5) for j in range(5) if np.array_equal(padded[:, i : i + 5, j : j + 6], after)]
        assert len(places) == 1
        found.add(places[0])
    assert len(found) == 25  # every displacement occurs, (2, 2) is none


def test_nothing_is_drawn_for_zero() -> None:
    x, generator = images(3), torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert mirror_shifted(x, 0, generator) is x and torch.equal(generator.get_state(), before)


def test_two_processes_move_the_images_that_one_would() -> None:
    x = images(8)
    whole = mirror_shifted(x, 2, BatchGenerator("cpu", 8).manual_seed(4))
    halves = [mirror_shifted(x[4 * r : 4 * r + 4], 2, BatchGenerator("cpu", 4, r, 2).manual_seed(4)) for r in (0, 1)]
    assert torch.equal(whole, torch.cat(halves))


def test_the_memory_format_stays() -> None:
    x = images(4).contiguous(memory_format=torch.channels_last)
    moved = mirror_shifted(x, 1, torch.Generator().manual_seed(1))
    assert moved.is_contiguous(memory_format=torch.channels_last)
    plain = mirror_shifted(x.contiguous(), 1, torch.Generator().manual_seed(1))
    assert plain.is_contiguous() and torch.equal(plain, moved)


def test_the_objective_sees_moved_images_and_the_same_labels() -> None:
    seen = {}

    def objective(net, x0, labels, generator):
        seen.update(x0=x0, labels=labels)
        return x0.sum(), {}

    x, labels = images(4), torch.arange(4)
    Shifted(objective, 2)(None, x, labels, torch.Generator().manual_seed(1))
    assert torch.equal(seen["x0"], mirror_shifted(x, 2, torch.Generator().manual_seed(1)))
    assert not torch.equal(seen["x0"], x) and torch.equal(seen["labels"], labels)


def test_refusals() -> None:
    for largest in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="shift: expected a whole number"):
            Shifted(lambda *_: None, largest)
    with pytest.raises(ConfigError, match="fewer pixels than the image"):
        mirror_shifted(images(1), 5, torch.Generator())
