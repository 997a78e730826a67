"""Denoisers of azula: every schedule gives the posterior of Gaussian classes, and the real plug-ins, where they are, their own losses."""

from __future__ import annotations

import importlib
import math
import types

import pytest
import torch
from torch import nn

import rdc
from rdc import from_azula
from rdc.cli import main
from rdc.errors import CheckpointError, ConfigError
from rdc.method.classifier import DiffusionClassifier
from rdc.method.denoiser import ConditionalDenoiser
from rdc.method.levels import NoiseLevels
from rdc.models.azula_denoisers import AzulaSchedule
from tests.oracles import GaussianNetwork
from tests.tolerances import CENTRAL_DIFFERENCE, FLOAT32_SUM, FLOAT64_FORMULA, FLOAT64_NETWORK

SHAPE, VARIANCE, CLASSES = (1, 2, 4), 0.1, 3
GENERATOR = torch.Generator().manual_seed(0)
MEANS = 0.6 * torch.randn(CLASSES, *SHAPE, generator=GENERATOR, dtype=torch.float64)
PIXELS = torch.rand(5, *SHAPE, generator=GENERATOR, dtype=torch.float64)
LEVELS = NoiseLevels((0.1, 0.4, 0.9, 1.7), (0.3, 0.2, 0.4, 0.1))

# azula's schedules, written by hand from its documentation
SCHEDULES = {
    "VE": lambda t: (torch.ones_like(t), torch.exp((1 - t) * math.log(1e-3) + t * math.log(1e3))),
    "VP": lambda t: ((a := torch.exp(math.log(1e-2) * t**2)), torch.sqrt(1 - a**2 + 1e-4)),
    "cosine": lambda t: ((a := torch.cos(math.acos(1e-3) * t)), torch.sqrt(1 - a**2 + 1e-6)),
    "rectified": lambda t: (t * 1e-3 + (1 - t), t + (1 - t) * 1e-3),
    "elucidated": lambda t: (torch.ones_like(t), ((1 - t) * 0.002 ** (1 / 7) + t * 80 ** (1 / 7)) ** 7),
}


class Gaussian:
    """The exact denoiser of Gaussian classes, with azula's interface."""

    def __init__(self, schedule, one_hot=False):
        self.schedule, self.one_hot = schedule, one_hot

    def __call__(self, x_t, t, label):
        means = torch.cat([MEANS, MEANS.mean(0, keepdim=True)]).to(x_t)
        if self.one_hot:
            assert label.shape == (len(x_t), CLASSES)
            label = torch.where(label.sum(1) > 0, label.argmax(1), CLASSES)
        alpha, sigma = (scale.to(x_t).reshape(-1, 1, 1, 1) for scale in self.schedule(t))
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        return types.SimpleNamespace(mean=means[label] + gain * (x_t - alpha * means[label]))


def made(name, one_hot=False, **settings):
    chosen = {"levels": LEVELS, "null_label": CLASSES, "one_hot": one_hot, **settings}
    return rdc.from_azula(Gaussian(SCHEDULES[name], one_hot), num_classes=CLASSES, image_shape=SHAPE, **chosen)


def reference(dtype=torch.float64, **settings):
    network = GaussianNetwork(MEANS, VARIANCE).to(dtype)
    return DiffusionClassifier(ConditionalDenoiser(network, CLASSES, SHAPE), LEVELS, **settings)


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_gives_the_posterior_and_gradient_of_gaussian_classes(name, one_hot):
    expected, pixels = PIXELS.clone().requires_grad_(), PIXELS.clone().requires_grad_()
    wanted, found = reference()(expected), made(name, one_hot)(pixels)
    wanted[:, 0].sum().backward()
    found[:, 0].sum().backward()
    assert (found - wanted).abs().max() < FLOAT64_NETWORK
    assert (pixels.grad - expected.grad).abs().max() < FLOAT64_NETWORK
    single = made(name, one_hot)(PIXELS.float())
    assert (
        single.double() - wanted
    ).abs().max() < FLOAT32_SUM * wanted.abs().max()  # 1 - alpha^2 cancels in the schedule VP


