"""Building blocks of the EDM-compatible U-Nets (Karras et al. 2022, arXiv 2206.00364, appendix F).

The parameter names (``conv0.weight``, ``affine.bias``, ``resample_filter`` ...) are those of the public EDM
checkpoints, so that a state dict of theirs loads unchanged. Shapes are NCHW; both contiguous and channels_last
memory layouts work.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.networks import fused
from rdc.networks.frozen_block import frozen_block, takes
from rdc.networks.resampling import filter_down, filter_up
from rdc.ops.convolution import convolution, usable
from rdc.ops.norm_act_native import laid_out

__all__ = [
    "Conv2d",
    "FourierEmbedding",
    "GroupNorm",
    "Linear",
    "PositionalEmbedding",
    "UNetBlock",
    "allow_backward_again",
    "as_autocast",
    "cut_to",
    "fastest_layout",
    "half_norms",
    "padded_to",
]


def fastest_layout(device: torch.device | str) -> torch.memory_format:
    """The memory format in which these networks run fastest where nothing is compiled.

    channels_last on a CPU, and on a GPU with the kernels of :mod:`rdc.networks.fused`. On a GPU without them contiguous: PyTorch's
    group norm takes nothing else there, and copies (a training step on an H200: 1.29 times as many images a second).
    """
    copies = torch.device(device).type == "cuda" and fused.why_not()
    return torch.contiguous_format if copies else torch.channels_last


def allow_backward_again() -> None:
    """Let what is compiled from now on be differentiated more than once with ``retain_graph``.

    By default its backward pass overwrites buffers that it saved, and refuses the second time.
    """
    import torch._functorch.config as settings

    if hasattr(settings, "donated_buffer"):
        settings.donated_buffer = False


def half_norms(network: nn.Module) -> None:
    """Let the group norms of ``network`` answer in the type of their input under autocast (:attr:`GroupNorm.float32`)."""
    for module in network.modules():
        if isinstance(module, GroupNorm):
            module.float32 = False


def padded_to(x: Tensor, multiple: int) -> Tensor:
    """x [B, C, H, W] with zeros below and on the right, so that both sides are multiples; x itself where they are."""
    below, right = (-side % multiple for side in x.shape[2:])
    return F.pad(x, (0, right, 0, below)) if below or right else x


def cut_to(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left corner of x [B, C, H, W]: what :func:`padded_to` has begun with; x itself where that is all of it."""
    return x if (height, width) == tuple(x.shape[2:]) else x[:, :, :height, :width]


def _scaled_init(shape: tuple[int, ...], mode: str, fan_in: int, fan_out: int, scale: float) -> Tensor:
    """Draw initial weights: ``xavier_uniform``, ``kaiming_uniform`` or ``kaiming_normal``, times ``scale``."""
    if mode == "xavier_uniform":
        return scale * math.sqrt(6 / (fan_in + fan_out)) * (torch.rand(shape) * 2 - 1)
    if mode == "kaiming_uniform":
        return scale * math.sqrt(3 / fan_in) * (torch.rand(shape) * 2 - 1)
    if mode == "kaiming_normal":
        return scale * math.sqrt(1 / fan_in) * torch.randn(shape)
    raise ValueError(f"initialisation: expected xavier_uniform, kaiming_uniform or kaiming_normal, got {mode!r}")


