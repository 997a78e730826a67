"""Up- and downsampling of feature maps by two through a separable filter (Karras et al. 2022, arXiv 2206.00364, appendix F)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.networks import fused

__all__ = ["filter_down", "filter_up"]


def _channels_innermost(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and (x.device.type == "cuda" or fused.on_cpu(x))


def filter_up(x: Tensor, taps: Tensor) -> Tensor:
    """Upsample [B, C, H, W] by two. The box filter is nearest-neighbour repetition."""
    if taps.shape[-1] == 2:
        batch, channels, height, width = x.shape
        if _channels_innermost(x):
            x = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(batch, height, 2, width, 2, channels)
            return x.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
        x = x[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
        return x.reshape(batch, channels, 2 * height, 2 * width)
    channels = x.shape[1]
    weight = (taps * 4).to(x.dtype).expand(channels, 1, -1, -1)
    return F.conv_transpose2d(x, weight, groups=channels, stride=2, padding=(taps.shape[-1] - 1) // 2)


def filter_down(x: Tensor, taps: Tensor, padding: int) -> Tensor:
    """Downsample [B, C, H, W] by two. The box filter without padding is average pooling."""
    if taps.shape[-1] == 2 and padding == 0:
        even = x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        if (
            x.device.type == "cuda" and _channels_innermost(x) and even
        ):  # the backward pass of pooling took 7 times as long there
            batch, channels, height, width = x.shape
            x = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
            return x.mean((2, 4)).permute(0, 3, 1, 2)
        return F.avg_pool2d(x, 2)
    channels = x.shape[1]
    return F.conv2d(x, taps.to(x.dtype).expand(channels, 1, -1, -1), groups=channels, stride=2, padding=padding)
