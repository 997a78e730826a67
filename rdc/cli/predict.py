"""``rdc predict``: an exported file, no PyTorch."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rdc.cli.options import add_format_options, batch_size, megabytes, thread_count
from rdc.cli.pictures import add_picture_options, named_pictures, read_pictures, say_errors
from rdc.errors import one_line
from rdc.terminal.plain_text import percent
from rdc.terminal.progress import bar

ABOUT = """Classify PNG or JPEG files with a file written by `rdc export`. Needs numpy, pillow and onnxruntime;
PyTorch is not loaded. Prints one line of JSON for each image: file, label, class, confidence, abstain,
log_likelihood, probabilities, notices, unlike (what tells the picture from those that the model takes), calibrated
(whether the confidence was fitted on held-out images; null: the file does not say); or file and error (--format text:
file, class, confidence). A picture that cannot be classified is named on stderr too, the others go on, and the exit status is 1 at the
end. Each line is written as soon as its --batch is done: what is stopped keeps what it has printed."""
EXAMPLES = """examples:
  rdc predict --onnx fashion-mnist.onnx shoe.png
  rdc predict --onnx fashion-mnist.onnx --recursive photos > answers.jsonl
  curl -s https://example.org/shoe.jpg | rdc predict --onnx fashion-mnist.onnx -
  find photos -newer answers.jsonl -name "*.jpg" -print0 | rdc predict --onnx fashion-mnist.onnx --null --files-from -
  rdc predict --onnx rdc.onnx --lm-steps 0 --threshold 0.8 *.png
  rdc predict --onnx fashion-mnist.onnx --provider cuda --invert *.jpg | jq -r .class
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc predict``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_picture_options(parser)
    parser.add_argument("--onnx", required=True, metavar="FILE", help="file written by rdc export")
    parser.add_argument(
        "--provider",
        "--device",
        default="auto",
        metavar="P",
        help="auto (CUDA where it works), cpu or cuda (default: auto); --device is the same",
    )
    parser.add_argument("--threads", type=thread_count, metavar="N", help="CPU threads (default: onnxruntime chooses)")
    parser.add_argument(
        "--lm-steps", type=int, metavar="N", help="steps of likelihood maximisation (default: as exported)"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="abstain below this confidence (default: as exported)"
    )
    parser.add_argument(
        "--memory-mb", type=megabytes, default=1024, metavar="MB", help="working memory (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=batch_size, default=64, metavar="N", help="files read together (default: %(default)s)"
    )
    add_format_options(parser, default="json")
    parser.add_argument("--quiet", action="store_true", help="no words on stderr about what runs the model")


def run(args: argparse.Namespace) -> int:
    """Predict; returns the exit status."""
    from rdc.runtime import OnnxClassifier

    names = named_pictures(args)
    classifier = OnnxClassifier(
        args.onnx, provider=args.provider, threads=args.threads, memory_budget_mb=args.memory_mb
    )
    if not args.quiet:
        print(f"rdc: {one_line(args.onnx, 400)} on {classifier.provider}", file=sys.stderr)
        if classifier.properties.get("calibrated") is False:
            print("rdc: its confidence is not calibrated: probabilities rank the classes, no more", file=sys.stderr)
    failed = False
    watched = sys.stdout is not None and sys.stdout.isatty()  # the lines themselves show how far it is
    several = args.batch < len(names)
    with bar(total=len(names), desc="pictures", unit="", enabled=not args.quiet and not watched and several) as shown:
        for begin in range(0, len(names), args.batch):
            answers = _answers(classifier, args, names[begin : begin + args.batch])
            for answer in answers:
                if args.format == "json":
                    print(json.dumps(answer, allow_nan=False), flush=True)
                elif "error" not in answer:
                    print(_line(answer), flush=True)
            failed |= say_errors(answers)
            shown.update(len(answers))
    return 1 if failed else 0


def _line(answer: dict[str, Any]) -> str:
    word = one_line(answer["class"]) + (", abstains" if answer["abstain"] else "")
    said = [*answer["notices"], *(f"of another kind? {reason}" for reason in answer["unlike"])]
    notices = "".join(f"  ({one_line(notice)})" for notice in said)
    return f"{one_line(answer['file'], 400)}  {word}  {percent(answer['confidence'])}{notices}"


def _answers(classifier: Any, args: argparse.Namespace, names: list[str]) -> list[dict[str, Any]]:
    import numpy as np

    from rdc.errors import InputError

    answers: list[dict[str, Any]] = []
    pixels, waiting = [], []
    for answer, image in read_pictures(args, names, classifier.image_shape):
        answers.append(answer)
        if image is None:
            continue
        calibrated = classifier.properties.get("calibrated")
        more = {"notices": list(image.notices), "unlike": list(image.unlike), "calibrated": calibrated}
        waiting.append((answer, more))
        pixels.append(image.pixels)
    if pixels:
        found = classifier(np.stack(pixels), lm_steps=args.lm_steps, threshold=args.threshold)
        for row, (answer, more) in enumerate(waiting):
            try:
                answer.update(found.describe(row), **more)
            except InputError as error:
                answer.update(error=str(error), notices=more["notices"])
    return answers
