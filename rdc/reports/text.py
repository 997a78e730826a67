"""A run's figures as a table for a terminal."""

from __future__ import annotations

from rdc.errors import one_line
from rdc.evaluation import Evaluation
from rdc.evaluation.report import AttackReport, Rate, RobustRate, ScoreRates
from rdc.reports.words import interval, network_words, percent, wording

__all__ = ["text_report"]

_Row = tuple[str, Rate | RobustRate | AttackReport, str]  # name, figure, time


def text_report(evaluation: Evaluation) -> str:
    """What was evaluated, a row for every figure, and the flags: text that ends in one line break."""
    report, settings, said = evaluation.figures, evaluation.record.identity.settings, wording(evaluation)
    first, last = settings.start, settings.start + report.n - 1
    lines = [
        f"{one_line(report.model)} on {one_line(report.dataset)}, images {first} to {last} of the {settings.split} split",
        "; ".join(said.defence),
    ]
    if report.preset:
        lines.append(f"preset {one_line(report.preset.name)}" + (", but for" if report.preset.deviations else ""))
        lines += [f"  {one_line(text, 400)}" for text in report.preset.deviations]
    if report.precision_choice:
        lines.append(f"precision, chosen by auto: {report.precision_choice.words()}")
    lines += [f"network for {one_line(words)}" for words in network_words(report)]
    if settings.attacks:
        lines.append(
            f"{said.threat}; {settings.steps} steps, {said.restarts}; each attack continues on what the one before left"
        )
    rows: list[_Row] = [("clean", report.clean, "")]
    rows += [(f"after {attack.name}", attack, time) for attack, time in zip(report.attacks, said.times, strict=True)]
    if settings.attacks:
        rows.append(("robust to all", report.robust, ""))
    if settings.noise != "known":
        rows += _scores(report.scores)
    lines += ["", *_table(rows), ""]
    lines += [f"  {flag.severity}: {flag.name} ({flag.evidence})" for flag in report.flags]
    if not settings.attacks:
        lines = [line for line in lines if "no-attack" not in line]
    return "\n".join(lines).rstrip() + "\n"


def _scores(scores: ScoreRates) -> list[_Row]:
    """Every way of scoring the adversarial images under fresh noise."""
    if not scores.average:
        return []
    words = {
        "known": "known noise",
        "average": "average of draws",
        "majority": f"majority of {scores.submissions}",
        "worst": f"worst of {scores.submissions}",
    }
    return [(text, rate, "") for key, text in words.items() if (rate := getattr(scores, key))]


def _table(rows: list[_Row]) -> list[str]:
    wide = max(18, *(len(name) + 2 for name, _, _ in rows))
    lines = [f"  {'':<{wide}}{'accuracy':>10}   95 % interval"]
    for name, value, time in rows:
        share, ends = percent(value.accuracy), interval(value.ci95)
        lines.append(f"  {name:<{wide}}{share:>10}   {ends:<15}{time:>12}".rstrip())
    return lines
