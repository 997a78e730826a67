"""The command line: ``rdc COMMAND``. Only the module of the command asked for is imported, so ``rdc --help`` is quick.

Command ``x`` lives in ``rdc/cli/x.py``, which has ``add_arguments(parser)`` and ``run(args) -> int`` (the exit status).

Exit status: 0 done; 1 done in part (a file could not be read, say); 2 wrong use, bad input or an error of the system; 70 a
defect of rdc; 130, 143 and 129 stopped by SIGINT, SIGTERM and SIGHUP.

Whatever happens, a user sees one line on stderr, never a traceback; RDC_DEBUG=1 raises the exception instead.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn, cast

from rdc.arguments.close_names import close_name, did_you_mean
from rdc.cli.failures import BAD, explain, words
from rdc.cli.shell import command_line
from rdc.cli.stopping import Stop, stopping_signals
from rdc.cli.streams import discard_output, flush_output, standard_streams
from rdc.errors import one_line

__all__ = ["COMMANDS", "main"]

#: command (and name of its module in this package) -> one line of help
COMMANDS: dict[str, str] = {
    "info": "versions, native backends and why others are not used, CPU, GPUs",
    "classify": "classify PNG or JPEG files, with probabilities",
    "evaluate": "clean and robust accuracy on a data set; writes a report; resumable",
    "merge": "put the parts of an evaluation together (evaluate --shard)",
    "verify": "check stored adversarial images: budget to the last bit, the model's decisions",
    "audit": "does a model do what an evaluation takes it for: rules with evidence; and what a run claims",
    "certify": "certified accuracy by randomised smoothing: radii that no attack can break; resumable",
    "compare": "two runs of evaluate on the same images: differences with intervals and p values",
    "bench": "what models cost, time and memory (cost); two benchmark files (compare)",
    "gradients": "are input gradients usable: redraws, Lipschitz constants, slices, attack paths; compares models",
    "likelihood": "log p(x|y) by the probability-flow ODE, the ELBO, and the gap between them; resumable",
    "train": "train a class-conditional diffusion model, or a classifier to stand beside it (--method)",
    "distill": "distil a class-conditional teacher into a multi-head student",
    "sample": "draw sample images from a model",
    "export": "write a classifier, likelihood maximisation included, as one ONNX file",
    "calibrate": "fit the logit scale; calibration error, abstention, images of other kinds",
    "predict": "classify images with an exported ONNX file, without PyTorch; JSON lines",
    "data": "what a data set holds; pictures in class folders and others as one .npz",
    "convert": "convert EDM, authors' or diffusers checkpoints to safetensors + JSON",
}
_EPILOG = "`rdc COMMAND --help` lists a command's options. RDC_DEBUG=1 shows tracebacks."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; ``sys.argv[1:]`` when None.

    Returns:
        Exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with standard_streams(), stopping_signals() as stop:
        try:
            return _flushed(_run(arguments, stop))
        except BrokenPipeError:  # `rdc ... | head`
            discard_output()
            return 1
        except KeyboardInterrupt:  # after the command's own end
            return stop.status


def _flushed(status: int) -> int:
    """The exit status once all output is written; another one if it could not be."""
    try:
        flush_output()
        return status
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # the disk that the output goes to is full, say
        discard_output()
        return _say(f"rdc: error: standard output: {words(error)}", BAD)


def _run(arguments: list[str], stop: Stop) -> int:
    """The exit status; only a broken pipe comes out as an exception, and with RDC_DEBUG every error."""
    args = None
    name = next((word for word in arguments if not word.startswith("-")), None)
    try:
        module = importlib.import_module(f"rdc.cli.{name}") if name in COMMANDS else None
        try:
            args = _parsed(name, module, arguments)
        except SystemExit as end:  # argparse: --help, --version, wrong use
            return end.code if isinstance(end.code, int) else BAD
        args.argv = arguments
        assert module is not None  # without a command the parser ends
        status: int = module.run(args)
        return status
    except KeyboardInterrupt as interrupt:
        return _say(_interrupted(interrupt, stop, arguments), stop.status)
    except BrokenPipeError:
        raise
    except (Exception, SystemExit) as error:
        if os.environ.get("RDC_DEBUG"):
            raise
        return _say(*explain(error, args))


def _interrupted(interrupt: KeyboardInterrupt, stop: Stop, arguments: list[str]) -> str:
    """What a command said about what it keeps (further arguments of the exception are further lines), or what holds for all."""
    kept = interrupt.args or (
        "Files are written whole or not at all; to start again, run the same command:",
        f"  {command_line(arguments)}",
    )
    line = "\n" if sys.stderr.isatty() else ""  # after ^C or a bar
    by = "" if stop.name == "SIGINT" else f" by {stop.name}"
    return f"{line}rdc: interrupted{by}. " + "\n".join(one_line(part, 2000) for part in kept)


def _say(text: str, status: int) -> int:
    """Print on stderr; if that fails there is nobody to tell."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass
    return status


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all others of rdc, with what may have been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD, f"rdc: error: {one_line(message, 1000)} (see `{self.prog} --help`)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and file is not None and file is sys.stdout:  # argparse hides that it could not be written
            file.write(message)
        else:
            super()._print_message(message, file)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            meant = did_you_mean(value, action.choices or ())
            raise argparse.ArgumentError(action, f"{one_line(error.message, 900)}{meant}") from None

    def meant(self, words: Sequence[str]) -> str:
        """What may have been meant by options that there are not."""
        given = [word.partition("=")[0] for word in words if word.startswith("-")]
        found = (close_name(word, self._option_string_actions) for word in given)
        close = list(dict.fromkeys(name for name in found if name))
        return f" (did you mean {' and '.join(close[:5])}?)" if close else ""


def _parsed(name: str | None, module: ModuleType | None, arguments: list[str]) -> argparse.Namespace:
    """The options of a command; what is wrong with them is said with the name of the command's own page of help."""
    parser, sub = _parser(name, module)
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        place = parser if sub is None else _page(sub, args)
        place.error(f"unrecognized arguments: {one_line(' '.join(unknown), 800)}{place.meant(unknown)}")
    return args


def _page(parser: _Parser, args: argparse.Namespace) -> _Parser:
    """The parser of the action that was chosen, of a command that has several."""
    for action in parser._actions:
        chosen = getattr(args, action.dest, None) if isinstance(action, argparse._SubParsersAction) else None
        if isinstance(chosen, str) and isinstance(action.choices, dict):
            return cast(_Parser, action.choices[chosen])
    return parser


def _parser(name: str | None, module: ModuleType | None) -> tuple[_Parser, _Parser | None]:
    """The parser of all, and the command's own."""
    own: _Parser | None = None
    parser = _Parser(prog="rdc", description="Adversarially robust classification by diffusion models.", epilog=_EPILOG)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for command, text in COMMANDS.items():
        sub = commands.add_parser(command, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        if command == name and module is not None:
            module.add_arguments(sub)
            own = sub
    return parser, own


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> NoReturn:
        from rdc import __version__

        print(f"rdc {__version__}")
        parser.exit(0)
