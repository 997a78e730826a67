"""Certified accuracy against the l_2 radius, with intervals, flags, as JSON, Markdown and a plot."""

from __future__ import annotations

import bisect
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from rdc.certification.records import CertifiedImage, RunRecord
from rdc.plots.drawing import drawing, new_figure
from rdc.statistics import clopper_pearson_lower, wilson_interval
from rdc.storage.json_records import JsonObject

__all__ = ["RADII", "certified_plot", "markdown", "summarize"]

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  #: of the table, l_2 in [0, 1] pixel units
_INK, _MUTED, _LINE, _BLUE, _RED = "#1b2330", "#667085", "#e4e7ec", "#2456c8", "#c0392b"


def summarize(run: RunRecord, images: Sequence[CertifiedImage], largest: float) -> JsonObject:
    """report.json's content.

    Args:
        run: how the run came about.
        images: all of them, in order.
        largest: the radius of an image whose votes are all for its class.

    Returns:
        ``n``, ``certified`` (accuracy at each of :data:`RADII`), ``abstained``, ``mean_radius`` (0 where wrong), ``largest_radius``,
        ``attacked`` (accuracy at each radius of the attack, and the images that contradict their certificate), ``flags``, the
        settings and what is smoothed.
    """
    n = len(images)
    rows = [_rate(sum(image.right and image.radius > radius for image in images), n) for radius in RADII]
    attacked = [_attacked(images, place) for place in range(len(images[0].attacks))]
    return {
        "schema": run.identity.schema,
        "command": run.command,
        "commits": list(run.commits),
        "versions": run.versions,
        "settings": run.identity.settings,
        "base": run.identity.base,
        "weights": run.identity.weights,
        "images": run.identity.images,
        "n": n,
        "certified": [{"radius": radius, **row} for radius, row in zip(RADII, rows, strict=True)],
        "abstained": sum(image.abstained for image in images),
        "wrong": sum(not image.abstained and not image.right for image in images),
        "mean_radius": sum(image.radius for image in images if image.right) / n,
        "largest_radius": largest,
        "network_evaluations": sum(image.network_evaluations for image in images),
        "attacked": attacked,
        "flags": [*_null_labels(run.identity.base), *_flags(images, attacked, largest)],
    }


def _rate(count: int, n: int) -> JsonObject:
    return {"images": count, "accuracy": count / n, "ci95": list(wilson_interval(count, n))}


def _attacked(images: Sequence[CertifiedImage], place: int) -> JsonObject:
    """One radius of the attack.

    An image is ``below`` if its certified class has not the most votes at an attacked image that lies inside its certificate, and
    ``contradicted`` if that class has demonstrably no majority there (one-sided, 0.1 %).
    """
    radius = images[0].attacks[place].radius
    below, contradicted = [], []
    for image in images:
        attack = image.attacks[place]
        if image.abstained or attack.distance >= image.radius:
            continue
        if attack.predicted != image.selected:
            below.append(image.image)
        if clopper_pearson_lower(attack.votes - attack.votes_for_selected, attack.votes, 0.001) > 0.5:
            contradicted.append(image.image)
    certified = sum(image.right and image.radius > radius for image in images)
    return {
        "radius": radius,
        **_rate(sum(image.attacks[place].right for image in images), len(images)),
        "certified": certified,
        "below": below,
        "contradicted": contradicted,
    }


def _null_labels(base: JsonObject) -> list[JsonObject]:
    lines = base.get("null_label") or []
    return [{"severity": "warning", "name": "null-label-in-doubt", "evidence": line} for line in lines]


def _flags(images: Sequence[CertifiedImage], attacked: Sequence[JsonObject], largest: float) -> list[JsonObject]:
    flags = []
    for row in attacked:
        if row["contradicted"] or row["images"] < row["certified"]:
            flags.append(
                {
                    "severity": "error" if row["contradicted"] else "warning",
                    "name": "attack-below-certificate",
                    "evidence": f"l_2 {row['radius']:g}: {row['images']} images right under attack, {row['certified']} certified; "
                    f"{len(row['contradicted'])} contradict their certificate",
                }
            )
    all_votes = sum(image.right and image.radius >= largest for image in images)
    if 2 * all_votes > len(images):
        flags.append(
            {
                "severity": "info",
                "name": "limited-by-votes",
                "evidence": f"{all_votes} of {len(images)} images have every vote: more votes (--n) would certify larger radii",
            }
        )
    return flags


