"""Networks around the U-Net: patches in and out, and the multi-head last layers.

``PatchUNet`` runs any EDM U-Net on ``patch_size`` x ``patch_size`` blocks of pixels (space-to-depth), which divides its
cost by ``patch_size**2``; ``MultiHeadUNet`` replaces the last layer by one that predicts F for every class at once
(arXiv 2305.15241, section 3.4 and appendix).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.networks.blocks import GroupNorm, UNetBlock, as_autocast
from rdc.networks.unet import SongUNet
from rdc.ops.convolution import convolution, usable

__all__ = ["MultiHeadUNet", "PatchUNet"]


class PatchUNet(nn.Module):
    """A conditional U-Net on space-to-depth images.

    Forward:
        x [B, C, H, W], noise_labels [B], class_labels [B, K] one-hot or None, augment_labels [B, 9] or None
        -> F [B, C, H, W].
    """

    def __init__(self, unet: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.unet, self.patch_size = unet, patch_size

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        x = F.pixel_unshuffle(x, self.patch_size)
        return F.pixel_shuffle(self.unet(x, noise_labels, class_labels, augment_labels), self.patch_size)


class MultiHeadUNet(nn.Module):
    """One pass that predicts F for all K classes and for the null label.

    The trunk is a conditional U-Net run with the null label. Its last features pass a wide residual block, and the
    trunk's own prediction of F joins them as the last ``C * patch_size**2`` maps. The head, one 3 x 3 convolution on
    patches, is linear in these maps: at the start every class predicts what the trunk predicts, and training only has to
    learn how the classes differ. A class owns ``C * patch_size**2`` rows of the head, one for each channel and pixel of a
    patch (the order of ``torch.pixel_unshuffle``), so that its squared error can be summed without leaving the patches.

    Args:
        unet: trunk, a :class:`SongUNet` on patches (its last convolution gives C * patch_size**2 channels).
        patch_size: side of the pixel blocks.
        image_channels: C.
        num_classes: K.
        wide_channels: width of the residual block between trunk and head; it has to carry K hypotheses at once.

    Attributes:
        feature_channels: c = wide_channels + C * patch_size**2, channels of the last feature map.
        head_weight: [(K + 1) * C * patch_size**2, c, 3, 3]; consecutive rows belong to class k, the last to the null label.
        head_bias: [(K + 1) * C * patch_size**2].
    """

    def __init__(
        self, unet: SongUNet, patch_size: int, image_channels: int, num_classes: int, wide_channels: int = 156
    ) -> None:
        super().__init__()
        self.unet, self.patch_size = unet, patch_size
        self.num_classes, self.folded_channels = num_classes, image_channels * patch_size**2
        self.feature_channels = wide_channels + self.folded_channels
        self.wide = UNetBlock(
            unet.last_channels,
            wide_channels,
            unet.map_layer1.out_features,
            skip_scale=0.5**0.5,
            eps=1e-6,
            resample_proj=True,
            adaptive_scale=False,
        )
        self.norm = GroupNorm(wide_channels, eps=1e-6)
        rows = (num_classes + 1) * self.folded_channels
        weight = torch.zeros(rows, self.feature_channels, 3, 3)
        own = weight.unflatten(0, (num_classes + 1, self.folded_channels))[:, :, wide_channels:, 1, 1]
        own.diagonal(dim1=1, dim2=2).fill_(1.0)
        self.head_weight = nn.Parameter(weight)
        self.head_bias = nn.Parameter(torch.zeros(rows))

    def features(self, x: Tensor, noise_labels: Tensor, augment_labels: Tensor | None = None) -> Tensor:
        """Last feature map h [B, c, H / patch_size, W / patch_size] of x [B, C, H, W] at noise_labels [B].

        augment_labels [B, 9]: how the image was transformed (:func:`rdc.training.augmentation.geometric`); None: not at all.
        """
        emb = self.unet.embed(noise_labels, None, augment_labels)
        trunk, prediction = self.unet.decode(F.pixel_unshuffle(x, self.patch_size), emb)
        return torch.cat([self.norm.silu(self.wide(trunk, emb)), prediction], dim=1)

    def predict(self, h: Tensor, first: int, last: int) -> Tensor:
        """F of classes first ... last - 1 (K: the null label) from features h: [B, last - first, C, H, W]."""
        f = F.pixel_shuffle(self._head(h, first, last), self.patch_size)
        every: Tensor = f.unflatten(1, (last - first, -1))
        return every

    def _head(self, h: Tensor, first: int, last: int) -> Tensor:
        if first == 0 and last == self.num_classes + 1 and usable(h, self.head_weight):
            return convolution(as_autocast(h), self.head_weight, self.head_bias)
        rows = slice(first * self.folded_channels, last * self.folded_channels)
        return F.conv2d(h, self.head_weight[rows].to(h.dtype), self.head_bias[rows].to(h.dtype), padding=1)

    def forward(self, x: Tensor, noise_labels: Tensor, augment_labels: Tensor | None = None) -> Tensor:
        """F for every class and the null label: [B, K + 1, C, H, W]. Arguments as of :meth:`features`."""
        return self.predict(self.features(x, noise_labels, augment_labels), 0, self.num_classes + 1)
