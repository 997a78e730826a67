"""``rdc.attack`` and ``rdc.evaluate``: any model, any images, one line."""

from __future__ import annotations

import dataclasses
import difflib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, overload

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.defaults import EvaluationDefaults
from rdc.arguments.scalars import as_number
from rdc.contracts import Defence
from rdc.data import Dataset
from rdc.defences import as_defence
from rdc.defences.factory import name_of
from rdc.errors import ConfigError
from rdc.evaluation import EvaluationSettings, parse_attacks
from rdc.evaluation import evaluate as run_evaluation
from rdc.execution.devices import home_of
from rdc.front.images import as_images
from rdc.front.result import EvaluationResult
from rdc.models.choice import ModelChoice

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Options", "attack", "evaluate"]

Model = Defence | Callable[[Tensor], Tensor] | str | os.PathLike[str]
Eps = str | float
SeveralEps = list[Any] | tuple[Eps, ...] | np.ndarray  # a text is a sequence of texts, too

_DEFAULT = EvaluationDefaults()
_STEPS = 100  # as AutoAttack has it; `rdc evaluate` has 50


class Options(TypedDict, total=False):
    """What ``rdc.attack`` and ``rdc.evaluate`` may be told beside model, images and eps; all may be left out.

    Args:
        attacks: names in one text, ``"autoattack"``, ``"apgd-ce:restarts=5,square"``, or a sequence of names; ``"none"``: clean
            accuracy alone. ``rdc.attacks.ATTACKS`` and ``rdc.attacks.SUITES`` have them all. Default: ``"apgd-ce,apgd-dlr"``.
        norm: "linf" (default), "l2", "l1", "l0", "flow", "lpips" or "corruption".
        lpips_model: for "lpips", the classifier whose features measure the distance: a name for ``rdc.load``, or a path.
        steps: of each restart (default 100).
        restarts: random starts of each attack (default 1).
        gradient: "exact" (default), or "bpda": likelihood maximisation counts as the identity.
        noise: "known" (default): the attacker has the classifier's noise; "fresh": another draw in every call; "all": both.
        eot: model calls averaged for each gradient against fresh noise (default 20).
        resubmissions: how often an image is submitted to fresh noise (default 10).
        seed: of random starts and fresh draws (default 0).
        n: the first n images alone; default: all.
        image_ids: N different integers >= 0, which fix the images' random starts; default: 0 to N - 1.
        class_names: K names; default: those of the data, or of the model.
        batch: images worked on together (default 32, on a GPU 256).
        device: where a model given by its name computes; default: a GPU if there is one. A module stays where it is.
        progress: draw bars on stderr.
    """

    attacks: str | Sequence[str]
    norm: str
    lpips_model: str
    steps: int
    restarts: int
    gradient: str
    noise: str
    eot: int | None
    resubmissions: int
    seed: int
    n: int | None
    image_ids: Sequence[int] | Tensor | np.ndarray | None
    class_names: Sequence[str] | None
    batch: int | None
    device: str | torch.device | None
    progress: bool


@overload
def attack(model: Model, x: Any, y: Any = None, eps: Eps = ..., **options: Unpack[Options]) -> EvaluationResult: ...
@overload
def attack(model: Model, x: Any, y: Any, eps: SeveralEps, **options: Unpack[Options]) -> list[EvaluationResult]: ...
@overload
def attack(
    model: Model, x: Any, y: Any = None, *, eps: SeveralEps, **options: Unpack[Options]
) -> list[EvaluationResult]: ...
def attack(
    model: Any, x: Any, y: Any = None, eps: Any = _DEFAULT.eps, **options: Unpack[Options]
) -> EvaluationResult | list[EvaluationResult]:
    """Attack images; nothing is written.

    >>> result = rdc.attack(model, x, y, eps="8/255")
    >>> result.accuracy, result.adversarial, print(result.summary())

    Args:
        model: a module or function pixels [N, C, H, W] in [0, 1] -> logits [N, K] (weights of 16 bits too), a defence, or the name of
            a model for ``rdc.load``. A module is lent: its mode and its weights are as before afterwards.
        x: pixels [N, C, H, W], uint8 or floating in [0, 1], NumPy's or a tensor (pixels outside by one unit of rounding count as 0 or 1);
            or, without ``y``, a data set, a DataLoader, or a data set's name. Pixels must not be normalised: that is the model's part.
        y: [N] integers, the true classes.
        eps: radius in [0, 1] pixel units: a number, or text such as "8/255"; or a list of them.
        options: see :class:`Options`.

    Returns:
        The result; for a list of eps a list of results, in their order.

    Raises:
        InputError, ConfigError: model, images or options do not fit; the message says which and what to do.
        TypeError: an unknown option.
    """
    chosen = _chosen("attack", options)
    return _results(model, x, y, eps, chosen, {"sanity": 0}, None, False)


