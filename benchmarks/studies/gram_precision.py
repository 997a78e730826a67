"""Rounding of multihead_loss by its forms: losses, and the differences between classes that decide, float32 against float64.

    python -m benchmarks.studies.gram_precision --out benchmarks/results/gram-precision.json

The operands are the shipped classifier's own (features, heads, targets of test images at its levels). "plain Gram" is
tr(V G V^T) - 2 tr(V R) + |F*|^2 without the mean head taken out, which rdc does not use.

Then gradients of the features in bfloat16, against float64 on the same rounded operands: random heads that differ by a share of their
size, under a softmax's upstream gradient, whose terms nearly cancel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import rdc
from benchmarks.measuring import about
from benchmarks.starting import start
from rdc.ops.multihead_gram import _patch_products, patch_gram
from rdc.ops.multihead_loss import multihead_loss
from rdc.ops.multihead_reference import multihead_loss_reference
from rdc.storage.json_files import write_json


def plain_gram(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
    """The Gram form as one would first write it."""
    levels, channels = len(level_weight), target.shape[1]
    heads = torch.cat([weight.permute(0, 2, 3, 1).flatten(1), bias[:, None]], 1)
    found = []
    for rows in torch.arange(len(h)).split(levels):
        gram = patch_gram(h[rows], level_weight)
        products = _patch_products(h[rows], target[rows], level_weight).repeat(len(heads) // channels, 1)
        each = ((heads @ gram) * heads).sum(1) - 2 * (heads * products).sum(1)
        common = (target[rows].square().flatten(1).sum(1) * level_weight).sum()
        found.append(each.unflatten(0, (-1, channels)).sum(1) + common)
    return torch.stack(found)


def conv_in_bfloat16(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, level_weight: Tensor) -> Tensor:
    """The convolution in the operands' type, sums in float32."""
    prediction = F.conv2d(h, weight, bias, padding=1).unflatten(1, (-1, target.shape[1]))
    error = (prediction - target[:, None]).square().sum((2, 3, 4), dtype=torch.float32)
    return torch.einsum("ntk,t->nk", error.unflatten(0, (-1, len(level_weight))), level_weight)


def bfloat16_gradient(spread: float, classes: int = 40, channels: int = 2) -> dict[str, float]:
    """Relative error (2-norm) of the gradient of h; heads are one head plus ``spread`` times others, residuals as large as predictions."""
    g = torch.Generator().manual_seed(0)
    h, weight = torch.randn(8, 64, 16, 16, generator=g), torch.randn(classes * channels, 64, 3, 3, generator=g) * 0.05
    common = weight[:channels].repeat(classes, 1, 1, 1)
    weight, bias = common + spread * (weight - common), torch.zeros(classes * channels)
    clean = F.conv2d(h, weight[:channels], padding=1)
    target, levels = clean + torch.randn(clean.shape, generator=g) * clean.std(), torch.rand(4, generator=g) + 0.1
    operands = [t.bfloat16() for t in (h, weight, bias, target)]
    upstream = torch.randn(2, classes, generator=g).mul(3).softmax(1) - F.one_hot(torch.tensor([3, 5]), classes)

    def gradient(form: Callable, dtype: torch.dtype) -> Tensor:
        with torch.enable_grad():
            leaf = operands[0].to(dtype).requires_grad_()
            loss = form(leaf, *(t.to(dtype) for t in operands[1:]), levels)
            return torch.autograd.grad(loss, leaf, upstream.to(loss.dtype))[0].double()

    truth = gradient(multihead_loss_reference, torch.float64)
    forms = {"convolution in bfloat16": conv_in_bfloat16, "reference": multihead_loss_reference}
    forms["native"] = lambda *o: multihead_loss(*o, backend="native")
    found = {name: gradient(form, torch.bfloat16) for name, form in forms.items()}
    return {name: float(f"{((v - truth).norm() / truth.norm()).item():.2g}") for name, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--n", type=int, default=64, help="images (default: 64)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    classifier = rdc.load(args.model, lm=None)
    x = 2 * rdc.load_dataset("fashion-mnist-sample").pixels(range(args.n)) - 1
    draw = classifier.drawn(0, x)
    forms = {form: lambda *o, form=form: multihead_loss(*o, backend=form) for form in ("reference", "native", "gram")}
    forms["plain Gram"] = plain_gram
    worst = {name: {"loss": 0.0, "difference": 0.0} for name in forms}
    with torch.no_grad():
        for part in x.split(16):
            operands = classifier.denoiser.loss_operands(*classifier.denoiser.noisy(part, draw), draw)
            truth = multihead_loss_reference(*(t.double() for t in operands))
            apart = truth - truth.mean(1, keepdim=True)
            spread = apart.abs().amax(1, keepdim=True)
            for name, form in forms.items():
                loss = form(*operands).double()
                error = ((loss - truth).abs() / truth).max().item()
                wrong = ((loss - loss.mean(1, keepdim=True) - apart).abs() / spread).max().item()
                worst[name]["loss"] = max(worst[name]["loss"], float(f"{error:.2g}"))
                worst[name]["difference"] = max(worst[name]["difference"], float(f"{wrong:.2g}"))
    for name, values in worst.items():
        print(f"{name:10s} loss {values['loss']:.1e} of itself, differences {values['difference']:.1e} of the largest")
    gradients = {str(spread): bfloat16_gradient(spread) for spread in (1.0, 0.1, 0.01)}
    for spread, errors in gradients.items():
        print(f"bfloat16, heads {spread} apart:", ", ".join(f"{name} {value:.1e}" for name, value in errors.items()))
    if args.out:
        found = {"model": args.model, "n": args.n, "largest_error": worst, "bfloat16_gradient_of_h": gradients}
        write_json(args.out, {"about": about(), **found})


if __name__ == "__main__":
    start(main)
