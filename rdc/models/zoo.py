"""Ready classifiers by name: ``rdc.load("fashion-mnist")``."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rdc.arguments.scalars import as_integer, shown
from rdc.contracts import BaseDefence
from rdc.errors import ConfigError, one_line
from rdc.execution.surroundings import never_inference
from rdc.models.advice import how_to_name
from rdc.models.bare_folders import prefixed
from rdc.models.derived import is_derived, load_derived
from rdc.models.joined import JOINED, load_joined
from rdc.models.lm_model import checked_use, lm_denoiser_of
from rdc.models.precision import AUTO, faster_precision
from rdc.models.settings import Settings
from rdc.models.single import SINGLE, load_single

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["MODELS", "list_models", "load"]

#: Shipped models and what they are.
MODELS: dict[str, str] = {**SINGLE, **{name: model.about for name, model in JOINED.items()}}


def list_models(pattern: str = "*") -> list[str]:
    """Names that :func:`load` takes, of the models that come with rdc.

    Args:
        pattern: as of file names: ``"fashion*"``, ``"*-pgd-at"``; large and small letters are told apart.

    Returns:
        The names, sorted; [] if none fits. :data:`MODELS` says what each is.

    Raises:
        ConfigError: the pattern is no text.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f'list_models: expected a pattern such as "fashion*"; got {shown(pattern)}')
    return sorted(name for name in MODELS if fnmatch.fnmatchcase(name, pattern))


@never_inference
def load(
    name: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device = "cpu",
    precision_sample: Tensor | None = None,
    **settings: Unpack[Settings],
) -> BaseDefence:
    """Load a classifier with its recommended settings.

    Args:
        name: a key of :data:`MODELS`, or the path of a checkpoint written by ``rdc train``, ``distill`` or ``convert``, or a name with a
            prefix (:mod:`rdc.models.derived`), such as ``"optimal:fashion-mnist"``, ``"diffusers:FOLDER"`` or ``"timm:resnet18"``.
        device: where to put the weights: "cpu", "cuda", "cuda:1", "mps", ..., or a ``torch.device``.
        precision_sample: pixels [N, C, H, W] in [0, 1] that ``precision="auto"`` is measured on; None: the shipped images whose shape and
            class names are the model's.
        settings: override any setting of :class:`DiffusionClassifier`, e.g. ``levels="edm"``, ``levels="accurate"`` (a name of
            the checkpoint's own: the shipped models have "fast" and "accurate"), ``lm="released"``,
            ``gradient="bpda"``, ``noise="fresh"``; ``lm_denoiser``, the network that likelihood maximisation moves the input by, may be
            named here: a shipped diffusion model, the path of a checkpoint (an unconditional one, too), or ``optimal:DATA``.
            ``precision="auto"``: the faster of float32 and bfloat16 by :func:`rdc.models.precision.faster_precision`.

    Returns:
        A classifier: pixels [N, C, H, W] in [0, 1] -> log-probabilities [N, K], in evaluation mode for good (``train()`` is without
        effect). For a checkpoint of ``rdc train --method standard`` and the like a ``rdc.defences.PlainClassifier``, for a purifier
        in front of one a ``rdc.defences.PurifiedClassifier``: logits [N, K].

    Raises:
        ConfigError: no shipped model or file has that name, a setting is unknown or has a value that does not fit, or there is no
            such device.
        CheckpointError: the file is damaged or not a checkpoint of rdc.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ConfigError(f"model: expected {', '.join(MODELS)} or the path of a checkpoint; got {shown(name)}")
    name, device = prefixed(str(os.fspath(name))), _device(device)
    chosen: dict[str, Any] = {**settings}
    lm_denoiser = lm_denoiser_of(_there(chosen.pop("lm_denoiser", None), "lm_denoiser"), device)
    if lm_denoiser is not None:
        chosen["lm_denoiser"] = lm_denoiser
    made = _in_its_precision(name, device, chosen, precision_sample)
    checked_use(made, lm_denoiser)
    return made


def _in_its_precision(name: str, device: torch.device, chosen: dict[str, Any], sample: Tensor | None) -> BaseDefence:
    asked = chosen.get("precision")
    if isinstance(asked, str) and asked == AUTO:
        return faster_precision(lambda precision: _load(name, device, {**chosen, "precision": precision}), sample)
    if sample is not None:
        raise ConfigError('precision_sample: expected precision="auto" beside it; leave it out')
    return _load(name, device, chosen)


def _load(name: str, device: torch.device, chosen: dict[str, Any]) -> BaseDefence:
    if name in JOINED:
        return load_joined(name, device, chosen)
    if is_derived(name):
        return load_derived(name, device, chosen)
    return load_single(_there(name, "model"), device, chosen)


def _there(name: Any, what: str) -> Any:
    """A name that a model can be loaded by; what is no name as it is.

    Raises:
        ConfigError: no shipped model and no file has that name.
    """
    if not isinstance(name, (str, os.PathLike)) or is_derived(str(name)):
        return name
    text = str(name)
    if text not in SINGLE and (text.endswith((".py", ".onnx")) or not _exists(Path(text))):
        absent = "" if _exists(Path(text)) else ", and no such file exists"
        known = MODELS if what == "model" else SINGLE
        raise ConfigError(
            f"{what}: expected {', '.join(known)} or the path of a checkpoint; got {shown(text, 300)}{absent}{how_to_name(text, known)}"
        )
    return name


def _device(device: str | torch.device) -> torch.device:
    """The device, if PyTorch can use it.

    Raises:
        ConfigError: no such kind of device, or none of that kind or number here.
    """
    expected = "device: expected cpu, cuda, cuda:0, mps or another device of PyTorch's"
    try:
        number = as_integer(device)  # of a GPU, as torch has it
        known = isinstance(device, (str, torch.device)) or number is not None
        found = torch.device(device if number is None else number) if known else None
    except (RuntimeError, ValueError, OverflowError):
        found = None
    if found is None:
        raise ConfigError(f"{expected}; got {shown(device)}")
    try:
        torch.empty(0, device=found)
    except Exception as error:  # PyTorch has a class of its own for every reason
        raise ConfigError(
            f"{expected} that it can use here; got {shown(str(found))} ({one_line(error, 120)}). `rdc info` says which there are"
        ) from error
    if found.type == "meta":
        raise ConfigError(f"{expected} that holds values; got 'meta'")
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists() or any(path.with_name(path.name + suffix).exists() for suffix in (".json", ".safetensors"))
    except (OSError, ValueError):  # a name that no file can have
        return False
