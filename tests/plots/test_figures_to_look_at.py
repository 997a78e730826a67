"""Plots for notebooks and papers: each gives a Figure, or draws into the caller's Axes, and changes no settings."""

from __future__ import annotations

import io
import pickle

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from rdc.errors import InputError
from rdc.plots import plot_adversarial, plot_class_losses, plot_likelihood_path, plot_reliability
from rdc.statistics.proportions import wilson_interval
from rdc.statistics.reliability import reliability_intervals, reliability_rows

RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.full(4, 0.4), 60)
Y = RNG.integers(0, 4, 60)
X = RNG.random((3, 1, 8, 8))
CALLS = {
    "reliability": lambda **more: plot_reliability(P, Y, **more),
    "two curves": lambda **more: plot_reliability(
        {"before": P, "fitted": torch.tensor(P**2 / (P**2).sum(1, keepdims=True))}, Y, **more
    ),
    "adversarial": lambda **more: plot_adversarial(
        X, torch.tensor(np.clip(X + 0.1, 0, 1)), captions=["$a$", "b", "c"], **more
    ),
    "colour": lambda **more: plot_adversarial(np.repeat(X, 3, 1), np.repeat(X, 3, 1), **more),
    "class losses": lambda **more: plot_class_losses(
        [0.1, 1, 0.3], RNG.random((3, 4)), 2, weight=torch.ones(3), **more
    ),
    "one level": lambda **more: plot_class_losses([1.0], RNG.random((1, 2)), 0, class_names=["_a", "b"], **more),
    "path": lambda **more: plot_likelihood_path(RNG.random((2, 15, 3, 8, 8)), names=["a", "b"], **more),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_figure_of_its_own_or_axes_of_the_callers(name):
    before = dict(matplotlib.rcParams)
    figure = CALLS[name](title="$x_1$ of mine")
    assert isinstance(figure, Figure) and Image.open(io.BytesIO(figure._repr_png_())).size[0] > 100
    assert pickle.loads(pickle.dumps(figure)).axes
    own = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(own)
    left, right = own.subplots(1, 2)
    assert CALLS[name](axes=left) is own and not right.lines and not right.images
    own.savefig(io.BytesIO())
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["reliability", "two curves", "class losses"])
def test_the_legend_stands_over_no_data(name):
    figure = CALLS[name]()
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 1


def test_reliability_has_both_curves_and_their_intervals():
    (axes,) = CALLS["two curves"]().axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text.partition(",")[0] for text in texts] == ["share of images (fitted)", "before", "fitted"]
    rows = reliability_rows(P.max(1), P.argmax(1) == Y, 10)
    low, high = reliability_intervals(rows)
    for place, (share, count) in enumerate(zip(rows["accuracy"], rows["count"], strict=True)):
        assert (low[place], high[place]) == wilson_interval(round(share * count), int(count))
    (bars,) = axes.containers[1].lines[2]
    drawn = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert np.allclose(drawn, np.stack([low, high], 1))


def test_the_path_says_its_steps():
    (axes,) = CALLS["path"]().axes
    captions = [label.get_text() for label in axes.get_xticklabels()]
    assert captions[0] == "input" and captions[-1].startswith("step 14\nmean ") and len(captions) == 11


def test_a_small_change_gets_full_colour():
    (axes,) = plot_adversarial(X[:1] * 0, X[:1] * 0 + 1e-3).axes
    assert "difference × 1e+03" in [label.get_text() for label in axes.get_yticklabels()]
    assert (255 * axes.images[0].get_array()[-1, 0]).round().tolist() == [204, 51, 33]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plot_reliability(P * 2, Y), "take .exp"),
        (lambda: plot_reliability(P[:3], Y), r"expected \[N, K\] and labels \[N\]"),
        (lambda: plot_reliability({}, Y), "one to 4 arrays"),
        (lambda: plot_reliability(P, Y, bins=0), "bins: expected an integer"),
        (lambda: plot_adversarial(X, X[:2]), "adversarial: expected the shape of clean"),
        (lambda: plot_adversarial(X[0], X[0]), r"clean: expected images \[N, 1 or 3, H, W\]"),
        (lambda: plot_adversarial(X, X, captions=["a"]), "one text for each of 3 images; got 1"),
        (lambda: plot_adversarial(X, X, n=0), "n: expected an integer"),
        (lambda: plot_class_losses([1.0], np.ones((2, 3)), 0), r"expected \[T, K\] for sigma \[T\]"),
        (lambda: plot_class_losses([1.0], np.ones((1, 3)), 3), "a class, 0 to 2; got 3"),
        (lambda: plot_class_losses([1.0], np.ones((1, 3)), 0, weight=[1, 2]), r"one for each level; got \[2\]"),
        (lambda: plot_class_losses([1.0], np.ones((1, 3)), 0, class_names=["a"]), "expected 3 names; got 1"),
        (lambda: plot_likelihood_path(X), "return_path=True"),
        (lambda: plot_likelihood_path(X[None], names=[]), "expected 1 texts"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
