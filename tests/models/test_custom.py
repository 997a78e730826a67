"""rdc.from_denoiser: every parameterisation of one model gives one posterior, and what does not fit is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import rdc
from rdc.errors import ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.custom_denoiser import CustomDenoiser
from rdc.method.denoiser import ConditionalDenoiser
from rdc.method.levels import NoiseLevels
from rdc.method.schedules import SCHEDULES, EDMSchedule, FlowSchedule, VPSchedule, resolve_schedule
from rdc.networks.vp import VPNetwork, vp_sigmas
from tests.oracles import GaussianNetwork
from tests.tolerances import FLOAT32_SUM, FLOAT64_FORMULA, FLOAT64_NETWORK, ONNX_PARITY, RECORDED_SCHEDULE

SHAPE, VARIANCE, CLASSES = (1, 2, 4), 0.1, 3
GENERATOR = torch.Generator().manual_seed(0)
MEANS = 0.6 * torch.randn(CLASSES, *SHAPE, generator=GENERATOR, dtype=torch.float64)
PIXELS = torch.rand(5, *SHAPE, generator=GENERATOR, dtype=torch.float64)
SIGMAS = vp_sigmas({})
LEVELS = NoiseLevels(
    tuple(SIGMAS[[40, 100, 200, 350]].tolist()), (0.3, 0.2, 0.4, 0.1)
)  # 0.1 to 1.7: float32 has x0 in eps there

# schedule -> (how the model sees x_t = x0 + s e: scale and time; how it gets s back from the time), written by hand
SEEN = {
    "edm": (EDMSchedule(), lambda s: torch.ones_like(s), lambda t: t),
    "edm-network": (EDMSchedule(raw=True), lambda s: 1 / (s**2 + 0.25).sqrt(), lambda t: (4 * t).exp()),
    "vp": (VPSchedule(SIGMAS), lambda s: 1 / (1 + s**2).sqrt(), lambda t: SIGMAS[t]),
    "vp-between": (
        VPSchedule(SIGMAS, steps="between"),
        lambda s: 1 / (1 + s**2).sqrt(),
        lambda t: SIGMAS[t.round().long()],
    ),
    "flow": (FlowSchedule(), lambda s: 1 / (1 + s), lambda t: t / (1 - t)),
    "flow-1000": (FlowSchedule(time_scale=1000), lambda s: 1 / (1 + s), lambda t: t / (1000 - t)),
    "flow-backwards": (FlowSchedule(data_at=1), lambda s: 1 / (1 + s), lambda t: (1 - t) / t),
    "flow-shifted": (
        FlowSchedule(shift=3),
        lambda s: 1 / (1 + s),
        lambda t: 3 * t / (1 + 2 * t) / (1 - 3 * t / (1 + 2 * t)),
    ),
}
PAIRS = [(name, predicts) for name, (schedule, _, _) in SEEN.items() for predicts in schedule.predictions]


def gaussian(name, predicts, dtype=torch.float64):
    """The exact model of Gaussian classes as a function of what this schedule shows it."""
    _, scale, level = SEEN[name]
    means = torch.cat([MEANS, MEANS.mean(0, keepdim=True)]).to(dtype)

    def model(z, time, labels):
        s = level(time).to(dtype).reshape(-1, 1, 1, 1)
        x_t = z / scale(s)
        x0 = (VARIANCE * x_t + s**2 * means[labels]) / (VARIANCE + s**2)
        noise, r = (x_t - x0) / s, (s**2 + 0.25).sqrt()
        if predicts == "flow":
            return (x0 - noise) if name == "flow-backwards" else noise - x0
        if predicts == "v":
            return (noise - s * x0) / (1 + s**2).sqrt()
        return {"x0": x0, "eps": noise, "F": (x0 - 0.25 / r**2 * x_t) * r / (0.5 * s)}[predicts]

    return model


def custom(name, predicts, dtype=torch.float64, **settings):
    chosen = {"levels": LEVELS, "null_label": CLASSES, **settings}
    return rdc.from_denoiser(
        gaussian(name, predicts, dtype),
        num_classes=CLASSES,
        image_shape=SHAPE,
        predicts=predicts,
        schedule=SEEN[name][0],
        **chosen,
    )


def reference(dtype=torch.float64, **settings):
    network = GaussianNetwork(MEANS, VARIANCE).to(dtype)
    return DiffusionClassifier(ConditionalDenoiser(network, CLASSES, SHAPE), LEVELS, **settings)


@pytest.mark.parametrize(("name", "predicts"), PAIRS)
def test_every_parameterisation_gives_the_same_posterior_and_gradient(name, predicts):
    expected = PIXELS.clone().requires_grad_()
    wanted = reference()(expected)
    wanted[:, 0].sum().backward()
    pixels = PIXELS.clone().requires_grad_()
    found = custom(name, predicts)(pixels)
    found[:, 0].sum().backward()
    assert (found - wanted).abs().max() < FLOAT64_NETWORK
    assert (pixels.grad - expected.grad).abs().max() < FLOAT64_NETWORK
    single = custom(name, predicts, torch.float32)(PIXELS.float())
    assert (single.double() - wanted).abs().max() < FLOAT32_SUM


@pytest.mark.parametrize(("name", "predicts"), PAIRS)
def test_f_at_very_small_noise_does_not_cancel(name, predicts):
    if name.startswith("vp"):
        pytest.skip("these schedules begin at 0.01")
    denoiser = CustomDenoiser(gaussian(name, predicts), SEEN[name][0], predicts, CLASSES, SHAPE)
    x_t, sigma, labels = 2 * PIXELS - 1, PIXELS.new_full((5,), 1e-3), torch.tensor([0, 1, 2, 0, 1])
    expected = ConditionalDenoiser(GaussianNetwork(MEANS, VARIANCE).double(), CLASSES, SHAPE).f(x_t, sigma, labels)
    assert (denoiser.f(x_t, sigma, labels) - expected).abs().max() < FLOAT64_NETWORK


def apart(found, wanted):
    return (found - wanted).abs().max() / wanted.abs().max()


class Net(nn.Module):
    """A small network of z, time and label that knows no EDM."""

    def __init__(self, channels=1, classes=CLASSES, out=1):
        super().__init__()
        torch.manual_seed(0)
        self.label, self.first = nn.Embedding(classes + 1, 8), nn.Conv2d(channels, 8, 3, padding=1)
        self.last = nn.Conv2d(8, out * channels, 3, padding=1)

    def forward(self, z, time, labels):
        h = (
            self.first(z)
            + self.label(labels)[:, :, None, None]
            + torch.cos(time.to(z.dtype) / 100)[:, None, None, None]
        )
        return self.last(nn.functional.silu(h))


def of_net(net=None, schedule="vp-linear", predicts="eps", **settings):
    chosen = {"num_classes": CLASSES, "image_shape": (1, 6, 6), **settings}
    return rdc.from_denoiser(net or Net(), predicts=predicts, schedule=schedule, **chosen)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_it_is_what_the_converter_of_diffusers_models_makes(prediction):
    net = Net()

    def unet(x, step, weights):
        return net(x, step, weights.argmax(1))

    wrapped = VPNetwork(unet if isinstance(unet, nn.Module) else _Module(unet), SIGMAS, prediction, CLASSES)
    old = DiffusionClassifier(ConditionalDenoiser(wrapped, CLASSES, (1, 6, 6)), "log:5:0.1:3:flat")
    predicts = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[prediction]
    new = of_net(net, predicts=predicts, levels="log:5:0.1:3:flat")
    pixels = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    assert apart(new(pixels), old(pixels)) < FLOAT32_SUM


class _Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *operands):
        return self.function(*operands)


def test_likelihood_maximisation_moves_it_and_gradients_go_through():
    plain, moved = of_net(), of_net(null_label=CLASSES, lm="paper-v2")
    pixels = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert not torch.equal(plain(pixels), moved(pixels))
    (slope,) = torch.autograd.grad(moved(pixels)[:, 0].sum(), pixels)
    assert bool(torch.isfinite(slope).all()) and slope.abs().max() > 0


def test_learned_variance_is_left_out():
    both = Net(out=2)
    first = Net()
    first.load_state_dict({**both.state_dict(), "last.weight": both.last.weight[:1], "last.bias": both.last.bias[:1]})
    pixels = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(of_net(both)(pixels), of_net(first)(pixels))


def test_passes_are_counted_and_settings_described():
    classifier = of_net(levels="log:5:0.1:3:flat")
    classifier.network_evaluations = 0
    classifier(torch.rand(2, 1, 6, 6))
    assert classifier.network_evaluations == 2 * 5 * CLASSES == 2 * classifier.evaluations_per_image
    described = classifier.describe()["denoiser"]
    assert described == {
        "kind": "custom", "predicts": "eps", "schedule": "vp-linear", "training_steps": 1000, "steps": "nearest", "null_label": None,
    }  # fmt: skip


def test_the_exported_file_answers_the_same(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from rdc.export import export_onnx

    classifier = of_net(levels="log:3:0.1:3:flat")
    pixels = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    export_onnx(classifier, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {session.get_inputs()[0].name: pixels.numpy()}), strict=True))
    found = next(torch.from_numpy(value) for name, value in outputs.items() if "log" in name)
    assert apart(found, classifier(pixels)) < ONNX_PARITY


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "any_model.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    exec(compile(code, "docs/any_model.md", "exec"), {})
    assert "torch.Size([2, 10])" in capsys.readouterr().out


# --- schedules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_name_is_a_schedule_of_finite_times(name):
    schedule = resolve_schedule(name)
    sigma = torch.tensor([max(schedule.sigma_min, 0.01), 1.0, min(schedule.sigma_max, 80.0)], dtype=torch.float64)
    for values in (schedule.scale(sigma, 0.5), schedule.time(sigma)):
        assert values.shape == sigma.shape and bool(torch.isfinite(values).all())


def test_named_schedules_are_those_of_the_field():
    linear, scaled = resolve_schedule("vp-linear"), resolve_schedule("vp-scaled-linear")
    assert linear.sigma_min == pytest.approx((1e-4 / (1 - 1e-4)) ** 0.5, rel=FLOAT64_FORMULA)
    assert linear.sigma_max == pytest.approx(157.4, rel=RECORDED_SCHEDULE)
    assert (scaled.sigma_min, scaled.sigma_max) == pytest.approx(
        (0.02917, 14.615), rel=RECORDED_SCHEDULE
    )  # Stable Diffusion's
    of_mapping = resolve_schedule({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
    assert of_mapping.sigma_max == scaled.sigma_max


def test_between_two_steps_time_is_linear_in_the_logarithm():
    schedule = VPSchedule([1.0, math.e, math.e**3], steps="between")
    sigma = torch.tensor([0.5, 1.0, math.exp(0.5), math.e**2, 100.0], dtype=torch.float64)
    assert schedule.time(sigma).tolist() == pytest.approx([0, 0, 0.5, 1.5, 2])


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"predicts": "noise"}, "predicts: expected x0, eps, v with schedule vp-linear; got 'noise'"),
        ({"predicts": "flow"}, "predicts: expected x0, eps, v"),
        ({"schedule": "flow", "predicts": "v"}, "predicts: expected x0, eps, flow"),
        ({"schedule": "cosine"}, "schedule: expected edm, edm-network, vp-linear"),
        ({"schedule": {"beta_schedule": "cosine"}}, "schedule: beta_schedule: expected linear"),
        ({"num_classes": 0}, "num_classes: expected"),
        ({"image_shape": (6, 6)}, "image_shape: expected three sizes"),
        ({"null_label": -1}, "null_label: expected an index"),
        ({"levels": "log:4:0.001:3:flat"}, "levels: expected noise levels from 0.01"),
        ({"lm": "paper-v2"}, r"say which it is \(null_label=\)"),
        ({"net": Net(channels=3)}, r"it raised RuntimeError"),
        ({"net": lambda z, time, labels: z[:, :, :3]}, r"f: expected a tensor \[2, 1 or 2, 6, 6\]; got \(2, 1, 3, 6\)"),
        ({"net": lambda z, time, labels: None}, "f: expected a tensor"),
        ({"net": lambda z, time, labels: z / 0}, "f: expected finite predictions"),
        ({"net": lambda z, time, labels: z}, "are labels handed on"),
        ({"net": 3}, "f: expected a function"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        of_net(**{**settings, "net": settings.get("net") or Net()})
    assert "\n" not in str(caught.value)


def test_an_untrained_network_passes_without_the_check():
    zero = Net()
    nn.init.zeros_(zero.last.weight)
    with pytest.raises(ConfigError, match="check=False"):
        of_net(zero)
    assert of_net(zero, check=False)(torch.rand(1, 1, 6, 6)).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("arguments", [{"shift": 0}, {"time_scale": math.nan}, {"data_at": 2}, {"data_at": True}])
def test_a_flow_of_impossible_numbers_is_refused(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        FlowSchedule(**arguments)


@pytest.mark.parametrize("sigmas", [[1.0], [2.0, 1.0], [0.0, 1.0], [1.0, math.inf], "abc", None])
def test_levels_that_are_no_schedule_are_refused(sigmas):
    with pytest.raises(ConfigError, match="sigmas: expected"):
        VPSchedule(sigmas)


def test_a_denoiser_without_null_label_says_so():
    denoiser = of_net().denoiser
    with pytest.raises(ConfigError, match="no null label"):
        denoiser.f_null(torch.zeros(1, 1, 6, 6), torch.ones(1))


def sigma_to_t(s):
    """k-diffusion's: a fraction of two steps, linear in ln(s)."""
    logs = SIGMAS.log()
    low = int((logs <= math.log(s)).sum().clamp(1, len(logs) - 1)) - 1
    return low + (math.log(s) - logs[low].item()) / (logs[low + 1] - logs[low]).item()


