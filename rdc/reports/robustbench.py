"""RobustBench's model_info/<dataset>/<threat>/<Model>.json: https://github.com/RobustBench/robustbench."""

from __future__ import annotations

from rdc.attacks.registry import suite
from rdc.evaluation import Evaluation
from rdc.reports.words import interval, wording
from rdc.storage.json_records import JsonObject, given

__all__ = ["KEYS", "model_info"]

KEYS = (
    "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps",
    "clean_acc", "reported", "autoattack_acc", "external", "footnote", "unreliable",
)  # fmt: skip

_AUTHORS = "rdc, after Huanran Chen, Yinpeng Dong, Zhengyi Wang, Xiao Yang, Chengqi Duan, Hang Su, Jun Zhu"


def model_info(evaluation: Evaluation, evaluations_per_image: int | None = None) -> JsonObject:
    """The keys RobustBench's leaderboard reads.

    Our figure is ``reported``; it is null when nothing attacked. ``autoattack_acc`` is the same if the run had all parts of the
    standard AutoAttack (this package's own) with its 100 steps and full query budget, else null. ``external`` stays null.

    Args:
        evaluation: a finished run.
        evaluations_per_image: network passes of one decision.
    """
    report, settings, said = evaluation.figures, evaluation.record.identity.settings, wording(evaluation)
    robust = report.robust.accuracy
    footnote = f"{report.n} images of the {settings.split} split; clean {interval(report.clean.ci95)}"
    complete = set(suite("autoattack", given(settings.norm))) <= set(settings.attacks) and (settings.steps or 0) >= 100
    if settings.attacks:
        attacks = ", ".join(settings.attacks)
        how = f"{attacks}, {settings.steps} steps, {settings.restarts} restart(s), {said.threat}"
        footnote += f", robust {interval(report.robust.ci95)} (95 % Wilson). Attacks: {how}"
        footnote += "" if complete else ". Not AutoAttack"
    footnote += f". Levels: {said.levels}. Likelihood maximisation: {said.lm}."
    footnote += f" Preset: {said.preset}." if said.preset else ""
    ours = report.classifier["weighting"] is not None
    values = {
        "link": "https://arxiv.org/abs/2305.15241" if ours else None,
        "name": "Robust Classification via a Single Diffusion Model" if ours else settings.model,
        "authors": _AUTHORS if ours else None,
        "additional_data": False,
        "number_forward_passes": evaluations_per_image,
        "dataset": report.dataset,
        "venue": "ICML 2024" if ours else None,
        "architecture": f"{report.model} ({report.classifier['head']}{' diffusion classifier' if ours else ''})",
        "eps": settings.eps,
        "clean_acc": f"{100 * report.clean.accuracy:.2f}",
        "reported": None if robust is None else f"{100 * robust:.2f}",
        "autoattack_acc": f"{100 * robust:.2f}" if complete and robust is not None else None,
        "external": None,
        "footnote": footnote,
        "unreliable": any(flag.warns for flag in report.flags),
    }
    return {key: values[key] for key in KEYS}
