"""Anything that denoises, as a classifier: ``rdc.from_denoiser``, and ``rdc.from_azula`` for what follows azula's conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rdc.execution.memory import device_of
from rdc.execution.surroundings import never_inference
from rdc.method.classifier import DiffusionClassifier
from rdc.method.schedules import Schedule
from rdc.models.azula_denoisers import azula_classifier
from rdc.models.lm_model import checked_use, lm_denoiser_of
from rdc.models.of_function import classifier_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rdc.models.settings import Settings

__all__ = ["from_azula", "from_denoiser"]


@never_inference
def from_denoiser(
    f: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    predicts: str,
    schedule: Schedule | str | Mapping[str, Any],
    null_label: int | None = None,
    encoder: nn.Module | None = None,
    sigma_data: float = 0.5,
    check: bool = True,
    **settings: Unpack[Settings],
) -> DiffusionClassifier:
    """A classifier of a class-conditional model of yours, whatever it predicts and however it counts noise.

    >>> classifier = rdc.from_denoiser(net, num_classes=10, image_shape=(3, 32, 32), predicts="eps", schedule="vp-linear")

    Args:
        f: ``f(z [B, C, H, W], time [B], labels [B] int64) -> [B, C, H, W]``, images in [-1, 1], any batch size, every image by itself,
            twice differentiable if likelihood maximisation is attacked. Of 2 C channels (learned variance) the first C are used. An
            ``nn.Module`` is put into evaluation mode and its weights are frozen.
        num_classes: K; labels 0..K-1 are asked for.
        image_shape: (C, H, W).
        predicts: "x0", "eps", "v", "flow" (noise minus image) or "F" (EDM's network output), see :mod:`rdc.method.schedules`.
        schedule: what z and time are. "edm": z = x0 + s e and s. "edm-network": the network inside EDM's preconditioning. "vp-linear",
            "vp-scaled-linear", "vp-cosine", "vp-sigmoid": one of 1,000 steps. "flow": z = (1 - t) x0 + t e and t. A mapping: the
            settings of a diffusers scheduler. A :class:`rdc.method.schedules.Schedule`: all the rest, such as
            ``FlowSchedule(time_scale=1000)`` or ``VPSchedule(sigmas, steps="between")``.
        encoder: for a model of latents: images [N, C, H, W] in [-1, 1] -> latents [N, c, h, w], see :mod:`rdc.method.latents`. z then has
            the latents' shape, image_shape stays the images'.
        null_label: what f takes for "no label", for likelihood maximisation; None: it has none.
        sigma_data: standard deviation of the images in [-1, 1].
        check: call f on two random images first, and refuse outputs of another shape, numbers that are not finite, and labels that
            make no difference.
        settings: of :class:`rdc.DiffusionClassifier`, e.g. ``levels="log:12:0.3:4:flat"`` (the default), ``lm="paper-v2"``.

    Returns:
        pixels [N, C, H, W] in [0, 1] -> log p(y|x) [N, K], like every classifier of rdc: it can be attacked, calibrated, exported.

    Raises:
        ConfigError: settings that do not go together, levels that the schedule does not have, or what ``check`` found.

    Source: Karras et al. 2022, arXiv 2206.00364 (preconditioning); docs/any_model.md has the derivation.
    """
    lm_denoiser = lm_denoiser_of(settings.pop("lm_denoiser", None), _device_of(f))
    chosen: dict[str, Any] = {**settings, "lm_denoiser": lm_denoiser}
    made = classifier_of(
        f, num_classes, image_shape, predicts, schedule, null_label, encoder, sigma_data, chosen, check=check
    )
    checked_use(made, lm_denoiser)
    return made


@never_inference
def from_azula(
    denoiser: Any,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    null_label: int | None = None,
    label: str = "label",
    one_hot: bool | None = None,
    encoder: nn.Module | None = None,
    sigma_data: float = 0.5,
    check: bool = True,
    **settings: Unpack[Settings],
) -> DiffusionClassifier:
    """A classifier of a denoiser of the azula library, or of anything with its conventions.

    >>> denoiser = azula.plugins.adm.load_model("imagenet_64x64_cond")
    >>> classifier = rdc.from_azula(denoiser, num_classes=1000, image_shape=(3, 64, 64))

    Args:
        denoiser: ``denoiser(x_t [B, C, H, W], t [B], label=...)`` with the mean of x in ``.mean``, images in [-1, 1]; its ``schedule`` is
            t in [0, 1] -> (alpha_t, sigma_t). A mean that it clips to [-1, 1] (``clip_mean``) is used unclipped: a clipped one has no
            gradient. An ``nn.Module`` is put into evaluation mode and its weights are frozen.
        num_classes: K.
        image_shape: (C, H, W).
        null_label: the label for none, of plug-ins that have one: JiT's K; for one-hot labels K stands for zeros alone. None: it has none.
        label: the argument that takes the label; of ``KarrasDenoiser`` and ``SimpleDenoiser`` it is their network's.
        one_hot: labels as one-hot vectors; None: for the plug-ins EDM and ELDM (EDM2), else as integers.
        encoder: for denoisers of latents, see :func:`rdc.from_denoiser`.
        sigma_data, check, settings: see :func:`rdc.from_denoiser`.

    Returns:
        pixels [N, C, H, W] in [0, 1] -> log p(y|x) [N, K].

    Raises:
        ConfigError: no such denoiser, or what :func:`rdc.from_denoiser` refuses.

    Source: azula 0.11 (MIT); docs/any_model.md.
    """
    lm_denoiser = lm_denoiser_of(settings.pop("lm_denoiser", None), _device_of(denoiser))
    chosen: dict[str, Any] = {**settings, "lm_denoiser": lm_denoiser}
    made = azula_classifier(
        denoiser,
        num_classes,
        image_shape,
        null_label,
        encoder,
        sigma_data,
        chosen,
        label=label,
        one_hot=one_hot,
        check=check,
    )
    checked_use(made, lm_denoiser)
    return made


def _device_of(f: Any) -> torch.device:
    return device_of(f) if isinstance(f, nn.Module) else torch.device("cpu")
