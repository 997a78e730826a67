"""Classes as prompts: a file of them, and what text encoders make of it, once."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdc.errors import CheckpointError, DataError, one_line
from rdc.models.pipelines.parts import Pipeline, library
from rdc.storage.reading import read_content, reading

__all__ = ["TextTable", "embedded_prompts", "read_prompts"]

_CLASSES, _PROMPTS, _BYTES = 100_000, 1_000_000, 64 * 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class TextTable:
    """Embedded prompts, a row a class, and a last one for the empty prompt.

    Args:
        states: [K + 1, L, E].
        pooled: [K + 1, P], or None where the model takes none.
    """

    states: Tensor
    pooled: Tensor | None


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Class -> its prompts, classes in the order in which they come first.

    Args:
        path: CSV in UTF-8, a line "class,prompt" a prompt; several lines may have one class. A first line ``class,prompt`` is left out.

    Raises:
        DataError: no such file, a line without two fields, an empty class or prompt, or fewer than two classes.
    """
    with reading(path, DataError, "prompts as CSV: class,prompt"):
        text = read_content(path, DataError, "prompts as CSV: class,prompt", _BYTES).decode("utf-8-sig")
        found: dict[str, list[str]] = {}
        for number, row in enumerate(csv.reader(text.splitlines()), 1):
            if not row or (number == 1 and [field.strip().lower() for field in row] == ["class", "prompt"]):
                continue
            fields = [field.strip() for field in row]
            if len(fields) != 2 or not all(fields):
                raise DataError(
                    f'{path}: line {number}: expected class,prompt (a prompt with a comma in "quotes"); got {one_line(row, 80)}'
                )
            found.setdefault(fields[0], []).append(fields[1])
            if number > _PROMPTS or len(found) > _CLASSES:
                raise DataError(f"{path}: expected at most {_PROMPTS:,} prompts of {_CLASSES:,} classes")
    if len(found) < 2:
        raise DataError(f"{path}: expected prompts of at least two classes; got {len(found)}")
    return found


def embedded_prompts(pipeline: Pipeline, prompts: dict[str, list[str]], width: int) -> TextTable:
    """The prompts, embedded; those of a class are averaged.

    Args:
        pipeline: with text encoders.
        prompts: class -> prompts.
        width: E that the model takes.

    Raises:
        CheckpointError: text encoders that are missing, or do not give what the model takes.
    """
    if not pipeline.text:
        raise CheckpointError(
            f"{pipeline.root}: expected a text encoder, which prompts need; model_index.json has none"
        )
    encoders = [_Encoder(*parts) for parts in pipeline.text]
    rows = [*prompts.values(), [""]]
    joint = len(encoders) > 1 or encoders[0].kind == "CLIPTextModelWithProjection"
    states, pooled = [], []
    for row in rows:
        one = _joint(encoders, row, width) if joint else (encoders[0].states(row), None)
        states.append(one[0].mean(0))
        if one[1] is not None:
            pooled.append(one[1].mean(0))
    table = torch.stack(states)
    if table.shape[2] != width:
        raise CheckpointError(
            f"{pipeline.root}: expected text embeddings of width {width}, which the model takes; got {table.shape[2]}"
        )
    return TextTable(table, torch.stack(pooled) if pooled else None)


class _Encoder:
    """A text encoder with its tokenizer."""

    def __init__(self, kind: str, folder: Path, tokenizer: Path) -> None:
        transformers: Any = library("transformers")
        self.kind = kind
        with reading(folder, CheckpointError, f"a {kind} of transformers"):
            options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
            self.model = getattr(transformers, kind).from_pretrained(folder, **options).float().eval()
        with reading(tokenizer, CheckpointError, "a tokenizer of transformers"):
            name = "T5TokenizerFast" if kind == "T5EncoderModel" else "CLIPTokenizer"
            self.tokenizer = getattr(transformers, name).from_pretrained(tokenizer, local_files_only=True)

    def tokens(self, prompts: list[str]) -> Tensor:
        length = min(self.tokenizer.model_max_length, 77)
        ids: Tensor = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    @torch.no_grad()
    def states(self, prompts: list[str]) -> Tensor:
        """The last hidden states [P, L, E], normalised as the model ends."""
        found: Tensor = self.model(self.tokens(prompts))[0]
        return found

    @torch.no_grad()
    def penultimate(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """The hidden states before the last layer [P, L, E], and the pooled projection [P, D]."""
        found = self.model(self.tokens(prompts), output_hidden_states=True)
        return found.hidden_states[-2], found[0]


def _joint(encoders: list[_Encoder], prompts: list[str], width: int) -> tuple[Tensor, Tensor]:
    """Several encoders as Stable Diffusion 3 joins them: CLIP's side by side, filled up with zeros, T5's behind them; CLIP's pooled ones
    side by side. (Esser et al. 2024, arXiv 2403.03206, figure 2.) Zeros stand for a T5 that is left out, as they did in training."""
    clip = [encoder.penultimate(prompts) for encoder in encoders if encoder.kind != "T5EncoderModel"]
    states = torch.cat([one[0] for one in clip], 2)
    if states.shape[2] > width:
        raise CheckpointError(
            f"text encoders: expected widths of at most {width} together, which the model takes; got {states.shape[2]}"
        )
    states = torch.nn.functional.pad(states, (0, width - states.shape[2]))
    rest = [encoder.states(prompts) for encoder in encoders if encoder.kind == "T5EncoderModel"]
    if any(one.shape[2] != width for one in rest):
        raise CheckpointError(
            f"text encoders: expected a T5 of width {width}, which the model takes; got {rest[0].shape[2]}"
        )
    behind = rest or [torch.zeros_like(states)]
    return torch.cat([states, *behind], 1), torch.cat([one[1] for one in clip], 1)
