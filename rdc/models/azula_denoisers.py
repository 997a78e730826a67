"""Denoisers of the azula library: ``rdc.from_azula``, and guided-diffusion's checkpoints through it, ``azula:adm/NAME``.

azula's denoisers take ``x_t = alpha_t x + sigma_t e`` at a time t in [0, 1], and give a posterior whose mean is the estimate of x. That
is ``predicts="x0"`` at the time for which ``sigma_t / alpha_t`` is rdc's noise level, found by bisection: any schedule will do.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import shown
from rdc.errors import ConfigError, one_line
from rdc.method.classifier import DiffusionClassifier
from rdc.method.custom_denoiser import CustomDenoiser
from rdc.method.latents import LatentDenoiser
from rdc.method.schedules import Schedule
from rdc.models.libraries.weights import fill, lent, say_download
from rdc.models.of_function import classifier_of
from rdc.models.packages import imported
from rdc.models.words import parse_shape, weights_file

__all__ = ["AzulaSchedule", "azula_classifier", "load_azula"]

_HALVINGS = 80  # of [0, 1]: until two float64 times are neighbours, also near 0
_PICKLES = ("edm", "eldm")  # plug-ins whose checkpoints are unpickled, which runs code in them
_TEXT = ("sd", "flux", "sana")
_LABELLED = ("adm", "jit")
_ONE_HOT = ("ElucidatedDenoiser", "ElucidatedLatentDenoiser")


class AzulaSchedule(Schedule):
    """The schedule of an azula denoiser: ``z = alpha_t x_t`` and t, where ``sigma_t / alpha_t = s``.

    Args:
        schedule: t [*] in [0, 1] -> (alpha_t, sigma_t) [*]; sigma_t / alpha_t grows with t.

    Raises:
        ConfigError: it gives something else.
    """

    predictions: ClassVar[tuple[str, ...]] = ("x0",)

    def __init__(self, schedule: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.schedule = schedule
        times = torch.linspace(0, 1, 101, dtype=torch.float64)
        try:
            alpha, sigma = schedule(times)
            ratio = (sigma / alpha).expand_as(times)
            grows = bool((ratio > 0).all() & (ratio.diff() > 0).all() & torch.isfinite(ratio).all())
        except Exception as error:
            raise ConfigError(
                "schedule: expected t -> (alpha_t, sigma_t), as azula's schedules; it raised "
                f"{type(error).__name__}: {one_line(error, 200)}"
            ) from error
        if not grows:
            raise ConfigError(
                "schedule: expected sigma_t / alpha_t that grows from t = 0 to 1, positive and finite; it does not"
            )
        self.sigma_min, self.sigma_max = ratio[0].item(), ratio[-1].item()

    def scale(self, sigma: Tensor, sigma_data: float) -> Tensor:
        return self.schedule(self._time(sigma))[0].to(sigma).expand_as(sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return self._time(sigma).to(sigma)

    @torch.no_grad()
    def _time(self, sigma: Tensor) -> Tensor:
        """t of s, in float64."""
        wanted = (sigma.cpu() if sigma.device.type == "mps" else sigma).double()  # Apple's GPUs have no float64
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            alpha, noise = self.schedule(middle)
            below = noise < wanted * alpha
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def describe(self) -> dict[str, Any]:
        return {"schedule": f"azula {type(self.schedule).__name__}"}


class _Posterior(nn.Module):
    """The posterior's mean as a function of (z, t, label)."""

    def __init__(self, denoiser: Any, label: str, one_hot: int | None) -> None:
        super().__init__()
        self.denoiser, self.label, self.one_hot = denoiser, label, one_hot

    def forward(self, z: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        told: Tensor = labels
        if self.one_hot is not None:  # no label is no one
            told = nn.functional.one_hot(labels, self.one_hot + 1)[:, : self.one_hot].to(z.dtype)
        mean: Tensor = self.denoiser(z, time, **{self.label: told}).mean
        return mean


def azula_classifier(
    denoiser: Any,
    num_classes: Any,
    image_shape: Any,
    null_label: Any,
    encoder: nn.Module | None,
    sigma_data: float,
    settings: dict[str, Any],
    label: str = "label",
    one_hot: bool | None = None,
    check: bool = True,
    who: str = "f",
) -> DiffusionClassifier:
    """The classifier that :func:`rdc.from_azula` describes; ``lm_denoiser`` among the settings is a denoiser or None.

    Raises:
        ConfigError: see there.
    """
    schedule = getattr(denoiser, "schedule", None)
    if not callable(denoiser) or not callable(schedule):
        raise ConfigError(f"denoiser: expected one of azula's, a callable with a schedule; got {shown(denoiser)}")
    if getattr(denoiser, "clip_mean", False):
        denoiser = copy.copy(denoiser)  # the caller's own goes on clipping
        denoiser.clip_mean = False
    wide = type(denoiser).__name__ in _ONE_HOT if one_hot is None else one_hot
    f = _Posterior(denoiser, label, num_classes if wide else None)
    made = classifier_of(
        f,
        num_classes,
        image_shape,
        "x0",
        AzulaSchedule(schedule),
        null_label,
        encoder,
        sigma_data,
        settings,
        check,
        who,
    )
    whole = made.denoiser
    inner = whole.inner if isinstance(whole, LatentDenoiser) else whole
    assert isinstance(inner, CustomDenoiser)
    inner.about = {"azula": type(denoiser).__name__}
    return made


def load_azula(
    name: str, device: torch.device, settings: dict[str, Any], *, weights: str | None = None, image: str | None = None
) -> DiffusionClassifier:
    """``azula:PLUGIN/NAME``: a class-conditional model of azula's plug-ins ADM (guided-diffusion) and JiT.

    Args:
        name: ``adm/imagenet_64x64_cond`` and the like, azula's plug-in and card.
        device: where to put it.
        settings: of ``DiffusionClassifier``.
        weights: a file of the network's weights, such as guided-diffusion's ``64x64_diffusion.pt``; None: azula fetches it.
        image: "CxHxW" that the model was made for; None: as its card says.

    Raises:
        ConfigError: azula is not installed, has no such model, or one whose checkpoint runs code.
        CheckpointError: weights that cannot be had, ask for code, or belong to another model.
    """
    kind, slash, card_name = name.partition("/")
    place = f"azula:{one_line(name, 100)}"
    if kind in _PICKLES:
        raise ConfigError(
            f"{place}: azula unpickles these checkpoints, which runs code in them. Of EDM: rdc convert FILE.pkl MODEL reads them without; "
            "of EDM2: --model FILE.py:FUNCTION with rdc.from_azula, if you trust the file (docs/any_model.md)"
        )
    if kind in _TEXT:
        raise ConfigError(f"{place}: a model of diffusers: name its folder, diffusers:FOLDER")
    if kind not in _LABELLED or not slash:
        raise ConfigError(f"{place}: expected azula:adm/NAME or azula:jit/NAME{did_you_mean(kind, _LABELLED)}")
    plugin: Any = imported(f"azula.plugins.{kind}", "azula")
    cards: dict[str, Any] = imported("azula.plugins.utils", "azula").load_cards(plugin)
    if card_name not in cards:
        raise ConfigError(
            f"{place}: azula has {', '.join(cards)}; got {one_line(card_name, 60)}{did_you_mean(card_name, cards)}"
        )
    card = cards[card_name]
    file = None if weights is None else _file(weights, kind)
    if file is None:
        say_download(place, f"{card.url}, unless azula's cache has it")
    with lent(
        place, "Without a connection name a file: weights=FILE" if kind == "adm" else "It is read from azula's cache"
    ):
        denoiser = plugin.make_model(**card.config) if file is not None else plugin.load_model(card_name)
    network = denoiser.backbone
    if not getattr(network, "num_classes", None):
        raise ConfigError(f"{place}: expected a class-conditional model; this one takes no labels and cannot classify")
    if file is not None:
        fill(network, file, place)
    side = re.search(r"_(\d+)x\1(_|$)", card_name)
    size = int(side[1]) if side else int(getattr(network, "image_size", None) or network.input_size)
    count = int(network.num_classes)
    null = count if kind == "jit" else None
    shape = (3, size, size) if image is None else parse_shape(image)
    return azula_classifier(denoiser.to(device), count, shape, null, None, 0.5, settings, who=place)


def _file(weights: str, kind: str) -> Path:
    found = weights_file(weights)
    if found is None or kind != "adm":
        raise ConfigError(
            "weights: expected the file of a model of guided-diffusion (azula:adm/NAME), such as 64x64_diffusion.pt; got "
            f"{one_line(weights, 200)}"
        )
    return found
