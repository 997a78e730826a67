"""Benchmarks are collected with the tests, and left out of a run unless --benchmark-only or --benchmark-enable asks for them.

One thread. The JSON (--benchmark-json) also says on which machine, commit and command (key ``rdc``), how many images a second, and keeps at
most 64 rounds of each benchmark: enough for `rdc bench compare`.
"""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
KEPT_ROUNDS = 64


def pytest_collection_modifyitems(config, items):
    asked = any(config.getoption(option, default=False) for option in ("--benchmark-only", "--benchmark-enable"))
    named = [Path(arg.split("::")[0]) for arg in config.invocation_params.args if not arg.startswith("-")]
    if asked or any(path.exists() and path.resolve().is_relative_to(FOLDER) for path in named):
        return
    left_out = [item for item in items if item.path.is_relative_to(FOLDER)]
    if left_out:
        items[:] = [item for item in items if not item.path.is_relative_to(FOLDER)]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True)
def single_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_benchmark_update_json(config, benchmarks, output_json):
    from benchmarks.measuring import about

    output_json["rdc"] = about()
    for entry in output_json["benchmarks"]:
        stats, extra = entry["stats"], entry["extra_info"]
        if "images" in extra:
            extra["images_per_second"] = float(f"{extra['images'] / stats['median']:.4g}")
        if stats.get("data"):
            step = -(-len(stats["data"]) // KEPT_ROUNDS)
            stats["data"] = [float(f"{seconds:.5g}") for seconds in stats["data"][::step]]
