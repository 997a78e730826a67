"""Coverage-guided fuzzing of one reader with atheris (libFuzzer): ``python -m tests.fuzz.guided READER --minutes 15 --out DIR``.

Not part of the tests: it needs ``pip install atheris`` (Linux, Python 3.11 or newer). Finds are written to DIR, one file for each place in
the code that an unexpected error came from; a native crash, a time-out or too much memory ends a round and another is started.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

FINDS = "finds"


#: reader -> (name of ``READERS`` whose valid files are the first inputs, module and function that read one file; None: as READERS does)
TARGETS: dict[str, tuple[str, str | None]] = {
    "edm-pickle": ("edm-pickle", "rdc.models.convert.edm_pickle:read_edm_pickle"),
    "pt": ("pt", "rdc.models.convert.state_dicts:read_torch_file"),
    "pt-legacy": ("pt-legacy", "rdc.models.convert.state_dicts:read_torch_file"),
    "safetensors": ("safetensors", "rdc.models.convert.state_dicts:read_safetensors"),
    "checkpoint": ("checkpoint", "rdc.models.checkpoints:load_model"),
    "cifar10-python": ("cifar10-python", None),
    "cifar10-tar": ("cifar10-tar", None),
    "npz": ("npz", None),
    "idx-gz": ("idx-gz", None),
    "png": ("png", None),
    "jpeg": ("jpeg", None),
    "levels-json": ("levels-json", None),
    "benchmarks": ("benchmarks", None),
    "onnx": ("onnx-unverified", None),
    "run": ("run-compare", None),
    "training": ("training", None),
}


def _reading(name: str, folder: Path, file: Path) -> Callable[[], object]:
    """What reads the file under test."""
    from tests.fuzz.readers import READERS

    seed, function = TARGETS[name]
    if function is None:
        return lambda: READERS[seed].read(folder)
    module, _, word = function.partition(":")
    read = getattr(importlib.import_module(module), word)
    return lambda: read(file)


def one_round(name: str, seconds: int, out: Path) -> None:
    """Fuzz in this process until the time is over or it dies."""
    import atheris

    from tests.fuzz.readers import READERS

    with atheris.instrument_imports(include=["rdc", "pickle", "zipfile", "gzip", "tarfile", "json"]):
        import gzip  # noqa: F401
        import json  # noqa: F401
        import tarfile  # noqa: F401
        import zipfile  # noqa: F401

        import rdc.errors  # noqa: F401

        reader = READERS[TARGETS[name][0]]
        folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        reader.make(folder)
        file = folder / sorted(reader.files)[0]
        read = _reading(name, folder, file)
        read()  # imports what it needs
    import torch

    from rdc.errors import RdcError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    corpus = out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    (out / FINDS).mkdir(exist_ok=True)
    (corpus / "valid").write_bytes(file.read_bytes())
    seen: set[str] = set()

    def test(content: bytes) -> None:
        file.write_bytes(content)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                read()
        except RdcError as error:
            if len(str(error)) > 6000:
                _keep(out, "message", content, error, seen)
        except OSError as error:
            if not error.strerror:
                _keep(out, "traceback", content, error, seen)
        except Exception as error:
            _keep(out, "traceback", content, error, seen)

    options = [
        f"-max_total_time={seconds}",
        "-timeout=10",
        "-rss_limit_mb=3000",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    options += [
        f"-artifact_prefix={out / FINDS}/native-",
        f"-max_len={max(4096, 2 * file.stat().st_size)}",
        "-detect_leaks=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test)
    atheris.Fuzz()


def _keep(out: Path, kind: str, content: bytes, error: BaseException, seen: set[str]) -> None:
    """One file for each place that an error came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{kind}-{type(error).__name__}-{Path(last.filename).name}-{last.lineno}"
    if place not in seen:
        seen.add(place)
        (out / FINDS / place).write_bytes(content)
        print(f"FIND {place}: {str(error)[:200]!r}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("reader")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out, seconds = args.out / args.reader, int(60 * args.minutes)
    if args.here:
        one_round(args.reader, seconds, out)
        return 0
    end, rounds = time.monotonic() + seconds, 0
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "log.txt", "ab") as log:
        while (left := int(end - time.monotonic())) > 5:
            command = [
                sys.executable,
                "-m",
                "tests.fuzz.guided",
                args.reader,
                "--here",
                "--minutes",
                str(left / 60),
                "--out",
                str(args.out),
            ]
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
            rounds += 1
            if not (out / FINDS).is_dir():
                print(f"{args.reader}: did not start, see {out / 'log.txt'}", file=sys.stderr)
                return 2
            print(f"{args.reader}: round {rounds} ended with exit status {code}", file=sys.stderr)
    finds = sorted(path.name for path in (out / FINDS).iterdir())
    print(f"{args.reader}: {args.minutes:g} minutes, {rounds} rounds, {len(finds)} finds {' '.join(finds)}")
    return int(bool(finds))


if __name__ == "__main__":
    sys.exit(main())
