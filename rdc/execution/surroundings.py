"""What the caller's surroundings must not change: ``torch.autocast`` and ``torch.inference_mode``.

Under the caller's autocast a diffusion classifier would lose half of the digits that decide; ``precision`` is the way to ask for
that. And a tensor made inside inference mode can never be part of a gradient, so nothing that is kept may be made there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from rdc.errors import ConfigError
from rdc.execution.opaque import kept_for_later, transformed

__all__ = [
    "measured",
    "never_inference",
    "ordinary_tensor",
    "outside_inference_mode",
    "refuse_inference_weights",
    "undisturbed",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def undisturbed(function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module | None = None) -> Tensor:
    """``function(x)`` as if the caller had entered neither autocast nor inference mode, backward pass included.

    Args:
        function: a deterministic function of one tensor.
        x: any tensor.
        module: what ``function`` computes with. Where its weights want gradients, or a function transform is at work, the forward
            pass alone is kept from autocast.

    Returns:
        The same bits and the same gradient as outside. In inference mode an ordinary tensor without a gradient.
    """
    inference, casting = torch.is_inference_mode_enabled(), _casts(x.device.type)
    if not inference and not casting:
        return function(x)
    with outside_inference_mode(), _full_precision(x.device.type):
        x = ordinary_tensor(x)
        frozen = module is None or not any(weight.requires_grad for weight in module.parameters())
        if casting and frozen and x.requires_grad and torch.is_grad_enabled() and not transformed():
            held = function if module is None else kept_for_later(module, function)
            out: Tensor = _Shielded.apply(held, x)  # type: ignore[no-untyped-call]
            return out
        return function(x)


@contextlib.contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Make ordinary tensors, without recording gradients, where the caller is in inference mode; else nothing."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextlib.contextmanager
def measured() -> Iterator[None]:
    """For what is measured once and kept: gradients, ordinary tensors and full precision, whatever the caller is in."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if _casts(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def never_inference(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function that makes what is kept (weights, say): inside inference mode it works as outside."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with outside_inference_mode():
            return function(*args, **kwargs)

    return run


def ordinary_tensor(value: Any) -> Any:
    """A copy of a tensor that was made inside inference mode; anything else itself. Call it outside inference mode."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def refuse_inference_weights(module: nn.Module) -> None:
    """Refuse weights that were made inside inference mode: no gradient can pass through them, ever.

    Raises:
        ConfigError: names the first of them.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_inference():
            raise ConfigError(
                f"denoiser: {name} was made inside torch.inference_mode(), and gradients cannot pass through such a tensor; make "
                "the network outside, and call the classifier inside if you like"
            )


def _casts(device: str) -> bool:
    """Whether the caller's autocast is on for this kind of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _full_precision(device: str) -> Any:
    return torch.autocast(device, enabled=False) if _casts(device) else contextlib.nullcontext()


class _Shielded(torch.autograd.Function):
    """A function whose backward pass, too, runs without autocast: it keeps a graph of its own."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        with torch.enable_grad():
            pairs = zip(inputs, ctx.needs_input_grad[1:], strict=True)
            ctx.leaves = [value.detach().requires_grad_(needed) for value, needed in pairs]
            ctx.out = function(*ctx.leaves)
        out: Tensor = ctx.out.detach()
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        needed = [place for place, leaf in enumerate(ctx.leaves) if leaf.requires_grad]
        grads: list[Tensor | None] = [None] * len(ctx.leaves)
        with _full_precision(upstream.device.type):
            if torch.is_grad_enabled():  # somebody will differentiate this gradient
                found: Sequence[Tensor | None] = [
                    _again(ctx.function, ctx.saved_tensors, place, upstream) for place in needed
                ]
            else:
                wanted = [ctx.leaves[place] for place in needed]
                found = torch.autograd.grad(ctx.out, wanted, upstream, retain_graph=True, allow_unused=True)
        for place, grad in zip(needed, found, strict=True):
            grads[place] = grad
        return None, *grads


def _again(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], place: int, upstream: Tensor) -> Tensor:
    """The gradient in one of the inputs, as a function that can be differentiated in its turn."""

    def gradient(*operands: Tensor) -> Tensor:
        *values, weight = operands
        values[place] = values[place] if values[place].requires_grad else values[place].detach().requires_grad_()
        return torch.autograd.grad(function(*values), values[place], weight, create_graph=True)[0]

    out: Tensor = _Shielded.apply(gradient, *inputs, upstream)  # type: ignore[no-untyped-call]
    return out
