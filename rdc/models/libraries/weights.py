"""Weights of other libraries' models: no file of theirs runs code here, and nothing is fetched in silence."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdc.arguments.scalars import shown
from rdc.errors import CheckpointError, RdcError, one_line
from rdc.models.convert.state_dicts import read_safetensors, read_torch_file, strip_prefix

__all__ = ["fill", "lent", "say_download"]

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def lent(name: str, advice: str) -> Iterator[None]:
    """Let a library make one of its models.

    Every ``torch.load`` in here is one of tensors alone, whatever the library asks for: torch's own switch for that is on, and the one
    against it is off. What the library prints goes to stderr. Random weights are drawn with seed 0, and torch's generator is as before.

    Args:
        name: of the model.
        advice: what to do where weights cannot be fetched.

    Raises:
        CheckpointError: it raised anything; in one line.
    """
    before = {key: os.environ.pop(key, None) for key in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    except RdcError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {one_line(error, 300)}"
        if "weights_only" in str(error) or "Weights only load failed" in str(error):
            why = "its checkpoint asks for more than tensors, which is not read here"
            advice = "If you trust it: --model FILE.py:FUNCTION, a function of yours that builds and loads it"
        raise CheckpointError(f"{one_line(name, 200)}: cannot be loaded ({why}). {advice}") from error
    finally:
        os.environ.pop(_FORCE, None)
        os.environ.update({key: value for key, value in before.items() if value is not None})


def say_download(name: str, source: str) -> None:
    """One line on stderr: weights are about to be fetched from somewhere."""
    if sys.stderr is not None:
        print(
            f"rdc: {one_line(name, 200)}: its weights are not here; fetched from {one_line(source, 300)}",
            file=sys.stderr,
        )


def fill(model: nn.Module, path: Path, name: str) -> None:
    """Put the weights of a file into a model; nothing in the file is run.

    Args:
        model: a network.
        path: a safetensors file, or a state dict of ``torch.save``, also inside a training checkpoint or behind ``module.``.
        name: of the model.

    Raises:
        CheckpointError: no such file, damaged, or the weights of another model.
    """
    wanted = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)[0]
    if not set(wanted) <= set(state):
        state = strip_prefix(state, set(wanted), path)[0]
    there: dict[str, Any] = {key: tuple(value.shape) for key, value in state.items()}
    sizes = {key: tuple(value.shape) for key, value in wanted.items()}
    counters = {
        key for key in sizes if key.endswith("num_batches_tracked")
    }  # old files lack them, and nothing in use reads them
    wrong = sorted(key for key in {*sizes, *there} - (counters - set(there)) if sizes.get(key) != there.get(key))
    if wrong:
        first = wrong[0]
        raise CheckpointError(
            f"{path}: expected the {len(sizes)} tensors of {one_line(name, 100)}; {len(wrong)} are missing, unknown or of another "
            f"shape, such as {one_line(first, 80)}: expected {shown(sizes.get(first))}, got {shown(there.get(first))}. For another "
            "number of classes say classes=K"
        )
    model.load_state_dict(state, strict=not counters - set(there))
