"""A training step's loss and gradients as one CUDA graph: thousands of launches, recorded once and started together.

A step of a small network is thousands of short kernels; Python needs longer to ask for them than a fast GPU to run them. The
graph is recorded from the very function that runs otherwise, with the same random generators, whose seeds are set before every
replay: the numbers of a step are those it has without a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from rdc.errors import ConfigError

__all__ = ["GraphedStep"]

#: function(x0, labels, generator) -> anything made of tensors; it leaves gradients in the parameters
Step = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, list[str]]]


class GraphedStep:
    """Records ``function`` at its first call; later calls replay it with other images.

    Args:
        function: of images [B, C, H, W], labels [B] and the generator; backpropagates, and returns numbers to read and their names.
            It may not wait for the GPU, and every call has to ask for the same kernels.
        parameters: whose gradients the function makes.
        generator: of the step's random numbers, on the GPU; the caller seeds it before every call. A ``torch.Generator`` itself:
            PyTorch registers no other.

    Raises:
        ConfigError: the first call finds that the function cannot be recorded.

    Attributes:
        warm: calls that run before the recording, so that libraries choose their kernels and compiled ones are made.
    """

    warm = 3

    def __init__(self, function: Step, parameters: Iterable[nn.Parameter], generator: torch.Generator) -> None:
        self.function, self.parameters, self.generator = function, list(parameters), generator
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x0: Tensor, labels: Tensor) -> tuple[Tensor, list[str]]:
        """Numbers and names as ``function`` returns them; gradients are in the parameters. Overwritten by the next call."""
        with torch.cuda.device(x0.device):
            if self.graph is None:
                self._record(x0, labels)
            assert self.graph is not None
            self.x0.copy_(x0)
            self.labels.copy_(labels)
            self.graph.replay()
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad
        return self.numbers, self.names

    def _record(self, x0: Tensor, labels: Tensor) -> None:
        self.x0, self.labels = x0.clone(), labels.clone()
        seed = self.generator.initial_seed()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.warm):
                self._forget()
                self.function(self.x0, self.labels, self.generator)
        torch.cuda.current_stream().wait_stream(stream)
        self._forget()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        try:
            with torch.cuda.graph(graph):
                self.numbers, self.names = self.function(self.x0, self.labels, self.generator)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"--cuda-graph: this step cannot be recorded ({reason}). Run again without --cuda-graph: the run continues, slower"
            ) from error
        self.grads = [parameter.grad for parameter in self.parameters]
        self.generator.manual_seed(seed)  # the replay draws what the first step would have drawn
        self.graph = graph

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
