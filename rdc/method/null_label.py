"""Whether a network was ever trained without a label: what its prediction without one is worth.

Likelihood maximisation, DiffPure and APNDC ask for that prediction. A class-conditional network gives one in any case; where its training
always showed a label (public EDM networks: label dropout 0), that input is one the network has never seen.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rdc.errors import CheckpointError, one_line

__all__ = ["NullLabel"]

_LONGEST = 400  # letters of a reason


@dataclasses.dataclass(frozen=True)
class NullLabel:
    """What is known of a network's null label.

    Args:
        trained: True, False, or None: nobody knows.
        why: where that comes from, in a few words.
    """

    trained: bool | None = None
    why: str = "nothing is recorded of how the network was trained"

    @property
    def word(self) -> str:
        """In a word or two: trained, never trained, unknown."""
        return "unknown" if self.trained is None else "trained" if self.trained else "never trained"

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint's ``info``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any, where: str) -> NullLabel:
        """What :meth:`to_json` gave.

        Args:
            value: from a file.
            where: which, for the error.

        Raises:
            CheckpointError: it is something else.
        """
        known = isinstance(value, dict) and set(value) == {"trained", "why"}
        if not known or not (value["trained"] is None or isinstance(value["trained"], bool)):
            raise CheckpointError(
                f"{where}: expected null_label with trained (true, false or null) and why; got another entry"
            )
        if not isinstance(value["why"], str) or len(value["why"]) > _LONGEST:
            raise CheckpointError(f"{where}: null_label, why: expected text of at most {_LONGEST} letters")
        return cls(value["trained"], one_line(value["why"], _LONGEST))
