"""Libraries that some models need and that rdc does without."""

from __future__ import annotations

import importlib
from typing import Any

from rdc.errors import ConfigError, one_line

__all__ = ["imported"]


def imported(name: str, install: str) -> Any:
    """A module of a library.

    Args:
        name: of the module.
        install: what pip is asked for.

    Raises:
        ConfigError: it is not installed, or does not start: versions that do not fit, a package of its own that is missing.
    """
    root = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == root:
            raise ConfigError(
                f"{root} is not installed, and this model is one of its classes: pip install '{install}'"
            ) from None
        needed = one_line(error.name.partition(".")[0], 60)
        raise ConfigError(f"{root} is installed, but not the {needed} that it needs: pip install {needed}") from error
    except Exception as error:  # compiled for another torch: each library has its own word for that
        raise ConfigError(
            f"{root} is installed, but cannot be imported ({type(error).__name__}: {one_line(error, 200)}): install the version "
            "that was made for this torch"
        ) from error
