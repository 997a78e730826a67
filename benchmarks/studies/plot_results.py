"""Draw docs/images/benchmarks-*.svg from the files in benchmarks/results/, and bring the tables of docs/benchmarks.md up to date.

    python -m benchmarks.studies.plot_results

Files that are not there are left out. The page's tables stand between ``<!-- NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.starting import start
from rdc.costs import write_plot
from rdc.costs.table import milliseconds
from rdc.plots.drawing import drawing, new_figure
from rdc.storage.files import atomic_write
from rdc.storage.json_files import read_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS, IMAGES, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "images", ROOT / "docs" / "benchmarks.md"
INK, FAINT, BLUE, ORANGE = "#1f2933", "#8895a3", "#2f5d9b", "#c05a2b"


def _axes(columns: int, width: float = 8.6, height: float = 3.0) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rdc", "font.size": 8, "axes.edgecolor": FAINT})
    figure = new_figure(width, height)
    axes = figure.subplots(1, columns, squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e4e8ec", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes[0]


def _save(figure: Any, name: str) -> Path:
    path = IMAGES / f"benchmarks-{name}.svg"
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return path


def _where(about: dict[str, Any]) -> str:
    machine = about["machine"]
    return (
        f"{machine['cpu']}, {about['threads']} thread, torch {about['versions']['torch']}, commit {about['commit']}, {about['date']}; "
        f"{machine['gpu_label']}"
    )


# --- speed.json --------------------------------------------------------------------------------------------------------------


@drawing()
def plot_speed(found: dict[str, Any]) -> None:
    """Seconds an image of every contender, logarithmic: predictions and attack steps."""
    figure, axes = _axes(2, height=3.4)
    for axis, work in zip(axes, ("prediction", "attack step"), strict=True):
        rows = sorted(found[work]["contenders"].items(), key=lambda row: row[1]["seconds_per_image"])
        colours = [ORANGE if name.startswith("rdc") else INK if name == "paper" else FAINT for name, _ in rows]
        seconds = [row["seconds_per_image"] for _, row in rows]
        axis.barh([name for name, _ in rows], seconds, color=colours, height=0.62)
        for place, value in enumerate(seconds):
            axis.text(value * 1.08, place, f"{value:.3g} s", va="center", color=INK, fontsize=7)
        axis.set_xscale("log")
        axis.set_xlim(min(seconds) / 2, max(seconds) * 4)
        axis.set_title(f"one {work}: seconds an image", loc="left", fontsize=9)
    _save(figure, "speed")


def table_speed(found: dict[str, Any]) -> str:
    """Factors and totals."""
    lines = [
        f"{_where(found['about'])}; {found['clock']}.",
        "",
        "| | prediction | attack step (exact, DC) |",
        "|---|---|---|",
    ]
    for kind in ("factors", "against"):
        for name, row in found["prediction"][kind].items():
            step = found["attack step"][kind].get(name)
            words = f"**{name}**" if kind == "against" else name
            lines.append(f"| {words} | {_ratio(row)} | {_ratio(step) if step else ''} |")
    return "\n".join(lines)


def _ratio(row: dict[str, float]) -> str:
    return f"{row['ratio']:.3g}x [{row['lowest']:.3g}, {row['highest']:.3g}]"


# --- anytime.json -------------------------------------------------------------------------------------------------------------


@drawing()
def plot_anytime(found: dict[str, Any]) -> None:
    """Stated against measured disagreement, and what is saved."""
    figure, axes = _axes(2)
    rows = found["rows"]
    stated = [100 * row["stated_rate"] for row in rows]
    measured = [100 * row["disagreement"] for row in rows]
    low = [m - 100 * row["ci95"][0] for m, row in zip(measured, rows, strict=True)]
    high = [100 * row["ci95"][1] - m for m, row in zip(measured, rows, strict=True)]
    axes[0].plot([0, max(stated)], [0, max(stated)], color=FAINT, linewidth=0.8, label="stated")
    axes[0].errorbar(stated, measured, yerr=[low, high], fmt="o", color=BLUE, markersize=4, label="measured, 95 %")
    axes[0].set_xlabel("stated rate, %")
    axes[0].set_title("decisions that differ from the full one, %", loc="left", fontsize=9)
    axes[0].legend(frameon=False)
    axes[1].plot(stated, [row["mean_levels"] for row in rows], "o-", color=BLUE, markersize=4)
    axes[1].axhline(found["levels"], color=FAINT, linewidth=0.8)
    axes[1].set_ylim(0, found["levels"] * 1.08)
    axes[1].set_xlabel("stated rate, %")
    axes[1].set_title(f"levels looked at, of {found['levels']}", loc="left", fontsize=9)
    _save(figure, "anytime")


def table_anytime(found: dict[str, Any]) -> str:
    """Stated and measured rates, levels, seconds."""
    lines = [
        f"`{found['model']}`, calibrated on {found['calibration_images']} held-out training images;\n{_where(found['about'])}.",
        "",
        "| stated rate | differs from the full decision | n | levels | network passes | seconds against full | accuracy changes by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        seconds = found["seconds"].get(f"anytime {row['stated_rate']:g}")
        low, high = (100 * end for end in row["ci95"])
        change = [100 * row["accuracy_change"], *(100 * end for end in row["accuracy_change_ci95"])]
        lines.append(
            f"| {100 * row['stated_rate']:g} % | {100 * row['disagreement']:.2f} % [{low:.2f}, {high:.2f}] | {row['n']} | "
            f"{row['mean_levels']:.2f} of {found['levels']} | {row['mean_passes']:.1f} of {found['passes']} | "
            f"{seconds['ratio']:.2f}x fewer | {change[0]:+.2f} points [{change[1]:+.2f}, {change[2]:+.2f}] |"
        )
    return "\n".join(lines)


# --- scaling.json -------------------------------------------------------------------------------------------------------------


@drawing()
def plot_scaling(found: dict[str, Any]) -> None:
    """Seconds against images, levels, classes; peak memory against images."""
    figure, axes = _axes(4, width=10.4, height=2.7)
    for axis, what in zip(axes, ("images", "levels", "classes"), strict=False):
        for work, colour in (("prediction", BLUE), ("gradient", ORANGE)):
            rows = {int(count): seconds for count, seconds in found["seconds"][what][work].items()}
            axis.plot(list(rows), list(rows.values()), "o-", color=colour, markersize=3, linewidth=1, label=work)
        axis.set_xlim(0)
        axis.set_ylim(0)
        axis.set_xlabel(what)
        axis.set_title("seconds a call", loc="left", fontsize=9)
    axes[0].legend(frameon=False)
    memory = found["peak_mib"]
    for (what, values), style in zip(memory["by_images"].items(), ("o-", "o:", "o--"), strict=False):
        rows = {int(count): value for count, value in values.items()}
        axes[3].plot(
            list(rows), list(rows.values()), style, color=ORANGE, markersize=3, linewidth=1, label=what.split(",")[-1]
        )
    axes[3].legend(frameon=False, fontsize=6)
    axes[3].axhline(memory["memory_budget_mib"], color=FAINT, linewidth=0.8)
    axes[3].set_ylim(0)
    axes[3].set_xlabel("images")
    axes[3].set_title(f"peak MiB (budget {memory['memory_budget_mib']:g})", loc="left", fontsize=9)
    _save(figure, "scaling")


def table_scaling(found: dict[str, Any]) -> str:
    """Growth from the first to the last point, beside the growth of what is varied."""
    lines = [f"{_where(found['about'])}; {found['clock']}.", "", "| varied | prediction | gradient |", "|---|---|---|"]
    for what, works in found["seconds"].items():
        cells = []
        for work in ("prediction", "gradient"):
            rows = list(works[work].items())
            cells.append(f"{rows[0][1]:.3g} to {rows[-1][1]:.3g} s: {rows[-1][1] / rows[0][1]:.1f}x")
            span = f"{rows[0][0]} to {rows[-1][0]} {what}: {int(rows[-1][0]) / int(rows[0][0]):.0f}x"
        lines.append(f"| {span} | {cells[0]} | {cells[1]} |")
    memory = found["peak_mib"]
    counts = list(next(iter(memory["by_images"].values())))
    lines += ["", f"Peak memory of one gradient under a budget of {memory['memory_budget_mib']:g} MiB, MiB:", ""]
    lines += ["| | " + " | ".join(f"{count} images" for count in counts) + " |", "|" + "---|" * (len(counts) + 1)]
    lines += [
        f"| {what} | " + " | ".join(f"{values[count]:.0f}" for count in counts) + " |"
        for what, values in memory["by_images"].items()
    ]
    return "\n".join(lines)


# --- resident-memory.json -----------------------------------------------------------------------------------------------------


def table_resident(found: dict[str, Any]) -> str:
    """Growth of resident memory over the first call, by budget, before and now."""
    about, old = found["about"], found["before"]
    names = ("model", "work", "batch", "budget", "threads")
    before = {tuple(row[name] for name in names): row["first"]["peak"] for row in old["rows"]}
    lines = [
        f"{_where(about)}; before: commit {old['commit']}. MiB.",
        "",
        "| model | work | threads | images | budget | before | now |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for row in found["rows"]:
        key = tuple(row[name] for name in names)
        then, now = before.get(key), row["first"]["peak"]
        cells = [row["model"], row["work"], row["threads"], row["batch"], f"{row['budget']:g}"]
        cells += ["" if then is None else f"{then:.0f}", f"{now:.0f}: {now / row['budget']:.2f}x"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


# --- suite.json ---------------------------------------------------------------------------------------------------------------


def table_suite(found: dict[str, Any]) -> str:
    """Medians of every benchmark but the op's, which docs/kernels.md has."""
    op = [entry for entry in found["benchmarks"] if entry["name"].startswith("test_multihead_loss[")]
    where = (
        f"{_where(found['rdc'])}. {len(op)} more are the op's: [kernels.md](kernels.md#numbers)."
        if op
        else _where(found["rdc"])
    )
    lines = [
        where,
        "",
        "| benchmark | median | rounds | images/s | network passes/image |",
        "|---|---|---|---|---|",
    ]
    entries = [entry for entry in found["benchmarks"] if entry not in op]
    for entry in sorted(entries, key=lambda entry: (entry["group"] or "", entry["name"])):
        stats, extra = entry["stats"], entry["extra_info"]
        seconds = stats["median"]
        words = f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
        passes = extra.get("network_passes_per_image", "")
        speed = f"{extra['images_per_second']:.3g}" if "images_per_second" in extra else ""
        lines.append(f"| {entry['name']} | {words} | {stats['rounds']} | {speed} | {passes} |")
    return "\n".join(lines)


