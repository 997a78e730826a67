"""Anything that denoises, as a classifier: ``rdc.from_denoiser``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rdc.arguments.scalars import as_integer, shown
from rdc.contracts.base import checked_count, checked_shape
from rdc.errors import ConfigError, one_line
from rdc.execution.memory import device_of
from rdc.execution.surroundings import never_inference
from rdc.method.classifier import DiffusionClassifier
from rdc.method.custom_denoiser import CustomDenoiser
from rdc.method.latents import LatentDenoiser, latent_shape
from rdc.method.levels import NoiseLevels, parse_levels
from rdc.method.schedules import Schedule, resolve_schedule
from rdc.models.lm_model import checked_use, lm_denoiser_of
from rdc.models.single import DEFAULT_LEVELS

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rdc.models.settings import Settings

__all__ = ["from_denoiser"]


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
    if not callable(f):
        raise ConfigError(f"f: expected a function or module f(z, time, labels); got {shown(f)}")
    count = checked_count(num_classes)
    null = None if null_label is None else as_integer(null_label)
    if null_label is not None and (null is None or null < 0):
        raise ConfigError(f"null_label: expected an index that f takes for no label, or None; got {shown(null_label)}")
    chosen, shape = resolve_schedule(schedule), checked_shape(image_shape)
    noised = shape if encoder is None else latent_shape(encoder, shape)
    denoiser = CustomDenoiser(f, chosen, predicts, count, noised, null, sigma_data)
    given = settings.get("levels", DEFAULT_LEVELS)
    levels = given if isinstance(given, NoiseLevels) else parse_levels(given)
    _covered(levels, chosen)
    other = lm_denoiser_of(settings.pop("lm_denoiser", None), device_of(denoiser))
    if settings.get("lm") not in (None, "none") and null is None and other is None:
        raise ConfigError(
            "lm: expected a model with a null label, which likelihood maximisation moves by; say which it is (null_label=)"
        )
    settings["levels"] = levels
    whole = denoiser if encoder is None else LatentDenoiser(denoiser, encoder, shape)
    own: dict[str, Any] = {**settings}
    classifier = DiffusionClassifier(whole, **own, lm_denoiser=other)
    checked_use(classifier, other)
    if check:
        _check(denoiser, levels)
    return classifier


def _covered(levels: NoiseLevels, schedule: Schedule) -> None:
    low, high = min(levels.sigma), max(levels.sigma)
    if low < schedule.sigma_min * (1 - _SLACK) or high > schedule.sigma_max * (1 + _SLACK):
        raise ConfigError(
            f"levels: expected noise levels from {schedule.sigma_min:.4g} to {schedule.sigma_max:.4g}, which are the schedule's; "
            f"got {low:.4g} to {high:.4g}"
        )


_SLACK = 1e-6  # of float32 in a file of levels


@torch.no_grad()
def _check(denoiser: CustomDenoiser, levels: NoiseLevels) -> None:
    """Ask for two images, each with two labels.

    Raises:
        ConfigError: see :func:`from_denoiser`.
    """
    like = next(denoiser.network.parameters(), torch.zeros(()))
    dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *denoiser.image_shape, generator=generator).to(like.device, dtype)
    sigma = torch.tensor([min(levels.sigma), max(levels.sigma)]).to(x)
    labels = (torch.zeros(2, dtype=torch.int64), torch.full((2,), denoiser.num_classes - 1))
    found = [_called(denoiser, x, sigma, label.to(x.device)) for label in labels]
    if not all(bool(torch.isfinite(one).all()) for one in found):
        raise ConfigError(
            f"f: expected finite predictions; at noise levels {sigma.tolist()} of a random image some are not (check=False skips this)"
        )
    if denoiser.num_classes > 1 and torch.equal(*found):
        raise ConfigError(
            "f: expected a class-conditional model; predictions for the first and the last class are the same to the bit: are labels "
            "handed on? (check=False skips this, for a network that is not trained yet)"
        )


def _called(denoiser: CustomDenoiser, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    channels = denoiser.image_shape[0]
    column = sigma.reshape(-1, 1, 1, 1)
    z = denoiser.schedule.scale(column, denoiser.precondition.sigma_data) * x
    try:
        out = denoiser.network(z, denoiser.schedule.time(sigma), labels)
    except Exception as error:
        raise ConfigError(
            f"f: expected f(z {list(z.shape)}, time [{len(z)}], labels [{len(z)}] int64) to answer; it raised {type(error).__name__}: "
            f"{one_line(str(error), 200)}"
        ) from error
    wanted = [len(z), f"{channels} or {2 * channels}", *denoiser.image_shape[1:]]
    if (
        not isinstance(out, Tensor)
        or out.ndim != 4
        or out.shape[1] not in (channels, 2 * channels)
        or out[:, 0].shape != z[:, 0].shape
    ):
        raise ConfigError(
            f"f: expected a tensor [{', '.join(map(str, wanted))}]; got {shown(tuple(out.shape) if isinstance(out, Tensor) else out)}"
        )
    return out
