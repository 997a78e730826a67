"""The images of ``rdc calibrate``: held out of training, test images, and images of other kinds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rdc.cli.images import load_images
from rdc.cli.options import ALL, warn_if_sorted
from rdc.errors import one_line

__all__ = ["held_out_and_test", "other_kinds"]

_HOLDOUT = 2000  # what the shipped models were trained without


def held_out_and_test(args: argparse.Namespace) -> tuple[Any, Any]:
    """Held-out training images to fit on, and test images."""
    import numpy as np

    from rdc.data import train_holdout

    train = load_images(args.data, "train", args.data_root, progress=not args.quiet)
    held = train_holdout(train, _holdout(args.model, train, args.holdout))[1]
    count = len(held) if args.n == ALL else min(args.n, len(held))
    held = held.subset(np.linspace(0, len(held) - 1, count).astype(int).tolist())  # all classes, whatever the order
    test = load_images(args.data, "test", args.data_root, progress=not args.quiet)
    count = len(test) if args.test_n == ALL else min(args.test_n, len(test))
    warn_if_sorted(test, 0, count)
    return held, test.subset(range(count))


def other_kinds(classifier: Any, args: argparse.Namespace, fitted_on: int) -> dict[str, Any]:
    """Images of other kinds by the name of their file, in the model's shape; whatever is wrong with them is said first."""
    from rdc.errors import ConfigError

    least = 4 * len(classifier.levels) + 12  # fit_likelihood_score
    if args.ood and fitted_on < least:
        raise ConfigError(
            f"--ood: expected at least {least} images to fit on for {len(classifier.levels)} levels; got {fitted_on}"
        )
    found: dict[str, Any] = {}
    for name in args.ood:
        stem, data = Path(name).stem, load_images(name, notices=False)
        if stem in found:
            raise ConfigError(f"--ood: expected files of different names; got {one_line(stem)} twice")
        if not len(data):
            raise ConfigError(f"--ood: {one_line(name, 400)} has no images")
        found[stem] = _resized(data, classifier.image_shape, args.ood_n)
    return found


def _holdout(model: str, train: Any, asked: int | None) -> int:
    """How many images of ``train`` to hold out; none that the model was trained on, where its folder tells."""
    from rdc.errors import ConfigError
    from rdc.models.checkpoints import checkpoint_paths
    from rdc.training.preparation import held_out_of

    folder = checkpoint_paths(model)[1].parent
    left_out = held_out_of(folder, train)
    if left_out is None:
        return asked or _HOLDOUT
    if (asked or 1) > left_out:
        raise ConfigError(
            f"--holdout: expected at most {left_out:,} images, which {one_line(folder, 400)} was trained without; got "
            f"{asked or 'none'}. Train with --holdout N, or name images that it has not seen with --data"
        )
    return asked or left_out


def _resized(data: Any, shape: tuple[int, int, int], count: int) -> Any:
    """The first ``count`` images, converted to the model's size and channels."""
    from rdc.data.pictures import Form
    from rdc.data.resizing import reshaped

    return reshaped(data[:count], Form(shape[1:], shape[0])).pixels()
