"""How long torch.compile takes to start: the network as a whole against its residual blocks one by one, cold and from inductor's cache.

    python -m benchmarks.studies.compile_start --out compile-start.json      # 20 minutes of a core of its own

Each cell is a process of its own: a first step (forward and backward of 16 images, gradients in all weights), then the same five
times; once with an empty cache, once with what the first left. Counted are CPU seconds of the process and of the compilers it
starts, and the clock. "eager" is the same without torch.compile and without rdc's kernels, "rdc" with them. "blocks, dynamic" compiles
every block for any sizes, weights' too, so that blocks of one structure share their code. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.starting import start
from rdc.errors import one_line
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

WAYS = ("rdc", "eager", "whole", "blocks", "blocks, dynamic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--work", type=Path, help="folder for the caches (default: a temporary one)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(cell(args.model, args.child)))
        return
    from benchmarks.measuring import about

    found: dict[str, Any] = read_json(args.out) if args.out and args.out.exists() else {"about": about(), "rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        for way in bar(args.ways, desc="ways"):
            for state in ("cold", "warm"):
                if f"{way}, {state}" not in found["rows"] and (state == "cold" or way not in ("rdc", "eager")):
                    found["rows"][f"{way}, {state}"] = in_a_process(args.model, way, work / way.replace(", ", "-"))
                    if args.out:
                        write_json(args.out, found)
    print(json.dumps(found["rows"], indent=2))


def in_a_process(model: str, way: str, cache: Path) -> dict[str, Any]:
    """One cell; or ``failed``, and why."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    if way != "rdc":
        environment["RDC_DISABLE_NATIVE"] = "1"
    command = [sys.executable, "-m", "benchmarks.studies.compile_start", "--model", model, "--child", way]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "Error: " in line]
        return {"failed": one_line(errors[0] if errors else f"exit status {done.returncode}", 300)}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cell(model: str, way: str) -> dict[str, float]:
    """Seconds of the first step, and of a later one."""
    import torch

    import rdc

    torch.set_num_threads(1)
    denoiser = rdc.load(model).denoiser
    network = denoiser.network.train().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, *denoiser.image_shape, generator=generator).to(memory_format=torch.channels_last)
    labels = [torch.eye(denoiser.num_classes)[torch.arange(16) % denoiser.num_classes]] * (
        denoiser.head == "conditional"
    )
    compiled(network, way)

    def step() -> None:
        network(x, torch.linspace(-1, 1, 16), *labels).square().mean().backward()

    first = _seconds(step)
    later = sorted(_seconds(step)[0] for _ in range(5))[2]
    return {"first_cpu": round(first[0], 2), "first_wall": round(first[1], 2), "later_cpu": round(later, 4)}


def compiled(network: Any, way: str) -> None:
    """In place."""
    import torch

    from rdc.networks.blocks import UNetBlock

    if way == "whole":
        network.compile(dynamic=False)
    if way.startswith("blocks"):
        dynamic = way.endswith("dynamic")
        torch._dynamo.config.force_parameter_static_shapes = not dynamic
        torch._dynamo.config.recompile_limit = 64  # blocks share one function, and each size is a compilation of it
        for module in network.modules():
            if isinstance(module, UNetBlock):
                module.compile(dynamic=dynamic)


def _seconds(call: Any) -> tuple[float, float]:
    begun = _cpu(), time.perf_counter()
    call()
    return _cpu() - begun[0], time.perf_counter() - begun[1]


def _cpu() -> float:
    """Of this process and of those that it waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    start(main)
