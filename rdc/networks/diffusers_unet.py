"""A U-Net, class-conditional or not, that takes the weights of the diffusers library's ``UNet2DModel``.

Written from the architecture (Ho et al. 2020, arXiv 2006.11239, with the block layout that ``UNet2DModel`` configures)
so that rdc needs no diffusers at run time. Parameter names are those of its checkpoints. Everything is twice
differentiable: attention is written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DiffusersUNet"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "swish": F.silu, "mish": F.mish, "gelu": F.gelu}
_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")


class DiffusersUNet(nn.Module):
    """U-Net conditioned on an integer time step and on a class.

    Args:
        sample_size: H = W.
        in_channels, out_channels: image channels in and out.
        num_class_embeds: rows of the class embedding; 0: an unconditional network.
        down_block_types: per level ``DownBlock2D`` or ``AttnDownBlock2D``; ``up_block_types`` likewise, deepest first.
        block_out_channels: width of each level.
        num_train_timesteps: needed by ``time_embedding_type="learned"`` only.
        Others: as in the configuration of ``UNet2DModel``.

    Forward:
        x [B, in_channels, H, W], timesteps [B], class_weights [B, num_class_embeds] (one-hot; any weights give a
        mixture of class embeddings) -> [B, out_channels, H, W].

    Raises:
        ValueError: an option is not supported.
    """

    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        out_channels: int,
        num_class_embeds: int,
        *,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: Sequence[int] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        num_train_timesteps: int | None = None,
    ) -> None:
        super().__init__()
        widths, depth = tuple(block_out_channels), len(block_out_channels)
        _one_of("time_embedding_type", time_embedding_type, ("positional", "learned"))
        _one_of("mid_block_type", mid_block_type, ("UNetMidBlock2D", None))
        _one_of("resnet_time_scale_shift", resnet_time_scale_shift, ("default", "scale_shift"))
        _one_of("act_fn", act_fn, tuple(_ACTIVATIONS))
        _check_levels(sample_size, depth, down_block_types, up_block_types)
        if time_embedding_type == "positional" and widths[0] // 2 == freq_shift:
            raise ValueError(f"freq_shift: expected less than half of {widths[0]} channels; got {freq_shift}")
        self.center_input_sample = center_input_sample
        self.freq_shift, self.flip_sin_to_cos = freq_shift, flip_sin_to_cos
        emb = time_embedding_dim or widths[0] * 4
        block: dict[str, Any] = {
            "emb": emb,
            "dropout": dropout,
            "act": act_fn,
            "groups": norm_num_groups,
            "eps": norm_eps,
            "scale_shift": resnet_time_scale_shift == "scale_shift",
        }
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        steps: Any = num_train_timesteps  # nn.Embedding refuses None
        self.time_proj = nn.Embedding(steps, widths[0]) if time_embedding_type == "learned" else None
        self.time_channels = widths[0]
        self.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(widths[0], emb), "linear_2": nn.Linear(emb, emb)})
        self.class_embedding = nn.Embedding(num_class_embeds, emb) if num_class_embeds else None

        down, up = (
            (attention_head_dim, layers_per_block, downsample_type),
            (attention_head_dim, layers_per_block, upsample_type),
        )
        self.down_blocks, skips = _down_blocks(down_block_types, widths, *down, downsample_padding, block)
        channels = widths[-1]
        self.mid_block = None
        if mid_block_type is not None:
            head = (attention_head_dim or channels) if add_attention else 0
            groups = attn_norm_num_groups or (None if block["scale_shift"] else norm_num_groups)
            self.mid_block = _Middle(channels, head, groups, mid_block_scale_factor, block)

        self.up_blocks = _up_blocks(up_block_types, widths, skips, *up, block)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], norm_eps)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def embed(self, timesteps: Tensor, class_weights: Tensor) -> Tensor:
        """Embedding [B, emb] of time step [B] and class weights [B, num_class_embeds]."""
        dtype = self.conv_in.weight.dtype
        if self.time_proj is not None:
            emb = self.time_proj(timesteps)
        else:
            emb = self._sinusoids(timesteps).to(dtype)
        emb = self.time_embedding["linear_2"](F.silu(self.time_embedding["linear_1"](emb)))
        if self.class_embedding is not None:
            emb = emb + class_weights.to(dtype) @ self.class_embedding.weight
        embedding: Tensor = emb
        return embedding

    def _sinusoids(self, timesteps: Tensor) -> Tensor:
        half = self.time_channels // 2
        ramp = torch.arange(half, device=timesteps.device, dtype=torch.float32) / (half - self.freq_shift)
        phase = timesteps.to(torch.float32)[:, None] * torch.exp(-math.log(10000) * ramp)
        parts = [phase.cos(), phase.sin()] if self.flip_sin_to_cos else [phase.sin(), phase.cos()]
        return F.pad(torch.cat(parts, dim=1), (0, self.time_channels % 2))

    def forward(self, x: Tensor, timesteps: Tensor, class_weights: Tensor) -> Tensor:
        emb = self.embed(timesteps, class_weights)
        x = self.conv_in(2 * x - 1 if self.center_input_sample else x)
        skips = [x]
        for block in self.down_blocks:
            assert isinstance(block, _Level)
            for layer in range(len(block.resnets)):
                x = block(x, emb, layer)
                skips.append(x)
            for down in block.downsamplers:
                x = down(x, emb)
                skips.append(x)
        if self.mid_block is not None:
            x = self.mid_block(x, emb)
        for block in self.up_blocks:
            assert isinstance(block, _Level)
            for layer in range(len(block.resnets)):
                x = block(torch.cat([x, skips.pop()], dim=1), emb, layer)
            for up in block.upsamplers:
                x = up(x, emb)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out


class _Resnet(nn.Module):
    """Residual block, optionally halving (``resample="down"``) or doubling (``"up"``) the resolution first."""

    act: Callable[[Tensor], Tensor]

    def __init__(
        self, channels: int, width: int, block: dict[str, Any], resample: str = "", output_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.act, self.dropout = _ACTIVATIONS[block["act"]], block["dropout"]
        self.scale_shift, self.resample, self.output_scale = block["scale_shift"], resample, output_scale
        self.norm1 = nn.GroupNorm(block["groups"], channels, block["eps"])
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(block["emb"], width * (2 if self.scale_shift else 1))
        self.norm2 = nn.GroupNorm(block["groups"], width, block["eps"])
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, width, 1) if channels != width else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.act(self.norm1(x))
        if self.resample:
            change = _double if self.resample == "up" else _halve
            x, h = change(x), change(h)
        h = self.conv1(h)
        condition = self.time_emb_proj(self.act(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + condition)
        h = self.conv2(F.dropout(self.act(h), self.dropout, self.training))
        out: Tensor = ((x if self.conv_shortcut is None else self.conv_shortcut(x)) + h) / self.output_scale
        return out


class _Attention(nn.Module):
    """Residual self-attention over the H*W positions, heads ``head_dim`` channels wide."""

    def __init__(self, channels: int, head_dim: int, groups: int | None, eps: float, output_scale: float = 1.0) -> None:
        super().__init__()
        self.heads, self.output_scale = channels // head_dim, output_scale
        if not self.heads:
            raise ValueError(f"attention_head_dim: expected at most {channels} (the block's channels); got {head_dim}")
        inner = self.heads * head_dim
        self.group_norm = nn.GroupNorm(groups, channels, eps) if groups else None
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, inner) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = (x if self.group_norm is None else self.group_norm(x)).flatten(2).transpose(1, 2)
        query, key, value = (
            p(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for p in (self.to_q, self.to_k, self.to_v)
        )
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(dim=3)
        h = self.to_out[0]((weights @ value).transpose(1, 2).flatten(2))
        out: Tensor = (h.transpose(1, 2).reshape(batch, channels, height, width) + x) / self.output_scale
        return out


class _Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where ``head_dim`` is set."""

    def __init__(self, in_channels: list[int], width: int, head_dim: int, block: dict[str, Any]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(channels, width, block) for channels in in_channels)
        make = (lambda: _Attention(width, head_dim, block["groups"], block["eps"])) if head_dim else nn.Identity
        self.attentions = nn.ModuleList(make() for _ in in_channels)
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()

    def forward(self, x: Tensor, emb: Tensor, layer: int) -> Tensor:
        out: Tensor = self.attentions[layer](self.resnets[layer](x, emb))
        return out


