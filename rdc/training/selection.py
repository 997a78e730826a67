"""Which averaged weights of a run are kept: those that held-out images stand best by under a short attack.

Robust training goes on fitting its images when what it learns no longer holds for others (Rice, Wong & Kolter, arXiv 2002.11569);
the last weights may then be worse than earlier ones. Every so many images the averaged weights are attacked on images that were
left out, and the best so far are what the run exports. The short attack ranks weights; it says nothing of how robust they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from rdc.attacks import ThreatModel, apgd
from rdc.attacks.stadv import FlowThreat, stadv
from rdc.attacks.threat_model import AttackResult
from rdc.data import Dataset
from rdc.errors import CheckpointError, ConfigError
from rdc.storage.files import atomic_write
from rdc.storage.json_files import read_json, write_json
from rdc.training.state import SCORES, SELECTED, RunFolder
from rdc.training.state_file import State, pack_state, read_state
from rdc.training.threats import parse_threats

__all__ = ["SelectionTerms", "Selector"]

_BATCH = 32  # images attacked together


@dataclasses.dataclass(frozen=True)
class SelectionTerms:
    """How weights are chosen.

    Args:
        every: images of training between two trials, at least 1; 0, the default, is none and refused.
        threats: what the held-out images are attacked under, as :func:`rdc.training.threats.parse_threats` reads it; of a range
            the largest radius. The score is the mean over threats.
        images: held-out images, the same number of each class, at least 1.
        steps: of each attack (APGD-CE; StAdv under flows), at least 1.

    Raises:
        ConfigError: a setting is out of range.
    """

    every: int = 0
    threats: str = "linf:8/255"
    images: int = 250
    steps: int = 10

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every: expected 1 or more images of training between trials; got {self.every}")
        for name in ("images", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more; got {getattr(self, name)}")
        parse_threats(self.threats)

    def attacked(self) -> list[tuple[str, ThreatModel | FlowThreat]]:
        """Name and threat of every column."""
        found: list[tuple[str, ThreatModel | FlowThreat]] = []
        for threat in parse_threats(self.threats):
            made = FlowThreat(threat.high) if threat.norm == "flow" else ThreatModel(threat.norm, threat.high)
            found.append((f"{threat.norm}:{threat.high:.6g}", made))
        return found


class Selector:
    """Scores averaged weights during a run and keeps the best, in the run's folder.

    What it does depends on weights and steps alone, so that a run that was stopped keeps what an uninterrupted one keeps.

    Args:
        terms: how.
        held: images that are not trained on.
        classifier: the network, with averaged weights -> what is attacked: pixels [N, C, H, W] -> logits [N, K].
        folder: of the run; weights that another run kept are refused.
    """

    def __init__(
        self,
        terms: SelectionTerms,
        held: Dataset,
        classifier: Callable[[nn.Module], Callable[[Tensor], Tensor]],
        folder: RunFolder,
    ) -> None:
        spread = np.linspace(0, len(held) - 1, min(terms.images, len(held))).astype(
            int
        )  # all classes, whatever the order
        self.terms, self.held, self.classifier = terms, held.subset(spread.tolist()), classifier
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None
        self.best_row: dict[str, Any] | None = None

    def resume(self, step: int) -> None:
        """Read what was kept up to ``step``.

        Raises:
            CheckpointError: it is damaged, or another run's.
        """
        scores, weights = self.folder.path / SCORES, self.folder.path / SELECTED
        if not step or not scores.exists() or not weights.exists():
            return
        state, description = read_state(weights)
        self.folder.expect_this_run(description)
        rows = read_json(scores, kind=list)
        kept = [row for row in rows if isinstance(row, dict) and row.get("step") == state.step]
        if not kept or not isinstance(kept[0].get("score"), (int, float)):
            raise CheckpointError(
                f"{scores}: expected the score of step {state.step}, whose weights are kept; got none. Delete both files"
            )
        self.best, self.best_row = state.tensors, kept[0]
        self.rows = [row for row in rows if isinstance(row, dict) and row["step"] <= max(step, state.step)]

    def due(self, step: int, batch: int, last: bool) -> bool:
        """Whether weights are scored after this step: when another ``every`` images are through, and at the end."""
        every = self.terms.every
        return last or step * batch // every > (step - 1) * batch // every

    def __call__(self, step: int, batch: int, network: nn.Module, averages: dict[str, Tensor]) -> dict[str, Any]:
        """Score and keep what is best.

        Args:
            step: steps done.
            batch: images of a step.
            network: with the averaged weights.
            averages: its parameters by name.

        Returns:
            The row of ``selection.json``: step, images, clean, robust (by threat), score.
        """
        row = {"step": step, "images": step * batch, **self._accuracies(network)}
        self.rows = [old for old in self.rows if old["step"] != step] + [row]
        if self.best_row is None or row["score"] >= self.best_row["score"]:
            self.best, self.best_row = {name: value.detach().cpu().clone() for name, value in averages.items()}, row
            blob = pack_state(State(step, dict(self.best)), self.folder.description)
            with atomic_write(self.folder.path / SELECTED) as file:
                file.write(blob)
        write_json(self.folder.path / SCORES, self.rows)
        return row

    def _accuracies(self, network: nn.Module) -> dict[str, Any]:
        model, device = self.classifier(network), next(network.parameters()).device
        pixels, labels, count = self.held.pixels().to(device), self.held.labels.to(device), len(self.held)
        clean, robust = 0, {}
        for column, (name, threat) in enumerate(self.terms.attacked()):
            standing = 0
            for begin in range(0, count, _BATCH):
                part = slice(begin, begin + _BATCH)
                ids = self.held.indices[part]
                images = (model, pixels[part], labels[part])
                if isinstance(threat, FlowThreat):
                    found: AttackResult = stadv(*images, threat, steps=self.terms.steps, seed=0, image_ids=ids)
                else:
                    found = apgd(*images, threat, steps=self.terms.steps, seed=0, image_ids=ids)
                standing += int(found.correct.sum())
                clean += int(found.clean_correct.sum()) if column == 0 else 0
            robust[name] = standing / count
        return {"clean": clean / count, "robust": robust, "score": round(sum(robust.values()) / len(robust), 9)}
