"""Seconds of one prediction and of one attack step: the paper's procedure, plain torch, rdc. One run, one thread, checked first.

    python -m benchmarks.studies.speed --out benchmarks/results/speed.json          # about six minutes
    python -m benchmarks.studies.speed --quick                                      # no torch.compile, one round

Every contender that computes the same function (network and levels) must give the same losses, decisions and gradients before any is
timed. Then they take turns (``measuring.alternate``). Each factor is the ratio of two contenders that differ in one thing; the total is
the paper's procedure over rdc's shipped multi-head classifier. One attack step is one exact gradient of DC to which every class
contributes. ``--accuracy N`` adds the clean accuracy of both ends of the comparison on the first N test images that come with rdc;
robust accuracy takes hours for the paper's levels and is measured elsewhere (docs/reproduce.md).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import rdc
from benchmarks.contenders import Contender, conditional, multihead, paper, shipped
from benchmarks.measuring import about, alternate, clock, ratio, summary
from benchmarks.starting import start
from rdc.statistics.proportions import wilson_interval
from rdc.storage.json_files import write_json

#: what -> slower and faster contender, which differ in this alone
FACTORS = {
    "many rows a call, channels_last": ("paper", "eager"),
    "torch.compile, same network and levels": ("eager", "compile"),
    "all classes in one pass (multi-head)": ("eager", "multi-head 125"),
    "levels: 125 to the shipped ones (multi-head)": ("multi-head 125", "multi-head"),
    "levels: 125 to the teacher's own (conditional)": ("eager", "teacher's levels"),
    "torch.compile, multi-head": ("multi-head", "multi-head compile"),
    "fused head and loss, rdc's engine": ("multi-head", "rdc"),
    "several images a call": ("rdc, one image", "rdc"),
    "bfloat16 network": ("rdc", "rdc, bfloat16"),
}
#: headline ratios
AGAINST = {
    "the paper's procedure / rdc": ("paper", "rdc"),
    "the paper's procedure / rdc, one image a call": ("paper", "rdc, one image"),
    "plain torch eager, same student and levels / rdc": ("multi-head", "rdc"),
    "torch.compile, same student and levels / rdc": ("multi-head compile", "rdc"),
    "plain torch eager, the paper's function / rdc": ("eager", "rdc"),
    "torch.compile, the paper's function / rdc": ("compile", "rdc"),
    "plain torch eager / rdc, both the paper's function": ("eager", "rdc, the paper's function"),
}


def make(args: argparse.Namespace) -> tuple[dict[str, Contender], list[tuple[str, ...]]]:
    """The contenders by name, and the groups that compute the same function."""
    teacher, student = rdc.load(args.teacher, levels="edm"), rdc.load(args.student)
    wide, count = student.with_(levels="edm"), args.images
    parts = [
        paper(teacher),
        conditional(teacher, "eager", levels_at_once=args.rows),
        shipped(teacher, "rdc, the paper's function", images=1),
        conditional(rdc.load(args.teacher), "teacher's levels", images=2, levels_at_once=125),
        multihead(wide, "multi-head 125", images=1, images_at_once=1),
        multihead(student, "multi-head", images=count, images_at_once=args.images_at_once),
        shipped(student, "rdc", images=count),
        shipped(student, "rdc, one image", images=1),
        shipped(student.with_(precision="bfloat16"), "rdc, bfloat16", images=count),
    ]
    if not args.quick:
        parts.insert(2, conditional(teacher, "compile", levels_at_once=args.rows, compiled=True))
        parts.insert(
            6, multihead(student, "multi-head compile", images=count, images_at_once=args.images_at_once, compiled=True)
        )
    same = [("paper", "eager", "compile", "rdc, the paper's function"), ("rdc", "multi-head", "multi-head compile")]
    return {part.name: part for part in parts}, same


def validate(contenders: dict[str, Contender], same: list[tuple[str, ...]], pixels: torch.Tensor) -> dict[str, Any]:
    """Losses, decisions and gradients of each group on its first images; raises SystemExit where they differ.

    Returns:
        Per contender: images, largest relative difference of losses, smallest cosine similarity of gradients, to the first of its
        group; and seconds of the first call (with compilation).
    """
    found: dict[str, Any] = {}
    for group in same:
        names = [name for name in group if name in contenders]
        first, x = contenders[names[0]], pixels[: contenders[names[0]].images]
        losses, gradient = first.losses(x), first.gradient(x)
        for name in names[1:]:
            begun = time.perf_counter()
            other, slope = contenders[name].losses(x), contenders[name].gradient(x)
            seconds = time.perf_counter() - begun
            error = ((other - losses).abs() / losses.abs()).max().item()
            cosine = torch.cosine_similarity(slope.flatten(1), gradient.flatten(1)).min().item()
            same_decisions = bool((other.argmin(1) == losses.argmin(1)).all())
            if not same_decisions or error > 1e-4 or cosine < 0.999:
                raise SystemExit(
                    f"{name} is not {names[0]}: same decisions {same_decisions}, losses differ by {error:.2g}, cosine {cosine:.6f}"
                )
            found[name] = {
                "same_as": names[0],
                "images": len(x),
                "relative_difference": float(f"{error:.2g}"),
                "gradient_cosine": round(cosine, 6),
                "first_call_seconds": round(seconds, 1),
            }
    return found


def measure(contenders: dict[str, Contender], work: str, pixels: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Time one kind of work ("losses": a prediction; "gradient": an attack step) and form every ratio."""
    calls = {name: lambda c=c: getattr(c, work)(pixels[: c.images]) for name, c in contenders.items()}
    for call in calls.values():
        call()
    seconds = alternate(calls, rounds, clock(torch.get_num_threads())[1])
    per_image = {name: (seconds[name], contenders[name].images) for name in seconds}

    def ratios(pairs: dict[str, tuple[str, str]]) -> dict[str, Any]:
        return {
            words: {"slow": a, "fast": b, **ratio(per_image[a][0], per_image[b][0], per_image[a][1], per_image[b][1])}
            for words, (a, b) in pairs.items()
            if a in per_image and b in per_image
        }

    return {
        "contenders": {
            name: {"what": contenders[name].what, "passes": contenders[name].passes, **summary(*per_image[name])}
            for name in seconds
        },
        "factors": ratios(FACTORS),
        "against": ratios(AGAINST),
    }