# --- cost.json, cost-grid.json: of rdc bench cost ----------------------------------------------------------------------------


def plot_cost(found: dict[str, Any]) -> None:
    """Accuracy against cost: docs/images/cost.png."""
    write_plot(found, IMAGES)


def _cost_where(found: dict[str, Any]) -> str:
    machine, gpus = found["machine"], found["machine"]["gpus"]
    return (
        f"{machine['cpu']}, {found['threads']} thread, {found['clock']}, {found['settings']['rounds']} rounds, torch "
        f"{found['versions']['torch']}, commit {found['commit']}; {'measured on ' + gpus[0] if gpus else 'not yet run on a GPU'}"
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 150, break_long_words=False, break_on_hyphens=False)


def _cost_rows(found: dict[str, Any], words: Callable[[dict[str, Any]], str]) -> list[str]:
    works, batches = found["settings"]["work"], found["settings"]["batches"]
    names = {"prediction": "prediction", "gradient": "step"}
    heads = [f"{names[work]}, {batch}" for work in works for batch in batches]
    lines = ["| model | passes | " + " | ".join(heads) + " |", "|" + "---|" * (2 + len(heads))]
    for model in found["models"]:
        passes = next(cost["evaluations_per_image"] for cost in model["costs"] if "skipped" not in cost)
        cells = ["left out" if "skipped" in cost else words(cost) for cost in model["costs"]]
        lines.append(f"| {model['label']} | {passes:g} | " + " | ".join(cells) + " |")
    return lines


