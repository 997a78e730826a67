"""Sampler against closed forms, and the pictures of a training run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.tolerances import (
    FLOAT32_NETWORK,
    FLOAT32_SUM,
    HEUN_80,
    NOT_ROUNDING,
    QUITE_DIFFERENT,
    RECORDED_DIGITS,
    SAMPLES_MEAN,
    SAMPLES_SPREAD,
)

pytest.importorskip("matplotlib")

from rdc.errors import ConfigError, DataError, InputError
from rdc.method.denoiser import Denoiser
from rdc.method.sampling import heun, sample_classes, sampling_levels
from rdc.plots.figures import plot_losses, plot_samples, read_log, smoothed, thinned
from rdc.storage.sealed import seal_line
from tests.bounds import bounded
from tests.tiny_models import CLASSES, SHAPE, tiny_denoiser

MEAN, STD = 0.3, 0.7


class GaussianClasses(Denoiser):
    """The exact denoiser of classes N(m_y, v): D(x; s, y) = (v x + s^2 m_y) / (v + s^2)."""

    def __init__(self, means: list[float], std: float) -> None:
        super().__init__(torch.nn.Linear(1, 1), len(means), (1, 2, 2), 0.5)
        self.means, self.variance, self.rows = torch.tensor(means), std**2, 0

    def denoise(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        self.rows += len(x_t)
        variance = sigma.reshape(-1, 1, 1, 1) ** 2
        return (self.variance * x_t + variance * self.means[labels].reshape(-1, 1, 1, 1)) / (self.variance + variance)


def denoise_gaussian(x: Tensor, sigma: float) -> Tensor:
    """D of N(MEAN, STD^2)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def flow_of_gaussian(noise: Tensor, sigma_max: float) -> Tensor:
    """Where the probability-flow ODE takes sigma_max * noise: (x - m) shrinks by STD / sqrt(STD^2 + sigma_max^2)."""
    return MEAN + (sigma_max * noise - MEAN) * STD / math.sqrt(STD**2 + sigma_max**2)


def test_levels_follow_equation_5() -> None:
    levels = sampling_levels(18)
    assert levels.shape == (19,) and levels.dtype == torch.float64
    assert levels[0] == pytest.approx(80) and levels[-2] == pytest.approx(0.002) and levels[-1] == 0
    assert (levels.diff() < 0).all()
    expected = (80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert levels[5] == pytest.approx(expected)
    for bad in ((0,), (18, 80.0, 0.002), (18, 0.0, 80.0), (18, 1.0, 1.0), (18, 0.002, 80.0, 0.0)):
        with pytest.raises(ConfigError, match="expected"):
            sampling_levels(*bad)


def test_heun_reaches_the_flow_of_a_gaussian_at_second_order() -> None:
    noise = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for steps in (20, 40, 80):
        found = heun(denoise_gaussian, noise, sampling_levels(steps))
        errors.append(float((found - flow_of_gaussian(noise, 80.0)).abs().max()))
    assert errors[0] < 0.1 and errors[2] < HEUN_80
    assert 3.2 < errors[0] / errors[1] < 6 and 3.2 < errors[1] / errors[2] < 6  # a first-order method: 2


def test_heun_spends_two_evaluations_a_step_but_one_on_the_last() -> None:
    asked = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return denoise_gaussian(x, sigma)

    heun(denoise, torch.zeros(1, 1, 1, 1), sampling_levels(6))
    assert len(asked) == 11 and min(asked) == pytest.approx(0.002)


def test_by_default_the_levels_are_those_of_edm() -> None:
    """18 levels from 80 down to 0.002 (arXiv 2206.00364, table 1), two evaluations each but for the last."""

    class Watched(GaussianClasses):
        def denoise(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
            asked.append(float(sigma[0]))
            return super().denoise(x_t, sigma, labels)

    asked: list[float] = []
    sample_classes(Watched([0.0], 1.0), 1, progress=False)
    assert len(asked) == 35 and sorted(set(asked), reverse=True) == pytest.approx(sampling_levels(18)[:-1].tolist())
    assert (max(asked), min(asked)) == (pytest.approx(80), pytest.approx(0.002))


def test_classes_are_sampled_from_their_distributions() -> None:
    denoiser = GaussianClasses([-0.3, 0.0, 0.2], 0.15)
    images = sample_classes(denoiser, 500, steps=20, batch_size=600, progress=False)
    assert images.shape == (3, 500, 1, 2, 2) and images.min() >= 0 and images.max() <= 1
    values = (images * 2 - 1).flatten(1)
    assert torch.allclose(values.mean(1), torch.tensor([-0.3, 0.0, 0.2]), atol=SAMPLES_MEAN)
    assert torch.allclose(values.std(1), torch.full((3,), 0.15), atol=SAMPLES_SPREAD)
    assert denoiser.rows == 1500 * 39
    # rows share their starting noise: these classes differ by a shift
    assert torch.allclose(values[1] - values[0], torch.tensor(0.3), atol=SAMPLES_SPREAD)


@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_networks_are_sampled_the_same_whatever_the_batch(kind: str) -> None:
    denoiser = tiny_denoiser(kind).train()
    few = sample_classes(denoiser, 2, steps=3, sigma_max=2.0, sigma_min=0.1, seed=4, progress=False)
    more = sample_classes(denoiser, 3, steps=3, sigma_max=2.0, sigma_min=0.1, seed=4, batch_size=2, progress=False)
    assert few.shape == (CLASSES, 2, *SHAPE) and denoiser.training
    torch.testing.assert_close(few, more[:, :2], rtol=FLOAT32_NETWORK, atol=FLOAT32_SUM)
    assert not torch.allclose(few[0], few[1], atol=NOT_ROUNDING)  # the label matters
    other = sample_classes(denoiser, 2, steps=3, sigma_max=2.0, sigma_min=0.1, seed=5, progress=False)
    assert not torch.allclose(few, other, atol=QUITE_DIFFERENT)
    with pytest.raises(InputError, match="per_class"):
        sample_classes(denoiser, 0)


def test_the_bar_counts_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict] = []

    class Bar:
        def __init__(self, **options: object) -> None:
            shown.append(options | {"passes": 0})

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self) -> None:
            shown[-1]["passes"] += 1

    monkeypatch.setattr("rdc.method.sampling.bar", Bar)
    sample_classes(GaussianClasses([0.0, 0.1], 0.5), 3, steps=4, batch_size=4, progress=True)
    (found,) = shown
    assert found["passes"] == found["total"] == 2 * 7 and found["enabled"] is True  # six images in two batches


