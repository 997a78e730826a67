"""Checkpoints of other programs, read without running any code in them: the function behind ``rdc convert``."""

from __future__ import annotations

from rdc.models.convert.convert import KINDS, convert_checkpoint

__all__ = ["KINDS", "convert_checkpoint"]
