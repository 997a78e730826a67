"""--threats, --norm and --eps: one threat, or several."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rdc.errors import ConfigError

if TYPE_CHECKING:
    from rdc.evaluation import Threat

__all__ = ["chosen_threats"]


def chosen_threats(args: argparse.Namespace) -> tuple[Threat, ...]:
    """The threats, where there are several; ``args.norm`` and ``args.eps`` are the first, or the only one, from here on.

    Raises:
        ConfigError: no such list; or --threats beside --norm or --eps.
    """
    from rdc.evaluation import parse_threats

    if args.threats is None:
        if "," not in args.eps:
            return ()
        threats = parse_threats(args.eps, args.norm)
    else:
        beside = [name for name in ("--norm", "--eps") if any(word.split("=")[0] == name for word in args.argv)]
        if beside:
            raise ConfigError(f"--threats: it names norms and radii itself; leave {' and '.join(beside)} out")
        threats = parse_threats(args.threats)
    args.norm, args.eps = threats[0].norm, threats[0].eps
    return threats if len(threats) > 1 else ()
