"""Somebody else's certified network under rdc's attacks: Wong & Kolter's provably trained Fashion-MNIST network (arXiv 1711.00851).

    export WONG_KOLTER=.../wong_kolter_fashion_mnist.safetensors
    rdc evaluate --model examples.wong_kolter:load --data fashion-mnist-sample --attacks autoattack --eps 0.1 --n 128

The weights are those of https://github.com/locuslab/convex_adversarial, ``models/fashion_mnist.pth`` (MIT licence), as safetensors with the
names of the sequence below; nothing of that file is part of this project.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from rdc.errors import CheckpointError
from rdc.storage.reading import read_content
from rdc.storage.safetensors_files import parse_safetensors

__all__ = ["VARIABLE", "load", "network"]

VARIABLE = "WONG_KOLTER"  #: environment variable that names the file


def network() -> nn.Sequential:
    """Pixels [N, 1, 28, 28] in [0, 1] -> logits [N, 10]; 166,406 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def load(path: str | os.PathLike[str] | None = None) -> nn.Sequential:
    """The network with its weights.

    Args:
        path: the .safetensors file; None: what the environment variable :data:`VARIABLE` names.

    Raises:
        CheckpointError: no file is named, or it does not hold these weights.
    """
    path = path or os.environ.get(VARIABLE)
    if not path:
        raise CheckpointError(f"set {VARIABLE} to wong_kolter_fashion_mnist.safetensors, whose weights these are")
    model = network()
    content = read_content(Path(path), CheckpointError, "the network of Wong & Kolter", 2**24)
    wanted, found = model.state_dict(), parse_safetensors(content, os.fspath(path), CheckpointError)
    shapes = {name: list(tensor.shape) for name, tensor in wanted.items()}
    if shapes != (got := {name: list(tensor.shape) for name, tensor in found.items()}):
        raise CheckpointError(f"{path}: expected the tensors {shapes}; got {got}")
    model.load_state_dict(found)
    return model.eval()
