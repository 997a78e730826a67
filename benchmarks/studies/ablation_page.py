"""Tables and pictures of docs/ablations.md, from the cells that are kept."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.ablation_cells import (
    ATTACK_WORDS,
    EXPERIMENTS,
    defences,
    minutes,
    path_of,
    tuned_steps,
)
from rdc.plots.drawing import drawing, new_figure, plain_axes
from rdc.statistics import bootstrap_interval, paired_permutation_test, wilson_interval
from rdc.storage.files import atomic_write
from rdc.storage.json_files import read_json

__all__ = ["MARKER", "draw", "standing", "summary", "tables", "write"]

WIDTH = 150  # of a line of text on the page
MARKER = "<!-- below: written by benchmarks/studies/ablations.py -->"
GRADIENTS = Path(__file__).resolve().parents[1] / "results" / "gradients-64.json"
FIGURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "ablations.png"


def write(page: Path) -> None:
    """Tables behind the page's marker, and docs/images/ablations.png."""
    before, _, _ = page.read_text().partition(MARKER)
    with atomic_write(page, "w") as out:
        out.write(f"{before.rstrip()}\n\n{MARKER}\n\n{tables()}")
    draw()


def summary(cell: dict[str, Any]) -> str:
    """One line of a finished cell."""
    if "draws" in cell:
        return f"clean {_percent(cell['clean'])}, mean of {len(cell['draws'])} draws {100 * cell['mean']:.1f}  {cell['seconds']:.0f} s"
    return f"clean {_percent(cell['clean'])}  robust {_percent(cell['robust'])}  {cell['seconds']:.0f} s"


def tables() -> str:
    """Markdown: every experiment, what is missing with its cost, and what was tuned."""
    lines: list[str] = []
    for name in EXPERIMENTS:
        lines += [*_table(name), ""]
    lines += _gradients()
    return "\n".join(lines).rstrip() + "\n"


#: measure of rdc gradients -> what the row is called (docs/gradients.md has them all)
_MEASURES = {
    "redraws.cosine": "cosine of gradients between draws of the noise",
    "lipschitz_linf.reach": "radius 8/255 uses up this share of the margin (steepest slope found)",
    "path.cosine": "attack path: cosine of successive gradients",
    "path.first_order_ratio": "attack path: loss gained over first-order gain",
    "path.increase_fraction": "steps that raise the loss",
    "path.relative_curvature": "relative change of the gradient per pixel unit of path",
}


