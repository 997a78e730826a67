"""Models of diffusers as functions of (z, time, label)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rdc.execution.attention import twice_differentiable
from rdc.models.pipelines.prompts import TextTable

__all__ = ["LabelledModel", "PromptedModel", "VaeEncoder"]


class _Guided(nn.Module):
    """prediction without a label + guidance (with it - without it); guidance 1: with it alone."""

    def __init__(self, null_label: int | None, guidance: float) -> None:
        super().__init__()
        self.null_label, self.guidance = null_label, guidance

    def predict(self, z: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, z: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        found = self.predict(z, time, labels)
        if self.guidance == 1 or self.null_label is None:
            return found
        without = self.predict(z, time, torch.full_like(labels, self.null_label))
        return without + self.guidance * (found - without)


class LabelledModel(_Guided):
    """``DiTTransformer2DModel`` or ``UNet2DModel`` with class embeddings."""

    def __init__(self, model: nn.Module, null_label: int | None, guidance: float = 1.0) -> None:
        super().__init__(null_label, guidance)
        self.model = model

    def predict(self, z: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = self.model(z, timestep=time, class_labels=labels, return_dict=False)[0]
        return out


class PromptedModel(_Guided):
    """``UNet2DConditionModel`` or ``SD3Transformer2DModel`` with embedded prompts; the last row of the table is the empty prompt."""

    states: Tensor
    pooled: Tensor | None

    def __init__(self, model: nn.Module, table: TextTable, guidance: float = 1.0) -> None:
        super().__init__(len(table.states) - 1, guidance)
        self.model = model
        self.register_buffer("states", table.states)
        self.register_buffer("pooled", table.pooled)

    def predict(self, z: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        text: dict[str, Any] = {"encoder_hidden_states": self.states[labels].to(z.dtype)}
        if self.pooled is not None:
            text["pooled_projections"] = self.pooled[labels].to(z.dtype)
        out: Tensor = self.model(z, timestep=time, return_dict=False, **text)[0]
        return out


class VaeEncoder(nn.Module):
    """The mean of an ``AutoencoderKL`` in the diffusion model's units, of images resized to what it takes.

    Args:
        vae: the autoencoder.
        size: (H, W) that images are resized to (bilinear, antialiased), or None: as they are.

    Forward:
        images [N, C, H, W] in [-1, 1]; one channel is repeated where the autoencoder takes three -> latents [N, c, h, w].
    """

    def __init__(self, vae: Any, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.vae, self.size = vae, size
        self.channels = int(vae.config.in_channels)
        self.scaling = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1 and self.channels == 3:
            x = x.expand(-1, 3, -1, -1)
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = torch.nn.functional.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        with twice_differentiable(x):  # likelihood maximisation differentiates through this one, too
            latents: Tensor = (self.vae.encode(x, return_dict=False)[0].mean - self.shift) * self.scaling
        return latents