def double(number):
    return torch.tensor([number], dtype=torch.float64)


#: k-diffusion's wrappers, from their formulas: the estimate of x0 from the network inside
K_DIFFUSION = {
    "CompVisDenoiser": (
        "eps",
        lambda net, x, s, y: x - s * net(x / (s**2 + 1) ** 0.5, double(sigma_to_t(s)), y),
    ),
    "CompVisVDenoiser": (
        "v",
        lambda net, x, s, y: (
            x / (s**2 + 1) - s / (s**2 + 1) ** 0.5 * net(x / (s**2 + 1) ** 0.5, double(sigma_to_t(s)), y)
        ),
    ),
    "Denoiser": (
        "F",
        lambda net, x, s, y: (
            0.25 / (s**2 + 0.25) * x
            + 0.5 * s / (s**2 + 0.25) ** 0.5 * net(x / (s**2 + 0.25) ** 0.5, double(math.log(s) / 4), y)
        ),
    ),
}


@pytest.mark.parametrize("wrapper", K_DIFFUSION)
@torch.no_grad()
def test_the_wrappers_of_k_diffusion_by_their_formulas(wrapper):
    predicts, estimate = K_DIFFUSION[wrapper]
    net = Net().double()
    schedule = VPSchedule(SIGMAS, steps="between") if wrapper != "Denoiser" else "edm-network"
    inside = of_net(net, schedule, predicts, levels="log:4:0.1:3:flat")  # levels between two steps

    def wrapped(x, sigma, labels):  # k-diffusion's object as a whole: x + s e and s, the estimate of x0
        rows = [estimate(net, x[k : k + 1], sigma[k].item(), labels[k : k + 1]) for k in range(len(x))]
        return torch.cat(rows)

    whole = of_net(wrapped, "edm", "x0", levels="log:4:0.1:3:flat", check=False)  # which asks in float32
    pixels = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert apart(inside.class_losses(pixels), whole.class_losses(pixels)) < FLOAT64_NETWORK


class Attentive(nn.Module):
    """A network with torch's fused attention."""

    def __init__(self):
        super().__init__()
        self.widen, self.narrow, self.label = nn.Linear(1, 4), nn.Linear(4, 1), nn.Embedding(CLASSES + 1, 4)

    def forward(self, z, time, label):
        h = self.widen(z.flatten(1)[..., None]) + self.label(label)[:, None]
        h = nn.functional.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None])[:, 0]
        return self.narrow(h)[..., 0].reshape(z.shape)


def test_the_gradient_of_likelihood_maximisation_goes_through_fused_attention():
    settings = {"num_classes": CLASSES, "image_shape": SHAPE, "levels": LEVELS, "null_label": CLASSES}
    model = rdc.from_denoiser(Attentive(), predicts="eps", schedule="edm", lm="paper-v2,steps=1", **settings)
    pixels = PIXELS.float().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixels)[:, 0].sum(), pixels)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
