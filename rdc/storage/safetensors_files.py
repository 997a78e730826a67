"""Safetensors content, whose header is looked at before anything is made of it.

Source: https://github.com/huggingface/safetensors, "Format": the header's length (8 bytes), the header (JSON: name -> dtype, shape,
offsets), the numbers. Offsets that overlap, leave gaps or point outside are refused by the safetensors library.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rdc.errors import RdcError, one_line
from rdc.storage.reading import reading

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["is_safetensors", "parse_safetensors"]

_HEADER = 8 * 2**20  # bytes; a tensor takes about 100
_TENSORS, _AXES, _LONGEST_NAME = 20_000, 64, 1000


def is_safetensors(head: bytes) -> bool:
    """Whether the first nine bytes of a file are those of safetensors: a length (8 bytes), then JSON.

    The length comes first and may start like a pickle or a zip file, so this is to be asked before those.
    """
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def parse_safetensors(content: bytes, name: str, error: type[RdcError]) -> dict[str, Tensor]:
    """All tensors in ``content``, on the CPU.

    Args:
        content: the file.
        name: what to call it in errors.
        error: the class to raise.

    Raises:
        RdcError: (of the class given) truncated, damaged, two tensors of one name, or more than 20,000 tensors.
    """
    import safetensors.torch

    advice = "It is truncated, damaged or another file: copy or convert it again"
    with reading(name, error, f"a safetensors file ({len(content):,} bytes)", advice):
        length = int.from_bytes(content[:8], "little")
        if len(content) < 10 or not 2 <= length <= min(len(content) - 8, _HEADER):
            raise ValueError(f"a header of {length:,} bytes; at most {_HEADER:,}, and no more than the file")
        header = json.loads(content[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique)
        if not isinstance(header, dict) or len(header) > _TENSORS:
            raise ValueError(f"the header must be an object of at most {_TENSORS:,} tensors")
        for tensor, description in header.items():
            shape = description.get("shape", ()) if isinstance(description, dict) else None
            if len(tensor) > _LONGEST_NAME or not isinstance(shape, (list, tuple)) or len(shape) > _AXES:
                raise ValueError(
                    f"{one_line(tensor, 60)}: its name is too long, or it has no shape of at most {_AXES} axes"
                )
        return safetensors.torch.load(content)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("two entries of one name in the header")
    return made
