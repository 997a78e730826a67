"""The report as one HTML file: style, pictures and plots inside, no scripts, nothing fetched."""

from __future__ import annotations

import base64
import html
from typing import Any

import numpy as np

from rdc.evaluation import Evaluation, accuracy_per_class, accuracy_per_step
from rdc.reports.pictures import Gallery, difference_picture, picture
from rdc.reports.plots import losses_plot, steps_plot
from rdc.reports.style import CSS
from rdc.reports.words import budget, interval, level_words, lm_words, noise_words, percent, seconds_words

__all__ = ["html_report"]


def html_report(evaluation: Evaluation, gallery: Gallery) -> str:
    """The page.

    Args:
        evaluation: a finished run.
        gallery: its chosen images.
    """
    report, settings = evaluation.report, evaluation.settings
    title = f"{report['model']} on {report['dataset']}"
    parts = [
        _head(evaluation),
        _cards(evaluation),
        _flags(report["flags"]),
        _attacks(evaluation),
        _steps(evaluation),
        _pictures(evaluation, gallery),
        _losses(evaluation, gallery),
        _classes(evaluation),
        _settings(evaluation),
    ]
    body = "\n".join(part for part in parts if part)
    note = "" if settings["attacks"] else " (clean accuracy only)"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(title)}{note} – rdc</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "<footer>Written by rdc. Intervals are 95 % Wilson score intervals over images. Per-image results: results.jsonl; figures: report.json.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _e(text: object) -> str:
    return html.escape(str(text))


def _image(png: bytes, alt: str, kind: str = "") -> str:
    code = base64.b64encode(png).decode()
    marked = f' class="{kind}"' if kind else ""
    return f'<img{marked} src="data:image/png;base64,{code}" alt="{_e(alt)}">'


def _scale(rate: dict[str, Any], kind: str) -> str:
    if rate["accuracy"] is None:
        return '<div class="scale"></div>'
    low, high = (100 * end for end in rate["ci95"])
    value = 100 * rate["accuracy"]
    return (
        f'<div class="scale {kind}"><div class="fill" style="width:{value:.2f}%"></div>'
        f'<div class="band" style="left:{low:.2f}%;width:{high - low:.2f}%"></div><div class="dot" style="left:{value:.2f}%"></div></div>'
    )


def _head(evaluation: Evaluation) -> str:
    report, settings = evaluation.report, evaluation.settings
    n = report["n"]
    clean = sum(record["clean"]["right"] == 1 for record in evaluation.images)
    if not settings["attacks"]:
        lead = f"{clean} of {n} images are classified correctly. Nothing attacked them: this page says nothing about robustness."
    else:
        robust = sum(bool(record["robust"]) for record in evaluation.images)
        knows = (
            "the classifier and the very noise it uses"
            if settings["noise"] == "known"
            else "the classifier, but not the noise it draws"
        )
        gradient = (
            "exact gradients"
            if settings["gradient"] == "exact"
            else "gradients that take likelihood maximisation as the identity"
        )
        lead = (
            f"{clean} of {n} images are classified correctly. {robust} still are under every attack of this run, each free to change an image by "
            f"{_e(budget(settings))} in [0, 1] pixel units. The attacker knows {knows}, and has {gradient}."
        )
    first = settings["start"]
    return (
        f'<header><p class="over">Robustness evaluation</p><h1>{_e(report["model"])} on {_e(report["dataset"])}</h1>\n'
        f'<p class="lead">{lead}</p>\n<p class="muted">Images {first}–{first + n - 1} of the {_e(settings["split"])} split · '
        f"{_e(report['classifier']['head'])} network · {_e(level_words(report['classifier']))} · "
        f"likelihood maximisation: {_e(lm_words(report['classifier']))}</p></header>"
    )


