"""A folder of the diffusers library that is named without its prefix, and prompts that are named beside a model."""

from __future__ import annotations

from pathlib import Path

from rdc.errors import ConfigError, RdcError, one_line
from rdc.models.checkpoints import checkpoint_paths
from rdc.storage.json_files import read_json

__all__ = ["prefixed", "with_prompts"]

_PREFIX = "diffusers:"


def prefixed(name: str) -> str:
    """``diffusers:FOLDER`` where ``name`` is a folder as diffusers writes it; else ``name`` itself.

    Args:
        name: of a model, as a user gives it.

    Raises:
        ConfigError: a folder of transformers.
    """
    kind = _kind(Path(name))
    if kind == "transformers":
        raise ConfigError(
            f"{one_line(name, 300)}: a model of transformers; expected a checkpoint of rdc or a diffusion model of diffusers. For a "
            "classifier of your own: --model FILE.py:FUNCTION, a function that returns it"
        )
    return f"{_PREFIX}{name}" if kind == "diffusers" else name


def with_prompts(name: str, prompts: str | None) -> str:
    """The name of a model with the word ``prompts=FILE``.

    Args:
        name: ``diffusers:FOLDER``, with words behind it or without, or a folder as diffusers writes it.
        prompts: CSV of class,prompt; None: the name stays as it is.

    Raises:
        ConfigError: a model that takes no prompts, has them already, or a file whose name has a comma.
    """
    if prompts is None:
        return name
    full = prefixed(name)
    if not full.startswith(_PREFIX):
        raise ConfigError(
            f"--prompts: expected a model that takes text, --model diffusers:FOLDER; {one_line(name, 200)} takes none: leave it out"
        )
    if ",prompts=" in full:
        raise ConfigError(f"--prompts: {one_line(name, 200)} names prompts itself; give them once")
    if "," in prompts:
        raise ConfigError(
            f"--prompts: expected a file whose name has no comma; got {one_line(prompts, 200)}: rename it"
        )
    return f"{full},prompts={prompts}"


def _kind(folder: Path) -> str | None:
    """diffusers or transformers, whose folder it is; None of rdc's own checkpoints and all else."""
    try:
        if not folder.is_dir() or checkpoint_paths(folder)[1].is_file():
            return None
        if (folder / "model_index.json").is_file():
            return "diffusers"
        config = folder / "config.json"
        options = read_json(config, ConfigError, kind=dict) if config.is_file() else {}
    except (OSError, ValueError, RdcError):  # a name that no file can have; a file that says nothing
        return None
    known = {"_diffusers_version": "diffusers", "transformers_version": "transformers"}
    return next((kind for entry, kind in known.items() if entry in options), None)
