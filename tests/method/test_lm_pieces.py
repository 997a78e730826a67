"""LM and class losses in pieces smaller than an image at all its levels and classes: the same numbers, in a memory that fits."""

import dataclasses
import warnings

import pytest
import torch

from rdc.defences import LikelihoodPurifier
from rdc.execution.memory import peak_bytes
from rdc.method.likelihood_maximization import lm_penalty, maximize_likelihood, resolve_lm
from rdc.method.lm_pieces import lm_bytes, lm_pieces
from rdc.method.working_memory import gradient_bytes
from tests.tiny_models import pixels, tiny_classifier, tiny_denoiser
from tests.tolerances import FLOAT64_STEPS

MIB = 2**20
LM = resolve_lm("paper-v1,steps=2,sign=false,normalize=mean_abs,step_size=0.02,levels=log:5:0.4:2:flat")
DRAWN = resolve_lm("paper-v2,steps=2,levels_per_step=5")


def moved(denoiser, lm, rows, upstream):
    x = (2 * pixels(3, dtype=torch.float64) - 1).requires_grad_()
    out = maximize_likelihood(denoiser, x, lm, 1, rows=rows)
    return out.detach(), torch.autograd.grad(out, x, upstream)[0]


@pytest.mark.parametrize("lm", [LM, DRAWN], ids=["levels", "drawn"])
@pytest.mark.parametrize("kind", ["conditional", "multihead"])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_levels_in_pieces_give_the_same_images_and_the_same_exact_gradient(kind, rows, lm):
    denoiser = tiny_denoiser(kind, torch.float64).requires_grad_(False)
    upstream = torch.randn(3, *denoiser.image_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected, found = moved(denoiser, lm, None, upstream), moved(denoiser, lm, rows, upstream)
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() < FLOAT64_STEPS * one.abs().max()
    assert torch.equal(moved(denoiser, lm, 5, upstream)[1], expected[1])  # all levels in one piece: the same bits


@pytest.mark.parametrize("rows", [1, 3])
def test_penalty_in_pieces_of_levels(rows):
    denoiser = tiny_denoiser("conditional", torch.float64).requires_grad_(False)

    def value(rows):
        x = (2 * pixels(3, dtype=torch.float64) - 1).requires_grad_()
        found = lm_penalty(denoiser, x, LM, 0, rows)
        return found.detach(), torch.autograd.grad(found.sum(), x)[0]

    for one, other in zip(value(100), value(rows), strict=True):
        assert (one - other).abs().max() < FLOAT64_STEPS * one.abs().max()


def test_what_fits_together():
    """One image at all levels fits: images; it does not: levels."""
    denoiser, like, known = tiny_denoiser("conditional").requires_grad_(False), pixels(1), {}
    lm = resolve_lm("paper-v1,levels=log:20:0.4:2:flat")
    each = lm_bytes(denoiser, lm, like) / MIB
    images, rows = lm_pieces(denoiser, lm, like, 2.5 * each, known)
    assert (images, rows) == (2, None) and len(known) == 2
    images, rows = lm_pieces(denoiser, lm, like, 0.5 * each, known)
    assert images == 1 and 5 <= rows <= 10
    assert lm_pieces(denoiser, dataclasses.replace(lm, levels=None), like, each, known)[1] is None


def test_an_image_at_all_levels_beyond_the_budget_is_never_computed_at_once():
    """Measuring included: of 30 levels, what fits a fifth of them takes a fifth of the memory, and no warning."""
    denoiser, images = tiny_denoiser("conditional").requires_grad_(False), pixels(2)
    lm = "paper-v1,steps=2,levels=log:30:0.4:2:flat"
    whole = lm_bytes(denoiser, resolve_lm(lm), images)

    def gradient(made):
        x = images.clone().requires_grad_()
        return torch.autograd.grad(made(x).sum(), x)

    purifier = LikelihoodPurifier(denoiser, lm, memory_budget_mb=0.2 * whole / MIB)
    classifier = tiny_classifier("multihead", lm=lm, memory_budget_mb=0.2 * whole / MIB)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert peak_bytes(lambda: gradient(purifier)) < 0.25 * whole
        assert peak_bytes(lambda: gradient(classifier)) < 0.25 * whole


@pytest.mark.parametrize("share", [0.15, 0.4, 0.7, 1.0])
def test_classes_go_in_pieces_where_one_image_at_one_level_does_not_fit(share):
    """Of three classes one, two or three at a time; the gradient is the same, and the budget is kept."""
    free, x = tiny_classifier("conditional", torch.float64), pixels(2, dtype=torch.float64)
    pair = gradient_bytes(free.denoiser, x) / MIB
    small = free.with_(memory_budget_mb=share * pair)

    def gradient(made):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(made(leaf)[:, 0].sum(), leaf)[0]

    one, other = gradient(free), gradient(small)
    assert (one - other).abs().max() < FLOAT64_STEPS * one.abs().max()
    rows = {0.15: 1, 0.4: 1, 0.7: 2, 1.0: 3}[share]
    if share == 0.15:  # not even one class
        with pytest.warns(UserWarning, match="do not hold one image at one level under one label"):
            assert small.pairs_that_fit(x) == 1
    assert small.rows_that_fit(x, 1) == rows
    least = max(share, 1 / 3) * pair * MIB
    assert peak_bytes(lambda: gradient(small)) < 1.15 * least