def _cards(evaluation: Evaluation) -> str:
    report, settings = evaluation.report, evaluation.settings
    robust, clean = report["robust"], report["clean"]
    kind = "not attacked" if robust["accuracy"] is None else budget(settings)
    extra = (
        f" · average {percent(robust['average']['accuracy'])}, worst of {robust['worst_of']} shown"
        if "average" in robust
        else ""
    )
    per_image = f"{report['network_evaluations'] / report['n']:,.0f} network evaluations an image"
    return (
        '<div class="cards">\n'
        f'<div class="card main"><div class="what">Robust accuracy · {_e(kind)}</div><div class="big">{percent(robust["accuracy"])}</div>'
        f'{_scale(robust, "robust")}<div class="ci">95 % interval {interval(robust["ci95"])}{extra}</div></div>\n'
        f'<div class="card"><div class="what">Clean accuracy</div><div class="big">{percent(clean["accuracy"])}</div>'
        f'{_scale(clean, "clean")}<div class="ci">95 % interval {interval(clean["ci95"])}</div></div>\n'
        f'<div class="card"><div class="what">Work</div><div class="big small"><span class="time">{seconds_words(report["seconds"])}</span></div>'
        f'<div class="ci">{report["network_evaluations"]:,} network evaluations<br>{per_image}</div></div>\n</div>'
    )


def _flags(flags: list[dict[str, str]]) -> str:
    if not flags:
        return '<section><h2>Flags</h2><p class="muted">None raised.</p></section>'
    items = "\n".join(
        f'<div class="flag {flag["severity"]}"><span class="tag">{flag["severity"]}</span><span class="name">{_e(flag["name"])}</span> '
        f'<span class="evidence">· {_e(flag["evidence"])}</span><p>{_e(flag["explanation"])} <b>What to do:</b> {_e(flag["what_to_do"])}</p></div>'
        for flag in flags
    )
    return f'<section><h2>Flags</h2><p class="muted">Reasons to doubt the figures above, or to say more beside them.</p>\n{items}</section>'


def _attacks(evaluation: Evaluation) -> str:
    report, settings = evaluation.report, evaluation.settings
    if not settings["attacks"]:
        return ""
    fresh = settings["noise"] == "fresh"
    rows = [
        f'<tr><td>no attack</td><td class="n">–</td><td class="n">–</td><td class="n">{percent(report["clean"]["accuracy"])}</td>'
        f'<td class="muted">{interval(report["clean"]["ci95"])}</td>{"<td></td>" if fresh else ""}<td>{_scale(report["clean"], "clean")}</td><td class="n"></td></tr>'
    ]
    for place, attack in enumerate(report["attacks"]):
        average = f'<td class="n">{percent(attack["average"]["accuracy"])}</td>' if fresh else ""
        rows.append(
            f'<tr><td>{"then " if place else ""}{_e(attack["name"])}</td><td class="n">{attack["attacked"]}</td><td class="n">{attack["survivors"]}</td>'
            f'<td class="n">{percent(attack["accuracy"])}</td><td class="muted">{interval(attack["ci95"])}</td>{average}'
            f'<td>{_scale(attack, "robust")}</td><td class="n"><span class="time">{seconds_words(attack["seconds"])}</span></td></tr>'
        )
    average = f'<td class="n">{percent(report["robust"]["average"]["accuracy"])}</td>' if fresh else ""
    rows.append(
        f'<tr class="total"><td>all attacks</td><td class="n"></td><td class="n">{sum(bool(r["robust"]) for r in evaluation.images)}</td>'
        f'<td class="n">{percent(report["robust"]["accuracy"])}</td><td>{interval(report["robust"]["ci95"])}</td>{average}<td>{_scale(report["robust"], "robust")}</td><td></td></tr>'
    )
    about = (
        f"{_e(budget(settings))}, {settings['steps']} steps, {settings['restarts']} restart{'s' if settings['restarts'] > 1 else ''}, "
        f"{settings['gradient']} gradient, {_e(noise_words(settings))}. One attack after another: each attacks only images that are still right, "
        "and its accuracy counts images that were right when clean and survived it and all before it."
    )
    average = (
        f'<th class="n" title="share of right answers over {settings["resubmissions"]} submissions">average</th>'
        if fresh
        else ""
    )
    head = f'<tr><th>attack</th><th class="n">attacked</th><th class="n">survivors</th><th class="n">accuracy</th><th>95 % interval</th>{average}<th></th><th class="n">time</th></tr>'
    return f'<section><h2>Attacks</h2><p class="muted">{about}</p>\n<table>{head}\n{"".join(rows)}</table></section>'


