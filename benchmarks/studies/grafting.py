"""Does one gradient through a purification stand for several? Grafted gradients beside full ones (docs/adaptive_attacks.md).

    python -m benchmarks.studies.grafting --model fashion-mnist-diffpure --n 6
    python -m benchmarks.studies.grafting --model fashion-mnist-lm-resnet --n 6

At random points of the l_inf ball of 8/255 around n images, over 4 draws that weigh the same: cosine similarity, mean over the images, of
the grafted gradient, and of one draw's own, to the mean of all four; network passes for an image and seconds of CPU.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.starting import start

DRAWS = 4


def measure(model: Any, pixels: Any, labels: Any) -> dict[str, float]:
    """The figures of a defence that purifies in steps, under fresh noise."""
    import torch

    from rdc.attacks.selective import SelectiveOptions, _Selection
    from rdc.norm_balls import random_start

    model, n = model.with_(noise="fresh", noise_seed=3), len(pixels)
    x = random_start(pixels, 8 / 255, "linf", seed=0, image_ids=range(n), restart=0)
    weight = torch.full((DRAWS, n), 1 / DRAWS, dtype=torch.float64)
    one = torch.zeros_like(weight)
    one[0] = 1
    cases = {"full": ("full", weight), "grafted": ("grafted", weight), "one draw": ("full", one)}
    found, slopes = {}, {}
    for name, (gradients, weights) in cases.items():
        options = SelectiveOptions(
            set_draw=model.set_draw, path=model.purification_path, draws=DRAWS, eot=DRAWS, gradients=gradients
        )
        chosen = _Selection(model, options)
        place = chosen.start(x, labels)[2]
        model.network_evaluations, begun = 0, time.process_time()
        slopes[name] = chosen._slope(x, labels, place, weights, []).flatten(1)
        found[f"{name}: seconds"] = round(time.process_time() - begun, 2)
        found[f"{name}: passes for an image"] = model.network_evaluations / n
    for name in ("grafted", "one draw"):
        near = torch.nn.functional.cosine_similarity(slopes[name], slopes["full"], dim=1)
        found[f"{name}: cosine"] = round(float(near.mean()), 3)
    return found


def main() -> None:
    """Command line."""
    import rdc
    from rdc.data import load_dataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist-diffpure")
    parser.add_argument("--n", type=int, default=6)
    args = parser.parse_args()
    data = load_dataset("fashion-mnist-sample", "test")
    for name, value in measure(rdc.load(args.model), data.pixels(slice(0, args.n)), data.labels[: args.n]).items():
        print(f"{name:<32}{value}")


if __name__ == "__main__":
    start(main)
