"""Displacements: whole images, mirrored borders, every displacement, the same for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdc.errors import ConfigError
from rdc.training.augmentation import Shifted, cut_and_mixed, mirror_shifted
from rdc.training.batches import BatchGenerator


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


# --- CutMix -----------------------------------------------------------------------------------------------------------
def test_a_rectangle_comes_from_the_neighbour_and_the_share_counts_pixels() -> None:
    x = torch.rand(400, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    mixed, other, share = cut_and_mixed(x, 1.0, torch.Generator().manual_seed(1))
    assert other.tolist()[:4] == [1, 0, 3, 2]
    theirs = (mixed != x).any(1)  # no two pixels are alike
    assert torch.equal(mixed, torch.where(theirs[:, None], x[other], x))
    torch.testing.assert_close(share, 1 - theirs.float().mean((1, 2)))
    for place in theirs[theirs.any(2).any(1)]:  # a rectangle: rows times columns
        assert torch.equal(place, place.any(1)[:, None] & place.any(0)[None])
    assert (
        0.6 < share.mean() < 0.8 and share.min() < 0.2 and share.max() > 0.9
    )  # half the image, less what the border cuts


def test_a_share_of_the_images_is_left_alone() -> None:
    x = images(1000)
    mixed, _, share = cut_and_mixed(x, 0.3, torch.Generator().manual_seed(1))
    untouched = (mixed == x).flatten(1).all(1)
    assert torch.equal(untouched, share == 1) and 0.66 < untouched.float().mean() < 0.8
    assert torch.equal(cut_and_mixed(x, 0.0, torch.Generator().manual_seed(1))[0], x)


def test_two_processes_mix_the_images_that_one_would() -> None:
    x = images(8)
    whole = cut_and_mixed(x, 0.8, BatchGenerator("cpu", 8).manual_seed(4))
    parts = [cut_and_mixed(x[4 * r : 4 * r + 4], 0.8, BatchGenerator("cpu", 4, r, 2).manual_seed(4)) for r in (0, 1)]
    assert torch.equal(whole[0], torch.cat([part[0] for part in parts]))
    assert torch.equal(whole[2], torch.cat([part[2] for part in parts]))


def test_an_odd_batch_has_no_neighbours() -> None:
    with pytest.raises(ConfigError, match="cutmix: expected an even number of images a step and process; got 3"):
        cut_and_mixed(images(3), 0.5, torch.Generator())
