"""``rdc classify``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from rdc.cli.images import load_images
from rdc.cli.options import (
    add_format_options,
    add_model_options,
    batch_size,
    load_classifier,
    model_choice,
    positive_int,
)
from rdc.cli.pictures import STANDARD_INPUT, add_picture_options, named_pictures, read_pictures, say_errors
from rdc.errors import one_line
from rdc.terminal.plain_text import percent
from rdc.terminal.progress import bar

if TYPE_CHECKING:
    from rdc.contracts import Defence
    from rdc.decisions.held_out import KnownKind

ABOUT = """Classify PNG or JPEG files. Confidence is the probability of the top class under the model; its heading says
when no held-out image has set its scale. Files that do not fit are converted, and a notice says how; a picture of another
kind than the model's (its size, its colour, a likelihood score beyond what held-out images have) is named as such.
A picture that cannot be classified is named on stderr, the others go on, and the exit status is 1 at the end. What is stopped, by Ctrl-C or
an error, prints the answers that it has."""
EXAMPLES = """examples:
  rdc classify shoe.png
  rdc classify --invert photo-on-white.jpg          (Fashion-MNIST models know light things on black)
  rdc classify --json --model runs/student *.png
  rdc classify --recursive photos
  curl -s https://example.org/shoe.jpg | rdc classify -
  find photos -name "*.jpg" -print0 | rdc classify --null --files-from -
