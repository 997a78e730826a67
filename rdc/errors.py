"""Errors raised by rdc. Each message says what was expected, what came, and what to do."""

from __future__ import annotations

__all__ = ["CheckpointError", "ConfigError", "DataError", "InputError", "RdcError"]


class RdcError(ValueError):
    """Base of every error that rdc raises on purpose; a ``ValueError``, so generic handlers keep working."""


class InputError(RdcError):
    """A tensor or image handed to rdc has the wrong type, shape or range."""


class ConfigError(RdcError):
    """A setting, preset name or option is unknown or inconsistent."""


class DataError(RdcError):
    """A data-set file is missing, truncated, or not what its name says."""


class CheckpointError(RdcError):
    """A checkpoint is missing, corrupt, of the wrong kind, or tries to run code."""
