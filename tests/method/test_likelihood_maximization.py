import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch

from rdc.errors import ConfigError
from rdc.method.denoiser import ConditionalDenoiser
from rdc.method.levels import noise_levels
from rdc.method.likelihood_maximization import (
    LM_PRESETS,
    LikelihoodMaximization,
    largest_move,
    lm_draw,
    lm_loss,
    lm_penalty,
    maximize_likelihood,
    resolve_lm,
)
from rdc.method.noise import NoisePlan
from tests import oracles
from tests.oracles import GaussianNetwork
from tests.tiny_models import SHAPE, pixels, tiny_denoiser
from tests.tolerances import CENTRAL_DIFFERENCE, FLOAT32_ROUNDING, FLOAT64_OP, FLOAT64_ORDER

SHORT = noise_levels("systematic", 3, 0.2, 2.0, "edm")
SETTINGS = {
    "paper-v1": dataclasses.replace(LM_PRESETS["paper-v1"], levels=SHORT),
    "paper-v2": LM_PRESETS["paper-v2"],
    "released": LM_PRESETS["released"],
    "rmsprop": LikelihoodMaximization(optimizer="rmsprop", step_size=0.002, normalize="none"),
    "sgd": LikelihoodMaximization(optimizer="sgd", sign=False, step_size=0.01, normalize="mean_abs", levels_per_step=2),
    "same-noise": LikelihoodMaximization(noise="same", eta=0.01),
    "lion": LikelihoodMaximization(optimizer="lion", step_size=0.002, normalize="none"),
}


