"""What is known of a model, for people: its licence, what it was trained on, how robust it is, where it comes from, its noise.

Taken from what the checkpoint records (``info`` of its description). What is not recorded is left out.
"""

from __future__ import annotations

import json
from typing import Any

from rdc.contracts import NoisePolicy
from rdc.errors import one_line
from rdc.method.classifier import DiffusionClassifier
from rdc.provenance.run import weights_digest
from rdc.storage.json_records import anything
from rdc.storage.structure import integer, mapping, number, optional, record, sequence, text

__all__ = ["card_of", "card_text"]

_RATE = record({"accuracy": number(0, 1), "ci95": sequence(number(0, 1), 2, 2)})
#: ``info.evaluation``: see rdc.evaluation.card.evaluation_card
_EVALUATION = record(
    {
        "dataset": text(),
        "n": integer(1),
        "norm": text(),
        "eps": number(0),
        "attacks": sequence(text(), 1, 100),
        "noise": text(),
        "clean": _RATE,
        "robust": _RATE,
        "classifier": mapping(anything),
    },
    {"gradient": optional(text()), "from": text()},
)
_WORDS = 600  # characters of a text


def card_of(
    classifier: DiffusionClassifier, info: dict[str, Any], int8: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The card of an exported classifier.

    Args:
        classifier: as it is exported.
        info: of the checkpoint's description; may hold anything.
        int8: how a file in eight bits answers beside the one in float32.

    Returns:
        JSON values: ``licence``, ``trained_on``, ``made_by`` (a command of rdc), ``origin``, ``accuracy`` (clean and robust with 95 %
        intervals, where recorded for these very levels, LM and noise; not of a file in eight bits), ``int8``, ``noise``,
        ``weights`` (a digest).
    """
    card = {
        key: one_line(info[name], _WORDS)
        for key, name in (("licence", "licence"), ("trained_on", "dataset"), ("origin", "origin"))
        if isinstance(info.get(name), str) and info[name].strip()
    }
    converted = info.get("converted_from")
    if "origin" not in card and isinstance(converted, dict):
        card["origin"] = one_line(f"converted from {converted.get('file')} ({converted.get('kind')})", _WORDS)
    command = info.get("command")
    if isinstance(command, str) and command in ("train", "distill", "convert"):
        card["made_by"] = f"rdc {command}"
    accuracy = _accuracy(classifier, info.get("evaluation")) if int8 is None else None
    fixed = classifier.noise_policy == NoisePolicy.FIXED
    return {
        **card,
        **({"accuracy": accuracy} if accuracy else {}),
        **({"int8": int8} if int8 is not None else {}),
        "noise": {"policy": str(classifier.noise_policy), **({"seed": classifier.noise_seed} if fixed else {})},
        "weights": weights_digest(classifier),
    }


def card_text(card: dict[str, Any]) -> str:
    """The card in words, a line for each entry."""
    words = {"licence": "Licence", "trained_on": "Trained on", "made_by": "Made by", "origin": "Origin"}
    lines = [f"{word}: {card[key]}" for key, word in words.items() if key in card]
    if accuracy := card.get("accuracy"):
        how = "; ".join(accuracy["attacks"])
        lines.append(
            f"Clean accuracy: {_percent(accuracy['clean'])}; under attack ({accuracy['norm']} {accuracy['eps']:.4g}: {how}): "
            f"{_percent(accuracy['robust'])}; {accuracy['n']} test images of {accuracy['dataset']}. A stronger attack may leave less."
        )
    if int8 := card.get("int8"):
        lines.append(
            f"Eight bits: clean accuracy {_percent(int8['accuracy_int8'])} on {int8['images']} images of {int8['data']}, in float32 "
            f"{_percent(int8['accuracy_float32'])}; {int8['same_decisions']} decisions are the same. Not evaluated under attack."
        )
    noise = card["noise"]
    draw = (
        f"one draw (seed {noise['seed']}), in the file: whoever has the file knows it" if "seed" in noise else "fresh"
    )
    return "\n".join(one_line(line, 4 * _WORDS) for line in (*lines, f"Noise: {draw}.", f"Weights: {card['weights']}"))


def _accuracy(classifier: DiffusionClassifier, found: object) -> dict[str, Any] | None:
    """The recorded figures, of the right types, where they were measured with these settings; else None."""
    if not isinstance(found, dict):
        return None
    try:
        _EVALUATION(found, "evaluation")
    except (ValueError, TypeError):
        return None
    if _settings(found["classifier"]) != _settings(json.loads(json.dumps(classifier.describe()))):
        return None
    return {key: value for key, value in found.items() if key != "classifier"}


def _settings(described: dict[str, Any]) -> tuple[Any, ...]:
    """Of a described classifier, what decides its answers beside the weights."""
    levels = described.get("levels")
    levels = levels if isinstance(levels, dict) else {}
    rounded = [[float(f"{float(value):.9g}") for value in levels.get(key) or ()] for key in ("sigma", "weight")]
    return rounded, described.get("lm"), described.get("noise"), described.get("precision")


def _percent(rate: dict[str, Any]) -> str:
    low, high = rate["ci95"]
    return f"{100 * rate['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
