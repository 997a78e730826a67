"""Losses at the purifier's steps: their gradient, a defence that only they break, one draw for both paths, budgets, batches, options."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rdc.attacks import ThreatModel, apgd
from rdc.attacks.per_step import PerStepOptions, _PerStep, chosen_steps, per_step
from rdc.attacks.registry import applies, parse_attack, suite
from rdc.contracts import PurificationPath
from rdc.defences import DiffusionPurifier, LikelihoodPurifier, PurifiedClassifier
from rdc.errors import ConfigError, InputError
from rdc.norm_balls import check_budget
from tests.evaluation_models import CLASSES, gaussian_classifier
from tests.evaluation_models import images as blobs
from tests.tolerances import CENTRAL_DIFFERENCE, FLOAT32_ROUNDING, FLOAT32_SUM

THREAT = ThreatModel("linf", 0.1)
SIGNS = torch.tensor([1.0, -1.0]).repeat(18)
WEIGHT = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))


def plain(x: torch.Tensor) -> torch.Tensor:
    """Class 0 unless a move of 1.8 along the signs; 3.6 is to be had."""
    margin = torch.stack([(SIGNS.to(x.dtype) * (image.flatten() - 0.5)).sum() for image in x])
    return torch.stack([1.8 - margin, margin - 1.8], dim=1)


class Rounding:
    """Two steps: nothing at first, then to 4 grey levels and back in mirrored signs: its last image has a gradient that leads astray."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.path(x).logits

    def path(self, x: torch.Tensor) -> PurificationPath:
        first = 0.5 + 0.999 * (x - 0.5)
        last = first.detach() - 0.01 * (first - first.detach())
        return PurificationPath(torch.stack([first, last], dim=1), plain(last), plain)


