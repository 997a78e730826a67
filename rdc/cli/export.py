"""``rdc export``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from rdc.cli.options import add_format_options, add_preset, apply_preset, need, positive_int, up_to, warn_of_null_label
from rdc.errors import ConfigError, one_line

if TYPE_CHECKING:
    from rdc.export import Int8Images

ABOUT = """Write a diffusion classifier as one ONNX file that needs no PyTorch: levels, weights and noise are in it, likelihood
maximisation (with its gradients) is a loop inside it whose number of steps is an input.
Needs `pip install robust-diffusion-classifier[onnx]`."""
EXAMPLES = """examples:
  rdc export fashion-mnist fashion-mnist.onnx                          the classifier alone (DC)
  rdc export fashion-mnist rdc.onnx --lm paper-v2                      with likelihood maximisation (RDC)
  rdc export fashion-mnist rdc.onnx --lm paper-v2 --max-lm-steps 10    the input lm_steps may go up to 10
  rdc export fashion-mnist two.onnx --lm paper-v2 --lm-model fashion-mnist-teacher      moved by another network
  rdc export runs/student small.onnx --levels log:4:1:4:flat --precision float16-weights --threshold 0.5
  rdc export fashion-mnist int8.onnx --int8 --calibration fashion-mnist      weights and activations in eight bits

