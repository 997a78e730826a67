"""The report as one HTML file: style, pictures and plots inside, no scripts, nothing fetched."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rdc.evaluation import Evaluation, accuracy_per_class
from rdc.evaluation.report import AttackReport, RaisedFlag, Rate, RobustRate, ScoreRates
from rdc.reports.drawings import Drawings
from rdc.reports.style import CSS
from rdc.reports.words import Wording, interval, percent
from rdc.storage.json_records import ABSENT, JsonObject
from rdc.terminal.plain_text import printable

__all__ = ["html_report"]

#: what a bar shows
Figure = Rate | RobustRate | AttackReport


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
        _steps(evaluation, drawings.steps),
        _pictures(evaluation, drawings),
        _losses(evaluation, drawings.losses),
        _classes(evaluation),
        _settings(evaluation, said),
    ]
    body = "\n".join(part for part in parts if part)
    note = "" if settings.attacks else " (clean accuracy only)"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(title)}{note} – rdc</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "<footer>Written by rdc. Intervals are 95 % Wilson score intervals over images. "
        "Per-image results: results.jsonl; figures: report.json.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _e(text: object) -> str:
    return html.escape(printable(text))


def _tag(name: str, content: object, kind: str = "") -> str:
    return f'<{name} class="{kind}">{content}</{name}>' if kind else f"<{name}>{content}</{name}>"


def _row(*cells: tuple[object, str], kind: str = "", name: str = "td") -> str:
    """A table row of (content, class) pairs."""
    return _tag("tr", "".join(_tag(name, *cell) for cell in cells), kind)


def _section(title: str, about: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{_tag('p', about, 'muted') if about else ''}\n{content}</section>"


def _image(png: bytes, alt: str, kind: str = "") -> str:
    code = base64.b64encode(png).decode()
    marked = f' class="{kind}"' if kind else ""
    return f'<img{marked} src="data:image/png;base64,{code}" alt="{_e(alt)}">'


def _scale(rate: Figure, kind: str) -> str:
    """A bar from 0 to 100 %: value, interval, a mark at the value."""
    if rate.accuracy is None or rate.ci95 is None:
        return '<div class="scale"></div>'
    low, high = (100 * end for end in rate.ci95)
    value = 100 * rate.accuracy
    return (
        f'<div class="scale {kind}"><div class="fill" style="width:{value:.2f}%"></div>'
        f'<div class="band" style="left:{low:.2f}%;width:{high - low:.2f}%"></div>'
        f'<div class="dot" style="left:{value:.2f}%"></div></div>'
    )


def _head(evaluation: Evaluation, said: Wording) -> str:
    report, settings = evaluation.figures, evaluation.record.identity.settings
    n, first = report.n, settings.start
    clean = sum(record.clean.always_right for record in evaluation.records)
    lead = f"{clean} of {n} images are classified correctly. "
    if settings.attacks:
        robust = sum(bool(record.robust) for record in evaluation.records)
        known = "but not the noise it draws" if settings.noise == "fresh" else "and the very noise it uses"
        exact = "exact gradients" if settings.gradient == "exact" else "gradients that skip the purification"
        lead += (
            f"{robust} still are under every attack of this run, each free to change an image by "
            f"{_e(said.budget)} in [0, 1] pixel units. The attacker knows the classifier {known}, and has {exact}."
        )
    else:
        lead += "Nothing attacked them: this page says nothing about robustness."
    about = (
        f"Images {first}–{first + n - 1} of the {_e(settings.split)} split",
        f"{_e(report.classifier['head'])} network",
        _e(said.levels),
        f"likelihood maximisation: {_e(said.lm)}",
    )
    title = f"{_e(report.model)} on {_e(report.dataset)}"
    return (
        f'<header><p class="over">Robustness evaluation</p><h1>{title}</h1>\n{_tag("p", lead, "lead")}\n'
        f"{_tag('p', ' · '.join(about), 'muted')}</header>"
    )


def _cards(evaluation: Evaluation, said: Wording) -> str:
    report = evaluation.figures
    robust, clean = report.robust, report.clean
    kind = "not attacked" if robust.accuracy is None else _e(said.budget)
    extra = ""
    if robust.average:
        extra = f"; worst of {robust.worst_of} draws, average {percent(robust.average.accuracy)}"

    def card(what: str, big: str, scale: str, small: str, kind: str = "card") -> str:
        return _tag("div", _tag("div", what, "what") + big + scale + _tag("div", small, "ci"), kind)

    per_image = report.network_evaluations / report.n
    cards = (
        card(
            f"Robust accuracy · {kind}",
            _tag("div", percent(robust.accuracy), "big"),
            _scale(robust, "robust"),
            f"95 % interval {interval(robust.ci95)}{extra}",
            "card main",
        ),
        card(
            "Clean accuracy",
            _tag("div", percent(clean.accuracy), "big"),
            _scale(clean, "clean"),
            f"95 % interval {interval(clean.ci95)}",
        ),
        card(
            "Work",
            _tag("div", _tag("span", said.time, "time"), "big small"),
            "",
            f"{report.network_evaluations:,} network evaluations<br>{per_image:,.0f} an image",
        ),
    )
    return _tag("div", "\n".join(cards), "cards")


def _flags(flags: Sequence[RaisedFlag]) -> str:
    if not flags:
        return _section("Flags", "None raised.", "")
    items = []
    for flag in flags:
        heading = (
            f"{_tag('span', flag.severity, 'tag')}{_tag('span', _e(flag.name), 'name')} "
            f"{_tag('span', '· ' + _e(flag.evidence), 'evidence')}"
        )
        words = f"{_e(flag.explanation)} <b>What to do:</b> {_e(flag.what_to_do)}"
        items.append(_tag("div", heading + _tag("p", words), f"flag {flag.severity}"))
    return _section("Flags", "Reasons to doubt the figures above, or to say more beside them.", "\n".join(items))


def _attacks(evaluation: Evaluation, said: Wording) -> str:
    report, settings = evaluation.figures, evaluation.record.identity.settings
    if not settings.attacks:
        return ""
    fresh = settings.noise != "known"

    def row(name: str, attacked: object, left: object, rate: Figure, bar: str, time: str = "", kind: str = "") -> str:
        cells = [(name, ""), (attacked, "n"), (left, "n"), (percent(rate.accuracy), "n")]
        cells.append((interval(rate.ci95), "muted"))
        if fresh:
            average = getattr(rate, "average", ABSENT)
            cells.append((percent(average.accuracy) if average else "", "n"))
        return _row(*cells, (_scale(rate, bar), ""), (time, "n"), kind=kind)

    both = settings.noise == "all"
    rows = [row("no attack", "–", "–", report.clean, "clean")]
    for place, (attack, seconds) in enumerate(zip(report.attacks, said.times, strict=True)):
        name = ("then " if place else "") + _e(attack.name) + (f" · {attack.noise} noise" if both else "")
        rows.append(row(name, attack.attacked, attack.survivors, attack, "robust", _tag("span", seconds, "time")))
    standing = sum(bool(record.robust) for record in evaluation.records)
    rows.append(row("all attacks", "", standing, report.robust, "robust", kind="total"))
    names = [("attack", ""), ("attacked", "n"), ("survivors", "n"), ("accuracy", "n"), ("95 % interval", "")]
    if fresh:
        names.append(("average", "n"))
    head = _row(*names, ("", ""), ("time", "n"), name="th")
    about = (
        f"{_e(said.budget)}, {settings.steps} steps and {said.restarts} where the name does not say otherwise, "
        f"{settings.gradient} gradient, {_e(said.noise)}. One attack after another: each attacks only images "
        "that are still right, and its accuracy counts images that were right when clean and survived it and all "
        "before it."
    )
    return _section("Attacks", about, _tag("table", head + "\n" + "\n".join(rows)) + _scores(report.scores))


def _scores(scores: ScoreRates) -> str:
    """Every way of scoring the adversarial images; the headline is said in the card."""
    if scores.average is ABSENT:
        return ""
    words = {
        "known": "against the known, fixed noise",
        "average": "average over fresh draws",
        "majority": f"majority of {scores.submissions} fresh draws",
        "worst": f"worst of {scores.submissions} fresh draws",
    }
    rows = [
        _row(("scoring of the adversarial images", ""), ("accuracy", "n"), ("95 % interval", ""), ("", ""), name="th")
    ]
    for key, text in words.items():
        value = getattr(scores, key)
        if value:
            cells = ((text, ""), (percent(value.accuracy), "n"), (interval(value.ci95), "muted"))
            rows.append(_row(*cells, (_scale(value, "robust"), "")))
    return _tag("table", "\n".join(rows))


def _steps(evaluation: Evaluation, plot: bytes | None) -> str:
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
    return _section("Accuracy against attack steps", note, _image(plot, "accuracy against attack steps", "plot"))


def _verdict(evaluation: Evaluation, row: int, logits: np.ndarray) -> str:
    record, names = evaluation.records[row], evaluation.class_names
    if not np.isfinite(logits).all():
        return _tag("span", "no decision", "wrong") + f"<br>{_tag('span', 'not finite', 'muted')}"
    k = int(logits.argmax())
    shares = np.exp(logits.astype(np.float64) - logits.max())
    name = _tag("span", _e(names[k]), "right" if k == record.label else "wrong")
    return f"{name}<br>{_tag('span', f'{100 * shares[k] / shares.sum():.0f} %', 'muted')}"


def _pictures(evaluation: Evaluation, drawings: Drawings) -> str:
    settings, names = evaluation.record.identity.settings, evaluation.class_names
    records = [evaluation.records[row] for row in drawings.rows]

    def line(name: str, cells: list[str], kind: str = "row") -> str:
        return _tag("tr", _tag("th", name) + "".join(_tag("td", cell) for cell in cells), kind)

    def decided(pngs: Sequence[bytes], logits: np.ndarray, alt: str) -> list[str]:
        shown = zip(drawings.rows, pngs, strict=True)
        return [_image(png, alt) + _verdict(evaluation, row, logits[row]) for row, png in shown]

    titles = [
        f"<b>{_e(names[record.label])}</b><br>{_tag('span', 'image ' + str(record.image), 'muted')}"
        for record in records
    ]
    lines = [
        line("true class", titles, "head"),
        line("clean", decided(drawings.clean, evaluation.clean_logits, "clean")),
    ]
    about = ["Under each image: the decision and its probability."]
    if settings.attacks:
        lines.append(line("adversarial", decided(drawings.adversarial, evaluation.adversarial_logits, "adversarial")))
        gain = _tag("span", f"× {drawings.gain:.3g}", "muted")
        lines.append(line(f"difference<br>{gain}", [_image(png, "difference") for png in drawings.differences]))
        colours = "white is no change, red brighter, blue darker" if drawings.grey else "mid-grey is no change"
        about.append(f"Differences are amplified {drawings.gain:.3g} times: {colours}.")
        about.append(f"Full colour is a change of {255 / drawings.gain:.3g}/255.")
        if any(record.robust is False and record.clean.ever_right for record in records):
            about.append("Images the attack broke come first; of robust ones the most damaging attempt is shown.")
    if drawings.maximized is None:
        about.append("This classifier does no likelihood maximisation, so there is no such picture.")
    else:
        what = "adversarial" if settings.attacks else "clean"
        lines.append(line("after LM", [_image(png, "after likelihood maximisation") for png in drawings.maximized]))
        about.append(f"After LM: the {what} image as likelihood maximisation hands it to the classifier.")
    return _section("Pictures", " ".join(about), _tag("table", "\n".join(lines), "pictures"))


def _losses(evaluation: Evaluation, plots: Mapping[int, bytes]) -> str:
    if not plots:
        return ""
    names = evaluation.class_names
    blocks = []
    for row, plot in plots.items():
        record = evaluation.records[row]
        outcome = {True: " – robust", False: " – broken", None: ""}[record.robust]
        if not record.clean.ever_right:
            outcome = " – wrong when clean"
        heading = _tag("h3", _e(f"Image {record.image}, {names[record.label]}{outcome}"))
        blocks.append(heading + _image(plot, "class losses over noise levels", "plot"))
    about = (
        "The denoising loss of each class at each noise level, weighted as in the classifier, minus that of the true "
        "class. Above zero the true class fits better. The sum over levels decides: the image is right when every "
        "class sums to more than zero. Classes far off leave the frame."
    )
    return _section("Class losses over noise levels", about, "\n".join(blocks))


def _classes(evaluation: Evaluation) -> str:
    names = evaluation.class_names
    kinds = ("clean", "robust") if evaluation.record.identity.settings.attacks else ("clean",)
    head = [("class", ""), ("images", "n")]
    for kind in kinds:
        head += [(kind, "n"), ("", ""), ("", "")]
    rows = [_row(*head, name="th")]
    about = ""
    if evaluation.other_names:
        pairs = ", ".join(f"{ours} is {theirs} there" for ours, theirs in evaluation.other_names[:5])
        about = _e(f"Names are the data set's; the model has others: {pairs}. The numbers of the classes decide.")
    for entry in accuracy_per_class(evaluation.records, len(names)):
        if not entry["n"]:
            continue
        cells = [(_e(names[entry["label"]]), ""), (entry["n"], "n")]
        for kind in kinds:
            share = 100 * entry[kind] / entry["n"]
            bar = f'<div class="scale {kind}"><div class="band" style="left:0;width:{share:.2f}%"></div></div>'
            cells += [(entry[kind], "n"), (bar, ""), (f"{share:.0f} %", "n")]
        rows.append(_row(*cells))
    return _section("By class", about, _tag("table", "\n".join(rows)))


def _settings(evaluation: Evaluation, said: Wording) -> str:
    report, identity = evaluation.figures, evaluation.record.identity
    settings = identity.settings
    last = settings.start + settings.n - 1
    images = f"{settings.dataset}, {settings.split} split, {settings.start} to {last}"
    values: dict[str, object] = {
        "model": f"{settings.model} (weights {identity.weights})",
        "images": f"{images} (content {identity.images})",
        "network": _network(report.classifier),
        "noise levels": said.levels,
        "likelihood maximisation": said.lm,
        "classifier's noise": _plain(report.classifier["noise"]),
        "threat": said.budget if settings.attacks else "none",
        "attacks": ", ".join(settings.attacks) or "none",
    }
    if settings.attacks:
        values["steps × restarts"] = f"{settings.steps} × {settings.restarts}"
        values |= {"gradient": settings.gradient, "noise in the attack": said.noise}
    if said.preset:
        values["preset"] = said.preset
    values |= {"seed": settings.seed, "batch": settings.batch, "commit": report.commit or "unknown"}
    values["versions"] = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    items = "".join(_tag("dt", _e(name)) + _tag("dd", _e(value)) for name, value in values.items())
    command = f"<h3>Command</h3>{_tag('pre', _e(report.command))}"
    return _section("Settings", "", _tag("dl", items) + command)


def _network(classifier: JsonObject) -> str:
    """Kind of the network, and what it computes in unless that is float32."""
    precision = classifier.get("precision") or "float32"
    return classifier["head"] if precision == "float32" else f"{classifier['head']}, {precision}"


def _plain(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
