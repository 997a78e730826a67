"""``rdc predict``: an exported file, no PyTorch."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from typing import Any

from rdc.cli.options import add_format_options, batch_size, megabytes, thread_count
from rdc.errors import one_line
from rdc.terminal.plain_text import percent

ABOUT = """Classify PNG or JPEG files with a file written by `rdc export`. Needs numpy, pillow and onnxruntime;
PyTorch is not loaded. Prints one line of JSON for each image: file, label, class, confidence, abstain,
log_likelihood, probabilities, notices, unlike (what tells the picture from those that the model takes), calibrated
(whether the confidence was fitted on held-out images; null: the file does not say); or file and error (--format text:
file, class, confidence). Exit status 1 if a file could not be classified."""
EXAMPLES = """examples:
  rdc predict --onnx fashion-mnist.onnx shoe.png
  rdc predict --onnx rdc.onnx --lm-steps 0 --threshold 0.8 *.png
  rdc predict --onnx fashion-mnist.onnx --provider cuda --invert *.jpg | jq -r .class
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc predict``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG or JPEG file")
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
    parser.add_argument("--invert", action="store_true", help="turn dark on light into light on dark first")
    parser.add_argument("--strict", action="store_true", help="refuse files that would have to be resized or converted")
    add_format_options(parser, default="json")
    parser.add_argument("--quiet", action="store_true", help="no words on stderr about what runs the model")


def run(args: argparse.Namespace) -> int:
    """Predict; returns the exit status."""
    from rdc.runtime import OnnxClassifier

    classifier = OnnxClassifier(
        args.onnx, provider=args.provider, threads=args.threads, memory_budget_mb=args.memory_mb
    )
    if not args.quiet:
        print(f"rdc: {one_line(args.onnx, 400)} on {classifier.provider}", file=sys.stderr)
        if classifier.properties.get("calibrated") is False:
            print("rdc: its confidence is not calibrated: probabilities rank the classes, no more", file=sys.stderr)
    failed = False
    for begin in range(0, len(args.images), args.batch):
        answers = _answers(classifier, args, args.images[begin : begin + args.batch])
        for answer in answers:
            if args.format == "json":
                print(json.dumps(answer, allow_nan=False), flush=True)
            elif "error" not in answer:
                print(_line(answer), flush=True)
            if "error" in answer:
                failed = True
                print(f"rdc: error: {one_line(answer['file'], 400)}: {answer['error']}", file=sys.stderr)
    return 1 if failed else 0


def _line(answer: dict[str, Any]) -> str:
    word = one_line(answer["class"]) + (", abstains" if answer["abstain"] else "")
    said = [*answer["notices"], *(f"of another kind? {reason}" for reason in answer["unlike"])]
    notices = "".join(f"  ({one_line(notice)})" for notice in said)
    return f"{one_line(answer['file'], 400)}  {word}  {percent(answer['confidence'])}{notices}"


def _answers(classifier: Any, args: argparse.Namespace, paths: list[str]) -> list[dict[str, Any]]:
    import numpy as np

    from rdc.errors import InputError
    from rdc.images.files import read_image

    answers: list[dict[str, Any]] = []
    pixels, waiting = [], []
    for path in paths:
        answers.append({"file": path})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the decoder's doubts about EXIF data and the like
                image = read_image(path, classifier.image_shape, strict=args.strict, invert=args.invert)
        except InputError as error:
            answers[-1]["error"] = str(error)
            continue
        calibrated = classifier.properties.get("calibrated")
        more = {"notices": list(image.notices), "unlike": list(image.unlike), "calibrated": calibrated}
        waiting.append((answers[-1], more))
        pixels.append(image.pixels)
    if pixels:
        found = classifier(np.stack(pixels), lm_steps=args.lm_steps, threshold=args.threshold)
        for row, (answer, more) in enumerate(waiting):
            try:
                answer.update(found.describe(row), **more)
            except InputError as error:
                answer.update(error=str(error), notices=more["notices"])
    return answers
