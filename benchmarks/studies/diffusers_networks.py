"""Networks of diffusers for rdc's training loop: what train_diffusers.py trains, and how it is saved.

A :class:`Raw` network is what :class:`rdc.training.objective.ConditionalObjective` asks for: (c_in x_t, c_noise, one-hot labels) -> F.
Inside it the model of diffusers sees what its own schedule says, by the functions that read such a folder later.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdc.method.preconditioning import Preconditioning
from rdc.method.schedules import FlowSchedule, Schedule, resolve_schedule, to_f
from rdc.storage.files import atomic_write

__all__ = [
    "FLOW",
    "TEMPLATES",
    "Autoencoder",
    "Prompted",
    "Raw",
    "VAE_SIZE",
    "V_SCHEDULE",
    "autoencoder",
    "save_pipeline",
    "save_tokenizer",
    "text_parts",
    "transformer",
    "unet",
]

SIGMA_DATA = 0.5
#: a class is a prompt of each
TEMPLATES = ("{}", "a {}", "photo of a {}")
FLOW = FlowSchedule(time_scale=1000)
V_SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VAE_SIZE = 32  # pixels along a side; images are resized
_TOKENS = 24  # letters, and two ends


class Raw(nn.Module):
    """A model of diffusers as the network inside EDM's preconditioning.

    Args:
        model: what is trained.
        schedule: what the model sees at a noise level.
        predicts: "flow" or "v".
        num_classes: K; label K stands for none.

    Forward:
        c_in x_t [B, C, H, W], ln(s) / 4 [B], labels one-hot [B, K] (zeros: none) -> F [B, C, H, W].
    """

    confusion: Tensor

    def __init__(self, model: nn.Module, schedule: Schedule, predicts: str, num_classes: int) -> None:
        super().__init__()
        self.model, self.schedule, self.predicts, self.num_classes = model, schedule, predicts, num_classes
        self.precondition = Preconditioning(SIGMA_DATA)
        self.register_buffer("confusion", torch.full((num_classes, num_classes), 0.5))

    def forward(self, scaled: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        sigma = (4 * c_noise).exp()
        column = sigma.reshape(-1, 1, 1, 1)
        x_t = scaled / self.precondition.c_in(column)
        labels = torch.where(onehot.any(1), onehot.argmax(1), self.num_classes)
        found = self.predict(self.schedule.scale(column, SIGMA_DATA) * x_t, self.schedule.time(sigma), labels)
        return to_f(self.predicts, SIGMA_DATA, x_t, column, found.float())

    def predict(self, z: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = self.model(z, timestep=time, class_labels=labels, return_dict=False)[0]
        return found


class Prompted(Raw):
    """:class:`Raw` of a model that takes text, trained together with its text encoder.

    Args:
        unet: ``UNet2DConditionModel``.
        encoder: ``CLIPTextModel``.
        tokens: prompts of the classes as numbers [K, P, L].
        empty: the empty prompt's [L].
    """

    tokens: Tensor
    empty: Tensor

    def __init__(self, unet: nn.Module, encoder: nn.Module, tokens: Tensor, empty: Tensor) -> None:
        super().__init__(unet, resolve_schedule(V_SCHEDULE), "v", len(tokens))
        self.encoder = encoder
        self.register_buffer("tokens", tokens)
        self.register_buffer("empty", empty)

    def predict(self, z: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        classes, prompts, length = self.tokens.shape
        ids = torch.cat([self.tokens.reshape(-1, length), self.empty[None]])
        states = self.encoder(ids)[0]
        mean = states[:-1].unflatten(0, (classes, prompts)).mean(1)
        text = torch.cat([mean, states[-1:]])[labels]
        found: Tensor = self.model(z, timestep=time, encoder_hidden_states=text, return_dict=False)[0]
        return found


class Autoencoder(nn.Module):
    """An ``AutoencoderKL`` that is trained: images and noise [B, c, h, w] -> (images again, mean and log variance of the latents)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.model.encode(x, return_dict=False)[0]
        drawn = latents.mean + latents.std * noise
        return self.model.decode(drawn, return_dict=False)[0], latents.mean, latents.logvar


