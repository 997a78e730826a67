"""Everything for a machine with a GPU and no network: build, test, check, time; a short table last; JSON.

    python -m benchmarks.gpu --out benchmarks/results/gpu.json                     # at most nine minutes
    python -m benchmarks.gpu --only build,test                                     # parts: see --list
    python -m benchmarks.gpu --dry-run                                             # on a CPU, tiny sizes: does the script work?

Each part has its share of the time (--minutes); what does not fit is left out, and the table says so. The JSON is written after every
part, so that a run that is cut off keeps what it found. Seconds are CUDA events' (medians); "peak" is what matrix products and copies
reach on the same device in the same run. Run on an H200: build, op, and in an earlier form test; the others NOT YET RUN ON A GPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rdc
from benchmarks.device_timing import flops_of, precision, roofline
from benchmarks.gpu.op import CASES, op
from benchmarks.gpu.run import Run
from benchmarks.measuring import about
from benchmarks.starting import start
from rdc.method.denoiser import make_denoiser
from rdc.networks.blocks import fastest_layout
from rdc.networks.presets import build_network, network_preset
from rdc.storage.json_files import write_json

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("float32", "tf32", "bfloat16")

_CHECK = """
import torch
from rdc.ops.multihead_loss import multihead_loss
for dtype in (torch.float32, torch.bfloat16):
    for classes in (3, 10, 70):
        x = [torch.randn(s, device="cuda").to(dtype) for s in ((6, 20, 9, 7), (classes * 2, 20, 3, 3), (classes * 2,), (6, 2, 9, 7))]
        x = [v.requires_grad_() for v in x]
        multihead_loss(*x, torch.rand(3, device="cuda"), backend="native").sum().backward()
torch.cuda.synchronize()
print("done")
"""


def command(words: list[str], run: Run, most: float, **environment: str) -> dict[str, Any]:
    """Run a command in the repository for at most ``most`` seconds (and what is left); its exit status, seconds and last lines."""
    begun, path = time.monotonic(), os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            words, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True,
            timeout=max(1.0, min(most, run.left())),
        )  # fmt: skip
        status, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as stop:
        status, text = (
            "out of time",
            (stop.stdout or b"").decode() if isinstance(stop.stdout, bytes) else stop.stdout or "",
        )
    except OSError as error:
        status, text = "cannot be started", str(error)
    return {
        "command": " ".join(words), "status": status, "seconds": round(time.monotonic() - begun, 1),
        "last_lines": text.strip().splitlines()[-8:],
    }  # fmt: skip


# --- parts: each takes the run and returns JSON values; "line" is its row of the table --------------------------------


def build(run: Run) -> dict[str, Any]:
    """The extension with CUDA for the GPU that is there (--architectures), without network; in place where pip will not."""
    attempts = [
        [sys.executable, "-m", "pip", "install", "-q", "-e", ".", "--no-build-isolation", "--no-deps"],
        [sys.executable, "setup.py", "build_ext", "--inplace"],
    ]
    targets = _architectures(run)
    if run.dry:
        return {"line": "not built in a dry run", "commands": [" ".join(words) for words in attempts], "for": targets}
    options = [os.environ.get("CMAKE_ARGS", ""), f"-DRDC_CUDA_ARCHITECTURES={targets}" if targets != "all" else ""]
    environment = {"RDC_BUILD": "cuda", "CMAKE_ARGS": " ".join(filter(None, options))}
    tried = []
    for words in attempts:
        tried.append(command(words, run, 240, **environment))
        if tried[-1]["status"] == 0:
            break
    else:
        tried += _by_hand(run, options)
    info = command([sys.executable, "-m", "rdc", "info"], run, 60)
    good = tried[-1]["status"] == 0
    return {
        "line": f"{'built' if good else 'FAILED'} in {sum(t['seconds'] for t in tried):.0f} s",
        "for": targets,
        "tried": tried,
        "info": info,
    }


def _by_hand(run: Run, options: list[str]) -> list[dict[str, Any]]:
    """By CMake alone: where setuptools is too old for pyproject.toml, say."""
    folder, name = ROOT / "build" / "by-hand", f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    headers = {"PYTHON": sysconfig.get_path("include"), "PYBIND11": str(Path(torch.__file__).parent / "include")}
    words = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DRDC_BUILD=cuda", f"-DRDC_MODULE_NAME={name}"]
    words += [f"-DRDC_{what}_INCLUDE={place}" for what, place in headers.items()] + " ".join(options).split()
    tried = [command(words, run, 120)]
    if tried[-1]["status"] == 0:
        tried.append(command(["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)], run, 240))
    if tried[-1]["status"] == 0:
        shutil.copy2(folder / name, ROOT / "rdc" / name)
    return tried


def _architectures(run: Run) -> str:
    """What to compile for: the number of the GPU that is there, or what --architectures says."""
    if run.architectures != "here" or run.dry:
        return run.architectures
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}" + "a" * (major == 9)


def test(run: Run) -> dict[str, Any]:
    """Every test marked ``gpu``."""
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider", "tests"]
    done = command([*words, "--collect-only"] if run.dry else words, run, 180)
    last = done["last_lines"][-1] if done["last_lines"] else "no output"
    return {"line": f"exit status {done['status']}: {last}"[:110], **done}


def sanitize(run: Run) -> dict[str, Any]:
    """compute-sanitizer (memcheck, racecheck) over small calls of the native op, forward and backward."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or run.dry:
        return {"line": "compute-sanitizer is not here" if tool is None else "not run in a dry run"}
    found = {}
    for check in ("memcheck", "racecheck"):
        words = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", _CHECK]
        found[check] = command(words, run, 60)
    return {
        "line": ", ".join(f"{name}: {'clean' if f['status'] == 0 else f['status']}" for name, f in found.items()),
        **found,
    }


