"""What an evaluation, an attack or an analysis may use of a defence, and what it can count on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rdc.contracts.modes import GradientMode, NoisePolicy
from rdc.contracts.path import PurificationPath

__all__ = ["Defence"]


@runtime_checkable
class Defence(Protocol):
    """A classifier under attack: pixels -> logits, with the settings and the openings that an honest evaluation asks for.

    N images of C channels, H x W; K classes; T noise levels. Pixels are floating tensors [N, C, H, W] in [0, 1]. Every member is
    there in every defence: what a defence does not do has a neutral answer (no purification: the pixels themselves; no
    surrogates: {}), or a ``has_...`` beside it that says so.

    A defence is in evaluation mode for good, its weights ask for no gradient during a call, and it treats each image of a batch by itself.
    ``DiffusionClassifier``, ``PlainClassifier``, ``PurifiedClassifier``, ``ForeignDefence`` and ``AnytimeClassifier`` are
    defences; ``rdc.defences.as_defence`` makes one of anything else, and :class:`rdc.contracts.BaseDefence` is the class to derive
    from, never this one.
    """

    #: images times network passes since it was made; whoever counts sets it to 0
    network_evaluations: int

    # --- what it takes and gives ----------------------------------------------------------------------------------
    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images it takes."""
        ...

    @property
    def num_classes(self) -> int:
        """K >= 1."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """K different names; "0", "1", ... where nobody named them."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes; pixels are brought there by the caller."""
        ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits [N, K], floating, differentiable in the pixels as ``gradient`` says; takes one draw if ``noise_policy`` is FRESH.

        Raises:
            InputError: pixels or answer are not as above.
        """
        ...

    # --- what it is -----------------------------------------------------------------------------------------------
    @property
    def head(self) -> str:
        """What answers in the end, in a word or two, for reports: "multihead", "resnet"."""
        ...

    @property
    def evaluations_per_image(self) -> int:
        """Network passes for one decision about one image, at most; 1 where what happens inside is not known."""
        ...

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values: at least ``levels``, ``weighting``, ``lm``, ``noise``, ``head`` and ``gradient``.

        ``levels``: {"sigma": [T], "weight": [T], ...} or None; ``lm``: the purifier's settings or None; ``noise``: {"policy", "seed"},
        or "none".
        """
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Its weights by name, for digests; {} if it has none."""
        ...

    # --- gradient and noise -------------------------------------------------------------------------------------------
    @property
    def gradient(self) -> GradientMode:
        """What the gradient goes through; without effect where nothing is purified."""
        ...

    @property
    def noise_policy(self) -> NoisePolicy:
        """Where its noise comes from; without effect where ``stochastic`` is False."""
        ...

    @property
    def noise_seed(self) -> int:
        """Of the draws: two seeds share none."""
        ...

    @property
    def stochastic(self) -> bool:
        """The noise policy changes what it computes."""
        ...

    @abstractmethod
    def with_(self, **changes: Any) -> Defence:
        """The same defence (weights shared) with ``gradient``, ``noise`` or ``noise_seed`` changed.

        Its counter is 0 and its draws begin anew; the one that was asked stays as it was. A kind of defence may take further settings.

        Raises:
            ConfigError: an unknown setting or value.
        """
        ...

    def redraw(self) -> None:
        """Go to the next draw; without effect under FIXED."""
        ...

    def set_draw(self, draw: int) -> None:
        """Use this draw in the next call; under FRESH the calls after it go on from there.

        Raises:
            ConfigError: no integer.
        """
        ...

    # --- what adaptive attacks ask for ----------------------------------------------------------------------------------
    @property
    def purifies(self) -> bool:
        """It changes its input first (``purify``), so that EXACT and BPDA differ."""
        ...

    def purify(self, pixels: Tensor) -> Tensor:
        """The image [N, C, H, W] that is classified in place of the pixels; the pixels themselves, to rounding, if it does not purify.

        Takes no draw: it is the purification of the next call.
        """
        ...

    @property
    def purification_length(self) -> int:
        """Steps whose images ``purification_path`` has; 0 where it cannot be asked for."""
        ...

    def purification_path(self, pixels: Tensor) -> PurificationPath:
        """The call, taken apart: the images after each step of the purification, and what classifies them. It takes a draw as a call does.

        Raises:
            ConfigError: its steps are not known (``purification_length`` is 0).
        """
        ...

    @property
    def has_penalty(self) -> bool:
        """Whether ``penalty`` can be asked for."""
        ...

    def penalty(self, pixels: Tensor) -> Tensor:
        """The purification's own objective [N] at the pixels, differentiable: what it makes small.

        Raises:
            ConfigError: it optimises nothing (``has_penalty`` is False).
        """
        ...

    def surrogates(self) -> dict[str, Defence]:
        """Stand-ins for this defence in a transfer attack, by name ("plain": no purification, ...); {} if it offers none.

        Each is new and counts for itself; to ask for them changes nothing.
        """
        ...

    # --- what reports show ----------------------------------------------------------------------------------------------
    @property
    def has_levels(self) -> bool:
        """Whether ``losses_per_level`` can be asked for."""
        ...

    def losses_per_level(self, pixels: Tensor) -> Tensor:
        """Unweighted class losses [N, T, K], in the order of ``describe()["levels"]["sigma"]``.

        Raises:
            ConfigError: it has no noise levels (``has_levels`` is False).
        """
        ...
