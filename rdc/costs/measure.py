"""Time every model on every batch, then ask a new process for the memory of each."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rdc.contracts import Defence
from rdc.costs.accuracy import Accuracy
from rdc.costs.calls import filled, prepared
from rdc.costs.memory import in_a_process
from rdc.costs.settings import WORK, CostSettings, MeasuredModel
from rdc.costs.timing import spread
from rdc.data import Dataset
from rdc.errors import ConfigError, InputError
from rdc.execution.timing import alternate, clock
from rdc.ops.backends import describe
from rdc.provenance.run import commit, versions, weights_digest
from rdc.storage.json_records import JsonObject
from rdc.storage.run_folder import as_written
from rdc.terminal.progress import bar

__all__ = ["SCHEMA", "cpu_name", "measure_costs"]

SCHEMA = "rdc.cost/1"


def measure_costs(
    models: Sequence[MeasuredModel],
    dataset: Dataset,
    settings: CostSettings,
    *,
    accuracies: Sequence[Accuracy] = (),
    command: str | None = None,
    progress: bool = True,
) -> JsonObject:
    """Milliseconds an image, network evaluations and memory, of models that take turns.

    Args:
        models: at least one; labels differ.
        dataset: images of the models' shape; from the beginning again where a batch is larger.
        settings: what to measure.
        accuracies: of some of the models, for the plot; kept as they are.
        command: the command line, for the report.
        progress: draw a bar on stderr.

    Returns:
        The report, plain JSON values: ``schema``, ``command``, ``commit``, ``versions``, ``machine``, ``threads``, ``clock``,
        ``settings``, ``dataset``, ``accuracies``, and ``models``: for each ``label``, ``model``, ``classifier`` (its settings),
        ``weights`` and ``costs``, a list with ``work``, ``batch``, ``ms_per_image`` (median, least, most), ``rounds``,
        ``evaluations_per_image`` and ``memory_mb`` (loaded, peak; None where it was not measured), or ``skipped``, the reason.

    Raises:
        ConfigError: no model, two equal labels, an accuracy of a model that is not there.
        InputError: a model does not take the data's images.
    """
    _check_labels(models, accuracies)
    loaded = [model.load(dataset) for model in models]
    for model, defence in zip(models, loaded, strict=True):
        if tuple(defence.image_shape) != tuple(dataset.image_shape):
            raise InputError(
                f"{model.label}: expected images {list(defence.image_shape)}; those of {dataset.name} are {list(dataset.image_shape)}"
            )
    threads = torch.get_num_threads()
    words, read = clock(threads if loaded[0].device.type == "cpu" else 0)
    costs = _costs(models, loaded, dataset, settings, read, progress)
    return {
        "schema": SCHEMA,
        "command": command or "python",
        "commit": commit(),
        "versions": versions(loaded[0].device),
        "machine": _machine(),
        "threads": threads,
        "clock": words,
        "settings": settings.to_json(),
        "work": {name: WORK[name] for name in settings.work},
        "dataset": dataset.name,
        "accuracies": [{**vars(one), **_plain_intervals(one)} for one in accuracies],
        "models": [_entry(*parts) for parts in zip(models, loaded, costs, strict=True)],
    }


def _costs(
    models: Sequence[MeasuredModel],
    loaded: Sequence[Defence],
    dataset: Dataset,
    settings: CostSettings,
    read: Callable[[], float],
    progress: bool,
) -> list[list[JsonObject]]:
    """The entries of each model: every work, every batch."""
    costs: list[list[JsonObject]] = [[] for _ in models]
    cells = len(settings.work) * len(settings.batches) * len(models) * (settings.rounds + 1 + settings.memory)
    with bar(total=cells, enabled=progress, desc="calls") as drawn:
        for work in settings.work:
            last: list[float] = [0.0] * len(models)  # seconds an image
            for batch in settings.batches:
                found = _times(loaded, work, batch, dataset, settings, last, read, drawn.update)
                for mine, cost, model in zip(costs, found, models, strict=True):
                    if settings.memory and "skipped" not in cost:
                        pixels, labels = _images(dataset, batch)
                        images = (pixels, labels, dataset.class_names)
                        cost["memory_mb"] = in_a_process(model, work, *images, torch.get_num_threads())
                        drawn.update()
                    mine.append(cost)
    return costs


def _check_labels(models: Sequence[MeasuredModel], accuracies: Sequence[Accuracy]) -> None:
    labels = [model.label for model in models]
    if not labels:
        raise ConfigError("model: expected at least one; got none")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ConfigError(
            f"model: expected labels that differ; got {twice[0]!r} twice. Write @label=... behind a model's name"
        )
    if unknown := [one.label for one in accuracies if one.label not in labels]:
        raise ConfigError(f"report: expected a label of {', '.join(labels)}; got {unknown[0]!r}")


def _images(dataset: Dataset, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = min(batch, len(dataset))
    return filled(dataset.pixels(slice(0, count)), batch), filled(dataset.labels[:count], batch)


def _times(
    loaded: Sequence[Defence],
    work: str,
    batch: int,
    dataset: Dataset,
    settings: CostSettings,
    last: list[float],
    read: Callable[[], float],
    done: Callable[[], object],
) -> list[JsonObject]:
    """One entry for each model; ``last`` has seconds an image of the batch before, and gets those of this one."""
    pixels, labels = _images(dataset, batch)
    entries: list[JsonObject] = [{"work": work, "batch": batch} for _ in loaded]
    calls: dict[str, Callable[[], Any]] = {}
    for place, model in enumerate(loaded):
        if last[place] * batch > settings.longest:
            expected = f"a call of {batch} images would take about {last[place] * batch:.0f} s"
            entries[place]["skipped"] = f"{expected}; the longest that is waited for is {settings.longest:g} s"
            continue
        call = prepared(model, work, pixels, labels)
        before = model.network_evaluations
        call()  # not counted: what is done once
        entries[place]["evaluations_per_image"] = (model.network_evaluations - before) / batch
        done()
        calls[str(place)] = call
    for name, seconds in alternate(calls, settings.rounds, read, done).items():
        place = int(name)
        last[place] = min(seconds) / batch
        entries[place] |= {"ms_per_image": spread(seconds, batch), "rounds": len(seconds), "memory_mb": None}
    return entries


def _entry(model: MeasuredModel, defence: Defence, costs: list[JsonObject]) -> JsonObject:
    return {
        "label": model.label,
        "model": model.choice.name,
        "gradient": model.gradient,
        "classifier": as_written(defence.describe()),
        "weights": weights_digest(defence),
        "costs": costs,
    }


def _plain_intervals(one: Accuracy) -> JsonObject:
    return {"clean_ci95": list(one.clean_ci95), "robust_ci95": list(one.robust_ci95)}


def _machine() -> JsonObject:
    found = describe()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu_name(),
        "usable_cpus": usable,
        "load_at_the_end": load,
        "system": platform.platform(),
        "isa": found["cpu"]["isa"],
        "gpus": found["gpus"],
    }


def cpu_name() -> str:
    """The processor's model, as the system calls it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