class Linear(nn.Module):
    """Affine map [B, in_features] -> [B, out_features]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        init: str = "xavier_uniform",
        scale: float = 1.0,
        bias_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        draw = (init, in_features, out_features)
        self.weight = nn.Parameter(_scaled_init((out_features, in_features), *draw, scale))
        self.bias = nn.Parameter(_scaled_init((out_features,), *draw, bias_scale)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Conv2d(nn.Module):
    """Convolution with optional 2x up- or downsampling through a separable filter.

    Args:
        in_channels, out_channels: channel counts.
        kernel: odd kernel size; 0 means resampling only, without weights.
        up, down: resample by two (not both).
        resample_filter: one-dimensional filter taps, e.g. ``(1, 1)`` (box) or ``(1, 3, 3, 1)`` (binomial).
        convolve_first: for ``down``: convolve at full resolution and filter afterwards (EDM's residual skip branch does
            this); the two orders differ at the border only.
    """

    resample_filter: Tensor  # there where it is needed, for ``up`` and ``down``; else None
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: tuple[int, ...] = (1, 1),
        convolve_first: bool = False,
        init: str = "xavier_uniform",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if up and down:
            raise ValueError("Conv2d: expected at most one of up and down, got both")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.convolve_first = up, down, convolve_first
        self.weight = self.bias = None
        if kernel:
            draw = (init, in_channels * kernel**2, out_channels * kernel**2)
            self.weight = nn.Parameter(_scaled_init((out_channels, in_channels, kernel, kernel), *draw, scale))
            self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        taps = None
        if up or down:
            taps = torch.tensor(resample_filter, dtype=torch.float32)
            taps = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
        self.register_buffer("resample_filter", taps)

    @property
    def doubles(self) -> bool:
        """Whether every pixel becomes 2 x 2 like it: upsampling by the box filter."""
        return self.up and self.resample_filter.shape[-1] == 2

    def takes(self, x: Tensor) -> bool:
        """Whether the kernel of :mod:`rdc.ops.convolution` does this convolution of x, or of x doubled."""
        if self.weight is None or self.down or (self.up and not self.doubles):
            return False
        return usable(x, self.weight)

    def plus(self, x: Tensor, skip: Tensor, factor: float) -> Tensor:
        """``factor * (self(x) + skip)``, for x that this :meth:`takes`; skip may be of half the size, its pixels doubled."""
        assert self.weight is not None
        return convolution(as_autocast(x), self.weight, self.bias, skip, factor, self.up)

    def forward(self, x: Tensor, biased: bool = True) -> Tensor:
        """x [B, C, H, W] resampled and convolved; without ``biased`` the bias is left to the caller."""
        own = self.bias if biased else None
        if self.weight is None:
            return self._resampled(x)
        if self.takes(x):
            return convolution(as_autocast(x), self.weight, own, doubled=self.up)
        weight, bias = self.weight.to(x.dtype), None if own is None else own.to(x.dtype)
        margin = weight.shape[-1] // 2
        if self.down and self.convolve_first:
            reach = (self.resample_filter.shape[-1] - 1) // 2
            x = F.conv2d(x, weight, padding=margin + reach)
            x = filter_down(x, self.resample_filter, padding=0)
            return x if bias is None else x + bias.reshape(1, -1, 1, 1)
        if not margin and self.doubles and fused.on_cpu(x):  # the same before pixels are doubled, for a quarter
            return filter_up(F.conv2d(x, weight, bias), self.resample_filter)
        x = self._resampled(x)
        if usable(x, self.weight):
            return convolution(as_autocast(x), self.weight, own)
        return F.conv2d(x, weight, bias, padding=margin)

    def undoubled(self, x: Tensor) -> Tensor:
        """What this is of x [B, C, H, W]; of half the size where every pixel would only be doubled (:attr:`doubles`)."""
        if not self.doubles or (self.weight is not None and self.weight.shape[-1] > 1):
            whole: Tensor = self(x)
            return whole
        if self.weight is None:
            return x
        y: Tensor = F.conv2d(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        return y

    def _resampled(self, x: Tensor) -> Tensor:
        if self.up:
            x = filter_up(x, self.resample_filter)
        if self.down:
            x = filter_down(x, self.resample_filter, padding=(self.resample_filter.shape[-1] - 1) // 2)
        return x


def as_autocast(x: Tensor) -> Tensor:
    """x in the type that PyTorch's convolution would give it."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


