"""Networks around the U-Net: patches in and out, and the multi-head last layers.

``PatchUNet`` runs any EDM U-Net on ``patch_size`` x ``patch_size`` blocks of pixels (space-to-depth), which divides its
cost by ``patch_size**2``; ``MultiHeadUNet`` replaces the last layer by one that predicts F for every class at once
(arXiv 2305.15241, section 3.4 and appendix).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.networks.blocks import Conv2d, GroupNorm, UNetBlock
from rdc.networks.unet import SongUNet

__all__ = ["MultiHeadUNet", "PatchUNet"]


class PatchUNet(nn.Module):
    """A conditional U-Net on space-to-depth images.

    Forward:
        x [B, C, H, W], noise_labels [B], class_labels [B, K] one-hot or None -> F [B, C, H, W].
    """

    def __init__(self, unet: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.unet, self.patch_size = unet, patch_size

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None) -> Tensor:
        x = F.pixel_unshuffle(x, self.patch_size)
        return F.pixel_shuffle(self.unet(x, noise_labels, class_labels), self.patch_size)


class MultiHeadUNet(nn.Module):
    """One pass that predicts F for all K classes and for the null label.

    The trunk is a conditional U-Net run with the null label. Its last features pass a wide residual block and are
    unfolded to ``feature_channels - C`` maps at full resolution; the trunk's own prediction of F joins them as the last
    ``C`` maps. The head is linear in these maps, so that at the start every class predicts what the trunk predicts, and
    training only has to learn how the classes differ.

    Args:
        unet: trunk, a :class:`SongUNet` on patches (its last convolution gives C * patch_size**2 channels).
        patch_size: side of the pixel blocks.
        image_channels: C.
        num_classes: K.
        feature_channels: c, channels of the last feature map (C of them are the trunk's prediction).
        wide_channels: width of the residual block between trunk and head.

    Attributes:
        head_weight: [(K + 1) * C, c, 3, 3]; rows k*C ... (k+1)*C belong to class k, the last C to the null label.
        head_bias: [(K + 1) * C].
    """

    def __init__(
        self,
        unet: SongUNet,
        patch_size: int,
        image_channels: int,
        num_classes: int,
        feature_channels: int = 64,
        wide_channels: int = 160,
    ) -> None:
        super().__init__()
        self.unet, self.patch_size = unet, patch_size
        self.image_channels, self.num_classes, self.feature_channels = image_channels, num_classes, feature_channels
        last = unet.last_channels
        self.wide = UNetBlock(
            last,
            wide_channels,
            unet.map_layer1.out_features,
            skip_scale=0.5**0.5,
            eps=1e-6,
            resample_proj=True,
            adaptive_scale=False,
        )
        self.norm = GroupNorm(wide_channels, eps=1e-6)
        self.unfold = Conv2d(wide_channels, (feature_channels - image_channels) * patch_size**2, 1)
        rows = (num_classes + 1) * image_channels
        weight = torch.zeros(rows, feature_channels, 3, 3)
        for row in range(rows):
            weight[row, feature_channels - image_channels + row % image_channels, 1, 1] = 1.0
        self.head_weight = nn.Parameter(weight)
        self.head_bias = nn.Parameter(torch.zeros(rows))

    def features(self, x: Tensor, noise_labels: Tensor) -> Tensor:
        """Last feature map h [B, c, H, W] of x [B, C, H, W] at noise_labels [B]."""
        emb = self.unet.embed(noise_labels, None, None)
        trunk, prediction = self.unet.decode(F.pixel_unshuffle(x, self.patch_size), emb)
        wide = self.unfold(F.silu(self.norm(self.wide(trunk, emb))))
        maps = F.silu(F.pixel_shuffle(wide, self.patch_size))
        return torch.cat([maps, F.pixel_shuffle(prediction, self.patch_size)], dim=1)

    def forward(self, x: Tensor, noise_labels: Tensor) -> Tensor:
        """F for every class and the null label: [B, K + 1, C, H, W]."""
        h = self.features(x, noise_labels)
        f = F.conv2d(h, self.head_weight.to(h.dtype), self.head_bias.to(h.dtype), padding=1)
        return f.unflatten(1, (self.num_classes + 1, self.image_channels))