"""
_LIGHT_BORDER = 0.6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``rdc classify``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_picture_options(parser)
    parser.add_argument(
        "--top", type=positive_int, default=3, metavar="N", help="classes to show (default: %(default)s)"
    )
    add_format_options(parser)
    parser.add_argument(
        "--batch", type=batch_size, default=64, metavar="N", help="files classified together (default: %(default)s)"
    )
    group = parser.add_argument_group("anytime decisions (docs/anytime.md)")
    group.add_argument(
        "--anytime",
        type=float,
        metavar="RATE",
        help="stop looking at noise levels once a decision is settled; at most this share of decisions, e.g. 0.01, differs from the "
        "full ones, on images like those of --anytime-data. For images that nobody has tampered with",
    )
    group.add_argument(
        "--anytime-data",
        default="fashion-mnist-sample",
        metavar="NAME",
        help="test images to calibrate on (once; kept in ~/.cache/rdc/anytime; default: %(default)s)",
    )
    group = parser.add_argument_group("class elimination (docs/many_classes.md)")
    group.add_argument(
        "--eliminate",
        metavar="STAGES",
        help="leave classes out, stage by stage, where each costs a pass of the network: li-2023 (10 %% of the passes with 1,000 classes), "
        "quick (4.5 %%), or LEVELS:CLASSES,... such as 5%%:50%%,10%%:5%%,50%%:1%%,100%%:1. For images that nobody has tampered with",
    )
    add_model_options(parser, "fashion-mnist")


def run(args: argparse.Namespace) -> int:
    """Classify; returns the exit status."""
    names = named_pictures(args)
    classifier = _in_chosen_precision(args, names) if args.precision == "auto" else load_classifier(args)
    why, kind = _confidence(classifier, args)
    if args.anytime is not None:
        classifier, kind = _anytime(classifier, args), None
    if args.eliminate is not None:
        classifier, kind = _eliminating(classifier, args), None
    answers: list[dict[str, Any]] = []
    try:
        with bar(total=len(names), desc="pictures", unit="", enabled=args.batch < len(names)) as shown:
            for begin in range(0, len(names), args.batch):
                answers += _part(classifier, args, names[begin : begin + args.batch], why, kind)
                shown.update(min(args.batch, len(names) - begin))
    except BaseException:  # Ctrl-C, too: what is computed is not lost
        if answers:
            _say(classifier, args, answers)
        raise
    _say(classifier, args, answers)
    return 1 if any("error" in answer for answer in answers) else 0


def _in_chosen_precision(args: argparse.Namespace, names: list[str]) -> Any:
    """The classifier in the precision that the first pictures choose; where none is a file that can be read, the shipped sample does."""
    import numpy as np
    import torch

    from rdc.models.precision import sample_size

    args.precision = None
    plain = model_choice(args).load()
    args.precision = "auto"
    files = [name for name in names if name != STANDARD_INPUT][: sample_size(plain)]
    found = [image.pixels for _, image in read_pictures(args, files, plain.image_shape) if image is not None]
    sample = {"precision_sample": torch.from_numpy(np.stack(found))} if found else {}
    return load_classifier(args, **sample)


def _say(classifier: Any, args: argparse.Namespace, answers: list[dict[str, Any]]) -> None:
    """Print all answers that there are."""
    print(json.dumps(answers, indent=2, allow_nan=False) if args.format == "json" else _table(answers, args.top))
    good = [answer for answer in answers if "class" in answer]
    if args.anytime is not None and args.format != "json" and good:
        mean = sum(answer["levels"] for answer in good) / len(good)
        total = len(classifier.calibration.order)
        print(f"anytime: {mean:.1f} of {total} levels looked at on average; stated rate {100 * args.anytime:g} %")
    if args.eliminate is not None and args.format != "json" and good:
        print(_about_elimination(classifier))
    say_errors(answers)


def _part(
    classifier: Any, args: argparse.Namespace, names: list[str], why: str | None, kind: KnownKind | None
) -> list[dict[str, Any]]:
    """The answers to some pictures; ``why`` and ``kind`` of :func:`_confidence`."""
    answers, waiting = [], []
    for answer, image in read_pictures(args, names, classifier.image_shape):
        answers.append(answer)
        if image is not None:
            answer["notices"] = [*image.notices, *_doubts(args, image.pixels)]
            answer["unlike"] = list(image.unlike)
            waiting.append((answer, image.pixels))
    if not waiting:
        return answers
    pixels = [pixels for _, pixels in waiting]
    found = _logits(classifier, pixels)
    for (answer, _), logits, probabilities, cost in zip(waiting, *found, strict=True):
        _answer(answer, logits, probabilities, cost, classifier.class_names)
        answer["calibrated"] = None if why is None else not why
    if kind is not None:
        _compare(classifier, kind, [answer for answer, _ in waiting], pixels)
    return answers


def _confidence(classifier: Any, args: argparse.Namespace) -> tuple[str | None, KnownKind | None]:
    """Why the confidence means little ("": it was fitted; None: nobody knows), and the images that the model knows."""
    from rdc.decisions.answers import uncalibrated
    from rdc.decisions.held_out import known_kind
    from rdc.method.classifier import DiffusionClassifier
    from rdc.models.single import recorded_info

    if not isinstance(classifier, DiffusionClassifier):
        return None, None
    own = all(getattr(args, name, None) is None for name in ("levels", "lm", "lm_model"))
    why = uncalibrated(classifier.logit_scale, own)
    return why, known_kind(recorded_info(args.model).get("calibration"), classifier)


def _compare(classifier: Any, kind: KnownKind, answers: list[dict[str, Any]], pixels: list[Any]) -> None:
    """Say how far each image's likelihood lies from that of held-out images, and where that is farther than theirs."""
    import numpy as np
    import torch

    for answer, score in zip(answers, kind.scores(classifier, torch.from_numpy(np.stack(pixels))), strict=True):
        if "class" not in answer:
            continue
        answer["likelihood_score"] = {"value": float(score), "threshold": kind.threshold, "exceeded_by": kind.rate}
        if score > kind.threshold:
            answer["unlike"].append(
                f"likelihood: score {score:.3g} above {kind.threshold:.3g}, which {100 * kind.rate:g} % of pictures of the model's kind "
                f"exceed ({kind.images} held-out images)"
            )