def transformer(channels: int, size: int, patch: int, width: int, depth: int, num_classes: int) -> Any:
    """A class-conditional ``DiTTransformer2DModel`` that begins with small outputs."""
    import diffusers

    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=width // 32, attention_head_dim=32, in_channels=channels, out_channels=channels, num_layers=depth,
        norm_num_groups=1, sample_size=size, patch_size=patch, num_embeds_ada_norm=num_classes,
    )  # fmt: skip
    with torch.no_grad():
        model.proj_out_2.weight.mul_(0.1)
    return model.eval()  # labels are dropped by the objective, not block by block


def unet(channels: int, size: int, widths: Sequence[int], text_width: int) -> Any:
    """A ``UNet2DConditionModel`` of latents [channels, size, size], text at every size."""
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=size, in_channels=channels, out_channels=channels, block_out_channels=tuple(widths), layers_per_block=1,
        cross_attention_dim=text_width, attention_head_dim=4, norm_num_groups=8, mid_block_type=None,
        down_block_types=["CrossAttnDownBlock2D"] * len(widths), up_block_types=["CrossAttnUpBlock2D"] * len(widths),
    ).eval()  # fmt: skip


def autoencoder(widths: Sequence[int], latents: int) -> Any:
    """An ``AutoencoderKL`` of grey images of 32 x 32."""
    import diffusers

    return diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths), block_out_channels=tuple(widths), layers_per_block=1,
        latent_channels=latents, norm_num_groups=8, sample_size=VAE_SIZE, mid_block_add_attention=False,
    ).eval()  # fmt: skip


def text_parts(folder: Path, names: Sequence[str], width: int) -> tuple[Any, Tensor, Tensor]:
    """A ``CLIPTextModel`` for the words of the classes, and :data:`TEMPLATES` of them as numbers.

    Args:
        folder: where the tokenizer is written.
        names: of the classes.
        width: E of the embeddings.

    Returns:
        (the encoder, numbers [K, P, L], those of the empty prompt [L]).
    """
    import transformers

    tokenizer = save_tokenizer(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=_TOKENS, projection_dim=width, pad_token_id=tokenizer.pad_token_id, **ends,
    )  # fmt: skip
    prompts = [template.format(name.lower()) for name in names for template in TEMPLATES] + [""]
    ids = tokenizer(prompts, padding="max_length", max_length=_TOKENS, truncation=True, return_tensors="pt").input_ids
    return transformers.CLIPTextModel(settings).eval(), ids[:-1].unflatten(0, (len(names), -1)), ids[-1]


def save_tokenizer(folder: Path) -> Any:
    """A ``CLIPTokenizer`` of single letters."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    letters = list(string.printable.strip())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with atomic_write(folder / "vocab.json") as file:
        file.write(json.dumps({word: number for number, word in enumerate(words)}).encode())
    with atomic_write(folder / "merges.txt") as file:
        file.write(b"#version: 0.2\n")
    made = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=_TOKENS)
    made.save_pretrained(folder)
    return made


def save_pipeline(root: Path, scheduler: Any, names: Sequence[str], **parts: Any) -> None:
    """A folder as ``save_pretrained`` of a pipeline writes it.

    Args:
        root: the folder.
        scheduler: of diffusers.
        names: of the classes.
        parts: name -> model; a tokenizer is there already.
    """
    index: dict[str, Any] = {"_class_name": "DiffusionPipeline", "id2label": dict(enumerate(names))}
    for name, part in parts.items():
        part.save_pretrained(root / name)
        index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
    scheduler.save_pretrained(root / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    if "text_encoder" in parts:
        index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    with atomic_write(root / "model_index.json") as file:
        file.write(json.dumps(index, indent=1).encode())
