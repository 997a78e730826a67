"""What happens during a call: modules in training mode, weights and inputs that are changed, generators that are read or set."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from rdc.audits.subject import Subject, apart
from rdc.execution.frozen import at_rest
from rdc.execution.precision import in_own_type

__all__ = [
    "Generators",
    "Inside",
    "kept_generators",
    "measure_generators",
    "measure_inside",
    "modules_called",
    "modules_in_training",
    "runs_of_modules",
    "seed_all",
]

_FEW = 4  # images in a call


@dataclasses.dataclass(frozen=True)
class Inside:
    """What two calls did.

    Args:
        training: kind of module that ran in training mode and computes something else in it -> how often.
        modules: that ran in a call.
        most_runs: how often the module with weights that ran most often did, in one call.
        changed: weights and buffers that a call changed, by the kind of module and name.
        input_moved: largest change of a pixel of the tensor that it was given.
    """

    training: dict[str, int]
    modules: int
    most_runs: int
    changed: tuple[str, ...]
    input_moved: float


def modules_in_training(model: Callable[[Tensor], Any], pixels: Tensor) -> dict[str, int]:
    """Modules that run in training mode during a call and compute something else in it, wherever they are kept.

    Args:
        model: pixels -> logits.
        pixels: [n, C, H, W].

    Returns:
        Kind of module -> how often one ran: dropout, and norms that take the statistics of their batch.
    """
    return _watched(model, pixels).alive


def modules_called(model: Callable[[Tensor], Any], pixels: Tensor) -> list[nn.Module]:
    """Modules that run during a call, each once, wherever they are kept.

    Args:
        model: pixels -> logits.
        pixels: [n, C, H, W].
    """
    return _watched(model, pixels).modules


def runs_of_modules(model: Callable[[Tensor], Any], pixels: Tensor) -> list[int]:
    """How often each module with weights of its own runs during a call.

    Args:
        model: pixels -> logits.
        pixels: [n, C, H, W].
    """
    return _watched(model, pixels).runs


@dataclasses.dataclass(frozen=True)
class _Watched:
    """Modules of a call: those that are alive in training mode, by kind; all of them; how often each that has weights ran."""

    alive: dict[str, int]
    modules: list[nn.Module]
    runs: list[int]


def _watched(model: Callable[[Tensor], Any], pixels: Tensor) -> _Watched:
    alive: Counter[str] = Counter()
    runs: Counter[int] = Counter()
    seen: dict[int, nn.Module] = {}

    def look(module: nn.Module, inputs: Any) -> None:
        seen[id(module)] = module
        if next(module.parameters(recurse=False), None) is not None:
            runs[id(module)] += 1
        if module.training and _differs_in_training(module):
            alive[type(module).__name__] += 1

    handle = register_module_forward_pre_hook(look)
    try:
        with torch.no_grad():
            model(pixels)
    finally:
        handle.remove()
    return _Watched(dict(alive), list(seen.values()), list(runs.values()))


def _differs_in_training(module: nn.Module) -> bool:
    """Whether it computes something else in training mode."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, _InstanceNorm):
        return bool(module.track_running_stats)
    return isinstance(module, (_BatchNorm, nn.RReLU))


def measure_inside(subject: Subject) -> Inside:
    """Watch calls on the first images."""
    x = subject.pixels[:_FEW]
    watched = _watched(subject.defence, x)
    before = _fingerprints(watched.modules)
    subject.logits(x)
    after = _fingerprints(watched.modules)
    changed = tuple(sorted({name for name, content in after.items() if before.get(name) != content}))
    handed, called = x.clone(), subject.called
    with torch.no_grad(), at_rest(called):
        in_own_type(called)(handed)
    moved = float((handed - x).abs().nan_to_num(nan=torch.inf).max())
    return Inside(watched.alive, len(watched.modules), max(watched.runs, default=0), changed, moved)


def _fingerprints(modules: list[nn.Module]) -> dict[str, str]:
    found = {}
    for place, module in enumerate(modules):
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, tensor in own:
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found[f"{type(module).__name__}.{name} ({place})"] = hashlib.blake2b(content, digest_size=16).hexdigest()
    return found


@dataclasses.dataclass(frozen=True)
class Generators:
    """How answers and the global generators of torch, NumPy and Python hang together.

    Args:
        same: largest difference of logits between two calls with all of them seeded alike.
        other: largest difference with all of them seeded otherwise.
        changed: decisions changed between the two.
        read: those that a call moved on.
        set: those that a call left in one state, whatever it was before.
        asked: images.
    """

    same: float
    other: float
    changed: int
    read: tuple[str, ...]
    set: tuple[str, ...]
    asked: int


def measure_generators(subject: Subject) -> Generators:
    """Ask with all global generators seeded alike, and otherwise."""
    x, seed = subject.pixels[: 2 * _FEW], subject.settings.seed
    answers, before, after = [], [], []
    for number in (1, 1, 2):
        seed_all(seed + number)
        before.append(_states())
        answers.append(subject.logits(x))
        after.append(_states())
    read = tuple(name for name in before[0] if before[0][name] != after[0][name])
    put = tuple(name for name in read if after[0][name] == after[2][name])
    changed = int((answers[0].argmax(1) != answers[2].argmax(1)).sum())
    return Generators(apart(answers[0], answers[1]), apart(answers[0], answers[2]), changed, read, put, len(x))


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python; inside of :func:`kept_generators`."""
    torch.manual_seed(seed % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _states() -> dict[str, str]:
    of_cuda = b"".join(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()) if _has_cuda() else b""
    of_numpy: Any = np.random.get_state(legacy=False)
    contents = {
        "torch": torch.get_rng_state().numpy().tobytes() + of_cuda,
        "NumPy": repr(of_numpy).encode() + of_numpy["state"]["key"].tobytes(),
        "Python": repr(random.getstate()).encode(),
    }
    return {name: hashlib.blake2b(content, digest_size=16).hexdigest() for name, content in contents.items()}


def _has_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """The global generators of torch, NumPy and Python are afterwards as they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    of_cuda = torch.cuda.get_rng_state_all() if _has_cuda() else []
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if of_cuda:
            torch.cuda.set_rng_state_all(of_cuda)
