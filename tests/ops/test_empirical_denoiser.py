"""The empirical denoiser against loops in float64, its kernel against the reference, and what neither may do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.dlpack import to_dlpack

from rdc.errors import ConfigError, InputError
from rdc.ops import _native
from rdc.ops.empirical_denoiser import empirical_denoiser, empirical_denoiser_reference
from rdc.ops.empirical_denoiser_native import CUT, backward_op, forward_op
from tests.oracles import empirical_mean
from tests.tolerances import CENTRAL_DIFFERENCE, FLOAT32_NETWORK, FLOAT32_SUM, FLOAT64_ORDER, close

needs_extension = pytest.mark.skipif(bool(_native.why_not("cpu")), reason=f"native kernels: {_native.why_not('cpu')}")

#: N, T, images, D, level: one image; a tile and a bit; more rows than a block; pixels that fill no vector; hardly any noise; much of it
CASES = [(1, 1, 1, 3, 0.5), (3, 2, 10, 7, 0.5), (5, 3, 700, 50, 1.0), (7, 9, 300, 96, 0.3), (2, 49, 257, 17, 8.0)]


def operands(N, T, n, D, level, seed=0):
    """float64: what the op takes, then x_t [N*T, D] for the oracle."""
    make = np.random.default_rng(seed)
    z, x, e = make.normal(size=(n, D)) / 2, make.normal(size=(N, D)) / 2, make.normal(size=(T, D))
    sigma = level * np.linspace(0.5, 1, T)
    given = x @ z.T, (sigma[:, None] * e) @ z.T, z, (z**2).sum(1) / 2, np.tile(1 / sigma**2, N)
    rows = (x[:, None] + sigma[:, None] * e).reshape(N * T, D)
    return [torch.from_numpy(array) for array in given], rows, np.tile(sigma, N)


def isas():
    if _native.why_not("cpu"):
        return []
    return _native.ISAS[: _native.ISAS.index(_native.extension().cpu_isa()) + 1]


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_posterior_mean(case):
    given, rows, sigma = operands(*case)
    truth = torch.from_numpy(empirical_mean(rows, sigma, given[2].numpy()))
    close(empirical_denoiser(*given), truth, FLOAT64_ORDER)
    close(empirical_denoiser(*given, backend="matrix"), truth, FLOAT64_ORDER)


@needs_extension
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("case", CASES)
def test_kernel_is_the_posterior_mean(case, isa, monkeypatch):
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    given, rows, sigma = operands(*case)
    truth = torch.from_numpy(empirical_mean(rows, sigma, given[2].numpy()))
    made, naive = (empirical_denoiser(*(t.float() for t in given), backend=b).double() for b in ("native", "reference"))
    assert (made - truth).abs().max() <= 2 * (naive - truth).abs().max() + FLOAT32_SUM


@needs_extension
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("case", CASES)
def test_gradient_of_the_kernel(case, isa, monkeypatch):
    monkeypatch.setenv("RDC_CPU_ISA", isa)
    given, _, _ = operands(*case)
    upstream = torch.randn(len(given[4]), given[2].shape[1], generator=torch.Generator().manual_seed(1))
    grads = []
    for kind, backend in ((torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "native")):
        inner, *others = (tensor.to(kind) for tensor in given)
        inner.requires_grad_()
        mean = empirical_denoiser(inner, *others, backend=backend)
        grads.append(torch.autograd.grad(mean, inner, upstream.to(kind))[0].double())
    truth, naive, made = grads
    assert (made - truth).abs().max() <= 2 * (naive - truth).abs().max() + FLOAT32_SUM * truth.abs().max()


def test_reference_is_differentiable_twice():
    given, _, _ = operands(2, 3, 12, 5, 0.7)
    given = [tensor.requires_grad_() for tensor in given]
    assert torch.autograd.gradcheck(empirical_denoiser_reference, given, atol=CENTRAL_DIFFERENCE)
    assert torch.autograd.gradgradcheck(empirical_denoiser_reference, given, atol=CENTRAL_DIFFERENCE)


@needs_extension
def test_second_derivative_through_the_kernel():
    given, _, _ = operands(3, 2, 40, 9, 0.7)
    results = []
    for kind in (torch.float32, torch.float64):
        inner, *others = (tensor.to(kind) for tensor in given)
        inner.requires_grad_()
        (first,) = torch.autograd.grad(empirical_denoiser(inner, *others).square().sum(), inner, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), inner)[0].double())
    close(*results, FLOAT32_NETWORK)


@needs_extension
def test_rows_are_independent():
    """A row's mean and gradient do not depend on its batch, nor on the threads."""
    (inner, *others), _, _ = operands(11, 5, 600, 33, 1.0)
    inner, (noise, images, half, beta) = inner.float(), (tensor.float() for tensor in others)
    upstream = torch.randn(55, 33, generator=torch.Generator().manual_seed(1))

    def run(pick, threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            leaf = inner[pick].requires_grad_()
            rows = slice(pick.start * 5, pick.stop * 5)
            mean = empirical_denoiser(leaf, noise, images, half, beta[rows], backend="native")
            return mean.detach(), torch.autograd.grad(mean, leaf, upstream[rows])[0]
        finally:
            torch.set_num_threads(before)

    whole = run(slice(0, 11), 1)
    for threads in (1, 2, 3):
        parts = [run(slice(0, 1), threads), run(slice(1, 8), threads), run(slice(8, 11), threads)]
        assert torch.equal(torch.cat([mean for mean, _ in parts]), whole[0])
        assert torch.equal(torch.cat([grad for _, grad in parts]), whole[1])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_almost_no_noise_is_the_nearest_image(backend):
    """Scores of 1e10 differ by less than float32 tells apart; their differences are taken first."""
    (inner, noise, images, half, _), _, _ = operands(4, 1, 50, 8, 1e-4)
    beta = torch.full((4,), 1e10)
    mean = empirical_denoiser(*(t.float() for t in (inner, noise * 0, images, half)), beta, backend=backend)
    nearest = (inner - half).argmax(1)
    assert torch.equal(mean, images.float()[nearest])


@needs_extension
def test_what_is_cut_is_below_rounding():
    """At the cut 60,000 images weigh less than the rounding of the largest."""
    assert 60_000 * np.exp(-CUT) < np.finfo(np.float32).eps * 3


@needs_extension
def test_not_a_number_stays_one():
    given = [tensor.float() for tensor in operands(3, 2, 20, 5, 1.0)[0]]
    given[0][1] = torch.nan
    mean = empirical_denoiser(*given, backend="native").view(3, 2, 5)
    assert mean[1].isnan().all()
    assert mean[[0, 2]].isfinite().all()


@needs_extension
def test_operators_keep_torchs_rules():
    given = [tensor.float() for tensor in operands(3, 2, 20, 5, 1.0)[0]]
    given[0].requires_grad_()
    torch.library.opcheck(forward_op, tuple(given))
    mean, kept = forward_op(*given)
    given = [tensor.detach() for tensor in given]
    torch.library.opcheck(backward_op, (torch.ones_like(mean), *given, mean.detach(), kept))


def test_gradients_of_the_others_take_the_reference():
    given = [tensor.float().requires_grad_() for tensor in operands(2, 2, 10, 4, 1.0)[0]]
    grads = torch.autograd.grad(empirical_denoiser(*given).sum(), given)
    expected = torch.autograd.grad(empirical_denoiser_reference(*given).sum(), given)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(2, 9), "inner: expected 10 images in the last dimension"),
        (0, torch.zeros(2, 10, dtype=torch.int64), "inner: expected a float tensor of 2 dimensions"),
        (1, torch.zeros(3, 10), r"beta: expected N\*T = 6 rows"),
        (1, torch.zeros(2, 10, dtype=torch.float64), "noise_inner: expected torch.float32 on cpu like inner"),
        (2, torch.zeros(10), "images: expected a float tensor of 2 dimensions"),
        (3, torch.zeros(11), "half_square: expected 10 images"),
        (4, torch.zeros(5), r"beta: expected N\*T = 4 rows"),
    ],
)
def test_wrong_operands(place, wrong, message):
    given = [tensor.float() for tensor in operands(2, 2, 10, 4, 1.0)[0]]
    empirical_denoiser(*given)
    given[place] = wrong
    with pytest.raises(InputError, match=message):
        empirical_denoiser(*given)


