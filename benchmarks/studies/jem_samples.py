"""Samples of JEM as a picture: 16 Langevin chains from uniform noise, and test images to compare.

    python -m benchmarks.studies.jem_samples --data-root DIR --out docs/images/jem-samples.png

The step size and the noise are those of its training; the chains are new (the replay buffer does not ship). Prints the mean energy
of chains, of test images, and of the noise that the chains begin with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import rdc
from benchmarks.starting import start
from rdc.models.single import ASSETS
from rdc.plots.figures import plot_samples
from rdc.storage.json_files import read_json, write_json
from rdc.terminal.progress import bar
from rdc.training.energy import energy, langevin

RESULTS = Path(__file__).resolve().parents[1] / "results" / "jem-samples.json"
COUNT, COLUMNS, EARLY = 16, 8, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist-jem", help="shipped name, or a checkpoint")
    parser.add_argument("--data-root", help="folder of Fashion-MNIST's files")
    parser.add_argument("--steps", type=int, default=1000, help="of every chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/images/jem-samples.png"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    classifier = rdc.load(args.model)
    path = (
        ASSETS / f"{args.model}.json" if (ASSETS / f"{args.model}.json").exists() else Path(args.model) / "model.json"
    )
    terms = read_json(path)["info"]["energy"]
    generator = torch.Generator().manual_seed(args.seed)

    def energies(x: torch.Tensor) -> torch.Tensor:
        return energy(classifier.model((x + 1) / 2))

    noise = 2 * torch.rand((COUNT, *classifier.image_shape), generator=generator) - 1
    x, rows, found = noise, [], {"noise": float(energies(noise).mean())}
    for step in bar(range(1, args.steps + 1), desc="Langevin steps"):
        x = langevin(energies, x, 1, terms["step_size"], terms["noise"], generator, terms["bounded"])
        if step in (EARLY, args.steps):
            rows += list(x.clamp(-1, 1).split(COLUMNS))[: 1 if step == EARLY else 2]
            found[f"{step} steps"] = float(energies(x).mean())
    data = rdc.load_dataset("fashion-mnist", "test", args.data_root).pixels(range(1000))
    found["test images"] = float(torch.cat([energies(2 * part - 1) for part in data.split(100)]).detach().mean())
    images = (torch.stack([*rows, 2 * data[:COLUMNS] - 1]) + 1) / 2
    names = (f"{EARLY} steps", f"{args.steps:,} steps", f"{args.steps:,} steps", "test images")
    plot_samples(
        images.detach(),
        names,
        args.out,
        f"JEM: Langevin chains from noise (step {terms['step_size']:g}, noise {terms['noise']:g})",
    )
    classes = classifier.model((x + 1) / 2).softmax(1)
    named = {
        classifier.class_names[k]: int(count)
        for k, count in enumerate(classes.argmax(1).bincount(minlength=10))
        if count
    }
    write_json(
        RESULTS, {"model": args.model, "steps": args.steps, "seed": args.seed, "energy": found, "classes": named}
    )
    print(found, named)


if __name__ == "__main__":
    start(main)
