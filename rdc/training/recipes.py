"""A training run said in full: one frozen object for each, from options, from a TOML file, or made in Python."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rdc.attacks import parse_eps
from rdc.errors import ConfigError
from rdc.method.levels import parse_levels
from rdc.training.adversarial import DEFAULT_BETA, ClassifierTerms, InnerAttack
from rdc.training.adversarial import METHODS as CLASSIFIERS
from rdc.training.config import TrainConfig
from rdc.training.distillation import WIDE_CHANNELS, DistillationTerms
from rdc.training.energy import EnergyTerms
from rdc.training.hybrid import HybridTerms
from rdc.training.objective import DiffusionTerms, NoiseDistribution
from rdc.training.selection import SelectionTerms

__all__ = ["DEFAULT_DATA", "GENERATIVE", "GOES_WITH", "METHODS", "NoiseChoice", "Recipe", "methods_of"]

GENERATIVE = ("jem", "hybvit")  #: classifiers that are generative models as well
METHODS = ("diffusion", *CLASSIFIERS, *GENERATIVE, "distill")
DEFAULT_DATA = "fashion-mnist"  #: what ``rdc train`` and ``rdc distill`` load where nothing is said

_ATTACKED = tuple(method for method in CLASSIFIERS if method != "standard")
#: setting or section -> the methods that it goes with; what is not here goes with all
GOES_WITH: dict[str, tuple[str, ...]] = {
    "network": ("diffusion", *CLASSIFIERS, *GENERATIVE),
    "teacher": ("distill",),
    "wide_channels": ("distill",),
    "augment": ("diffusion", "distill"),
    "calibrate": ("diffusion", "distill"),
    "levels": ("diffusion", "distill"),
    "shift": (*CLASSIFIERS, "hybvit", "distill"),
    "noise": ("diffusion", "distill"),
    "train.awp": (*CLASSIFIERS, "distill"),
    "diffusion": ("diffusion",),
    "distillation": ("distill",),
    "classifier": (*CLASSIFIERS, *GENERATIVE),
    "classifier.beta": tuple(DEFAULT_BETA),
    "classifier.label_smoothing": ("standard", "pgd-at", "trades", *GENERATIVE),
    "attack": _ATTACKED,
    "energy": ("jem",),
    "hybrid": ("hybvit",),
}
_NETWORK = {
    "diffusion": "small-28",
    **dict.fromkeys(CLASSIFIERS, "resnet-small-28"),
    "jem": "resnet-energy-28",
    "hybvit": "vit-small-28",
}
_LEARNING_RATE = dict.fromkeys(CLASSIFIERS, 5e-3)  # others: TrainConfig's
_EPS = {"linf": "8/255", "l2": "0.5"}
_EXTRA_SHARE = 0.5
_UNPLANNED = 10**9  # images of a run that is planned by its minutes


@dataclasses.dataclass(frozen=True)
class NoiseChoice:
    """Noise levels of a run: mean and standard deviation of ln sigma; None: what the method begins with.

    That is the teacher's for a student and :class:`NoiseDistribution`'s for a diffusion model.

    Raises:
        ConfigError: the mean is not finite, or the standard deviation not positive.
    """

    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        self.distribution()

    def distribution(
        self, mean: float = NoiseDistribution.mean, std: float = NoiseDistribution.std
    ) -> NoiseDistribution:
        """The distribution; ``mean`` and ``std`` where this says nothing."""
        return NoiseDistribution(mean if self.mean is None else self.mean, std if self.std is None else self.std)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What :func:`rdc.training.run` does. Sections that belong to other methods are None.

    Args:
        method: one of :data:`METHODS`.
        network: to train: a size, one of :data:`rdc.networks.sizes.SIZES`, scaled to the images; a preset, one of
            :data:`rdc.networks.presets.NETWORK_PRESETS`; a JSON or TOML file (:mod:`rdc.networks.network_files`); "": the method's
            preset. A student has its teacher's.
        init: model to start from, a shipped one's name or a path; "": fresh weights (a student: the teacher's).
        teacher: conditional model to distil, likewise; "": none, with ``init`` and no ``classes_per_image``.
        wide_channels: of a student's last residual block.
        data: what the run is told apart by beside a checksum of the images: the data's name or path; "": the data set's own
            name (the commands: :data:`DEFAULT_DATA`).
        extra_data: more images beside those of ``data``, such as drawn ones (:mod:`rdc.training.drawn`): name or path; "": none.
        extra_share: of them in every batch; None: half, where there are any.
        holdout: training images to leave out, the same number of each class; None: as many as calibration takes
            (``training.confidence.automatic_holdout``), or none without it.
        calibrate: fit a diffusion model's confidence at the end, on images that were left out; it changes no decision.
        levels: noise levels that the model is to be asked at, as ``rdc evaluate --levels`` reads them: of selection and calibration, and
            recorded as its own; "": the default ones.
        shift: move each image by up to so many pixels along each axis.
        augment: probability of each of EDM's transformations, of which the network is told; 0: none.
        minutes: in place of ``train.images``: end within so many minutes.
        train: how long, how fast, from which seed; None: :class:`TrainConfig`'s, for classifiers with a learning rate of 5e-3.
        noise: levels to train at.
        diffusion, distillation, classifier: what is minimised; None: the defaults, for the method that it is of.
        attack: the inner maximisation; None: l_inf 8/255, for the methods that have one.
        energy, hybrid: what JEM and HybViT minimise; None: the defaults.
        selection: keep the averaged weights that held-out images stand best by; None: the last ones.

    Raises:
        ConfigError: a setting is out of range, or belongs to another method.
    """

    method: str = "diffusion"
    network: str = ""
    init: str = ""
    teacher: str = ""
    wide_channels: int = WIDE_CHANNELS
    data: str = ""
    extra_data: str = ""
    extra_share: float | None = None
    holdout: int | None = None
    calibrate: bool = True
    levels: str = ""
    shift: int = 0
    augment: float = 0.0
    minutes: float | None = None
    train: TrainConfig | None = None
    noise: NoiseChoice | None = None
    diffusion: DiffusionTerms | None = None
    distillation: DistillationTerms | None = None
    classifier: ClassifierTerms | None = None
    attack: InnerAttack | None = None
    energy: EnergyTerms | None = None
    hybrid: HybridTerms | None = None
    selection: SelectionTerms | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method: expected one of {', '.join(METHODS)}; got {self.method!r}")
        for field in dataclasses.fields(self):
            if self.method not in methods_of(field.name) and getattr(self, field.name) != field.default:
                raise ConfigError(f"{field.name}: has no meaning for method {self.method}")
        self._complete()
        if self.schedule.awp and self.method not in methods_of("train.awp"):
            raise ConfigError(f"train.awp: has no meaning for method {self.method}")
        if self.holdout is not None and self.holdout < 0:
            raise ConfigError(f"holdout: expected 0 or more images; got {self.holdout}")
        if self.shift < 0:
            raise ConfigError(f"shift: expected 0 or more pixels; got {self.shift}")
        if not 0 <= self.augment <= 1:
            raise ConfigError(f"augment: expected a probability in 0..1; got {self.augment}")
        if self.extra_share is not None and not (self.extra_data and 0 < self.extra_share < 1):
            found = self.extra_share if self.extra_data else f"{self.extra_share} and no extra_data"
            raise ConfigError(f"extra_share: expected a share above 0 and below 1, of extra_data; got {found}")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"minutes: expected a positive number; got {self.minutes}")
        if self.levels:
            parse_levels(self.levels)
        if self.selection is not None and self.holdout is not None and self.holdout < self.selection.images:
            raise ConfigError(
                f"holdout: expected at least the {self.selection.images} images that weights are selected by; got {self.holdout}"
            )
        if self.distillation is not None:
            self._check_distillation(self.distillation)

    def _complete(self) -> None:
        """Put in what the method makes of settings that were not given."""
        sections: dict[str, Any] = {
            "train": TrainConfig(**self.train_defaults(self.method, self.minutes)),
            "noise": NoiseChoice(),
            "diffusion": DiffusionTerms(),
            "distillation": DistillationTerms(),
            "classifier": ClassifierTerms(),
            "attack": InnerAttack(**self.attack_defaults()),
            "energy": EnergyTerms(),
            "hybrid": HybridTerms(),
        }
        for name, section in sections.items():
            if getattr(self, name) is None and self.method in methods_of(name):
                object.__setattr__(self, name, section)
        if self.extra_data and self.extra_share is None:
            object.__setattr__(self, "extra_share", _EXTRA_SHARE)
        if not self.network and self.method in _NETWORK:
            object.__setattr__(self, "network", _NETWORK[self.method])
        if self.classifier is not None and self.classifier.beta is None and self.method in DEFAULT_BETA:
            terms = dataclasses.replace(self.classifier, beta=DEFAULT_BETA[self.method])
            object.__setattr__(self, "classifier", terms)
        if self.minutes is not None:
            train = dataclasses.replace(self.schedule, images=max(_UNPLANNED, self.schedule.batch_size))
            object.__setattr__(self, "train", train)

    def _check_distillation(self, terms: DistillationTerms) -> None:
        if terms.margin_eps and self.schedule.compile:
            raise ConfigError(
                "--margin-eps: expected no --compile with it, a step differentiates twice, which torch.compile cannot; "
                "leave one of the two out, or use --secant-eps"
            )
        if not self.teacher and (not self.init or terms.classes_per_image):
            raise ConfigError(
                "--teacher: expected a conditional model; it may be left out with --init STUDENT and --classes-per-image 0, where "
                "nothing is asked of it"
            )
        if self.augment and terms.classes_per_image:
            raise ConfigError(
                "--augment: expected --classes-per-image 0 with it, the teacher is not told of transformations; leave one of the two out"
            )

    @property
    def schedule(self) -> TrainConfig:
        """``train``, which is never None once the recipe stands."""
        assert self.train is not None
        return self.train

    @property
    def title(self) -> str:
        """The command and its method: ``"rdc train --method trades"``."""
        command = "distill" if self.method == "distill" else "train"
        return f"rdc {command}" + (f" --method {self.method}" if self.method in (*CLASSIFIERS, *GENERATIVE) else "")

    @staticmethod
    def train_defaults(method: str, minutes: float | None = None) -> dict[str, Any]:
        """Settings of :class:`TrainConfig` whose default is the method's."""
        rate = {"learning_rate": _LEARNING_RATE[method]} if method in _LEARNING_RATE else {}
        return rate if minutes is None else {**rate, "images": _UNPLANNED}

    @staticmethod
    def attack_defaults(norm: str = InnerAttack.norm, threats: str = "") -> dict[str, Any]:
        """The radius of :class:`InnerAttack` where none is given; an unknown norm has none that matters, nor have threats."""
        return {} if threats else {"eps": parse_eps(_EPS.get(norm, _EPS["linf"]))}


def methods_of(key: str) -> tuple[str, ...]:
    """The methods that a setting, such as ``"classifier.beta"``, goes with."""
    while key not in GOES_WITH and "." in key:
        key = key.rpartition(".")[0]
    return GOES_WITH.get(key, METHODS)
