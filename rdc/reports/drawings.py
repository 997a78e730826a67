"""Every picture (PNG) and plot (SVG) of the HTML page, drawn before the page is laid out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rdc.evaluation import Evaluation, accuracy_per_step
from rdc.reports.pictures import Gallery, difference_picture, picture
from rdc.reports.plots import losses_plot, steps_plot
from rdc.reports.progress_section import progress_plot
from rdc.reports.svg import Plot

__all__ = ["Drawings", "draw"]


@dataclasses.dataclass(frozen=True)
class Drawings:
    """What the page shows; pictures are PNG.

    Args:
        rows: m positions in the evaluation: the images that are shown, in order.
        clean, adversarial, differences: m pictures each; without attacks the last two are not shown.
        maximized: after likelihood maximisation or another purifier; None without.
        gain: factor by which differences are amplified.
        grey: whether differences are of grey images, so that white is no change.
        steps: accuracy against attack steps; None without attacks.
        losses: position -> class losses over noise levels, of some images.
        progress: accuracy against steps and queries, a curve for each attack; None where none made a step.
    """

    rows: Sequence[int]
    clean: Sequence[bytes]
    adversarial: Sequence[bytes]
    differences: Sequence[bytes]
    maximized: Sequence[bytes] | None
    gain: float
    grey: bool
    steps: Plot | None
    losses: Mapping[int, Plot]
    progress: Plot | None = None


def draw(evaluation: Evaluation, gallery: Gallery) -> Drawings:
    """Draw the page's pictures.

    Args:
        evaluation: a finished run.
        gallery: its chosen images.
    """
    report, attacked = evaluation.figures, bool(evaluation.record.identity.settings.attacks)
    differences = gallery.adversarial - gallery.clean
    steps, losses = None, {}
    if attacked:
        steps = steps_plot(accuracy_per_step(report.attacks, evaluation.records), report.clean, report.robust)
    for row, (clean, adversarial) in gallery.losses.items():
        record = evaluation.records[row]
        decided = (record.clean.predicted, record.adversarial.predicted if record.adversarial else None)
        losses[row] = losses_plot(gallery.sigma, clean, adversarial, record.label, decided, evaluation.class_names)
    return Drawings(
        rows=gallery.rows,
        clean=[picture(image) for image in gallery.clean],
        adversarial=[picture(image) for image in gallery.adversarial] if attacked else [],
        differences=[difference_picture(difference, gallery.gain) for difference in differences] if attacked else [],
        maximized=None if gallery.maximized is None else [picture(image) for image in gallery.maximized],
        gain=gallery.gain,
        grey=differences.shape[1] == 1,
        steps=steps,
        losses=losses,
        progress=progress_plot(report.attacks),
    )
