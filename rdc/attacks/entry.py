"""The front door of every attack: Attack, what callers hand in made what the attack counts on; and ConfiguredAttack, ready to run."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, cast

from torch import Tensor

from rdc.arguments.scalars import shown
from rdc.attacks.losses import Model
from rdc.attacks.options import AttackOptions
from rdc.attacks.threat_model import AttackResult
from rdc.errors import InputError
from rdc.execution.precision import in_own_type
from rdc.execution.surroundings import ordinary_tensor, outside_inference_mode
from rdc.images.pixels import boxed

__all__ = ["Attack", "ConfiguredAttack", "attack"]

Result = TypeVar("Result", bound=AttackResult)
Options = TypeVar("Options", bound=AttackOptions)
Fields = ParamSpec("Fields")  # of the options


class Attack(Generic[Fields, Result]):
    """An attack: a rule, and the options it has. Called as ``(model, x, y, threat, **options)``, or configured first.

    NumPy's scalars and 0-d tensors become Python's numbers; pixels outside [0, 1] by rounding (``rdc.images.pixels.slack``) become 0 or
    1; a module with weights of float16, bfloat16 or float64 gets pixels of that type; inside inference mode everything is computed
    outside of it, on copies. What does not fit is refused.

    Args:
        rule: ``(model, x, y, threat, options) -> AttackResult``.
        options: class of its options.
        fixed: options that are set already.
    """

    def __init__(
        self,
        rule: Callable[..., Result],
        options: Callable[Fields, AttackOptions],
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, rule)
        self.rule, self._declared, self.fixed = rule, options, dict(fixed or {})
        own = inspect.signature(rule).parameters
        self._needs_threat = own["threat"].default is inspect.Parameter.empty
        keywords = inspect.signature(options).parameters.values()
        before = [parameter for name, parameter in own.items() if name != "options"]
        self.__signature__ = inspect.Signature([*before, *keywords])

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Any = None, *args: Fields.args, **options: Fields.kwargs
    ) -> Result:
        """Attack images x [N, C, H, W] of classes y [N] within a threat model."""
        return self.configured(threat, *args, **options)(model, x, y)

    @property
    def options(self) -> type[AttackOptions]:
        """Class of its options."""
        return cast("type[AttackOptions]", self._declared)

    def __repr__(self) -> str:
        return f"<attack {self.rule.__name__}{''.join(f', {name}={value!r}' for name, value in self.fixed.items())}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _found, (self.__module__, self.rule.__name__, self.fixed)

    def fixing(self, **options: Any) -> Attack[Fields, Result]:
        """The same attack with options set; a call may still set them otherwise."""
        return Attack(self.rule, self._declared, {**self.fixed, **options})

    def configured(
        self, threat: Any = None, *args: Fields.args, **options: Fields.kwargs
    ) -> ConfiguredAttack[AttackOptions, Result]:
        """The attack with all it needs but a model and images.

        Args:
            threat: norm and radius: a ThreatModel, or a FlowThreat.
            options: fields of ``self.options``.

        Raises:
            InputError, ConfigError: a threat or an option that does not fit.
            TypeError: an option that this attack lacks, or one that is missing.
        """
        name = self.rule.__name__
        if threat is None and self._needs_threat:
            raise TypeError(f"{name}() missing 1 required positional argument: 'threat'")
        if threat is not None and not (hasattr(threat, "norm") and hasattr(threat, "eps")):
            raise InputError(
                f'threat: expected a threat model such as ThreatModel("linf", 8 / 255); got {shown(threat)}'
            )
        try:
            chosen = self.options(*args, **{**self.fixed, **options})
        except TypeError as error:
            raise TypeError(re.sub(r"^\S*__init__\(\)", f"{name}()", str(error))) from error
        return ConfiguredAttack(self, threat, chosen)


@dataclasses.dataclass(frozen=True, eq=False)
class ConfiguredAttack(Generic[Options, Result]):
    """An attack, its threat model and its options: a function of model and images.

    Args:
        attack: which.
        threat: norm and radius; None where the attack has a bound of its own.
        options: everything else.
    """

    attack: Attack[..., Result]
    threat: Any
    options: Options

    def __call__(self, model: Any, x: Any, y: Any) -> Result:
        """Attack.

        Args:
            model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only; in eval mode.
            x: [N, C, H, W] float32 in [0, 1] but for rounding (``rdc.images.pixels.slack``).
            y: [N] int64 true labels.

        Raises:
            InputError, ConfigError: the arguments do not fit each other. RdcError: a budget was broken.
        """
        if not callable(model):
            raise InputError(f"model: expected a callable pixels [n, C, H, W] -> logits [n, K]; got {shown(model)}")
        with outside_inference_mode():
            options: Any = self.options
            if hasattr(options, "start"):
                options = dataclasses.replace(options, start=_starts(options.start))
            if options.image_ids is None and isinstance(x, Tensor) and x.dim() > 0:
                options = dataclasses.replace(options, image_ids=range(len(x)))
            images = boxed(ordinary_tensor(x))
            found: Result = self.attack.rule(
                in_own_type(model), images, ordinary_tensor(y), self.threat, options=options
            )
            return found


def attack(options: Callable[Fields, AttackOptions]) -> Callable[[Callable[..., Result]], Attack[Fields, Result]]:
    """Decorator: a rule ``(model, x, y, threat, options)`` as an Attack that has these options."""
    return lambda rule: Attack(rule, options)


def _found(module: str, name: str, fixed: dict[str, Any]) -> Attack[..., Any]:
    """An attack by where it stands, for pickles."""
    there: Attack[..., Any] = getattr(importlib.import_module(module), name)
    return there.fixing(**fixed)


def _starts(start: Any) -> Any:
    if start is None or isinstance(start, Tensor):
        return ordinary_tensor(start)
    try:
        starts = [start] if isinstance(start, (str, bytes)) else list(start)
    except TypeError:
        starts = [start]
    if not all(isinstance(one, Tensor) for one in starts):
        raise InputError(
            f"start: expected images as a tensor [N, C, H, W], or a list of such tensors; got {shown(start)}"
        )
    return [ordinary_tensor(one) for one in starts]
