"""Randomised smoothing on functions whose radius is known: the certificate is below it as often as promised, and near it."""

import math
from statistics import NormalDist

import pytest
import torch

from rdc.certification import (
    CertificationSettings,
    NoisyVotes,
    SmoothedClassifier,
    base_classifier,
    certify_image,
    radius_of,
)
from rdc.certification.attack import attack_image
from rdc.certification.smoothing import ESTIMATION, SELECTION
from rdc.defences import as_defence
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import ConditionalDenoiser
from tests.oracles import GaussianNetwork
from tests.tolerances import BUDGET_USE, THOUSANDS

SHAPE, SIGMA, VARIANCE = (1, 2, 2), 0.25, 0.3
MEANS = torch.stack([torch.full(SHAPE, -0.5), torch.full(SHAPE, 0.5)])


def gaussian():
    denoiser = ConditionalDenoiser(GaussianNetwork(MEANS, VARIANCE), 2, SHAPE)
    return DiffusionClassifier(denoiser, levels="log:3:0.1:2:flat")


def half_space(pixels):
    """Class 0 where the mean pixel is below 0.5; its smoothed radius is the distance to that plane."""
    score = pixels.flatten(1).mean(1) - 0.5
    return torch.stack([-score, score], 1)


def votes_of(base, **settings):
    return NoisyVotes(base, SIGMA, **{"seed": 0, "fresh": True, "batch": 500, **settings})


def plane_distance(base, shared, x):
    """l_2 distance of x (pixels) to EPNDC's decision plane with these draws, float64 loops over levels.

    l_0 - l_1 = sum_i w_i (D_0 - D_1).(D_0 + D_1 - 2 t), linear in x_tau: D_y = (v x + s^2 m_y) / (v + s^2).
    """
    a_vector = torch.zeros(SHAPE, dtype=torch.float64)
    constant = 0.0
    m0, m1 = MEANS.double()
    for s, w, e in zip(base.sigma, base.weight, shared.double(), strict=True):
        a = math.sqrt(s**2 - base.s_tau**2)
        k, gap = s**2 / (VARIANCE + s**2), s**2 / (VARIANCE + s**2) * (m0 - m1)
        # D_0 + D_1 - 2 t = -2 k x_tau + 2 (v a / (v + s^2) + s_tau^2 / a) e + k (m_0 + m_1)
        a_vector += w * -2 * k * gap
        factor = 2 * (VARIANCE * a / (VARIANCE + s**2) + base.s_tau**2 / a)
        constant += w * float((gap * (factor * e + k * (m0 + m1))).sum())
    value = float((a_vector * (2 * x.double() - 1)).sum()) + constant  # > 0: class 1
    return value / float(a_vector.norm()) / 2


@pytest.mark.parametrize("levels", [1, 3])
def test_epndc_of_gaussian_classes_is_below_the_closed_form_radius_and_near_it(levels):
    base = base_classifier(gaussian(), SIGMA, "epndc", levels)
    above, gaps, alpha = 0, [], 0.05
    votes = votes_of(base, fresh=False)
    middle = plane_distance(base, votes._shared, torch.full(SHAPE, 0.5))
    x = torch.full(SHAPE, 0.5 - (0.3 + middle) / 2)  # the plane's normal is (1, 1, 1, 1) / 2: 0.3 from it
    distance = plane_distance(base, votes._shared, x)
    assert distance == pytest.approx(-0.3)
    for image in range(40):
        found = certify_image(votes, x, image, n0=20, n=500, alpha=alpha)
        assert found.selected == 0 and not found.abstained
        above += found.radius > abs(distance)
        gaps.append(abs(distance) - found.radius)
    assert above <= 6  # Binomial(40, 0.05) exceeds 6 with probability 0.003; these seeds are fixed
    assert 0 < sum(gaps) / len(gaps) < 0.08  # 500 votes cost about 1.6 standard errors
    exact = certify_image(votes, x, 0, n0=20, n=20_000, alpha=alpha)
    assert 0.9 * abs(distance) < exact.radius < abs(distance)


@pytest.mark.parametrize("method", ["epndc", "apndc"])
def test_fresh_draws_cost_radius_and_never_add_any(method):
    """With draws of its own in each vote the classes' plane is the bisector, blurred: the certificate lies below its distance."""
    base = base_classifier(gaussian(), SIGMA, method, 1)
    x = torch.full(SHAPE, 0.35)
    distance = 0.15 * math.sqrt(4)
    found = certify_image(votes_of(base), x, 0, n0=20, n=5000, alpha=0.001)
    assert found.selected == 0 and 0.3 * distance < found.radius < distance


def test_a_half_space_is_certified_to_its_plane():
    base = base_classifier(as_defence(half_space, torch.rand(2, *SHAPE)), SIGMA, "plain", 1)
    x = torch.full(SHAPE, 0.4)
    found = certify_image(votes_of(base), x, 0, n0=20, n=20_000, alpha=0.01)
    assert found.selected == 0 and 0.15 < found.radius < 0.21  # 0.2 to the plane; clipping pushes it a little outwards
    assert sum(found.votes) == 20_000


def test_it_abstains_on_the_plane():
    base = base_classifier(as_defence(half_space, torch.rand(2, *SHAPE)), SIGMA, "plain", 1)
    found = certify_image(votes_of(base), torch.full(SHAPE, 0.5), 3, n0=20, n=500, alpha=0.001)
    assert found.abstained and found.radius == 0 and found.p_lower < 0.5


