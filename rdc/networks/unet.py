"""EDM-compatible U-Nets: ``SongUNet`` (DDPM++ and NCSN++) and ``DhariwalUNet`` (ADM).

Sources: Song et al. 2021 (arXiv 2011.13456), Dhariwal and Nichol 2021 (arXiv 2105.05233), in the form given by Karras
et al. 2022 (arXiv 2206.00364, appendix F). Module and parameter names follow the public EDM checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.networks.blocks import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    UNetBlock,
    cut_to,
    padded_to,
)
from rdc.ops.norm_act_native import laid_out

__all__ = ["DhariwalUNet", "SongUNet"]


class SongUNet(nn.Module):
    """DDPM++ (``embedding_type="positional"``, standard encoder) or NCSN++ (``"fourier"``, residual encoder) U-Net.

    Args:
        img_resolution: H = W of the input, or (H, W); at least ``2 ** (len(channel_mult) - 1)``. Sides that are no multiple of that
            are padded with zeros below and on the right, and what comes of the padding is cut off again.
        in_channels, out_channels: image channels in and out.
        label_dim: number of classes K; 0 for an unconditional network.
        augment_dim: length of the augmentation label; 0 for none.
        model_channels, channel_mult, channel_mult_emb, num_blocks, attn_resolutions, dropout: as in EDM.
        label_dropout: recorded for compatibility; the trainer, not the network, replaces labels by the null label.
        embedding_type, channel_mult_noise, encoder_type, decoder_type, resample_filter: as in EDM.
        middle_attention: self-attention in the first block of the decoder (EDM always has it).
        adaptive_scale: noise level and class scale and shift the features after normalisation (as in ADM), instead of
            shifting them before it (EDM's DDPM++ and NCSN++).

    Forward:
        x [B, in_channels, H, W], noise_labels [B] (c_noise), class_labels [B, K] one-hot (zeros or None: null label),
        augment_labels [B, augment_dim] or None -> [B, out_channels, H, W].
    """

    def __init__(
        self,
        img_resolution: int | tuple[int, int],
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[int] = (1, 1),
        middle_attention: bool = True,
        adaptive_scale: bool = False,
    ) -> None:
        super().__init__()
        _expect("embedding_type", embedding_type, ("positional", "fourier"))
        _expect("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _expect("decoder_type", decoder_type, ("standard", "skip"))
        self.multiple = _multiple(len(channel_mult))
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        noise_channels = model_channels * channel_mult_noise
        _expect_even(noise_channels, 4 if embedding_type == "positional" else 2)
        taps = tuple(resample_filter)
        block: dict[str, Any] = {
            "emb_channels": emb_channels,
            "dropout": dropout,
            "skip_scale": math.sqrt(0.5),
            "eps": 1e-6,
            "resample_filter": taps,
            "resample_proj": True,
            "adaptive_scale": adaptive_scale,
            "attention_scale": math.sqrt(0.2),
        }
        if embedding_type == "positional":
            self.map_noise: nn.Module = PositionalEmbedding(noise_channels, endpoint=True)
        else:
            self.map_noise = FourierEmbedding(noise_channels)
        self.map_label = Linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels)
        self.map_layer1 = Linear(emb_channels, emb_channels)

        levels = [
            _Level(size, model_channels * mult, int(min(size) in attn_resolutions))
            for size, mult in _resolutions(img_resolution, channel_mult)
        ]
        beside = _beside_the_encoder(encoder_type, in_channels, taps)
        self.enc, skips = _encoder(Conv2d(in_channels, model_channels, 3), levels, num_blocks, block, beside)
        outputs = _outputs(decoder_type, out_channels, taps, levels)
        self.dec = _decoder(levels, skips, num_blocks, block, int(middle_attention), False, outputs)
        self.last_channels = levels[0].width

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Embedding [B, emb_channels] of noise level, class and augmentation."""
        emb = self.map_noise(noise_labels)
        emb = emb.reshape(emb.shape[0], 2, -1).flip(1).reshape(emb.shape)  # sines first, cosines second
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(class_labels * math.sqrt(self.map_label.in_features))
        elif self.map_label is not None and self.map_label.bias is not None:
            emb = emb + self.map_label.bias.to(emb.dtype)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        return self.decode(x, self.embed(noise_labels, class_labels, augment_labels))[1]

    def decode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        """Run the U-Net on x [B, in_channels, H, W] with embedding ``emb`` [B, emb_channels].

        Returns:
            Features [B, last_channels, H, W] in front of the last normalisation, and the output [B, out_channels, H, W].
        """
        height, width = x.shape[2:]
        features, output = self._decode(padded_to(laid_out(x), self.multiple), emb)
        return cut_to(features, height, width), cut_to(output, height, width)

    def _decode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`decode` of an image whose sides every level can halve."""
        skips: list[Tensor] = []
        aux = x
        for name, block in self.enc.items():
            if "aux_down" in name:
                aux = block(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + block(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + block(aux)) / math.sqrt(2)
            else:
                x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
                skips.append(x)

        output: Tensor | None = None
        normed: Tensor | None = None
        for name, block in self.dec.items():
            if "aux_up" in name:
                output = block(output)
            elif "aux_norm" in name:
                assert isinstance(block, GroupNorm)
                normed = block.silu(x)
            elif "aux_conv" in name:
                y = block(normed)
                output = y if output is None else y + output
            else:
                if x.shape[1] != block.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = block(x, emb)
        assert output is not None  # the last level has one
        return x, output


class DhariwalUNet(nn.Module):
    """ADM U-Net. Arguments as for :class:`SongUNet`; attention heads are 64 channels wide.

    Forward:
        x [B, in_channels, H, W], noise_labels [B], class_labels [B, K] or None, augment_labels or None
        -> [B, out_channels, H, W].
    """

    def __init__(
        self,
        img_resolution: int | tuple[int, int],
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.multiple = _multiple(len(channel_mult))
        _expect_even(model_channels, 2)
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        block: dict[str, Any] = {
            "emb_channels": emb_channels,
            "dropout": dropout,
            "init": "kaiming_uniform",
            "zero_scale": 0.0,
            "attention_scale": 1.0,
        }
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init="kaiming_uniform")
        self.map_layer1 = Linear(emb_channels, emb_channels, init="kaiming_uniform")
        self.map_label = None
        if label_dim:
            self.map_label = Linear(
                label_dim, emb_channels, bias=False, init="kaiming_normal", scale=math.sqrt(label_dim)
            )

        levels = [
            _Level(size, model_channels * mult, model_channels * mult // 64 if min(size) in attn_resolutions else 0)
            for size, mult in _resolutions(img_resolution, channel_mult)
        ]
        channels = levels[0].width
        first = Conv2d(in_channels, channels, 3, init="kaiming_uniform")
        self.enc, skips = _encoder(first, levels, num_blocks, block)
        self.dec = _decoder(levels, skips, num_blocks, block, skips[-1] // 64, True)
        self.out_norm = GroupNorm(channels)
        self.out_conv = Conv2d(channels, out_channels, 3, init="kaiming_uniform", scale=0.0)

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(class_labels)
        emb = F.silu(emb)
        skips, (height, width) = [], x.shape[2:]
        x = padded_to(laid_out(x), self.multiple)
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for block in self.dec.values():
            if x.shape[1] != block.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        out: Tensor = self.out_conv(self.out_norm.silu(x))
        return cut_to(out, height, width)


class _Level(NamedTuple):
    """One resolution: its height and width, the width of its blocks, and the heads of their attention (0: none)."""

    size: tuple[int, int]
    width: int
    heads: int

    def named(self, part: str) -> str:
        """A part's name in the checkpoints."""
        return f"{self.size[0]}x{self.size[1]}_{part}"


#: what else belongs to a level: of it and the channels that arrive there, modules by name
Beside = Callable[[_Level, int], Iterable[tuple[str, nn.Module]]]


def _resolutions(
    img_resolution: int | tuple[int, int], channel_mult: Sequence[int]
) -> list[tuple[tuple[int, int], int]]:
    """Size, padding included, and multiplier of every level."""
    sides = (img_resolution, img_resolution) if isinstance(img_resolution, int) else img_resolution
    multiple = _multiple(len(channel_mult))
    if min(sides) < multiple:  # most of what it computes would be padding
        raise ValueError(
            f"img_resolution: expected {multiple} or more for {len(channel_mult)} levels, got {min(sides)}; use fewer channel_mult entries"
        )
    height, width = (side + -side % multiple for side in sides)
    return [((height >> level, width >> level), mult) for level, mult in enumerate(channel_mult)]


def _nothing(level: _Level, channels: int) -> Iterable[tuple[str, nn.Module]]:
    return ()


def _encoder(
    first: Conv2d, levels: list[_Level], num_blocks: int, block: dict[str, Any], beside: Beside = _nothing
) -> tuple[nn.ModuleDict, list[int]]:
    """The way down, and the channels of every output; the way up takes them from the last one on."""
    made, channels, skips = nn.ModuleDict(), first.out_channels, []
    for level in levels:
        if level is levels[0]:
            made[level.named("conv")] = first
        else:
            made[level.named("down")] = UNetBlock(channels, channels, down=True, **block)
            for name, module in beside(level, channels):
                made[name] = module
        skips.append(channels)
        for index in range(num_blocks):
            made[level.named(f"block{index}")] = UNetBlock(channels, level.width, num_heads=level.heads, **block)
            channels = level.width
            skips.append(channels)
    return made, skips


def _decoder(
    levels: list[_Level],
    skips: list[int],
    num_blocks: int,
    block: dict[str, Any],
    middle_heads: int,
    attend_always: bool,
    beside: Beside = _nothing,
) -> nn.ModuleDict:
    """The way up; a level's last block attends, or (``attend_always``) each of them."""
    made, skips, channels = nn.ModuleDict(), [*skips], skips[-1]
    for level in reversed(levels):
        if level is levels[-1]:
            made[level.named("in0")] = UNetBlock(channels, channels, num_heads=middle_heads, **block)
            made[level.named("in1")] = UNetBlock(channels, channels, **block)
        else:
            made[level.named("up")] = UNetBlock(channels, channels, up=True, **block)
        for index in range(num_blocks + 1):
            heads = level.heads if attend_always or index == num_blocks else 0
            made[level.named(f"block{index}")] = UNetBlock(
                channels + skips.pop(), level.width, num_heads=heads, **block
            )
            channels = level.width
        for name, module in beside(level, channels):
            made[name] = module
    return made


def _beside_the_encoder(kind: str, aux_channels: int, taps: tuple[int, ...]) -> Beside:
    """The image, or what came of it, once more at every resolution (``kind`` "skip" or "residual")."""

    def beside(level: _Level, channels: int) -> Iterator[tuple[str, nn.Module]]:
        nonlocal aux_channels
        down: dict[str, Any] = {"down": True, "resample_filter": taps}
        if kind == "skip":
            yield level.named("aux_down"), Conv2d(aux_channels, aux_channels, 0, **down)
            yield level.named("aux_skip"), Conv2d(aux_channels, channels, 1)
        if kind == "residual":
            yield level.named("aux_residual"), Conv2d(aux_channels, channels, 3, convolve_first=True, **down)
            aux_channels = channels

    return beside


def _outputs(kind: str, out_channels: int, taps: tuple[int, ...], levels: list[_Level]) -> Beside:
    """The output at full resolution, or (``kind`` "skip") a share of it at every one."""

    def beside(level: _Level, channels: int) -> Iterator[tuple[str, nn.Module]]:
        if kind == "skip" and level is not levels[-1]:
            yield level.named("aux_up"), Conv2d(out_channels, out_channels, 0, up=True, resample_filter=taps)
        if kind == "skip" or level is levels[0]:
            yield level.named("aux_norm"), GroupNorm(channels, eps=1e-6)
            yield level.named("aux_conv"), Conv2d(channels, out_channels, 3, scale=1e-5)

    return beside


def _expect(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{what}: expected one of {', '.join(allowed)}, got {value!r}")


def _expect_even(channels: int, least: int) -> None:
    """Noise levels are embedded as pairs of sine and cosine."""
    if channels < least or channels % 2:
        raise ValueError(f"model_channels: expected an even number of at least {least} channels; got {channels}")


def _multiple(levels: int) -> int:
    """What divides both sides of an image that so many levels can halve."""
    if levels < 1:
        raise ValueError("channel_mult: expected a number for each level, one at least; got none")
    return 1 << (levels - 1)
