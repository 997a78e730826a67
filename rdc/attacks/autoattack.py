"""AutoAttack: fixed lists of attacks, one after another, each on what is still robust.

Croce & Hein 2020 (arXiv 2003.01690); versions ``plus`` and ``rand`` and the settings for l_1 (Croce & Hein 2021,
arXiv 2103.01208: 5 restarts of APGD-CE, 5 targets of APGD-T) as in the authors' tool. ``AUTOATTACK`` holds them as data.
Component number i draws from seed + i * 0x9E3779B97F4A7C15 mod 2^64, so that no two share a starting point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rdc.attacks.apgd import apgd, apgd_targeted
from rdc.attacks.entry import attack
from rdc.attacks.fab import fab
from rdc.attacks.losses import Model
from rdc.attacks.pgd import Progress
from rdc.attacks.square import square
from rdc.attacks.threat_model import AttackResult, ThreatModel, check_images
from rdc.errors import ConfigError, InputError

__all__ = ["AUTOATTACK", "AutoAttackResult", "Component", "ComponentResult", "autoattack"]

_SEED_STEP = 0x9E37_79B9_7F4A_7C15


@dataclasses.dataclass(frozen=True)
class Component:
    """One attack of a version.

    Args:
        name: as in rdc.attacks.ATTACKS.
        restarts: >= 1.
        targets: classes aimed at (``apgd-t``, ``fab-t``).
        queries: of ``square``.
        eot: model calls averaged for each gradient.
        l1: what differs for l_1: pairs of the fields above.
    """

    name: str
    restarts: int = 1
    targets: int | None = None
    queries: int | None = None
    eot: int = 1
    l1: tuple[tuple[str, int], ...] = ()

    def under(self, norm: str) -> Component:
        """The settings for this norm."""
        return dataclasses.replace(self, l1=(), **dict(self.l1)) if norm == "l1" else self


AUTOATTACK: dict[str, tuple[Component, ...]] = {
    "standard": (
        Component("apgd-ce", l1=(("restarts", 5),)),
        Component("apgd-t", targets=9, l1=(("targets", 5),)),
        Component("fab-t", targets=9),
        Component("square", queries=5000),
    ),
    "plus": (
        Component("apgd-ce", restarts=5),
        Component("apgd-dlr", restarts=5),
        Component("fab", restarts=5),
        Component("square", queries=5000),
        Component("apgd-t", targets=9, l1=(("targets", 5),)),
        Component("fab-t", targets=9),
    ),
    "rand": (Component("apgd-ce", eot=20), Component("apgd-dlr", eot=20)),
}

_FUNCTIONS: dict[str, tuple[Callable[..., AttackResult], dict[str, Any]]] = {
    "apgd-ce": (apgd, {"loss": "ce"}),
    "apgd-dlr": (apgd, {"loss": "dlr"}),
    "apgd-t": (apgd_targeted, {"loss": "dlr"}),
    "fab": (fab, {"targets": None}),
    "fab-t": (fab, {}),
    "square": (square, {}),
}


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
            gone = ~self.clean_correct | ((self.broken_by >= 0) & (self.broken_by <= place))
            found[part.component.name] = (total - int(gone.sum())) / total
        return found


@attack
def autoattack(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int,
    image_ids: Sequence[int] | Tensor,
    version: str = "standard",
    steps: int = 100,
    queries: int | None = None,
    eot: int | None = None,
    redraw: Callable[[], object] | None = None,
    logit_scale: float | str = "auto",
    verify: bool = True,
    progress: Progress | None = None,
) -> AutoAttackResult:
    """AutoAttack; each image leaves as soon as it is broken. From two classes up.

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only; in eval mode.
        x: [N, C, H, W] float32 in [0, 1].
        y: [N] int64 true labels.
        threat: norm and radius.
        seed: 0 <= seed < 2^64.
        image_ids: N integers >= 0, e.g. positions in the data set.
        version: ``"standard"``, ``"plus"`` or ``"rand"`` (for random models, with ``redraw``).
        steps: of each APGD and FAB run.
        queries: of Square; None: as in ``AUTOATTACK``, 5000.
        eot: model calls averaged for each evaluation; None: as in ``AUTOATTACK``.
        redraw: called before each model call, makes a random model draw fresh noise.
        logit_scale: for the cross-entropy of APGD.
        verify: each component evaluates its x_adv once more (not for random models).
        progress: called after each step with attack, step, steps, restart, restarts, active, robust, total, component,
            components.

    Returns:
        AutoAttackResult.

    Raises:
        ConfigError: unknown version. InputError: an argument is not as above. RdcError: a budget was broken.

    Source: module docstring.
    """
    if version not in AUTOATTACK:
        raise ConfigError(f"unknown version {version!r} of AutoAttack; expected one of {', '.join(AUTOATTACK)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise InputError(f"seed must be an integer >= 0, got {seed!r}")
    ids = check_images(x, y, image_ids)
    parts: list[ComponentResult] = []
    rows = torch.arange(len(y), device=y.device)
    components = [_adapted(component, threat.norm, queries, eot) for component in AUTOATTACK[version]]
    for place, component in enumerate(components):
        own = (seed + place * _SEED_STEP) % 2**64
        result = None
        if rows.numel() > 0:
            function, settings = _call(component, steps, logit_scale)
            settings |= {
                "redraw": redraw,
                "verify": verify,
                "progress": _told(progress, place, len(components), len(ids)),
            }
            settings |= {"seed": own, "image_ids": [ids[row] for row in rows.tolist()]}
            result = function(model, x[rows], y[rows], threat, **settings)
        parts.append(ComponentResult(component, own, rows, result))
        rows = rows if result is None else rows[result.correct]
    return _merge(version, threat, parts)


def _call(
    component: Component, steps: int, logit_scale: float | str
) -> tuple[Callable[..., AttackResult], dict[str, Any]]:
    """A component's function and its own arguments."""
    function, fixed = _FUNCTIONS[component.name]
    settings = {**fixed, "restarts": component.restarts, "eot": component.eot}
    if component.name != "square":
        settings["steps"] = steps
    if component.name.startswith("apgd"):
        settings["logit_scale"] = logit_scale
    for name in ("targets", "queries"):
        if getattr(component, name) is not None:
            settings[name] = getattr(component, name)
    return function, settings


def _adapted(component: Component, norm: str, queries: int | None, eot: int | None) -> Component:
    component = component.under(norm)
    if queries is not None and component.queries is not None:
        component = dataclasses.replace(component, queries=queries)
    return component if eot is None else dataclasses.replace(component, eot=eot)


def _told(progress: Progress | None, place: int, components: int, total: int) -> Progress | None:
    """A component's progress, with its place and the number of all images."""
    if progress is None:
        return None
    return lambda about: progress({**about, "total": total, "component": place, "components": components})


def _merge(version: str, threat: ThreatModel, parts: list[ComponentResult]) -> AutoAttackResult:
    """All components read as one attack."""
    first = parts[0].result
    assert first is not None  # the first one attacks, or at least classifies, everything
    names = ("broken_at", "broken_restart", "broken_target", "best_loss", "zero_gradient_steps", "non_finite_logits")
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
        whole["zero_gradient_steps"][part.rows] += result.zero_gradient_steps
        whole["non_finite_logits"][part.rows] |= result.non_finite_logits
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
