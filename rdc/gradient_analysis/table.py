"""The comparison as a printed table: a row for each measure, a column for each model."""

from __future__ import annotations

from collections.abc import Sequence

from rdc.errors import one_line
from rdc.gradient_analysis.records import ComparedModel, ComparisonReport, MeasureSummary
from rdc.storage.json_records import JsonObject

__all__ = ["MEASURES", "comparison_table", "figure_text"]

#: measure -> (heading, row's words). {eps}: the radius that goes with it.
MEASURES: dict[str, tuple[str, str]] = {
    "redraws.cosine": ("over redraws of the noise", "cosine between draws"),
    "redraws.relative_variance": ("over redraws of the noise", "variance / |mean|^2"),
    "redraws.sign_agreement": ("over redraws of the noise", "equal signs"),
    "redraws.cosine_fixed_to_mean": ("over redraws of the noise", "cosine, fixed noise to mean"),
    "images.cosine_abs": ("over images", "|cosine| to other images"),
    "gradient.norm_l2": ("over images", "gradient norm, l2"),
    "gradient.norm_l1": ("over images", "gradient norm, l1"),
    "gradient.zero_fraction": ("over images", "entries exactly 0"),
    "jacobian.l2": ("slopes at the image", "Jacobian of logits, l2"),
    "jacobian.linf": ("slopes at the image", "Jacobian of logits, linf"),
    "lipschitz_linf.margin_at_image": ("local Lipschitz, margin, linf {eps}", "|gradient|_1 at the image"),
    "lipschitz_linf.margin_sampled": ("local Lipschitz, margin, linf {eps}", "random points"),
    "lipschitz_linf.margin_ascent": ("local Lipschitz, margin, linf {eps}", "gradient ascent"),
    "lipschitz_linf.reach": ("local Lipschitz, margin, linf {eps}", "eps x larger of these / |margin|"),
    "lipschitz_l2.margin_at_image": ("local Lipschitz, margin, l2 {eps_l2}", "|gradient|_2 at the image"),
    "lipschitz_l2.margin_sampled": ("local Lipschitz, margin, l2 {eps_l2}", "random points"),
    "lipschitz_l2.margin_ascent": ("local Lipschitz, margin, l2 {eps_l2}", "gradient ascent"),
    "lipschitz_l2.reach": ("local Lipschitz, margin, l2 {eps_l2}", "eps x larger of these / |margin|"),
    "slice.plane_fit": ("slice, {norm}", "variance explained by a plane"),
    "path.cosine": ("attack path, {norm}", "cosine of successive gradients"),
    "path.first_order_ratio": ("attack path, {norm}", "loss gained / first-order"),
    "path.increase_fraction": ("attack path, {norm}", "steps that raise the loss"),
    "path.relative_curvature": ("attack path, {norm}", "|change of g| / |g| |step|"),
    "bpda.cosine": ("exact gradient against BPDA", "cosine"),
    "bpda.sign_agreement": ("exact gradient against BPDA", "equal signs"),
    "bpda.norm_ratio": ("exact gradient against BPDA", "|BPDA| / |exact|"),
}
_WORDS, _WIDTH = 36, 27


def figure_text(summary: MeasureSummary | None) -> str:
    """Median with its 95 % interval, "0.931 [0.92, 0.94]"; "–" where not measured, "undefined" where no image has one."""
    if summary is None:
        return "–"
    if summary.n == 0:
        return "undefined"
    text = f"{summary.median:.3g}"
    if summary.median_ci95 is not None:
        text += " [{:.3g}, {:.3g}]".format(*summary.median_ci95)
    return text + (f" ({summary.undefined} undef.)" if summary.undefined and summary.n > 1 else "")


def comparison_table(report: JsonObject) -> str:
    """The report as text: what each model is, then medians over images with 95 % bootstrap intervals.

    Args:
        report: see ``compare_models``.
    """
    found = ComparisonReport.from_json(report, "report")
    settings, models = found.settings, found.models
    first, last = settings["start"], settings["start"] + settings["n"] - 1
    lines = [
        f"gradients on {found.dataset}, images {first} to {last} of the {settings['split']} split; loss: log-odds, "
        f"logit scale {settings['logit_scale']}",
        "",
    ]
    for number, model in enumerate(models, 1):
        right = sum(record.right for record in model.measures.images)
        lines.append(f"  {number}  {model.label}: {right} of {len(model.measures.images)} right{_settings(model)}")
        if model.measures.note:
            lines.append(f"     {model.measures.note}")
    lines += ["", "  median over images [95 % interval]".ljust(_WORDS + 2) + "".join(_heads(models))]
    shown = ""
    for name, (group, words) in MEASURES.items():
        summaries = [model.measures.summary.get(name) for model in models]
        if all(summary is None for summary in summaries):
            continue
        if group != shown:
            shown = group
            lines.append("  " + group.format(eps=settings["eps"], eps_l2=settings["eps_l2"], norm=_ball(settings)))
        lines.append("    " + words.ljust(_WORDS - 2) + "".join(figure_text(one).rjust(_WIDTH) for one in summaries))
    lines += _doubts(models)
    return "\n".join(one_line(line.rstrip(), 4000) for line in lines) + "\n"


def _doubts(models: Sequence[ComparedModel]) -> list[str]:
    """A line for each model whose likelihood maximisation asks a network in a way that it was never trained for, or nobody knows."""
    lines = []
    for number, model in enumerate(models, 1):
        for network in (model.classifier or {}).get("networks", ()):
            if network.get("null_label") in ("never trained", "unknown"):
                lines.append(f"  {number}  {network['role']}: null label {network['null_label']} ({network['why']})")
    return ["", *lines] if lines else []


def _ball(settings: JsonObject) -> str:
    return f"{settings['norm']} {settings['eps'] if settings['norm'] == 'linf' else settings['eps_l2']}"


def _heads(models: Sequence[ComparedModel]) -> list[str]:
    room = _WIDTH - 4
    heads = []
    for number, model in enumerate(models, 1):
        label = model.label if len(model.label) <= room else model.label[: room - 1] + "…"
        heads.append(f"{number} {label}".rjust(_WIDTH))
    return heads


def _settings(model: ComparedModel) -> str:
    """ "; exact gradient" where there are two."""
    classifier = model.classifier or {}
    purifies = "bpda.cosine" in model.measures.summary
    return f"; {classifier['gradient']} gradient" if purifies and "gradient" in classifier else ""
