"""Recipes from nested settings, as a TOML file or a command line gives them, and back. Every setting is checked where it comes in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from rdc.arguments.close_names import did_you_mean
from rdc.arguments.scalars import as_flag, as_integer, as_number, shown
from rdc.attacks import parse_eps
from rdc.errors import ConfigError, one_line
from rdc.training.adversarial import ClassifierTerms, InnerAttack
from rdc.training.config import TrainConfig
from rdc.training.distillation import DistillationTerms, Secant
from rdc.training.energy import EnergyTerms
from rdc.training.hybrid import HybridTerms
from rdc.training.objective import DiffusionTerms
from rdc.training.recipes import METHODS, NoiseChoice, Recipe, methods_of
from rdc.training.selection import SelectionTerms

__all__ = ["Source", "merged", "recipe_from", "settings_of"]

_SECTIONS = (
    *(TrainConfig, NoiseChoice, DiffusionTerms, DistillationTerms, Secant),
    *(ClassifierTerms, InnerAttack, EnergyTerms, HybridTerms, SelectionTerms),
)
_Section = TypeVar("_Section")
_SECTION: dict[str, type] = {kind.__name__: kind for kind in _SECTIONS}
_RADII = ("eps", "margin_eps", "step_size")  # read like "8/255"
_READERS = {
    "int": (as_integer, "an integer"),
    "float": (as_number, "a number"),
    "bool": (as_flag, "true or false"),
    "str": (lambda value: value if isinstance(value, str) else None, "a text in quotes"),
}
_SECANT = "distillation.secant"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where settings come from: what messages call them.

    Args:
        file: the recipe's file; "": none.
        options: key -> option, of the settings that the command line gave: ``{"attack.eps": "--eps"}``.
    """

    file: str = ""
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def name(self, key: str) -> str:
        """What the user calls a setting."""
        return self.options.get(key) or (f"{one_line(self.file, 400)}: {key}" if self.file else key)

    def place(self, section: str, settings: Mapping[str, Any]) -> str:
        """The beginning of a message about a whole section; "" where the command line gave all of it."""
        keys = [f"{section}.{key}".lstrip(".") for key in settings]
        if not self.file or all(key in self.options for key in keys):
            return ""
        return f"{one_line(self.file, 400)}{f' [{section}]' if section else ''}: "


def recipe_from(settings: Mapping[str, Any], source: Source = Source()) -> Recipe:  # noqa: B008 (frozen)
    """The recipe that nested settings say.

    Args:
        settings: as a TOML file has them: ``{"method": "trades", "attack": {"eps": "8/255"}}``. Radii are numbers or texts.
        source: where they come from.

    Raises:
        ConfigError: a key is unknown or belongs to another method, a type is wrong, or a value is out of range.
    """
    method = settings.get("method", Recipe.method)
    if method not in METHODS:
        raise ConfigError(
            f"{source.name('method')}: expected one of {', '.join(METHODS)}; got {shown(method)}{did_you_mean(method, METHODS)}"
        )
    tree = _read(Recipe, settings, "", source)
    for key in _keys(tree):
        _expect_method(key, method, source)
    if "train" in tree or tree.get("minutes") is not None:
        tree["train"] = Recipe.train_defaults(method, tree.get("minutes")) | tree.get("train", {})
    if "attack" in tree:
        given = tree["attack"]
        tree["attack"] = Recipe.attack_defaults(given.get("norm", InnerAttack.norm), given.get("threats", "")) | given
    _complete_secant(tree.get("distillation", {}), source)
    return _made(Recipe, tree, "", source)


