"""Rules about the way in: scale of the images, roundings, clamps, and answers kept for the very images."""

from __future__ import annotations

from rdc.audits.answers import Ranges
from rdc.audits.nearby import Jumps, Steps
from rdc.audits.rule import ERROR, WARNING, Outcome, Rule
from rdc.audits.subject import ImageScale

__all__ = ["INPUT_RULES"]


def _normalised(found: tuple[ImageScale, float]) -> Outcome:
    scale, radius = found
    numbers = {"lowest": scale.low, "highest": scale.high, "eps there in pixels": radius / scale.factor}
    if not scale.words:
        return Outcome(False, f"images come as pixels from {scale.low:.3g} to {scale.high:.3g}", numbers)
    words = (
        f"images come with values from {scale.low:.3g} to {scale.high:.3g}, taken for {scale.words}: on that scale eps "
        f"{255 * radius:.3g}/255 is {255 * radius / scale.factor:.3g}/255 in pixels"
    )
    return Outcome(True, words, numbers)


def _other_range(found: Ranges) -> Outcome:
    shown = {name: "refused" if counts is None else f"{counts[0]}" for name, counts in found.other.items()}
    words = f"{found.right} of {found.n} right as they are; " + ", ".join(
        f"{name}: {text}" for name, text in shown.items()
    )
    better = found.better()
    if better:
        words += "; better, and not by chance: " + ", ".join(f"{name} (p {p:.1g})" for name, (_, p) in better.items())
    return Outcome(bool(better), words, {"right": found.right, "n": found.n, **shown})


def _quantised(found: Steps) -> Outcome:
    words = (
        f"a pixel moved by 0.4 of 255 levels changes no bit of any logit in {found.flat} of {found.asked} cases (moved by 64 levels it "
        "does)"
    )
    return Outcome(2 * found.flat > found.asked > 0, words, {"flat": found.flat, "asked": found.asked})


def _clamped(found: Steps) -> Outcome:
    words = (
        f"of {found.middle} pixels that matter from 0.50 to 0.53, {found.flat_low} do not from 0 to 0.03, {found.flat_high} not from "
        "0.97 to 1"
    )
    most = max(found.flat_low, found.flat_high)
    numbers = {"asked": found.middle, "flat near 0": found.flat_low, "flat near 1": found.flat_high}
    return Outcome(2 * most > found.middle > 0, words, numbers)


def _ratio(value: float | None) -> str:
    return (
        "not defined: no answer moves" if value is None else f"{value:.3g} times" if value < 1e9 else "infinitely often"
    )


def _memorised(found: Jumps) -> Outcome:
    words = (
        f"{found.jumped_on} of {found.n} answers lie more than 5 times as far from those of near copies (by whole levels) as these from "
        f"each other (median {_ratio(found.on_grid)}); right, and wrong in both copies: {found.lost}"
    )
    numbers = {"jumped": found.jumped_on, "n": found.n, "median ratio": found.on_grid, "lost": found.lost}
    return Outcome(4 * found.jumped_on > found.n, words, numbers)


def _grid(found: Jumps) -> Outcome:
    words = (
        f"{found.jumped_off} of {found.n} answers lie more than 5 times as far from those of copies between the levels of 8 bits as these "
        f"from each other (median {_ratio(found.off_grid)})"
    )
    numbers = {"jumped": found.jumped_off, "n": found.n, "median ratio": found.off_grid}
    return Outcome(4 * found.jumped_off > found.n and 4 * found.jumped_on <= found.n, words, numbers)


INPUT_RULES = (
    Rule(
        "images-normalised",
        ERROR,
        "the images are not pixels in [0, 1]",
        "A budget is in pixels. On images that were normalised first the same eps allows less (or more), and "
        "clipping to [0, 1] cuts into "
        "them.",
        "Hand over pixels in [0, 1], and let the model normalise them as its first step.",
        "print(float(x.min()) < 0 or float(x.max()) > 1, float(x.min()), float(x.max()))",
        "scale",
        _normalised,
    ),
    Rule(
        "other-range",
        WARNING,
        "the model is right on a fifth of the images more when they come on another scale, and not by chance",
        "It was made for that scale. On pixels in [0, 1] it is weaker than it is, and eps means something else to it.",
        "Put the scaling into the model, as its first step.",
        "acc = lambda z: float((getattr(model, 'model', model)(z).argmax(1) == y).float().mean()); "
        "a = {'x': acc(x), '2 x - 1': acc(2 * x - 1), '255 x': acc(255 * x), '1 - x': acc(1 - x)}; "
        "print(max(a.values()) >= a['x'] + 0.2, a)",
        "ranges",
        _other_range,
    ),
    Rule(
        "quantised-input",
        WARNING,
        "a pixel's change by less than half a level of 8 bits mostly changes no bit of the answer",
        "The model is constant in steps: it rounds, thresholds or hashes its input. Its gradient is zero, or a stand-in's.",
        "Attack with a stand-in for the rounding that is right on average (BPDA), with square, and by transfer.",
        "i = x[0].numel() // 2; z = x.flatten(1).clone(); z[:, i] += torch.where(z[:, i] > 0.5, -1, 1) * 0.4 / 255; "
        "same = (model(z.view_as(x)) == model(x)).all(1); print(float(same.float().mean()) > 0.5, int(same.sum()), 'of', len(x))",
        "steps",
        _quantised,
    ),
    Rule(
        "clamped-input",
        WARNING,
        "pixels near 0 or near 1 change nothing, where the same pixels do at 0.5",
        "The model cuts its input to less than [0, 1]. There the gradient is zero, and an attack does not see "
        "that a larger step would "
        "help.",
        "Attack from the cut image (its pixels moved to the inner range first), with random starts and square.",
        "i = torch.tensor([x[0].numel() // 2], device=x.device); "
        "at = lambda v: model(x[:4].flatten(1).index_fill(1, i, v).view_as(x[:4])); "
        "flat = bool((at(0.0) == at(0.03)).all()) or bool((at(0.97) == at(1.0)).all()); "
        "print(flat and not bool((at(0.5) == at(0.53)).all()))",
        "steps",
        _clamped,
    ),
    Rule(
        "memorised-images",
        ERROR,
        "the answers to these very images lie apart from those to near copies (whole levels, at most one of 255) "
        "on a quarter of them",
        "The model knows these images: a look-up, a hash, or an overfit of a kind that no training gives. Clean "
        "accuracy is that of a memory.",
        "Evaluate on images that it cannot know, each moved by a level or two at random.",
        "m = (x - 0.5).abs() < 0.49; a = model(x); "
        "b, c = (model(x + m * torch.randint_like(x, -1, 2) / 255) for _ in range(2)); "
        "n = int(((a - b).norm(dim=1) > 5 * (b - c).norm(dim=1)).sum()); print(4 * n > len(x), n, 'of', len(x))",
        "jumps",
        _memorised,
    ),
    Rule(
        "off-grid-images",
        WARNING,
        "the answers to copies between the levels of 8 bits lie apart from those to these images on a quarter of them",
        "The model tells images of 8 bits from others, and so every adversarial image that was not rounded. That "
        "is a detector of "
        "attacks, not robustness.",
        "Round adversarial images to 8 bits before they are judged, and attack within these.",
        "m = (x - 0.5).abs() < 0.49; a = model(x); "
        "b, c = (model(x + m * (torch.rand_like(x) - 0.5) * 0.8 / 255) for _ in range(2)); "
        "n = int(((a - b).norm(dim=1) > 5 * (b - c).norm(dim=1)).sum()); print(4 * n > len(x), n, 'of', len(x))",
        "jumps",
        _grid,
    ),
)
