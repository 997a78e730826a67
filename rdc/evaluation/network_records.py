"""A network of the evaluated defence, as run.json and report.json have it."""

from __future__ import annotations

import dataclasses

from rdc.storage.json_records import JsonRecord, entry
from rdc.storage.structure import choice, integer, optional, text

__all__ = ["NetworkRecord"]


@dataclasses.dataclass(frozen=True)
class NetworkRecord(JsonRecord):
    """A network of the defence, see :func:`rdc.provenance.networks.described_networks`.

    Args:
        role: what for.
        name: that it was loaded by; None: by none.
        kind: of network.
        parameters: their number.
        weights: digest.
        null_label: "trained", "never trained" or "unknown"; None where it is asked for classes alone.
        why: where that comes from.
    """

    role: str = entry(text())
    name: str | None = entry(optional(text()))
    kind: str = entry(text())
    parameters: int = entry(integer(0))
    weights: str = entry(text())
    null_label: str | None = entry(optional(choice("trained", "never trained", "unknown")))
    why: str | None = entry(optional(text()))
