"""Small pre-activation ResNet: pixels to logits. The classifier of the adversarial-training baselines.

    x [B, C, H, W] in [0, 1] -> 2 x - 1 -> blocks of P x P pixels -> 3 x 3 convolution -> stages -> mean -> logits [B, K]

Stage k (from 0) has ``width * 2**k`` channels; every stage but the first halves height and width. A block is

    h = relu(norm(x));   y = skip(x, h) + conv(relu(norm(conv(h))))

with skip = x, or a 1 x 1 convolution of h where the shape changes (He et al., arXiv 1603.05027, figure 4e). Group instead of
batch normalisation: an image's logits do not depend on its batch, training and evaluation compute the same function, and
there are no running statistics to average. Energy-based models (JEM) go without any norm and with leaky ReLUs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.arguments.scalars import shown
from rdc.errors import ConfigError
from rdc.networks.blocks import GroupNorm, padded_to

__all__ = ["ACTIVATIONS", "NORMS", "ResNet"]

NORMS = ("group", "none")
_SLOPES = {"relu": 0.0, "leaky-relu": 0.2}  # of the negative side
ACTIVATIONS = tuple(_SLOPES)
_GROUPS = 8


class ResNet(nn.Module):
    """A pre-activation ResNet with group normalisation on space-to-depth images.

    Args:
        image_shape: (C, H, W). Sides that ``patch_size`` does not divide are padded with grey below and on the right.
        num_classes: K >= 2.
        width: channels of the first stage, >= 1.
        blocks: residual blocks of each stage, at least one stage of at least one block.
        patch_size: side P of the pixel blocks that the first convolution sees as channels.
        norm: "group", or "none".
        activation: "relu", or "leaky-relu" (slope 0.2).

    Forward:
        pixels [B, C, H, W] in [0, 1] -> logits [B, K]. Under autocast the first convolution and the last layer stay in the
        weights' precision: bfloat16 cannot tell grey levels near 1 apart, nor logits that differ by less than 1 %.

    Raises:
        ConfigError: an argument is out of range.

    Source: He et al. 2016, arXiv 1603.05027; group normalisation: Wu and He 2018, arXiv 1803.08494.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        width: int,
        blocks: tuple[int, ...],
        patch_size: int = 1,
        norm: str = "group",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        for name, value, known in (("norm", norm, NORMS), ("activation", activation, ACTIVATIONS)):
            if value not in known:
                raise ConfigError(f"{name}: expected one of {', '.join(known)} for a resnet; got {shown(value)}")
        if num_classes < 2:
            raise ConfigError(f"num_classes: expected at least 2 for a resnet; got {num_classes}")
        if width < 1 or not blocks or min(blocks) < 1:
            raise ConfigError(
                f"resnet: expected width >= 1 and blocks a list of numbers >= 1; got width {width}, blocks {list(blocks)}"
            )
        self.image_shape, self.num_classes, self.patch_size = tuple(image_shape), num_classes, patch_size
        self.stem = nn.Conv2d(image_shape[0] * patch_size**2, width, 3, padding=1)
        widths = [width * 2**stage for stage, count in enumerate(blocks) for _ in range(count)]
        self.blocks = nn.ModuleList(
            _Block(before, after, 1 if after == before else 2, norm, _SLOPES[activation])
            for before, after in zip([width, *widths], widths, strict=False)
        )
        self.norm, self.slope = _norm(norm, widths[-1]), _SLOPES[activation]
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of pixels [B, C, H, W] in [0, 1]."""
        with torch.autocast(x.device.type, enabled=False):
            x = self.stem(F.pixel_unshuffle(padded_to(2 * x - 1, self.patch_size), self.patch_size))
        for block in self.blocks:
            x = block(x)
        with torch.autocast(x.device.type, enabled=False):
            features = _rectified(self.norm(x.to(self.head.weight.dtype)), self.slope).mean((2, 3))
            logits: Tensor = self.head(features)
            return logits

    def activations(self, x: Tensor) -> list[Tensor]:
        """What enters each block and the head, rectified: layers [B, c, h, w] of pixels [B, C, H, W] in [0, 1]."""
        x = self.stem(F.pixel_unshuffle(padded_to(2 * x - 1, self.patch_size), self.patch_size))
        found = []
        for block in self.blocks:
            assert isinstance(block, _Block)
            found.append(_rectified(block.norm0(x), self.slope))
            x = block(x)
        return [*found, _rectified(self.norm(x), self.slope)]


class _Block(nn.Module):
    """Pre-activation residual block [B, in, H, W] -> [B, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.norm0 = _norm(norm, in_channels)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        changes = stride > 1 or in_channels != out_channels
        self.skip = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        h = _rectified(self.norm0(x), self.slope)
        residual = x if self.skip is None else self.skip(h)
        out: Tensor = residual + self.conv1(_rectified(self.norm1(self.conv0(h)), self.slope))
        return out


def _norm(name: str, channels: int) -> nn.Module:
    return GroupNorm(channels, _GROUPS) if name == "group" else nn.Identity()


def _rectified(x: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(x, slope) if slope else F.relu(x)
