"""The comparison as printed text: a row for each model, a column for each batch."""

from __future__ import annotations

from collections.abc import Callable

from rdc.costs.settings import WORK
from rdc.errors import one_line
from rdc.storage.json_records import JsonObject

__all__ = ["cost_table"]

_WIDTH = 26


def cost_table(report: JsonObject) -> str:
    """Milliseconds an image and memory, for each kind of work.

    Args:
        report: see ``measure_costs``.
    """
    machine, settings = report["machine"], report["settings"]
    rounds = f"{settings['rounds']} round{'s' if settings['rounds'] != 1 else ''} in turn"
    lines = [
        f"{machine['cpu']}, {report['threads']} thread{'s' if report['threads'] != 1 else ''}; {report['clock']}; {rounds}"
    ]
    for work in settings["work"]:
        lines += ["", f"{work}: {WORK[work]}", *_section(report, work, "ms an image, median [least, most]", _time)]
        if settings["memory"]:
            lines += ["", *_section(report, work, "peak of the process, MiB (before the call)", _memory)]
    return "\n".join(one_line(line, 4000) for line in lines)


def _section(report: JsonObject, work: str, words: str, cell: Callable[[JsonObject], str]) -> list[str]:
    batches, times = report["settings"]["batches"], cell is _time
    left = max(len(words), *(min(len(model["label"]), 60) for model in report["models"])) + 2
    columns = ["evaluations"] * times + [f"batch {batch}" for batch in batches]
    lines = [f"  {words:<{left}}" + "".join(f"{words:>{_WIDTH if words[0] == 'b' else 12}}" for words in columns)]
    for model in report["models"]:
        mine = [cost for cost in model["costs"] if cost["work"] == work]
        passes = next((f"{cost['evaluations_per_image']:g}" for cost in mine if "skipped" not in cost), "-")
        cells = "".join(f"{'skipped' if 'skipped' in cost else cell(cost):>{_WIDTH}}" for cost in mine)
        lines.append(f"  {model['label'][:60]:<{left}}" + f"{passes:>12}" * times + cells)
    return lines


def _time(cost: JsonObject) -> str:
    found = cost["ms_per_image"]
    return "{} [{}, {}]".format(*(milliseconds(found[name]) for name in ("median", "least", "most")))


def milliseconds(value: float) -> str:
    """Three digits; from 1,000 on whole numbers."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _memory(cost: JsonObject) -> str:
    found = cost["memory_mb"]
    return "not known" if found is None else f"{found['peak']:.0f} ({found['loaded']:.0f})"
