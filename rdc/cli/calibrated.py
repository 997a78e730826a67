"""What ``rdc calibrate`` leaves behind: settings in the checkpoint, and words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rdc.errors import one_line

__all__ = ["description_to_write", "outcome", "write_settings"]


def description_to_write(model: str) -> Path:
    """The description of a checkpoint that ``--write`` may change.

    Raises:
        ConfigError: it is a shipped model, or there is no such file.
    """
    from rdc.errors import ConfigError
    from rdc.models.checkpoints import checkpoint_paths
    from rdc.models.zoo import MODELS

    path = checkpoint_paths(model)[1]
    if model in MODELS or not path.is_file():
        what = "a shipped model" if model in MODELS else "none"
        raise ConfigError(f"--write: expected a checkpoint of your own; {one_line(model)} is {what}")
    return path


def write_settings(path: Path, scale: float, levels: str | None, record: dict[str, Any]) -> str:
    """Put the logit scale, and levels if any are given, into a checkpoint's recommended settings; the weights stay as they are.

    Args:
        path: the checkpoint's description.
        scale: fitted for these levels.
        levels: as of ``--levels``; a JSON file's lists are copied. None: the checkpoint's own stay.
        record: of the held-out images, see :mod:`rdc.decisions.held_out`.

    Returns:
        What was written, for people.
    """
    from rdc.method.levels import parse_levels
    from rdc.models.descriptions import read_description, update_info

    recommended = (read_description(path).get("info") or {}).get("classifier") or {}
    new: dict[str, Any] = {"logit_scale": scale}
    if levels is not None:
        new["levels"] = parse_levels(levels).to_json() if levels.endswith(".json") else levels
    known = {key: value for key, value in record.items() if key != "why"} | {"logit_scale": scale}
    update_info(path, {"classifier": {**recommended, **new}, "calibration": known})
    return f"{'' if levels is None else f'levels {one_line(levels)}, '}logit scale {scale:.4g}"


def outcome(result: dict[str, Any]) -> str:
    """The figures of a calibration, for people."""
    ece, scale, abstention = result["ece"], result["logit_scale"], result["abstention"]
    lines = [
        f"logit scale {scale['before']:.4g} -> {scale['fitted']:.4g} ({result['fitted_on']} held-out images)",
        f"calibration error {100 * ece['before']:.1f} % -> {100 * ece['fitted']:.1f} % ({result['tested_on']} test images, accuracy "
        f"{100 * result['accuracy']:.1f} %)",
    ]
    count = result["fitted_on"]
    if result["all_held_out_right"]:
        lines.append(
            f"all {count} held-out images are classified right: no scale fits best, and the one taken "
            f"makes their mean confidence {100 * (count + 1) / (count + 2):.1f} %. More held-out images (--n, --holdout) would say more"
        )
    if abstention["threshold"] is None:
        lines.append(
            f"no threshold brings the error rate of the held-out images down to {100 * abstention['risk']:g} %"
        )
    elif abstention["error_rate"] is not None:
        lines.append(
            f"abstaining below confidence {abstention['threshold']:.3f}: {100 * abstention['coverage']:.1f} % decided, "
            f"{100 * abstention['error_rate']:.1f} % of these wrong"
        )
    for name, kind in result.get("ood", {}).get("kinds", {}).items():
        lines.append(f"AUROC against {one_line(name)}: {_listed(kind['auroc'])}")
        attacked = {key: value for key, value in kind.get("under_attack", {}).items() if key != "images"}
        if attacked:
            lines.append(f"  its score under attack: {_listed(attacked)}")
    return "\n".join(lines)


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in values.items())
