"""``rdc info``."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Print versions, the backend of each native op and why others are not used, CPU instruction set, GPUs."""
    from rdc.provenance.info import format_info

    print(format_info())
    return 0