@overload
def evaluate(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    eps: Eps = ...,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    sanity: int = ...,
    **options: Unpack[Options],
) -> EvaluationResult: ...
@overload
def evaluate(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    eps: SeveralEps,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    sanity: int = ...,
    **options: Unpack[Options],
) -> list[EvaluationResult]: ...
def evaluate(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    eps: Any = _DEFAULT.eps,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    sanity: int = _DEFAULT.sanity,
    **options: Unpack[Options],
) -> EvaluationResult | list[EvaluationResult]:
    """Evaluate as ``rdc evaluate`` does: attacks one after another, sanity checks, flags; resumable where a folder is given.

    >>> result = rdc.evaluate(model, x, y, attacks="autoattack", eps=8 / 255)

    Args:
        model, x, y, eps: as of :func:`attack`.
        out: folder of the run: a killed run goes on where it stopped, and reports are written into it; with several eps, a folder for each
            within it. None: nothing is kept on disk.
        overwrite: start afresh in a folder that holds results.
        sanity: images on which short extra attacks look for signs of a failing evaluation.
        options: see :class:`Options`.

    Returns:
        The result; for a list of eps a list of results, in their order.

    Raises:
        InputError, ConfigError, DataError: see :func:`rdc.evaluation.evaluate`.
        TypeError: an unknown option.
    """
    chosen = _chosen("evaluate", options)
    return _results(model, x, y, eps, chosen, {"sanity": sanity}, None if out is None else Path(out), overwrite)


def _chosen(function: str, options: Options) -> dict[str, Any]:
    """The options, all of which are known."""
    known = Options.__annotations__
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f". Did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}"
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")
    return {**options}


def _results(
    model: Any,
    x: Any,
    y: Any,
    eps: Any,
    chosen: dict[str, Any],
    more: dict[str, Any],
    out: Path | None,
    overwrite: bool,
) -> EvaluationResult | list[EvaluationResult]:
    names = chosen.pop("class_names", None)
    images = as_images(x, y, n=chosen.pop("n", None), image_ids=chosen.pop("image_ids", None), class_names=names)
    classifier = _classifier(model, images, names, chosen.pop("device", None))
    if names is None and all(name == str(k) for k, name in enumerate(images.class_names)):
        images = _named(images, classifier)
    about = {**more, "model": name_of(model), "dataset": images.name}
    if isinstance(eps, (list, tuple, np.ndarray)):
        parts = [(radius, None if out is None else out / f"eps-{_text(radius).replace('/', '-')}") for radius in eps]
        return [_one(classifier, images, radius, {**chosen}, about, part, overwrite) for radius, part in parts]
    return _one(classifier, images, eps, chosen, about, out, overwrite)


def _one(
    classifier: Defence,
    images: Dataset,
    eps: Any,
    chosen: dict[str, Any],
    about: dict[str, Any],
    out: Path | None,
    overwrite: bool,
) -> EvaluationResult:
    """One run at one eps."""
    progress = bool(chosen.pop("progress", False))
    attacks = chosen.pop("attacks", _DEFAULT.attacks)
    attacks = parse_attacks(attacks) if isinstance(attacks, str) else attacks
    batch = chosen.pop("batch", None) or (
        _DEFAULT.batch_on_a_gpu if classifier.device.type == "cuda" else _DEFAULT.batch
    )
    split = "train" if images.split.startswith("train") else "test"
    fields = {"steps": _STEPS, **chosen, **about, "attacks": attacks, "batch": batch, "split": split, "eps": _text(eps)}
    settings = EvaluationSettings(n=len(images), **fields)
    named = tuple(attacks) if settings.attacks else None
    settings = settings.for_defence(classifier, named)
    if out is not None:
        result = _run(classifier, images, settings, out, overwrite, progress, out)
        result.write_report(out)
        return result
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise ConfigError("out: expected a folder that all processes share; got None, under torchrun")
    with tempfile.TemporaryDirectory(prefix="rdc-") as folder:
        return _run(classifier, images, settings, Path(folder) / "run", False, progress, None)


def _run(
    classifier: Defence,
    images: Dataset,
    settings: EvaluationSettings,
    out: Path,
    overwrite: bool,
    progress: bool,
    kept: Path | None,
) -> EvaluationResult:
    done = run_evaluation(classifier, images, settings, out, overwrite=overwrite, progress=progress)
    fields = {field.name: getattr(done, field.name) for field in dataclasses.fields(done)}
    return EvaluationResult(**fields, classifier=classifier, folder=kept)


def _classifier(model: Any, images: Dataset, names: Sequence[str] | None, device: Any) -> Defence:
    """The model as a defence, on its own device."""
    if isinstance(model, (str, os.PathLike)):
        where = None if device is None else str(device)
        loaded: Defence = ModelChoice(os.fspath(model), device=where).load(images)
        return loaded
    if device is not None:
        raise ConfigError(
            "device: expected None beside a model that is made already; it computes where it is. Move it with model.to(device)"
        )
    example = images.pixels(slice(0, 2)).to(home_of(model))
    return as_defence(model, example, class_names=names or images.class_names, name=name_of(model))


def _named(images: Dataset, classifier: Defence) -> Dataset:
    """Images whose classes have numbers alone, with the model's names, if it has one for each."""
    if len(classifier.class_names) < len(images.class_names):
        return images
    return dataclasses.replace(images, class_names=classifier.class_names)


def _text(eps: Any) -> str:
    """A radius as reports say it: 8 / 255 as "8/255"."""
    number = as_number(eps)
    if number is None:
        return str(eps)
    level = round(255 * number) if 0 < number <= 1 else 0
    return f"{level}/255" if level and level / 255 == number and level < 255 else repr(number)