def _steps(evaluation: Evaluation) -> str:
    report, settings = evaluation.report, evaluation.settings
    if not settings["attacks"]:
        return ""
    plot = steps_plot(
        accuracy_per_step(settings, evaluation.images), report["clean"], report["robust"], settings["restarts"]
    )
    note = "A curve that is still falling at its right end asks for more steps."
    if settings["noise"] == "fresh":
        note += f" The curve shows what the attacker saw (images right by the mean of its draws); the point at the right is worst of {settings['resubmissions']} fresh draws."
    return f'<section><h2>Accuracy against attack steps</h2><p class="muted">{note}</p>{_image(plot, "accuracy against attack steps", "plot")}</section>'


def _probability(logits: np.ndarray, k: int) -> float:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return float(shifted[k] / shifted.sum())


def _verdict(evaluation: Evaluation, row: int, logits: np.ndarray) -> str:
    record, names = evaluation.images[row], evaluation.dataset.class_names
    k = int(logits.argmax())
    kind = "right" if k == record["label"] else "wrong"
    return f'<span class="{kind}">{_e(names[k])}</span><br><span class="muted">{100 * _probability(logits, k):.0f} %</span>'


def _pictures(evaluation: Evaluation, gallery: Gallery) -> str:
    settings, names = evaluation.settings, evaluation.dataset.class_names
    rows = gallery.rows
    records = [evaluation.images[row] for row in rows]
    lines = [
        (
            "true class",
            [
                f"<b>{_e(names[record['label']])}</b><br><span class='muted'>image {record['image']}</span>"
                for record in records
            ],
            "head",
        ),
        (
            "clean",
            [
                _image(picture(gallery.clean[m]), "clean image")
                + _verdict(evaluation, row, evaluation.clean_logits[row])
                for m, row in enumerate(rows)
            ],
            "row",
        ),
    ]
    about = ["Under each image: the decision and its probability."]
    if settings["attacks"]:
        lines.append(
            ("adversarial", [_image(picture(gallery.adversarial[m]), "adversarial image") + _verdict(evaluation, row, evaluation.adversarial_logits[row]) for m, row in enumerate(rows)], "row")
        )  # fmt: skip
        differences = gallery.adversarial - gallery.clean
        lines.append(
            (
                f"difference<br><span class='muted'>× {gallery.gain:.3g}</span>",
                [_image(difference_picture(d, gallery.gain), "difference") for d in differences],
                "row",
            )
        )
        colours = (
            "white is no change, red brighter, blue darker" if differences.shape[1] == 1 else "mid-grey is no change"
        )
        about.append(
            f"Differences are amplified {gallery.gain:.3g} times: {colours}; full colour is a change of {255 / gallery.gain:.3g}/255."
        )
        if any(record["robust"] is False and record["clean"]["right"] > 0 for record in records):
            about.append("Images the attack broke come first; of robust ones the most damaging attempt is shown.")
    if gallery.maximized is not None:
        what = "adversarial" if settings["attacks"] else "clean"
        lines.append(
            (
                "after LM",
                [_image(picture(image), "after likelihood maximisation") for image in gallery.maximized],
                "row",
            )
        )
        about.append(f"After LM: the {what} image as likelihood maximisation hands it to the classifier.")
    else:
        about.append("This classifier does no likelihood maximisation, so there is no such picture.")
    body = "\n".join(
        f'<tr class="{kind}"><th>{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells, kind in lines
    )
    return f'<section><h2>Pictures</h2><p class="muted">{" ".join(about)}</p>\n<table class="pictures">{body}</table></section>'


