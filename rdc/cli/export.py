"""``rdc export``."""

from __future__ import annotations

import argparse
import json
import sys
import time

from rdc.cli.options import add_format_options, add_preset, apply_preset, need, up_to, warn_of_null_label
from rdc.errors import one_line

ABOUT = """Write a diffusion classifier as one ONNX file that needs no PyTorch: levels, weights and noise are in it, likelihood
maximisation (with its gradients) is a loop inside it whose number of steps is an input.
Needs `pip install robust-diffusion-classifier[onnx]`."""
EXAMPLES = """examples:
  rdc export fashion-mnist fashion-mnist.onnx                          the classifier alone (DC)
  rdc export fashion-mnist rdc.onnx --lm paper-v2                      with likelihood maximisation (RDC)
  rdc export fashion-mnist rdc.onnx --lm paper-v2 --max-lm-steps 10    the input lm_steps may go up to 10
  rdc export fashion-mnist two.onnx --lm paper-v2 --lm-model fashion-mnist-teacher      moved by another network
  rdc export runs/student small.onnx --levels log:4:1:4:flat --precision float16-weights --threshold 0.5

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
        "for GPUs) (default: %(default)s)",
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
    _add_file_options(parser)


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
        precision=args.precision,
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
    if not summary["calibrated"]:
        print("its confidence is not calibrated, and the file says so: docs/deployment.md, Abstaining")
    return 0
