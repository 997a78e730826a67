"""Common corruptions as a threat: the worst of all that are allowed, image by image; noise by image id; names, severities, evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdc.attacks import ThreatModel, parse_attack
from rdc.attacks.corruptions import CORRUPTIONS, CorruptionThreat, corruptions
from rdc.attacks.registry import applies
from rdc.data.corruptions import KINDS, corrupted
from rdc.errors import ConfigError, InputError
from rdc.evaluation import EvaluationSettings, evaluate, parse_threats
from rdc.evaluation.threats import attacks_within
from rdc.reports.words import wording
from tests.evaluation_models import gaussian_classifier, labelled_by

IDS = [3, 8, 11, 40]


def images(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return (255 * drawn).round() / 255, torch.zeros(count, dtype=torch.int64)


def flat(x: torch.Tensor) -> torch.Tensor:
    """Class 0 while an image has contrast: its spread is above 0.15."""
    spread = torch.stack([image.std() for image in x])
    return torch.stack([spread, torch.full_like(spread, 0.15)], dim=1)


def test_an_image_stands_if_it_is_right_under_every_corruption() -> None:
    """By loops over kinds and severities, each image by itself."""
    x, y = images()
    eight = (255 * x).round().to(torch.uint8).numpy()
    for severity in (0, 2, 5):
        result = corruptions(flat, x, y, CorruptionThreat(severity), seed=5, image_ids=IDS)
        for row, image_id in enumerate(IDS):
            tried = [
                corrupted(eight[row : row + 1], kind, level, np.array([image_id]), 5)
                for kind in KINDS
                for level in range(1, severity + 1)
            ]
            stands = all(int(flat(torch.from_numpy(made).float() / 255).argmax(1)) == 0 for made in tried)
            assert bool(result.correct[row]) == stands
            allowed = [torch.from_numpy(made).float() / 255 for made in tried] + [x[row : row + 1]]
            assert any(torch.equal(result.x_adv[row : row + 1], image) for image in allowed)
        assert result.steps == 6 * severity and result.threat.norm == "corruption" and result.gradient_evaluations == 0
    assert not result.correct.any()  # a seventh of the contrast


def test_a_kind_alone_and_draws_of_the_noise() -> None:
    x, y = images()
    noise = corruptions(flat, x, y, CorruptionThreat(5), kind="gaussian-noise", seed=0, image_ids=IDS)
    assert noise.correct.all() and noise.steps == 5 and noise.queries is not None
    again = corruptions(flat, x, y, CorruptionThreat(5), kind="gaussian-noise", seed=0, image_ids=IDS, restarts=3)
    assert again.queries is not None and (again.queries == 3 * noise.queries).all()
    alone = corruptions(flat, x[2:3], y[2:3], CorruptionThreat(5), kind="gaussian-noise", seed=0, image_ids=[11])
    assert torch.equal(alone.x_adv[0], noise.x_adv[2])


def test_names_and_numbers() -> None:
    x, y = images()
    assert len(CORRUPTIONS) == 6 and "jpeg-compression" in CORRUPTIONS
    assert CorruptionThreat(3.0).severity == 3 and CorruptionThreat(3).eps == 3.0
    for wrong in (6, -1, 2.5, "two"):
        with pytest.raises(ConfigError, match="integer of 0 to 5"):
            CorruptionThreat(wrong)
    with pytest.raises(ConfigError, match="unknown kind"):
        corruptions(flat, x, y, CorruptionThreat(1), kind="fog")
    with pytest.raises(ConfigError, match="CorruptionThreat"):
        corruptions(flat, x, y, ThreatModel("linf", 0.1))
    with pytest.raises(InputError, match="1 or 3 channels"):
        corruptions(flat, torch.rand(1, 2, 8, 8), y[:1], CorruptionThreat(1))
    assert attacks_within("corruption", ["autoattack", "apgd-ce"]) == ("corruptions",)
    assert parse_threats("corruption:3")[0].folder == "corruption-3"
    with pytest.raises(ConfigError, match="kind is one of all, gaussian-noise"):
        parse_attack("corruptions:kind=fog")
    assert "not in corruption" in str(applies(parse_attack("apgd-ce"), gaussian_classifier(), "corruption", "known"))
    with pytest.raises(ConfigError, match="severity"):
        EvaluationSettings("m", "d", norm="corruption", eps="8/255", attacks="corruptions")


def test_an_evaluation_reports_it(tmp_path) -> None:
    classifier = gaussian_classifier()
    data = labelled_by(classifier, 10, wrong=2)
    settings = EvaluationSettings(
        "m", "d", n=10, norm="corruption", eps="5", attacks="corruptions:kind=contrast,corruptions", sanity=0
    )
    evaluation = evaluate(classifier, data, settings, tmp_path / "run", progress=False)
    left = [attack["accuracy"] for attack in evaluation.report["attacks"]]
    assert left == sorted(left, reverse=True) and left[0] <= 0.8
    assert wording(evaluation).budget == "corruptions, severity 5"
