"""A share of every batch from a second data set: which images, how evenly, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rdc.data import Dataset, train_holdout
from rdc.errors import ConfigError
from rdc.training import Recipe, run
from rdc.training.batches import Batches, Extra
from rdc.training.config import TrainConfig
from rdc.training.recipe_settings import recipe_from, settings_of

CPU = torch.device("cpu")


def images(count: int, first: int, size: int = 4, classes: tuple[str, ...] = ("a", "b")) -> Dataset:
    """Images that are all of one value, each of its own: ``first`` and what follows."""
    values = (first + torch.arange(count)).to(torch.uint8)
    return Dataset(
        values[:, None, None, None].expand(count, 1, size, size).clone(), torch.arange(count) % 2, classes, "x", "train"
    )


def values(x0: torch.Tensor) -> np.ndarray:
    return ((x0[:, 0, 0, 0] + 1) / 2 * 255).round().int().numpy()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_every_batch_has_its_share_and_every_epoch_every_image(share: float) -> None:
    batches = Batches(images(30, 0), 20, 3, CPU, extra=Extra(images(50, 100), share))
    seen, count = [], round(20 * share)
    for step in range(40):
        x0, labels = batches(step)
        found = values(x0)
        assert int((found >= 100).sum()) == count
        assert (labels.numpy() == found % 2).all()  # 100 is even: an image keeps its label
        seen.append(found)
    flat = np.concatenate(seen)
    own, extra = flat[flat < 100], flat[flat >= 100]
    for rows, size in ((own, 30), (extra, 50)):
        whole = rows[: len(rows) // size * size].reshape(-1, size)
        assert len(whole) >= 2
        assert all(len(set(epoch)) == size for epoch in whole.tolist())
        assert not np.array_equal(whole[0], whole[1])


def test_places_are_spread_evenly_over_processes() -> None:
    extra = Extra(images(50, 100), 0.5)
    whole = Batches(images(30, 0), 24, 3, CPU, flip=True, extra=extra)
    parts = [Batches(images(30, 0), 24, 3, CPU, flip=True, rank=rank, world=4, extra=extra) for rank in range(4)]
    for step in (0, 3, 11):
        shares = [part(step)[0] for part in parts]
        assert torch.equal(whole(step)[0], torch.cat(shares))
        assert [int((values(share) >= 100).sum()) for share in shares] == [3, 3, 3, 3]


def test_without_extra_images_batches_are_as_they_were() -> None:
    """The order of epochs is what runs of earlier versions go on with: recorded from the commit before there were any."""
    assert Batches(images(30, 0), 8, 3, CPU).positions(5).tolist() == RECORDED


RECORDED = [6, 0, 3, 8, 24, 2, 23, 4]


def test_the_same_seed_gives_the_two_sets_different_orders() -> None:
    batches = Batches(images(30, 0), 20, 3, CPU, extra=Extra(images(30, 100), 0.5))
    found = np.stack([batches.positions(step) for step in range(3)])
    own, extra = found[found < 30], found[found >= 30] - 30
    assert sorted(own) == sorted(extra) and not np.array_equal(own, extra)


def test_what_does_not_fit_is_refused() -> None:
    data = images(30, 0)
    for other, words in (
        (images(5, 0, size=5), r"expected images \[1, 4, 4\].*got \[1, 5, 5\]"),
        (images(5, 0, classes=("a", "c")), r"expected classes \['a', 'b'\].*got \['a', 'c'\]"),
        (images(5, 0).subset([]), "at least one image"),
    ):
        with pytest.raises(ConfigError, match=words):
            Batches(data, 8, 0, CPU, extra=Extra(other, 0.5))
    for share in (0.01, 0.99):
        with pytest.raises(ConfigError, match="images of both kinds in a batch of 8"):
            Batches(data, 8, 0, CPU, extra=Extra(images(5, 0), share))


# --- recipes ----------------------------------------------------------------------------------------------------------
def test_a_recipe_says_its_extra_images() -> None:
    assert Recipe().extra_share is None
    assert "extra_share" not in settings_of(Recipe()) and "extra_data" not in settings_of(Recipe())
    assert Recipe(extra_data="drawn").extra_share == 0.5
    recipe = recipe_from({"method": "pgd-at", "extra_data": "drawn", "extra_share": 0.7})
    assert recipe_from(settings_of(recipe)) == recipe
    for bad in (
        {"extra_share": 0.5},
        {"extra_data": "drawn", "extra_share": 0.0},
        {"extra_data": "drawn", "extra_share": 1.0},
    ):
        with pytest.raises(ConfigError, match="extra_share: expected a share above 0 and below 1, of extra_data"):
            recipe_from(bad)


def _recipe(**more: object) -> Recipe:
    train = TrainConfig(images=32, batch_size=8, warmup_images=8)
    return Recipe(method="standard", network="tiny", extra_data="drawn", train=train, **more)


def test_a_run_records_what_it_saw(tmp_path: Path) -> None:
    data, extra = images(40, 0, size=28), images(24, 100, size=28)
    run(_recipe(extra_share=0.25), data, tmp_path / "run", device="cpu", progress=False, extra=extra)
    said = json.loads((tmp_path / "run" / "config.json").read_text())["extra_data"]
    assert said["name"] == "drawn" and said["images"] == 24 and said["share"] == 0.25 and len(said["crc32"]) == 8
    assert json.loads((tmp_path / "run" / "model.json").read_text())["info"]["extra_data"] == said
    with pytest.raises(Exception, match="extra_data"):  # other images under the same name
        run(
            _recipe(extra_share=0.25),
            data,
            tmp_path / "run",
            device="cpu",
            progress=False,
            extra=images(24, 101, size=28),
        )


def test_images_that_judge_the_model_are_not_trained_on(tmp_path: Path) -> None:
    data = images(40, 0, size=28)
    rest, held = train_holdout(data, 10)
    recipe = _recipe(holdout=10)
    with pytest.raises(ConfigError, match="none of the 10 images that are left out.*; 10 of drawn are among them"):
        run(recipe, data, tmp_path / "run", device="cpu", progress=False, extra=held)
    run(recipe, data, tmp_path / "run", device="cpu", progress=False, extra=rest)


def test_recipe_and_images_have_to_go_together(tmp_path: Path) -> None:
    data = images(40, 0, size=28)
    with pytest.raises(ConfigError, match="expected the images of drawn; got none"):
        run(_recipe(), data, tmp_path / "run", device="cpu", progress=False)
    plain = Recipe(method="standard", network="tiny", train=TrainConfig(images=32, batch_size=8))
    with pytest.raises(ConfigError, match="a recipe that names"):
        run(plain, data, tmp_path / "run", device="cpu", progress=False, extra=data)
    assert not (tmp_path / "run").exists()
