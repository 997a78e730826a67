"""The part "speed" of cifar10.py: images a second of every kind of training step, and where the device's time goes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.cifar10.recipes import RECIPES
from benchmarks.studies.cifar10.run import Run
from rdc.data import Dataset
from rdc.data.cifar10 import CLASS_NAMES

__all__ = ["speed"]

_EPS = 8 / 255


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of training step, and what is switched on for it."""

    step: str
    layout: str = "channels_last"
    kernels: bool = True
    graph: bool = False
    compile: bool = False
    batch: int | None = None

    def __str__(self) -> str:
        how = ["kernels"] * self.kernels + ["graph"] * self.graph + ["compiled"] * self.compile
        return " ".join([self.step, self.layout, *how, *([] if self.batch is None else [f"batch {self.batch}"])])


def speed(run: Run) -> dict[str, Any]:
    """Training images a second of every kind of step, in bfloat16, what matters most first; the whole compiled comes last.

    "margin" is --margin-eps in place of --secant-eps: a step differentiates twice, which cannot be compiled or recorded.
    """
    rows: list[dict[str, Any]] = []
    for case in _cases(run):
        if run.left() < 10 or sum(row.get("seconds", 0) for row in rows) > run.seconds("speed"):
            break
        begun, row = time.monotonic(), {"case": str(case), **dataclasses.asdict(case)}
        with _environment(RDC_DISABLE_TRITON="0" if case.kernels else "1"):
            try:
                row |= _one_speed(run, case)
            except Exception as error:  # the other kinds go on
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        rows.append({**row, "seconds": round(time.monotonic() - begun, 1)})
        print(f"  {case}: {row.get('images_per_second', row.get('error'))}", flush=True)
        run.result["parts"]["speed"] = {"line": "stopped", "seconds_of_part": 0.0, "rows": rows}
        run.save()
    words = [f"{row['case']} {row['images_per_second']:.0f}" for row in rows if "images_per_second" in row]
    return {"line": f"images/s: {'; '.join(words)}" if words else "nothing ran", "rows": rows}


def _cases(run: Run) -> list[Case]:
    if run.dry:
        return [Case("teacher", kernels=False), Case("robust", "contiguous", kernels=False)]
    return [
        Case("robust", graph=True),
        Case("robust", "contiguous", kernels=False),
        Case("robust", graph=True, batch=1024),
        Case("robust"),
        Case("teacher", graph=True),
        Case("student", graph=True),
        Case("robust", "contiguous", kernels=False, graph=True),
        Case("teacher", "contiguous", kernels=False),
        Case("margin"),
        Case("robust", kernels=False, compile=True),
    ]


def _one_speed(run: Run, case: Case) -> dict[str, Any]:
    from rdc.training.time_box import images_per_second
    from rdc.training.trainer import TrainConfig, Trainer

    network, objective = _step_of(run, case.step)
    recipe = RECIPES["robust" if case.step == "margin" else case.step]
    size = 4 if run.dry else case.batch or recipe["train"]["batch_size"]
    settings = TrainConfig(
        images=10**9, batch_size=size, precision="bfloat16", flip=True, compile=case.compile, memory_format=case.layout,
        cuda_graph=case.graph,
    )  # fmt: skip
    data = Dataset(
        torch.randint(0, 256, (max(64, 2 * size), 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.arange(max(64, 2 * size)) % 10, CLASS_NAMES, "noise", "train",
    )  # fmt: skip
    on_gpu, found = run.device.type == "cuda", {}
    with tempfile.TemporaryDirectory() as folder:
        made = Trainer(network.to(run.device), objective, data, settings, Path(folder), {}, progress=False)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        value = images_per_second(made, 0.0 if run.dry else 2.0)
        if on_gpu and not case.graph:
            found["device_ms"], found["kernels_ms"] = _profile(made)
    peak = round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else None
    return {"images_per_second": float(f"{value:.4g}"), "batch_size": size, "peak_mib": peak, **found}


def _profile(trainer: Any, steps: int = 2) -> tuple[float, dict[str, float]]:
    """Milliseconds on the device of one step, and of its dearest kernels."""
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as seen:
        for _ in range(steps):
            trainer.train_step()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_device_time_total)
    times = {
        f"{event.key[:90]} x{event.count // steps}": event.self_device_time_total / steps / 1000 for event in events
    }
    return round(sum(times.values()), 2), {name: round(value, 3) for name, value in list(times.items())[:16]}


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _step_of(run: Run, kind: str) -> tuple[Any, Any]:
    """A network with drawn weights and the objective of that recipe (weights do not matter for time)."""
    from rdc.method.denoiser import make_denoiser
    from rdc.networks.presets import build_network, network_preset
    from rdc.training.distillation import DistillationObjective, Secant, student_from_teacher
    from rdc.training.objective import ConditionalObjective, NoiseDistribution

    config = network_preset(run.args.network, 10)
    network = build_network(config)
    if kind == "teacher":
        return network, ConditionalObjective(10, NoiseDistribution())
    made, _ = student_from_teacher(network, config, 256)
    threat = {"margin": {"margin_eps": _EPS}, "robust": {"secant": Secant(_EPS)}}.get(kind, {})
    settings = {"classes_per_image": 0, "posterior_weight": 1.0, "posterior_scale": 0.03, **threat}
    return made, DistillationObjective(make_denoiser(network.to(run.device), config), NoiseDistribution(), **settings)
