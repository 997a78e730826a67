"""Tiny networks whose outputs are recorded in ``recorded/outputs.safetensors``.

``python -m tests.networks.cases`` writes that file again, from rdc's own networks in float64 (after a change of the
cases or of ``formula.py``; run ``test_parity.py`` with ../shared/fixtures/edm first, which ties the networks to the
public reference). The ``diffusers.*`` entries come from the diffusers library itself (0.42.1) and are kept
as they are unless it can be imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdc.networks.presets import build_network
from tests.networks.formula import fill, noise_like

RECORDED = Path(__file__).parent / "recorded" / "outputs.safetensors"
CLASSES = 4

_SONG = {
    "architecture": "SongUNet",
    "augment_dim": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.1,
}
_CONFIG = {"kind": "conditional", "image_shape": [3, 8, 8], "num_classes": CLASSES, "sigma_data": 0.5, "unet": _SONG}
_NCSNPP = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}

EDM_CASES: dict[str, dict[str, Any]] = {
    "ddpmpp": _CONFIG,
    "ddpmpp-uncond": {**_CONFIG, "num_classes": 0},
    "ncsnpp": {**_CONFIG, "unet": {**_SONG, **_NCSNPP}},
    "skip": {
        **_CONFIG,
        "unet": {**_SONG, "encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]},
    },
    "adm": {
        **_CONFIG,
        "unet": {
            "architecture": "DhariwalUNet",
            "augment_dim": 3,
            "model_channels": 64,
            "channel_mult": [1, 2],
            "num_blocks": 1,
            "attn_resolutions": [4],
            "channel_mult_emb": 2,
        },
    },
    "patch": {**_CONFIG, "patch_size": 2, "unet": {**_SONG, "attn_resolutions": [2], "middle_attention": False}},
    "adaptive-scale": {**_CONFIG, "unet": {**_SONG, "adaptive_scale": True}},
    "multihead": {
        **_CONFIG,
        "kind": "multihead",
        "patch_size": 2,
        "wide_channels": 16,
        "unet": _SONG,
    },
}

DIFFUSERS_UNET: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "num_class_embeds": CLASSES,
}
_ATTENTION = {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2}
DIFFUSERS_CASES: dict[str, dict[str, Any]] = {
    "plain": DIFFUSERS_UNET,
    "scale-shift": {
        **DIFFUSERS_UNET,
        "resnet_time_scale_shift": "scale_shift",
        "layers_per_block": 2,
        "norm_eps": 1e-3,
    },
    "resnet-sampling": {**DIFFUSERS_UNET, **_ATTENTION, "downsample_type": "resnet", "upsample_type": "resnet"},
    "padding": {**DIFFUSERS_UNET, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "act_fn": "mish"},
    "learned-time": {
        **DIFFUSERS_UNET,
        "time_embedding_type": "learned",
        "num_train_timesteps": 20,
        "center_input_sample": True,
        "mid_block_scale_factor": 1.4,
        "attention_head_dim": None,
    },
    "no-attention": {**DIFFUSERS_UNET, "add_attention": False, "out_channels": 6, "time_embedding_dim": 12},
}
STEPS = torch.tensor([0, 19, 7])


def edm_network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """An EDM network of the table, with weights by formula, in evaluation mode."""
    with torch.random.fork_rng():
        return fill(build_network(EDM_CASES[name])).to(dtype).eval()


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x [3, 3, 8, 8], c_noise [3], one-hot labels [3, CLASSES] whose last row is the null label."""
    x, c_noise = noise_like("x", (3, 3, 8, 8)), torch.tensor([-1.2, 0.05, 0.4], dtype=torch.float64)
    labels = torch.eye(CLASSES, dtype=torch.float64)[[0, 2, 3]]
    labels[2] = 0
    return x.to(dtype), c_noise.to(dtype), labels.to(dtype)


def edm_output(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """What the network answers to :func:`inputs`."""
    x, c_noise, labels = inputs(dtype)
    with torch.no_grad():
        net = edm_network(name, dtype)
        if EDM_CASES[name]["kind"] == "multihead":
            return net(x, c_noise)
        return net(x, c_noise, labels if EDM_CASES[name]["num_classes"] else None)


def record() -> None:
    """Write the file of recorded outputs."""
    from safetensors.torch import load_file, save_file

    outputs = {f"edm.{name}": edm_output(name).float() for name in EDM_CASES}
    try:
        from diffusers import UNet2DModel
    except ImportError:
        outputs |= {name: value for name, value in load_file(RECORDED).items() if name.startswith("diffusers.")}
    else:
        x, _, _ = inputs()
        for name, options in DIFFUSERS_CASES.items():
            net = fill(UNet2DModel(sample_size=8, **options)).double().eval()
            with torch.no_grad():
                outputs[f"diffusers.{name}"] = net(x, STEPS, torch.tensor([0, 2, 3])).sample.float()
    RECORDED.parent.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in outputs.items()}, RECORDED)


if __name__ == "__main__":
    record()
