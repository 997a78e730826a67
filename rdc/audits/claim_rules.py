"""Rules about a run of ``rdc evaluate``: what it claims, and what was done for it."""

from __future__ import annotations

from rdc.audits.claims import Claims
from rdc.audits.rule import ERROR, NOTE, WARNING, Number, Outcome, Rule

__all__ = ["CLAIM_RULES"]


def _unfinished(found: Claims) -> Outcome:
    words = f"{found.finished} of {found.asked} images are finished"
    words += f": {found.unfinished}" if found.unfinished else ""
    return Outcome(bool(found.unfinished), words, {"finished": found.finished, "asked": found.asked})


def _another_model(found: Claims) -> Outcome:
    words = "; ".join(found.differs) or "weights, levels, likelihood maximisation and precision are those of the run"
    return Outcome(bool(found.differs), words)


def _other_decisions(found: Claims) -> Outcome:
    if found.decisions is None:
        return Outcome(False, "no clean decisions to compare (no image in both, or fresh noise)")
    words = f"{found.decisions} of {found.common} clean decisions of the run are others today"
    numbers: dict[str, Number] = {"other": found.decisions, "images": found.common}
    changed, stored = found.decisions, found.stored
    if stored is not None:
        words += (
            f"; of its adversarial images {stored.held} said to hold are wrong, {stored.broken} said to break are right"
        )
        numbers |= {"hold no more": stored.held, "break no more": stored.broken}
        changed += stored.held + stored.broken
    return Outcome(changed > 0, words, numbers)


def _stored_images(found: Claims) -> Outcome:
    stored = found.stored
    if stored is None:
        return Outcome(False, "no stored images to check (no image in both, no attack in a ball, or fresh noise)")
    longest = "not finite" if stored.longest is None else f"{stored.longest:.6g}"
    words = f"{stored.allowed} of {stored.n} stored images keep budget and range; the largest distance is {longest} of {stored.radius:.6g}"
    numbers: dict[str, Number] = {
        "allowed": stored.allowed,
        "n": stored.n,
        "largest": stored.longest,
        "radius": stored.radius,
    }
    return Outcome(stored.allowed < stored.n, words, numbers)


def _not_autoattack(found: Claims) -> Outcome:
    ran = ", ".join(found.attacks) or "none"
    if not found.standard:
        return Outcome(False, f"attacks: {ran}; AutoAttack is not defined for this threat model")
    words = f"attacks: {ran}" + (f"; missing of AutoAttack: {', '.join(found.missing)}" if found.missing else "")
    return Outcome(bool(found.missing), words, {"missing": ", ".join(found.missing)})


def _short_attacks(found: Claims) -> Outcome:
    words = "; ".join(found.short) or "parts of AutoAttack had 100 steps, 5,000 queries and all targets"
    return Outcome(bool(found.short), words, {"short": len(found.short)})


def _few_images(found: Claims) -> Outcome:
    if found.width is None:
        return Outcome(False, "nothing attacked")
    words = f"n = {found.finished}: the 95 % interval of the robust accuracy is {100 * found.width:.1f} points wide"
    return Outcome(found.width > 0.2, words, {"n": found.finished, "points": 100 * found.width})


def _not_adaptive(found: tuple[Claims, tuple[str, ...]]) -> Outcome:
    claims, reasons = found
    if not reasons:
        return Outcome(False, "the model does nothing at test time that an attack would have to be adapted to")
    words = f"the model {' and '.join(reasons)}; adaptive attacks that ran: {', '.join(claims.adaptive) or 'none'}"
    return Outcome(bool(claims.attacks) and not claims.adaptive, words, {"adaptive": len(claims.adaptive)})


def _flagged(found: Claims) -> Outcome:
    warnings = [flag for flag in found.flags if flag.warns]
    words = "; ".join(f"{flag.name}: {flag.evidence}" for flag in warnings) or "the run raised no warning of its own"
    return Outcome(bool(warnings), words, {"warnings": len(warnings)})


def _noted(found: Claims) -> Outcome:
    notes = [flag for flag in found.flags if not flag.warns]
    words = "; ".join(f"{flag.name}: {flag.evidence}" for flag in notes) or "the run raised no note of its own"
    return Outcome(bool(notes), words, {"notes": len(notes)})


_READ = "run = rdc.evaluation.comparison.read_run({run!r}); "

