"""AutoAttack: fixed lists of attacks, one after another, each on what is still robust.

Croce & Hein 2020 (arXiv 2003.01690); versions ``plus`` and ``rand`` and the settings for l_1 (Croce & Hein 2021,
arXiv 2103.01208: 5 restarts of APGD-CE, 5 targets of APGD-T) as in the authors' tool. ``rdc.attacks.suites`` holds them as data.
Component number i draws from seed + i * 0x9E3779B97F4A7C15 mod 2^64, so that no two share a starting point.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from rdc.attacks.entry import Attack, attack
from rdc.attacks.losses import Model
from rdc.attacks.options import Progress, SteppedOptions, integer, number
from rdc.attacks.registry import ATTACKS
from rdc.attacks.suites import AUTOATTACK, Component
from rdc.attacks.threat_model import AttackResult, ThreatModel, check_images
from rdc.errors import ConfigError

__all__ = ["AUTOATTACK", "AutoAttackOptions", "AutoAttackResult", "Component", "ComponentResult", "autoattack"]

_SEED_STEP = 0x9E37_79B9_7F4A_7C15


@dataclasses.dataclass(frozen=True, eq=False)
class ComponentResult:
    """What one component did.

    Args:
        component: its settings, as run.
        seed: its seed.
        rows: [n] int64, the images it attacked, of the N of the call.
        result: its own result on these n images; None where none was left.
    """

    component: Component
    seed: int
    rows: Tensor
    result: AttackResult | None


@dataclasses.dataclass(frozen=True, eq=False)
class AutoAttackResult(AttackResult):
    """An AttackResult of all components together: their steps are counted on, one component after another.

    ``x_adv`` and ``best_loss`` of a broken image are those of the component that broke it, of a robust image those of
    the first component (cross-entropy as log-odds). ``restarts`` and ``eot`` are the largest of any component.

    Args:
        version: name of the list.
        broken_by: [N] int64, number of the component that broke the image; -1 never broken or misclassified when clean.
        components: one for each component, in order.
    """

    version: str = ""
    broken_by: Tensor | None = None
    components: tuple[ComponentResult, ...] = ()

    @property
    def accuracy_after(self) -> dict[str, float]:
        """Fraction of images still right after each component, by its name."""
        found, total = {}, len(self.correct)
        for place, part in enumerate(self.components):
            assert self.broken_by is not None
            gone = ~self.clean_correct | ((self.broken_by >= 0) & (self.broken_by <= place))
            found[part.component.name] = (total - int(gone.sum())) / total
        return found


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AutoAttackOptions(SteppedOptions):
    """Options of :func:`autoattack`.

    Args:
        steps: of each APGD and FAB run.
        restarts: not set: each component has its own.
        eot: model calls averaged for each evaluation; None: as in ``AUTOATTACK``.
        verify: each component evaluates its x_adv once more (not for random models).
        version: ``"standard"``, ``"plus"`` or ``"rand"`` (for random models, with ``redraw``).
        queries: of Square; None: as in ``AUTOATTACK``.
        logit_scale: for the cross-entropy of APGD.
        progress: called with component and components too.
    """

    restarts: int = dataclasses.field(default=1, init=False)
    eot: int | None = integer(None, least=None)  # type: ignore[assignment]  # None: each component its own
    version: str = "standard"
    queries: int | None = integer(None, least=None)
    logit_scale: float | str = number("auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in AUTOATTACK:
            raise ConfigError(
                f"unknown version {self.version!r} of AutoAttack; expected one of {', '.join(AUTOATTACK)}"
            )

    def components(self, norm: str) -> list[Component]:
        """The version's components under this norm."""
        found = [component.under(norm) for component in AUTOATTACK[self.version]]
        if self.queries is not None:
            found = [one if one.queries is None else dataclasses.replace(one, queries=self.queries) for one in found]
        return found if self.eot is None else [dataclasses.replace(one, eot=self.eot) for one in found]