def test_starting_noise_is_pinned() -> None:
    """The first level's noise, D = 0: images are clamped noise. A change of these numbers changes every sampled picture."""

    class Nothing(GaussianClasses):
        def denoise(self, x_t: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
            return x_t  # the slope is 0: the start stays

    def start(seed: int) -> list[float]:
        images = sample_classes(
            Nothing([0.0], 1.0), 2, steps=2, sigma_min=0.01, sigma_max=0.1, seed=seed, progress=False
        )
        return ((2 * images - 1) / 0.1)[0, :, 0, 0, 0].tolist()

    for seed, column in ((0, 0), (3, 1), (2**32 - 1, 0)):
        generator = torch.Generator().manual_seed(1_000_003 * seed + column)
        assert start(seed)[column] == pytest.approx(float(torch.randn(4, generator=generator)[0]), abs=FLOAT32_SUM)
    by_default = sample_classes(Nothing([0.0], 1.0), 2, steps=2, sigma_min=0.01, sigma_max=0.1, progress=False)
    assert ((2 * by_default - 1) / 0.1)[0, :, 0, 0, 0].tolist() == start(0)
    for seed in (2**32, -1, 2**70):
        assert start(seed) == pytest.approx(PINNED_START[seed], abs=RECORDED_DIGITS)
    assert len({tuple(start(seed)) for seed in (0, 1, 2**32, 2**32 + 1, -1)}) == 5


PINNED_START = {2**32: [-0.5618, -0.895], -1: [0.0845, -0.1835], 2**70: [1.0797, -0.7114]}


# --- pictures ---------------------------------------------------------------------------------------------------------
def write_log(path: Path, count: int, **columns: float) -> Path:
    rows = [{"step": i, "images": 64 * i, "lr": 1e-3, "loss": 1 + 5 / i, **columns} for i in range(1, count + 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_loss_curve_of_any_log(tmp_path: Path) -> None:
    small = 0
    for count, columns in ((1, {}), (30, {}), (30, {"hits": 0.5, "posterior": 0.1, "distilled": 0.0})):
        log = write_log(tmp_path / "log.jsonl", count, **columns)
        plot_losses(log, tmp_path / "loss.png", "title")
        with Image.open(tmp_path / "loss.png") as picture:
            picture.load()
            assert picture.format == "PNG" and picture.width > 800
            shades = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
            assert len(shades) > 20  # something was drawn
            assert picture.height >= small  # more losses, more panels
            small = picture.height
    assert not list(tmp_path.glob(".*.tmp"))


def test_logs_that_are_unfinished_missing_or_something_else(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 3)
    log.write_text(log.read_text() + '{"step": 4, "ima')
    assert read_log(log)["images"].tolist() == [64, 128, 192]
    for content, expected in (
        ("", "no rows yet"),
        ('nonsense\n{"images": 1}\n', "line 1"),
        ('[1]\n{"images": 1}\n', "line 1"),
        ('{"images": 1}\n{"images": 2, "loss": "x"}\n{}', "line 2: .*loss is a str, not a number"),
        ('{"images": [1]}\n{}', "images is a list"),
        ('{"images": true}\n{}', "images is a bool"),
        ('{"images": NaN}\n{}', "images is not finite"),
        ('{"images": 1' + "0" * 400 + "}\n{}", "line 1: .*int too large"),
        ("[" * 10**5 + "\n{}", "line 1: "),
        ("\n".join(f'{{"images": {i}, "{i}": 1}}' for i in range(20_000)), "more than 100 columns"),
        ("\xff\n", "no rows yet"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ):
        log.write_text(content)
        with bounded(megabytes=50), pytest.raises(DataError, match=expected) as caught:
            read_log(log)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    log.write_bytes(b'{"images": 1}\n\xff\n')
    with pytest.raises(DataError, match="not a training log .UnicodeDecodeError"):
        read_log(log)
    sealed = seal_line({"images": 2, "loss": None, "hits": 1})
    log.write_bytes('{"images": 1, "loss": NaN}\n'.encode("utf-8-sig") + sealed)
    columns = read_log(log)
    assert list(columns) == ["images", "loss", "hits"] and columns["images"].tolist() == [1, 2]
    assert np.isnan(columns["loss"]).all() and columns["hits"][1] == 1 and np.isnan(columns["hits"][0])
    log.write_bytes(sealed.replace(b'"images": 2', b'"images": 3') + sealed)
    with pytest.raises(DataError, match="line 1: .*checksum"):
        read_log(log)
    with pytest.raises(DataError, match="no such file; expected a training log"):
        read_log(tmp_path / "nothing")


def test_long_logs_are_thinned_for_drawing(tmp_path: Path) -> None:
    columns = {"images": np.arange(10.0), "loss": np.array([1, np.nan, 3, 5, *[np.nan] * 6])}
    assert thinned(columns, 10) is columns
    found = thinned(columns, 4)
    assert found["images"].tolist() == [1, 4, 7, 9]
    assert found["loss"][:2].tolist() == [2, 5] and np.isnan(found["loss"][2:]).all()
    log = write_log(tmp_path / "log.jsonl", 30_000)
    with bounded(seconds=60):  # smoothing 30,000 rows would be 7 GB
        plot_losses(log, tmp_path / "loss.png")


def test_smoothing_keeps_constants_and_calms_noise() -> None:
    assert smoothed(np.full(50, 0.3)) == pytest.approx(np.full(50, 0.3))
    assert smoothed(np.array([2.0])) == pytest.approx([2.0])
    noise = np.random.default_rng(0).normal(size=600)
    assert np.std(smoothed(noise)[100:]) < 0.3
    with_gap = np.array([1.0, np.nan, 1.0])
    assert smoothed(with_gap) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_grid_shows_every_image_in_its_place(channels: int, tmp_path: Path) -> None:
    images = torch.zeros(3, 4, channels, 8, 8)
    images[1, 2] = 1.0
    plot_samples(images, ("first", "second", "third"), tmp_path / "grid.png", "title")
    with Image.open(tmp_path / "grid.png") as picture:
        grey = np.asarray(picture.convert("L")).astype(int)
    # the dark canvas; the one bright tile is right of its middle and in the middle row
    dark = grey < 5
    rows, columns = np.flatnonzero(dark.sum(1) > 40), np.flatnonzero(dark.sum(0) > 40)
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    third, quarter = (bottom - top) / 3, (right - left) / 4
    tiles = [
        [grey[round(top + (row + 0.5) * third), round(left + (column + 0.5) * quarter)] for column in range(4)]
        for row in range(3)
    ]
    expected = np.zeros((3, 4), int)
    expected[1, 2] = 255
    assert np.array_equal(tiles, expected)


def test_a_grid_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    for images, names in (
        (torch.zeros(3, 4, 2, 8, 8), "abc"),
        (torch.zeros(4, 1, 8, 8), "abcd"),
        (torch.zeros(3, 4, 1, 8, 8), "ab"),
    ):
        with pytest.raises(InputError, match="sample grid: expected"):
            plot_samples(images, tuple(names), tmp_path / "grid.png")
