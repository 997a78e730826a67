"""Budgets read exactly; threat models, images, labels and ids refused with a clear error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdc.attacks import ThreatModel, attack_named, parse_eps
from rdc.attacks.threat_model import AttackRecord, check_images, check_labels
from rdc.errors import ConfigError, InputError, RdcError


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_fractions_are_exact(numerator: int, denominator: int) -> None:
    assert parse_eps(f"{numerator}/{denominator}") == numerator / denominator


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e-3", 1e-3),
        ("0.3", 0.3),
        ("0", 0.0),
        (0.25, 0.25),
        (1, 1.0),
        ("0.5/2", 0.25),
    ],
)
def test_parse_eps(text: str | float, value: float) -> None:
    assert parse_eps(text) == value and isinstance(parse_eps(text), float)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "8/",
        "8/0",
        "8/255/2",
        "-1",
        "-8/255",
        "nan",
        "inf",
        "eight",
        "8\\255",
        "1e999999999",
        "٣",
        -0.1,
        float("nan"),
        float("inf"),
        None,
        True,
    ],
)
def test_parse_eps_refuses(text: object) -> None:
    with pytest.raises(ConfigError, match="budget"):
        parse_eps(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("norm", "eps"),
    [
        ("l0", 0.1),
        ("l1", -1.0),
        ("linf", -0.1),
        ("linf", 8),
        ("l2", float("nan")),
        ("l2", float("inf")),
        ("linf", "8/255"),
        ("linf", True),
    ],
)
def test_threat_model_refuses(norm: str, eps: object) -> None:
    with pytest.raises(ConfigError):
        ThreatModel(norm, eps)  # type: ignore[arg-type]


def test_threat_model_is_a_value() -> None:
    assert ThreatModel("l2", 1) == ThreatModel("l2", 1.0) and ThreatModel("l2", 3.0).eps == 3.0
    with pytest.raises(AttributeError):
        ThreatModel("l2", 1.0).eps = 2.0  # type: ignore[misc]


X, Y, IDS = torch.full((3, 1, 2, 2), 0.5), torch.tensor([0, 1, 2]), [0, 1, 2]


def pixel(value: float) -> torch.Tensor:
    x = X.clone()
    x[1, 0, 1, 1] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "ids", "says"),
    [
        (pixel(float("nan")), Y, IDS, "NaN"),
        (pixel(float("inf")), Y, IDS, "infinity"),
        (pixel(1.5), Y, IDS, "255"),
        (pixel(-0.1), Y, IDS, r"\[0, 1\]"),
        (X.to(torch.uint8), Y, IDS, "uint8"),
        (X.double(), Y, IDS, "float32"),
        (X.numpy(), Y, IDS, "ndarray"),
        (X[0], Y, IDS, "N, C, H, W"),
        (X[:0], Y[:0], [], "non-empty"),
        (X, Y.int(), IDS, "int64"),
        (X, Y.float(), IDS, "int64"),
        (X, [0, 1, 2], IDS, "int64"),
        (X, Y[:2], IDS, "labels of shape"),
        (X, Y[:, None], IDS, "labels of shape"),
        (X, Y, [0, 1], "image_ids"),
        (X, Y, [0, 1, -2], "image_ids"),
        (X, Y, [0, 1, 2.0], "image_ids"),
        (X, Y, [0, 1, True], "image_ids"),
        (X, Y, torch.tensor([0.0, 1, 2]), "image_ids"),
    ],
)
def test_images_refused(x: object, y: object, ids: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_images(x, y, ids)  # type: ignore[arg-type]


def test_images_accepted() -> None:
    assert check_images(X, Y, torch.tensor([5, 6, 7])) == [5, 6, 7]
    assert check_images(X, Y, np.array([5, 6, 7])) == [5, 6, 7]
    assert check_images(X, Y, range(3)) == [0, 1, 2]


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_refused(label: int) -> None:
    with pytest.raises(InputError, match=f"label {label} is out of range"):
        check_labels(torch.tensor([0, label]), 3)


def test_unknown_attack() -> None:
    with pytest.raises(ConfigError, match="apgd-dlr"):
        attack_named("autopgd")


def record(correct: list[bool]) -> AttackRecord:
    flags = torch.tensor(correct)
    return AttackRecord(torch.full((len(correct), 1, 1, 1), 0.5), flags, torch.zeros_like(flags))


def add(rec: AttackRecord, row: int, value: float, loss: float, correct: bool, step: int) -> None:
    rec.add(
        torch.tensor([row]),
        torch.full((1, 1, 1, 1), value),
        torch.tensor([loss], dtype=torch.float64),
        torch.tensor([correct]),
        step=step,
        restart=0,
    )


def test_record_keeps_the_best_and_the_first_break() -> None:
    rec = record([True, True, False])
    add(rec, 0, 0.51, -3.0, True, 0)
    add(rec, 0, 0.52, -2.0, True, 1)
    add(rec, 0, 0.53, -4.0, True, 2)  # lower: not kept
    add(rec, 1, 0.54, 5.0, True, 0)
    add(rec, 1, 0.55, 1.0, False, 2)  # misclassified: kept although its loss is lower
    add(rec, 1, 0.56, 9.0, True, 3)  # right again (random model): does not replace a broken one
    result = rec.result(
        torch.full((3, 1, 1, 1), 0.5), ThreatModel("linf", 0.1), name="t", loss="ce", steps=3, restarts=1, eot=1,
        forward_evaluations=0, gradient_evaluations=0, verify_mismatches=None,
    )  # fmt: skip
    torch.testing.assert_close(result.x_adv.flatten(), torch.tensor([0.52, 0.55, 0.5]))
    assert (
        result.correct.tolist() == [True, False, False]
        and result.broken_at.tolist() == [-1, 2, 0]
        and result.broken_restart.tolist() == [-1, 0, -1]
    )
    assert result.best_loss.tolist() == [-2.0, 1.0, -np.inf]
    assert result.accuracy_per_step == [2 / 3, 2 / 3, 1 / 3, 1 / 3] and result.accuracy == pytest.approx(1 / 3)


def test_record_refuses_to_hand_out_a_broken_budget() -> None:
    rec = record([True])
    add(rec, 0, 0.65, 1.0, True, 0)
    with pytest.raises(RdcError, match="breaks its budget"):
        rec.result(torch.full((1, 1, 1, 1), 0.5), ThreatModel("linf", 0.1), steps=1)


def test_record_counts_what_the_check_finds() -> None:
    rec = record([True, True, True])
    add(rec, 1, 0.5, 1.0, False, 1)
    assert rec.verify(torch.tensor([False, True, True]), steps=4, restarts=2) == 2
    assert rec.correct.tolist() == [False, False, True]
    assert rec.broken_at.tolist() == [4, 1, -1] and rec.broken_restart.tolist() == [1, 0, -1]