def test_backends():
    given = operands(2, 2, 10, 4, 1.0)[0]
    with pytest.raises(ConfigError, match="expected auto, native, reference, matrix; got 'cuda'"):
        empirical_denoiser(*given, backend="cuda")
    with pytest.raises(ConfigError, match="native kernels cannot run here"):
        empirical_denoiser(*given, backend="native")  # float64


@needs_extension
@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(2, 9), r"inner: expected shape \[2, 10\], got \[2, 9\]"),
        (1, torch.zeros(2, 10, dtype=torch.float64), "noise_inner: expected float32, got float64"),
        (2, torch.zeros(10, 8)[:, ::2], "images: expected a dense row-major tensor"),
        (4, torch.zeros(5), r"beta: expected shape \[4\], got \[5\]"),
        (5, torch.zeros(4, 3), r"mean: expected shape \[4, 4\], got \[4, 3\]"),
        (6, torch.zeros(4), "kept: expected 2 dimensions, got 1"),
    ],
)
def test_the_binding_checks_what_it_gets(place, wrong, message):
    tensors = [*(t.float() for t in operands(2, 2, 10, 4, 1.0)[0]), torch.zeros(4, 4), torch.zeros(4, 2)]
    kernel = _native.extension().empirical_denoiser_cpu_forward
    kernel(*map(to_dlpack, tensors), CUT, 1, _native.cpu_isa())  # as it should be
    tensors[place] = wrong
    with pytest.raises(ValueError, match=message):
        kernel(*map(to_dlpack, tensors), CUT, 1, _native.cpu_isa())


@needs_extension
def test_the_binding_checks_the_cut():
    tensors = [*(t.float() for t in operands(2, 2, 10, 4, 1.0)[0]), torch.zeros(4, 4), torch.zeros(4, 2)]
    with pytest.raises(ValueError, match="cut: expected a number in"):
        _native.extension().empirical_denoiser_cpu_forward(*map(to_dlpack, tensors), 0.0, 1, _native.cpu_isa())
