"""What the configuration of a diffusers scheduler says of a model: its schedule and what it predicts."""

from __future__ import annotations

from typing import Any

from rdc.arguments.scalars import as_number, shown
from rdc.errors import CheckpointError, ConfigError
from rdc.method.schedules import FlowSchedule, Schedule, resolve_schedule
from rdc.models.convert.diffusers_parts import prediction_of

__all__ = ["schedule_of"]

_PREDICTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def schedule_of(options: dict[str, Any], where: str) -> tuple[Schedule, str]:
    """Schedule and prediction.

    Args:
        options: scheduler_config.json.
        where: its name for errors.

    Raises:
        CheckpointError: neither variance-preserving nor flow-matching, or a prediction that no schedule has.
    """
    name = str(options.get("_class_name", ""))
    if name.startswith("FlowMatch"):
        steps = as_number(options.get("num_train_timesteps", 1000))
        if steps is None or steps <= 0:
            raise CheckpointError(
                f"{where}: num_train_timesteps: expected a positive number; got {shown(options['num_train_timesteps'])}"
            )
        return FlowSchedule(time_scale=steps), "flow"
    prediction = prediction_of(options, where, " or a flow-matching one (FlowMatch...)")
    try:
        return resolve_schedule({key: value for key, value in options.items() if not key.startswith("_")}), _PREDICTS[
            prediction
        ]
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None
