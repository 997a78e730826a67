"""Small hybrid vision transformer: the class token names the class, the patch tokens predict the noise of a diffusion.

    pixels [B, C, H, W] -> 2 x - 1 -> patches of P x P -> linear -> + place, + time      tokens [B, L, D], L = H W / P^2
    [class token; tokens] -> blocks -> norm -> class token -> linear                      logits [B, K]
                                            -> patch tokens -> linear -> unfolded         noise [B, C, H, W]

A block is x + attention(norm(x)), then x + mlp(norm(x)) (pre-norm). Attention is written as matrix products, so that it can be
differentiated twice. The same weights classify (time 0) and denoise (time > 0).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.errors import ConfigError
from rdc.networks.blocks import PositionalEmbedding, cut_to, padded_to

__all__ = ["VisionTransformer"]

_TIMES = 1000.0  # what a time in [0, 1] is multiplied by before its sinusoids, as DDPM counts steps
_STD = 0.02  # of initial weights


class VisionTransformer(nn.Module):
    """A vision transformer with two heads.

    Args:
        image_shape: (C, H, W). Sides that ``patch_size`` does not divide are padded with grey below and on the right.
        num_classes: K >= 2.
        patch_size: side P of a patch.
        width: D, channels of a token; a multiple of ``heads``, and even.
        depth: blocks, >= 1.
        heads: of the attention, >= 1.

    Forward:
        pixels [B, C, H, W] in [0, 1] -> logits [B, K]. With ``times`` [B] in [0, 1], pixels are (x_t + 1) / 2 of noisy images
        x_t, and what comes back is the predicted noise [B, C, H, W]. Under autocast the first and the last layers stay in the
        weights' precision.

    Raises:
        ConfigError: an argument is out of range.

    Source: Yang et al. 2022, arXiv 2208.07791 (the hybrid); Dosovitskiy et al. 2021, arXiv 2010.11929 (the transformer).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        channels, height, side = image_shape
        if num_classes < 2:
            raise ConfigError(f"num_classes: expected at least 2 for a vit; got {num_classes}")
        if depth < 1 or heads < 1 or width < 2 or width % heads or width % 2:
            raise ConfigError(
                f"vit: expected depth >= 1, heads >= 1 and an even width divisible by heads; got depth {depth}, heads {heads}, "
                f"width {width}"
            )
        self.image_shape, self.num_classes, self.patch_size = tuple(image_shape), num_classes, patch_size
        self.grid = (-(-height // patch_size), -(-side // patch_size))
        folded, length = channels * patch_size**2, math.prod(self.grid)
        self.stem = nn.Linear(folded, width)
        self.places = nn.Parameter(torch.empty(1, length, width))
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.sinusoids = PositionalEmbedding(width)
        self.time0, self.time1 = nn.Linear(width, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.class_head, self.noise_head = nn.Linear(width, num_classes), nn.Linear(width, folded)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.stem.weight)
        for parameter in (self.places, self.class_token):
            nn.init.trunc_normal_(parameter, std=_STD)

    def forward(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        """Logits [B, K] of pixels, or the noise [B, C, H, W] in noisy ones at ``times`` [B]."""
        at = x.new_zeros(len(x)) if times is None else times.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            whole = padded_to(2 * x - 1, self.patch_size)
            patches = F.pixel_unshuffle(whole, self.patch_size).flatten(2).transpose(1, 2)  # [B, L, C P^2]
            time = self.time1(F.silu(self.time0(self.sinusoids(_TIMES * at))))[:, None]
            tokens = torch.cat([self.class_token.expand(len(x), -1, -1), self.stem(patches) + self.places], 1) + time
        for block in self.blocks:
            tokens = block(tokens)
        with torch.autocast(x.device.type, enabled=False):
            tokens = self.norm(tokens.to(self.norm.weight.dtype))
            if times is None:
                logits: Tensor = self.class_head(tokens[:, 0])
                return logits
            noise = self.noise_head(tokens[:, 1:]).transpose(1, 2).unflatten(2, self.grid)
            return cut_to(F.pixel_shuffle(noise, self.patch_size), *x.shape[2:])


class _Block(nn.Module):
    """Pre-norm transformer block [B, L, D] -> [B, L, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm0, self.norm1 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.norm0(x))
        out: Tensor = x + self.narrow(F.gelu(self.widen(self.norm1(x)), approximate="tanh"))
        return out

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, L, D / heads] each
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
        out: Tensor = self.project((weights @ v).transpose(1, 2).flatten(2))
        return out
