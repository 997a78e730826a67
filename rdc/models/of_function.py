"""A function that denoises, put together with schedule, encoder and levels, and looked at before anything relies on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rdc.arguments.scalars import as_integer, shown
from rdc.contracts.base import checked_count, checked_shape
from rdc.errors import ConfigError, one_line
from rdc.method.classifier import DiffusionClassifier
from rdc.method.custom_denoiser import CustomDenoiser
from rdc.method.latents import LatentDenoiser, latent_shape
from rdc.method.levels import NoiseLevels, parse_levels
from rdc.method.schedules import Schedule, resolve_schedule
from rdc.models.single import DEFAULT_LEVELS

__all__ = ["classifier_of"]


def classifier_of(
    f: Any,
    num_classes: Any,
    image_shape: Any,
    predicts: str,
    schedule: Any,
    null_label: Any,
    encoder: nn.Module | None,
    sigma_data: float,
    settings: dict[str, Any],
    check: bool = True,
    who: str = "f",
) -> DiffusionClassifier:
    """The classifier that :func:`rdc.from_denoiser` describes; ``lm_denoiser`` among the settings is a denoiser or None.

    Errors call the function ``who``: "f", or the folder that it comes from.

    Raises:
        ConfigError: see there.
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
    if settings.get("lm") not in (None, "none") and null is None and settings.get("lm_denoiser") is None:
        raise ConfigError(
            "lm: expected a model with a null label, which likelihood maximisation moves by; say which it is (null_label=)"
        )
    whole = denoiser if encoder is None else LatentDenoiser(denoiser, encoder, shape)
    classifier = DiffusionClassifier(whole, **{**settings, "levels": levels})
    if check:
        _check(denoiser, levels, who)
    return classifier


def _covered(levels: NoiseLevels, schedule: Schedule) -> None:
    low, high = min(levels.sigma), max(levels.sigma)
    if low < schedule.sigma_min * (1 - _SLACK) or high > schedule.sigma_max * (1 + _SLACK):
        raise ConfigError(
            f"levels: expected noise levels from {schedule.sigma_min:.4g} to {schedule.sigma_max:.4g}, which are the schedule's; "
            f"got {low:.4g} to {high:.4g}"
        )


_IGNORED = "its labels are ignored, so it cannot classify. Was it trained with them?"
_SLACK = 1e-6  # of float32 in a file of levels


@torch.no_grad()
def _check(denoiser: CustomDenoiser, levels: NoiseLevels, who: str) -> None:
    """Ask for two images, each with two labels.

    Raises:
        ConfigError: see :func:`from_denoiser`.
    """
    skip = " (check=False skips this)" if who == "f" else ""
    like = next(denoiser.network.parameters(), torch.zeros(()))
    dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *denoiser.image_shape, generator=generator).to(like.device, dtype)
    sigma = torch.tensor([min(levels.sigma), max(levels.sigma)]).to(x)
    labels = (torch.zeros(2, dtype=torch.int64), torch.full((2,), denoiser.num_classes - 1))
    found = [_called(denoiser, x, sigma, label.to(x.device), who) for label in labels]
    if not all(bool(torch.isfinite(one).all()) for one in found):
        raise ConfigError(
            f"{who}: expected finite predictions; at noise levels {sigma.tolist()} of a random image some are not{skip}"
        )
    if denoiser.num_classes > 1 and torch.equal(*found):
        raise ConfigError(
            f"{who}: expected a class-conditional model; predictions for the first and the last class are the same to the bit: "
            + (
                "are labels handed on? (check=False skips this, for a network that is not trained yet)"
                if skip
                else _IGNORED
            )
        )


def _called(denoiser: CustomDenoiser, x: Tensor, sigma: Tensor, labels: Tensor, who: str) -> Tensor:
    channels = denoiser.image_shape[0]
    column = sigma.reshape(-1, 1, 1, 1)
    z = denoiser.schedule.scale(column, denoiser.precondition.sigma_data) * x
    try:
        out = denoiser.network(z, denoiser.schedule.time(sigma), labels)
    except Exception as error:
        raise ConfigError(
            f"{who}: expected f(z {list(z.shape)}, time [{len(z)}], labels [{len(z)}] int64) to answer; it raised {type(error).__name__}: "
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
            f"{who}: expected a tensor [{', '.join(map(str, wanted))}]; got {shown(tuple(out.shape) if isinstance(out, Tensor) else out)}"
        )
    return out
