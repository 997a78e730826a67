"""Data sets drawn from a model: the same images however often killed and however cut into batches; a judge that turns some down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rdc.arguments.seeds import random
from rdc.data import load_dataset
from rdc.errors import ConfigError, DataError, InputError
from rdc.method.denoiser import Denoiser
from rdc.training import drawn
from rdc.training.drawn import Judge, draw_dataset
from tests.tolerances import HEUN_80

NAMES = ("dark", "grey", "light")
MEANS, STD = torch.tensor([-0.6, 0.0, 0.5]), 0.2


class GaussianClasses(Denoiser):
    """The exact denoiser of classes N(m_y, STD^2) whose flow ends, by closed form, at m_y + STD * noise or so."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(1, 1), 3, (1, 2, 2), 0.5)
        self.calls = 0

    def denoise(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        variance = sigma.reshape(-1, 1, 1, 1) ** 2
        return (STD**2 * x_t + variance * MEANS[labels].reshape(-1, 1, 1, 1)) / (STD**2 + variance)


def draw(out: Path, images: int = 31, **more: object):
    settings = {"class_names": NAMES, "weights": "w", "steps": 40, "batch_size": 4, "progress": False}
    return draw_dataset(GaussianClasses(), images, out, **{**settings, **more})


def bright(above: float = 0.5, limit: float = 0.5) -> Judge:
    """Passes images whose mean pixel is at most ``limit``, by a probability of 0.9 for every class of theirs."""

    def classify(pixels: Tensor) -> Tensor:
        good = pixels.mean((1, 2, 3)) <= limit
        label = 1 + (pixels.mean((1, 2, 3)) > 0.62).long() - (pixels.mean((1, 2, 3)) < 0.35).long()
        p = torch.full((len(pixels), 3), 0.05)
        p[torch.arange(len(pixels)), label] = 0.9
        p[~good] = torch.tensor([1 / 3, 1 / 3, 1 / 3])
        return p.log()

    return Judge(classify, above, "bright", "crc")


def by_candidate(data) -> dict[int, Tensor]:
    return dict(zip(data.indices.tolist(), data.images, strict=True))


def test_images_are_where_the_flow_of_their_noise_ends(tmp_path: Path) -> None:
    """Against the closed form of the flow, from noise that is drawn here: sigma_max n -> m + (sigma_max n - m) s / sqrt(s^2 + 80^2)."""
    data = draw(tmp_path / "drawn", seed=7, steps=200)
    assert (data.split, data.class_names, len(data)) == ("train", NAMES, 31)
    assert np.bincount(data.labels).tolist() == [11, 10, 10]
    errors = []
    for candidate, image in by_candidate(data).items():
        noise = (
            random(7, 0x5A3B1F, (0, 0, 0, candidate)).standard_normal((1, 2, 2), dtype=np.float32).astype(np.float64)
        )
        mean = float(MEANS[candidate % 3])
        end = mean + (80 * noise - mean) * STD / np.hypot(STD, 80)
        expected = np.clip((end + 1) / 2, 0, 1) * 255
        errors.append(image.numpy() - expected)
        assert np.abs(errors[-1]).max() <= 0.5 + 255 * HEUN_80  # and rounding
    assert abs(np.mean(errors)) < 0.2  # to the nearest value, not below
    assert len({image.numpy().tobytes() for image in data.images}) == 31


@pytest.mark.parametrize("judge", [None, bright()])
def test_neither_batches_nor_interruptions_change_the_images(judge: Judge | None, tmp_path: Path) -> None:
    if judge is not None:
        judge = bright(limit=0.78)
    whole = by_candidate(draw(tmp_path / "whole", judge=judge, batch_size=100))
    for images in (5, 17, 31):  # as if killed after these
        parts = draw(tmp_path / "parts", images, judge=judge, batch_size=1)
    parts = by_candidate(parts)
    assert sorted(parts) == sorted(whole)
    assert all(torch.equal(parts[candidate], whole[candidate]) for candidate in whole)
    loaded = load_dataset(str(tmp_path / "parts"), "train")
    assert len(loaded) == 31 and loaded.class_names == NAMES


def test_a_killed_run_goes_on_after_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, left = drawn.DrawnFolder.append, [2]

    def killed(self: drawn.DrawnFolder, part) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        append(self, part)

    monkeypatch.setattr(drawn.DrawnFolder, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "drawn", batch_size=1)
    assert sorted(file.name for file in (tmp_path / "drawn").glob("*.npz")) == ["train-000000.npz", "train-000001.npz"]
    (tmp_path / "drawn" / ".train-000002.npz.abcd.tmp").write_bytes(b"half a file")
    left[0], model = 100, GaussianClasses()
    data = draw_dataset(
        model, 31, tmp_path / "drawn", class_names=NAMES, weights="w", steps=40, batch_size=1, progress=False
    )
    assert model.calls == (31 - 20) * 79
    assert by_candidate(data).keys() == by_candidate(draw(tmp_path / "whole")).keys()


def test_a_judge_turns_down_and_classes_stay_even(tmp_path: Path) -> None:
    judge = bright(limit=0.78)
    data = draw(tmp_path / "drawn", judge=judge)
    assert np.bincount(data.labels).tolist() == [11, 10, 10]
    assert judge.keeps(data.pixels(), data.labels).all()
    plain = draw(tmp_path / "plain", 3000)
    assert len({image.numpy().tobytes() for image in plain.images}) > 2900  # noise of its own for each
    passed = judge.keeps(plain.pixels(), plain.labels)
    assert 0.3 < float(passed.float().mean()) < 0.95
    for k, wanted in enumerate([11, 10, 10]):  # the first that pass, of each class
        mine = plain.indices[passed & (plain.labels == k)].tolist()
        assert sorted(mine)[:wanted] == sorted(data.indices[data.labels == k].tolist())


def test_a_judge_that_keeps_next_to_nothing_ends_the_run_and_keeps_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class 2: the judge kept 0 of \d+ candidates, fewer than one in 20"):
        draw(tmp_path / "drawn", judge=bright(limit=0.55), images=6)
    assert len(load_dataset(str(tmp_path / "drawn"), "train")) == 4


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    draw(tmp_path / "drawn")
    for more, words in (
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"weights": "v"}, 'weights: "w" there, "v" now'),
        ({"steps": 41}, "steps: 40 there, 41 now"),
        ({"judge": bright()}, "judge: null there"),
        ({"sigma_max": 40.0}, "sigma_max: 80.0 there, 40.0 now"),
    ):
        with pytest.raises(ConfigError) as error:
            draw(tmp_path / "drawn", **more)
        assert words in str(error.value)
    with pytest.raises(ConfigError, match="at most the 7 images that are asked for; it holds 31"):
        draw(tmp_path / "drawn", 7)
    assert len(draw(tmp_path / "drawn", 7, seed=1, overwrite=True)) == 7


def test_foreign_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not empty"):
        draw(tmp_path / "other")
    draw(tmp_path / "drawn")
    part = tmp_path / "drawn" / "train-000000.npz"
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError):
        draw(tmp_path / "drawn", 40)
    part.write_bytes(content)
    run = tmp_path / "drawn" / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "identity": {}}))
    with pytest.raises(DataError):
        draw(tmp_path / "drawn", 40)


def test_sizes_are_checked_before_anything_is_made(tmp_path: Path) -> None:
    for more in (
        {"images": 0},
        {"images": 2**40},
        {"images": 3, "batch_size": 0},
        {"images": "many"},
        {"images": 3, "class_names": ("a",)},
    ):
        with pytest.raises(InputError):
            draw(tmp_path / "drawn", **more)
    with pytest.raises(ConfigError, match="probability of at least 0 and below 1; got 1"):
        Judge(torch.nn.Identity(), 1.0, "x")
    assert not os.path.exists(tmp_path / "drawn")
