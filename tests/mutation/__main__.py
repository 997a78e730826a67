"""``python -m tests.mutation``: do the tests notice a small change of the program?

    pip install cosmic-ray
    python -m tests.mutation --count 400 --seed 0 --out mutation.json        run, or go on
    python -m tests.mutation --out mutation.json --again                     survivors only, after tests were added
    python -m tests.mutation --out mutation.json --show                      figures, and survivors as differences

Each mutant runs in a process forked from one that has PyTorch and pytest loaded; the file on disk is never touched, so other work can
go on beside it. A mutant is dead when a test of its module fails, or takes three times as long as without it and 20 s more. The
result is written after every mutant.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib.machinery
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.mutation.operators import Mutant, mutated, sample
from tests.mutation.targets import LOADED, TARGETS, tests_of

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of results")
    parser.add_argument("--count", type=int, default=400, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="modules that begin so, e.g. rdc/method")
    parser.add_argument(
        "--share", default="0/1", help="2/4: of four processes, each with a file of its own, this is the third"
    )
    parser.add_argument("--again", action="store_true", help="run survivors once more")
    parser.add_argument("--show", action="store_true", help="run nothing, print figures and survivors")
    parser.add_argument("--until", help="HH:MM, begin no mutant after it")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if arguments.show:
        return _show(results)
    if arguments.again:
        waiting = [Mutant(**found["mutant"]) for found in results.values() if found["outcome"] == "survived"]
    else:
        modules = [module for module in TARGETS if module.startswith(tuple(arguments.only.split(",")))]
        waiting = sample(ROOT, modules, arguments.count, arguments.seed)
    place, of = map(int, arguments.share.split("/"))
    waiting = waiting[place::of]
    if not arguments.again:
        waiting = [mutant for mutant in waiting if mutant.name not in results]
    usual: dict[str, float] = {}
    for number, mutant in enumerate(waiting, 1):
        if arguments.until and time.strftime("%H:%M") >= arguments.until:
            break
        tests = tests_of(mutant.module)
        key = " ".join(tests)
        if key not in usual:
            usual[key] = _baseline(mutant.module, tests)
        expected = results[mutant.name]["difference"] if arguments.again else None
        found = _run(mutant, tests, 3 * usual[key] + 20, expected)
        results[mutant.name] = {"mutant": dataclasses.asdict(mutant), **found}
        temporary = arguments.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1))
        temporary.replace(arguments.out)
        print(f"{number}/{len(waiting)} {found['outcome']} {found['seconds']:.1f} s {mutant.name}", flush=True)
    return _show(results)


def _baseline(module: str, tests: list[str]) -> float:
    """Seconds that a module's tests take without a change; they must pass."""
    status, seconds, output = _forked(module, (ROOT / module).read_text(), tests, 600)
    if status != 0:
        raise SystemExit(f"{module}: its tests fail without a change:\n{output[-3000:]}")
    print(f"{module}: {seconds:.1f} s without a change", flush=True)
    return seconds


def _run(mutant: Mutant, tests: list[str], limit: float, expected: list[str] | None) -> dict[str, Any]:
    original = (ROOT / mutant.module).read_text()
    try:
        source = mutated(ROOT, mutant)
    except ValueError:
        source = original
    if expected is not None and _difference(original, source) != expected:
        return {"outcome": "gone", "seconds": 0.0, "by": [], "difference": expected}
    if _same(source, original):
        return {"outcome": "equivalent", "seconds": 0.0, "by": [], "difference": _difference(original, source)}
    status, seconds, output = _forked(mutant.module, source, tests, limit)
    outcome = "survived" if status == 0 else "timeout" if status is None else "killed"
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {
        "outcome": outcome,
        "seconds": round(seconds, 2),
        "by": failed[:1],
        "source": hashlib.sha256(original.encode()).hexdigest()[:16],
        "difference": _difference(original, source),
    }


def _same(one: str, other: str) -> bool:
    """1e30 + 1, say; also a change that is no Python."""
    try:
        return ast.dump(ast.parse(one)) == ast.dump(ast.parse(other))
    except SyntaxError:
        return True


def _difference(before: str, after: str) -> list[str]:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[2:]
    return [line for line in lines if not line.startswith("@@")]


def _forked(module: str, source: str, tests: list[str], limit: float) -> tuple[int | None, float, str]:
    """pytest in a child that finds ``source`` in place of ``module``: exit status (None: too slow), seconds, output."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os._exit(_pytest(module, source, tests))
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - begun > limit:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None, time.monotonic() - begun, ""
            time.sleep(0.02)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), time.monotonic() - begun, output.read()


def _pytest(module: str, source: str, tests: list[str]) -> int:
    path = str(ROOT / module)
    real = importlib.machinery.SourceFileLoader.get_code

    def get_code(self, fullname):
        if self.path == path:
            return compile(source, path, "exec", dont_inherit=True)
        return real(self, fullname)

    importlib.machinery.SourceFileLoader.get_code = get_code
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder  # a mutant's failing examples are nobody else's
        options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow"]
        try:
            status = int(pytest.main([*options, "--basetemp", f"{folder}/pytest", *tests]))
        except SystemExit as error:
            status = 1 if error.code else 0
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def _show(results: dict[str, Any]) -> int:
    per_module: dict[str, list[int]] = {}
    for found in results.values():
        if found["outcome"] in ("equivalent", "gone"):  # gone: the module has changed since
            continue
        counts = per_module.setdefault(found["mutant"]["module"], [0, 0])
        counts[0] += found["outcome"] != "survived"
        counts[1] += 1
    for name, found in sorted(results.items()):
        if found["outcome"] == "survived":
            print(f"survived {name}", *found["difference"], sep="\n    ")
    for module, (dead, count) in sorted(per_module.items()):
        print(f"{dead:4} of {count:4} dead  {module}")
    dead, count = (sum(column) for column in zip(*per_module.values(), strict=True)) if per_module else (0, 0)
    print(f"{dead} of {count} dead" + (f": {100 * dead / count:.1f} %" if count else ""))
    return 0


def _load(names: tuple[str, ...]) -> None:
    """What every child would import: other people's packages, and ours that import no target."""
    for name in names:
        __import__(name)
    begun = {module.removesuffix(".py").replace("/", ".") for module in TARGETS} & set(sys.modules)
    if begun:
        raise SystemExit(f"loaded before they were changed: {', '.join(sorted(begun))}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    _load(("torch", "numpy", "pytest", "hypothesis", "torch.func", "torch.utils.checkpoint", "PIL.Image", *LOADED))
    sys.exit(main())