@pytest.mark.parametrize("name", SCHEDULES)
def test_likelihood_maximisation_moves_the_input_the_same_way(name):
    lm = "paper-v2,steps=2"

    def plain(z, sigma, labels):  # the same model, told as EDM tells it
        means, s = torch.cat([MEANS, MEANS.mean(0, keepdim=True)])[labels], sigma.reshape(-1, 1, 1, 1)
        return means + VARIANCE / (VARIANCE + s**2) * (z - means)

    settings = {"num_classes": CLASSES, "image_shape": SHAPE, "levels": LEVELS, "null_label": CLASSES, "lm": lm}
    other = rdc.from_denoiser(plain, predicts="x0", schedule="edm", **settings)
    found, wanted = (model.purify(PIXELS) for model in (made(name, lm=lm), other))
    assert (found - wanted).abs().max() < FLOAT64_NETWORK and not torch.equal(found, PIXELS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_time_of_a_level(name):
    schedule = AzulaSchedule(SCHEDULES[name])
    sigma = torch.logspace(-1.9, 1.5, 40, dtype=torch.float64)
    alpha, noise = SCHEDULES[name](schedule.time(sigma))
    assert (noise / alpha / sigma - 1).abs().max() < FLOAT64_FORMULA
    assert (schedule.scale(sigma, 0.5) / alpha - 1).abs().max() < FLOAT64_FORMULA


def test_what_is_no_denoiser_of_azula_is_refused():
    with pytest.raises(ConfigError, match="expected one of azula's, a callable with a schedule"):
        rdc.from_azula(lambda x, t, label: x, num_classes=3, image_shape=SHAPE)
    for schedule, words in (
        (lambda t: 1 - t, "as azula's schedules; it raised"),
        (lambda t: (t + 1, 2 - t), "that grows from t = 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            rdc.from_azula(Gaussian(schedule), num_classes=3, image_shape=SHAPE)
    with pytest.raises(ConfigError, match="levels: expected noise levels from"):
        made("VE", levels="log:4:0.2:5000:flat")
    with pytest.raises(ConfigError, match="lm: expected a model with a null label"):
        made("VP", null_label=None, lm="paper-v2")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("azula:edm/cifar", "rdc convert FILE.pkl MODEL reads them without"),
        ("azula:eldm/imagenet_512x512_xs", "of EDM2: --model FILE.py:FUNCTION with rdc.from_azula"),
        ("azula:sd/sd_1_5", "name its folder, diffusers:FOLDER"),
        ("azula:adn/x", "expected azula:adm/NAME or azula:jit/NAME .did you mean 'adm'"),
        ("azula:adm", "expected azula:adm/NAME"),
        ("azula:adm/x,colour=3", "some of weights=..., image=..."),
    ],
)
def test_names_that_do_not_fit_are_one_line(name, words, capsys):
    with pytest.raises(ConfigError, match=words):
        rdc.load(name)
    assert main(["classify", "--model", name, "a.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- the real library, where it is ------------------------------------------------------------------------------------
def real(name):
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} is not here, or not for this torch: {error}")


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            spread = 0.1 if weight.ndim == 1 else 0.4 / weight[0].numel() ** 0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
    return model.eval()


def adm():
    plugin = real("azula.plugins.adm")
    return randomised(
        plugin.make_model(
            image_size=8, num_channels=32, channel_mult=(1, 2), attention_resolutions=(4,), num_classes=CLASSES, num_res_blocks=1,
            num_head_channels=16, use_scale_shift_norm=True, resblock_updown=True,
        )
    )  # fmt: skip


def jit():
    plugin, networks = real("azula.plugins.jit"), real("azula.plugins.jit._src.model")
    backbone = networks.JiT(
        input_size=8, patch_size=2, hidden_size=32, depth=2, num_heads=2, num_classes=CLASSES, bottleneck_dim=8, in_context_len=2,
        in_context_start=1,
    )  # fmt: skip
    return randomised(plugin.JITDenoiser(backbone, num_classes=CLASSES))


class EDM(nn.Module):
    """Stands for NVIDIA's network, which azula's plug-in wraps: one-hot labels, noise levels."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.label = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 3, 3, padding=1),
            nn.Linear(CLASSES, 8),
        )

    def forward(self, x, sigma, class_labels):
        h = self.first(x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2).sqrt())
        return self.last(torch.tanh(h + self.label(class_labels)[:, :, None, None]))


def edm():
    return randomised(real("azula.plugins.edm").ElucidatedDenoiser(EDM()))


def karras():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = EDM()

        def forward(self, x, t, y):
            return self.net(x, t.exp(), nn.functional.one_hot(y, CLASSES).to(x))

    return randomised(real("azula.denoise").KarrasDenoiser(Backbone(), real("azula.noise").CosineSchedule()))


def losses_by_hand(denoiser, x0, draw, told):
    """sum_t w_t |D - x0|^2 / c_out^2 through azula's own schedule and forward, one image, class and level at a time."""
    rows = []
    for image in x0:
        row = []
        for label in range(CLASSES):
            total = 0.0
            for s, w, noise in zip(draw.sigma.tolist(), draw.weight.tolist(), draw.noise, strict=True):
                low, high = 0.0, 1.0
                for _ in range(60):
                    middle = torch.tensor((low + high) / 2, dtype=torch.float64)
                    a, b = denoiser.schedule(middle)
                    low, high = (middle.item(), high) if b / a < s else (low, middle.item())
                t = torch.tensor([(low + high) / 2]).to(image.dtype)
                alpha, sigma = denoiser.schedule(t)
                estimate = denoiser(alpha * image[None] + sigma * noise[None].to(image), t, **told(label)).mean[0]
                total += w * ((estimate - image) ** 2).sum().item() * (s**2 + 0.25) / (0.5 * s) ** 2
            row.append(total)
        rows.append(row)
    return torch.tensor(rows)


def hot(label):
    return {"label": nn.functional.one_hot(torch.tensor([label]), CLASSES).float()}


CASES = {
    "adm": (adm, lambda label: {"label": torch.tensor([label])}, {}),
    "jit": (jit, lambda label: {"label": torch.tensor([label])}, {"null_label": CLASSES}),
    "edm": (edm, hot, {"null_label": CLASSES}),
    "karras": (karras, lambda label: {"y": torch.tensor([label])}, {"label": "y"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_real_plug_ins_give_the_losses_of_a_plain_loop(case):
    build, told, settings = CASES[case]
    denoiser = build()
    classifier = from_azula(denoiser, num_classes=CLASSES, image_shape=(3, 8, 8), levels="log:3:0.2:2:flat", **settings)
    assert classifier.describe()["denoiser"]["azula"] == type(denoiser).__name__
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    if case == "adm":
        assert denoiser.clip_mean  # the caller's own goes on clipping
        denoiser.clip_mean = False
    expected = losses_by_hand(denoiser, 2 * pixels - 1, classifier.drawn(0, pixels), told)
    assert (classifier.class_losses(pixels) - expected).abs().max() < FLOAT32_SUM * expected.max()


@pytest.mark.slow
@pytest.mark.parametrize(("case", "lm"), [("karras", None), ("edm", None), ("edm", "paper-v2,steps=2")])
def test_real_plug_ins_have_exact_gradients(case, lm):
    build, _, settings = CASES[case]
    denoiser = build().double()
    classifier = from_azula(
        denoiser, num_classes=CLASSES, image_shape=(3, 8, 8), levels="log:3:0.2:2:flat", lm=lm, **settings
    )
    shape = (1, 3, 8, 8)
    pixels = (
        0.1 + 0.8 * torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ).requires_grad_()
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(classifier.class_losses(pixels)[:, 1].sum(), pixels)
    with torch.no_grad():
        above, below = (classifier.class_losses(pixels + sign * 1e-5 * direction)[:, 1].sum() for sign in (1, -1))
    slope = (gradient * direction).sum()
    assert ((above - below) / 2e-5 - slope).abs() < CENTRAL_DIFFERENCE * max(1, slope.abs())


@pytest.mark.slow
def test_the_gradient_of_likelihood_maximisation_goes_through_fused_attention():
    lm = {"levels": "log:2:0.4:0.6:flat", "lm": "paper-v2,steps=1", "null_label": CLASSES}
    classifier = from_azula(jit(), num_classes=CLASSES, image_shape=(3, 8, 8), **lm)
    pixels = torch.rand(1, 3, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(pixels)[:, 0].sum(), pixels)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.slow
@torch.no_grad()
def test_real_checkpoints_of_guided_diffusion(tmp_path, monkeypatch):
    plugin, cards = real("azula.plugins.adm"), real("azula.plugins.utils")
    config = {
        "image_size": 8, "num_channels": 32, "channel_mult": [1, 2], "attention_resolutions": [4], "num_classes": CLASSES,
        "num_res_blocks": 1, "num_head_channels": 16, "use_scale_shift_norm": True, "resblock_updown": True, "discrete_schedule": "cosine",
    }  # fmt: skip
    card = types.SimpleNamespace(url="https://nowhere", hash=None, config=config)
    free = types.SimpleNamespace(url="https://nowhere", hash=None, config={**config, "num_classes": None})
    monkeypatch.setattr(cards, "load_cards", lambda plugin: {"tiny_cond": card, "tiny": free})
    denoiser = randomised(plugin.make_model(**config))
    torch.save(denoiser.backbone.state_dict(), tmp_path / "a.pt")
    found = rdc.load(f"azula:adm/tiny_cond,weights={tmp_path / 'a.pt'}", levels="log:3:0.2:2:flat")
    own = from_azula(denoiser, num_classes=CLASSES, image_shape=(3, 8, 8), levels="log:3:0.2:2:flat")
    pixels = torch.rand(2, 3, 8, 8)
    assert found.image_shape == (3, 8, 8) and torch.equal(found(pixels), own(pixels))
    with pytest.raises(CheckpointError, match="expected the"):
        rdc.load(f"azula:adm/tiny_cond,weights={_other(tmp_path)}")
    with pytest.raises(ConfigError, match="takes no labels and cannot classify"):
        rdc.load(f"azula:adm/tiny,weights={tmp_path / 'a.pt'}")
    with pytest.raises(ConfigError, match="azula has tiny_cond, tiny"):
        rdc.load("azula:adm/tin_cond")


def _other(folder):
    torch.save({"a": torch.zeros(1)}, folder / "b.pt")
    return folder / "b.pt"
