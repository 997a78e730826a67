"""Dataset, first_balanced and train_holdout."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rdc.data import Dataset, first_balanced, train_holdout
from rdc.errors import DataError


def made(labels: list[int], classes: int = 3) -> Dataset:
    """Image i is filled with the value i."""
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Dataset(images, torch.tensor(labels, dtype=torch.int64), tuple("abcdefghij"[:classes]), "made", "train")


def test_pixels_are_float32_value_over_255():
    images = torch.arange(256, dtype=torch.uint8).reshape(64, 1, 2, 2)
    data = Dataset(images, torch.zeros(64, dtype=torch.int64), ("a",), "made", "test")
    pixels = data.pixels()
    assert pixels.dtype == torch.float32
    assert pixels.shape == (64, 1, 2, 2)
    assert torch.equal(pixels.flatten().double().mul(255).round(), torch.arange(256, dtype=torch.float64))
    assert pixels.min() == 0
    assert pixels.max() == 1


def test_every_kind_of_index_selects_the_same_images():
    data = made([0, 1, 2, 0, 1])
    expected = data.pixels()[[1, 3]]
    for index in ([1, 3], (1, 3), np.array([1, 3]), torch.tensor([1, 3]), slice(1, 4, 2), data.indices % 2 == 1):
        assert torch.equal(data.pixels(index), expected)
        assert data.subset(index).indices.tolist() == [1, 3]
    assert torch.equal(data.pixels(np.array([False, True, False, True, False])), expected)
    assert data.pixels(3).shape == data.pixels(np.int64(3)).shape == (1, 2, 2)
    assert data.pixels([]).shape == (0, 1, 2, 2)


def test_subset_keeps_images_labels_and_original_indices_together():
    data = made([0, 1, 2, 0, 1]).subset([4, 2, 0])
    again = data.subset([2, 1], split="few")
    assert again.images[:, 0, 0, 0].tolist() == again.indices.tolist() == [0, 2]
    assert again.labels.tolist() == [0, 2]
    assert (again.split, data.split, len(data), len(again)) == ("few", "train", 3, 2)
    assert again.class_names == data.class_names


@pytest.mark.parametrize("index", [1, np.int64(1), torch.tensor(1), [0.5], ["a"]])
def test_subset_refuses_what_is_not_a_list_of_positions(index):
    with pytest.raises(DataError, match="position"):
        made([0, 1]).subset(index)


def test_is_frozen_and_has_a_short_repr():
    data = made([0, 1, 2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.labels = data.labels
    assert repr(data) == "Dataset('made', 'train', images 3 x 1 x 2 x 2, 3 classes)"
    assert data.image_shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 1, 2, 2)}, r"uint8 \[N, C, H, W\]; got torch.float32"),
        ({"images": torch.zeros(3, 2, 2, dtype=torch.uint8)}, r"uint8 \[N, C, H, W\]; got torch.uint8 \[3, 2, 2\]"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"labels must be int64 \[3\].*got torch.int64 \[2\]"),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, "labels must be int64"),
        ({"indices": torch.zeros(4, dtype=torch.int64)}, "indices must be int64"),
        ({"labels": torch.tensor([0, 3, 7])}, r"0..2 \(3 classes\); 2 of 3 are not, the first is 3 at position 1"),
        ({"labels": torch.tensor([0, 1, -1])}, "the first is -1 at position 2"),
    ],
)
def test_refuses_wrong_arrays(change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(made([0, 1, 2]), **change)


def test_first_balanced_skips_full_classes_in_order():
    data = made([0, 0, 0, 1, 2, 1, 0, 2, 2])
    assert first_balanced(data, 7).indices.tolist() == [0, 1, 2, 3, 4, 5, 7]  # three of class 0, two of the others
    with pytest.raises(DataError, match=r"8 balanced images need 3 of class 1 \('b'\).*has 2"):
        first_balanced(data, 8)


def test_holdout_is_balanced_disjoint_complete_and_in_order():
    labels = np.random.default_rng(0).integers(0, 10, 200).tolist()
    rest, held = train_holdout(made(labels, 10), 73, seed=5)
    counts = held.labels.bincount(minlength=10).tolist()
    assert counts == [8, 8, 8, 7, 7, 7, 7, 7, 7, 7]
    assert sorted(rest.indices.tolist() + held.indices.tolist()) == list(range(200))
    for part in (rest, held):
        assert part.indices.tolist() == sorted(part.indices.tolist())
        assert part.labels.tolist() == [labels[i] for i in part.indices.tolist()]
    assert (rest.split, held.split) == ("train-rest", "train-holdout")


def test_holdout_is_the_same_everywhere_and_forever():
    data = made([i % 3 for i in range(30)])
    assert train_holdout(data, 6, seed=0)[1].indices.tolist() == [0, 1, 2, 11, 21, 25]
    assert train_holdout(data, 6, seed=1)[1].indices.tolist() != [0, 1, 2, 11, 21, 25]


def test_holdout_leaves_global_random_state_alone():
    data = made([i % 3 for i in range(30)])
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = train_holdout(data, 6)[1].indices
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(train_holdout(data, 6)[1].indices, first)
    torch.set_rng_state(before[0])
    train_holdout(data, 6)
    assert torch.equal(torch.get_rng_state(), before[0])


def test_a_smaller_holdout_is_part_of_a_larger_one():
    data = made([i % 3 for i in range(90)])
    small, large = (set(train_holdout(data, n, seed=3)[1].indices.tolist()) for n in (10, 40))
    assert small < large


@pytest.mark.parametrize(
    ("n", "seed", "message"), [(0, 0, "1..29"), (30, 0, "1..29"), (6, -1, "seed"), (28, 0, "of class")]
)
def test_holdout_refuses(n, seed, message):
    labels = [0] * 20 + [1] * 8 + [2] * 2
    with pytest.raises(DataError, match=message):
        train_holdout(made(labels), n, seed=seed)


def test_one_image_and_its_label_by_position():
    data = made([0, 1, 2])
    for place in (0, 2, -1, np.int64(1), torch.tensor(2)):
        pixels, label = data[place]
        assert torch.equal(pixels, data.pixels(int(place))) and pixels.dtype == torch.float32
        assert label == int(data.labels[int(place)]) and type(label) is int
    assert [label for _, label in data] == [0, 1, 2]  # ends
    assert isinstance(data[1:], Dataset) and data[1:].indices.tolist() == [1, 2]
    assert data[::-1].labels.tolist() == [2, 1, 0] and data[5:].labels.tolist() == []
    for place in (3, -4, 10**30):
        with pytest.raises(IndexError, match="out of range"):
            data[place]
    for index in ("a", 1.0, True, None, [0, 1], torch.tensor([0]), (0, 1), torch.tensor(True), np.array([1])):
        with pytest.raises(DataError, match="expected one position or a slice"):
            data[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_takes_it(workers):
    data = made([0, 1, 2, 0, 1])
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=workers)
    pixels, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(pixels, data.pixels()) and torch.equal(labels, data.labels) and labels.dtype == torch.int64
    if workers:
        return
    shuffled = torch.utils.data.DataLoader(data, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(0))
    (pixels, labels), *_ = shuffled
    assert sorted(labels.tolist()) == [0, 0, 1, 1, 2] and pixels.shape == (5, *data.image_shape)
    single = next(iter(torch.utils.data.DataLoader(data, batch_size=None)))
    assert single[0].shape == data.image_shape and int(single[1]) == 0
    assert len(torch.utils.data.Subset(data, [1, 3])) == 2


def test_the_sample_images_in_a_data_loader():
    import rdc

    data = rdc.load_dataset("fashion-mnist-sample")
    pixels, labels = next(iter(torch.utils.data.DataLoader(data, batch_size=4)))
    assert torch.equal(pixels, data.pixels(range(4))) and torch.equal(labels, data.labels[:4])


def test_classes_without_images_are_left_out_of_a_balance():
    data = made([4, 1, 1, 4, 4, 1], 10)
    assert first_balanced(data, 4).indices.tolist() == [0, 1, 2, 3] and first_balanced(data, 4).num_classes == 10
    assert first_balanced(data, 5).labels.tolist().count(1) == 3  # the first of those that are there gets one more
    assert first_balanced(data, 0).indices.tolist() == []
    with pytest.raises(DataError, match=r"8 balanced images need 4 of class 1 .* has 3"):
        first_balanced(data, 8)
    rest, held = train_holdout(data, 2, seed=3)
    assert sorted(held.labels.tolist()) == [1, 4] and len(rest) == 4
    for n in (True, 1.5, "4", None, -1):
        with pytest.raises(DataError, match="expected an integer >= 0"):
            first_balanced(data, n)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((3, 1, 2, 2), np.uint8)}, "images must be a torch tensor; got a ndarray"),
        ({"labels": [0, 1, 2]}, "labels must be a torch tensor; got a list"),
        ({"indices": [0, 1, 2]}, "indices must be a torch tensor; got a list"),
        ({"class_names": "abc"}, "class_names: expected a list of different names.*; got 'abc'"),
        ({"class_names": ["a", "b", "a"]}, "got 'a' twice"),
        ({"class_names": 3}, "class_names: expected"),
    ],
)
def test_refuses_other_types(change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(made([0, 1, 2]), **change)
