"""Reports of a run under several threats: the page, Markdown, and the text to print."""

from __future__ import annotations

from rdc.errors import one_line
from rdc.evaluation.report import Rate, RobustRate
from rdc.evaluation.threat_report import ThreatReport, ThreatsReport
from rdc.evaluation.threat_run import ThreatEvaluation
from rdc.reports.markdown import code_span, plain_cell, table_lines
from rdc.reports.radius_curve import curves_of, radius_plot
from rdc.reports.tables import plot_picture, scale, table
from rdc.reports.tags import escaped, page, section, tag
from rdc.reports.words import NORM_WORDS, interval, percent, rate, seconds_words, wording

__all__ = ["threats_markdown", "threats_page", "threats_text"]

_UNION = "under every threat"


def _named(threat: ThreatReport) -> str:
    return f"{NORM_WORDS.get(threat.norm, threat.norm)} {threat.eps}"


def threats_text(evaluation: ThreatEvaluation) -> str:
    """What was evaluated, a row for every threat, their mean, the union, and warnings; text that ends in one line break."""
    report, first = evaluation.figures, evaluation.runs[0]
    settings = first.record.identity.settings
    last = settings.start + report.n - 1
    lines = [
        f"{one_line(report.model)} on {one_line(report.dataset)}, images {settings.start} to {last} of the {settings.split} split",
        "; ".join(wording(first).defence),
        "",
    ]
    rows: list[tuple[str, Rate | RobustRate, str]] = [("clean", report.clean, "")]
    rows += [(_named(threat), threat.robust, seconds_words(threat.seconds)) for threat in report.threats]
    rows += [("mean", report.mean, ""), (_UNION, report.union, "")]
    wide = max(len(name) for name, _, _ in rows) + 2
    lines.append(f"  {'':<{wide}}{'accuracy':>10}   95 % interval")
    for name, value, time in rows:
        share, ends = percent(value.accuracy), interval(value.ci95)
        lines.append(f"  {name:<{wide}}{share:>10}   {ends:<15}{time:>12}".rstrip())
    lines.append("")
    lines += [f"  warnings, {_named(threat)}: {', '.join(threat.flags)}" for threat in report.threats if threat.flags]
    return "\n".join(lines).rstrip() + "\n"


def threats_markdown(evaluation: ThreatEvaluation) -> str:
    """One row with a column for every threat, mean and union; then the attacks of each, and its warnings."""
    report = evaluation.figures
    settings = evaluation.runs[0].record.identity.settings
    images = f"{report.dataset} {settings.split} {settings.start}..{settings.start + report.n - 1}"
    columns = {
        "model": plain_cell(report.model),
        "images": plain_cell(images),
        "clean": rate(report.clean),
        **{_named(threat): rate(threat.robust) for threat in report.threats},
        "mean": rate(report.mean),
        "union": rate(report.union),
    }
    text = table_lines(columns) + "\n"
    for threat in report.threats:
        warned = f"; warnings: {', '.join(threat.flags)}" if threat.flags else ""
        text += f"\n- {_named(threat)}: {_attacks(threat)}{warned}"
    return text + f"\n\nCommand: {code_span(report.command)}\n"


def _attacks(threat: ThreatReport) -> str:
    begun = f"images of {threat.smaller}, then " if threat.smaller else ""
    return begun + ", ".join(threat.attacks)


def threats_page(evaluation: ThreatEvaluation) -> str:
    """The page; each threat's own page is a link."""
    report = evaluation.figures
    title = f"{report.model} on {report.dataset}"
    curves = curves_of(report.threats)
    parts = [_head(evaluation), _cards(report), _table(evaluation)]
    if curves:
        about = (
            "Each radius begins with the images that the one before it left: what fell stays fallen, so the curve cannot rise. The band "
            "is the 95 % interval of each radius by itself."
        )
        picture = plot_picture(radius_plot(curves, report.clean), "accuracy against the radius")
        parts.append(section("Accuracy against the radius", about, picture))
    parts += [_attacks_section(report), _settings(evaluation)]
    footer = (
        "Written by rdc. Intervals are 95 % Wilson score intervals over images, that of the mean a bootstrap over images. Beside this "
        'page: <a href="report.json">report.json</a> (figures), <a href="results.jsonl">results.jsonl</a> (each image under each threat), '
        '<a href="report.md">report.md</a>.'
    )
    return page(title, "\n".join(parts), footer)


