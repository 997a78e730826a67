"""What a certification writes down: of an image, of a run, and the report."""

from __future__ import annotations

import dataclasses

from rdc.storage.json_records import JsonObject, JsonRecord, entry
from rdc.storage.structure import flag, integer, mapping, number, optional, sequence, text

__all__ = ["AttackedImage", "CertifiedImage", "Identity", "RunRecord"]


@dataclasses.dataclass(frozen=True)
class AttackedImage(JsonRecord):
    """The smoothed classifier's decision on an adversarial image.

    Args:
        radius: of the attack, l_2.
        distance: of the adversarial image, at most ``radius``; 0 where nothing was searched, since a smaller radius sufficed or the
            image was wrong before.
        predicted: the class of most votes.
        votes_for_selected: of ``votes``, how many are for the class that the certificate is about.
        votes: votes given.
        right: ``predicted`` is the label.
    """

    radius: float = entry(number(0))
    distance: float = entry(number(0))
    predicted: int = entry(integer(0))
    votes_for_selected: int = entry(integer(0))
    votes: int = entry(integer(1))
    right: bool = entry(flag())


@dataclasses.dataclass(frozen=True)
class CertifiedImage(JsonRecord):
    """One line of results.jsonl.

    Args:
        image, label: position in the data set, true class.
        selected, votes, p_lower, radius, abstained: see ``rdc.certification.smoothing.Certificate``.
        right: not abstained, and ``selected`` is the label.
        network_evaluations: passes for the certificate.
        attacks: one for each radius of the settings, rising.
    """

    image: int = entry(integer(0))
    label: int = entry(integer(0))
    selected: int = entry(integer(0))
    votes: tuple[int, ...] = entry(sequence(integer(0), least=1))
    p_lower: float = entry(number(0, 1))
    radius: float = entry(number(0))
    abstained: bool = entry(flag())
    right: bool = entry(flag())
    network_evaluations: int = entry(integer(0))
    attacks: tuple[AttackedImage, ...] = entry(of=AttackedImage, many=True)


@dataclasses.dataclass(frozen=True)
class Identity(JsonRecord):
    """What decides the figures."""

    schema: int = entry(integer(1))
    settings: JsonObject = entry(mapping(lambda value, where: None))
    base: JsonObject = entry(mapping(lambda value, where: None))
    weights: str = entry(text())
    images: str = entry(text())
    device: str = entry(text())
    torch: str = entry(text())


@dataclasses.dataclass(frozen=True)
class RunRecord(JsonRecord):
    """run.json: the identity, and the first start's command, commits and versions."""

    identity: Identity = entry(of=Identity)
    command: str = entry(text())
    commits: tuple[str | None, ...] = entry(sequence(optional(text()), least=1))
    versions: JsonObject = entry(mapping(lambda value, where: None))
