import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import mannwhitneyu

from rdc.decisions import calibration as c
from rdc.errors import InputError
from tests.tolerances import FITTED, LINE_SEARCH, THOUSANDS


def drawn(n=4000, k=4, scale=1.0, seed=0):
    """Losses [N, K], and labels drawn from softmax(-scale * losses): calibrated at that scale by construction."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    losses = 3 * rng.standard_normal((n, k))
    p = np.exp(c.log_softmax(-scale * losses))
    return losses, (p.cumsum(1) < rng.random((n, 1))).sum(1)


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_logit_scale_is_found(scale):
    """Labels drawn at a scale give it back, up to sampling error; and it is the minimum of the cross-entropy."""
    losses, labels = drawn(scale=scale)
    found = c.fit_logit_scale(losses, labels)
    assert found == pytest.approx(scale, rel=FITTED)
    entropy = lambda log_s: c.negative_log_likelihood(c.log_softmax(-math.exp(log_s) * losses), labels)  # noqa: E731
    best = minimize_scalar(entropy, bounds=(-8, 8), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(math.exp(best.x), rel=LINE_SEARCH)
    assert c.expected_calibration_error(np.exp(c.log_softmax(-found * losses)), labels) < 0.02
    assert c.expected_calibration_error(np.exp(c.log_softmax(-8 * found * losses)), labels) > 0.03


def test_logit_scale_with_a_prior():
    losses, _ = drawn()
    prior = np.log([0.7, 0.1, 0.1, 0.1])
    p = np.exp(c.log_softmax(-0.5 * losses + prior))
    labels = (p.cumsum(1) < np.random.default_rng(1).random((len(p), 1))).sum(1)
    assert c.fit_logit_scale(losses, labels, prior) == pytest.approx(0.5, rel=FITTED)
    assert c.fit_logit_scale(losses, labels) != pytest.approx(0.5, rel=FITTED)


def test_logit_scale_without_a_best():
    with pytest.raises(InputError, match="no scale is best"):
        c.fit_logit_scale(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]))
    assert c.fit_logit_scale(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])) == pytest.approx(1e-8)


def test_logit_scale_of_images_that_are_all_right():
    """Two of two right: three of four are to be expected. Two classes at a distance of one get there at the scale ln 3."""
    losses, labels = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1])
    with pytest.raises(c.SeparableError):
        c.fit_logit_scale(losses, labels)
    assert c.cautious_logit_scale(losses, labels) == pytest.approx(math.log(3), rel=LINE_SEARCH)
    many = np.abs(np.random.default_rng(0).standard_normal((50, 4))) + 0.01
    labels, prior = many.argmin(1), np.log([0.7, 0.1, 0.1, 0.1])
    for log_prior in (None, prior):
        p = np.exp(
            c.log_softmax(-c.cautious_logit_scale(many, labels, log_prior) * many + (0 if log_prior is None else prior))
        )
        assert p[np.arange(50), labels].mean() == pytest.approx(51 / 52, rel=LINE_SEARCH)
    with pytest.raises(InputError, match="all classified right"):
        c.cautious_logit_scale(losses, np.array([0, 0]))


def test_reliability_by_hand():
    p = np.array([[0.9, 0.1], [0.92, 0.08], [0.3, 0.7], [0.55, 0.45]])
    rows = c.reliability(p, np.array([0, 1, 1, 1]), bins=10)
    assert rows["count"] == [1, 1, 2] and rows["accuracy"] == [0, 1, 0.5]
    assert rows["confidence"] == pytest.approx([0.55, 0.7, 0.91]) and rows["low"] == pytest.approx([0.5, 0.7, 0.9])
    assert c.expected_calibration_error(p, np.array([0, 1, 1, 1]), 10) == pytest.approx((0.55 + 0.3 + 2 * 0.41) / 4)
    assert c.reliability(np.array([[1.0, 0.0]]), np.array([0]), bins=4)["high"] == [1.0]


def test_risk_coverage_by_hand():
    confidence, right = [0.9, 0.8, 0.8, 0.3], [True, False, True, False]
    coverage, risk = c.risk_coverage(confidence, right)
    assert coverage.tolist() == [0.25, 0.75, 1.0] and risk == pytest.approx([0, 1 / 3, 0.5])
    assert c.area_under_risk_coverage(confidence, right) == pytest.approx(0.5 / 3 + 0.25 * 0.5)


def test_threshold_holds_its_risk():
    rng = np.random.default_rng(0)
    confidence = rng.random(5000)
    right = rng.random(5000) < confidence
    threshold, share = c.threshold_for_risk(confidence, right, 0.1)
    decided = confidence >= threshold
    assert decided.mean() == pytest.approx(share) and 0.1 < share < 0.25
    assert (~right[decided]).mean() < 0.1
    assert threshold == pytest.approx(0.8, abs=THOUSANDS)  # the mean of 1 - u over [t, 1] is (1 - t) / 2
    assert c.threshold_for_risk(confidence[:20], right[:20], 0.01) == (math.inf, 0.0)


def test_auroc_is_the_rank_statistic():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40) + 1, rng.integers(0, 9, 70)
    assert c.auroc(a, b) == pytest.approx(mannwhitneyu(a, b).statistic / (40 * 70))
    assert c.auroc([1, 2], [0]) == 1 and c.auroc([0], [0]) == 0.5


def test_coded_length_orders_images():
    rng = np.random.default_rng(0)
    flat, noise = np.full((1, 1, 28, 28), 7, np.uint8), rng.integers(0, 256, (1, 1, 28, 28)).astype(np.uint8)
    ramp = np.broadcast_to(np.arange(28, dtype=np.uint8) * 4, (1, 1, 28, 28))
    lengths = c.coded_length(np.concatenate([flat, ramp, noise]))
    assert lengths[0] < 0.5 and lengths[1] < 0.7 and lengths[2] > 7.5
    assert np.array_equal(lengths, c.coded_length(np.concatenate([flat, ramp, noise]) / 255))


def test_likelihood_score():
    """Losses that follow complexity: unlike images are found whose loss is usual over all images, and unusual for their complexity."""
    rng = np.random.default_rng(0)

    def images(n, levels):
        return (rng.integers(0, levels, (n, 1, 8, 8)) * (255 // levels)).astype(np.uint8)

    like = np.concatenate([images(100, 2), images(100, 16), images(100, 200)])
    simple = images(50, 2)
    loss = lambda pixels: 2 * c.coded_length(pixels) + 0.1 * rng.standard_normal(len(pixels))  # noqa: E731
    features, usual = loss(like), loss(images(50, 200))
    score = c.fit_likelihood_score(features, like)
    assert c.auroc(usual, features) > 0.6  # what the loss alone says of images like the training data
    assert c.auroc(score(usual + 3, images(50, 200)), score(features, like)) > 0.95
    odd = loss(simple) + 3  # as large as that of complex images
    assert odd.max() < features.max() and c.auroc(score(odd, simple), score(features, like)) > 0.99
    assert c.auroc(score(loss(simple) - 3, simple), score(features, like)) > 0.99  # the other tail
    rest = score(features, like)
    assert np.mean(rest**2) == pytest.approx(1, rel=THOUSANDS)  # white


@pytest.mark.parametrize(
    "call",
    [
        lambda: c.fit_logit_scale(np.zeros((2, 2)), np.array([0, 2])),
        lambda: c.fit_logit_scale(np.zeros((2, 2)), np.array([0.0, 1.0])),
        lambda: c.fit_logit_scale(np.full((1, 2), np.nan), np.array([0])),
        lambda: c.reliability(np.zeros((0, 2)), np.zeros(0, int)),
        lambda: c.reliability(np.eye(2), np.array([0, 1]), bins=0),
        lambda: c.risk_coverage([np.nan], [True]),
        lambda: c.risk_coverage([], []),
        lambda: c.threshold_for_risk([0.5], [True], 1.0),
        lambda: c.auroc([], [1.0]),
        lambda: c.coded_length(np.zeros((8, 8))),
        lambda: c.fit_likelihood_score(np.zeros(3), np.zeros((3, 1, 4, 4))),
    ],
)
def test_wrong_inputs(call):
    with pytest.raises(InputError):
        call()