def _student(run: Run, **settings: Any) -> tuple[Any, torch.Tensor]:
    classifier = rdc.load("fashion-mnist", device=run.device, **settings)
    return classifier, rdc.load_dataset("fashion-mnist-sample").pixels().to(run.device)


def _losses(classifier: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return classifier.class_losses(x)


def _slope(classifier: Any, x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(classifier.class_losses(leaf).sum(), leaf)[0]


def classify(run: Run) -> dict[str, Any]:
    """Predictions of the shipped student: images a second and roofline, by precision; decisions compared with float32's."""
    return _by_precision(run, "prediction", _losses, {"dc": {}})


def attack(run: Run) -> dict[str, Any]:
    """One attack step of DC and RDC, exact and BPDA."""
    modes = {"dc exact": {}, "rdc exact": {"lm": "paper-v2"}, "rdc bpda": {"lm": "paper-v2", "gradient": "bpda"}}
    return _by_precision(run, "attack step", _slope, modes)


def _by_precision(run: Run, what: str, function: Callable[..., torch.Tensor], modes: dict[str, Any]) -> dict[str, Any]:
    rows, count = [], 2 if run.dry else 256
    for mode, settings in modes.items():
        plain, data = _student(run, **settings)
        x = data[:count]
        flops = flops_of(lambda c=plain, x=x[:2]: function(c, x)) * len(x) / 2
        reference = None
        for kind in KINDS:
            if run.left() < 5:
                break
            classifier = plain.with_(precision="bfloat16") if kind == "bfloat16" else plain
            with precision(kind, run.device, cast=False):
                out = function(classifier, x).float().flatten(1)
                seconds = run.measure(lambda c=classifier, x=x: function(c, x))
            reference = out if reference is None else reference
            cosine = torch.cosine_similarity(out, reference).min().item()
            same = (out.argmin(1) == reference.argmin(1)).float().mean().item()
            speed = {"images_per_second": float(f"{len(x) / seconds['median']:.4g}")}
            top = roofline(seconds["median"], flops, None, run.peaks(), kind)
            rows.append(
                {"mode": mode, "precision": kind, **seconds, **speed, **top, "cosine_to_float32": round(cosine, 6),
                 **({"same_decisions": round(same, 4)} if what == "prediction" else {})}
            )  # fmt: skip
    best = max(rows, key=lambda row: row["images_per_second"], default=None)
    line = (
        "no time" if best is None else f"{best['mode']}, {best['precision']}: {best['images_per_second']:.0f} images/s"
    )
    return {"line": f"{line}, {100 * best['of_peak']:.0f} % of peak" if best else line, "rows": rows}


def network(run: Run) -> dict[str, Any]:
    """EDM's CIFAR-10 network (56 million weights, random ones), 32 x 32: predictions and input gradients, share of the peak."""
    rows, counts = [], (2,) if run.dry else (128, 256, 512)
    config = network_preset("small-32" if run.dry else "edm-ddpmpp-32", 10)
    made = build_network(config).to(run.device, memory_format=fastest_layout(run.device)).eval().requires_grad_(False)
    plain = make_denoiser(made, config)
    make = torch.Generator().manual_seed(0)
    data = (torch.rand(max(counts), 3, 32, 32, generator=make) * 2 - 1).to(run.device)
    sigma, labels = torch.full((len(data),), 0.5, device=run.device), torch.arange(len(data), device=run.device) % 10

    def work(denoiser: Any, count: int, slope: bool) -> torch.Tensor:
        x = data[:count].clone().requires_grad_(slope)
        f = denoiser.f(x, sigma[:count], labels[:count])
        return torch.autograd.grad(f.square().sum(), x)[0] if slope else f

    for slope in (False, True):
        flops = flops_of(lambda slope=slope: work(plain, 2, slope)) / 2
        for kind in KINDS[1:]:
            denoiser = plain.in_precision("bfloat16" if kind == "bfloat16" else "float32")
            for count in counts:
                if run.left() < 5:
                    break
                case = {"work": "input gradient" if slope else "prediction", "precision": kind, "images": count}
                try:
                    with precision(kind, run.device, cast=False):
                        seconds = run.measure(lambda d=denoiser, n=count, s=slope: work(d, n, s))
                except torch.OutOfMemoryError:
                    rows.append({**case, "error": "out of memory"})
                    break
                speed = float(f"{count / seconds['median']:.4g}")
                top = roofline(seconds["median"], flops * count, None, run.peaks(), kind)
                rows.append({**case, **seconds, "images_per_second": speed, **top})
    best = max((row for row in rows if "of_peak" in row), key=lambda row: row["of_peak"], default=None)
    if best is None:
        return {"line": "no time", "rows": rows}
    words = f"{best['work']}, {best['precision']}, {best['images']} images: {best['images_per_second']:.0f} images/s"
    return {"line": f"{words}, {100 * best['of_peak']:.0f} % of peak", "rows": rows}


def train(run: Run) -> dict[str, Any]:
    """Training images a second: train, distill, distill --margin-eps."""
    import tempfile

    from benchmarks.test_training import STEPS, trainer

    rows, batch = [], 4 if run.dry else 256
    for kind in STEPS[:1] if run.dry else STEPS:
        for precise in ("float32", "bfloat16"):
            if run.left() < 5:
                break
            with tempfile.TemporaryDirectory() as folder:
                made = trainer(kind, Path(folder), precise, str(run.device), batch)
                seconds = run.measure(made.train_step)
            speed = float(f"{batch / seconds['median']:.4g}")
            rows.append({"command": kind, "precision": precise, **seconds, "images_per_second": speed})
    words = ", ".join(
        f"{row['command']} {row['images_per_second']:.0f}" for row in rows if row["precision"] == "bfloat16"
    )
    return {"line": f"images/s in bfloat16: {words}", "rows": rows}


def batch(run: Run) -> dict[str, Any]:
    """The best number of images a call, and the best memory budget, for an attack step."""
    counts, budgets = (
        ((2, 4), (64.0, 256.0)) if run.dry else ((32, 64, 128, 256, 512), (512.0, 2048.0, 8192.0, 32768.0))
    )
    rows = []
    for budget in budgets:
        classifier, data = _student(run, memory_budget_mb=budget)
        for count in counts:
            if run.left() < 5:
                break
            try:
                seconds = run.measure(lambda c=classifier, x=data[:count]: _slope(c, x))
            except torch.OutOfMemoryError:
                rows.append({"images": count, "memory_budget_mb": budget, "error": "out of memory"})
                break
            speed = float(f"{count / seconds['median']:.4g}")
            over = None if seconds["peak_mib"] is None else round(seconds["peak_mib"] / budget, 2)
            rows.append(
                {
                    "images": count,
                    "memory_budget_mb": budget,
                    **seconds,
                    "images_per_second": speed,
                    "peak_to_budget": over,
                }
            )
    best = max(
        (row for row in rows if "images_per_second" in row), key=lambda row: row["images_per_second"], default=None
    )
    words = "none fits" if best is None else f"{best['images']} images, budget {best['memory_budget_mb']:.0f} MiB"
    return {
        "line": words if best is None else f"{words}: {best['images_per_second']:.0f} images/s",
        "best": best,
        "rows": rows,
    }


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "build": build, "test": test, "sanitize": sanitize, "op": op, "classify": classify, "attack": attack,
    "network": network, "batch": batch, "train": train,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas (default: all)")
    parser.add_argument("--list", action="store_true", help="list the parts")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU with tiny sizes; builds and checks nothing")
    parser.add_argument("--minutes", type=float, default=8.5, help="time for everything (default: %(default)s)")
    parser.add_argument(
        "--architectures",
        default="here",
        metavar="LIST",
        help="what the build compiles for: here (the GPU that is there), all, or 80;90a",
    )
    parser.add_argument(
        "--cases",
        default="K10 c64,K100 c128",
        metavar="LIST",
        help=f"of the part op, by commas: {', '.join(CASES)} (default: %(default)s)",
    )
    parser.add_argument("--native", action="store_true", help="the part op times the CUDA kernel of csrc too")
    parser.add_argument("--out", type=Path, help="JSON file, written after every part")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name:10s} {part.__doc__.splitlines()[0]}" for name, part in PARTS.items()))
        return 0
    named = args.only.split(",")
    chosen = [name for name in PARTS if name in named]  # the build comes first: what follows uses it
    if unknown := [name for name in named if name not in PARTS]:
        parser.error(f"--only: expected some of {', '.join(PARTS)}; got {unknown[0]!r}")
    if unknown := [name for name in args.cases.split(",") if name not in CASES]:
        parser.error(f"--cases: expected some of {', '.join(CASES)}; got {unknown[0]!r}")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error(
            "expected a CUDA device; there is none that torch sees. Use --dry-run to try the script on the CPU"
        )
    return _all(args, chosen)


def _all(args: argparse.Namespace, chosen: list[str]) -> int:
    run = Run(args)
    label = "dry run on a CPU: NOT YET RUN ON A GPU" if args.dry_run else torch.cuda.get_device_name()
    result: dict[str, Any] = {"label": label, "about": None, "parts": {}}
    for name in chosen:
        begun = time.monotonic()
        if run.left() < 10:
            found: dict[str, Any] = {"line": "left out: no time left"}
        else:
            print(f"{name} ...", flush=True)
            try:
                found = PARTS[name](run)
            except Exception as error:  # the other parts go on, and the table says so
                found = {"line": f"FAILED: {type(error).__name__}: {error}"[:110], "traceback": traceback.format_exc()}
        result["parts"][name] = {**found, "seconds_of_part": round(time.monotonic() - begun, 1)}
        if result["about"] is None:  # not before the build: this process would load the extension that was there
            result["about"] = about()
        result["peaks"] = run.top
        if args.out:
            write_json(args.out, result)
    print(f"\n{label}")
    for name, found in result["parts"].items():
        print(f"  {name:10s} {found['seconds_of_part']:6.1f} s   {found['line']}")
    return 1 if any(found["line"].startswith("FAILED") for found in result["parts"].values()) else 0


if __name__ == "__main__":
    start(main)
