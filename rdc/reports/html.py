"""The report as one HTML file: style, pictures and plots inside, no scripts, nothing fetched; the only links are to files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rdc.evaluation import Evaluation, accuracy_per_class
from rdc.evaluation.protocols import protocols
from rdc.evaluation.report import RaisedFlag
from rdc.reports.drawings import Drawings
from rdc.reports.picture_grid import pictures_section
from rdc.reports.progress_section import progress_section
from rdc.reports.svg import Plot
from rdc.reports.tables import Figure, plot_picture, scale, table
from rdc.reports.tags import escaped, page, section, tag
from rdc.reports.words import UNITS, Wording, interval, network_words, percent
from rdc.storage.json_records import ABSENT, JsonObject

__all__ = ["html_report"]


def html_report(evaluation: Evaluation, drawings: Drawings, said: Wording) -> str:
    """The page.

    Args:
        evaluation: a finished run.
        drawings: its pictures and plots.
        said: its wording.
    """
    report, settings = evaluation.figures, evaluation.record.identity.settings
    title = f"{report.model} on {report.dataset}"
    parts = [
        _head(evaluation, said),
        _cards(evaluation, said),
        _flags(report.flags),
        _attacks(evaluation, said),
        _protocols(evaluation, said),
        _steps(evaluation, drawings.steps),
        progress_section(report.attacks, drawings.progress, settings.noise != "known"),
        pictures_section(evaluation, drawings, said.plain),
        _losses(evaluation, drawings.losses),
        _classes(evaluation),
        _settings(evaluation, said),
    ]
    body = "\n".join(part for part in parts if part)
    note = "" if settings.attacks else " (clean accuracy only)"
    footer = (
        "Written by rdc. Intervals are 95 % Wilson score intervals over images. "
        'Beside this page: <a href="report.json">report.json</a> (figures), <a href="results.jsonl">results.jsonl</a> (each image), '
        '<a href="report.md">report.md</a>, <a href="model_info.json">model_info.json</a> (RobustBench).'
    )
    return page(f"{title}{note}", body, footer)


def _head(evaluation: Evaluation, said: Wording) -> str:
    report, settings = evaluation.figures, evaluation.record.identity.settings
    n, first = report.n, settings.start
    clean = sum(record.clean.always_right for record in evaluation.records)
    lead = f"{clean} of {n} images are classified correctly. "
    if settings.attacks:
        robust = sum(bool(record.robust) for record in evaluation.records)
        known = (
            ""
            if said.silent
            else (" and the very noise it uses", " but not the noise it draws")[settings.noise == "fresh"]
        )
        exact = "exact gradients" if settings.gradient == "exact" else "gradients that skip the purification"
        lead += (
            f"{robust} still are under every attack of this run, each free to change an image by "
            f"{escaped(said.budget)}{UNITS.get(str(settings.norm), '')}. The attacker knows the classifier{known}, and has {exact}."
        )
    else:
        lead += "Nothing attacked them: this page says nothing about robustness."
    about = (
        f"Images {first}–{first + n - 1} of the {escaped(settings.split)} split",
        *map(escaped, said.defence),
    )
    title = f"{escaped(report.model)} on {escaped(report.dataset)}"
    return (
        f'<header><p class="over">Robustness evaluation</p><h1>{title}</h1>\n{tag("p", lead, "lead")}\n'
        f"{tag('p', ' · '.join(about), 'muted')}</header>"
    )


def _cards(evaluation: Evaluation, said: Wording) -> str:
    report = evaluation.figures
    robust, clean = report.robust, report.clean
    kind = "not attacked" if robust.accuracy is None else escaped(said.budget)
    extra = ""
    if robust.average:
        extra = f"; worst of {robust.worst_of} draws, average {percent(robust.average.accuracy)}"

    def card(what: str, big: str, scale: str, small: str, kind: str = "card") -> str:
        return tag("div", tag("div", what, "what") + big + scale + tag("div", small, "ci"), kind)

    per_image = report.network_evaluations / report.n
    cards = (
        card(
            f"Robust accuracy · {kind}",
            tag("div", percent(robust.accuracy), "big"),
            scale(robust, "robust"),
            f"95 % interval {interval(robust.ci95)}{extra}",
            "card main",
        ),
        card(
            "Clean accuracy",
            tag("div", percent(clean.accuracy), "big"),
            scale(clean, "clean"),
            f"95 % interval {interval(clean.ci95)}",
        ),
        card(
            "Work",
            tag("div", tag("span", said.time, "time"), "big small"),
            "",
            f"{report.network_evaluations:,} network evaluations<br>{per_image:,.0f} an image",
        ),
    )
    return tag("div", "\n".join(cards), "cards")


def _flags(flags: Sequence[RaisedFlag]) -> str:
    if not flags:
        return section("Flags", "None raised.", "")
    items = []
    for flag in flags:
        heading = (
            f"{tag('span', flag.severity, 'tag')}{tag('span', escaped(flag.name), 'name')} "
            f"{tag('span', '· ' + escaped(flag.evidence), 'evidence')}"
        )
        words = f"{escaped(flag.explanation)} <b>What to do:</b> {escaped(flag.what_to_do)}"
        items.append(tag("div", heading + tag("p", words), f"flag {flag.severity}"))
    return section("Flags", "Reasons to doubt the figures above, or to say more beside them.", "\n".join(items))


def _attacks(evaluation: Evaluation, said: Wording) -> str:
    report, settings = evaluation.figures, evaluation.record.identity.settings
    if not settings.attacks:
        return ""
    fresh = settings.noise != "known"

    def row(
        name: str, attacked: object, left: object, rate: Figure, bar: str, time: str = ""
    ) -> list[tuple[object, str]]:
        cells: list[tuple[object, str]] = [
            (name, "name"),
            (percent(rate.accuracy), "n strong"),
            (interval(rate.ci95), "muted"),
        ]
        if fresh:
            average = getattr(rate, "average", ABSENT)
            cells.append((percent(average.accuracy) if average else "", "n"))
        return [*cells, (scale(rate, bar), "bar"), (attacked, "n"), (left, "n"), (time, "n")]

    both = settings.noise == "all"
    rows = [row("no attack", "–", "–", report.clean, "clean")]
    for place, (attack, seconds) in enumerate(zip(report.attacks, said.times, strict=True)):
        name = ("then " if place else "") + escaped(attack.name) + (f" · {attack.noise} noise" if both else "")
        rows.append(row(name, attack.attacked, attack.survivors, attack, "robust", tag("span", seconds, "time")))
    standing = sum(bool(record.robust) for record in evaluation.records)
    rows.append(row("all attacks", "", standing, report.robust, "robust"))
    names = [("attack", ""), ("accuracy", "n"), ("95 % interval", "")]
    if fresh:
        names.append(("average", "n"))
    names += [("", ""), ("attacked", "n"), ("survivors", "n"), ("time", "n")]
    about = (
        f"{escaped(said.threat)}, {settings.steps} steps and {said.restarts} where the name does not say otherwise. "
        "One attack after another: each attacks only images "
        "that are still right, and its accuracy counts images that were right when clean and survived it and all "
        "before it."
    )
    if evaluation.record.identity.smaller:
        about += f" {escaped(report.attacks[0].name)}: the images that this smaller radius left; attacks that take a start begin there."
    return section("Attacks", about, table(names, rows, "total"))


def _protocols(evaluation: Evaluation, said: Wording) -> str:
    """Every way of scoring this run, in one table; nothing where the table of the attacks says it all."""
    report, settings = evaluation.figures, evaluation.record.identity.settings
    if not settings.attacks or (not report.scores.average and len(report.attacks) < 2):
        return ""
    rows: list[list[tuple[object, str]]] = []
    every = protocols(report, evaluation.records, settings)
    for one in every:
        name = escaped(one.attacks) + (" (the headline)" if one.headline else "")
        bar = scale(one.rate, "clean" if one.attacks == "no attack" else "robust")
        cells: list[tuple[object, str]] = [
            (name, "name"),
            ("one submission" if said.silent else escaped(one.scoring) + (" (disputed)" if one.disputed else ""), ""),
            (percent(one.rate.accuracy), "n strong"),
        ]
        rows.append([*cells, (interval(one.rate.ci95), "muted"), (bar, "bar")])
    names = [("attacks", ""), ("scoring", ""), ("accuracy", "n"), ("95 % interval", ""), ("", "")]
    about = (
        "The same adversarial images by every protocol in use; figures of two papers compare only within a row. Alone: an attack on all "
        "images that are right when clean, where it had them all; up to: it and those before it, an image counts if it stands under each."
    )
    if report.scores.average:
        about += (
            " One fresh draw: a single submission, on average; worst of N: right in N submissions of the same image."
        )
    about += "".join(f" Disputed: {escaped(why)}" for why in dict.fromkeys(one.disputed for one in every) if why)
    return section("Protocols", about, table(names, rows))


def _steps(evaluation: Evaluation, plot: Plot | None) -> str:
    settings = evaluation.record.identity.settings
    if plot is None:
        return ""
    note = (
        "Each attack has the same width, however many steps and restarts (thin lines) it has; a targeted attack's runs at "
        "its classes lie over one another. A curve that is still falling at its right end asks for more steps."
    )
    if settings.noise != "known":
        note += (
            " The curve shows what the attacker saw (images right by the mean of its draws); the point at the right is "
            f"worst of {settings.resubmissions} fresh draws."
        )
    return section("Accuracy against attack steps", note, plot_picture(plot, "accuracy against attack steps"))


def _losses(evaluation: Evaluation, plots: Mapping[int, Plot]) -> str:
    if not plots:
        return ""
    names = evaluation.class_names
    blocks = []
    for row, plot in plots.items():
        record = evaluation.records[row]
        outcome = {True: " – robust", False: " – broken", None: ""}[record.robust]
        if not record.clean.ever_right:
            outcome = " – wrong when clean"
        heading = tag("h3", escaped(f"Image {record.image}, {names[record.label]}{outcome}"))
        blocks.append(heading + plot_picture(plot, "class losses over noise levels"))
    about = (
        "The denoising loss of each class at each noise level, weighted as in the classifier, minus that of the true "
        "class. Above zero the true class fits better. The sum over levels decides: the image is right when every "
        "class sums to more than zero. Classes far off leave the frame."
    )
    return section("Class losses over noise levels", about, "\n".join(blocks))


def _classes(evaluation: Evaluation) -> str:
    names = evaluation.class_names
    kinds = ("clean", "robust") if evaluation.record.identity.settings.attacks else ("clean",)
    head = [("class", ""), ("images", "n")]
    for kind in kinds:
        head += [(kind, "n"), ("", ""), ("", "")]
    rows: list[list[tuple[object, str]]] = []
    about = ""
    if evaluation.other_names:
        pairs = ", ".join(f"{ours} is {theirs} there" for ours, theirs in evaluation.other_names[:5])
        about = escaped(f"Names are the data set's; the model has others: {pairs}. The numbers of the classes decide.")
    for entry in accuracy_per_class(evaluation.records, len(names)):
        if not entry["n"]:
            continue
        cells: list[tuple[object, str]] = [(escaped(names[entry["label"]]), "name"), (entry["n"], "n")]
        for kind in kinds:
            share = 100 * entry[kind] / entry["n"]
            bar = f'<div class="scale {kind}"><div class="band" style="left:0;width:{share:.2f}%"></div></div>'
            cells += [(entry[kind], "n"), (bar, "bar"), (f"{share:.0f} %", "n")]
        rows.append(cells)
    return section("By class", about, table(head, rows))


def _settings(evaluation: Evaluation, said: Wording) -> str:
    report, identity = evaluation.figures, evaluation.record.identity
    settings = identity.settings
    last = settings.start + settings.n - 1
    images = f"{settings.dataset}, {settings.split} split, {settings.start} to {last}"
    values: dict[str, object] = {
        "model": f"{settings.model} (weights {identity.weights})",
        "images": f"{images} (content {identity.images})",
        "network": _network(report.classifier),
        **({"precision, chosen by auto": report.precision_choice.words()} if report.precision_choice else {}),
        **{f"network {place}": words for place, words in enumerate(network_words(report), 1)},
        **({} if said.plain else {"noise levels": said.levels, "likelihood maximisation": said.lm}),
        **({} if said.silent else {"classifier's noise": _plain(report.classifier["noise"])}),
        "threat": said.budget if settings.attacks else "none",
        "attacks": ", ".join(settings.attacks) or "none",
    }
    if settings.attacks:
        values["steps × restarts"] = f"{settings.steps} × {settings.restarts}"
        rounded = {"precision of gradients": settings.attack_precision} if settings.attack_precision else {}
        values |= {
            "gradient": settings.gradient,
            **rounded,
            **({} if said.silent else {"noise in the attack": said.noise}),
        }
    if said.preset:
        values["preset"] = said.preset
    values |= {"seed": settings.seed, "batch": settings.batch, "commit": report.commit or "unknown"}
    values["versions"] = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    items = "".join(tag("dt", escaped(name)) + tag("dd", escaped(value)) for name, value in values.items())
    command = f"<h3>Command</h3>{tag('pre', escaped(report.command))}"
    return section("Settings", "", tag("dl", items) + command)


def _network(classifier: JsonObject) -> str:
    """Kind of the network, and what it computes in unless that is float32."""
    precision = classifier.get("precision") or "float32"
    return classifier["head"] if precision == "float32" else f"{classifier['head']}, {precision}"


def _plain(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
