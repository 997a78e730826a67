"""``rdc calibrate``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from rdc.cli.calibration_images import held_out_and_test, other_kinds
from rdc.cli.images import DATA
from rdc.cli.options import (
    add_format_options,
    add_model_options,
    batch_size,
    load_classifier,
    positive_int,
    some_or_all,
    up_to,
)
from rdc.errors import one_line

ABOUT = """Fit the logit scale (one over the temperature) of a diffusion classifier on held-out training images; on test images report
calibration error, what abstaining buys, and how well images of another kind are told apart. Writes calibration.json, reliability.png,
risk_coverage.png and (with --ood) scores.png."""
EXAMPLES = """examples:
  rdc calibrate --model fashion-mnist --out out/calibration
  rdc calibrate --model runs/student --out out/calibration --risk 0.05 --ood mnist.npz other.npz
  rdc calibrate --model fashion-mnist --out out/calibration --ood mnist.npz --ood-eps 8/255
  rdc calibrate --model runs/student --out out/calibration --write      (puts the scale into runs/student/model.json)
  rdc calibrate --model runs/student --levels log:4:1:4:flat --out out/calibration --write     (and these levels)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc calibrate``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model_options(parser, "fashion-mnist")
    images = parser.add_argument_group("images")
    images.add_argument("--data", default="fashion-mnist", metavar="NAME", help=f"{DATA} (default: %(default)s)")
    images.add_argument("--data-root", metavar="DIR", help="the only folder to look for the data in")
    images.add_argument(
        "--holdout",
        type=positive_int,
        metavar="N",
        help="training images that training left out (default: as many as the model's folder says, else 2000)",
    )
    images.add_argument(
        "--n",
        type=some_or_all,
        default=1000,
        metavar="N",
        help="of these, how many to fit on, or all (default: %(default)s)",
    )
    images.add_argument(
        "--test-n", type=some_or_all, default=1000, metavar="N", help="test images, or all (default: %(default)s)"
    )
    images.add_argument("--ood", nargs="+", default=[], metavar="FILE", help=".npz files of images of other kinds")
    images.add_argument("--ood-n", type=positive_int, default=500, metavar="N", help="of each (default: %(default)s)")
    images.add_argument(
        "--ood-eps",
        metavar="R",
        help="also attack the likelihood score within l_inf radius R, e.g. 8/255: other kinds made to pass, test images made to fail",
    )
    images.add_argument(
        "--ood-steps", type=up_to(1_000_000), default=20, metavar="S", help="of that attack (default: %(default)s)"
    )
    images.add_argument(
        "--ood-attack-n",
        type=positive_int,
        default=100,
        metavar="N",
        help="images attacked, of each kind (default: %(default)s)",
    )
    parser.add_argument("--bins", type=up_to(10_000), default=15, help="bins of confidence (default: %(default)s)")
    parser.add_argument(
        "--risk", type=float, default=0.05, metavar="R", help="error rate to abstain down to (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=batch_size, default=50, metavar="N", help="images at once (default: %(default)s)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write the logit scale into the checkpoint's description, and with --levels these levels too: its own from then on",
    )
    add_format_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no closing words")


def run(args: argparse.Namespace) -> int:
    """Calibrate; returns the exit status."""
    import numpy as np

    from rdc.decisions.held_out import level_losses, record_of_losses
    from rdc.reports import calibration_plots as plots
    from rdc.storage.files import atomic_write
    from rdc.storage.json_files import write_json

    _check_options(args)
    early = held_out_and_test(args) if args.precision == "auto" else None  # which is chosen on them
    classifier = load_classifier(args, None if early is None else early[0])
    _check(classifier)
    held, test = early or held_out_and_test(args)
    _check_labels(classifier, held, test)
    others = other_kinds(classifier, args, len(held))  # before hours of work
    bars = not args.quiet
    levels, labels = level_losses(classifier, held.pixels(), args.batch, "held-out", bars), held.labels.numpy()
    test_levels, test_labels = level_losses(classifier, test.pixels(), args.batch, "test", bars), test.labels.numpy()
    weight = np.array(classifier.levels.weight)
    losses, test_losses = (np.einsum("ntk,t->nk", values, weight) for values in (levels, test_levels))
    result = _fit(classifier, args, losses, labels, test_losses, test_labels)
    rows, curve = result["reliability"], result["risk_coverage"]
    out = Path(args.out)
    pictures = {
        "reliability.png": plots.reliability_plot({"before": result["reliability_before"], "fitted": rows}),
        "risk_coverage.png": plots.risk_coverage_plot(np.array(curve["coverage"]), np.array(curve["risk"])),
    }
    if args.ood:
        result["ood"], pictures["scores.png"] = _unlike(classifier, args, others, (held, levels), (test, test_levels))
    for name, content in pictures.items():
        with atomic_write(out / name) as file:
            file.write(content)
    write_json(out / "calibration.json", result)
    _say(
        args, result, ["calibration.json", *pictures], record_of_losses(classifier, levels, held) if args.write else {}
    )
    return 0


