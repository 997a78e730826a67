"""The audit: measure, judge, report."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import torch

from rdc.audits.answer_rules import ANSWER_RULES
from rdc.audits.answers import Answers, measure_answers, measure_ranges
from rdc.audits.claim_rules import CLAIM_RULES
from rdc.audits.claims import measure_claims
from rdc.audits.contents import measure_contents
from rdc.audits.gradient_rules import GRADIENT_RULES, NO_GRADIENT, SETTING_RULES
from rdc.audits.input_rules import INPUT_RULES
from rdc.audits.inside import kept_generators, measure_generators, measure_inside, seed_all
from rdc.audits.nearby import measure_jumps, measure_steps
from rdc.audits.repeats import end_memory, measure_batches, open_memory
from rdc.audits.report import AuditReport, Finding, in_shell
from rdc.audits.rule import ERROR, SEVERITIES, Outcome, Rule
from rdc.audits.settings import AuditSettings
from rdc.audits.short_attacks import ShortAttacks, flags_of_settings, measure_short_attacks
from rdc.audits.slopes import measure_slopes
from rdc.audits.subject import Subject, open_subject
from rdc.defences.factory import name_of
from rdc.errors import ConfigError, InputError, one_line
from rdc.evaluation.records import OutputChecks
from rdc.models.choice import ModelChoice
from rdc.provenance.run import versions
from rdc.storage.json_records import given
from rdc.terminal.progress import bar

__all__ = ["RULES", "audit"]

_NO_LOGITS = Rule(
    "no-logits",
    ERROR,
    "the model does not answer pixels [N, C, H, W] with finite floating logits [N, K]",
    "Attacks and scores need one number for each class of each image.",
    "Return logits as a torch tensor [N, K], K >= 2.",
    "z = model(x[:2]); print(not (isinstance(z, torch.Tensor) and z.ndim == 2 and len(z) == 2 and z.is_floating_point()), type(z), "
    "getattr(z, 'shape', None))",
    "logits",
    lambda found: Outcome(False, "pixels are answered with logits"),
)
#: every rule, in the order in which they are checked
RULES: tuple[Rule, ...] = (_NO_LOGITS, *INPUT_RULES, *ANSWER_RULES, *GRADIENT_RULES, *SETTING_RULES, *CLAIM_RULES)


_AS_GIVEN = ("logits", "scale")  # rules whose line is about model and images as they were given


@dataclasses.dataclass(frozen=True)
class _Where:
    """How the commands of findings come to model, images and run.

    Args:
        opened_by, command: as of :func:`audit`.
        here: the Python that stands for ``opened_by`` where the model is.
        run: folder of the run.
    """

    opened_by: str | None
    command: str | None
    here: str
    run: str | None


@dataclasses.dataclass(frozen=True)
class _Missing:
    """A measurement that could not be made.

    Args:
        reason: in one line.
        silent: the rules about it are left out, not listed.
    """

    reason: str
    silent: bool = False


def audit(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    settings: AuditSettings | None = None,
    run: str | os.PathLike[str] | None = None,
    name: str | None = None,
    opened_by: str | None = None,
    command: str | None = None,
    progress: bool = False,
) -> AuditReport:
    """Set what a model seems to be against what it does.

    >>> report = rdc.audit(model, x, y)
    >>> print(report.text()); report.names, report.warns

    Args:
        model: a module or function pixels [N, C, H, W] in [0, 1] -> logits [N, K], an object with purify and classify, a defence, the
            name of a model for ``rdc.load`` (``file.py:factory`` too), or a :class:`rdc.models.choice.ModelChoice`. It is lent: the mode of
            a module and the global generators are afterwards as they were.
        x: images [N, C, H, W] and ``y`` [N] integers; or, without ``y``, a data set or its name. Images that are no pixels in [0, 1] are a
            finding, and are brought to that scale.
        y: see above.
        settings: of the audit; None: the defaults.
        run: a folder of ``rdc evaluate`` whose claims are audited, too.
        name: what to call the model.
        opened_by: Python that makes ``model``, ``x`` and ``y``, for the commands of the report, which are then commands of a shell; None:
            they are Python, for where the model is.
        command: of a shell, that shows how a model fails which does not answer with logits; None: Python.
        progress: draw a bar on stderr.

    Returns:
        The report. The model's answers and the settings decide it; two audits with the same say the same.

    Raises:
        ConfigError, DataError: no such model, data or run; they do not go together.
        InputError: the model raised an error on its own images.
    """
    settings = settings or AuditSettings()
    here = f"model, x, y = rdc.audits.subject(model, x{', y' if y is not None else ''}, n={settings.n}, start={settings.start})"
    where = _Where(opened_by, command, here, None if run is None else os.fspath(run))
    called = name or (model.name if isinstance(model, ModelChoice) else name_of(model))
    with kept_generators(), bar(total=13, unit="part", leave=False, enabled=progress) as line:
        seed_all(settings.seed)
        line.set_description_str("loading")
        try:
            subject = open_subject(model, x, y, settings, called)
        except InputError as error:
            if error.__cause__ is not None:  # it raised something itself
                raise
            measures: dict[str, Any] = {"logits": _Missing(one_line(error, 600))}
            return _report(None, measures, settings, called, x, where)
        measures = _measure(subject, line, run)
    return _report(subject, measures, settings, called, x, where)


def _measure(subject: Subject, line: Any, run: Any) -> dict[str, Any]:
    """Everything that rules judge, by the name that they know it by; what could not be measured is ``_Missing``."""
    found: dict[str, Any] = {"logits": True, "scale": (subject.scale, subject.settings.radius)}

    def take(name: str, measure: Callable[[], Any]) -> Any:
        line.set_description_str(name)
        try:
            found[name] = measure()
        except (InputError, ConfigError) as error:
            found[name] = _Missing(one_line(error, 400))
        line.update()
        return found[name]

    opening = take("memory", lambda: open_memory(subject))
    answers = take("answers", lambda: measure_answers(subject))
    take("contents", lambda: measure_contents(subject))
    take("inside", lambda: measure_inside(subject))
    logits: Any = None if isinstance(answers, _Missing) else answers.logits
    checks = OutputChecks() if isinstance(answers, _Missing) else answers.checks
    take("settings", lambda: flags_of_settings(subject, checks))
    found |= _of_run(subject, run, logits, take)
    reason = _not_usable(answers)
    if reason:
        names = ("memory", "generators", "batches", "ranges", "jumps", "steps", "slopes", "short attacks")
        return {**found, **{name: _Missing(reason) for name in names}}
    take("generators", lambda: measure_generators(subject))
    coarse, at_once = bool(answers.types), getattr(opening, "at_once", 0.0)
    take("batches", lambda: measure_batches(subject, logits, answers.spread, at_once, coarse))
    take("ranges", lambda: measure_ranges(subject, logits))
    take("jumps", lambda: measure_jumps(subject))
    take("steps", lambda: measure_steps(subject))
    take("slopes", lambda: measure_slopes(subject, logits))
    found["short attacks"] = _short(subject, answers, line)
    if not isinstance(opening, _Missing):
        take("memory", lambda: end_memory(subject, opening, answers.spread))
    return found


def _not_usable(answers: Any) -> str:
    """Why nothing can be compared; "" if it can."""
    if isinstance(answers, _Missing):
        return answers.reason
    return "answers are not finite" if answers.not_finite else ""


def _short(subject: Subject, answers: Answers, line: Any) -> ShortAttacks | _Missing:
    """Short attacks, or why there are none."""
    if subject.settings.sanity == 0:
        return _Missing("sanity is 0")

    def step(about: Any) -> None:
        line.set_description_str(f"{about['attack']}, step {about['step']}/{about['steps']}", refresh=False)
        line.update(0)

    try:
        found = measure_short_attacks(subject, answers.checks, step)
    except (InputError, ConfigError) as error:
        return _Missing(one_line(error, 400))
    problem = given(found.sanity.error)
    if problem is not None:
        return _Missing(one_line(problem, 400))
    return found if found.n else _Missing(f"none of the first {subject.settings.sanity} images is right when clean")


def _of_run(subject: Subject, run: Any, logits: Any, take: Callable[[str, Callable[[], Any]], Any]) -> dict[str, Any]:
    """What a run claims; without one its rules are left out."""
    if run is None:
        return {name: _Missing("no --run", silent=True) for name in ("claims", "adaptive claims")}
    claims = measure_claims(run, subject, logits)
    defence, reasons = subject.defence, []
    reasons += ["purifies its input"] if defence.purifies else []
    reasons += ["draws noise"] if defence.stochastic else []
    return {"claims": claims, "adaptive claims": (claims, tuple(reasons))}


def _report(
    subject: Subject | None,
    measures: dict[str, Any],
    settings: AuditSettings,
    name: str,
    data: Any,
    where: _Where,
) -> AuditReport:
    findings, fine, unchecked = [], {}, {}
    for rule in RULES:
        measured = measures.get(rule.of, _Missing("the model's answers are no logits"))
        if isinstance(measured, _Missing):
            if rule in (_NO_LOGITS, NO_GRADIENT) and rule.of in measures and _is_about(rule, measured):
                findings.append(_finding(rule, Outcome(True, measured.reason), where))
            elif not measured.silent:
                unchecked[rule.name] = measured.reason
            continue
        outcome = rule.check(measured)
        if outcome.raised:
            findings.append(_finding(rule, outcome, where))
        else:
            fine[rule.name] = outcome.words
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    first = settings.start
    n = len(subject.pixels) if subject else 0
    about = (
        f"images {first} to {first + n - 1} of the {settings.split} split, {settings.norm} {settings.eps}, seed {settings.seed}"
        if n
        else "which it did not answer"
    )
    return AuditReport(
        model=name,
        dataset=subject.data.name if subject else str(getattr(data, "name", "the images")),
        about=about,
        settings=dataclasses.asdict(settings),
        findings=tuple(findings),
        fine=fine,
        unchecked=unchecked,
        calls=subject.calls[0] if subject else 0,
        images=subject.calls[1] if subject else 0,
        versions=versions(subject.defence.device if subject else torch.device("cpu")),
        run=where.run,
    )


def _is_about(rule: Rule, measured: _Missing) -> bool:
    """Whether a measurement failed for the very reason that the rule is about."""
    return rule is _NO_LOGITS or "differentiably" in measured.reason


def _finding(rule: Rule, outcome: Outcome, where: _Where) -> Finding:
    line = rule.line.format(run=where.run) if rule in CLAIM_RULES else rule.line
    if rule is _NO_LOGITS and where.command:
        shown = where.command
    elif rule.of in _AS_GIVEN or where.opened_by is None:
        begin = "" if rule.of in _AS_GIVEN else f"{where.here}; "
        shown = f"import torch, rdc; {begin}{line}"
    else:
        shown = in_shell(f"import torch, rdc; {where.opened_by}; {line}")
    evidence = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value  # as JSON can hold it
        for key, value in outcome.numbers.items()
    }
    return Finding(rule.name, rule.severity, outcome.words, evidence, rule.explanation, rule.what_to_do, shown)