def naive(denoiser, x, settings, draw=0):
    """LM by the equations, one image at a time, numpy state, no shortcuts."""
    out = []
    for image in x:
        anchor, z = image.clone(), image.clone()
        m, v = np.zeros(SHAPE), np.zeros(SHAPE)
        for step in range(settings.steps):
            z = z.detach().requires_grad_()
            lm_loss(denoiser, z[None], settings, step, draw)[0].backward()
            g = z.grad.numpy().copy()
            if settings.normalize == "l1":
                g = g / np.abs(g).sum()
            if settings.normalize == "mean_abs":
                g = g / np.abs(g).mean()
            if settings.optimizer == "momentum":
                m = settings.momentum * m - g
                move = np.sign(m) if settings.sign else m
            elif settings.optimizer == "adam":
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                move = -(m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
            elif settings.optimizer == "rmsprop":
                v = 0.99 * v + 0.01 * g * g
                move = -g / (np.sqrt(v) + 1e-8)
            elif settings.optimizer == "lion":
                move, m = np.sign(0.9 * m - 0.1 * g), 0.99 * m - 0.01 * g
            else:
                move = -np.sign(g) if settings.sign else -g
            z = (z + 2 * settings.step_size * torch.from_numpy(move)).detach()
            if settings.eta is not None:
                z = torch.clamp(z, anchor - 2 * settings.eta, anchor + 2 * settings.eta)
            z = z.clamp(-1, 1) if settings.clamp else z
        out.append(z)
    return torch.stack(out)


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_follow_the_equations(name):
    denoiser, x = tiny_denoiser(dtype=torch.float64), 2 * pixels(3, dtype=torch.float64) - 1
    moved = maximize_likelihood(denoiser, x, SETTINGS[name])
    torch.testing.assert_close(moved, naive(denoiser, x, SETTINGS[name]), atol=FLOAT64_ORDER, rtol=0)
    assert (moved - x).abs().max() > 1e-4


def test_noise_of_the_levels_of_a_step_hangs_together_as_the_levels_say():
    levels = noise_levels("systematic", 4, 0.2, 2.0, "edm", noise="antithetic")
    draw = lm_draw(LikelihoodMaximization(levels=levels), 1, 0, SHAPE)
    assert torch.equal(draw.noise[1::2], -draw.noise[::2])


def test_objective_is_the_weighted_error_of_the_unlabelled_network():
    denoiser, x = tiny_denoiser(dtype=torch.float64), 2 * pixels(2, dtype=torch.float64) - 1
    settings = LikelihoodMaximization(levels=SHORT)
    noise = NoisePlan(settings.seed, "fresh", stream=1).normal(2, 3, SHAPE).double()
    expected = 0
    for s, w, e in zip(SHORT.sigma, SHORT.weight, noise, strict=True):
        d = denoiser.denoise(x + s * e, torch.full((2,), s, dtype=torch.float64), torch.full((2,), 3))
        expected = expected + w * (s**2 + 0.25) / (s * 0.5) ** 2 * ((d - x) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(lm_loss(denoiser, x, settings, 2, 0), expected, rtol=FLOAT64_ORDER, atol=0)


MEAN, VARIANCE, DRAW = 0.1 * np.random.Generator(np.random.Philox(key=5)).standard_normal(SHAPE), 0.2, 3
ON_A_GAUSSIAN = [
    LikelihoodMaximization(loss="x0", sigma_range=(0.3, 3.0), levels_per_step=3),
    LikelihoodMaximization(loss="F", sigma_range=(0.3, 3.0), levels_per_step=3, seed=4),
    LikelihoodMaximization(loss="x0", levels=SHORT, steps=3),
    LikelihoodMaximization(loss="F", levels=SHORT, noise="same"),
]


def gaussian_denoiser():
    return ConditionalDenoiser(GaussianNetwork(torch.from_numpy(MEAN)[None], VARIANCE), 1, SHAPE)


def objective_by_the_equations(x0, settings, step, draw):
    """LM's objective [N] of one step: levels, weights and noise as the settings say, an oracle's denoiser, loops."""
    plan = NoisePlan(settings.seed, "fresh", stream=1)
    position = 4096 * draw + (0 if settings.noise == "same" else step)
    if settings.levels is not None:
        sigma, weight = list(settings.levels.sigma), list(settings.levels.weight)
    else:
        low, high = settings.sigma_range
        places = plan.uniform(position, 0, settings.levels_per_step).tolist()
        sigma = [low * (1 - place) + high * place for place in places]
        weight = [1 / settings.levels_per_step] * settings.levels_per_step
    noise = plan.normal(position, len(sigma), SHAPE).double().numpy()
    return oracles.lm_objective(
        lambda x_t, s: oracles.gaussian_denoised(x_t, s, MEAN, VARIANCE),
        x0.numpy(), noise, sigma, weight, settings.loss,
    )  # fmt: skip


@pytest.mark.parametrize("settings", ON_A_GAUSSIAN, ids=["x0", "F", "x0, fixed levels", "F, fixed levels, same noise"])
def test_objective_of_both_losses_is_the_oracles(settings):
    x0 = 2 * pixels(2, dtype=torch.float64) - 1
    for step in range(2):
        expected = objective_by_the_equations(x0, settings, step, DRAW)
        found = lm_loss(gaussian_denoiser(), x0, settings, step, DRAW).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=FLOAT64_ORDER)


@pytest.mark.parametrize("rows", [1, 4, 100], ids=["an image at a time", "in pieces", "at once"])
@pytest.mark.parametrize("settings", ON_A_GAUSSIAN, ids=["x0", "F", "x0, fixed levels", "F, fixed levels, same noise"])
def test_penalty_is_the_mean_of_the_objective_over_the_steps(settings, rows):
    x0 = 2 * pixels(3, dtype=torch.float64) - 1
    each = [objective_by_the_equations(x0, settings, step, DRAW) for step in range(settings.steps)]
    denoiser = gaussian_denoiser().requires_grad_(False)
    for leaf in (x0, x0.clone().requires_grad_()):
        found = lm_penalty(denoiser, leaf, settings, DRAW, rows)
        np.testing.assert_allclose(found.detach().numpy(), np.mean(each, axis=0), rtol=FLOAT64_ORDER)
        assert found.requires_grad is leaf.requires_grad


def test_likelihood_rises_for_gaussian_classes():
    """With the exact denoiser of one Gaussian, LM must move towards its mean."""
    means = torch.zeros(1, *SHAPE, dtype=torch.float64)
    denoiser = ConditionalDenoiser(GaussianNetwork(means, 0.01), 1, SHAPE)
    x = 0.3 * torch.ones(2, *SHAPE, dtype=torch.float64)
    moved = maximize_likelihood(
        denoiser, x, LikelihoodMaximization(sigma_range=(0.2, 0.3), eta=0.1, step_size=0.02, levels_per_step=8)
    )
    assert moved.mean() < 0.3 - 0.1


@pytest.mark.parametrize("name", ["paper-v2", "released", "sgd", "rmsprop", "same-noise"])
def test_exact_gradient_equals_central_differences(name):
    denoiser = tiny_denoiser(dtype=torch.float64)
    x = 2 * pixels(2, dtype=torch.float64) - 1
    settings = dataclasses.replace(SETTINGS[name], eta=None, sign=False, steps=3)
    if settings.normalize == "l1":  # steps so small that the Jacobian would be the identity
        settings = dataclasses.replace(settings, normalize="mean_abs", step_size=0.05)
    probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((maximize_likelihood(denoiser, leaf, settings) * probe).sum(), leaf)
    for seed in range(4):
        way = torch.randn(x.shape, generator=torch.Generator().manual_seed(10 + seed), dtype=torch.float64)
        h = 1e-6
        ends = [(maximize_likelihood(denoiser, x + sign * h * way, settings) * probe).sum() for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close((grad * way).sum(), numeric, rtol=CENTRAL_DIFFERENCE, atol=CENTRAL_DIFFERENCE)
    straight = (probe * way).sum()
    assert abs(straight - numeric) > 1e-3 * abs(numeric)  # the Jacobian is not the identity: BPDA would fail this test


def test_projection_passes_the_gradient_to_the_input():
    """At the border of the ball x^ = x +- eta, so d x^ / d x = 1: not a masked gradient."""
    denoiser = tiny_denoiser(dtype=torch.float64)
    leaf = (2 * pixels(1, dtype=torch.float64) - 1).requires_grad_()
    settings = LikelihoodMaximization(steps=1, step_size=0.1, eta=0.01)
    (grad,) = torch.autograd.grad(maximize_likelihood(denoiser, leaf, settings).sum(), leaf)
    torch.testing.assert_close(grad, torch.ones_like(grad))


@pytest.mark.parametrize("kind", ["conditional", "multihead"])
def test_images_do_not_influence_each_other(kind):
    denoiser, x = tiny_denoiser(kind, torch.float64), 2 * pixels(4, dtype=torch.float64) - 1
    together = maximize_likelihood(denoiser, x, SETTINGS["paper-v2"])
    alone = torch.cat([maximize_likelihood(denoiser, image[None], SETTINGS["paper-v2"]) for image in x])
    torch.testing.assert_close(together, alone, atol=FLOAT64_OP, rtol=0)


def test_budget_and_clamp_hold():
    denoiser, x = tiny_denoiser(), 2 * torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) - 1
    moved = maximize_likelihood(denoiser, x, LikelihoodMaximization(eta=0.02, step_size=0.01))
    assert (moved - x).abs().max() <= 2 * 0.02 + FLOAT32_ROUNDING and moved.abs().max() <= 1


@pytest.mark.parametrize("frozen", [True, False])
def test_memory_does_not_grow_with_steps(frozen):
    """What is still held when LM returns is a few images a step, not the network's activations (nor a copy of its weights)."""
    denoiser = tiny_denoiser().requires_grad_(not frozen)
    weights = {weight.data_ptr() for weight in (*denoiser.parameters(), *denoiser.buffers())}

    class Box:
        def __init__(self, tensor):
            self.tensor = tensor

    held = {}
    for steps in (1, 4):
        boxes: list[weakref.ref] = []

        def pack(tensor, boxes=boxes):
            box = Box(tensor)
            if tensor.data_ptr() not in weights:
                boxes.append(weakref.ref(box))
            return box

        x = (2 * pixels(2) - 1).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
            moved = maximize_likelihood(denoiser, x, LikelihoodMaximization(steps=steps, sign=False, step_size=0.01))
        gc.collect()
        held[steps] = sum(box().tensor.numel() for box in boxes if box() is not None)
        assert moved.requires_grad and len(boxes) > 20 * steps
    assert held[4] - held[1] <= 3 * 4 * x.numel()


def test_presets_and_names():
    assert (
        resolve_lm(None) is None and resolve_lm("none") is None and resolve_lm(LikelihoodMaximization(steps=0)) is None
    )
    assert all(resolve_lm(name).name == name and resolve_lm(name).steps == 5 for name in LM_PRESETS)
    with pytest.raises(ConfigError, match="paper-v1"):
        resolve_lm("paper-v3")


def test_presets_are_the_papers():
    """Every number of the three versions: algorithm 1 of v1 and v2, and the authors' program."""
    common = {"steps": 5, "momentum": 1.0, "clamp": True, "levels_per_step": 1, "noise": "fresh", "seed": 1}
    drawn = common | {"sigma_range": (0.4, 0.6), "levels": None}
    expected = {
        "paper-v1": common
        | {
            "optimizer": "momentum",
            "sign": True,
            "normalize": "l1",
            "step_size": 8 / 255 / 5,
            "eta": 8 / 255,
            "loss": "F",
        },
        "paper-v2": drawn
        | {
            "optimizer": "momentum",
            "sign": False,
            "normalize": "mean_abs",
            "step_size": 0.05,
            "eta": 8 / 255,
            "loss": "F",
        },
        "released": drawn | {"optimizer": "adam", "normalize": "none", "step_size": 0.05, "eta": None, "loss": "x0"},
    }
    for name, values in expected.items():
        found = dataclasses.asdict(LM_PRESETS[name])
        assert {key: found[key] for key in values} == values
    assert [LM_PRESETS[name].describe()["levels"] for name in ("paper-v2", "released")] == [None, None]
    assert LM_PRESETS["paper-v1"].describe()["levels"]["count"] == 125
    levels = LM_PRESETS["paper-v1"].levels
    assert (len(levels), levels.sigma[0], levels.weighting) == (125, 1e-4, "edm")
    assert levels.sigma[-1] == pytest.approx(1e-4 + (3 - 1e-4) * 124 / 125)


def test_the_largest_move_is_the_radius():
    assert largest_move(LikelihoodMaximization(eta=0.03)) == 0.03
    assert largest_move(LM_PRESETS["released"]) == float("inf")


def test_presets_with_changes():
    text = "paper-v2,steps=3,eta=16/255,sigma_range=0.5:1.5,sign=true,momentum=0.5,loss=x0"
    expected = LikelihoodMaximization(
        steps=3,
        eta=16 / 255,
        sigma_range=(0.5, 1.5),
        sign=True,
        momentum=0.5,
        loss="x0",
        step_size=0.05,
        normalize="mean_abs",
        name=text,
    )
    assert resolve_lm(text) == expected
    every = resolve_lm("released,optimizer=sgd,step_size=1/255,normalize=l1,eta=none,clamp=false,noise=same,seed=7")
    assert (every.optimizer, every.step_size, every.normalize, every.eta, every.clamp) == (
        "sgd",
        1 / 255,
        "l1",
        None,
        0,
    )
    assert (every.noise, every.seed) == ("same", 7)
    assert resolve_lm("paper-v1,levels=none,levels_per_step=2").levels is None
    assert len(resolve_lm("paper-v2,levels=log:4:0.5:2:flat").levels) == 4
    assert resolve_lm("paper-v2,steps=0") is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("paper-v2,gamma=1", "field=value with a field of steps, .*got 'gamma=1'"),
        ("paper-v2,steps", "'' does not fit; write for example steps=5"),
        ("paper-v2,eta=8/0", "eta: '8/0' does not fit; write for example eta=8/255"),
        ("paper-v2,sign=1", "sign=true or sign=false"),
        ("paper-v2,sigma_range=0.5", "sigma_range=0.4:0.6"),
        ("paper-v2,levels=log:3", "levels=log:4:0.5:2:flat"),
        ("paper-v2,optimizer=lbfgs", "optimizer: expected one of"),
        ("paper-v2,steps=-1", "steps: expected an integer >= 0"),
    ],
)
def test_bad_changes_are_refused(text, match):
    with pytest.raises(ConfigError, match=match):
        resolve_lm(text)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": -1},
        {"optimizer": "lbfgs"},
        {"normalize": "l2"},
        {"loss": "eps"},
        {"noise": "none"},
        {"step_size": 0},
        {"eta": 0},
        {"levels_per_step": 0},
        {"sigma_range": (0.6, 0.4)},
        {"sigma_range": (0.4, float("inf"))},
        {"sigma_range": (0.0, 0.4)},
        {"momentum": float("nan")},
        {"step_size": float("inf")},
        {"eta": float("inf")},
        {"eta": "8/255"},
        {"steps": 4097},
        {"steps": 2.5},
        {"levels": "edm"},
        {"name": 3},
    ],
)
def test_bad_settings_are_refused(change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))}: expected"):
        LikelihoodMaximization(**change)
