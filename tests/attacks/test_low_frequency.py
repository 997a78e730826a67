"""Low-frequency APGD: its DCT against scipy's, the subspace it stays in, a smoothing defence that it breaks."""

from __future__ import annotations

import pytest
import torch

from rdc.attacks import ThreatModel, apgd
from rdc.attacks.low_frequency import dct_matrix, low_frequency, low_pass
from rdc.errors import ConfigError
from rdc.norm_balls import check_budget, distance
from tests.tolerances import FLOAT32_SUM, FLOAT32_ULP, FLOAT64_ORDER


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_the_dct_is_orthonormal_and_scipys(size: int) -> None:
    matrix = dct_matrix(size)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=FLOAT64_ORDER)
    fft = pytest.importorskip("scipy.fft")
    signal = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(
        matrix @ signal, torch.from_numpy(fft.dct(signal.numpy(), norm="ortho")), rtol=0, atol=FLOAT64_ORDER
    )


def test_low_pass_cuts_the_coefficients_and_nothing_else() -> None:
    values = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = low_pass(values, 0.3)
    coefficients = dct_matrix(8) @ smooth @ dct_matrix(6).T
    original = dct_matrix(8) @ values @ dct_matrix(6).T
    original[:, :, 3:], original[:, :, :, 2:] = 0, 0  # ceil(0.3 * 8) = 3, ceil(0.3 * 6) = 2
    assert torch.allclose(coefficients, original, rtol=0, atol=FLOAT64_ORDER)
    assert torch.allclose(low_pass(smooth, 0.3), smooth, rtol=0, atol=FLOAT64_ORDER)
    assert torch.allclose(low_pass(values, 1.0), values, rtol=0, atol=FLOAT64_ORDER)
    assert torch.equal(low_pass(values[1:], 0.3), smooth[1:])


class Smoothing:
    """A linear classifier behind a smoothing purifier; BPDA: the gradient is that of the classifier alone.

    The classifier's weight is mostly high-frequency, which the purifier takes away; little of its sign is smooth.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        wave = low_pass(torch.randn(1, 1, 12, 12, generator=generator), 0.25).float()
        noise = torch.randn(1, 1, 12, 12, generator=generator)
        noise = noise - low_pass(noise, 0.25).float()
        self.weight = 0.2 * wave / wave.std() + noise / noise.std()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        pure = x + (low_pass(x.detach(), 0.25).to(x) - x).detach()
        margin = torch.stack([(self.weight[0] * (image - 0.5)).sum() for image in pure])
        return torch.stack([0.5 - margin, margin - 0.5], dim=1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.35)])
def test_a_smoothing_defence_holds_apgd_and_falls_to_low_frequencies(norm: str, eps: float) -> None:
    model, threat = Smoothing(), ThreatModel(norm, eps)
    x, y = torch.full((3, 1, 12, 12), 0.5), torch.zeros(3, dtype=torch.int64)
    common = {"seed": 0, "image_ids": range(3), "steps": 40}
    assert apgd(model, x, y, threat, restarts=3, **common).accuracy == 1.0
    result = low_frequency(model, x, y, threat, cutoff=0.25, **common)
    assert result.accuracy == 0.0 and result.name == "low-frequency-ce"
    check_budget(result.x_adv, x, eps, norm)
    other = low_frequency(model, x, y, threat, cutoff=1.0, **common)  # keeps all frequencies: APGD again
    assert other.accuracy == 1.0


@pytest.mark.parametrize("restarts", [1, 3])
def test_l2_perturbations_stay_in_the_subspace(models, restarts: int) -> None:
    """Away from the box the ball's projection only shrinks, so x_adv - x itself is low-pass up to float32."""
    seen = []
    linear = models.Linear(models.random_linear(3, 64).weight, torch.tensor([99.0, 0.0, 0.0]))

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach().clone())
        return linear(x)

    x = models.random_images(2, (1, 8, 8))
    y = linear(x).argmax(1)
    cutoffs = (0.25, 0.5, 0.125)
    result = low_frequency(
        model, x, y, ThreatModel("l2", 0.2), seed=0, image_ids=[5, 6], steps=6, restarts=restarts, verify=False
    )
    assert result.correct.all() and len(seen) == 1 + 7 * restarts
    for restart in range(restarts):
        iterates = seen[1 + 7 * restart : 8 + 7 * restart]
        assert torch.equal(iterates[0], x)
        for point in iterates[1:]:
            moved = point.double() - x.double()
            assert float((moved - low_pass(moved, cutoffs[restart])).abs().max()) < FLOAT32_ULP
            assert distance(point, x, "l2").min() > 0.1
        if restart:
            first = distance(iterates[1], x, "l2")  # the random start touches the ball
            assert (first > 0.2 * (1 - FLOAT32_SUM)).all() and not torch.equal(
                iterates[1][0] - x[0], iterates[1][1] - x[1]
            )


@pytest.mark.parametrize("norm,eps", [("linf", 0.05), ("l2", 0.3)])
def test_the_batch_does_not_matter_and_runs_repeat(models, norm: str, eps: float) -> None:
    model = models.random_linear(4, 36)
    x = models.random_images(5)
    y = model(x).argmax(1)
    common = {"seed": 3, "steps": 8, "restarts": 3}
    whole = low_frequency(model, x, y, ThreatModel(norm, eps), image_ids=range(5), **common)
    again = low_frequency(model, x, y, ThreatModel(norm, eps), image_ids=range(5), **common)
    part = low_frequency(model, x[2:4], y[2:4], ThreatModel(norm, eps), image_ids=[2, 3], **common)
    assert torch.equal(whole.x_adv, again.x_adv) and torch.equal(whole.x_adv[2:4], part.x_adv)
    assert torch.equal(whole.correct[2:4], part.correct) and torch.equal(whole.broken_at[2:4], part.broken_at)


def test_errors(models) -> None:
    model, x = models.random_linear(4, 36), models.random_images(2)
    common = {"seed": 0, "image_ids": [0, 1]}
    for cutoff in (0, 1.5, True, "x", [0.5, -1]):
        with pytest.raises(ConfigError, match="cutoff"):
            low_frequency(model, x, model(x).argmax(1), ThreatModel("linf", 0.1), cutoff=cutoff, **common)
    with pytest.raises(ConfigError, match="cutoff"):
        low_frequency(model, x, model(x).argmax(1), ThreatModel("linf", 0.1), cutoff=[], **common)
    with pytest.raises(ConfigError, match="l1"):
        low_frequency(model, x, model(x).argmax(1), ThreatModel("l1", 1.0), **common)
