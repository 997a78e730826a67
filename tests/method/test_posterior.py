import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rdc.errors import ConfigError
from rdc.method.posterior import log_posterior, resolve_scale
from tests.tolerances import FLOAT32_ROUNDING, FLOAT64_FORMULA, FLOAT64_HIGHER

losses = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.floats(0, 1e4))


@settings(deadline=None, max_examples=50)
@given(losses, st.floats(1e-6, 1e3))
def test_probabilities_sum_to_one_and_the_smallest_loss_wins(loss, scale):
    loss = torch.from_numpy(loss)
    log_p = log_posterior(loss, scale)
    torch.testing.assert_close(
        log_p.logsumexp(1), torch.zeros(len(loss), dtype=torch.float64), atol=FLOAT64_FORMULA, rtol=0
    )
    assert (loss.gather(1, log_p.argmax(1, keepdim=True))[:, 0] <= loss.min(1).values + FLOAT32_ROUNDING / scale).all()


@settings(deadline=None, max_examples=50)
@given(losses, st.floats(-1e4, 1e4), st.randoms(use_true_random=False))
def test_constant_shift_changes_nothing_and_permutation_permutes(loss, shift, random):
    loss = torch.from_numpy(loss)
    order = list(range(loss.shape[1]))
    random.shuffle(order)
    log_p = log_posterior(loss, 0.1)
    torch.testing.assert_close(log_posterior(loss + shift, 0.1), log_p, atol=FLOAT64_HIGHER, rtol=FLOAT64_HIGHER)
    torch.testing.assert_close(log_posterior(loss[:, order], 0.1), log_p[:, order])


def test_prior_enters_as_bayes_rule_says():
    loss, prior = (
        torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64),
        torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
    )
    joint = prior * torch.exp(-2 * loss)
    torch.testing.assert_close(log_posterior(loss, 2.0, prior.log()).exp(), joint / joint.sum())


def test_scales():
    assert (
        resolve_scale("sum", (3, 4, 5)) == 1
        and resolve_scale("mean", (3, 4, 5)) == 1 / 60
        and resolve_scale(2, (1, 1, 1)) == 2
    )


@pytest.mark.parametrize("scale", ["other", 0, -1.0, float("inf"), None])
def test_bad_scales_are_refused(scale):
    with pytest.raises(ConfigError, match="logit_scale: expected"):
        resolve_scale(scale, (1, 2, 2))
