"""How an evaluation calls an attack: which copy of the defence, with which arguments."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from rdc.attacks import AttackResult, ConfiguredAttack
from rdc.attacks.registry import AttackSpec
from rdc.contracts import Defence, GradientMode, NoisePolicy
from rdc.errors import ConfigError
from rdc.evaluation.settings import EvaluationSettings
from rdc.norm_balls import BUDGETS

__all__ = ["Bench", "in_precision", "run_attack"]

_OTHER_DRAWS = 2**32  # the first that gradients of another precision take under fresh noise
_SURROGATE_EOT = 5  # draws averaged for a gradient of a surrogate with fresh noise: each costs as much as the defence


class Bench:
    """Copies of a defence for one batch under one noise policy; their draws start anew, so that no batch depends on another.

    Args:
        classifier: the defence.
        settings: of the evaluation.
        index: number of the batch.
        policy: "known" or "fresh".
    """

    def __init__(self, classifier: Defence, settings: EvaluationSettings, index: int, policy: str) -> None:
        self.classifier, self.policy = classifier, policy
        self._gradient = settings.gradient or GradientMode.EXACT
        self.precision = settings.attack_precision
        self._changes: dict[str, Any] = {"noise": NoisePolicy(policy)}
        if policy == "fresh":
            word = hashlib.sha256(f"rdc evaluation {settings.seed} {index}".encode()).digest()[:8]
            self._changes["noise_seed"] = int.from_bytes(word, "little")
        self._models: dict[tuple[str, bool], Defence] = {}
        self._helpers: list[Defence] = []

    def gradient_of(self, spec: AttackSpec) -> str | None:
        """The gradient mode of an attack; None if it uses no gradients."""
        return spec.get("gradient", self._gradient) if spec.kind.white_box else None

    def model(self, gradient: str | None = None, rounded: bool = False) -> Defence:
        """The copy with this gradient mode (None: that of the settings); ``rounded``: in the precision of the attacks' gradients."""
        key = (gradient or self._gradient, rounded and self.precision is not None)
        if key not in self._models:
            made = self.classifier.with_(**self._changes, gradient=key[0])
            self._models[key] = self._rounded(made) if key[1] else made
        return self._models[key]

    def _rounded(self, made: Defence) -> Defence:
        """In the precision of the attacks' gradients; under fresh noise with draws that the decisions do not meet."""
        found = in_precision(made, str(self.precision))
        if self.policy == "fresh":
            found.set_draw(_OTHER_DRAWS)
        return found

    def surrogate(self, name: str, gradient: str | None) -> Defence:
        """A stand-in for the defence that gives gradients, its evaluations counted here."""
        found = self.model(gradient, rounded=True).surrogates()[name]
        self._helpers.append(found)
        return found

    @property
    def evaluations(self) -> int:
        """Network evaluations of all copies."""
        return sum(model.network_evaluations for model in (*self._models.values(), *self._helpers))


def in_precision(defence: Defence, precision: str) -> Defence:
    """A copy whose network computes in "float32" or "bfloat16"; its draws begin anew.

    Raises:
        ConfigError: it has no such setting.
    """
    try:
        return defence.with_(precision=precision)
    except ConfigError as error:
        raise ConfigError(
            "attack_precision: expected a diffusion classifier, whose network computes in float32 or bfloat16; this model "
            f"({defence.head}) has no such setting. Leave it out"
        ) from error