class GroupNorm(nn.Module):
    """Group normalisation with at least ``min_channels_per_group`` channels in each of at most ``num_groups`` groups.

    Where that count does not divide ``channels``, the next smaller divisor is taken.

    Attributes:
        float32: under autocast, leave the type to PyTorch: float32 on CUDA, which a second derivative needs. False: the type of
            the input, with sums in float32, as EDM's float16 networks do; a fraction of the memory traffic where nothing is
            compiled.
    """

    float32 = True

    def __init__(self, channels: int, num_groups: int = 32, min_channels_per_group: int = 4, eps: float = 1e-5) -> None:
        super().__init__()
        most = max(1, min(num_groups, channels // min_channels_per_group))
        self.num_groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def silu(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """SiLU of the normalised x [B, C, H, W], which is first multiplied by ``scale`` + 1 and shifted ([B, C, 1, 1] each)."""
        if self.takes(x):
            flat = [None if condition is None else condition.flatten(1) for condition in (scale, shift)]
            return fused.norm_act(x, self.weight, self.bias, self.num_groups, self.eps, None, flat[0], flat[1])
        y = self(x)
        return F.silu(y if scale is None or shift is None else torch.addcmul(shift, y, scale + 1))

    def takes(self, x: Tensor) -> bool:
        """Whether the kernels of :mod:`rdc.networks.fused` do this norm of x."""
        return fused.usable(x) and fused.fits(x, self.num_groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.takes(x):
            return fused.norm_act(x, self.weight, self.bias, self.num_groups, self.eps, silu=False)
        if self.float32:
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class PositionalEmbedding(nn.Module):
    """Sinusoidal embedding [B] -> [B, channels]: cosines, then sines (DDPM++ and ADM)."""

    def __init__(self, channels: int, endpoint: bool = False, max_positions: int = 10000) -> None:
        super().__init__()
        self.channels, self.endpoint, self.max_positions = channels, endpoint, max_positions

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        ramp = torch.arange(half, dtype=torch.float32, device=x.device) / (half - int(self.endpoint))
        phase = torch.outer(x, (1 / self.max_positions) ** ramp.to(x.dtype))
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Random Fourier features [B] -> [B, channels] with fixed frequencies (NCSN++)."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        phase = torch.outer(x, 2 * math.pi * self.freqs.to(x.dtype))
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class UNetBlock(nn.Module):
    """Residual block with noise-level conditioning, optional resampling and optional self-attention.

    ``adaptive_scale`` conditions by scale and shift after the second normalisation (ADM); otherwise the embedding is
    added before it (DDPM++, NCSN++). ``skip_scale`` multiplies every residual sum.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        up: bool = False,
        down: bool = False,
        num_heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: tuple[int, ...] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: str = "xavier_uniform",
        zero_scale: float = 1e-5,
        attention_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, skip_scale, adaptive_scale
        resample: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = GroupNorm(in_channels, eps=eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, **resample, init=init)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), init=init)
        self.norm1 = GroupNorm(out_channels, eps=eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init=init, scale=zero_scale)
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, **resample, init=init)
        if num_heads:
            self.norm2 = GroupNorm(out_channels, eps=eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, init=init, scale=attention_scale or 1.0)
            self.proj = Conv2d(out_channels, out_channels, 1, init=init, scale=zero_scale)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if (frozen := takes(self, x, emb)) is not None:
            return self._plus_attention(frozen_block(self, frozen, x, self.affine(emb)))
        if self.norm0.takes(x):
            return self._forward_fused(x, emb)
        residual = x
        x = self.conv0(self.norm0.silu(x))
        condition = self.affine(emb)[:, :, None, None].to(x.dtype)
        if self.adaptive_scale:
            scale, shift = condition.chunk(2, dim=1)
            x = self.norm1.silu(x, scale, shift)
        else:
            x = self.norm1.silu(x + condition)
        x = self.conv1(F.dropout(x, self.dropout, self.training))
        x = x + (residual if self.skip is None else self.skip(residual))
        x = x * self.skip_scale
        if self.num_heads:
            x = (self.proj(self._attend(self.norm2(x))) + x) * self.skip_scale
        return x

    def _forward_fused(self, x: Tensor, emb: Tensor) -> Tensor:
        """The same, the biases of the convolutions left to the kernels that come next."""
        residual = x
        x = self.conv0(self.norm0.silu(x), biased=False)
        condition = self.affine(emb)
        scale, shift = condition.chunk(2, dim=1) if self.adaptive_scale else (None, None)
        pre = self.conv0.bias if self.adaptive_scale else condition + self.conv0.bias
        norm = self.norm1
        if norm.takes(x):
            x = fused.norm_act(x, norm.weight, norm.bias, norm.num_groups, norm.eps, pre, scale, shift)
        else:  # a group is too large for a program
            x = fused.norm_act_reference(x, norm.weight, norm.bias, norm.num_groups, norm.eps, pre, scale, shift)
        x = F.dropout(x, self.dropout, self.training)
        if self.conv1.takes(x):
            x = self.conv1.plus(x, residual if self.skip is None else self.skip.undoubled(residual), self.skip_scale)
            return self._plus_attention(x)
        x = self.conv1(x, biased=False)
        skip_bias = None if self.skip is None else self.skip.bias
        residual = residual if self.skip is None else self.skip(residual, biased=False)
        bias: Tensor | None = self.conv1.bias
        if skip_bias is not None and bias is not None:
            bias = bias + skip_bias
        return self._plus_attention(self._sum(x, residual, bias))

    def _plus_attention(self, x: Tensor) -> Tensor:
        if not self.num_heads:
            return x
        attended = laid_out(self._attend(self.norm2(x)))
        return self._sum(self.proj(attended, biased=False), x, self.proj.bias)

    def _sum(self, x: Tensor, residual: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None  # of a convolution that has one
        if x.dtype == residual.dtype and fused.usable(x) and fused.usable(residual):
            return fused.residual_sum(x, residual, bias, self.skip_scale)
        return (x + residual + bias.to(x.dtype)[:, None, None]) * self.skip_scale

    def _attend(self, x: Tensor) -> Tensor:
        """Self-attention over the H*W positions, written out so that it can be differentiated twice."""
        batch, channels, height, width = x.shape
        width_of_head = channels // self.num_heads
        qkv = self.qkv(x).reshape(batch * self.num_heads, width_of_head, 3, height * width)
        query, key, value = qkv.unbind(2)
        scores = torch.einsum("bcq,bck->bqk", query, key / math.sqrt(width_of_head))
        weights = scores.to(torch.float32 if scores.dtype != torch.float64 else torch.float64).softmax(dim=2)
        return torch.einsum("bqk,bck->bcq", weights.to(x.dtype), value).reshape(batch, channels, height, width)
