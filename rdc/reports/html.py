"""The report as one HTML file: style, pictures and plots inside, no scripts, nothing fetched."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from rdc.evaluation import Evaluation, accuracy_per_class, accuracy_per_step
from rdc.evaluation.report import AttackReport, RaisedFlag, Rate, RobustRate, ScoreRates
from rdc.reports.pictures import Gallery, difference_picture, picture
from rdc.reports.plots import losses_plot, steps_plot
from rdc.reports.style import CSS
from rdc.reports.words import budget, interval, level_words, lm_words, noise_words, percent, seconds_words
from rdc.storage.json_records import ABSENT, JsonObject
from rdc.terminal.plain_text import printable

__all__ = ["html_report"]

#: what a bar shows
Figure = Rate | RobustRate | AttackReport


def html_report(evaluation: Evaluation, gallery: Gallery) -> str:
    """The page.

    Args:
        evaluation: a finished run.
        gallery: its chosen images.
    """
    report, settings = evaluation.figures, evaluation.record.identity.settings
    title = f"{report.model} on {report.dataset}"
    parts = [
        _head(evaluation),
        _cards(evaluation),
        _flags(report.flags),
        _attacks(evaluation),
        _steps(evaluation),
        _pictures(evaluation, gallery),
        _losses(evaluation, gallery),
        _classes(evaluation),
        _settings(evaluation),
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


def _time(seconds: float) -> str:
    return _tag("span", seconds_words(seconds), "time")


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


def _head(evaluation: Evaluation) -> str:
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
            f"{_e(budget(settings))} in [0, 1] pixel units. The attacker knows the classifier {known}, and has {exact}."
        )
    else:
        lead += "Nothing attacked them: this page says nothing about robustness."
    about = (
        f"Images {first}–{first + n - 1} of the {_e(settings.split)} split",
        f"{_e(report.classifier['head'])} network",
        _e(level_words(report.classifier)),
        f"likelihood maximisation: {_e(lm_words(report.classifier))}",
    )
    title = f"{_e(report.model)} on {_e(report.dataset)}"
    return (
        f'<header><p class="over">Robustness evaluation</p><h1>{title}</h1>\n{_tag("p", lead, "lead")}\n'
        f"{_tag('p', ' · '.join(about), 'muted')}</header>"
    )


def _cards(evaluation: Evaluation) -> str:
    report, settings = evaluation.figures, evaluation.record.identity.settings
    robust, clean = report.robust, report.clean
    kind = "not attacked" if robust.accuracy is None else _e(budget(settings))
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
            _tag("div", _time(report.seconds), "big small"),
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


def _attacks(evaluation: Evaluation) -> str:
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
    for place, attack in enumerate(report.attacks):
        name = ("then " if place else "") + _e(attack.name) + (f" · {attack.noise} noise" if both else "")
        rows.append(row(name, attack.attacked, attack.survivors, attack, "robust", _time(attack.seconds)))
    standing = sum(bool(record.robust) for record in evaluation.records)
    rows.append(row("all attacks", "", standing, report.robust, "robust", kind="total"))
    names = [("attack", ""), ("attacked", "n"), ("survivors", "n"), ("accuracy", "n"), ("95 % interval", "")]
    if fresh:
        names.append(("average", "n"))
    head = _row(*names, ("", ""), ("time", "n"), name="th")
    restarts = f"{settings.restarts} restart{'s' if (settings.restarts or 1) > 1 else ''}"
    about = (
        f"{_e(budget(settings))}, {settings.steps} steps and {restarts} where the name does not say otherwise, "
        f"{settings.gradient} gradient, {_e(noise_words(settings))}. One attack after another: each attacks only images "
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


def _steps(evaluation: Evaluation) -> str:
    report, settings = evaluation.figures, evaluation.record.identity.settings
    if not settings.attacks:
        return ""
    curves = accuracy_per_step(report.attacks, evaluation.records)
    plot = steps_plot(curves, report.clean, report.robust)
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


def _pictures(evaluation: Evaluation, gallery: Gallery) -> str:
    settings, names = evaluation.record.identity.settings, evaluation.class_names
    records = [evaluation.records[row] for row in gallery.rows]

    def line(name: str, cells: list[str], kind: str = "row") -> str:
        return _tag("tr", _tag("th", name) + "".join(_tag("td", cell) for cell in cells), kind)

    def decided(pixels: np.ndarray, logits: np.ndarray, alt: str) -> list[str]:
        shown = zip(gallery.rows, pixels, strict=True)
        return [_image(picture(image), alt) + _verdict(evaluation, row, logits[row]) for row, image in shown]

    titles = [
        f"<b>{_e(names[record.label])}</b><br>{_tag('span', 'image ' + str(record.image), 'muted')}"
        for record in records
    ]
    lines = [
        line("true class", titles, "head"),
        line("clean", decided(gallery.clean, evaluation.clean_logits, "clean")),
    ]
    about = ["Under each image: the decision and its probability."]
    if settings.attacks:
        lines.append(line("adversarial", decided(gallery.adversarial, evaluation.adversarial_logits, "adversarial")))
        differences = gallery.adversarial - gallery.clean
        gain = _tag("span", f"× {gallery.gain:.3g}", "muted")
        cells = [_image(difference_picture(difference, gallery.gain), "difference") for difference in differences]
        lines.append(line(f"difference<br>{gain}", cells))
        grey = differences.shape[1] == 1
        colours = "white is no change, red brighter, blue darker" if grey else "mid-grey is no change"
        about.append(f"Differences are amplified {gallery.gain:.3g} times: {colours}.")
        about.append(f"Full colour is a change of {255 / gallery.gain:.3g}/255.")
        if any(record.robust is False and record.clean.ever_right for record in records):
            about.append("Images the attack broke come first; of robust ones the most damaging attempt is shown.")
    if gallery.maximized is None:
        about.append("This classifier does no likelihood maximisation, so there is no such picture.")
    else:
        what = "adversarial" if settings.attacks else "clean"
        cells = [_image(picture(image), "after likelihood maximisation") for image in gallery.maximized]
        lines.append(line("after LM", cells))
        about.append(f"After LM: the {what} image as likelihood maximisation hands it to the classifier.")
    return _section("Pictures", " ".join(about), _tag("table", "\n".join(lines), "pictures"))


def _losses(evaluation: Evaluation, gallery: Gallery) -> str:
    if not gallery.losses:
        return ""
    names = evaluation.class_names
    blocks = []
    for row, (clean, adversarial) in gallery.losses.items():
        record = evaluation.records[row]
        predicted = (record.clean.predicted, record.adversarial.predicted if record.adversarial else None)
        outcome = {True: " – robust", False: " – broken", None: ""}[record.robust]
        if not record.clean.ever_right:
            outcome = " – wrong when clean"
        plot = losses_plot(gallery.sigma, clean, adversarial, record.label, predicted, names)
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


def _settings(evaluation: Evaluation) -> str:
    report, identity = evaluation.figures, evaluation.record.identity
    settings = identity.settings
    last = settings.start + settings.n - 1
    images = f"{settings.dataset}, {settings.split} split, {settings.start} to {last}"
    values: dict[str, object] = {
        "model": f"{settings.model} (weights {identity.weights})",
        "images": f"{images} (content {identity.images})",
        "network": _network(report.classifier),
        "noise levels": level_words(report.classifier),
        "likelihood maximisation": lm_words(report.classifier),
        "classifier's noise": _plain(report.classifier["noise"]),
        "threat": budget(settings) if settings.attacks else "none",
        "attacks": ", ".join(settings.attacks) or "none",
    }
    if settings.attacks:
        values["steps × restarts"] = f"{settings.steps} × {settings.restarts}"
        values |= {"gradient": settings.gradient, "noise in the attack": noise_words(settings)}
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
