"""Which images a report shows, and everything it draws from them: pictures as PNG, losses over noise levels."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import torch

from rdc.contracts import Defence, NoisePolicy
from rdc.evaluation import Evaluation
from rdc.evaluation.records import ImageRecord
from rdc.plots.adversarial import coloured_difference

__all__ = ["Gallery", "difference_picture", "gallery", "picture"]

_SHOWN, _BROKEN, _PLOTTED = 8, 5, 3


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """What the HTML page shows of chosen images.

    Args:
        rows: m positions in the evaluation.
        clean, adversarial: [m, C, H, W] pixels.
        maximized: [m, C, H, W] the adversarial (or, unattacked, the clean) image after likelihood maximisation or
            another purifier; None without.
        gain: factor by which the difference is amplified; what it maps to full colour is 1 / gain.
        losses: {position: (clean [T, K], adversarial [T, K] or None)}, weighted class losses per level of some rows;
            empty if the model is no diffusion classifier, without those that are not finite.
        sigma: T noise levels.
    """

    rows: list[int]
    clean: np.ndarray
    adversarial: np.ndarray
    maximized: np.ndarray | None
    gain: float
    losses: dict[int, tuple[np.ndarray, np.ndarray | None]]
    sigma: np.ndarray


def gallery(evaluation: Evaluation, classifier: Defence) -> Gallery:
    """Choose images and compute what is shown of them; the run's own figures are not touched.

    Images broken by the attack come first, then robust ones, of different classes as far as there are any.
    """
    identity = evaluation.record.identity
    settings = identity.settings
    rows = _choose(evaluation.records)
    clean = evaluation.dataset.pixels(rows).numpy()
    adversarial = evaluation.x_adv[rows]
    model = (
        classifier.with_(noise=NoisePolicy.FIXED)
        if settings.noise != "fresh"
        else classifier.with_(noise=NoisePolicy.FRESH, noise_seed=settings.seed)
    )
    maximized = None
    if classifier.purifies:
        with torch.no_grad():
            maximized = model.purify(torch.from_numpy(adversarial).to(model.device)).float().cpu().numpy()
    losses: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    sigma = np.zeros(0)
    if model.has_levels:
        losses, sigma = _losses(model, rows, clean, adversarial, bool(settings.attacks))
    gain = 1 / identity.radius if settings.norm == "linf" and identity.radius else _l2_gain(adversarial - clean)
    return Gallery(rows, clean, adversarial, maximized, gain, losses, sigma)


def _losses(
    model: Defence, rows: list[int], clean: np.ndarray, adversarial: np.ndarray, attacked: bool
) -> tuple[dict[int, tuple[np.ndarray, np.ndarray | None]], np.ndarray]:
    """Weighted class losses per level of three images, and the levels."""
    levels = model.describe()["levels"]
    plotted = (*range(min(_PLOTTED - 1, len(rows))), *([len(rows) - 1] if len(rows) >= _PLOTTED else []))
    found = {}
    for place in plotted:
        pair = torch.from_numpy(np.stack([clean[place], adversarial[place]])).to(model.device)
        with torch.no_grad():
            per_level = model.losses_per_level(pair).double().cpu().numpy() * np.asarray(levels["weight"])[:, None]
        if np.isfinite(per_level[: 1 + attacked]).all():
            found[rows[place]] = (per_level[0], per_level[1] if attacked else None)
    return found, np.asarray(levels["sigma"])


def _l2_gain(difference: np.ndarray) -> float:
    largest = float(np.abs(difference).max(initial=0.0))
    return 1.0 if largest == 0 else 1 / largest


def _choose(records: Sequence[ImageRecord]) -> list[int]:
    right = [row for row, record in enumerate(records) if record.clean.ever_right]
    broken = [row for row in right if records[row].robust is False]
    standing = [row for row in right if records[row].robust is not False]
    wrong = [row for row, record in enumerate(records) if not record.clean.ever_right]
    chosen = _varied(broken, records, min(_BROKEN, len(broken)))
    chosen += _varied(standing, records, _SHOWN - len(chosen))
    rest = [row for row in (*broken, *wrong) if row not in chosen]
    return chosen + rest[: _SHOWN - len(chosen)]


def _varied(rows: list[int], records: Sequence[ImageRecord], count: int) -> list[int]:
    """``count`` rows, one of each class before a second of any."""
    seen: dict[int, int] = {}
    turn = []
    for row in rows:
        label = records[row].label
        turn.append((seen.get(label, 0), row))
        seen[label] = seen.get(label, 0) + 1
    return sorted(row for _, row in sorted(turn)[:count])


def picture(pixels: np.ndarray) -> bytes:
    """PNG of one image [C, H, W] in [0, 1], C 1 or 3."""
    grey = np.clip(np.rint(255 * np.nan_to_num(pixels)), 0, 255).astype(np.uint8)
    return _png(grey[0] if grey.shape[0] == 1 else grey.transpose(1, 2, 0))


def difference_picture(difference: np.ndarray, gain: float) -> bytes:
    """PNG of a difference [C, H, W]: white is no change, red brighter, blue darker; of colour images, grey is none."""
    return picture(coloured_difference(difference, gain).transpose(2, 0, 1))


def _png(array: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", optimize=False)
    return file.getvalue()