def _gradients() -> list[str]:
    """Medians over images, with their intervals, of rdc gradients on 64 images."""
    if not GRADIENTS.exists():
        return []
    found = read_json(GRADIENTS)
    models = found["models"]
    lines = [f"### Gradients on {found['settings']['n']} images", ""]
    lines += [
        "| median [95 %] | " + " | ".join(model["label"] for model in models) + " |",
        "|" + "---|" * (1 + len(models)),
    ]
    for measure, words in _MEASURES.items():
        cells = [_median(model["summary"].get(measure)) for model in models]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _median(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "no noise"
    low, high = summary["median_ci95"]
    return f"{summary['median']:.3g} [{low:.3g}, {high:.3g}]"


def cells_of(experiment: str) -> dict[str, dict[str, dict[str, Any]]]:
    """row -> attack -> cell, of an experiment's rows and every attack that was run on them, finished ones only."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in EXPERIMENTS[experiment].rows:
        for attack in (*ATTACK_WORDS, "redraws"):
            if path_of(row, attack).exists():
                found.setdefault(row, {})[attack] = read_json(path_of(row, attack))
    return found


def standing(cells: dict[str, dict[str, Any]], attacks: list[str]) -> np.ndarray:
    """Whether each image is right when clean and under every one of these attacks, [n]."""
    rows = [np.array([*cells[attack]["standing"]]) == "1" for attack in attacks]
    return np.logical_and.reduce(rows)


def _table(name: str) -> list[str]:
    experiment, kept = EXPERIMENTS[name], cells_of(name)
    attacks = [attack for attack in ATTACK_WORDS if any(attack in kept.get(row, {}) for row in experiment.rows)]
    several, wide = len(attacks) > 1, len(attacks) > 2
    head = ["defence", "clean", *(ATTACK_WORDS[attack] for attack in attacks), *["together"] * several]
    head += [] if wide else ["exact gradient: difference"]
    head += ["clean, ten draws (range)", "changed", "noise"] if experiment.redraws else []
    lines = [f"### {experiment.title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    apart = []
    for row in experiment.rows:
        mine = kept.get(row, {})
        if not any(attack in mine for attack in (*attacks, "redraws")):
            continue
        clean = next(iter(mine.values()))["clean"]
        values = [_named(row, experiment.default), f"{100 * clean['accuracy']:.1f}" if wide else _percent(clean)]
        values += [_percent(mine[attack]["robust"]) if attack in mine else "-" for attack in attacks]
        values += [_together(mine, [attack for attack in attacks if attack in mine])] * several
        difference = _difference(mine, kept.get(experiment.default, {}), row == experiment.default)
        values += [] if wide else [difference]
        values += _drawn(mine.get("redraws")) if experiment.redraws else []
        apart += [f"{defences()[row].words}: {difference}"] if wide and difference != "-" else []
        lines.append("| " + " | ".join(values) + " |")
    if apart:
        lines += ["", *_wrapped(f"Differences to the row in bold, exact gradient: {'; '.join(apart)}.")]
    return [*lines, *_missing(name, kept), *(_tuning() if name == "optimizers" else [])]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _named(row: str, default: str) -> str:
    words = defences()[row].words
    return f"**{words}**" if row == default else words


def _together(mine: dict[str, dict[str, Any]], attacks: list[str]) -> str:
    if len(attacks) < 2:
        return "-"
    return _rate(int(standing(mine, attacks).sum()), len(standing(mine, attacks)))


def _difference(mine: dict[str, dict[str, Any]], default: dict[str, dict[str, Any]], same: bool) -> str:
    if same or "exact" not in mine or "exact" not in default:
        return "-"
    a, b = (standing(cells, ["exact"]).astype(float) for cells in (mine, default))
    around, test = bootstrap_interval(a - b), paired_permutation_test(a, b)
    low, high = 100 * float(around.low[0]), 100 * float(around.high[0])
    return f"{100 * float((a - b).mean()):+.1f} [{low:+.1f}, {high:+.1f}], p = {test.p_value:.2g}"


def _drawn(cell: dict[str, Any] | None) -> list[str]:
    if cell is None:
        return ["-"] * 3
    draws = cell["draws"]
    return [
        f"{100 * cell['mean']:.1f} ({100 * min(draws):.1f} to {100 * max(draws):.1f})",
        f"{100 * cell['changed']:.1f} %",
        f"{cell['margin_noise']:.3f}",
    ]


def _missing(name: str, kept: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    experiment, known = EXPERIMENTS[name], defences()
    wanted = [
        (row, attack)
        for row in experiment.rows
        for attack in (*experiment.attacks, *["redraws"] * experiment.redraws)
        if attack not in kept.get(row, {}) and (known[row].lm or attack in ("exact", "redraws"))
    ]
    if not wanted:
        return []
    costs = [f"`{row}` {attack} {max(1, round(minutes(known[row], attack)))} min" for row, attack in wanted]
    command = f"`python -m benchmarks.studies.ablations --experiment {name} --cells ROW --attacks ATTACK`"
    text = f"Not run (minutes of one thread, estimated; {command}): {', '.join(costs)}."
    return ["", *_wrapped(text)]


def _tuning() -> list[str]:
    path = path_of("x", "y").parent / "tuned.json"
    if not tuned_steps():
        return []
    found = read_json(path)
    lines = [
        "",
        f"Step sizes tried on {found['n']} held-out images (`{found['attack']}`): images standing, clean in brackets, mean log-odds of",
        "being wrong that the attack reached. Of sizes that keep equally many, the lowest log-odds decide:",
        "",
    ]
    for name, sizes in found["grid"].items():
        tried = ", ".join(
            f"{size}/255: {hits['standing']} ({hits['clean']}) {hits['loss']:.2f}" for size, hits in sizes.items()
        )
        lines.append(f"- {name}: {tried}")
    return lines


def _percent(rate: dict[str, Any]) -> str:
    low, high = rate["ci95"]
    return f"{100 * rate['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _rate(hits: int, n: int) -> str:
    return _percent({"accuracy": hits / n, "ci95": wilson_interval(hits, n)})


#: panel -> title, axis, experiment, rows with their place on the axis
_PANELS: tuple[tuple[str, str, str, dict[str, dict[str, float]]], ...] = (
    (
        "Budget of likelihood maximisation",
        "eta, 1/255",
        "budget",
        {
            "N = 5": {"dc": 0, "eta-2": 2, "eta-4": 4, "rdc": 8, "eta-16": 16, "eta-32": 32},
            "N = 1": {"dc": 0, "n1-eta-2": 2, "n1-eta-4": 4, "n-1": 8, "n1-eta-16": 16, "n1-eta-32": 32},
        },
    ),
    ("Its steps", "N", "steps", {"RDC": {"dc": 0, "n-1": 1, "n-2": 2, "rdc": 5, "n-10": 10, "n-20": 20}}),
    (
        "Number of levels",
        "T'",
        "levels",
        {
            "0.08 to 0.7": {"dc": 4, **{f"ours-{count}": count for count in (1, 2, 8, 16, 32, 64, 125)}},
            "1e-4 to 3 (paper)": {f"paper-{count}": count for count in (1, 2, 4, 8, 16, 32, 64, 125)},
        },
    ),
)


def draw() -> None:
    """Clean and robust accuracy (exact gradient) against budget, steps and number of levels."""
    with drawing():
        figure = new_figure(11, 3.6)
        axes = figure.subplots(1, len(_PANELS), sharey=True)
        for axis, (title, words, name, series) in zip(axes, _PANELS, strict=True):
            kept = cells_of(name) | (cells_of("budget-1") if name == "budget" else {})
            for colour, (label, places) in enumerate(series.items()):
                _lines(axis, kept, dict(sorted(places.items(), key=lambda item: item[1])), f"C{colour}", label)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(words)
            axis.set_ylim(40, 100)
            plain_axes(axis)
            axis.legend(fontsize=7, loc="lower right")
        axes[-1].set_xscale("log", base=2)
        axes[-1].xaxis.set_major_formatter("{x:g}")
        axes[0].set_ylabel("accuracy, %")
        figure.tight_layout()
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(FIGURE) as file:
            figure.savefig(file, format="png", dpi=130)


def _lines(axis: Any, kept: dict[str, Any], places: dict[str, float], colour: str, label: str) -> None:
    rows = [row for row in places if "exact" in kept.get(row, {})]
    if len(rows) < 2:  # DC alone
        return
    for kind, style, words in (("clean", "--", "clean"), ("robust", "-", "l_inf 8/255, exact gradient")):
        rates = [kept[row]["exact"][kind] for row in rows]
        middle = [100 * rate["accuracy"] for rate in rates]
        below = [100 * (rate["accuracy"] - rate["ci95"][0]) for rate in rates]
        above = [100 * (rate["ci95"][1] - rate["accuracy"]) for rate in rates]
        shown = (below, above) if kind == "robust" else None
        axis.errorbar(
            [places[row] for row in rows], middle, shown,
            fmt=style, color=colour, marker="o", markersize=3.5, capsize=2, linewidth=1.2, label=f"{label}: {words}",
        )  # fmt: skip
