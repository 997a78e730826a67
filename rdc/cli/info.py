"""``rdc info``."""

from __future__ import annotations

import argparse
import json

from rdc.cli.options import add_format_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc info``."""
    add_format_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print versions, the backend of each native op and why others are not used, CPU instruction set, GPUs."""
    from rdc.provenance.info import describe_info, format_info

    print(json.dumps(describe_info(), indent=2) if args.format == "json" else format_info())
    return 0