def _head(evaluation: ThreatEvaluation) -> str:
    report, first = evaluation.figures, evaluation.runs[0]
    settings = first.record.identity.settings
    union = sum(image.union for image in evaluation.images)
    lead = (
        f"{union} of {report.n} images are classified correctly under every attack of each of {len(report.threats)} threats: "
        f"{', '.join(escaped(_named(threat)).replace(' ', '&nbsp;') for threat in report.threats)}."
    )
    about = (
        f"Images {settings.start}–{settings.start + report.n - 1} of the {escaped(settings.split)} split",
        *map(escaped, wording(first).defence),
    )
    title = f"{escaped(report.model)} on {escaped(report.dataset)}"
    return (
        f'<header><p class="over">Robustness evaluation, several threats</p><h1>{title}</h1>\n{tag("p", lead, "lead")}\n'
        f"{tag('p', ' · '.join(about), 'muted')}</header>"
    )


def _cards(report: ThreatsReport) -> str:
    def card(what: str, value: Rate, bar: str, kind: str = "card") -> str:
        big, small = tag("div", percent(value.accuracy), "big"), f"95 % interval {interval(value.ci95)}"
        return tag("div", tag("div", what, "what") + big + scale(value, bar) + tag("div", small, "ci"), kind)

    cards = (
        card("Right under every threat (union)", report.union, "robust", "card main"),
        card("Mean over the threats", report.mean, "robust"),
        card("Clean accuracy", report.clean, "clean"),
    )
    return tag("div", "\n".join(cards), "cards")


def _table(evaluation: ThreatEvaluation) -> str:
    report = evaluation.figures

    def row(
        name: str, value: Rate | RobustRate, bar: str, standing: object = "", time: str = ""
    ) -> list[tuple[object, str]]:
        return [
            (name, "name"),
            (percent(value.accuracy), "n strong"),
            (interval(value.ci95), "muted"),
            (scale(value, bar), "bar"),
            (standing, "n"),
            (tag("span", time, "time") if time else "", "n"),
        ]

    rows = [row("no attack", report.clean, "clean")]
    for threat in report.threats:
        link = f'<a href="{escaped(threat.folder)}/report.html">{escaped(_named(threat))}</a>'
        standing = sum(image.threats[threat.threat] for image in evaluation.images)
        rows.append(row(link, threat.robust, "robust", standing, seconds_words(threat.seconds)))
    rows.append(row("mean", report.mean, "robust"))
    rows.append(row(_UNION, report.union, "robust", sum(image.union for image in evaluation.images)))
    names = [("threat", ""), ("accuracy", "n"), ("95 % interval", ""), ("", ""), ("survivors", "n"), ("time", "n")]
    about = "An image counts under every threat only if it stands under all of them. Each threat has a page of its own, with its attacks."
    return section("Threats", about, table(names, rows, "total"))


def _attacks_section(report: ThreatsReport) -> str:
    rows: list[list[tuple[object, str]]] = []
    for threat in report.threats:
        warned = escaped(", ".join(threat.flags)) or "none"
        rows.append(
            [(escaped(_named(threat)), "name"), (escaped(_attacks(threat)), ""), (f"warnings: {warned}", "muted")]
        )
    about = "In this order; the pages of the threats say what each left, and what the warnings mean."
    return section("Attacks", about, table([("threat", ""), ("attacks", ""), ("", "")], rows))


def _settings(evaluation: ThreatEvaluation) -> str:
    report, first = evaluation.figures, evaluation.runs[0]
    settings = first.record.identity.settings
    values: dict[str, object] = {
        "model": f"{settings.model} (weights {first.record.identity.weights})",
        "steps × restarts": f"{settings.steps} × {settings.restarts}",
        "gradient": settings.gradient,
        "noise in the attack": wording(first).noise,
        "work": f"{report.network_evaluations:,} network evaluations, {seconds_words(report.seconds)}",
        "seed": settings.seed,
        "batch": settings.batch,
        "commit": report.commit or "unknown",
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    items = "".join(tag("dt", escaped(name)) + tag("dd", escaped(value)) for name, value in values.items())
    return section("Settings", "", tag("dl", items) + f"<h3>Command</h3>{tag('pre', escaped(report.command))}")
