"""The page's pictures: a column for each image on a wide page, a row for each on a phone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rdc.evaluation import Evaluation
from rdc.reports.drawings import Drawings
from rdc.reports.tags import escaped, image, section, tag

__all__ = ["pictures_section"]

_UNCALIBRATED = (
    "* The model's own probabilities: nobody has fitted them to how often such answers are right, and 100 % does not mean certain. "
    "For diffusion classifiers, rdc calibrate does."
)


def pictures_section(evaluation: Evaluation, drawings: Drawings, plain: bool) -> str:
    """Chosen images, what attacks made of them, the change, and what was classified.

    Args:
        evaluation: a finished run.
        drawings: its pictures.
        plain: the model is no diffusion classifier and maximises no likelihood, so nothing is said of that.
    """
    attacked, names = bool(evaluation.record.identity.settings.attacks), evaluation.class_names
    records = [evaluation.records[row] for row in drawings.rows]
    raised = {flag.name for flag in evaluation.figures.flags}
    calibrated = "logit_scale" in evaluation.record.identity.classifier and "uncalibrated-confidence" not in raised

    def decided(pngs: Sequence[bytes], logits: np.ndarray, alt: str) -> list[str]:
        shown = zip(drawings.rows, pngs, strict=True)
        return [image(png, alt) + _verdict(evaluation, row, logits[row], calibrated) for row, png in shown]

    lines = {
        "true class": [
            f"<b>{escaped(names[record.label])}</b><br>{tag('span', 'image ' + str(record.image), 'muted')}"
            for record in records
        ],
        "clean": decided(drawings.clean, evaluation.clean_logits, "clean"),
    }
    if attacked:
        lines["adversarial"] = decided(drawings.adversarial, evaluation.adversarial_logits, "adversarial")
        gain = tag("span", f"× {drawings.gain:.3g}", "muted")
        lines[f"difference<br>{gain}"] = [image(png, "difference") for png in drawings.differences]
    if drawings.maximized is not None:
        lines["after LM"] = [image(png, "after likelihood maximisation") for png in drawings.maximized]
    return section("Pictures", " ".join(_about(evaluation, drawings, plain, calibrated)), _grid(lines))


def _grid(lines: dict[str, list[str]]) -> str:
    """Names of the lines, then image by image; the style sheet fills columns, or rows on a phone."""
    images = zip(*lines.values(), strict=True)
    cells = [tag("div", name, "name") for name in lines]
    cells += [
        tag("div", cell, "cell first" if place == 0 else "cell") for entry in images for place, cell in enumerate(entry)
    ]
    count = len(next(iter(lines.values())))
    return f'<div class="pictures" style="--lines:{len(lines)};--images:{count}">' + "\n".join(cells) + "</div>"


def _about(evaluation: Evaluation, drawings: Drawings, plain: bool, calibrated: bool) -> list[str]:
    attacked = bool(evaluation.record.identity.settings.attacks)
    records = [evaluation.records[row] for row in drawings.rows]
    about = ["Under each image: the decision and its probability."]
    if not calibrated:
        about.append(_UNCALIBRATED)
    if attacked:
        colours = "white is no change, red brighter, blue darker" if drawings.grey else "mid-grey is no change"
        about.append(f"Differences are amplified {drawings.gain:.3g} times: {colours}.")
        about.append(f"Full colour is a change of {255 / drawings.gain:.3g}/255.")
        if any(record.robust is False and record.clean.ever_right for record in records):
            about.append("Images the attack broke come first; of robust ones the most damaging attempt is shown.")
    if drawings.maximized is not None:
        what = "adversarial" if attacked else "clean"
        about.append(f"After LM: the {what} image as likelihood maximisation hands it to the classifier.")
    elif not plain:
        about.append("This classifier does no likelihood maximisation, so there is no such picture.")
    return about


def _verdict(evaluation: Evaluation, row: int, logits: np.ndarray, calibrated: bool) -> str:
    record, names = evaluation.records[row], evaluation.class_names
    if not np.isfinite(logits).all():
        return tag("span", "no decision", "wrong") + f"<br>{tag('span', 'not finite', 'muted')}"
    k = int(logits.argmax())
    shares = np.exp(logits.astype(np.float64) - logits.max())
    name = tag("span", escaped(names[k]), "right" if k == record.label else "wrong")
    return f"{name}<br>{tag('span', f'{100 * shares[k] / shares.sum():.0f} %' + ('' if calibrated else '*'), 'muted')}"