@attack(AutoAttackOptions)
def autoattack(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: AutoAttackOptions) -> AutoAttackResult:
    """AutoAttack; each image leaves as soon as it is broken. From two classes up.

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only; in eval mode.
        x: [N, C, H, W] float32 in [0, 1].
        y: [N] int64 true labels.
        threat: norm and radius.
        options: AutoAttackOptions; a call gives its fields as keywords.

    Returns:
        AutoAttackResult.

    Raises:
        ConfigError: unknown version. InputError: an argument is not as above. RdcError: a budget was broken.

    Source: module docstring.
    """
    ids = check_images(x, y, options.image_ids)
    parts: list[ComponentResult] = []
    rows = torch.arange(len(y), device=y.device)
    components = options.components(threat.norm)
    for place, component in enumerate(components):
        own = (options.seed + place * _SEED_STEP) % 2**64
        result = None
        if rows.numel() > 0:
            about: dict[str, Any] = {"seed": own, "image_ids": [ids[row] for row in rows.tolist()]}
            about["progress"] = _told(options.progress, place, len(components), len(ids))
            result = _component(component, options).configured(threat, **about)(model, x[rows], y[rows])
        parts.append(ComponentResult(component, own, rows, result))
        rows = rows if result is None else rows[result.correct]
    return _merge(options.version, threat, parts)


def _component(component: Component, options: AutoAttackOptions) -> Attack[..., AttackResult]:
    """A component's attack with its own options set, as far as it has them."""
    kind = ATTACKS[component.name].attack
    given = {
        **{name: getattr(options, name) for name in ("steps", "redraw", "verify", "logit_scale", "gradient_model")},
        **{name: getattr(component, name) for name in ("restarts", "eot", "targets", "queries")},
    }
    takes = {field.name for field in dataclasses.fields(kind.options)}
    return kind.fixing(**{name: value for name, value in given.items() if name in takes and value is not None})


def _told(progress: Progress | None, place: int, components: int, total: int) -> Progress | None:
    """A component's progress, with its place and the number of all images."""
    if progress is None:
        return None
    return lambda about: progress({**about, "total": total, "component": place, "components": components})


def _merge(version: str, threat: ThreatModel, parts: list[ComponentResult]) -> AutoAttackResult:
    """All components read as one attack."""
    first = parts[0].result
    assert first is not None  # the first one attacks, or at least classifies, everything
    asked = ("queries", "broken_query", "wrong_on_the_way", "zero_gradient_steps", "non_finite_logits")
    names = ("broken_at", "broken_restart", "broken_target", "best_loss", *asked)
    whole = {name: getattr(first, name).clone() for name in names}
    x_adv, correct = first.x_adv.clone(), first.correct.clone()
    broken_by = torch.where(first.clean_correct & ~first.correct, 0, -1)
    ran = [(place, part, part.result) for place, part in enumerate(parts) if part.result is not None]
    steps = first.steps
    for place, part, result in ran[1:]:
        fallen = (~result.correct).nonzero()[:, 0]
        rows = part.rows[fallen]
        x_adv[rows], correct[rows], broken_by[rows] = result.x_adv[fallen], False, place
        for name in ("broken_restart", "broken_target", "best_loss"):
            whole[name][rows] = getattr(result, name)[fallen]
        whole["broken_at"][rows] = result.broken_at[fallen] + steps
        assert result.queries is not None and result.broken_query is not None  # of every attack here
        whole["broken_query"][rows] = whole["queries"][rows] + result.broken_query[fallen]
        whole["queries"][part.rows] += result.queries
        whole["zero_gradient_steps"][part.rows] += result.zero_gradient_steps
        for name in ("non_finite_logits", "wrong_on_the_way"):
            whole[name][part.rows] |= getattr(result, name)
        steps += result.steps
    count = len(correct)
    gone = torch.bincount(whole["broken_at"][whole["broken_at"] >= 0].cpu(), minlength=steps + 1).cumsum(0).tolist()
    results = [result for _, _, result in ran]
    mismatches = [result.verify_mismatches for result in results if result.verify_mismatches is not None]
    return AutoAttackResult(
        name="autoattack" if version == "standard" else f"autoattack-{version}",
        loss="+".join(dict.fromkeys(result.loss for result in results)),
        threat=threat,
        steps=steps,
        restarts=max(result.restarts for result in results),
        eot=max(result.eot for result in results),
        x_adv=x_adv,
        clean_correct=first.clean_correct,
        correct=correct,
        accuracy_per_step=[(count - broken) / count for broken in gone],
        forward_evaluations=sum(result.forward_evaluations for result in results),
        gradient_evaluations=sum(result.gradient_evaluations for result in results),
        verify_mismatches=sum(mismatches) if mismatches else None,
        version=version,
        broken_by=broken_by,
        components=tuple(parts),
        **whole,
    )