def images(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((count, 1, 6, 6), 0.5), torch.zeros(count, dtype=torch.int64)


def test_a_misleading_last_step_is_overruled_by_the_one_before() -> None:
    """The last image's gradient points the wrong way, a hundredth as steep: the class loss of the first image leads."""
    model, (x, y) = Rounding(), images()
    common = {"seed": 0, "image_ids": range(3), "steps": 12}
    assert apgd(model, x, y, THREAT, **common).accuracy == 1.0
    found = per_step(model, x, y, THREAT, path=model.path, **common)
    assert found.accuracy == 0.0 and found.name == "per-step-ce"
    assert (model(found.x_adv).argmax(1) == 1).all()
    check_budget(found.x_adv, x, 0.1, "linf")
    assert per_step(model, x, y, THREAT, path=model.path, weight=1e-6, **common).accuracy == 1.0


def lm() -> LikelihoodPurifier:
    return LikelihoodPurifier(gaussian_classifier().denoiser, "paper-v2,steps=3,eta=none")


def net(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(3 * (x.flatten(1) - 0.5)) @ WEIGHT.to(x.dtype)


KINDS: dict[str, Callable[..., object]] = {
    "rdc": lambda **changes: gaussian_classifier(lm="paper-v2,steps=3", **changes),
    "lm": lambda **changes: PurifiedClassifier(lm(), net, num_classes=CLASSES, **changes),
    "diffpure": lambda **changes: PurifiedClassifier(
        DiffusionPurifier(gaussian_classifier().denoiser, sigma=0.5, steps=3), net, num_classes=CLASSES, **changes
    ),
    "lm-in-front-of-dc": lambda **changes: PurifiedClassifier(
        lm(), gaussian_classifier(), num_classes=CLASSES, **changes
    ),
}


def pixels(count: int = 3) -> torch.Tensor:
    return blobs(count, seed=2).float() / 255 * 0.8 + 0.1


@pytest.mark.parametrize("mode", ["exact", "bpda"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_path_is_a_call_taken_apart(kind: str, mode: str) -> None:
    model, x = KINDS[kind](gradient=mode), pixels()
    taken, answer = model.purification_path(x), model(x)
    assert taken.images.shape == (3, 3, 1, 8, 8) and model.purification_length == 3
    assert torch.equal(taken.logits, answer)
    assert torch.allclose(taken.images[:, -1].clamp(0, 1), model.purify(x).clamp(0, 1), atol=FLOAT32_ROUNDING)
    assert torch.allclose(taken.classify(taken.images[:, -1]), answer, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    each = model.with_()
    each.purification_path(x)
    assert each.network_evaluations == 3 * each.evaluations_per_image
    leaf, upstream = x.clone().requires_grad_(), torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    slopes = [
        torch.autograd.grad(model.purification_path(leaf).images[:, step], leaf, upstream)[0] for step in range(3)
    ]
    assert all(torch.equal(slope, upstream) for slope in slopes) is (mode == "bpda")


@pytest.mark.parametrize("kind", KINDS)
def test_under_fresh_noise_a_path_takes_one_draw_as_a_call_does(kind: str) -> None:
    x, calls, paths = pixels(), *(KINDS[kind](noise="fresh", noise_seed=4) for _ in range(2))
    answers, taken = [calls(x) for _ in range(3)], [paths.purification_path(x) for _ in range(3)]
    for answer, path in zip(answers, taken, strict=True):
        assert torch.equal(path.logits, answer)
    assert not torch.equal(answers[0], answers[1])
    first, last = taken[0], taken[0].images[:, -1]  # its draw is kept, whatever was drawn after it
    assert torch.allclose(first.classify(last), first.logits, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)


def test_a_defence_without_known_steps_says_so() -> None:
    model = gaussian_classifier()
    assert model.purification_length == 0
    with pytest.raises(ConfigError, match="likelihood maximisation"):
        model.purification_path(pixels())
    assert "per-step needs a defence that purifies in steps" in str(
        applies(parse_attack("per-step"), model, "linf", "known")
    )
    assert applies(parse_attack("per-step:measure=deviation:looks=2"), KINDS["rdc"](), "linf", "known") is None
    assert "per-step" in suite("adaptive", "linf")


def smooth(x: torch.Tensor, draw: int = 0) -> PurificationPath:
    """Three steps in float64, each a rotation and a bend; the draw shifts the first."""
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64) / 4
    found = [torch.sin(x.double().flatten(1) + 0.1 * draw)]
    found += [torch.tanh(found[-1] @ mixing)]
    found += [torch.tanh(found[-1] @ mixing.T)]
    every = torch.stack(found, dim=1).view(len(x), 3, 1, 4, 4)

    def classify(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ WEIGHT[:16, :3].double()

    return PurificationPath(every, classify(every[:, -1]), classify)


def losses_by_loops(
    x: torch.Tensor, clean: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, measure: str
) -> torch.Tensor:
    """J by the module's formula, an image and a step at a time, c left out: its two terms [n, 2]."""
    found = []
    for image, original, label, s in zip(x, clean, y, scale, strict=True):
        taken, kept = smooth(image[None]), smooth(original[None])

        def odds(logits: torch.Tensor, s: torch.Tensor = s, label: int = int(label)) -> torch.Tensor:
            others = torch.cat([logits[:label], logits[label + 1 :]])
            return torch.log((s * others).exp().sum()) - s * logits[label]

        if measure == "class":
            more = sum(odds(taken.classify(taken.images[0, k][None])[0]) for k in range(2)) / 2
        else:
            more = sum(((taken.images[0, k] - kept.images[0, k]) ** 2).mean() for k in range(3)) / 3
        found.append(torch.stack([odds(taken.logits[0]), more]))
    return torch.stack(found)


@pytest.mark.parametrize("measure", ["class", "deviation"])
def test_the_gradient_is_that_of_the_formula(measure: str) -> None:
    """Central differences of J, computed by loops in float64; c is the ratio of the two gradients' lengths."""
    generator = torch.Generator().manual_seed(2)
    clean = torch.rand(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    x = clean + 0.1 * torch.rand(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    y, scale = torch.tensor([1, 0]), torch.tensor([0.7, 1.3], dtype=torch.float64)
    options = PerStepOptions(path=smooth, measure=measure, weight=0.3)
    objective = _PerStep(lambda x: smooth(x).logits, options)
    objective.begin(clean, y)
    found = objective.evaluate(x, y, torch.stack([scale, torch.tensor([0.0, 1.0])], dim=1), gradient=True)
    terms = torch.zeros(2, 2, 16, dtype=torch.float64)
    for place in range(16):
        step = torch.zeros(16, dtype=torch.float64)
        step[place] = 1e-5
        up, down = (losses_by_loops(x + sign * step.view(1, 4, 4), clean, y, scale, measure) for sign in (1, -1))
        terms[:, :, place] = (up - down) / 2e-5
    c = 1.0 if measure == "class" else (terms[:, 0].norm(dim=1) / terms[:, 1].norm(dim=1))[:, None]
    expected = terms[:, 0] + 0.3 * c * terms[:, 1]
    assert torch.allclose(found.slope.flatten(1), expected, atol=CENTRAL_DIFFERENCE)
    here = losses_by_loops(x, clean, y, scale, measure)
    assert torch.allclose(found.loss, here[:, 0])
    ratio = c if isinstance(c, float) else c[:, 0]
    assert torch.allclose(found.ascent, here[:, 0] + 0.3 * ratio * here[:, 1], atol=CENTRAL_DIFFERENCE)


def test_deviation_compares_both_paths_under_one_draw() -> None:
    """A draw moves all images alike: at the clean image itself there is no deviation, whatever was drawn."""
    seen, now = [], [0]

    def redraw() -> None:
        now[0] += 1

    def path(x: torch.Tensor) -> PurificationPath:
        seen.append(len(x))
        return smooth(x, now[0])

    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([1, 0])
    options = PerStepOptions(path=path, measure="deviation", redraw=redraw, eot=2)
    objective = _PerStep(lambda x: smooth(x, now[0]).logits, options)
    scale = objective.start(x, y)[2]
    found = objective.evaluate(x, y, scale, gradient=True)
    assert torch.equal(found.ascent, found.loss) and seen == [4, 4]  # clean and attacked together, in each draw
    moved = objective.evaluate(x + 0.05, y, scale, gradient=True)
    assert (moved.ascent > moved.loss).all()


@pytest.mark.parametrize("measure", ["class", "deviation"])
def test_an_images_result_does_not_depend_on_the_batch(measure: str) -> None:
    x, y = pixels(4), torch.tensor([0, 1, 2, 3])
    model = KINDS["lm"]()
    y = model(x).argmax(1)
    common = {"steps": 3, "seed": 1, "restarts": 2, "measure": measure, "path": model.purification_path}
    together = per_step(model, x, y, ThreatModel("linf", 0.01), image_ids=[7, 3, 9, 4], **common)
    alone = per_step(model, x[2:3], y[2:3], ThreatModel("linf", 0.01), image_ids=[9], **common)
    assert torch.allclose(together.x_adv[2], alone.x_adv[0], atol=FLOAT32_ROUNDING)
    assert together.verify_mismatches == 0 and together.gradient_evaluations > 0


def test_which_steps_are_looked_at() -> None:
    assert chosen_steps(3, 4) == [0, 1, 2] and chosen_steps(4, 4) == [0, 1, 2, 3] and chosen_steps(0, 4) == []
    assert chosen_steps(19, 4) == [4, 8, 11, 15] and chosen_steps(5, 1) == [2]
    assert all(len(chosen_steps(length, 7)) == min(length, 7) for length in range(30))


def test_bad_options_are_refused() -> None:
    model, (x, y) = Rounding(), images()
    with pytest.raises(ConfigError, match="measure"):
        per_step(model, x, y, THREAT, path=model.path, measure="both")
    with pytest.raises(ConfigError, match="weight"):
        per_step(model, x, y, THREAT, path=model.path, weight=0.0)
    with pytest.raises(InputError, match="path"):
        per_step(model, x, y, THREAT, path=3)
    with pytest.raises(InputError, match=r"path: expected images \[3, S, 1, 6, 6\]"):
        per_step(model, x, y, THREAT, path=lambda x: PurificationPath(x, model(x), model), steps=2)
    with pytest.raises(ConfigError, match="measure is one of class, deviation"):
        parse_attack("per-step:measure=both")
