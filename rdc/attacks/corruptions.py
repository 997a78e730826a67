"""Common corruptions as a threat: noise, blur, little contrast, compression; the worst of all kinds and severities up to a bound.

Nobody optimises anything here: the attacker may choose, for each image, one of the corruptions that the threat allows. Each is a query; an
image is broken by the first that is misclassified. Accuracy under one kind alone is that under the list ``corruptions:kind=contrast``.

An image's noise depends on (seed, image id, kind, severity, restart) and on nothing else. Corruptions are made of eight-bit images
(``rdc.data.corruptions``), as the published sets are: pixels are rounded to the nearest of 256 first.

Source: Hendrycks & Dietterich 2019 (arXiv 1903.12261) for kinds and strengths.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.scalars import as_number, shown
from rdc.attacks.entry import attack
from rdc.attacks.losses import Model, Objective
from rdc.attacks.options import AttackOptions, word
from rdc.attacks.threat_model import AttackRecord, AttackResult, ThreatModel, check_images
from rdc.data.corruptions import KINDS, SEVERITIES, corrupted
from rdc.errors import ConfigError, InputError

__all__ = ["CORRUPTIONS", "CorruptionOptions", "CorruptionThreat", "corruptions"]

CORRUPTIONS = tuple(name.replace("_", "-") for name in KINDS)  # as lists of attacks write them
_ANYWHERE = ThreatModel("linf", 1.0)


@dataclasses.dataclass(frozen=True)
class CorruptionThreat:
    """Set of images the attacker may hand in: the image itself, and each of its corruptions of severity 1 to ``severity``.

    Args:
        severity: 1 to 5, or 0: the image alone.

    Raises:
        ConfigError: no such number.
    """

    severity: float

    def __post_init__(self) -> None:
        severity = as_number(self.severity)
        if severity is None or not 0 <= severity <= SEVERITIES[-1] or not severity.is_integer():
            raise ConfigError(f"severity: expected an integer of 0 to {SEVERITIES[-1]}; got {shown(self.severity)}")
        object.__setattr__(self, "severity", int(severity))

    @property
    def norm(self) -> str:
        """``"corruption"``."""
        return "corruption"

    @property
    def eps(self) -> float:
        """The severity, under the name a radius has in ThreatModel."""
        return float(self.severity)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CorruptionOptions(AttackOptions):
    """Options of :func:`corruptions`.

    Args:
        restarts: draws of the noise, where a kind has any.
        kind: one of :data:`CORRUPTIONS`, or ``"all"``.
    """

    kind: str = word("all", ("all", *CORRUPTIONS))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("all", *CORRUPTIONS):
            raise ConfigError(f"unknown kind {self.kind!r}; expected all, {', '.join(CORRUPTIONS)}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds tried, in turn."""
        return tuple(KINDS) if self.kind == "all" else (self.kind.replace("-", "_"),)


@attack(CorruptionOptions)
def corruptions(
    model: Model, x: Tensor, y: Tensor, threat: CorruptionThreat, options: CorruptionOptions
) -> AttackResult:
    """Every corruption that the threat allows, the strongest first (module docstring).

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; asked for logits only.
        x: [N, C, H, W] float32 in [0, 1], C 1 or 3.
        y: [N] int64 true labels.
        threat: CorruptionThreat.
        options: CorruptionOptions; a call gives its fields as keywords.

    Returns:
        AttackResult: step k is the k-th corruption tried; ``best_loss`` is the margin.

    Raises:
        InputError, ConfigError: an argument is not as above.
    """
    if not isinstance(threat, CorruptionThreat):
        raise ConfigError(f"corruptions attacks in corruption, got {threat.norm}; use CorruptionThreat(severity)")
    ids = check_images(x, y, options.image_ids)
    if x.shape[1] not in (1, 3):
        raise InputError(f"corruptions: expected images of 1 or 3 channels; got {x.shape[1]}")
    objective = Objective(model, "margin", **options.scoring)
    x, y = x.detach(), y.to(x.device)
    *clean, scale = objective.start(x, y)
    record = AttackRecord(x, *clean)
    tried = [(kind, severity) for severity in range(int(threat.severity), 0, -1) for kind in options.kinds]
    for restart in range(options.restarts):
        _restart(objective, record, x, y, scale, ids, tried, options, restart)
    mismatches = None
    if options.verify and not objective.is_random:
        right = objective.evaluate(record.x_adv, y, scale, gradient=False).correct
        mismatches = record.verify(right, len(tried), options.restarts)
    result = record.result(
        x,
        _ANYWHERE,
        name="corruptions",
        loss="margin",
        steps=len(tried),
        restarts=options.restarts,
        eot=options.eot,
        forward_evaluations=objective.forward_evaluations,
        gradient_evaluations=0,
        verify_mismatches=mismatches,
    )
    threats: object = threat
    return dataclasses.replace(result, threat=threats)  # type: ignore[arg-type]  # a threat model of its own, as a flow is


def _restart(
    objective: Objective,
    record: AttackRecord,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    ids: list[int],
    tried: list[tuple[str, int]],
    options: CorruptionOptions,
    restart: int,
) -> None:
    """Each corruption of ``tried``, of the images that still stand."""
    eight_bits = (255 * x).round().to(torch.uint8).cpu().numpy()
    for step, (kind, severity) in enumerate(tried, 1):
        rows = (record.clean_correct if objective.is_random else record.correct).nonzero()[:, 0]
        if rows.numel() == 0:
            return
        places = rows.tolist()
        named = np.array([ids[row] for row in places])
        found = corrupted(eight_bits[places], kind, severity, named, options.seed + restart)
        point = torch.from_numpy(found).to(x.device).float() / 255
        seen = objective.evaluate(point, y[rows], scale[rows], gradient=False)
        record.ask(rows, objective.eot * len(rows))
        record.add(rows, point, seen.loss, seen.correct, step=step, restart=restart, right_once=seen.right_once)
        record.non_finite_logits[rows] |= seen.non_finite
        if options.progress is not None:
            where = {"step": step, "steps": len(tried), "restart": restart, "restarts": options.restarts}
            count = {"active": rows.numel(), "robust": int(record.correct.sum()), "total": len(ids)}
            options.progress({"attack": "corruptions", **where, **count})