then:
  rdc predict --onnx fashion-mnist.onnx shoe.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rdc export``."""
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="shipped model or checkpoint path")
    parser.add_argument("out", metavar="OUT.onnx", help="file to write; an existing one is replaced when all went well")
    add_preset(parser)
    parser.add_argument(
        "--lm",
        metavar="LM",
        help="likelihood maximisation: none, paper-v1, paper-v2, released, also with changes: paper-v2,steps=10,eta=16/255 "
        "(default: the model's own)",
    )
    parser.add_argument(
        "--lm-model",
        metavar="NAME",
        help="the diffusion model that likelihood maximisation moves the input by, in place of the model's own network: shipped model, "
        "checkpoint path (an unconditional one, too) or optimal:DATA; both networks go into the file",
    )
    parser.add_argument(
        "--levels",
        metavar="LEVELS",
        help="noise levels: edm, rdc-released, scheme:count:min:max:weighting, or a JSON file (default: the model's own)",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        metavar="P",
        help="float32; float16-weights (half the size, float32 arithmetic); float16 (convolutions in half precision too, "
        "for GPUs); int8, which is --int8 (default: %(default)s)",
    )
    parser.add_argument(
        "--pixels",
        default="float32",
        metavar="TYPE",
        help="input type: float32 in [0, 1], or uint8 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-lm-steps",
        type=up_to(4096),  # likelihood_maximization.MOST_STEPS, whose import takes a second
        metavar="N",
        help="steps whose noise is in the file (default: LM's own number)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        metavar="P",
        help="confidence below which the decision is -1; an input of the file too (default: %(default)s, never)",
    )
    parser.add_argument(
        "--logit-scale", type=float, metavar="S", help="scale of the log-probabilities (default: the model's own)"
    )
    _add_int8_options(parser)
    _add_file_options(parser)


def _add_int8_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "eight bits (docs/deployment.md), for classifiers without likelihood maximisation"
    )
    group.add_argument(
        "--int8", action="store_true", help="convolutions in int8, weights and activations; needs --calibration"
    )
    group.add_argument(
        "--calibration",
        metavar="DATA",
        help="data whose held-out training images give the ranges of activations, and whose first test images are decided in int8 and in "
        "float32: accuracies and agreement are written into the file",
    )
    group.add_argument("--data-root", metavar="DIR", help="the only folder to look for the data in")
    group.add_argument(
        "--calibration-n", type=positive_int, default=128, metavar="N", help="held-out images (default: %(default)s)"
    )
    group.add_argument(
        "--compared", type=positive_int, default=1000, metavar="N", help="test images (default: %(default)s)"
    )


def _add_file_options(parser: argparse.ArgumentParser) -> None:
    """What else goes into the file, and what is said of it."""
    parser.add_argument(
        "--evaluation",
        metavar="RUN",
        help="folder of a finished rdc evaluate of this very model: its accuracy under attack goes into the file's card",
    )
    parser.add_argument(
        "--only-pixels",
        action="store_true",
        help="no inputs lm_steps and confidence_threshold, for servers that know no optional inputs (Triton, TensorRT)",
    )
    parser.add_argument("--no-check", action="store_true", help="do not compare with PyTorch before writing")
    add_format_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress words on stderr")


def run(args: argparse.Namespace) -> int:
    """Export; returns the exit status."""
    need("onnx")  # before the model is loaded
    from rdc.evaluation.card import card_of_run
    from rdc.export import export_onnx
    from rdc.export.metadata import checkpoint_info
    from rdc.models.zoo import load
    from rdc.provenance.run import weights_digest

    def say(words: str) -> None:
        if not args.quiet:
            print(f"rdc: {one_line(words, 400)} ...", file=sys.stderr, flush=True)

    started = time.monotonic()
    apply_preset(args)
    precision = _precision(args)
    say(f"loading {args.model}")
    chosen = {"lm": args.lm, "lm_denoiser": args.lm_model, "levels": args.levels, "logit_scale": args.logit_scale}
    classifier = load(args.model, **{name: value for name, value in chosen.items() if value is not None})
    warn_of_null_label(classifier)
    info = checkpoint_info(args.model)
    if args.evaluation is not None:
        info["evaluation"] = card_of_run(args.evaluation, weights_digest(classifier))
    summary = export_onnx(
        classifier,
        args.out,
        int8=_int8_images(args, classifier) if precision == "int8" else None,
        precision=precision,
        pixel_type=args.pixels,
        max_lm_steps=args.max_lm_steps,
        confidence_threshold=args.threshold,
        info=info,
        own_settings=args.logit_scale is not None or all(v is None for v in (args.lm, args.lm_model, args.levels)),
        only_pixels=args.only_pixels,
        check=not args.no_check,
        say=say,
    )
    seconds = time.monotonic() - started
    if args.format == "json":
        print(json.dumps({**summary, "seconds": round(seconds, 2)}, indent=2))
        return 0
    size, weights = summary["bytes"] / 1e6, summary["weights_bytes"] / 1e6
    print(
        f"{one_line(summary['path'], 400)}: {size:.2f} MB ({weights:.2f} MB of float32 weights), opset {summary['opset']}, {seconds:.0f} s"
    )
    if "int8" in summary:
        print(_int8_words(summary["int8"]))
    if not summary["calibrated"]:
        print("its confidence is not calibrated, and the file says so: docs/deployment.md, Abstaining")
    return 0


def _precision(args: argparse.Namespace) -> str:
    """What the file computes in."""
    precision: str = args.precision
    if args.int8 and precision not in ("float32", "int8"):
        raise ConfigError(f"--int8: expected no --precision beside it; got {one_line(precision, 40)}")
    precision = "int8" if args.int8 else precision
    if precision == "int8" and args.calibration is None:
        raise ConfigError(
            "--int8: expected --calibration DATA, e.g. fashion-mnist: ranges of activations are taken from images"
        )
    if precision != "int8" and args.calibration is not None:
        raise ConfigError("--calibration: expected --int8 beside it; leave it out")
    return precision


def _int8_images(args: argparse.Namespace, classifier: Any) -> Int8Images:
    """Held-out and test images of ``--calibration``."""
    from rdc.cli.calibration_images import held_out_and_test
    from rdc.export import Int8Images

    asked = {"holdout": None, "n": args.calibration_n, "test_n": args.compared, "data": args.calibration}
    held, test = held_out_and_test(argparse.Namespace(**{**vars(args), **asked}))
    if tuple(held.image_shape) != tuple(classifier.image_shape) or held.num_classes > classifier.num_classes:
        raise ConfigError(
            f"--calibration: model {args.model} takes images {list(classifier.image_shape)} of {classifier.num_classes} classes; "
            f"{one_line(held.name)} has {list(held.image_shape)} of {held.num_classes}"
        )
    return Int8Images(held.pixels(), test.pixels(), test.labels, test.name)


def _int8_words(about: dict[str, Any]) -> str:
    """What int8 changed, in two lines."""
    shares = [f"{100 * about[name]['accuracy']:.2f} %" for name in ("accuracy_int8", "accuracy_float32")]
    kept = ", ".join(one_line(name, 80) for name in about["float32"])
    return (
        f"int8: accuracy {shares[0]}, in float32 {shares[1]}, on {about['images']} test images; {about['same_decisions']} decisions the "
        f"same; calibrated on {about['calibration_images']}\n{about['convolutions']} convolutions in int8; in float32: {kept}"
    )
