"""What CIFAR-10's models are trained with on a GPU, as nested settings of recipes."""

from __future__ import annotations

from typing import Any

__all__ = ["DRY", "RECIPES", "SHARED"]

#: of both students; their labels are their own posterior, without passes of the teacher
_STUDENT: dict[str, Any] = {"method": "distill", "shift": 3, "wide_channels": 256}
_LABELS = {"classes_per_image": 0, "posterior_weight": 1.0, "posterior_scale": 0.03}

#: part -> settings of its recipe
RECIPES: dict[str, dict[str, Any]] = {
    "teacher": {
        "method": "diffusion",
        "train": {"batch_size": 1024, "learning_rate": 2e-3, "warmup_images": 100_000, "ema_images": 300_000},
        "noise": {"mean": -0.6, "std": 1.1},
    },
    "student": {
        **_STUDENT,
        "train": {"batch_size": 1024, "learning_rate": 1e-3, "warmup_images": 60_000, "ema_images": 200_000},
        "noise": {"mean": -0.5, "std": 0.9},
        "distillation": _LABELS,
    },
    "robust": {
        **_STUDENT,
        "train": {
            "batch_size": 512, "learning_rate": 1.2e-3, "warmup_images": 60_000, "ema_images": 250_000,
            "weight_decay": 0.05,
        },
        "noise": {"mean": -1.2, "std": 0.7},
        "distillation": {**_LABELS, "cutmix": 0.3, "secant": {"eps": "8/255"}},
    },
}  # fmt: skip
#: of every part, by dotted keys; not compiled: on an H200 torch.compile of the teacher had made no step after 75 seconds
SHARED: dict[str, Any] = {
    "train.precision": "bfloat16",
    "train.flip": True,
    "train.checkpoint_seconds": 60.0,
    "train.cuda_graph": True,
}
#: of a dry run, in place of these
DRY: dict[str, Any] = {
    "train.batch_size": 4,
    "train.images": 16,
    "train.warmup_images": 8,
    "train.ema_images": 16,
    "train.cuda_graph": False,
}
