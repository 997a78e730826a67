"""The same classifier in other engines: rdc, PyTorch eager, torch.compile, onnxruntime, OpenVINO; prediction and attack step.

    python -m benchmarks.peers --out peers.json
    python -m benchmarks.peers --model fashion-mnist --batches 64 --no-compile
    python -m benchmarks.peers --show peers.json           # the table, runs nothing

One thread. Decisions on 512 images are compared before anything is timed, and by how much log p(y|x) differs from rdc in float32. Then the
contenders take turns; CPU seconds of the process and the clock are kept beside each other, medians and spread. An attack step is one
exact gradient to which every class contributes; onnxruntime and OpenVINO have none. OpenVINO is timed where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rdc
from benchmarks.contenders import without_kernels
from benchmarks.measuring import about, median
from rdc.export import export_onnx
from rdc.runtime import OnnxClassifier
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar

COMPARED = 512
MODELS = ("fashion-mnist", "fashion-mnist-teacher", "cifar10")
#: images in a call of a conditional network, whose classes are passes of their own
FEWER = {"fashion-mnist-teacher": 8, "cifar10": 4}

Call = Callable[[Tensor], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"repeatable (default: {', '.join(MODELS)})")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compared", type=int, default=COMPARED, help="images whose decisions are compared")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out, which takes minutes to start"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path)
    args = parser.parse_args()
    if args.show:
        print(table(read_json(args.show)))
        return
    torch.set_num_threads(1)
    found: dict[str, Any] = {"about": about(), "models": {}}
    for name in args.model or MODELS:
        found["models"][name] = measured(name, args)
        if args.out:
            write_json(args.out, found)
    print(table(found))


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Agreement and seconds of one model."""
    classifier = rdc.load(name)
    pixels = images_for(name, max(args.compared, *args.batches))
    result: dict[str, Any] = {"levels": len(classifier.levels), "agreement": {}, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        predict, step = contenders(classifier, Path(folder), not args.no_compile)
        most = FEWER.get(name, 64)
        compared = pixels[: args.compared if name not in FEWER else min(args.compared, 64)]
        ours = torch.cat([predict["rdc"](part) for part in compared.split(most)])
        for engine, call in predict.items():
            answer = torch.cat([torch.as_tensor(call(part)) for part in compared.split(most)])
            result["agreement"][engine] = {
                "images": len(compared),
                "same_decision": int((answer.argmax(1) == ours.argmax(1)).sum()),
                "largest_difference_of_log_p": round(float((answer - ours).abs().max()), 7),
            }
        for batch in sorted({min(batch, most) for batch in args.batches}):
            for work, calls in (("prediction", predict), ("attack step", step)):
                part = pixels[:batch]
                for call in calls.values():
                    call(part)
                seconds = take_turns(
                    {engine: (lambda c=call, x=part: c(x)) for engine, call in calls.items()},
                    args.rounds,
                    f"{name} {work} {batch}",
                )
                result["rows"].append({"work": work, "batch": batch, "seconds": seconds})
    return result


def images_for(name: str, count: int) -> Tensor:
    """The first test images that come with rdc; for CIFAR-10, whose images do not, noise of their size: speed does not depend on it."""
    if name.startswith("cifar"):
        return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = rdc.load_dataset("fashion-mnist-sample")
    return data.pixels(range(min(count, len(data))))


def contenders(classifier: Any, folder: Path, compiled: bool) -> tuple[dict[str, Call], dict[str, Call]]:
    """Engine -> pixels to log p(y|x), and engine -> pixels to a gradient."""

    def predicts(model: Any) -> Call:
        def call(x: Tensor) -> Any:
            with torch.no_grad():
                return model(x)

        return call

    def steps(model: Any) -> Call:
        def call(x: Tensor) -> Any:
            leaf = x.clone().requires_grad_()
            return torch.autograd.grad(model(leaf)[:, 1:].sum(), leaf)[0]

        return call

    half = classifier.with_(precision="bfloat16")
    predict = {"rdc": predicts(classifier), "rdc bfloat16": predicts(half)}
    step = {"rdc": steps(classifier), "rdc bfloat16": steps(half)}
    for engine, model in (("torch eager", classifier), ("torch eager bfloat16", half)):
        predict[engine], step[engine] = without_kernels(predicts(model)), without_kernels(steps(model))
    if compiled:
        whole = torch.compile(classifier, dynamic=False)
        predict["torch.compile"], step["torch.compile"] = (
            without_kernels(predicts(whole)),
            without_kernels(steps(whole)),
        )
    path = folder / "model.onnx"
    export_onnx(classifier, path)
    session = OnnxClassifier(path, threads=1)
    predict["onnxruntime"] = lambda x: session(x.numpy()).log_probabilities
    if importlib.util.find_spec("openvino"):
        predict |= openvino(path)
    return predict, step


def openvino(path: Path) -> dict[str, Call]:
    """The exported file in OpenVINO, float32 and bfloat16."""
    import openvino as ov  # no dependency of the project

    made: dict[str, Call] = {}
    for name, kind in (("OpenVINO", "f32"), ("OpenVINO bfloat16", "bf16")):
        model = ov.compile_model(
            path, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": kind, "NUM_STREAMS": 1}
        )
        inputs = [port.get_any_name() for port in model.inputs]

        def call(x: Tensor, model: Any = model, inputs: list[str] = inputs) -> np.ndarray:
            given = {inputs[0]: x.numpy()} | {extra: np.array(0, dtype=np.int64) for extra in inputs[1:]}
            found: np.ndarray = model(given)[0]
            return found

        made[name] = call
    return made


def take_turns(calls: dict[str, Callable[[], Any]], rounds: int, words: str) -> dict[str, dict[str, Any]]:
    """CPU seconds and the clock of every call, in turn."""
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for _ in bar(range(rounds), desc=words):
        for name, call in calls.items():
            begun = time.process_time(), time.perf_counter()
            call()
            cpu[name].append(time.process_time() - begun[0])
            wall[name].append(time.perf_counter() - begun[1])
    return {name: {"cpu": _spread(cpu[name]), "wall": _spread(wall[name])} for name in calls}


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": round(median(seconds), 5), "fastest": round(min(seconds), 5), "slowest": round(max(seconds), 5)}


def table(found: dict[str, Any]) -> str:
    """Markdown: CPU milliseconds an image, and rdc against the best of the others in the same type or better."""
    lines = []
    for name, model in found["models"].items():
        engines = list(model["agreement"])
        lines += [
            "",
            f"**{name}**, {model['levels']} levels",
            "",
            "| work | batch | " + " | ".join(engines) + " | best of the others / rdc |",
        ]
        lines.append("|" + "---|" * (3 + len(engines)))
        for row in model["rows"]:
            each = {
                engine: 1000 * row["seconds"][engine]["cpu"]["median"] / row["batch"]
                for engine in engines
                if engine in row["seconds"]
            }
            others = [value for engine, value in each.items() if not engine.startswith("rdc")]
            cells = [f"{each[engine]:.2f}" if engine in each else "-" for engine in engines]
            lines.append(
                f"| {row['work']} | {row['batch']} | " + " | ".join(cells) + f" | {min(others) / each['rdc']:.2f}x |"
            )
        for engine, agreement in model["agreement"].items():
            if engine != "rdc":
                lines.append(
                    f"- {engine}: {agreement['same_decision']} of {agreement['images']} decisions as rdc's, "
                    f"log p within {agreement['largest_difference_of_log_p']:.2g}"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