def _say(args: argparse.Namespace, result: dict[str, Any], files: list[str], record: dict[str, Any]) -> None:
    """Put scale and record into the checkpoint if that was asked for, and print the figures and what was written."""
    from rdc.cli import calibrated

    scale = result["logit_scale"]["fitted"]
    closing = [f"written to {one_line(args.out, 400)}: {', '.join(files)}"]
    if args.write:
        path = calibrated.description_to_write(args.model)
        closing.append(
            f"written into {one_line(path, 400)}: {calibrated.write_settings(path, scale, args.levels, record)}"
        )
    else:
        closing.append("the model is as it was: its own scale is used until --write puts this one into a checkpoint")
    print(json.dumps(result, indent=2) if args.format == "json" else calibrated.outcome(result))
    if not args.quiet:
        print("\n".join(closing), file=sys.stderr if args.format == "json" else sys.stdout)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot work, before anything is loaded."""
    from rdc.attacks import parse_eps
    from rdc.cli.calibrated import description_to_write
    from rdc.errors import ConfigError

    if args.write and (args.lm or args.lm_model or args.preset):
        raise ConfigError(
            "--write: the scale belongs to the checkpoint's own LM; leave --lm out, and --lm-model and --preset"
        )
    if args.write:
        description_to_write(args.model)
    if not 0 < args.risk < 1:
        raise ConfigError(f"risk: expected a number between 0 and 1; got {args.risk}")
    if args.ood_eps:
        if not args.ood:
            raise ConfigError("--ood-eps: expected images of other kinds to tell apart; name their files with --ood")
        parse_eps(args.ood_eps, name="--ood-eps")


def _fit(
    classifier: Any, args: argparse.Namespace, losses: Any, labels: Any, test_losses: Any, test_labels: Any
) -> dict[str, Any]:
    """Fit on losses [N, K] and labels [N]; judge on the test images' ones."""
    import numpy as np

    from rdc.decisions import calibration
    from rdc.errors import InputError
    from rdc.provenance.networks import notable_networks

    networks = notable_networks(classifier)
    prior = None if classifier.class_prior is None else np.log(np.array(classifier.class_prior))
    try:
        scale, all_right = calibration.fit_logit_scale(losses, labels, prior), False
    except calibration.SeparableError:
        scale, all_right = calibration.cautious_logit_scale(losses, labels, prior), True

    def probabilities(values: Any, by: float) -> Any:
        return np.exp(calibration.log_softmax(-by * values + (0 if prior is None else prior)))

    before, p = probabilities(test_losses, classifier.scale), probabilities(test_losses, scale)
    right = p.argmax(1) == test_labels
    held_p = probabilities(losses, scale)
    threshold, decided = calibration.threshold_for_risk(held_p.max(1), held_p.argmax(1) == labels, args.risk)
    accepted = p.max(1) >= threshold
    ece = calibration.expected_calibration_error(p, test_labels, args.bins)
    rows, curve = calibration.reliability(p, test_labels, args.bins), calibration.risk_coverage(p.max(1), right)
    result: dict[str, Any] = {
        "model": args.model,
        "data": args.data,
        "fitted_on": len(labels),
        "tested_on": len(test_labels),
        **({"networks": networks} if networks else {}),
        "logit_scale": {"before": classifier.scale, "fitted": scale},
        "all_held_out_right": all_right,
        "cross_entropy": {
            "before": calibration.negative_log_likelihood(np.log(before + 1e-300), test_labels),
            "fitted": calibration.negative_log_likelihood(np.log(p + 1e-300), test_labels),
        },
        "ece": {"before": calibration.expected_calibration_error(before, test_labels, args.bins), "fitted": ece},
        "bins": args.bins,
        "accuracy": float(right.mean()),
        "aurc": calibration.area_under_risk_coverage(p.max(1), right),
        "abstention": {
            "risk": args.risk,
            "threshold": threshold if decided else None,
            "coverage": float(accepted.mean()),
            "error_rate": float((~right[accepted]).mean()) if accepted.any() else None,
        },
        "reliability": rows,
        "reliability_before": calibration.reliability(before, test_labels, args.bins),
        "risk_coverage": {"coverage": curve[0].tolist(), "risk": curve[1].tolist()},
    }
    with contextlib.suppress(InputError):  # a loss of zero, or separable so: the rest stands
        result["log_losses"] = _of_log_losses(losses, labels, test_losses, test_labels, prior, args.bins)
    return result