def run_attack(
    bench: Bench,
    spec: AttackSpec,
    pixels: Tensor,
    labels: Tensor,
    ids: Tensor,
    settings: EvaluationSettings,
    endpoints: list[Tensor],
    progress: Callable[[dict[str, Any]], None] | None,
    start: Tensor | None = None,
) -> AttackResult:
    """Run one attack on [n, C, H, W] pixels.

    Args:
        bench: copies of the defence.
        spec: which attack, and what its text sets.
        pixels, labels, ids: images [n, C, H, W], labels [n], positions in the data set [n].
        settings: for what the text leaves open.
        endpoints: adversarial images [n, C, H, W] of each attack before, for ``endpoints-ce`` and ``-dlr``.
        progress: see ``evaluate_batch``.
        start: [n, C, H, W], where the first run of an attack that takes a start begins, in a ball.
    """
    kind, fresh = spec.kind, bench.policy == "fresh"
    gradient = bench.gradient_of(spec)
    model = bench.model(gradient)
    arguments: dict[str, Any] = {"restarts": settings.restarts, **dict(spec.options)}
    arguments.pop("gradient", None)
    if kind.white_box:
        arguments.setdefault("steps", settings.steps)
        arguments.setdefault("eot", settings.eot if fresh else 1)
    if fresh:
        arguments["redraw"] = model.redraw
    if kind.white_box and bench.precision is not None and kind.needs not in ("surrogates",):
        arguments["gradient_model"] = bench.model(gradient, rounded=True)
    arguments |= _needs(bench, spec, model, gradient, arguments, fresh)
    common = {"seed": settings.seed, "image_ids": ids, "progress": _named(progress, spec.text)}
    if kind.needs == "endpoints" and endpoints:
        arguments |= {"start": endpoints, "restarts": len(endpoints)}
    elif start is not None and _takes_start(spec, settings.norm):
        arguments["start"] = start
    ready: ConfiguredAttack[Any, Any] = kind.attack.configured(settings.threat, **common, **arguments)
    result: AttackResult = ready(model, pixels, labels)
    return result


def _takes_start(spec: AttackSpec, norm: str | None) -> bool:
    """Whether an attack may begin at given images; one on the defence's objective finds its scale at a point of its own."""
    options = {field.name for field in dataclasses.fields(spec.kind.attack.options)}
    return norm in BUDGETS and "start" in options and spec.kind.needs not in ("penalty", "endpoints")


def _needs(
    bench: Bench, spec: AttackSpec, model: Defence, gradient: str | None, arguments: dict[str, Any], fresh: bool
) -> dict[str, Any]:
    """Arguments that stand for what the attack asks of the defence; ``surrogate`` in ``arguments`` is a name."""
    needs = spec.kind.needs
    if needs == "penalty":
        name = arguments.pop("surrogate", None)
        aid = {} if name is None else {"surrogate": bench.surrogate(name, gradient)}
        return {"penalty": bench.model(gradient, rounded=True).penalty, **aid}
    if needs == "path":
        return {"path": bench.model(gradient, rounded=True).purification_path}
    if needs == "draws":
        other = bench.model(gradient, rounded=True)
        chosen: dict[str, Any] = {"set_draw": model.set_draw if other is model else _both(model, other)}
        if not dict(spec.options).get("eot"):
            chosen["eot"] = max(1, arguments["eot"] // 4)  # draws that get a gradient in a step, of all it looks at
        return chosen | ({"path": other.purification_path} if spec.get("gradients", None) == "grafted" else {})
    if needs == "surrogates":
        name = arguments.pop("surrogate", "plain")
        surrogate = bench.surrogate(name, gradient)
        found: dict[str, Any] = {"surrogate": surrogate}
        if name == "fresh" or fresh:
            found |= {"surrogate_redraw": surrogate.redraw, "surrogate_eot": _SURROGATE_EOT}
        return found
    return {}


def _both(one: Defence, other: Defence) -> Callable[[int], None]:
    """set_draw of a defence and of its copy."""

    def place(draw: int) -> None:
        one.set_draw(draw)
        other.set_draw(draw)

    return place


def _named(progress: Callable[[dict[str, Any]], None] | None, text: str) -> Callable[[dict[str, Any]], None] | None:
    """The same callback, told the attack's full text in place of its short name."""
    if progress is None:
        return None
    return lambda about: progress({**about, "attack": text})
