"""The optimal classifier's certificate: losses by loops, no attack below the radius, bounds against derivatives."""

import math

import pytest
import torch

from rdc.certification.lipschitz import farthest_pairs, likelihood_certificate, loss_certificate
from rdc.errors import InputError
from tests.tolerances import FLOAT64_FORMULA, FLOAT64_ORDER

SHAPE, CLASSES, SIGMA, WEIGHT = (1, 2, 3), 3, [0.5, 1.5, 6.0], [0.25, 0.25, 0.5]


def case(seed=0, count=18):
    draw = torch.Generator().manual_seed(seed)
    images = 2 * torch.rand(count, *SHAPE, generator=draw, dtype=torch.float64) - 1
    labels = torch.arange(count) % CLASSES
    x = 2 * torch.rand(5, *SHAPE, generator=draw, dtype=torch.float64) - 1
    noise = torch.randn(len(SIGMA), *SHAPE, generator=draw, dtype=torch.float64)
    return images, labels, x, noise


def loops(images, labels, x, noise, s_list=SIGMA, w_list=WEIGHT):
    """Class losses of one image [C, H, W], differentiable, one training image after another."""
    losses = []
    for label in range(CLASSES):
        own = [image for image, of in zip(images, labels, strict=True) if of == label]
        loss = 0.0
        for s, w, e in zip(s_list, w_list, noise, strict=True):
            share = torch.stack([-((x + s * e - image) ** 2).sum() / (2 * s**2) for image in own]).softmax(0)
            loss = loss + w * ((sum(p * image for p, image in zip(share, own, strict=True)) - x) ** 2).sum()
        losses.append(loss)
    return torch.stack(losses)


def certificate(images, labels, x, noise):
    levels = {"sigma": torch.tensor(SIGMA).double(), "weight": torch.tensor(WEIGHT).double()}
    return loss_certificate(images, labels, x, **levels, noise=noise)


def test_farthest_pairs_by_loops():
    images, labels, _, _ = case()
    found = farthest_pairs(images, labels, CLASSES)
    for a in range(CLASSES):
        for b in range(CLASSES):
            far = max(float((u - v).norm()) for u in images[labels == a] for v in images[labels == b])
            assert math.isclose(float(found[a, b]), far, rel_tol=FLOAT64_ORDER)
    with pytest.raises(InputError, match="each of 4 classes"):
        farthest_pairs(images, labels, 4)


@pytest.mark.parametrize("seed", range(4))
def test_decision_and_slope_are_those_of_the_loops(seed):
    images, labels, x, noise = case(seed)
    found = certificate(images, labels, x, noise)
    for row, image in enumerate(x):
        losses = loops(images, labels, image, noise)
        assert int(losses.argmin()) == int(found.predicted[row])
        margins = losses - losses.min()
        assert float((margins - found.margin[row]).abs().min()) < FLOAT64_ORDER
        at = int((margins - found.margin[row]).abs().argmin())
        own = int(found.predicted[row])

        def margin(z, at=at, own=own):
            losses = loops(images, labels, z, noise)
            return losses[at] - losses[own]

        slope = torch.autograd.functional.jacobian(margin, image).norm()
        assert 0 < float(slope) <= float(found.slope[row])


@pytest.mark.parametrize("seed", range(3))
def test_no_step_within_the_radius_changes_the_decision(seed):
    images, labels, x, noise = case(seed)
    found = certificate(images, labels, x, noise)
    assert bool((found.radius > 0).all())
    for row, image in enumerate(x):
        own, moved = int(found.predicted[row]), image.clone()
        for _ in range(20):  # uphill, on the sphere of the radius (in x0 units twice that of pixels)
            z = moved.clone().requires_grad_()
            losses = loops(images, labels, z, noise)
            others = torch.cat([losses[:own], losses[own + 1 :]]).min()
            step = torch.autograd.grad(losses[own] - others, z)[0]
            far = image + 2 * float(found.radius[row]) * (1 - 1e-9) * step / step.norm()
            moved = far
            assert int(loops(images, labels, moved, noise).argmin()) == own


def test_the_bound_is_reached_where_nothing_is_curved():
    """One image a class: D is constant, the margin linear, and the radius the distance to the plane between them."""
    a, b = torch.full((1, *SHAPE), 0.5, dtype=torch.float64), torch.full((1, *SHAPE), -0.5, dtype=torch.float64)
    x = a + 0.2
    images, labels = torch.cat([a, b]), torch.tensor([0, 1])
    distance = float((x - a + a).sum() / math.sqrt(x.numel()))  # from the plane through 0
    noise = torch.randn(3, *SHAPE, dtype=torch.float64)
    found = certificate(images, labels, x, noise)
    assert math.isclose(2 * float(found.radius[0]), distance, rel_tol=FLOAT64_FORMULA)
    exact = likelihood_certificate(images, labels, x, sigma=0.7)
    assert math.isclose(2 * float(exact.radius[0]), distance, rel_tol=FLOAT64_FORMULA)


@pytest.mark.parametrize("seed", range(3))
def test_likelihood_certificate(seed):
    images, labels, x, noise = case(seed)
    s, e = 0.6, noise[0]
    found = likelihood_certificate(images, labels, x, sigma=s, noise=e)

    def scores(z):
        rows = []
        for label in range(CLASSES):
            gaps = [((z + s * e - image) ** 2).sum() for image in images[labels == label]]
            rows.append(torch.stack(gaps).div(-2 * s**2).logsumexp(0) - math.log(len(gaps)))
        return torch.stack(rows)

    for row, image in enumerate(x):
        own = int(scores(image).argmax())
        assert own == int(found.predicted[row])
        for other in (label for label in range(CLASSES) if label != own):
            slope = torch.autograd.functional.jacobian(lambda z, a=own, b=other: scores(z)[a] - scores(z)[b], image)
            moved = image - 2 * float(found.radius[row]) * (1 - 1e-9) * slope / slope.norm()
            assert int(scores(moved).argmax()) == own