class _Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(
        self, channels: int, head_dim: int, groups: int | None, output_scale: float, block: dict[str, Any]
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(channels, channels, block, output_scale=output_scale) for _ in range(2))
        attention = _Attention(channels, head_dim, groups, block["eps"], output_scale) if head_dim else nn.Identity()
        self.attentions = nn.ModuleList([attention])

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x, emb)), emb)
        return out


class _ConvDown(nn.Module):
    """Convolution with stride two; padding 0 means one row and column of zeros at the end."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))
        return out


class _ConvUp(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = self.conv(_double(x))
        return out


def _double(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return (
        x[:, :, :, None, :, None]
        .expand(batch, channels, height, 2, width, 2)
        .reshape(batch, channels, 2 * height, 2 * width)
    )


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _check_levels(sample_size: int, depth: int, down: Sequence[str], up: Sequence[str]) -> None:
    if not len(down) == len(up) == depth:
        raise ValueError("down_block_types, up_block_types, block_out_channels: expected equal lengths")
    if sample_size % (1 << (depth - 1)):
        raise ValueError(
            f"sample_size: expected a multiple of {1 << (depth - 1)} for {depth} levels; got {sample_size}"
        )


def _down_blocks(
    kinds: Sequence[str],
    widths: tuple[int, ...],
    head_dim: int | None,
    layers: int,
    downsample_type: str,
    padding: int,
    block: dict[str, Any],
) -> tuple[nn.ModuleList, list[int]]:
    """The levels from the finest on, and the channels of every output that the way up takes."""
    made, channels, skips = nn.ModuleList(), widths[0], [widths[0]]
    for level, (kind, width) in enumerate(zip(kinds, widths, strict=True)):
        _one_of("down_block_types", kind, _DOWN)
        ins, last = [channels] + [width] * (layers - 1), level == len(widths) - 1
        made.append(built := _Level(ins, width, (head_dim or width) if kind == _DOWN[1] else 0, block))
        if not last:
            by = downsample_type if kind == _DOWN[1] else "conv"
            built.downsamplers = nn.ModuleList([_downsampler(by, width, padding, block)])
        channels = width
        skips += [width] * (layers + (not last))
    return made, skips


def _up_blocks(
    kinds: Sequence[str],
    widths: tuple[int, ...],
    skips: list[int],
    head_dim: int | None,
    layers: int,
    upsample_type: str,
    block: dict[str, Any],
) -> nn.ModuleList:
    """The levels from the coarsest on."""
    made, channels, skips = nn.ModuleList(), widths[-1], [*skips]
    for level, (kind, width) in enumerate(zip(kinds, reversed(widths), strict=True)):
        _one_of("up_block_types", kind, _UP)
        ins = []
        for _ in range(layers + 1):
            ins.append(channels + skips.pop())
            channels = width
        made.append(built := _Level(ins, width, (head_dim or width) if kind == _UP[1] else 0, block))
        if level < len(widths) - 1:
            by = upsample_type if kind == _UP[1] else "conv"
            built.upsamplers = nn.ModuleList([_upsampler(by, width, block)])
    return made


def _downsampler(by: str, width: int, padding: int, block: dict[str, Any]) -> nn.Module:
    _one_of("downsample_type", by, ("conv", "resnet"))
    return _ConvDown(width, padding) if by == "conv" else _Resnet(width, width, block, "down")


def _upsampler(by: str, width: int, block: dict[str, Any]) -> nn.Module:
    _one_of("upsample_type", by, ("conv", "resnet"))
    return _ConvUp(width) if by == "conv" else _Resnet(width, width, block, "up")


def _one_of(what: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{what}: expected one of {', '.join(map(str, allowed))}; got {value!r}")