def table_cost(found: dict[str, Any]) -> str:
    """Milliseconds an image, then the peak of a process, by the kind of work and the batch."""
    times = _cost_rows(found, lambda cost: milliseconds(cost["ms_per_image"]["median"]))
    memory = _cost_rows(found, lambda cost: f"{cost['memory_mb']['peak']:.0f}" if cost["memory_mb"] else "-")
    spread = max(_widest(found), 1.0)
    head = f"{_cost_where(found)}. Milliseconds an image, median; the slowest round of a cell took at most {spread:.2g} times its fastest:"
    return "\n".join([_wrapped(head), "", *times, "", "Peak of the process, MiB:", "", *memory])


def _widest(found: dict[str, Any]) -> float:
    times = [cost["ms_per_image"] for model in found["models"] for cost in model["costs"] if "skipped" not in cost]
    return max(time["most"] / time["least"] for time in times)


def table_cost_grid(found: dict[str, Any]) -> str:
    """Milliseconds an image: levels down, steps of likelihood maximisation across; labels are "T 4 N 1"."""
    places = {tuple(int(word) for word in model["label"].split()[1::2]): model for model in found["models"]}
    steps = sorted({place[1] for place in places})
    lines = ["| T' | " + " | ".join(f"N = {count}" for count in steps) + " |", "|" + "---|" * (1 + len(steps))]
    for levels in sorted({place[0] for place in places}):
        cells = []
        for count in steps:
            costs = {cost["work"]: cost for cost in places[levels, count]["costs"]}
            cells.append(
                " / ".join(f"{costs[work]['ms_per_image']['median']:.3g}" for work in ("prediction", "gradient"))
            )
        lines.append(f"| {levels} | " + " | ".join(cells) + " |")
    batch = found["settings"]["batches"][0]
    head = f"{_cost_where(found)}. Batch {batch}, milliseconds an image, prediction / attack step:"
    return "\n".join([_wrapped(head), "", *lines])


#: results file -> (plot or None, table)
PARTS: dict[str, tuple[Callable[[Any], None] | None, Callable[[Any], str]]] = {
    "speed": (plot_speed, table_speed),
    "anytime": (plot_anytime, table_anytime),
    "anytime-teacher": (None, table_anytime),
    "cost": (plot_cost, table_cost),
    "cost-grid": (None, table_cost_grid),
    "scaling": (plot_scaling, table_scaling),
    "resident-memory": (None, table_resident),
    "suite": (None, table_suite),
}


def replaced(page: str, name: str, table: str) -> str:
    """The page with another table between ``<!-- name -->`` and the next ``<!-- end -->``."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{PAGE}: expected a line <!-- {name} --> and after it <!-- end -->")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    page = PAGE.read_text()
    for name, (plot, table) in PARTS.items():
        file = RESULTS / f"{name}.json"
        if not file.exists():
            print(f"{file}: not there, left out")
            continue
        found = read_json(file)
        if plot is not None:
            plot(found)
        page = replaced(page, name, table(found))
    with atomic_write(PAGE, "w") as out:
        out.write(page)


if __name__ == "__main__":
    start(main)