def _losses(evaluation: Evaluation, gallery: Gallery) -> str:
    names = evaluation.dataset.class_names
    blocks = []
    for row, (clean, adversarial) in gallery.losses.items():
        record = evaluation.images[row]
        predicted = (record["clean"]["predicted"], record["adversarial"] and record["adversarial"]["predicted"])
        outcome = (
            {True: "robust", False: "broken", None: ""}[record["robust"]]
            if record["clean"]["right"] > 0
            else "wrong when clean"
        )
        plot = losses_plot(gallery.sigma, clean, adversarial, record["label"], predicted, names)
        heading = f"Image {record['image']}, {names[record['label']]}{f' – {outcome}' if outcome else ''}"
        blocks.append(f"<h3>{_e(heading)}</h3>{_image(plot, 'class losses over noise levels', 'plot')}")
    about = (
        "The denoising loss of each class at each noise level, weighted as in the classifier, minus that of the true class. Above zero the true class "
        "fits better. The sum over levels decides: the image is right when every class sums to more than zero. Classes far off leave the frame."
    )
    return f'<section><h2>Class losses over noise levels</h2><p class="muted">{about}</p>\n{"".join(blocks)}</section>'


def _classes(evaluation: Evaluation) -> str:
    names = evaluation.dataset.class_names
    rows = []
    for entry in accuracy_per_class(evaluation.images, len(names)):
        if not entry["n"]:
            continue
        cells = f'<td>{_e(names[entry["label"]])}</td><td class="n">{entry["n"]}</td>'
        for kind in ("clean", "robust"):
            if entry[kind] is not None:
                share = entry[kind] / entry["n"]
                bar = (
                    f'<div class="scale {kind}"><div class="band" style="left:0;width:{100 * share:.2f}%"></div></div>'
                )
                cells += f'<td class="n">{entry[kind]}</td><td>{bar}</td><td class="n">{100 * share:.0f} %</td>'
        rows.append(f"<tr>{cells}</tr>")
    robust = '<th class="n">robust</th><th></th><th></th>' if evaluation.settings["attacks"] else ""
    head = f'<tr><th>class</th><th class="n">images</th><th class="n">clean</th><th></th><th></th>{robust}</tr>'
    return f"<section><h2>By class</h2>\n<table>{head}{''.join(rows)}</table></section>"


def _settings(evaluation: Evaluation) -> str:
    report, identity = evaluation.report, evaluation.run["identity"]
    settings = identity["settings"]
    values = {
        "model": f"{settings['model']} (weights {identity['weights']})",
        "images": f"{settings['dataset']}, {settings['split']} split, {settings['start']} to {settings['start'] + settings['n'] - 1} (content {identity['images']})",
        "network": report["classifier"]["head"],
        "noise levels": level_words(report["classifier"]),
        "likelihood maximisation": lm_words(report["classifier"]),
        "classifier's noise": _plain(report["classifier"]["noise"]),
        "threat": budget(settings) if settings["attacks"] else "none",
        "attacks": ", ".join(settings["attacks"]) or "none",
    }
    if settings["attacks"]:
        values |= {
            "steps × restarts": f"{settings['steps']} × {settings['restarts']}",
            "gradient": settings["gradient"],
            "noise in the attack": noise_words(settings),
        }
    values |= {"seed": settings["seed"], "batch": settings["batch"], "commit": report["commit"] or "unknown"}
    values["versions"] = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    items = "".join(f"<dt>{_e(name)}</dt><dd>{_e(value)}</dd>" for name, value in values.items())
    return f"<section><h2>Settings</h2><dl>{items}</dl><h3>Command</h3><pre>{_e(report['command'])}</pre></section>"


def _plain(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
