"""Images drawn from a diffusion model to train on: a folder of ``.npz`` files that every ``--data`` and ``--extra-data`` reads.

    run.json            what decides the images (weights, levels, seed, judge)
    train-000000.npz    images, labels and candidates, a part of the data set each; with the checksums of zip archives

Candidate c is of class c mod K. Its starting noise depends on the seed and on c alone, so which images there are depends neither on
the batch nor on how often the run was killed. A judge, a classifier of any kind, may turn candidates down; the next ones of the class
take their places. (Gowal et al. 2021, arXiv 2110.09468, and Wang et al. 2023, arXiv 2302.04638, train on such images.)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.arguments.scalars import as_integer, shown
from rdc.arguments.seeds import checked_seed, random
from rdc.data import Dataset, load_npz, save_npz
from rdc.errors import ConfigError, DataError, InputError
from rdc.execution.frozen import at_rest
from rdc.method.denoiser import Denoiser
from rdc.method.latents import refuse_latents
from rdc.method.sampling import draw_pixels, sampling_levels
from rdc.storage.run_folder import ResumableFolder, as_written
from rdc.storage.sealed import read_sealed, write_sealed
from rdc.terminal.progress import bar, say_begin

__all__ = ["DrawnFolder", "Judge", "draw_dataset"]

SCHEMA = "rdc.drawn/1"
MOST_BYTES = 2**34  #: of all images together
_STREAM = 0x5A3B1F  # of the starting noise
_BATCHES = 10  # in a part
_PATIENCE, _FEWEST = 20, 200  # candidates of a class: so many times what is wanted, and at least so many
_PART = re.compile(r"train-\d{6}\.npz")
_ADVICE = "use --overwrite to start afresh, or another folder"
_MORE = "Ask for more, or name another folder"


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who turns candidates down.

    Args:
        classify: pixels [n, C, H, W] in [0, 1] -> logits [n, K].
        above: the probability that it must give the class that was asked for; 0..1.
        name, weights: for the record: what it is called, and a fingerprint of its weights.
    """

    classify: Callable[[Tensor], Tensor]
    above: float
    name: str
    weights: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.above < 1:
            raise ConfigError(f"judge: expected a probability of at least 0 and below 1; got {shown(self.above)}")

    def keeps(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Whether each of these images passes, [n] bool."""
        with torch.no_grad():
            p = self.classify(pixels).double().softmax(1).cpu()
        return p.gather(1, labels[:, None])[:, 0] >= self.above


class DrawnFolder(ResumableFolder):
    """Opens, checks and locks the folder; a context manager.

    Args:
        path: the folder; made if missing.
        identity: what decides the images, as JSON values.
        overwrite: throw away what is in it.

    Raises:
        ConfigError: it holds images of other settings, something else, or is in use.
        DataError: its files are damaged.
    """

    COMMAND = "rdc sample"
    WRITTEN = {"": lambda name: name == "run.json" or _PART.fullmatch(name) is not None}
    DIFFERING, GO_ON = "These settings differ", "go on with those images"

    def __init__(self, path: str | os.PathLike[str], identity: dict[str, Any], overwrite: bool = False) -> None:
        super().__init__(path)
        self._claim(as_written(identity), overwrite)

    def __enter__(self) -> DrawnFolder:
        return self

    def load(self) -> Dataset | None:
        """What is there; None: nothing yet."""
        return load_npz(self.path, "train") if self._parts() else None

    def append(self, part: Dataset) -> None:
        """Keep a part; on disk when this returns."""
        last = max((int(name[6:12]) for name in self._parts()), default=-1)
        save_npz(part, self.path / f"train-{last + 1:06}.npz", compressed=False)

    def _parts(self) -> list[str]:
        return sorted(file.name for file in self.path.iterdir() if _PART.fullmatch(file.name))

    def _read_identity(self, overwrite: bool) -> dict[str, Any] | None:
        if overwrite:
            return None
        content, sealed = read_sealed(self.path / self.IDENTITY, advice=_ADVICE)
        if content.get("schema") != SCHEMA or not sealed or not isinstance(content.get("identity"), dict):
            raise DataError(f"{self.path}: holds no images of rdc sample ({SCHEMA}), or a damaged run.json; {_ADVICE}")
        found: dict[str, Any] = content["identity"]
        return found

    def _write_identity(self, identity: dict[str, Any]) -> None:
        write_sealed(self.path / self.IDENTITY, {"schema": SCHEMA, "identity": identity})

    def _clear(self) -> None:
        (self.path / self.IDENTITY).unlink(missing_ok=True)
        for name in self._parts():
            (self.path / name).unlink()


def draw_dataset(
    denoiser: Denoiser,
    images: int,
    out: str | os.PathLike[str],
    *,
    class_names: Sequence[str],
    weights: str,
    steps: int = 18,
    seed: int = 0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    batch_size: int = 100,
    judge: Judge | None = None,
    overwrite: bool = False,
    progress: bool = True,
    on_part: Callable[[int, int], object] | None = None,
) -> Dataset:
    """Draw ``images`` images, of every class as many (the first classes one more), into a folder; goes on with what is there.

    Args:
        denoiser: class-conditional or multi-head network, on its device.
        images: how many are kept. A run of more goes on with the images of one of fewer.
        out: the folder.
        class_names: K names.
        weights: fingerprint of the denoiser's weights, for the record.
        steps, sigma_min, sigma_max: of the sampler, see :func:`rdc.method.sampling.sampling_levels`.
        seed: any integer; of the starting noise.
        batch_size: images at a time; ten times as many make a part.
        judge: who turns candidates down; None: nobody.
        overwrite: throw away what is in the folder.
        progress: draw a bar on stderr.
        on_part: called with images kept and images asked for after every part.

    Returns:
        All images, in parts as they were drawn; ``indices`` are the candidates.

    Raises:
        ConfigError: the folder is another command's or has images of other settings.
        InputError: sizes out of range, or the judge turns down nearly all of a class.
        DataError: the folder's files are damaged.
    """
    refuse_latents(denoiser, "sampling")
    seed, levels = checked_seed(seed), sampling_levels(steps, sigma_min, sigma_max)
    wanted, together = _sizes(images, batch_size, denoiser)
    if len(class_names) != denoiser.num_classes:
        raise InputError(f"class_names: expected {denoiser.num_classes} names; got {len(class_names)}")
    identity = {
        **{"weights": weights, "precision": denoiser.precision, "steps": len(levels) - 1, "seed": seed},
        **{"sigma_min": float(sigma_min), "sigma_max": float(sigma_max)},
        "judge": None if judge is None else {"model": judge.name, "weights": judge.weights, "above": judge.above},
    }
    draw = functools.partial(_draw, denoiser, seed=seed, levels=levels, judge=judge)
    with DrawnFolder(out, identity, overwrite) as folder, at_rest(denoiser):
        _fill(folder, _Tally(wanted, folder.load(), folder.path), draw, together, tuple(class_names), progress, on_part)
        found = folder.load()
    assert found is not None
    return found


def _fill(
    folder: DrawnFolder,
    tally: _Tally,
    draw: Callable[[Tensor], tuple[Tensor, Tensor]],
    together: int,
    class_names: tuple[str, ...],
    progress: bool,
    on_part: Callable[[int, int], object] | None,
) -> None:
    """Draw candidates, ``together`` at a time, until every class has what it wants."""
    total = sum(tally.wanted)
    if tally.done > total:
        raise ConfigError(
            f"{folder.path}: expected at most the {total:,} images that are asked for; it holds {tally.done:,}. {_MORE}"
        )
    say_begin(folder.path, tally.done, total, "images", enabled=progress)
    with bar(total=total, initial=tally.done, unit="img", enabled=progress) as line:
        while candidates := tally.next(_BATCHES * together):
            drawn = []
            for rows in torch.tensor(candidates).split(together):
                drawn.append(draw(rows))
                line.update(int(drawn[-1][1].sum()))
            pixels, kept = (torch.cat(part) for part in zip(*drawn, strict=True))
            if chosen := tally.take(candidates, kept.tolist()):
                rows = torch.tensor(candidates)[chosen]
                part = pixels[chosen], rows % len(class_names), class_names
                folder.append(Dataset(*part, "drawn", "train", rows))
            line.n = tally.done  # of those that passed some were one too many
            if on_part is not None:
                on_part(tally.done, total)


class _Tally:
    """Which candidates are next, and which of those that passed are wanted.

    Args:
        wanted: images of each class.
        there: what an earlier start kept.
        path: for messages.
    """

    def __init__(self, wanted: list[int], there: Dataset | None, path: os.PathLike[str]) -> None:
        self.wanted, self.kept, self.tried = wanted, [0] * len(wanted), [0] * len(wanted)
        for label, candidate in (
            () if there is None else zip(there.labels.tolist(), there.indices.tolist(), strict=True)
        ):
            if candidate % len(wanted) != label:
                raise DataError(f"{path}: image {candidate} cannot be of class {label}; {_ADVICE}")
            self.kept[label] += 1
            self.tried[label] = max(self.tried[label], candidate // len(wanted) + 1)

    @property
    def done(self) -> int:
        """Images that are kept."""
        return sum(self.kept)

    def next(self, count: int) -> list[int]:
        """Up to so many candidates of the classes that want images, in turn; [] when none does.

        Raises:
            InputError: nearly all candidates of a class were turned down.
        """
        missing = {k: most - self.kept[k] for k, most in enumerate(self.wanted) if most > self.kept[k]}
        for k in missing:
            if self.tried[k] >= max(_FEWEST, _PATIENCE * self.wanted[k]):
                raise InputError(
                    f"class {k}: the judge kept {self.kept[k]:,} of {self.tried[k]:,} candidates, fewer than one in {_PATIENCE}. What is "
                    "drawn stays; name a lower --judge-above, another --judge, or a better model"
                )
        likely = {k: math.ceil(few * (self.tried[k] + 1) / (self.kept[k] + 1)) for k, few in missing.items()}
        rounds = range(max(likely.values(), default=0))
        turns = ((self.tried[k] + turn) * len(self.wanted) + k for turn in rounds for k in missing if turn < likely[k])
        return list(itertools.islice(turns, count))

    def take(self, candidates: list[int], passed: list[bool]) -> list[int]:
        """Places of the candidates that are kept, of a class no more than are wanted; counts all of them as tried."""
        chosen = []
        for place, (candidate, good) in enumerate(zip(candidates, passed, strict=True)):
            column, label = divmod(candidate, len(self.wanted))
            self.tried[label] = column + 1
            if good and self.kept[label] < self.wanted[label]:
                self.kept[label] += 1
                chosen.append(place)
        return chosen


def _sizes(images: object, batch_size: object, denoiser: Denoiser) -> tuple[list[int], int]:
    """Images of each class, and of a batch."""
    count, together, classes = as_integer(images), as_integer(batch_size), denoiser.num_classes
    if count is None or together is None or min(count, together) < 1:
        raise InputError(
            f"drawing: expected images and batch_size of 1 or more; got {shown(images)} and {shown(batch_size)}"
        )
    if count * (size := int(np.prod(denoiser.image_shape))) > MOST_BYTES:
        raise InputError(
            f"drawing: expected at most {MOST_BYTES // size:,} images of {size:,} bytes; got {shown(images)}"
        )
    return [count // classes + (k < count % classes) for k in range(classes)], together


def _draw(
    denoiser: Denoiser, candidates: Tensor, seed: int, levels: Tensor, judge: Judge | None
) -> tuple[Tensor, Tensor]:
    """Candidates [n] -> images [n, C, H, W], uint8, and whether each is kept [n]."""
    weight, shape = next(denoiser.parameters()), denoiser.image_shape
    normal = (random(seed, _STREAM, (0, 0, 0, c)).standard_normal(shape, dtype=np.float32) for c in candidates.tolist())
    noise = torch.from_numpy(np.stack(list(normal))).to(weight.device, weight.dtype)
    labels = candidates % denoiser.num_classes
    pixels = draw_pixels(denoiser, labels.to(weight.device), noise, levels)
    images = (pixels * 255).round().to(torch.uint8)
    if judge is None:
        return images, torch.ones(len(images), dtype=torch.bool)
    return images, judge.keeps(images.to(weight.device, torch.float32) / 255, labels)
