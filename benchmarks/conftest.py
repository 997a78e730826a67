"""Benchmarks are collected with the tests, and left out of a run unless --benchmark-only or --benchmark-enable asks for them."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config, items):
    asked = any(config.getoption(option, default=False) for option in ("--benchmark-only", "--benchmark-enable"))
    named = [Path(arg.split("::")[0]) for arg in config.invocation_params.args if not arg.startswith("-")]
    if asked or any(path.exists() and path.resolve().is_relative_to(FOLDER) for path in named):
        return
    left_out = [item for item in items if item.path.is_relative_to(FOLDER)]
    if left_out:
        items[:] = [item for item in items if not item.path.is_relative_to(FOLDER)]
        config.hook.pytest_deselected(items=left_out)
