import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.errors import ConfigError, InputError
from rdc.method import class_gradients
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import ConditionalDenoiser
from rdc.method.levels import noise_levels
from rdc.method.likelihood_maximization import LM_PRESETS, LikelihoodMaximization, lm_penalty
from rdc.method.lm_move import SOFTENED
from rdc.method.working_memory import gradient_bytes
from tests import oracles
from tests.tiny_models import CLASSES, LEVELS, SHAPE, pixels, tiny_classifier, tiny_denoiser
from tests.tolerances import (
    BFLOAT16_NETWORK,
    CENTRAL_DIFFERENCE,
    CLASSIFIER_DIFFERENCE,
    FLOAT32_NETWORK,
    FLOAT32_ROUNDING,
    FLOAT32_ROUNDINGS,
    FLOAT32_ULP,
    FLOAT64_ORDER,
    close,
)

KINDS = ["conditional", "multihead"]
SMOOTH_LM = LikelihoodMaximization(steps=2, sign=False, step_size=0.01, normalize="mean_abs", eta=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_follow_the_equation(kind):
    classifier = tiny_classifier(kind, torch.float64)
    images = pixels(2, dtype=torch.float64)
    noise = classifier.noise.normal(0, len(classifier.levels), SHAPE).double().numpy()

    def predict(x_t, s, y):
        x = torch.from_numpy(x_t)[None]
        return classifier.denoiser.denoise(x, torch.tensor([s], dtype=torch.float64), torch.tensor([y]))[0].numpy()

    expected = oracles.class_losses(
        predict, 2 * images.numpy() - 1, noise, list(classifier.levels.sigma), list(classifier.levels.weight), CLASSES
    )
    close(classifier.class_losses(images), torch.from_numpy(expected), FLOAT64_ORDER)
    per_level = classifier.losses_per_level(images)
    weight = torch.tensor(classifier.levels.weight, dtype=torch.float64)
    close(torch.einsum("ntk,t->nk", per_level, weight), torch.from_numpy(expected), FLOAT64_ORDER)


def test_gaussian_classes_get_their_bayes_posterior():
    """Exact denoisers, ELBO weights: int ||D - x0||^2 / s^3 ds differs between classes by log p(x0|y) exactly."""
    generator = torch.Generator().manual_seed(0)
    means = 0.3 * torch.randn(CLASSES, *SHAPE, generator=generator, dtype=torch.float64)
    variance, images = (
        0.3,
        (means[0] + means[1]) / 2 + 0.1 * torch.randn(6, *SHAPE, generator=generator, dtype=torch.float64),
    )
    images = images.clamp(-1, 1)
    count, low, high = 400, 0.01, 100.0
    levels = noise_levels("log", count, low, high, "eps")
    total = sum((s * 0.5) ** 2 / (s**2 + 0.25) / s**2 for s in levels.sigma)
    spacing = np.log(high / low) / (count - 1)
    denoiser = ConditionalDenoiser(oracles.GaussianNetwork(means, variance), CLASSES, SHAPE)
    draws = [
        DiffusionClassifier(denoiser, levels, noise_seed=seed).class_losses((images + 1) / 2) for seed in range(16)
    ]
    score = -total * spacing * torch.stack(draws).mean(0)
    ours = torch.log_softmax(score, 1).detach()
    truth = torch.from_numpy(oracles.gaussian_log_posterior(images.numpy(), means.numpy(), variance))
    assert (ours.argmax(1) == truth.argmax(1)).all()
    assert (ours.exp() - truth.exp()).abs().max() < 0.08, (ours.exp(), truth.exp())


@pytest.mark.parametrize("lm", [None, "paper-v2"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_log_probabilities_and_do_not_depend_on_requires_grad(kind, lm):
    classifier, images = tiny_classifier(kind, lm=lm), pixels(3)
    plain, traced = classifier(images), classifier(images.clone().requires_grad_())
    assert torch.equal(plain, traced.detach()) and traced.requires_grad and not plain.requires_grad
    torch.testing.assert_close(plain.logsumexp(1), torch.zeros(3), atol=FLOAT32_ROUNDING, rtol=0)


@pytest.mark.parametrize("gradient", ["exact", "bpda"])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_batch_composition_change_nothing(kind, gradient):
    images = pixels(5, dtype=torch.float64)
    whole = tiny_classifier(kind, torch.float64, lm=SMOOTH_LM, gradient=gradient)
    per_pair = gradient_bytes(whole.denoiser, images) / 2**20

    def run(classifier, x):
        x = x.clone().requires_grad_()
        logits = classifier(x)
        return logits.detach(), torch.autograd.grad(logits[:, 1].sum(), x)[0]

    logits, grad = run(whole, images)
    for pairs in (1, 4, 7, 40):
        small = whole.with_(memory_budget_mb=per_pair * pairs * 1.01)
        assert small.pairs_that_fit(images) == pairs
        for ours, reference in zip(run(small, images), (logits, grad), strict=True):
            close(ours, reference, FLOAT64_ORDER)
    for index in range(5):
        alone = run(whole, images[index : index + 1])
        close(alone[0], logits[index : index + 1], FLOAT64_ORDER)
        close(alone[1], grad[index : index + 1], FLOAT64_ORDER)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cpu_takes_so_many_passes_at_a_time_that_its_caches_hold_them(kind, monkeypatch):
    """Values and gradient are the same however many; an image's levels stay together."""
    classifier, images = tiny_classifier(kind, torch.float64), pixels(5, dtype=torch.float64)
    sizes = []
    real = classifier.denoiser.class_losses
    monkeypatch.setattr(
        classifier.denoiser, "class_losses", lambda x, draw: (sizes.append((len(x), len(draw))), real(x, draw))[1]
    )

    def run(rows):
        monkeypatch.setattr(class_gradients, "ROWS_FOR_CACHES", rows)
        sizes.clear()
        x = images.clone().requires_grad_()
        logits = classifier(x)
        return logits.detach(), torch.autograd.grad(logits[:, 1].sum(), x)[0]

    run(10**6)  # measures the memory that an image needs
    whole = run(10**6)
    levels, passes = len(classifier.levels), classifier.denoiser.passes_per_level
    assert sizes == [(5, levels)]
    for rows, images_at_once in ((2 * levels * passes, 2), (1, 1)):
        for ours, reference in zip(run(rows), whole, strict=True):
            close(ours, reference, FLOAT64_ORDER)
        assert {count for count, _ in sizes} <= {images_at_once, 5 % images_at_once} and {at for _, at in sizes} == {
            levels
        }


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 4), st.integers(1, 60), st.integers(0, 2**31))
def test_any_memory_budget_gives_the_same_float32_losses(count, rows, seed):
    classifier = CACHED.setdefault("multihead", tiny_classifier("multihead"))
    images = pixels(count, seed)
    reference = classifier.class_losses(images)
    budget = gradient_bytes(classifier.denoiser, images) / 2**20 * rows
    close(classifier.with_(memory_budget_mb=budget).class_losses(images), reference, FLOAT32_ROUNDINGS)


CACHED: dict = {}


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_the_classes_permutes_the_logits(kind):
    classifier, images, order = tiny_classifier(kind, torch.float64), pixels(3, dtype=torch.float64), [2, 0, 1]
    before = classifier(images)
    net = classifier.denoiser.network
    with torch.no_grad():
        if kind == "conditional":
            weight = net.unet.map_label.weight
            weight.copy_(weight[:, order].clone())
        else:
            size = net.folded_channels  # rows of the head that belong to one class
            rows = torch.tensor([size * k + c for k in order for c in range(size)])
            net.head_weight[: len(rows)] = net.head_weight[rows].clone()
            net.head_bias[: len(rows)] = net.head_bias[rows].clone()
    close(classifier(images), before[:, order], FLOAT64_ORDER)


@pytest.mark.parametrize(
    "lm", [None, SMOOTH_LM, dataclasses.replace(LM_PRESETS["released"], steps=3)], ids=["dc", "momentum", "adam"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_exact_gradient_equals_central_differences(kind, lm):
    classifier, images = tiny_classifier(kind, torch.float64, lm=lm, logit_scale=0.01), pixels(2, dtype=torch.float64)
    leaf = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(classifier(leaf)[:, 0].sum(), leaf)
    for seed in range(3):
        way = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        h = 1e-6
        ends = [classifier(images + sign * h * way)[:, 0].sum() for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * h)
        assert abs((grad * way).sum() - numeric) < max(CENTRAL_DIFFERENCE, CLASSIFIER_DIFFERENCE * abs(numeric))


def test_without_lm_the_pixels_themselves_are_classified():
    """x, and not (2 x - 1 + 1) / 2, which is another number for every second dark pixel."""
    images = pixels(2) / 8
    assert not torch.equal((2 * images - 1 + 1) / 2, images)
    assert torch.equal(tiny_classifier().maximize_likelihood(images), images)


def test_bpda_is_the_gradient_of_dc_at_the_moved_point():
    classifier, images = tiny_classifier(lm="paper-v2", gradient="bpda"), pixels(2)
    leaf = images.clone().requires_grad_()
    (ours,) = torch.autograd.grad(classifier(leaf)[:, 0].sum(), leaf)
    moved = classifier.maximize_likelihood(images).detach().requires_grad_()
    (expected,) = torch.autograd.grad(classifier.with_(lm=None)(moved)[:, 0].sum(), moved)
    close(ours, expected, FLOAT32_NETWORK)
    exact = torch.autograd.grad(classifier.with_(gradient="exact")(leaf)[:, 0].sum(), leaf)[0]
    assert (exact - ours).abs().max() > 1e-2 * ours.abs().max()


def test_fixed_noise_repeats_and_fresh_noise_does_not():
    images = pixels(2)
    fixed, fresh = tiny_classifier(), tiny_classifier(noise="fresh")
    assert torch.equal(fixed(images), fixed(images))
    first, second = fresh(images), fresh(images)
    assert (first - second).abs().max() > 1e-4
    assert torch.equal(tiny_classifier(noise="fresh")(images), first)
    assert torch.equal(first, fixed(images))  # draw 0 is the fixed draw


def test_multihead_agrees_with_its_own_f():
    denoiser = tiny_denoiser("multihead", torch.float64)
    x_t, sigma = 2 * pixels(2, dtype=torch.float64) - 1, torch.tensor([0.5, 2.0], dtype=torch.float64)
    every = denoiser.network(*denoiser._inputs(x_t, sigma))
    assert every.shape == (2, CLASSES + 1, *SHAPE)
    torch.testing.assert_close(denoiser.f(x_t, sigma, torch.tensor([1, 3])), torch.stack([every[0, 1], every[1, 3]]))
    torch.testing.assert_close(denoiser.f_null(x_t, sigma), every[:, 3])


def test_network_evaluations_are_counted():
    for kind, passes in (("conditional", CLASSES), ("multihead", 1)):
        classifier = tiny_classifier(kind, lm="paper-v2")
        classifier(pixels(3))
        assert classifier.network_evaluations == 3 * (5 * passes + 5) == 3 * classifier.evaluations_per_image


def test_what_likelihood_maximisation_offers_is_offered_with_it_alone():
    plain, moved = tiny_classifier(), tiny_classifier(lm="paper-v2,steps=2")
    assert (plain.purifies, plain.has_penalty, plain.stochastic) == (False, False, True)
    assert (moved.purifies, moved.has_penalty, moved.stochastic) == (True, True, True)
    assert set(plain.surrogates()) == {"fresh"} and set(moved.surrogates()) == {
        "plain",
        "one-step",
        "fresh",
        *SOFTENED,
        "straight-through",
        "unclipped",
    }
    surrogates = moved.surrogates()
    assert surrogates["plain"].lm is None and surrogates["one-step"].lm.steps == 1 and surrogates["fresh"].lm.steps == 2
    assert (surrogates["fresh"].noise.policy, surrogates["fresh"].noise.seed) == ("fresh", moved.noise.seed + 1)
    with pytest.raises(ConfigError, match="penalty: expected likelihood maximisation"):
        plain.penalty(pixels(1))
    images = pixels(3)
    close(plain.purify(images), images, FLOAT32_ROUNDING)
    assert (moved.purify(images) - images).abs().max() > 1e-3
    expected = lm_penalty(moved.denoiser, 2 * images - 1, moved.lm, 0, 100)
    close(moved.penalty(images), expected, FLOAT32_ROUNDINGS)
    assert moved.network_evaluations == 3 * 2 + 3 * 2  # purified once, asked for its penalty once


def test_settings_round_trip_and_weights_are_shared():
    classifier = tiny_classifier(lm="released", logit_scale="mean", class_prior=[0.2, 0.3, 0.5])
    copy = classifier.with_(gradient="bpda")
    assert copy.denoiser is classifier.denoiser and copy.settings() == classifier.settings() | {"gradient": "bpda"}
    with pytest.raises(ConfigError, match="gamma"):
        classifier.with_(gamma=3)


@pytest.mark.parametrize(
    "setting",
    [
        {"gradient": "none"},
        {"noise": "some"},
        {"memory_budget_mb": 0},
        {"lm": "x"},
        {"levels": "x"},
        {"logit_scale": "x"},
        {"class_prior": [1, 2]},
        {"class_prior": [1, -1, 1]},
        {"class_prior": [1, 0, 1]},
        {"class_prior": [1, float("inf"), 1]},
    ],
)
def test_bad_settings_are_refused(setting):
    with pytest.raises(ConfigError, match="expected"):
        tiny_classifier(**setting)


BAD = {
    "nan": lambda x: x.masked_fill(x > 0.7, float("nan")),
    "above": lambda x: x + 0.5,
    "below": lambda x: x - 0.5,
    "uint8": lambda x: (x * 255).to(torch.uint8),
    "channels": lambda x: x[:, :1],
    "size": lambda x: x[..., :7],
    "no batch": lambda x: x[0],
    "empty": lambda x: x[:0],
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pixels_are_refused_with_what_was_expected(name):
    with pytest.raises(InputError, match=r"expected a float tensor \[N, 2, 8, 8\].*got"):
        tiny_classifier()(BAD[name](pixels(2)))


def test_description_is_json():
    import json

    text = json.dumps(tiny_classifier(lm="paper-v1").describe())
    assert {"levels", "weighting", "lm", "noise", "head"} <= set(json.loads(text))
    assert LEVELS.split(":")[0] == json.loads(text)["levels"]["scheme"]


@pytest.mark.parametrize("lm", [None, "paper-v2"])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_to_float32_forward_and_backward(kind, lm):
    """Eight bits of mantissa in the network; float32 in, out, and in every sum."""
    classifier, images = tiny_classifier(kind, lm=lm, logit_scale=0.01), pixels(3)
    half = classifier.with_(precision="bfloat16")
    found = []
    for one in (classifier, half):
        leaf = images.clone().requires_grad_()
        log_p = one(leaf)
        assert log_p.dtype == torch.float32
        found.append((log_p.detach(), torch.autograd.grad(log_p[:, 0].sum(), leaf)[0]))
    (log_p, grad), (log_p_half, grad_half) = found
    assert not torch.equal(log_p, log_p_half)
    losses, losses_half = classifier.class_losses(images), half.class_losses(images)
    close(losses_half, losses, BFLOAT16_NETWORK)
    cosine = torch.nn.functional.cosine_similarity(grad.flatten(1), grad_half.flatten(1))
    assert (cosine > (0.995 if lm is None else 0.8)).all(), cosine


def test_precision_belongs_to_the_copy_and_weights_are_shared():
    classifier, images = tiny_classifier("multihead"), pixels(2)
    before = classifier(images)
    half = classifier.with_(precision="bfloat16")
    assert half.denoiser.network is classifier.denoiser.network
    assert half.describe()["precision"] == "bfloat16" and classifier.describe()["precision"] == "float32"
    assert torch.equal(classifier(images), before)
    assert half.with_(lm=None).settings()["precision"] == "bfloat16"
    assert torch.equal(half.with_(precision="float32")(images), before)


def test_precision_is_refused_with_the_names_that_exist():
    with pytest.raises(ConfigError, match="precision: expected float32 or bfloat16; got 'float16'"):
        tiny_classifier("multihead", precision="float16")


# --- pixels off by rounding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lm", [None, "paper-v2,steps=1"])
def test_a_pixel_beyond_the_box_by_rounding_is_on_the_box(lm):
    classifier, images = tiny_classifier("multihead", lm=lm), pixels(2)
    images[:, 0, 0], images[:, 1, 0] = 1.0, 0.0
    off = images.clone()
    off[:, 0, 0], off[:, 1, 0] = 1 + 1.2e-7, -1e-6
    found = []
    for x in (images, off):
        leaf = x.clone().requires_grad_()
        value = classifier(leaf)
        found.append((value.detach(), torch.autograd.grad(value[:, 0].sum(), leaf)[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1]) and bool(found[1][1][:, 0, 0].all())  # the gradient is intact
    assert torch.equal(classifier.purify(off), classifier.purify(images))


@pytest.mark.parametrize(("by", "words"), [(2e-6, "1.00000203"), (1e-4, "1.0001"), (-2e-6, "-1.99999999e-06|-2e-06")])
def test_more_than_rounding_is_refused_with_digits_enough(by, words):
    images = pixels(1)
    images[0, 0, 0, 0] = 1 + by if by > 0 else by
    with pytest.raises(InputError, match=words):
        tiny_classifier()(images)


def test_pixels_inside_the_box_are_left_alone():
    from rdc.images.pixels import checked_pixels

    x = pixels(2)
    assert checked_pixels(x, SHAPE) is x


def test_a_network_that_is_no_denoiser_is_refused():
    with pytest.raises(ConfigError, match="denoiser: expected a rdc.method.denoiser.Denoiser"):
        DiffusionClassifier(torch.nn.Linear(1, 1), LEVELS)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_one_unit_of_rounding_of_16_bits_is_taken(kind):
    from rdc.images.pixels import checked_pixels, slack

    x = pixels(1).to(kind)
    x[0, 0, 0, 0] = 1 + torch.finfo(kind).eps
    assert slack(kind) == torch.finfo(kind).eps and checked_pixels(x, SHAPE).max() == 1
    x[0, 0, 0, 0] = 1 + 2 * torch.finfo(kind).eps
    with pytest.raises(InputError, match=r"to 1\.0[01]\d+"):
        checked_pixels(x, SHAPE)


@pytest.mark.parametrize("settings", ["paper-v2,steps=3", "released,steps=2", "paper-v1,steps=1", None])
@pytest.mark.parametrize("gradient", ["exact", "bpda"])
def test_the_path_of_likelihood_maximisation_ends_where_it_ends(settings, gradient):
    classifier = tiny_classifier(lm=settings, gradient=gradient)
    x = pixels(3)
    path = classifier.maximize_likelihood(x, return_path=True)
    steps = 0 if classifier.lm is None else classifier.lm.steps
    assert path.shape == (3, steps + 1, *SHAPE) and not path.requires_grad
    exact = classifier.with_(gradient="exact")
    assert torch.equal(path[:, -1], exact.maximize_likelihood(x))
    assert torch.allclose(path[:, 0], x, rtol=0, atol=FLOAT32_ULP)
    for step in range(1, steps):
        fewer = exact.with_(lm=dataclasses.replace(classifier.lm, steps=step))
        assert torch.equal(path[:, step], fewer.maximize_likelihood(x))
    assert torch.equal(classifier.maximize_likelihood(x, return_path=True), path)  # nothing is drawn from it
