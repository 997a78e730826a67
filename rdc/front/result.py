"""What ``rdc.attack`` and ``rdc.evaluate`` hand back."""

from __future__ import annotations

import dataclasses
import html
import os
from pathlib import Path

import torch
from torch import Tensor

from rdc.contracts import Defence
from rdc.evaluation import Evaluation
from rdc.reports import text_report, write_reports
from rdc.reports.words import interval, percent, rate, wording
from rdc.terminal.plain_text import printable

__all__ = ["EvaluationResult"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EvaluationResult(Evaluation):
    """A finished run, as ``rdc.attack`` and ``rdc.evaluate`` give it: all of
    :class:`rdc.evaluation.Evaluation`, and short ways to it.

    Args:
        classifier: what was attacked.
        folder: where the run is kept; None: nowhere, and ``out`` names nothing that is there.
    """

    classifier: Defence
    folder: Path | None

    @property
    def accuracy(self) -> float:
        """Share of images right when clean and under every attack; without attacks, when clean.

        Against fresh noise an image counts as right if it is in every submission.
        """
        robust = self.figures.robust.accuracy
        return self.clean_accuracy if robust is None else robust

    @property
    def clean_accuracy(self) -> float:
        """Share of images that are right as they are."""
        return self.figures.clean.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of :attr:`accuracy` over images."""
        return self.figures.robust.ci95 or self.figures.clean.ci95

    @property
    def clean(self) -> Tensor:
        """The images that were attacked, [n, C, H, W] float32 in [0, 1], on the classifier's device."""
        return self.dataset.pixels().to(self.classifier.device)

    @property
    def adversarial(self) -> Tensor:
        """Of each image the most damaging one found, [n, C, H, W] float32 in [0, 1], on the classifier's device."""
        return torch.from_numpy(self.x_adv).to(self.classifier.device)

    def summary(self) -> str:
        """Every figure with its interval, and the flags that were raised, as text of a few lines."""
        return text_report(self)

    def write_report(self, folder: str | os.PathLike[str]) -> Path:
        """Write report.html, report.md, report.json and model_info.json.

        Args:
            folder: made when missing; files of these names are replaced.

        Returns:
            The path of report.html.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        return write_reports(dataclasses.replace(self, out=Path(folder)), self.classifier)["report.html"]

    def __repr__(self) -> str:
        report = self.figures
        attacked = report.robust.accuracy is not None
        robust = f"robust {rate(report.robust)} at {wording(self).budget}, " if attacked else ""
        names = f"{printable(report.model, 40)} on {printable(report.dataset, 40)}"
        return f"<{names}: {robust}clean {rate(report.clean)}, {report.n} images>"

    def _repr_html_(self) -> str:
        """The figures as a table, for notebooks."""
        report = self.figures
        rows = [("clean", report.clean.accuracy, report.clean.ci95)]
        rows += [(f"after {attack.name}", attack.accuracy, attack.ci95) for attack in report.attacks]
        if report.robust.accuracy is not None:
            rows.append(("robust to all", report.robust.accuracy, report.robust.ci95 or (0.0, 1.0)))
        lines = "".join(
            f"<tr><td>{html.escape(printable(name))}</td><td>{percent(value)}</td><td>{interval(ends)}</td></tr>"
            for name, value, ends in rows
        )
        flags = "".join(
            f"<li>{flag.severity}: {flag.name} ({html.escape(printable(flag.evidence))})</li>" for flag in report.flags
        )
        head = "<tr><th></th><th>accuracy</th><th>95 % interval</th></tr>"
        return f"<p>{html.escape(repr(self))}</p><table>{head}{lines}</table>" + (f"<ul>{flags}</ul>" if flags else "")