def _of_log_losses(
    losses: Any, labels: Any, test_losses: Any, test_labels: Any, prior: Any, bins: int
) -> dict[str, float]:
    """What the fit would give for f_y = -log loss_y: the variance of an image's errors profiled out."""
    import numpy as np

    from rdc.decisions import calibration

    scale = calibration.fit_logit_scale(np.log(losses), labels, prior)
    log_p = calibration.log_softmax(-scale * np.log(test_losses) + (0 if prior is None else prior))
    return {
        "scale": scale,
        "cross_entropy": calibration.negative_log_likelihood(log_p, test_labels),
        "ece": calibration.expected_calibration_error(np.exp(log_p), test_labels, bins),
    }


def _check(classifier: Any) -> None:
    from rdc.errors import ConfigError
    from rdc.method.classifier import DiffusionClassifier

    if not isinstance(classifier, DiffusionClassifier):
        raise ConfigError("calibrate: expected a diffusion classifier; this model has no noise levels or logit scale")


def _check_labels(classifier: Any, *parts: Any) -> None:
    from rdc.errors import ConfigError

    for data in parts:
        largest = int(data.labels.max()) if len(data) else -1
        if not 0 <= largest < classifier.num_classes:
            raise ConfigError(
                f"calibrate: expected images of the model's {classifier.num_classes} classes; the {data.split} split of {data.name} has "
                + (f"the label {largest}" if len(data) else "none")
            )


def _unlike(
    classifier: Any, args: argparse.Namespace, others: dict[str, Any], held: Any, test: Any
) -> tuple[dict[str, Any], bytes]:
    """AUROC of images of other kinds against test images, by several scores; and a picture of the last."""
    import numpy as np

    from rdc.decisions.calibration import auroc, fit_likelihood_score
    from rdc.decisions.held_out import level_losses
    from rdc.reports.calibration_plots import score_plot

    weight = np.array(classifier.levels.weight)

    def raw(levels: Any) -> Any:
        return np.einsum("ntk,t->nk", levels, weight).min(1)

    total = fit_likelihood_score(raw(held[1]), held[0].pixels().numpy())
    score = fit_likelihood_score(held[1].min(2), held[0].pixels().numpy())
    pixels = test[0].pixels().numpy()
    like = {
        "loss": raw(test[1]),
        "loss given complexity": total(raw(test[1]), pixels),
        "levels given complexity": score(test[1].min(2), pixels),
    }
    found: dict[str, Any] = {}
    scores = {}
    for stem, other in others.items():
        levels, x = level_losses(classifier, other, args.batch, stem, not args.quiet), other.numpy()
        unlike = {
            "loss": raw(levels),
            "loss given complexity": total(raw(levels), x),
            "levels given complexity": score(levels.min(2), x),
        }
        found[stem] = {"images": len(other), "auroc": {key: auroc(unlike[key], like[key]) for key in like}}
        scores[stem] = unlike["levels given complexity"]
        if args.ood_eps:
            passing = _attacked(classifier, score, other, args, stem, lower=True)
            scores[f"{stem}, attacked"] = passing
            found[stem]["under_attack"] = {
                "images": len(passing),
                "made to pass": auroc(passing, like["levels given complexity"]),
            }
    attack: dict[str, Any] = {}
    if args.ood_eps:
        failing = _attacked(classifier, score, test[0].pixels(), args, "test images", lower=False)
        for stem in others:
            found[stem]["under_attack"]["test images made to fail"] = auroc(scores[stem], failing)
        attack = {"attack": {"norm": "linf", "eps": args.ood_eps, "steps": args.ood_steps, "images": len(failing)}}
    about = {"kinds": found, "score": score.to_json(), **attack}
    return about, score_plot(like["levels given complexity"], scores)


def _attacked(classifier: Any, score: Any, pixels: Any, args: argparse.Namespace, what: str, lower: bool) -> Any:
    """Likelihood scores of the first images after an attack on them."""
    from rdc.attacks import ThreatModel, parse_eps
    from rdc.decisions.score_attack import attack_score
    from rdc.terminal.progress import bar

    pixels, threat = pixels[: args.ood_attack_n], ThreatModel("linf", parse_eps(args.ood_eps))
    with bar(total=len(pixels), desc=f"{what}, attack on the score", enabled=not args.quiet) as line:
        options = {"steps": args.ood_steps, "batch": args.batch, "progress": line.update}
        return attack_score(classifier, score, pixels, threat, lower=lower, **options)