def markdown(report: JsonObject) -> str:
    """report.md, which is also what the command prints."""
    settings = report["settings"]
    noise = (
        "" if settings["method"] == "plain" else f", {settings['noise']} draws, levels: {len(report['base']['sigma'])}"
    )
    lines = [
        f"{settings['method']} of {settings['model']}, sigma {settings['sigma']:g} in [0, 1] pixels{noise}; {report['n']} images of "
        f"{settings['dataset']} ({settings['split']}), from {settings['start']} on",
        f"n0 = {settings['n0']}, n = {settings['n']}, alpha = {settings['alpha']:g} (for each image); no radius above "
        f"{report['largest_radius']:.3f} can be certified",
        "",
        "| l_2 radius | certified accuracy | 95 % interval | under attack |",
        "|---|---|---|---|",
    ]
    attacks = {row["radius"]: row for row in report["attacked"]}
    for radius in sorted({row["radius"] for row in report["certified"]} | set(attacks)):
        row = next((row for row in report["certified"] if row["radius"] == radius), None)
        share = "| | |" if row is None else f"| {100 * row['accuracy']:.1f} % | {_ends(row)} |"
        attack = f"{100 * attacks[radius]['accuracy']:.1f} % {_ends(attacks[radius])}" if radius in attacks else ""
        lines.append(f"| {radius:g} {share} {attack} |")
    lines += [
        "",
        f"abstained: {report['abstained']}; wrong: {report['wrong']}; mean certified radius {report['mean_radius']:.3f} (0 where wrong)",
        *(f"{flag['severity']}: {flag['name']} ({flag['evidence']})" for flag in report["flags"]),
    ]
    return "\n".join(lines) + "\n"


def _ends(row: JsonObject) -> str:
    low, high = row["ci95"]
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


@drawing()
def certified_plot(curves: Sequence[tuple[str, Sequence[CertifiedImage]]]) -> bytes:
    """Certified accuracy against the radius with its 95 % band, and above it what an attack left, as PNG.

    Args:
        curves: (name, images) of each run.
    """
    figure = new_figure(7.2, 4.0, dpi=144, layout="constrained")
    axes = figure.subplots()
    colours = (_BLUE, "#c05a2b", "#3c8262", "#7d4f9e", "#a08a1f", "#8895a3", "#b5477e", "#333333")
    for place, (name, images) in enumerate(curves):
        _draw(axes, name, images, colours[place % len(colours)])
    axes.set(ylim=(0, 102), xlabel="l_2 radius in [0, 1] pixels", ylabel="images right (%)")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw(axes: Any, name: str, images: Sequence[CertifiedImage], colour: str) -> None:
    n = len(images)
    radii = sorted(image.radius for image in images if image.right)
    x = np.concatenate([[0.0], radii, radii[-1:] or [0.0]])
    left = [len(radii) - bisect.bisect_right(radii, at) if at else len(radii) for at in x[:-1]] + [0]
    ends = [wilson_interval(count, n) for count in left]
    axes.step(
        x, [100 * count / n for count in left], where="post", color=colour, linewidth=1.8, label=f"{name}: certified"
    )
    axes.fill_between(
        x,
        [100 * low for low, _ in ends],
        [100 * high for _, high in ends],
        step="post",
        color=colour,
        alpha=0.12,
        linewidth=0,
    )
    attacks = [
        (row.radius, sum(image.attacks[at].right for image in images)) for at, row in enumerate(images[0].attacks)
    ]
    if attacks:
        axes.plot(
            [radius for radius, _ in attacks], [100 * right / n for _, right in attacks], color=colour, marker="o", markersize=4,
            linestyle=(0, (4, 3)), linewidth=1.2, label=f"{name}: right under attack",
        )  # fmt: skip