def merged(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others in their place.

    Args:
        settings: nested, of a file.
        over: dotted key -> value: ``{"train.learning_rate": 1e-3}``.
    """
    tree = dict(settings)
    for key, value in over.items():
        section, _, rest = key.partition(".")
        if not rest:
            tree[section] = value
        elif isinstance(tree.setdefault(section, {}), Mapping):  # else the file is wrong, which is said later
            tree[section] = merged(tree[section], {rest: value})
    return tree


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Nested settings that say the recipe: :func:`recipe_from` makes the same one of them."""
    tree = {key: value for key, value in _given(recipe).items() if recipe.method in methods_of(key)}
    for section in ("classifier", "train"):
        for key in list(tree.get(section, {})):
            if recipe.method not in methods_of(f"{section}.{key}"):
                del tree[section][key]
    if recipe.minutes is not None:
        del tree["train"]["images"]  # planned as it runs
    return {key: value for key, value in tree.items() if value != {}}


def _read(kind: type, settings: Any, prefix: str, source: Source) -> dict[str, Any]:
    """The settings of a section with values of the types that its fields have."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{source.name(prefix)}: expected a table [{prefix}]; got {shown(settings)}")
    fields = _types(kind)
    tree: dict[str, Any] = {}
    for key, given in settings.items():
        dotted = f"{prefix}.{key}".lstrip(".")
        if key not in fields:
            raise ConfigError(
                f"{source.name(one_line(dotted))}: there is no such setting{did_you_mean(key, fields)}; expected one of {', '.join(fields)}"
            )
        tree[key] = _value(fields[key], key, given, dotted, source)
    return tree


def _value(kind: str, key: str, given: Any, dotted: str, source: Source) -> Any:
    if kind in _SECTION:
        return _read(_SECTION[kind], given, dotted, source)
    if key in _RADII and isinstance(given, str):
        return parse_eps(given, name=source.name(dotted))
    read, expected = _READERS[kind]
    if (value := read(given)) is None:
        raise ConfigError(f"{source.name(dotted)}: expected {expected}; got {shown(given)}")
    return value


def _expect_method(key: str, method: str, source: Source) -> None:
    methods = methods_of(key)
    if method in methods:
        return
    others = [name for name in methods if (name == "distill") == (method == "distill")] or list(methods)
    said = "--method" if key in source.options else "method"
    raise ConfigError(
        f"{source.name(key)}: has no meaning for {said} {method}; it goes with {', '.join(others)}. "
        f"Leave it out or choose another {said}"
    )


def _complete_secant(terms: dict[str, Any], source: Source) -> None:
    """Neither threats nor a radius, or the radius 0: no secant."""
    secant = terms.get("secant", {})
    if secant.get("threats"):
        return
    if "eps" not in secant and any(f"{_SECANT}.{key}" not in source.options for key in secant):
        raise ConfigError(
            f'{source.name(f"{_SECANT}.eps")}: expected a radius such as "8/255" beside the others; got none'
        )
    if not secant.get("eps"):
        terms.pop("secant", None)


def _made(kind: type[_Section], tree: dict[str, Any], section: str, source: Source) -> _Section:
    """The object of a section, the sections within it first."""
    kinds = _types(kind)
    values = {
        key: _made(_SECTION[kinds[key]], value, f"{section}.{key}".lstrip("."), source)
        if kinds[key] in _SECTION
        else value
        for key, value in tree.items()
    }
    try:
        return kind(**values)
    except ConfigError as error:
        key, _, rest = str(error).partition(":")
        dotted = f"{section}.{key}".lstrip(".")
        option = source.options.get(dotted)
        if not section and key in tree or option == f"--{key.replace('_', '-')}":
            raise ConfigError(f"{source.name(dotted)}:{rest}") from error
        raise ConfigError(f"{source.place(section, tree)}{error}") from error


def _types(kind: Any) -> dict[str, str]:
    """Field -> its type, None left out: ``"float"``, ``"Secant"``."""
    return {field.name: str(field.type).removesuffix(" | None") for field in dataclasses.fields(kind)}


def _given(section: Any) -> dict[str, Any]:
    """Fields that say something, nested."""
    tree = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    nested = {key: _given(value) if dataclasses.is_dataclass(value) else value for key, value in tree.items()}
    return {key: value for key, value in nested.items() if value is not None and value != ""}


def _keys(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    rows: list[str] = []
    for key, value in tree.items():
        rows += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return rows
