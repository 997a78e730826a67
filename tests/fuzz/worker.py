"""Runs changed files through readers, in a process of its own: ``python -m tests.fuzz.worker READER,... SEED CASES BEGIN FOLDER``.

Every reader gets CASES files; case i of reader number r counts as r * CASES + i, and BEGIN says where to go on. Writes one JSON line
before and one after every case, so that whoever watches knows which case ended the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import mutated, mutated_inside
from tests.fuzz.readers import READERS, Reader

LINES = 12  # of a message, the deliberate lists of places and settings included


def case(reader: Reader, originals: dict[str, bytes], seed: int, index: int) -> tuple[str, bytes, bool]:
    """(file, its changed content, whether it was changed inside of its checksums)."""
    rng = random.Random(f"{reader.name}/{seed}/{index}")
    file = rng.choice(sorted(reader.files))
    if reader.inside is not None and rng.random() < 0.5:
        return file, mutated_inside(originals[file], rng, reader.inside), True
    return file, mutated(originals[file], rng, reader.files[file]), False


def outcome(reader: Any, folder: Path) -> dict[str, Any]:
    """What reading the folder gives, and what it takes."""
    import torch

    from rdc.errors import RdcError

    _reset_peak()
    before, begin = _status("VmRSS"), time.process_time()
    found: dict[str, Any] = {}
    try:
        found = {"kind": "accepted", "value": reader.read(folder)}
    except RdcError as error:
        text = str(error)
        fine = len(text) < 6000 and text.count("\n") < LINES and text.strip()
        found = {"kind": "refused" if fine else "message", "value": f"{type(error).__name__}: {text[:300]}"}
    except OSError as error:  # the command line's edge makes one line of it
        found = {"kind": "refused" if error.strerror else "traceback", "value": f"OSError: {str(error)[:300]}"}
    except Exception as error:
        found = {"kind": "traceback", "value": f"{type(error).__name__}: {str(error)[:300]}"}
    assert not torch.is_inference_mode_enabled()
    found["seconds"] = round(time.process_time() - begin, 3)
    found["megabytes"] = round((_status("VmHWM") - before) / 1024, 1)
    return found


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    """KiB."""
    text = Path("/proc/self/status").read_text()
    return int(text[text.index(field + ":") :].split()[1])


def main() -> None:
    names, seed, cases, begin, folder = sys.argv[1].split(","), *map(int, sys.argv[2:5]), Path(sys.argv[5])
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    say = _answers()
    for number, name in enumerate(names):
        first = max(0, begin - number * cases)
        if name == "bombs":
            _bombs(first, cases, folder, say)
        elif first < cases:
            _changed(name, number * cases, seed, range(first, cases), folder, say)


def _bombs(first: int, cases: int, folder: Path, say: Any) -> None:
    from tests.fuzz.bombs import BOMBS

    _fresh(folder / "work")
    READERS["lm-text"].make(folder / "work")
    outcome(READERS["lm-text"], folder / "work")  # a first use of each library is not the file's doing
    for index, (name, bomb) in list(enumerate(BOMBS.items()))[first:cases]:
        bomb.make(_fresh(folder / "work"))
        print(json.dumps({"begin": index, "file": name}), file=say)
        with _little_memory():
            found = outcome(bomb, folder / "work")
        if found["kind"] in ("accepted", "refused") and found["kind"] not in bomb.answers:
            found["kind"] = "silent"
        print(json.dumps({"end": index, "reader": "bombs", "file": name, **found}, default=str), file=say)


def _changed(name: str, offset: int, seed: int, indices: range, folder: Path, say: Any) -> None:
    reader, valid, work = READERS[name], _fresh(folder / "valid"), _fresh(folder / "work")
    reader.make(valid)
    originals = {file: (valid / file).read_bytes() for file in reader.files}
    shutil.copytree(valid, work, dirs_exist_ok=True)
    expected = outcome(reader, work)
    assert expected["kind"] == "accepted", (name, expected)
    for index in indices:
        file, content, inside = case(reader, originals, seed, index)
        (work / file).write_bytes(content)
        print(json.dumps({"begin": offset + index, "reader": name, "file": file}), file=say)
        with _little_memory():
            found = outcome(reader, work)
        if found["kind"] == "accepted" and reader.checked and not inside and found["value"] != expected["value"]:
            found["kind"] = "silent"
        print(json.dumps({"end": offset + index, "reader": name, "case": index, "file": file, **found}), file=say)
        (work / file).write_bytes(originals[file])


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _answers() -> Any:
    """Where answers go: what was standard output; anything that a library prints goes to standard error."""
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return say


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """At most three GiB more than now: what asks for more gets a MemoryError and the machine stays alive."""
    now = _status("VmSize") * 1024
    resource.setrlimit(resource.RLIMIT_AS, (now + 3 * 2**30, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
