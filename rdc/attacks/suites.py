"""Names that stand for several attacks: what is in AutoAttack's versions, and in ``adaptive``, as data."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["AUTOATTACK", "SUITES", "Component", "suite"]


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
        changes: dict[str, Any] = dict(self.l1)
        return dataclasses.replace(self, l1=(), **changes) if norm == "l1" else self


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

_ADAPTIVE = (
    "apgd-ce:gradient=bpda", "transfer:surrogate=plain", "transfer:surrogate=one-step", "transfer:surrogate=fresh",
    "transfer:surrogate=softened", "transfer:surrogate=straight-through", "transfer:surrogate=unclipped",
    "apgd-t:targets=3:order=distance",
    "lagrange", "lagrange:surrogate=plain", "objective", "per-step", "low-frequency", "smoothed", "selective", "endpoints-dlr",
)  # fmt: skip
#: Sparse-AutoAttack (Zhong, Huang & Liu 2024, arXiv 2405.05075); what of it has gradients, and averages them
_SPARSE = ("sparse-pgd", "sparse-pgd:gradients=projected", "sparse-rs:queries=5000")
_SPARSE_RAND = ("sparse-pgd:eot=20", "sparse-pgd:gradients=projected:eot=20")
_VERSIONS = {"autoattack": "standard", "autoattack-plus": "plus", "autoattack-rand": "rand"}

#: Names that stand for several attacks, see :func:`suite`.
SUITES = (*_VERSIONS, "adaptive")


def suite(name: str, norm: str | None) -> tuple[str, ...]:
    """The attacks that a name of :data:`SUITES` stands for; parts of "adaptive" that a defence does not offer are left out.

    Args:
        name: one of :data:`SUITES`.
        norm: of the threat model; AutoAttack's lists differ for l1, and for l0 all are Sparse-AutoAttack.
    """
    if norm == "l0":
        return _SPARSE_RAND if name == "autoattack-rand" else _SPARSE
    if name == "adaptive":
        return _ADAPTIVE
    texts = []
    for component in AUTOATTACK[_VERSIONS[name]]:
        under = component.under(norm or "")
        options = {"restarts": under.restarts, "targets": under.targets, "queries": under.queries, "eot": under.eot}
        given = [f"{key}={value}" for key, value in options.items() if value not in (None, 1)]
        texts.append(":".join([under.name, *given]))
    return tuple(texts)
