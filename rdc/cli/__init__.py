"""The command line: ``rdc COMMAND``. Only the module of the command asked for is imported, so ``rdc --help`` is quick.

Command ``x`` lives in ``rdc/cli/x.py``, which has ``add_arguments(parser)`` and ``run(args) -> int`` (the exit status).

Exit status: 0 done; 1 done in part (a file could not be read, say); 2 wrong use or bad input; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

__all__ = ["COMMANDS", "main"]

#: command (and name of its module in this package) -> one line of help
COMMANDS: dict[str, str] = {
    "info": "versions, native backends and why others are not used, CPU, GPUs",
    "classify": "classify PNG or JPEG files, with probabilities",
    "evaluate": "clean and robust accuracy on a data set; writes a report; resumable",
    "compare": "two runs of evaluate on the same images: differences with intervals and p values",
    "bench": "compare two benchmark files: what got slower beyond noise",
    "gradients": "are input gradients usable: redraws, Lipschitz constants, slices, attack paths; compares models",
    "train": "train a class-conditional diffusion model, or a classifier to stand beside it (--method)",
    "distill": "distil a class-conditional teacher into a multi-head student",
    "sample": "draw sample images from a model",
    "export": "write a classifier, likelihood maximisation included, as one ONNX file",
    "calibrate": "fit the logit scale; calibration error, abstention, images of other kinds",
    "predict": "classify images with an exported ONNX file, without PyTorch; JSON lines",
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
    name = next((word for word in arguments if not word.startswith("-")), None)
    try:
        module = importlib.import_module(f"rdc.cli.{name}") if name in COMMANDS else None
        args = _parser(name, module).parse_args(arguments)
        args.argv = arguments
        return module.run(args)
    except SystemExit as stop:  # argparse: --help, --version, wrong use
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt as stop:
        print(f"\nrdc: interrupted{f'. {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `rdc ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("RDC_DEBUG") or not _expected(error):
            raise
        print(f"rdc: error: {_words(error)}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all others of rdc."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rdc: error: {message} (see `{self.prog} --help`)\n")


def _parser(name: str | None, module: ModuleType | None) -> argparse.ArgumentParser:
    parser = _Parser(prog="rdc", description="Adversarially robust classification by diffusion models.", epilog=_EPILOG)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for command, text in COMMANDS.items():
        sub = commands.add_parser(command, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        if command == name:
            module.add_arguments(sub)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> NoReturn:
        from rdc import __version__

        print(f"rdc {__version__}")
        parser.exit(0)


def _expected(error: Exception) -> bool:
    """Errors that are answered by a line, not by a traceback: rdc's own, and those of the system."""
    from rdc.errors import RdcError

    return isinstance(error, (RdcError, OSError))


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
