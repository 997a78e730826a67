import numpy as np
import pytest
import torch

from rdc.errors import ConfigError
from rdc.method.preconditioning import Preconditioning
from tests.tolerances import FLOAT64_ORDER

P = Preconditioning()
SIGMA = torch.logspace(-3, 2, 20, dtype=torch.float64)


def test_unit_variance_inside_and_out():
    """c_in makes the input, c_out the target, of unit variance for data of variance sigma_data^2 (EDM, appendix B.6)."""
    total = SIGMA**2 + 0.25
    torch.testing.assert_close(P.c_in(SIGMA) ** 2 * total, torch.ones_like(SIGMA))
    target_variance = ((1 - P.c_skip(SIGMA)) ** 2 * 0.25 + P.c_skip(SIGMA) ** 2 * SIGMA**2) / P.c_out(SIGMA) ** 2
    torch.testing.assert_close(target_variance, torch.ones_like(SIGMA))


def test_target_denoises_to_the_clean_image_and_f_space_loss_is_the_edm_loss():
    x0 = torch.randn(5, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for s in SIGMA:
        x_t = x0 + s * noise
        target = P.target(x0, x_t, s)
        torch.testing.assert_close(P.denoised(target, x_t, s), x0)
        f = 0.5 * target + 0.1
        edm = (s**2 + 0.25) / (s * 0.5) ** 2 * (P.denoised(f, x_t, s) - x0).square().sum()
        torch.testing.assert_close((f - target).square().sum(), edm, rtol=FLOAT64_ORDER, atol=0)


def test_c_noise():
    torch.testing.assert_close(P.c_noise(SIGMA), SIGMA.log() / 4)


@pytest.mark.parametrize(
    "value", [0, -0.5, 1e30, 1e-9, float("nan"), float("inf"), "0.5", None, True, [0.5], 10**400, 1j]
)
def test_what_cannot_be_a_standard_deviation(value):
    with pytest.raises(ConfigError, match="sigma_data: expected a number from 0.001 to 1000"):
        Preconditioning(value)


@pytest.mark.parametrize("value", [0.5, 1, np.float64(0.25), np.float32(2), np.int64(1)])
def test_what_can(value):
    assert Preconditioning(value).sigma_data == value
