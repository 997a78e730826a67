"""What a network computes on its way to an answer: the layers behind its rectifiers, for perceptual distances."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rdc.errors import InputError

__all__ = ["RECTIFIERS", "Activations"]

#: layers behind which an activation is taken
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Softplus, nn.Hardswish, nn.Mish)


class Activations(nn.Module):
    """The layers of a network: what its method ``activations`` gives, else the images [n, c, h, w] behind each of its rectifiers.

    Args:
        network: pixels [n, C, H, W] -> anything. Rectifiers are modules (:data:`RECTIFIERS`), as torchvision has them: of an AlexNet these
            are the five layers of LPIPS.

    Forward:
        pixels [n, C, H, W] -> a list of [n, c, h, w], in the order of computation, differentiable.

    Raises:
        InputError: in a call, if there is no such layer.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        own = getattr(self.network, "activations", None)
        if callable(own):
            layers: list[Tensor] = own(x)
            return layers
        found: list[Tensor] = []

        def seen(_module: nn.Module, _given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and len(output) == len(x):
                found.append(output.clone())  # a later layer may work in place

        hooks = [
            module.register_forward_hook(seen) for module in self.network.modules() if isinstance(module, RECTIFIERS)
        ]
        try:
            self.network(x)
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            raise InputError(
                f"{type(self.network).__name__}: expected layers of rectified images [n, c, h, w] to measure a perceptual distance by; "
                "it has none. Take a convolutional network with nn.ReLU modules, or one with a method activations(pixels) -> list"
            )
        return found
