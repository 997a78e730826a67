"""From per-image results to figures: report.json's content, accuracy against steps, accuracy per class."""

from __future__ import annotations

from typing import Any

from rdc.evaluation.flags import raise_flags
from rdc.statistics import wilson_interval

__all__ = ["REPORT_SCHEMA", "accuracy_per_class", "accuracy_per_step", "summarize"]

REPORT_SCHEMA = "rdc-report-1"
_DIGITS = 6


def summarize(run: dict[str, Any], batches: list[dict[str, Any]]) -> dict[str, Any]:
    """report.json.

    Args:
        run: run.json.
        batches: all batches of the folder.

    Returns:
        schema, model, dataset, n, seed, classifier, clean, robust, attacks, flags, network_evaluations, seconds,
        command, commit, versions. An attack's accuracy is that of the cascade: right when clean and under every
        attack up to and including this one.
    """
    identity = run["identity"]
    settings = identity["settings"]
    totals = _totals(identity, batches)
    n, fresh = totals["n"], settings["noise"] == "fresh"
    attacks = []
    for total in totals["attacks"]:
        attack = {
            "name": total["name"],
            "norm": settings["norm"],
            "eps": totals["eps"],
            "steps": settings["steps"],
            "restarts": settings["restarts"],
            "gradient": settings["gradient"],
            "noise": settings["noise"],
            "eot": settings["eot"],
            **_rate(total["survivors"], n),
            "seconds": round(total["seconds"], 3),
            "attacked": total["attacked"],
            "survivors": total["survivors"],
        }
        if fresh:
            attack["average"] = _rate(total["right"], n)
        attacks.append(attack)
    classifier = identity["classifier"]
    return {
        "schema": REPORT_SCHEMA,
        "model": settings["model"],
        "dataset": settings["dataset"],
        "n": n,
        "seed": settings["seed"],
        "classifier": {key: classifier.get(key) for key in ("levels", "weighting", "lm", "noise", "head")},
        "clean": totals["clean"],
        "robust": totals["robust"],
        "attacks": attacks,
        "flags": raise_flags(identity, totals),
        "network_evaluations": totals["network_evaluations"],
        "seconds": round(totals["seconds"], 3),
        "command": run["command"],
        "commit": ", ".join(str(commit) for commit in run["commits"]) if run["commits"] != [None] else None,
        "versions": run["versions"],
    }


def accuracy_per_step(settings: dict[str, Any], images: list[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    """Robust accuracy while the attacks go on.

    Args:
        settings: of run.json.
        images: all image records.

    Returns:
        For each attack its name and restarts * (steps + 1) fractions of all images: not misclassified when clean, by an
        attack before, nor by this attack up to that step.
    """
    right = {record["image"]: record["clean"]["right"] > 0 for record in images}
    steps, restarts = settings["steps"], settings["restarts"]
    curves = []
    for name in settings["attacks"]:
        broken = [0] * (restarts * (steps + 1))
        standing = sum(right.values())
        for record in images:
            for attack in record["attacks"]:
                if attack["name"] == name and right[record["image"]] and (attack["step"] >= 0 or attack["right"] == 0):
                    place = max(attack["restart"], 0) * (steps + 1) + attack["step"] if attack["step"] >= 0 else -1
                    broken[place] += 1
                    right[record["image"]] = False
        curve = []
        for count in broken:
            standing -= count
            curve.append(standing / len(images))
        curves.append((name, curve))
    return curves


def accuracy_per_class(images: list[dict[str, Any]], num_classes: int) -> list[dict[str, Any]]:
    """Per class: n, and how many are right, in all draws, when clean and under attack (None without attacks)."""
    rows = []
    for label in range(num_classes):
        members = [record for record in images if record["label"] == label]
        robust = [record["robust"] for record in members]
        rows.append(
            {
                "label": label,
                "n": len(members),
                "clean": sum(record["clean"]["right"] == 1 for record in members),
                "robust": None if None in robust else sum(robust),
            }
        )
    return rows


def _rate(successes: float, n: int) -> dict[str, Any]:
    return {
        "accuracy": round(successes / n, _DIGITS),
        "ci95": [round(end, _DIGITS) for end in wilson_interval(successes, n)],
    }


def _totals(identity: dict[str, Any], batches: list[dict[str, Any]]) -> dict[str, Any]:
    settings = identity["settings"]
    images = [record for batch in batches for record in batch["images"]]
    closing = [batch["totals"] for batch in batches]
    n = len(images)
    summed = ("attacked", "survivors", "right", "blind_images", "non_finite_images", "verify_mismatches", "seconds")
    attacks = []
    for place, name in enumerate(settings["attacks"]):
        parts = [total["attacks"][place] for total in closing]
        losses = {part["loss"] for part in parts} - {None}
        attacks.append(
            {
                "name": name,
                "loss": min(losses, default=None),
                **{key: sum(part[key] for part in parts) for key in summed},
            }
        )
    clean = _rate(sum(record["clean"]["right"] for record in images), n)
    robust: dict[str, Any] = {"accuracy": None, "ci95": None}
    if settings["attacks"]:
        robust = _rate(sum(record["robust"] for record in images), n)
        if settings["noise"] == "fresh":
            robust["average"] = _rate(sum(record["adversarial"]["right"] for record in images), n)
            robust["worst_of"] = settings["resubmissions"]
    return {
        "n": n,
        "eps": identity.get("radius"),
        "clean": clean,
        "robust": robust,
        "attacks": attacks,
        "late": _broken_late(settings, images),
        "checks": closing[0]["checks"],
        **{
            key: sum(total[key] for total in closing)
            for key in ("mismatches", "non_finite", "network_evaluations", "seconds")
        },
    }


def _broken_late(settings: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, int]:
    late = dict.fromkeys(settings["attacks"], 0)
    for record in images:
        for attack in record["attacks"]:
            if attack["step"] > 0.9 * settings["steps"]:
                late[attack["name"]] += 1
    return late
