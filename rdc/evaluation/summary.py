"""From per-image results to figures: report.json's content, accuracy against steps, accuracy per class."""

from __future__ import annotations

import dataclasses
from typing import Any

from rdc.evaluation.flags import raise_flags
from rdc.statistics.proportions import wilson_interval

__all__ = ["REPORT_SCHEMA", "Curve", "accuracy_per_class", "accuracy_per_step", "summarize"]

REPORT_SCHEMA = "rdc-report-2"
_DIGITS = 6


def summarize(run: dict[str, Any], batches: list[dict[str, Any]], sanity: dict[str, Any]) -> dict[str, Any]:
    """report.json.

    Args:
        run: run.json.
        batches: all batches of the folder.
        sanity: what ``evaluation.sanity`` found.

    Returns:
        schema, model, dataset, n, seed, classifier, clean, robust, scores, attacks, sanity, flags, network_evaluations,
        seconds, command, commit, versions. An attack's accuracy is that of the cascade under its noise policy: right
        when clean and under every attack up to and including this one. ``scores`` has every way of scoring, ``robust`` the
        lowest of those that the noise policy asks for: ``known``, or of fresh noise ``average``, ``majority``, ``worst``.
    """
    identity = run["identity"]
    settings = identity["settings"]
    totals = _totals(identity, batches)
    totals["sanity"] = sanity
    n = totals["n"]
    attacks = []
    for total in totals["attacks"]:
        attack = {
            "name": total["name"],
            "norm": settings["norm"],
            "eps": totals["eps"],
            "steps": total["steps"],
            "restarts": total["restarts"],
            "gradient": total["gradient"],
            "noise": total["policy"],
            "eot": settings["eot"] if total["policy"] == "fresh" else 1,
            **_rate(total["survivors"], n),
            "seconds": round(total["seconds"], 3),
            "attacked": total["attacked"],
            "broken": total["broken"],
            "survivors": total["survivors"],
            "network_evaluations": total["evaluations"],
        }
        if total["policy"] == "fresh":
            attack["average"] = _rate(total["right"], n)
        attacks.append(attack)
    classifier = identity["classifier"]
    return {
        "schema": REPORT_SCHEMA,
        "model": settings["model"],
        "dataset": settings["dataset"],
        "n": n,
        "seed": settings["seed"],
        "classifier": {key: classifier.get(key) for key in ("levels", "weighting", "lm", "noise", "head", "precision")},
        "clean": totals["clean"],
        "robust": totals["robust"],
        "scores": totals["scores"],
        "attacks": attacks,
        "sanity": sanity,
        "flags": raise_flags(identity, totals),
        "network_evaluations": totals["network_evaluations"] + sanity.get("network_evaluations", 0),
        "seconds": round(totals["seconds"], 3),
        "command": run["command"],
        "commit": ", ".join(str(commit) for commit in run["commits"]) if run["commits"] != [None] else None,
        "versions": run["versions"],
    }


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracy while one attack goes on.

    Args:
        name: of the attack.
        noise: policy.
        steps, restarts: of the attack.
        at: m places in [0, 1], the attack's steps over all restarts; 0 and 1 are among them.
        accuracy: m fractions of all images that are not misclassified up to there, by this attack, those before it under
            the same policy, or when clean.
    """

    name: str
    noise: str
    steps: int
    restarts: int
    at: list[float]
    accuracy: list[float]


def accuracy_per_step(attacks: list[dict[str, Any]], images: list[dict[str, Any]]) -> list[Curve]:
    """Robust accuracy while the attacks go on.

    Args:
        attacks: of report.json (name, noise, steps, restarts).
        images: all image records.

    Returns:
        One curve for each attack, in order.
    """
    curves = []
    right: dict[str, dict[int, bool]] = {}
    for attack in attacks:
        policy = attack["noise"]
        state = right.setdefault(policy, {record["image"]: record["clean"]["right"] > 0 for record in images})
        standing = sum(state.values())
        length = max(1, attack["restarts"]) * (attack["steps"] + 1)
        falls: dict[float, int] = {}
        for record in images:
            for entry in record["attacks"]:
                if (entry["name"], entry["noise"]) != (attack["name"], policy) or not state[record["image"]]:
                    continue
                if entry["step"] >= 0 or entry["right"] == 0:
                    place = 1.0
                    if entry["step"] >= 0:
                        place = min(1.0, (max(entry["restart"], 0) * (attack["steps"] + 1) + entry["step"]) / length)
                    falls[place] = falls.get(place, 0) + 1
                    state[record["image"]] = False
        at, accuracy = [0.0], [(standing - falls.pop(0.0, 0)) / len(images)]
        for place in sorted(falls):
            at.append(place)
            accuracy.append(accuracy[-1] - falls[place] / len(images))
        if at[-1] < 1:
            at.append(1.0)
            accuracy.append(accuracy[-1])
        curves.append(Curve(attack["name"], policy, attack["steps"], attack["restarts"], at, accuracy))
    return curves


def accuracy_per_class(images: list[dict[str, Any]], num_classes: int) -> list[dict[str, Any]]:
    """Per class: n, and how many are right, in all draws, when clean and under attack (None without attacks)."""
    rows = []
    of_class: dict[int, list[dict[str, Any]]] = {}
    for record in images:
        of_class.setdefault(record["label"], []).append(record)
    for label in range(num_classes):
        members = of_class.get(label, [])
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
    clean = _rate(sum(record["clean"]["right"] for record in images), n)
    scores, robust = _scores(settings, images, n)
    return {
        "n": n,
        "eps": identity.get("radius"),
        "clean": clean,
        "robust": robust,
        "scores": scores,
        "attacks": _attacks(images, closing),
        "late": _broken_late(images, closing),
        "checks": closing[0]["checks"],
        **{
            key: sum(total[key] for total in closing)
            for key in ("mismatches", "non_finite", "network_evaluations", "seconds")
        },
    }


def _attacks(images: list[dict[str, Any]], closing: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every attack under every policy, summed over batches."""
    summed = (
        "attacked", "survivors", "right", "blind_images", "non_finite_images", "verify_mismatches", "evaluations", "seconds",
    )  # fmt: skip
    attacks = []
    for place in range(len(closing[0]["attacks"])):
        parts = [total["attacks"][place] for total in closing]
        name, policy = parts[0]["name"], parts[0]["policy"]
        entries = [e for r in images for e in r["attacks"] if (e["name"], e["noise"]) == (name, policy)]
        losses = {part["loss"] for part in parts} - {None}
        attacks.append(
            {
                "name": name,
                "policy": policy,
                "gradient": parts[0]["gradient"],
                "loss": min(losses, default=None),
                "steps": max(part["steps"] for part in parts),
                "restarts": max(part["restarts"] for part in parts),
                "broken": sum(entry["right"] < 1 for entry in entries),
                **{key: sum(part[key] for part in parts) for key in summed},
            }
        )
    return attacks


