"""What the operands of multihead_loss must be, the same for every backend."""

from __future__ import annotations

from torch import Tensor

from rdc.errors import InputError

__all__ = ["check_operands"]


def check_operands(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> None:
    """Arguments as of :func:`rdc.ops.multihead_loss.multihead_loss`.

    Raises:
        InputError: dimensions, types, devices or sizes do not fit together.
    """
    tensors = {"h": h, "weight": weight, "bias": bias, "target": target, "level_weight": level_weight}
    dims = {"h": 4, "weight": 4, "bias": 1, "target": 4, "level_weight": 1}
    for name, t in tensors.items():
        if t.dim() != dims[name]:
            raise InputError(
                f"multihead_loss: expected {name} with {dims[name]} dimensions; got shape {tuple(t.shape)}."
            )
        if not t.dtype.is_floating_point:
            raise InputError(
                f"multihead_loss: expected {name} in a floating type; got {t.dtype}. Convert it with .float()."
            )
        if t.device != h.device:
            raise InputError(f"multihead_loss: h is on {h.device}, but {name} on {t.device}. Move them to one device.")
    rows, c, height, width = h.shape
    outputs, channels, levels = weight.shape[0], target.shape[1], level_weight.shape[0]
    if c < 1 or height < 1 or width < 1:
        raise InputError(f"multihead_loss: expected h [N*T, c, H, W] with c, H, W >= 1; got {tuple(h.shape)}.")
    if weight.shape[1] != c or weight.shape[2] != 3 or weight.shape[3] != 3:
        raise InputError(
            f"multihead_loss: expected weight [K*C, {c}, 3, 3] for h of {c} channels; got {tuple(weight.shape)}."
        )
    if bias.shape[0] != outputs:
        raise InputError(
            f"multihead_loss: expected bias [{outputs}], one for each row of weight; got {tuple(bias.shape)}."
        )
    if target.shape[0] != rows or target.shape[2] != height or target.shape[3] != width:
        raise InputError(
            f"multihead_loss: expected target [{rows}, C, {height}, {width}] to go with h; got {tuple(target.shape)}."
        )
    if channels < 1 or outputs < 1 or outputs % channels:
        raise InputError(
            f"multihead_loss: expected weight with K*C >= 1 rows, a multiple of target's {channels} channels; got {outputs} rows."
        )
    if levels < 1 or rows % levels:
        raise InputError(f"multihead_loss: h has {rows} rows, which is not a multiple of the {levels} level weights.")
