"""HopSkipJump: distances on linear models, decisions alone, budgets, queries, an image that does not know its batch."""

from __future__ import annotations

import pytest
import torch

import rdc.attacks.hop_skip_jump as module
from rdc.attacks import ThreatModel, parse_attack
from rdc.attacks.apgd import apgd
from rdc.attacks.hop_skip_jump import hop_skip_jump
from rdc.errors import InputError
from rdc.norm_balls import distance

WEIGHT = torch.randn(36, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
KEPT = {"seed": 0, "image_ids": range(4)}


def images() -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def decisions(bias: float = 0.0):
    """Two classes by a plane; one-hot answers: no score, no gradient."""

    def model(x: torch.Tensor) -> torch.Tensor:
        side = ((x.double() - 0.5).flatten(1) * WEIGHT).sum(1) + bias > 0
        return torch.nn.functional.one_hot(side.long(), 2).float()

    return model


def margins(x: torch.Tensor) -> torch.Tensor:
    return ((x.double() - 0.5).flatten(1) * WEIGHT).sum(1)


@pytest.mark.parametrize(("norm", "slack"), [("l2", 1.1), ("linf", 1.2), ("l1", 4.0)])
def test_finds_the_nearest_of_a_plane(norm: str, slack: float) -> None:
    """Within a tenth of the distance (l_2), a fifth (l_inf); in l_1 it walks in l_2 steps and is far from the best."""
    x, model = images(), decisions()
    y = model(x).argmax(1)
    found = hop_skip_jump(model, x, y, ThreatModel(norm, 1e-4), queries=6000, **KEPT)
    dual = {"l2": WEIGHT.norm(), "linf": WEIGHT.abs().sum(), "l1": WEIGHT.abs().max()}[norm]
    true = margins(x).abs() / dual
    assert found.correct.all() and (found.minimal_distance >= true * 0.999).all()
    assert (found.minimal_distance <= slack * true).all(), found.minimal_distance / true
    assert (found.queries >= 6000).all() and (found.queries < 8000).all()
    assert torch.equal(found.best_loss, 1e-4 - found.minimal_distance)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_breaks_what_gradients_cannot_see(norm: str) -> None:
    """Budget kept to the last bit; an image leaves when it is broken."""
    x, model = images(), decisions()
    y = model(x).argmax(1)
    dual = WEIGHT.norm() if norm == "l2" else WEIGHT.abs().sum()
    eps = 1.3 * float(margins(x).abs().max() / dual)
    threat = ThreatModel(norm, eps)
    found = hop_skip_jump(model, x, y, threat, queries=6000, **KEPT)
    assert not found.correct.any() and found.verify_mismatches == 0
    assert (distance(found.x_adv, x, norm) <= eps).all() and (model(found.x_adv).argmax(1) != y).all()
    assert (found.broken_at > 0).all() and (found.broken_at <= found.queries).all() and found.gradient_evaluations == 0
    with pytest.raises(InputError, match="differentiably"):
        apgd(model, x, y, threat, steps=2, **KEPT)


def test_an_image_does_not_know_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, model = images(), decisions(0.1)
    y = model(x).argmax(1)
    y[2] = 1 - y[2]  # misclassified already
    threat, kept = ThreatModel("linf", 0.02), {"seed": 5, "queries": 800, "draws": 30, "restarts": 2}
    whole = hop_skip_jump(model, x, y, threat, image_ids=range(4), **kept)
    assert whole.broken_at[2] == 0 and whole.queries[2] == 0 and whole.minimal_distance[2] == 0
    monkeypatch.setattr(module, "_AT_ONCE", 1)  # pieces of one image
    for row in range(4):
        alone = hop_skip_jump(model, x[row : row + 1], y[row : row + 1], threat, image_ids=[row], **kept)
        for name in ("x_adv", "correct", "broken_at", "broken_restart", "queries", "minimal_distance", "best_loss"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[row]), name
    pieces = hop_skip_jump(model, x, y, threat, image_ids=range(4), **kept)
    assert torch.equal(pieces.x_adv, whole.x_adv) and torch.equal(pieces.queries, whole.queries)
    other = hop_skip_jump(model, x, y, threat, image_ids=range(4), **{**kept, "seed": 6})
    assert not torch.equal(other.minimal_distance, whole.minimal_distance)


def test_directions_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one image's directions fill the memory they come in pieces: as many queries, a gradient as good."""
    x, model = images(), decisions()
    y, threat = model(x).argmax(1), ThreatModel("l2", 1e-4)
    whole = hop_skip_jump(model, x, y, threat, queries=3000, **KEPT)
    monkeypatch.setattr(module, "_OF_ONE", 36 * 40)  # 40 directions at a time
    pieces = hop_skip_jump(model, x, y, threat, queries=3000, **KEPT)
    assert not torch.equal(pieces.x_adv, whole.x_adv)
    assert (pieces.minimal_distance <= 1.15 * margins(x).abs() / WEIGHT.norm()).all()


def test_nothing_to_begin_at() -> None:
    """A model with one class for all: no starting point, every image stands, the queries are those of the search for one."""

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.flatten(1).sum(1) * 0 + 1, x.flatten(1).sum(1) * 0], dim=1)

    x, y = images(), torch.zeros(4, dtype=torch.int64)
    found = hop_skip_jump(model, x, y, ThreatModel("l2", 1.0), **KEPT)
    assert found.correct.all() and torch.equal(found.x_adv, x) and (found.queries == 24).all()
    assert found.minimal_distance.isinf().all()


def test_a_list_asks_for_it() -> None:
    spec = parse_attack("hop-skip-jump:queries=200:draws=10")
    assert spec.kind.norms == ("linf", "l2", "l1") and not spec.kind.white_box
