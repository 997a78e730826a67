"""Square: black box, budget, what it must find, schedule, queries, and randomness that depends on its key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rdc.attacks import ThreatModel
from rdc.attacks.square import _bump, _bump_pairs, _Proposals, changed_share, square
from rdc.errors import InputError
from tests.tolerances import BUDGET_USE, SQUARE_BUDGET_USE

NORMS = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


def stripes_model(images: torch.Tensor, gain: float = 1.0):
    """Class 0 unless the image's left half is darker or its right half brighter: linear, low-frequency."""
    side = torch.ones(images.shape[1:])
    side[..., images.shape[-1] // 2 :] = -1
    weight = (side / side.numel()).double()

    def model(x: torch.Tensor) -> torch.Tensor:
        value = torch.stack([((image.double() - 0.5) * weight).sum() for image in x])
        return torch.stack([gain * (value + 0.02), torch.zeros_like(value), torch.zeros_like(value) - 1], dim=1)

    return model


@NORMS
@pytest.mark.parametrize("channels", [1, 3])
def test_breaks_what_has_little_margin(norm: str, channels: int) -> None:
    """Analytic: the margin falls by at most eps ||w||_dual: never at 0.9 times what is needed, surely a little above it.

    A bump is no flat field: in l_2 it must have more to spend.
    """
    x = torch.full((4, channels, 8, 8), 0.5)
    model, y = stripes_model(x), torch.zeros(4, dtype=torch.int64)
    pixels = 64 * channels
    needed = {"linf": 0.02, "l2": 0.02 * pixels**0.5, "l1": 0.02 * pixels}[norm]  # |w_i| = 1 / pixels
    kept = {"seed": 0, "image_ids": range(4), "queries": 500}
    safe = square(model, x, y, ThreatModel(norm, 0.9 * needed), **kept)
    assert safe.correct.all() and safe.queries.tolist() == [500] * 4 and safe.gradient_evaluations == 0
    found = square(model, x, y, ThreatModel(norm, {"linf": 1.3, "l2": 3.0, "l1": 1.3}[norm] * needed), **kept)
    assert not found.correct.any() and (found.queries < 500).all() and torch.equal(found.queries, found.broken_at)
    assert torch.equal(model(found.x_adv).argmax(1) != y, ~found.correct)


@settings(max_examples=30, deadline=None)
@example(1, "l1", 2.225073858507203e-309, (1, 1, 9), True)
@given(
    st.integers(0, 10**6), st.sampled_from(["linf", "l2", "l1"]), st.floats(0.0, 1.0),
    st.sampled_from([(1, 1, 1), (1, 2, 3), (3, 7, 4), (2, 12, 9), (1, 1, 9)]), st.booleans(),
)  # fmt: skip
def test_budget_holds_to_the_last_bit(
    seed: int, norm: str, eps: float, shape: tuple[int, int, int], edge: bool
) -> None:
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(seed))
    x, seen = x.round() if edge else x, []

    def model(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        flat = pixels.flatten(1)
        return torch.stack([flat.sum(1) * 0 + 3, torch.sin(5 * flat).sum(1) / flat.shape[1]], dim=1)

    square(
        model, x, torch.zeros(3, dtype=torch.int64), ThreatModel(norm, eps), seed=seed, image_ids=range(3), queries=25
    )
    assert len(seen) == 27
    for pixels in seen[1:]:  # every query, not only the best
        moved = (pixels.numpy().astype(np.float64) - x.numpy().astype(np.float64)).reshape(3, -1)
        size = {"linf": np.abs(moved).max(1), "l2": np.linalg.norm(moved, axis=1), "l1": np.abs(moved).sum(1)}[norm]
        assert (size <= eps).all() and pixels.min() >= 0 and pixels.max() <= 1


def test_linf_iterates_lie_at_the_corners_and_every_proposal_changes_something() -> None:
    x, seen = torch.full((2, 1, 6, 6), 0.5), []

    def model(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        value = pixels.flatten(1).sum(1)
        return torch.stack([value * 0 + 99, value], dim=1)  # rises with every pixel; never broken

    result = square(model, x, torch.zeros(2, dtype=torch.int64), ThreatModel("linf", 0.125), seed=0, image_ids=[0, 1],
                    queries=300)  # fmt: skip
    assert all(set(p.unique().tolist()) <= {0.375, 0.625} for p in seen[1:-1])
    assert torch.equal(result.x_adv, torch.full_like(x, 0.625))  # the optimum of a linear model
    best, value = seen[1], seen[1].flatten(1).sum(1)
    for pixels in seen[2:-1]:
        assert (pixels != best).flatten(1).any(1).all()
        better = pixels.flatten(1).sum(1) > value
        best = torch.where(better.view(-1, 1, 1, 1), pixels, best)
        value = torch.where(better, pixels.flatten(1).sum(1), value)


def test_stripes_and_windows() -> None:
    x = torch.full((3, 2, 10, 12), 0.5)
    proposals = _Proposals(x, ThreatModel("linf", 0.125), 7, [4, 5, 6], 0)
    start = proposals.start()
    assert torch.equal(start, start[:, :, :1].expand_as(start)) and len(set(map(str, start[:, :, 0].tolist()))) == 3
    changed = (proposals.next(start, 0.3, 1) != start).any(1)  # round(sqrt(0.3 * 120)) = 6
    for image in changed:
        rows, columns = image.any(1).nonzero()[:, 0], image.any(0).nonzero()[:, 0]
        assert rows[-1] - rows[0] + 1 == 6 and columns[-1] - columns[0] + 1 <= 6


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_round_proposals_use_the_whole_budget_and_empty_the_second_window(norm: str) -> None:
    x = torch.full((20, 3, 14, 14), 0.5)
    power = 2 if norm == "l2" else 1
    proposals = _Proposals(x, ThreatModel(norm, 0.4), 1, list(range(20)), 0)
    best = proposals.start()

    def lengths(point: torch.Tensor) -> torch.Tensor:
        return ((point.double() - 0.5).abs() ** power).flatten(1).sum(1) ** (1 / power)

    torch.testing.assert_close(lengths(best), torch.full((20,), 0.4).double(), rtol=BUDGET_USE, atol=0)
    for query in range(1, 30):
        point = proposals.next(best, 0.1, query)
        torch.testing.assert_close(lengths(point), torch.full((20,), 0.4).double(), rtol=SQUARE_BUDGET_USE, atol=0)
        assert (point != best).flatten(1).any(1).all()
        best = point
    assert float((best == 0.5).double().mean()) > 0.05  # windows were emptied


def test_bumps() -> None:
    assert _bump(1, 1).tolist() == [[1.0]]
    three = _bump(3, 3)
    assert three[1, 1] == three.max() == 1 / 4 + 1 and three[0].unique().numel() == 1 and three[0, 0] == 1 / 4
    assert (_bump(4, 7) > 0).all()
    for norm, power in (("l2", 2), ("l1", 1)):
        pair = _bump_pairs(5, 5, norm)
        np.testing.assert_allclose((np.abs(pair) ** power).sum((1, 2)), 1)
        assert (pair[0, :2] > 0).all() and (pair[0, 2:] < 0).all() and np.array_equal(pair[1], pair[0].T)


def test_schedule_of_the_paper() -> None:
    shares = [changed_share(query, 10_000, 0.8) for query in (1, 10, 11, 50, 51, 200, 201, 8000, 8001, 10_000)]
    assert shares == [0.8 / 2**j for j in (0, 0, 1, 1, 2, 2, 3, 8, 9, 9)]
    assert changed_share(501, 1000, 0.8) == changed_share(5010, 10_000, 0.8) == 0.8 / 2**7


@NORMS
def test_an_image_does_not_know_its_batch(cnn, norm: str) -> None:
    net, x, y = cnn
    x, y = x[:6], y[:6].clone()
    y[2] = (y[2] + 1) % 3
    threat = ThreatModel(norm, {"linf": 0.05, "l2": 0.5, "l1": 1.5}[norm])

    def model(pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([net(image[None]) for image in pixels])  # a convolution's bits may depend on the batch

    kept = {"seed": 3, "queries": 150, "restarts": 2}
    state = torch.get_rng_state()
    whole = square(model, x, y, threat, image_ids=range(20, 26), **kept)
    assert 0 < whole.accuracy < whole.clean_correct.double().mean() and torch.equal(torch.get_rng_state(), state)
    assert whole.queries[2] == 0 and torch.equal(whole.x_adv[2], x[2])
    for row in range(6):
        alone = square(model, x[row : row + 1], y[row : row + 1], threat, image_ids=[20 + row], **kept)
        for name in ("x_adv", "best_loss", "broken_at", "broken_restart", "queries", "correct"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[row])
    other = square(model, x, y, threat, image_ids=range(20, 26), **{**kept, "seed": 4})
    assert not torch.equal(other.x_adv, whole.x_adv)


def test_cnn_broken_images_leave_and_are_counted(cnn) -> None:
    net, x, y = cnn
    rows = []

    def model(pixels: torch.Tensor) -> torch.Tensor:
        rows.append(len(pixels))
        return net(pixels)

    result = square(model, x, y, ThreatModel("linf", 0.05), seed=0, image_ids=range(24), queries=300)
    assert 0 < result.accuracy < 1 and torch.equal(net(result.x_adv).argmax(1) == y, result.correct)
    assert rows[1] == 24 and rows[1:-1] == sorted(rows[1:-1], reverse=True) and rows[-2] < 24
    assert sum(rows) == result.forward_evaluations == int(result.queries.sum()) + 48
    assert result.accuracy_per_step[-1] == result.accuracy and len(result.accuracy_per_step) == 301
    assert result.steps == 300 and (result.name, result.loss) == ("square", "margin")


def test_sees_through_masked_gradients() -> None:
    """Rounded logits have no gradient at all; Square needs none."""

    def model(x: torch.Tensor) -> torch.Tensor:
        value = (x - 0.5).flatten(1).mean(1)
        return (torch.stack([value + 0.02, value * 0], dim=1) * 200).round()

    x, y = torch.full((3, 1, 6, 6), 0.5), torch.zeros(3, dtype=torch.int64)
    assert not square(model, x, y, ThreatModel("linf", 0.03), seed=0, image_ids=range(3), queries=300).correct.any()


def test_random_model_keeps_every_image() -> None:
    draws = []

    def model(x: torch.Tensor) -> torch.Tensor:
        noise = 30.0 if len(draws) % 2 else -30.0
        value = (x - 0.5).flatten(1).sum(1)
        return torch.stack([value, noise * torch.ones_like(value)], dim=1)

    x, y = torch.full((3, 1, 4, 4), 0.55), torch.zeros(3, dtype=torch.int64)
    kept = {"seed": 0, "image_ids": range(3), "queries": 40, "eot": 4, "redraw": lambda: draws.append(0)}
    broken = square(model, x, y, ThreatModel("linf", 0.07), **kept)
    assert not broken.correct.any() and broken.verify_mismatches is None and broken.queries.tolist() == [160] * 3
    assert broken.forward_evaluations == 3 * 4 * 41 and len(draws) == 4 * 41
    assert square(model, x, y, ThreatModel("linf", 0.04), **kept).correct.all()


def test_progress_and_bad_input(models) -> None:
    x, model, seen = models.random_images(3), models.two_class(torch.ones(36), bias=100.0), []
    y, kept = torch.zeros(3, dtype=torch.int64), {"seed": 0, "image_ids": range(3), "queries": 3}
    square(model, x, y, ThreatModel("l2", 0.1), restarts=2, progress=seen.append, **kept)
    assert [(s["restart"], s["step"]) for s in seen] == [(r, q) for r in range(2) for q in (1, 2, 3)]
    assert seen[0] == {
        "attack": "square", "step": 1, "steps": 3, "restart": 0, "restarts": 2, "active": 3, "robust": 3, "total": 3,
    }  # fmt: skip
    for change in ({"queries": 0}, {"queries": 1.5}, {"p_init": 0.0}, {"p_init": 1.5}, {"restarts": 0}, {"seed": -1},
                   {"image_ids": [0]}, {"eot": 0}, {"y": y + 2}):  # fmt: skip
        with pytest.raises(InputError):
            square(**{"model": model, "x": x, "y": y, "threat": ThreatModel("l2", 0.1), **kept, **change})