def _answer(
    answer: dict[str, Any], logits: Any, probabilities: list[float], cost: dict[str, int], class_names: tuple[str, ...]
) -> None:
    """Put what is said about one image into its entry."""
    from rdc.decisions.answers import doubt

    wrong = doubt(logits)
    if wrong:
        answer["error"] = wrong
        return
    answer.update(cost)
    order = sorted(range(len(probabilities)), key=lambda k: -probabilities[k])
    answer["label"], answer["class"], answer["confidence"] = (
        order[0],
        class_names[order[0]],
        probabilities[order[0]],
    )
    answer["probabilities"] = {class_names[k]: probabilities[k] for k in order}


def _doubts(args: argparse.Namespace, pixels: Any) -> list[str]:
    """A light border under a grey-scale model mostly means that the picture is the wrong way round."""
    border = [pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]]
    mean = sum(float(edge.mean()) for edge in border) / 4
    if pixels.shape[0] == 1 and not args.invert and mean > _LIGHT_BORDER:
        return ["light background; if the model knows light on dark, use --invert"]
    return []


def _anytime(classifier: Any, args: argparse.Namespace) -> Any:
    from rdc.decisions.anytime.kept import calibrated

    return calibrated(classifier, load_images(args.anytime_data, "test"), args.anytime, progress=args.format != "json")


def _eliminating(classifier: Any, args: argparse.Namespace) -> Any:
    from rdc.decisions.elimination import EliminatingClassifier
    from rdc.errors import ConfigError

    if args.anytime is not None:
        raise ConfigError(
            "--eliminate: expected it without --anytime; each leaves levels and classes out in its own way"
        )
    return EliminatingClassifier(classifier, args.eliminate)


def _about_elimination(classifier: Any) -> str:
    share = 100 * classifier.passes / classifier.full_passes
    stages = ", ".join(f"{kept:,} after {levels:,} levels" for levels, kept in classifier.stages)
    return (
        f"elimination: {classifier.passes:,} of {classifier.full_passes:,} passes an image ({share:.1f} %); of {classifier.num_classes:,} "
        f"classes {stages}; how often the full decision is another one was not measured"
    )


def _logits(classifier: Defence, pixels: list[Any]) -> tuple[Any, list[list[float]], list[dict[str, int]]]:
    """Of each image: logits, probabilities; and what a decision by less than everything cost: levels looked at, and passes."""
    import numpy as np
    import torch

    from rdc.decisions.anytime import AnytimeClassifier
    from rdc.decisions.elimination import EliminatingClassifier

    x = torch.from_numpy(np.stack(pixels)).to(classifier.device)
    cost: list[dict[str, int]] = [{} for _ in range(len(x))]
    with torch.no_grad():
        if isinstance(classifier, AnytimeClassifier):
            result = classifier.decide(x)
            logits, cost = result.log_probabilities, [{"levels": levels} for levels in result.levels.tolist()]
        elif isinstance(classifier, EliminatingClassifier):
            result = classifier.decide(x)
            logits, cost = result.log_probabilities, [{"passes": passes} for passes in result.passes.tolist()]
        else:
            logits = classifier(x)
    logits = logits.cpu().double()  # there: Apple's GPUs have no float64
    return logits.numpy(), logits.softmax(1).tolist(), cost


def _table(answers: list[dict[str, Any]], top: int) -> str:
    good = [answer for answer in answers if "class" in answer]
    if not good:
        return "no file could be classified"
    fitted = good[0]["calibrated"] is not False
    rows = [("file", "class", "confidence" if fitted else "confidence (not calibrated)", "next")]
    for answer in good:
        ranked = list(answer["probabilities"].items())
        others = ", ".join(f"{one_line(name)} {percent(value)}" for name, value in ranked[1:top])
        rows.append((one_line(answer["file"], 400), one_line(answer["class"]), percent(answer["confidence"]), others))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for row, about in zip(rows, (None, *good), strict=True):
        lines.append(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip())
        lines += [f"  ({notice})" for notice in (about or {}).get("notices", ())]
        lines += [f"  (of another kind? {reason})" for reason in (about or {}).get("unlike", ())]
    return "\n".join(lines)
