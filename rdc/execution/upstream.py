"""What whoever asks for logits is going to do with their gradient."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

__all__ = ["all_classes_carry", "do_all_classes_carry"]

_SAID: contextvars.ContextVar[bool] = contextvars.ContextVar("all_classes_carry", default=False)


@contextlib.contextmanager
def all_classes_carry(so: bool = True) -> Iterator[None]:
    """Say that gradients of logits computed within come from a loss to which all classes contribute, such as the cross-entropy.

    A defence may go about its derivatives in another way then. No value changes but by rounding.

    Args:
        so: False: unknown, or of a few classes, such as a margin.
    """
    token = _SAID.set(so)
    try:
        yield
    finally:
        _SAID.reset(token)


def do_all_classes_carry() -> bool:
    """Whether that was said."""
    return _SAID.get()