def _scores(settings: dict[str, Any], images: list[dict[str, Any]], n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every scoring, and the headline: the lowest of those that the noise policy asks for."""
    if not settings["attacks"]:
        return {}, {"accuracy": None, "ci95": None}
    found: dict[str, Any] = {}
    if "known" in images[0]["scores"]:
        found["known"] = _rate(sum(record["scores"]["known"] for record in images), n)
    if "fresh" in images[0]["scores"]:
        fresh = [record["scores"]["fresh"] for record in images]
        found["average"] = _rate(sum(score["right"] for score in fresh), n)
        found["majority"] = _rate(sum(score["majority"] for score in fresh), n)
        found["worst"] = _rate(sum(score["right"] == 1 for score in fresh), n)
        found["submissions"] = settings["resubmissions"]
    robust = _rate(sum(record["robust"] for record in images), n)
    if settings["noise"] != "known":
        robust["average"] = found["average"]
        robust["worst_of"] = settings["resubmissions"]
    return found, robust


def _broken_late(images: list[dict[str, Any]], closing: list[dict[str, Any]]) -> dict[str, int]:
    """How many images each attack broke in the last tenth of its steps."""
    steps: dict[tuple[str, str], int] = {}
    for total in closing:
        for part in total["attacks"]:
            key = (part["name"], part["policy"])
            steps[key] = max(steps.get(key, 0), part["steps"])
    late: dict[str, int] = {}
    for record in images:
        for entry in record["attacks"]:
            if entry["step"] > 0.9 * steps[entry["name"], entry["noise"]]:
                late[entry["name"]] = late.get(entry["name"], 0) + 1
    return late
