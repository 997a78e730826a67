"""The empirical denoiser in torch: the truth that its kernels are held to, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BLOCK", "empirical_denoiser_matrix", "empirical_denoiser_reference"]

BLOCK = 2048  #: images of the distribution that are looked at together


def empirical_denoiser_reference(
    inner: Tensor, noise_inner: Tensor, images: Tensor, half_square: Tensor, beta: Tensor
) -> Tensor:
    """The posterior mean, one block of the distribution after the other: no matrix [N*T, n] exists (without autograd).

    Args, Returns: as of :func:`rdc.ops.empirical_denoiser.empirical_denoiser`.
    """
    levels, rows = noise_inner.shape[0], beta.shape[0]
    largest = inner.new_full(
        (rows,), torch.finfo(inner.dtype).min
    )  # finite: infinity times 0 in a gradient is not a number
    total = inner.new_zeros(rows)
    mean = inner.new_zeros(rows, images.shape[1])
    for begin in range(0, images.shape[0], BLOCK):
        pick = slice(begin, begin + BLOCK)
        score = (inner[:, None, pick] + (noise_inner[:, pick] - half_square[pick])).flatten(0, 1)
        larger = torch.maximum(largest, score.detach().amax(1))
        # Differences first: at s = 1e-4 scores times beta are 1e10, and float32 could not tell them apart.
        shrink, weight = ((largest - larger) * beta).exp(), ((score - larger[:, None]) * beta[:, None]).exp()
        total = total * shrink + weight.sum(1)
        mean = torch.addmm(mean * shrink[:, None], weight, images[pick])
        largest = larger
    assert rows == inner.shape[0] * levels
    return mean / total[:, None]


def empirical_denoiser_matrix(
    inner: Tensor, noise_inner: Tensor, images: Tensor, half_square: Tensor, beta: Tensor
) -> Tensor:
    """The same by one softmax over a matrix [N*T, n]: few calls, for what is recorded and run elsewhere.

    Args, Returns: as of :func:`rdc.ops.empirical_denoiser.empirical_denoiser`.
    """
    score = (inner[:, None] + (noise_inner - half_square)).flatten(0, 1) * beta[:, None]
    return torch.softmax(score, 1) @ images