def accuracy(contenders: dict[str, Contender], count: int) -> dict[str, Any]:
    """Clean accuracy of the paper's function (by plain torch, which was shown to equal it) and of rdc, on the same images."""
    data, found = rdc.load_dataset("fashion-mnist-sample").subset(slice(0, count)), {}
    for name in ("eager", "rdc"):
        part = contenders[name]
        hits = torch.cat([part.losses(x).argmin(1) for x in data.pixels().split(part.images)]) == data.labels
        right = int(hits.sum())
        low, high = wilson_interval(right, count)
        found["paper" if name == "eager" else name] = {
            "n": count,
            "accuracy": round(right / count, 4),
            "ci95": [round(low, 4), round(high, 4)],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher", default="fashion-mnist-teacher", help="conditional network of the paper's procedure"
    )
    parser.add_argument("--student", default="fashion-mnist", help="multi-head classifier")
    parser.add_argument("--images", type=int, default=8, help="images of a timed call of the student")
    parser.add_argument("--images-at-once", type=int, default=4, help="plain torch, student: images a network call")
    parser.add_argument("--rows", type=int, default=25, help="plain torch, teacher: levels a network call; divides 125")
    parser.add_argument("--rounds", type=int, default=5, help="of predictions; attack steps get three fifths of them")
    parser.add_argument("--quick", action="store_true", help="no torch.compile, one round: is everything in order?")
    parser.add_argument("--accuracy", type=int, default=0, metavar="N", help="clean accuracy on N images (3 s each)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if 125 % args.rows:
        parser.error(f"--rows: expected a divisor of 125; got {args.rows}")
    torch.set_num_threads(args.threads)
    rounds = 1 if args.quick else args.rounds
    result: dict[str, Any] = {"about": about(), "settings": {k: str(v) for k, v in vars(args).items()}}
    result["clock"] = clock(args.threads)[0]
    contenders, same = make(args)
    pixels = rdc.load_dataset("fashion-mnist-sample").pixels(range(max(args.images, 8)))
    result["validation"] = validate(contenders, same, pixels)
    for work, words, times in (("losses", "prediction", rounds), ("gradient", "attack step", -(-3 * rounds // 5))):
        result[words] = measure(contenders, work, pixels, times)
        show(words, result[words])
    if args.accuracy:
        result["clean accuracy"] = accuracy(contenders, args.accuracy)
        print(result["clean accuracy"])
    if args.out:
        write_json(args.out, result)


def show(words: str, found: dict[str, Any]) -> None:
    """Print seconds and ratios."""
    print(f"\n{words}: seconds an image (medians)")
    for name, row in found["contenders"].items():
        print(f"  {name:28s} {row['seconds_per_image']:9.4f}   {row['passes']:5d} passes   {row['what']}")
    for kind in ("factors", "against"):
        for name, row in found[kind].items():
            print(f"  {name:52s} {row['ratio']:8.2f}x  [{row['lowest']:.4g}, {row['highest']:.4g}]")


if __name__ == "__main__":
    start(main)