CLAIM_RULES = (
    Rule(
        "run-unfinished",
        ERROR,
        "the run was stopped before all images were attacked",
        "Its figures are about the images that came first, and no report was written.",
        "Run the same rdc evaluate command again; it goes on where it stopped.",
        "import pathlib; print(not pathlib.Path({run!r}, 'report.json').exists())",
        "claims",
        _unfinished,
    ),
    Rule(
        "run-of-another-model",
        ERROR,
        "weights or settings of the model are not those that the run recorded",
        "The run's figures are another model's.",
        "Evaluate this model, or audit the one of the run with its own --levels, --lm and --precision.",
        _READ
        + "w = rdc.provenance.run.weights_digest(model); print(w != run.identity.weights, w, run.identity.weights)",
        "claims",
        _another_model,
    ),
    Rule(
        "run-decides-otherwise",
        WARNING,
        "a decision that the run recorded, of a clean or of an adversarial image, is another today",
        "The model, its images, or what it draws changed; or decisions hang on rounding.",
        "Evaluate again, and compare with rdc compare.",
        _READ
        + "first = run.identity.settings.start; rows = [i for i in range(first, first + len(x)) if i in run.images]; "
        "at = [i - first for i in rows]; f = run.adversarial(set(rows)); z = model(x[at]).argmax(1).tolist(); "
        "a = (model(torch.stack([torch.from_numpy(f[i]) for i in rows]).to(x.device)).argmax(1) == y[at]).tolist(); "
        "n = sum(run.images[i].clean.predicted != k or (run.images[i].clean.right == 1 and run.images[i].robust not in (None, b)) "
        "for i, k, b in zip(rows, z, a)); print(n > 0, n, 'of', len(rows))",
        "claims",
        _other_decisions,
    ),
    Rule(
        "run-images",
        ERROR,
        "a stored adversarial image of the run leaves its budget, or [0, 1]",
        "It was made of other images, or by an attack that did more than it may. Nothing that it breaks counts.",
        "Name the data of the run with --data; rdc verify names each image. Then evaluate again.",
        _READ + "f = run.adversarial(set(run.images)); norm, eps = run.identity.settings.norm, run.identity.radius; "
        "d = [float(rdc.norm_balls.distance(torch.from_numpy(f[i])[None], one[None].cpu(), norm)) for i, one in enumerate(x, "
        "run.identity.settings.start) if i in f]; print(max(d) > eps, max(d), eps)",
        "claims",
        _stored_images,
    ),
    Rule(
        "not-autoattack",
        WARNING,
        "a part of AutoAttack did not run",
        "Each part breaks images that the others leave. A figure without it is not comparable with published "
        "ones, and mostly too high.",
        "Run with --attacks autoattack --steps 100.",
        _READ + "names = [a.name.partition(':')[0] for a in run.report.attacks]; "
        "print(not {{'apgd-ce', 'apgd-t', 'fab-t', 'square'}} <= set(names), names)",
        "claims",
        _not_autoattack,
    ),
    Rule(
        "short-attacks",
        WARNING,
        "a part of AutoAttack had fewer than 100 steps, 5,000 queries, or fewer targets than it gives it",
        "The attacks had less time than in the figures that others publish; robustness is overrated.",
        "Run with --attacks autoattack --steps 100.",
        _READ + "s = {{a.name: a.steps for a in run.report.attacks if a.attacked}}; "
        "print(any(v < (5000 if k.startswith('square') else 100) for k, v in s.items()), s)",
        "claims",
        _short_attacks,
    ),
    Rule(
        "few-images",
        WARNING,
        "the 95 % interval of the robust accuracy is wider than 20 points",
        "So few images tell hardly any two models apart.",
        "Evaluate more images: 512 give ±4 points, 1000 give ±3.",
        _READ + "ends = run.report.robust.ci95; print(ends[1] - ends[0] > 0.2, ends)",
        "claims",
        _few_images,
    ),
    Rule(
        "not-adaptive",
        WARNING,
        "the model purifies, optimises or draws at test time, and no attack of the suite adaptive ran",
        "AutoAttack was made for models that do none of this. Published defences of this kind fell to attacks "
        "that were made for them.",
        "Run with --attacks autoattack,adaptive.",
        _READ
        + "names = [a.name for a in run.report.attacks]; print(not any(n.startswith(('transfer', 'lagrange', 'objective', 'smoothed', "
        "'selective', 'per-step', 'low-frequency', 'endpoints')) for n in names), names)",
        "adaptive claims",
        _not_adaptive,
    ),
    Rule(
        "run-warned",
        WARNING,
        "the run's own report has a warning",
        "It found a reason not to quote its figure.",
        "See the report's flags, and docs/evaluation_flags.md on each.",
        _READ + "f = [f.name for f in run.report.flags if f.warns]; print(bool(f), f)",
        "claims",
        _flagged,
    ),
    Rule(
        "run-noted",
        NOTE,
        "the run's own report has a note",
        "It belongs beside the figure.",
        "See the report's flags, and docs/evaluation_flags.md on each.",
        _READ + "f = [f.name for f in run.report.flags if not f.warns]; print(bool(f), f)",
        "claims",
        _noted,
    ),
)
