"""What one more image costs in memory: measured once, so that batches are cut before memory runs out."""

from __future__ import annotations

import torch
from torch import Tensor

from rdc.execution.memory import bytes_per_item
from rdc.execution.surroundings import measured
from rdc.method.denoiser import Denoiser
from rdc.method.draw import Draw

__all__ = ["gradient_bytes"]


@measured()
def gradient_bytes(denoiser: Denoiser, like: Tensor) -> int:
    """Peak bytes that one more image at one level needs for its class losses and their gradient in pixels."""

    one = like.new_ones(1)
    draw = Draw(one, one, like.new_zeros(1, *denoiser.noise_shape))

    def work(count: int) -> Tensor:
        x = like.new_zeros(count, *denoiser.latent_shape).requires_grad_()
        if denoiser.passes_per_level > 1:  # a class is a row of its own; all, three times, may be more than the budget
            loss = denoiser.losses_of_labels(x, draw, torch.zeros(count, dtype=torch.long, device=like.device))
        else:
            loss = denoiser.class_losses(x, draw)
        return torch.autograd.grad(loss.sum(), x)[0]

    return bytes_per_item(work) * denoiser.passes_per_level
