"""How every script here starts: what is wrong with its input is said in one line, as the commands of rdc say it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from rdc.cli.failures import BAD, explain
from rdc.errors import RdcError

__all__ = ["start"]


def start(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and end the program: with its status, 2 for a wrong input, 130 for Ctrl-C.

    Args:
        main: parses its own arguments.

    Raises:
        Exception: a defect, whose traceback tells more than a line could.
    """
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (RdcError, OSError, MemoryError, ImportError) as error:
        text, status = explain(error)
        if status != BAD:
            raise
        print(text, file=sys.stderr)
        sys.exit(status)
