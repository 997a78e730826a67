"""Benchmarks are collected with the tests, and left out of a run unless --benchmark-only or --benchmark-enable asks for them."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config, items):
    if config.getoption("--benchmark-only", default=False) or config.getoption("--benchmark-enable", default=False):
        return
    if any(Path(arg.split("::")[0]).resolve().is_relative_to(FOLDER) for arg in config.invocation_params.args if Path(arg.split("::")[0]).exists()):
        return  # named on the command line
    left_out = [item for item in items if item.path.is_relative_to(FOLDER)]
    if left_out:
        items[:] = [item for item in items if not item.path.is_relative_to(FOLDER)]
        config.hook.pytest_deselected(items=left_out)
