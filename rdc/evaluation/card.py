"""A finished evaluation in a few entries, for a model's description and for files that are exported from it."""

from __future__ import annotations

import os
from typing import Any

from rdc.errors import ConfigError, one_line
from rdc.evaluation.comparison import read_run
from rdc.evaluation.report import Report

__all__ = ["card_of_run", "evaluation_card"]


def evaluation_card(report: Report, source: str) -> dict[str, Any]:
    """``info.evaluation`` of a checkpoint: the headline, how it was measured, and of which classifier.

    Args:
        report: of a run with attacks.
        source: where the report is, for people.

    Raises:
        ConfigError: nothing attacked, or attacks within different radii.
    """
    threats = {(attack.norm, attack.eps) for attack in report.attacks}
    if report.robust.accuracy is None or len(threats) != 1 or None in next(iter(threats)):
        raise ConfigError(
            f"{one_line(source, 400)}: expected a run of rdc evaluate with attacks of one norm and radius; got "
            f"{len(report.attacks)} attacks of {len(threats)}"
        )
    ((norm, eps),) = threats
    gradients = sorted({attack.gradient for attack in report.attacks if attack.gradient})
    return {
        "dataset": report.dataset,
        "n": report.n,
        "norm": norm,
        "eps": eps,
        "attacks": [f"{attack.name}, {attack.steps} steps, noise {attack.noise}" for attack in report.attacks],
        "gradient": ", ".join(gradients) or None,
        "noise": " and ".join(sorted({attack.noise for attack in report.attacks})),
        "clean": report.clean.to_json(),
        "robust": {"accuracy": report.robust.accuracy, "ci95": list(report.robust.ci95 or ())},
        "classifier": dict(report.classifier),
        "from": source,
    }


def card_of_run(folder: str | os.PathLike[str], weights: str) -> dict[str, Any]:
    """The card of a run's folder.

    Args:
        folder: of rdc evaluate, finished.
        weights: digest of the weights that the card is for.

    Raises:
        ConfigError: not such a folder, no attack, or other weights. DataError: damaged.
    """
    run = read_run(folder)
    if run.identity.weights != weights:
        raise ConfigError(
            f"{one_line(os.fspath(folder), 400)}: expected a run of the same weights ({weights}); it evaluated {run.identity.weights}"
        )
    return evaluation_card(run.report, one_line(os.fspath(folder), 400))
