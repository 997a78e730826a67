"""One training run of cifar10.py: its recipe with the user's further options, and the process that trains it on a GPU.

python -m benchmarks.studies.cifar10.training --config robust.toml --out robust [options of rdc train or rdc distill]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.starting import start

__all__ = ["main", "parsed", "train"]


def parsed(words: list[str]) -> tuple[argparse.Namespace, Any]:
    """The options of a training run, and the recipe that they make of the file of ``--config``.

    Args:
        words: ``--config FILE --out DIR``, then any option of the command that the file's method belongs to.

    Returns:
        (options, :class:`rdc.training.Recipe`).

    Raises:
        ConfigError: a setting is wrong, or belongs to another method.
    """
    from rdc.cli import distill, train
    from rdc.training.recipe_files import read_toml

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", required=True, type=Path)
    distils = read_toml(first.parse_known_args(words)[0].config).get("method") == "distill"
    command, name = (distill, "distill") if distils else (train, "train")
    options = _Options(add_help=False, allow_abbrev=False)
    command.add_arguments(options)
    options.set_defaults(command=name)
    args = options.parse_args(words)
    return args, command.recipe(args)


class _Options(argparse.ArgumentParser):
    """Wrong use is an error of the part, not the end of the whole study."""

    def error(self, message: str) -> NoReturn:
        from rdc.errors import ConfigError

        raise ConfigError(f"--words: {message}")


def train(words: list[str], begun: float) -> int:
    """Train what the words say (:func:`parsed`), and print how it ended.

    Args:
        begun: when the box of the recipe's minutes was opened, on ``time.monotonic``'s clock.

    Returns:
        Exit status: 0; 2 for what is wrong with recipe, data or folder; 128 + the signal that stopped the run.
    """
    from rdc import training
    from rdc.data import load_dataset
    from rdc.errors import RdcError
    from rdc.training.trainer import TrainingStopped

    try:
        args, recipe = parsed(words)
        data = load_dataset(recipe.data, "train", args.data_root)
        surroundings: dict[str, Any] = {
            "device": args.device,
            "threads": args.threads,
            "progress": not args.quiet,
            "begun": begun,
        }
        if recipe.extra_data:
            surroundings["extra"] = load_dataset(recipe.extra_data, "train")
        done = training.run(recipe, data, args.out, **surroundings)
    except TrainingStopped as stop:
        print(f"{args.out}: {stop}", file=sys.stderr)
        return 128 + stop.number
    except RdcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    end = "" if done.finished else f" of {done.planned:,} planned; the minutes ended, the state is saved"
    print(f"{done.out}: {done.images:,} images in {done.seconds / 60:.1f} minutes{end}")
    return 0


def main() -> int:
    begun = time.monotonic()  # before torch is imported
    return train(sys.argv[1:], begun)


if __name__ == "__main__":
    start(main)
