"""Float32 error of minimal filtering F(m x m, 3 x 3) by its points, over that of a plain float32 sum: why csrc/cpu/filtering.h has its own.

    python -m benchmarks.studies.filtering_points

Random inputs that a SiLU may have given, 96 channels; products and sums in float32, one after the other, against float64; the mean over 200
tiles of the largest error. Cook and Toom's construction, points and infinity. A minute.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from benchmarks.starting import start

__all__ = ["construction", "errors"]

TILES, CHANNELS = 200, 96
#: outputs of a side, points beside infinity
CHOICES = (
    (2, "0 1 -1"),
    (4, "0 1 -1 2 -2"),
    (4, "0 1 -1 1/2 -1/2"),
    (4, "0 1 -1 1/2 -2"),
    (4, "0 3/4 -3/4 5/4 -5/4"),
    (3, "0 3/4 -3/4 3/2"),
    (4, "0 3/4 -3/4 3/2 -3/2"),
)


def construction(points: list[Fraction], outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T [m, n], G [n, 3] and B^T [n, n] of n = m + 2 points, the last of them infinity."""

    def product(roots: list[Fraction]) -> list[Fraction]:
        found = [Fraction(1)]
        for root in roots:
            found = [Fraction(0), *found]
            for k in range(len(found) - 1):
                found[k] -= root * found[k + 1]
        return found

    others = [[q for q in points if q != p] for p in points]
    after = [[p**i for p in points] + [Fraction(int(i == outputs - 1))] for i in range(outputs)]
    over = [np.prod([p - q for q in rest]) for p, rest in zip(points, others, strict=True)]
    taps = [[p**k / scale for k in range(3)] for p, scale in zip(points, over, strict=True)]
    before = [[*product(rest), Fraction(0)] for rest in others] + [product(points)]
    after_, taps_, before_ = (np.array(m, dtype=float) for m in (after, [*taps, [0, 0, 1]], before))
    return after_, taps_, before_


def errors(points: list[Fraction], outputs: int) -> tuple[float, float]:
    """Mean largest error of a tile: filtered, and summed tap by tap."""
    after, taps, before = construction(points, outputs)
    make, kind, side = np.random.default_rng(0), np.float32, outputs + 2
    found = []
    for _ in range(TILES):
        d = np.maximum(make.standard_normal((CHANNELS, side, side)), -0.3).astype(kind)
        g = (make.standard_normal((CHANNELS, 3, 3)) / (3 * CHANNELS**0.5)).astype(kind)
        windows = np.lib.stride_tricks.sliding_window_view(d, (3, 3), axis=(1, 2))  # [channels, m, m, 3, 3]
        true = np.einsum("cyxvu,cvu->yx", windows.astype(float), g.astype(float))
        inputs = (before.astype(kind) @ d) @ before.astype(kind).T
        products = np.cumsum((taps @ g.astype(float) @ taps.T).astype(kind) * inputs, axis=0, dtype=kind)[-1]
        filtered = after.astype(kind) @ products @ after.astype(kind).T
        terms = np.moveaxis(windows * g[:, None, None], 0, 2).reshape(outputs, outputs, -1)
        plain = np.cumsum(terms, axis=2, dtype=kind)[..., -1]
        found.append((abs(filtered - true).max(), abs(plain - true).max()))
    mean = np.mean(found, axis=0)
    return float(mean[0]), float(mean[1])


def main() -> None:
    for outputs, words in CHOICES:
        filtered, plain = errors([Fraction(word) for word in words.split()], outputs)
        print(f"F({outputs}, 3) at {words}: {filtered / plain:.2f} times the error of a plain sum ({plain:.1e})")


if __name__ == "__main__":
    start(main)