def test_radius():
    assert radius_of(0.5, 1) == radius_of(0.2, 1) == 0
    assert radius_of(NormalDist().cdf(1.5), 0.25) == pytest.approx(0.375)
    settings = CertificationSettings("m", "d", n=1000, sigma=0.25)
    assert settings.largest_radius == pytest.approx(0.25 * NormalDist().inv_cdf(0.001**0.001))


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("method", ["epndc", "apndc", "plain"])
def test_batches_change_no_count(method, fresh):
    base = base_classifier(gaussian(), SIGMA, method, 2)
    x = torch.full(SHAPE, 0.47)
    counts = [votes_of(base, fresh=fresh, batch=batch).count(x, 5, ESTIMATION, 60) for batch in (1, 7, 60, 500)]
    assert counts[0] == counts[1] == counts[2] == counts[3] and min(counts[0]) > 0


def test_every_use_image_and_seed_has_noise_of_its_own():
    base = base_classifier(gaussian(), SIGMA, "epndc", 2)
    x = torch.full((1, *SHAPE), 0.5)
    votes = votes_of(base)
    one = votes.scores(x, 5, ESTIMATION, 0, 8)
    assert torch.equal(one[3:], votes.scores(x, 5, ESTIMATION, 3, 5))
    assert not torch.equal(one, votes.scores(x, 5, SELECTION, 0, 8))
    assert not torch.equal(one, votes.scores(x, 6, ESTIMATION, 0, 8))
    assert not torch.equal(one, votes_of(base, seed=1).scores(x, 5, ESTIMATION, 0, 8))
    shared = votes_of(base, fresh=False)
    assert torch.equal(shared._draws(5, ESTIMATION, 0, 2)[1][0], shared._draws(6, SELECTION, 9, 1)[1][0])
    assert votes.network_evaluations == 2 * 2 * (8 + 5 + 8 + 8)


def test_a_score_that_is_no_number_votes_for_nobody():
    def model(pixels):
        logits = half_space(pixels)
        return torch.where(pixels.flatten(1)[:, :1] > 0.5, torch.nan, logits)

    base = base_classifier(as_defence(model, torch.full((2, *SHAPE), 0.1)), SIGMA, "plain", 1)
    counts = votes_of(base).count(torch.full(SHAPE, 0.5), 0, ESTIMATION, 400)
    assert 120 < sum(counts) < 280


def test_no_attack_falls_below_the_certificate():
    """A half-space: inside the certified radius the decision stands, outside the true radius it falls."""
    base = base_classifier(as_defence(half_space, torch.rand(2, *SHAPE)), SIGMA, "plain", 1)
    votes, x = votes_of(base), torch.full(SHAPE, 0.4)
    found = certify_image(votes, x, 0, n0=20, n=5000, alpha=0.001)
    radii = (0.5 * found.radius, 0.99 * found.radius, 0.3, 0.4)
    attacks = attack_image(votes, x, 0, 0, selected=0, radii=radii, steps=10, draws=32, judges=2000)
    assert [attack.right for attack in attacks] == [True, True, False, False]
    assert [attack.distance for attack in attacks[:3]] == pytest.approx(radii[:3], rel=BUDGET_USE)
    assert attacks[3] == attacks[2].__class__(**{**vars(attacks[2]), "radius": 0.4})
    shares = [attack.votes_for_selected / attack.votes for attack in attacks]
    # x' at distance r towards the plane: the probability falls to Phi((0.2 - r) / sigma); the attack finds nearly all of that
    for radius, share in zip(radii[:3], shares, strict=False):
        assert share == pytest.approx(NormalDist().cdf((0.2 - radius) / SIGMA), abs=THOUSANDS)


def test_the_smoothed_classifier_is_a_defence():
    base = base_classifier(gaussian(), SIGMA, "epndc", 2)
    model = SmoothedClassifier(base, SIGMA, draws=4, noise="fresh")
    x = torch.full((2, *SHAPE), 0.4).requires_grad_()
    first, second = model(x), model(x)
    assert first.shape == (2, 2) and torch.allclose(first.exp().sum(1), torch.ones(2))
    assert not torch.equal(first, second) and model.network_evaluations == 2 * 2 * 4 * 4
    fixed = model.with_(noise="fixed")
    assert torch.equal(fixed(x), fixed(x)) and torch.equal(fixed(x), first)
    assert float(torch.autograd.grad(first[:, 0].sum(), x)[0].abs().sum()) > 0


def test_settings_that_are_refused():
    for wrong, message in (
        ({"n0": 200, "n": 100}, "n: expected at least as many votes as select a class, n >= n0 = 200; got 100"),
        ({"n": 0}, "n: expected an integer of 1 to"),
        ({"n_images": 0}, "n_images"),
        ({"n0": 1.5}, "n0"),
        ({"alpha": 0}, "alpha: expected a number above 0 and below 1; got 0"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"sigma": 0}, "sigma: expected a number above 0"),
        ({"sigma": "x"}, "sigma"),
        ({"method": "dc"}, "method: expected epndc or apndc or plain; got 'dc'"),
        ({"noise": "fixed"}, "noise: expected fresh or known"),
        ({"split": "all"}, "split"),
        ({"noised_levels": 0}, "noised_levels"),
        ({"attack_radii": (0.5, 0.25)}, "attack_radii: expected at most 100 rising numbers"),
        ({"attack_radii": (0.0,)}, "attack_radii"),
        ({"attack_radii": 3}, "attack_radii"),
        ({"seed": None}, "seed"),
    ):
        with pytest.raises(ConfigError, match=message):
            CertificationSettings("m", "d", **wrong)
