"""Gradient analysis: closed forms on linear, noisy, quadratic and quantised models, then the command line."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import rdc.gradient_analysis.comparison as comparison
from rdc.cli import main
from rdc.errors import ConfigError, DataError, InputError
from rdc.gradient_analysis import (
    GradientSettings,
    NamedModel,
    analyze_model,
    compare_models,
    comparison_table,
    gradient_agreement,
    image_cosines,
    parse_model,
    redraw_measures,
    summarize_images,
)
from rdc.gradient_analysis.landscape import slice_directions
from rdc.gradient_analysis.slopes import Probe, jacobian_norms, local_lipschitz
from rdc.norm_balls import distance
from tests.evaluation_models import SHAPE, gaussian_classifier, labelled_by, save_tiny
from tests.tiny_models import pixels, tiny_classifier
from tests.tolerances import (
    FLOAT32_GRADIENT,
    FLOAT32_MEASURE,
    FLOAT32_NETWORK,
    FLOAT32_RESCALED,
    FLOAT32_ROUNDING,
    FLOAT32_STEPS,
    FLOAT32_SUM,
    FLOAT64_ORDER,
    FLOAT64_STEPS,
    REDRAWS_COSINE,
    REDRAWS_SIGNS,
    REDRAWS_VARIANCE,
)

PIXELS = SHAPE[0] * SHAPE[1] * SHAPE[2]
SMALLEST = {"draws": 2, "samples": 1, "ascent_steps": 2, "steps": 2, "slices": 2, "grid": 3, "batch": 2}
SMALL = {"draws": 4, "samples": 3, "ascent_steps": 3, "steps": 5, "slices": 2, "grid": 5, "batch": 3}


class Linear(nn.Module):
    """logits = (W + noise) (x - 1/2); ``noise`` times a new standard normal matrix in every call, if it is not 0."""

    def __init__(self, classes: int = 2, noise: float = 0.0, seed: int = 0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(classes, PIXELS, generator=self.generator))
        self.noise = noise

    def forward(self, x):
        weight = self.weight
        if self.noise:
            weight = weight + self.noise * torch.randn(weight.shape, generator=self.generator)
        return (x - 0.5).flatten(1) @ weight.T


def middle(n: int, seed: int = 0) -> torch.Tensor:
    """Images in [0.3, 0.7]: slices and budgets do not meet the borders."""
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def analysis(model, n=5, labels=None, **changes):
    settings = GradientSettings("blobs", **{**SMALL, "logit_scale": 1.0, "eps": 0.02, "eps_l2": 0.1, **changes})
    labels = torch.zeros(n, dtype=torch.int64) if labels is None else labels
    return analyze_model(model, middle(n), labels, range(n), settings)


def each(result, name):
    return np.array([math.nan if v is None else v for v in result["per_image"][name]])


# --- closed forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_linear_model_with_two_classes_is_known_in_closed_form(norm):
    model = Linear()
    result = analysis(model, norm=norm)
    w = model.weight.double().numpy()
    slope = w[1] - w[0]  # of margin and log-odds alike
    l1, l2 = np.abs(slope).sum(), np.linalg.norm(slope)
    expected = {
        "gradient.norm_l1": l1,
        "gradient.norm_l2": l2,
        "gradient.zero_fraction": 0,
        "images.cosine_abs": 1,
        "images.cosine": 1,
        "jacobian.l2": np.linalg.svd(w)[1][0],
        "jacobian.linf": np.abs(w).sum(1).max(),
        "lipschitz_linf.margin_at_image": l1,
        "lipschitz_linf.margin_gradient": l1,
        "lipschitz_linf.margin_ascent": l1,
        "lipschitz_l2.margin_ascent": l2,
        "slice.plane_fit": 1,
        "path.cosine": 1,
        "path.first_order_ratio": 1,
        "path.increase_fraction": 1,
        "path.curvature": 0,
        "path.relative_curvature": 0,
    }
    for name, value in expected.items():
        measured = each(result, name)
        np.testing.assert_allclose(
            measured[~np.isnan(measured)], value, rtol=FLOAT32_MEASURE, atol=FLOAT64_STEPS, err_msg=name
        )
    for ball, bound in (("linf", l1), ("l2", l2)):
        sampled = each(result, f"lipschitz_{ball}.margin_sampled")
        assert (0 < sampled).all() and (sampled < bound * (1 + FLOAT32_NETWORK)).all()
    margins = np.array([image["margin"] for image in result["images"]])
    np.testing.assert_allclose(
        margins, (middle(5) - 0.5).flatten(1).double().numpy() @ slope, rtol=FLOAT32_SUM, atol=FLOAT32_ROUNDING
    )
    np.testing.assert_allclose(each(result, "lipschitz_linf.reach"), 0.02 * l1 / np.abs(margins), rtol=FLOAT32_MEASURE)
    assert result["classes"] == 2 and result["accuracy"] == (margins < 0).mean()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_slice_of_a_linear_model(norm):
    model = Linear()
    result = analysis(model, norm=norm)
    slope = (model.weight[1] - model.weight[0]).double().numpy()
    for found, image in zip(result["slices"], result["images"], strict=False):
        a = np.array(found["offsets"])
        rate = np.abs(slope).sum() if norm == "linf" else np.linalg.norm(slope)
        expected = image["margin"] + rate * a  # along the steepest direction
        np.testing.assert_allclose(np.array(found["margin"])[:, 2], expected, rtol=FLOAT32_NETWORK, atol=FLOAT32_SUM)
        assert len(found["margin"]) == len(found["margin"][0]) == 5
        gradient = torch.from_numpy(slope).view(SHAPE)
        second = slice_directions(gradient, norm, seed=0, image_id=image["image"])[1].flatten().numpy()
        along_second = image["margin"] + (slope @ second) * a
        np.testing.assert_allclose(np.array(found["margin"])[2], along_second, rtol=FLOAT32_NETWORK, atol=FLOAT32_SUM)
        assert a[-1] == pytest.approx(2 * (0.02 if norm == "linf" else 0.1))
    assert len(result["slices"]) == 2 and np.isnan(each(result, "slice.plane_fit")).sum() == 3


def test_a_deterministic_model_has_no_redraw_measures():
    result = analysis(Linear())
    assert not result["stochastic"] and result["fixed_noise"] and "deterministic" in result["note"]
    assert not [name for name in result["summary"] if name.startswith("redraws")]


def test_noisy_model_has_the_predicted_cosine_and_variance():
    noise, draws = 0.7, 400
    model = Linear(noise=noise)
    result = analysis(model, n=2, draws=draws)
    assert result["stochastic"] and not result["fixed_noise"] and "cannot be fixed" in result["note"]
    slope = (model.weight[1] - model.weight[0]).double().numpy()
    signal, variance = slope @ slope, 2 * noise**2 * PIXELS
    np.testing.assert_allclose(each(result, "redraws.cosine"), signal / (signal + variance), rtol=REDRAWS_COSINE)
    np.testing.assert_allclose(each(result, "redraws.relative_variance"), variance / signal, rtol=REDRAWS_VARIANCE)
    np.testing.assert_allclose(each(result, "redraws.norm_l2"), math.sqrt(signal + variance), rtol=REDRAWS_COSINE)
    same = 0.5 + 0.5 * np.array([math.erf(abs(s) / (noise * 2)) for s in slope])  # P(an entry has its mean's sign)
    np.testing.assert_allclose(
        each(result, "redraws.sign_agreement"), (same**2 + (1 - same) ** 2).mean(), rtol=REDRAWS_SIGNS
    )


def test_quantised_model_has_only_zero_gradients():
    linear = Linear()
    result = analysis(lambda x: linear(x + (torch.round(8 * x) / 8 - x).detach() - x + x.detach()))
    assert (each(result, "gradient.zero_fraction") == 1).all() and (each(result, "gradient.norm_l2") == 0).all()
    assert (each(result, "jacobian.l2") == 0).all()
    for name in ("images.cosine_abs", "path.cosine", "path.first_order_ratio"):
        assert result["summary"][name]["n"] == 0 and result["summary"][name]["undefined"] == 5
        assert result["summary"][name]["mean"] is None
    assert (each(result, "lipschitz_linf.margin_sampled") > 0).all()  # values move although gradients do not
    json.dumps(result, allow_nan=False)


def test_nan_is_undefined_not_zero():
    linear = Linear()
    result = analysis(lambda x: linear(x) * torch.where(x.flatten(1)[:, :1] > 0.5, math.nan, 1.0))
    bad = middle(5).flatten(1)[:, 0].numpy() > 0.5
    assert bad.any() and not bad.all()
    for name in ("gradient.norm_l2", "gradient.zero_fraction", "images.cosine_abs", "jacobian.l2"):
        np.testing.assert_array_equal(np.isnan(each(result, name)), bad, err_msg=name)
        assert result["summary"][name]["undefined"] == bad.sum()
    json.dumps(result, allow_nan=False)


class Settable(Linear):
    """Has with_, but draws noise that with_ does not reach."""

    def with_(self, **changes):
        return self


def test_noise_that_settings_do_not_reach_is_noticed():
    result = analysis(Settable(noise=0.5), draws=2)
    assert (
        result["stochastic"] and not result["fixed_noise"] and "redraws.cosine_fixed_to_mean" not in result["summary"]
    )


def test_curvature_of_a_quadratic_loss():
    bend = 3.0

    def model(x):
        half = bend / 2 * (x - 0.5).flatten(1).square().sum(1)
        return torch.stack([-half, half], dim=1)  # log-odds against 0: bend |x - 1/2|^2, gradient 2 bend (x - 1/2)

    result = analysis(model)
    np.testing.assert_allclose(each(result, "path.curvature"), 2 * bend, rtol=FLOAT32_NETWORK)
    assert (each(result, "path.first_order_ratio") > 1.01).all()  # convex: gains exceed the tangent
    assert (each(result, "slice.plane_fit") < 0.9999).all() or np.isnan(each(result, "slice.plane_fit")).any()


# --- Jacobian and Lipschitz constants -----------------------------------------------------------------------------


def probe_of(model, n, classes):
    return Probe(model, torch.zeros(n, dtype=torch.int64), torch.full((n,), 2.0, dtype=torch.float64))


def test_power_iteration_and_rows_agree_with_svd():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 32), nn.Tanh(), nn.Linear(32, 7))
    x, probe = middle(3), probe_of(network, 3, 7)
    rows, power = jacobian_norms(probe, x, 7), jacobian_norms(probe, x, 7, max_rows=2)
    assert (rows["method"], power["method"]) == ("rows", "power")
    for row in range(3):
        jacobian = 2 * torch.autograd.functional.jacobian(lambda one: network(one[None])[0], x[row]).flatten(1).double()
        assert float(rows["l2"][row]) == pytest.approx(float(torch.linalg.svdvals(jacobian)[0]), rel=FLOAT32_SUM)
        assert float(rows["linf"][row]) == pytest.approx(float(jacobian.abs().sum(1).max()), rel=FLOAT32_SUM)
    torch.testing.assert_close(power["l2"], rows["l2"], rtol=FLOAT32_STEPS, atol=0)
    assert power["linf"].isnan().all()


def test_likelihood_maximisation_has_the_norms_of_its_rows():
    """Its steps have second derivatives (rdc.execution.opaque), so power iteration works; where it does not, rows are made."""
    model = tiny_classifier("multihead", lm="paper-v2,steps=2")
    x = pixels(2)
    rows = jacobian_norms(probe_of(model, 2, 3), x, 3)
    found = jacobian_norms(probe_of(model, 2, 3), x, 3, max_rows=2)
    assert (rows["method"], found["method"]) == ("rows", "power") and (found["l2"] > 0).all()
    torch.testing.assert_close(found["l2"], rows["l2"], rtol=FLOAT32_STEPS, atol=0)


def test_wrong_double_backward_is_noticed():
    class Once(torch.autograd.Function):
        """x^2 whose gradient is right but whose second derivatives are not."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, upstream):
            (x,) = ctx.saved_tensors
            return 2 * x * upstream.detach() + 0 * upstream

    linear = Linear(classes=3)
    found = jacobian_norms(probe_of(lambda x: linear(Once.apply(x)), 2, 3), middle(2), 3, max_rows=2)
    assert found["method"] == "rows"


def test_lipschitz_bounds_hold_and_ascent_is_tighter():
    model = gaussian_classifier()
    data = labelled_by(model, n=4, wrong=0)
    x = data.pixels(slice(0, 4))
    probe = Probe(model, data.labels[:4], torch.ones(4, dtype=torch.float64))
    for norm, eps in (("linf", 0.03), ("l2", 0.3)):
        found = local_lipschitz(probe, x, range(4), norm, eps, samples=8, ascent_steps=4)
        for f in ("margin", "logits"):
            assert (found[f"{f}_ascent"] > found[f"{f}_sampled"]).all()
        # a finite quotient cannot exceed the steepest slope on the way by much, for a smooth model
        assert (found["margin_ascent"] < 1.05 * found["margin_gradient"]).all()


@pytest.mark.parametrize("bend", [3.0, -3.0])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steeper_slopes_are_found_uphill_and_downhill(bend, norm):
    def model(x):
        half = bend / 2 * (x - 0.2).flatten(1).square().sum(1)
        return torch.stack([-half, half], dim=1)  # margin: bend |x - 0.2|^2, steeper away from 0.2

    x = middle(3)
    probe = Probe(model, torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.float64))
    found = local_lipschitz(probe, x, range(3), norm, 0.05, samples=0, ascent_steps=5)
    at_image = (2 * bend * (x - 0.2)).flatten(1).double()
    at_image = at_image.abs().sum(1) if norm == "linf" else at_image.norm(dim=1)
    for name in ("margin_ascent", "margin_gradient"):
        assert (found[name] > 1.01 * at_image).all()
    assert found["margin_sampled"].isnan().all()


def test_slice_directions_are_orthogonal_and_reproducible():
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    gradient[0, 0, :3] = 0
    for norm, unit in (("linf", "linf"), ("l2", "l2")):
        first, second = slice_directions(gradient, norm, seed=1, image_id=7)
        again = slice_directions(gradient, norm, seed=1, image_id=7)[1]
        other = slice_directions(gradient, norm, seed=1, image_id=8)[1]
        zero = torch.zeros(1, *SHAPE)
        assert torch.equal(second, again) and not torch.equal(second, other)
        assert abs(float((first * second).sum())) < FLOAT64_ORDER
        for direction in (first, second):
            assert float(distance(direction[None], zero, unit)) == pytest.approx(1, abs=FLOAT64_ORDER)


# --- measures -----------------------------------------------------------------------------------------------------


def test_redraw_measures_of_known_gradients():
    g = np.array([[[1.0, 0, 0, 2]], [[0, 1.0, 0, 2]], [[0, 0, 0, 0]]])  # the third draw has no direction
    found = redraw_measures(g)
    assert found["cosine"][0] == pytest.approx(4 / 5)
    assert found["zero_fraction"][0] == pytest.approx(8 / 12)
    assert found["sign_agreement"][0] == 1  # one comparable pair, at the last pixel
    mean = g.mean(0)
    assert found["relative_variance"][0] == pytest.approx(((g - mean) ** 2).sum() / 2 / (mean**2).sum())
    assert np.isnan(redraw_measures(np.zeros((3, 1, 4)))["cosine"][0])
    with pytest.raises(InputError, match="R >= 2"):
        redraw_measures(g[:1])


def test_tiny_gradients_have_directions():
    g = np.array([[[1e-200, 0]], [[3e-200, 3e-200]]])  # whose squares underflow
    assert redraw_measures(g)["cosine"][0] == pytest.approx(math.sqrt(0.5))


def test_image_cosines_and_agreement():
    found = image_cosines(np.array([[1.0, 0], [-1, 0], [0, 1], [0, 0]]))
    np.testing.assert_allclose(found["cosine_abs"][:3], [0.5, 0.5, 0], atol=FLOAT64_ORDER)
    np.testing.assert_allclose(found["cosine"][:3], [-0.5, -0.5, 0], atol=FLOAT64_ORDER)
    assert np.isnan(found["cosine_abs"][3])
    pair = gradient_agreement(np.array([[1.0, 1, 0]]), np.array([[2.0, -2, 5]]))
    assert pair["cosine"][0] == pytest.approx(0, abs=FLOAT64_ORDER) and pair["sign_agreement"][0] == 0.5
    assert pair["norm_ratio"][0] == pytest.approx(math.sqrt(33 / 2))


def test_bootstrap_interval_covers_and_is_seeded():
    hits = 0
    for trial in range(200):
        values = np.random.Generator(np.random.Philox(key=trial)).exponential(1.0, 60)
        low, high = summarize_images(values, seed=3, name="x")["mean_ci95"]
        hits += low <= 1 <= high
    assert 175 <= hits <= 198  # 95 % nominal; percentile intervals of skewed data fall short a little
    again = summarize_images(values, seed=3, name="x")
    assert again == summarize_images(values, seed=3, name="x")
    assert again["mean_ci95"] != summarize_images(values, seed=4, name="x")["mean_ci95"]
    assert again["mean"] == pytest.approx(values.mean()) and again["q25"] == pytest.approx(np.percentile(values, 25))
    one = summarize_images(np.array([2.0, np.nan]), seed=0, name="x")
    assert (one["n"], one["undefined"], one["mean"], one["mean_ci95"]) == (1, 1, 2.0, None)


# --- a diffusion classifier ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def robust():
    """Measures of a tiny classifier with likelihood maximisation, exact, on four images."""
    model = tiny_classifier("multihead", lm="paper-v2,steps=1")
    return model, analyze_model(
        model, pixels(4), torch.arange(4) % 3, range(4), GradientSettings("x", **{**SMALLEST, "slices": 4})
    )


def test_exact_against_bpda_is_measured_from_both_sides(robust):
    model, exact = robust
    settings = GradientSettings("x", **{**SMALLEST, "samples": 0, "ascent_steps": 0, "steps": 0, "slices": 0})
    bpda = analyze_model(model.with_(gradient="bpda"), pixels(4), torch.arange(4) % 3, range(4), settings)
    for name in ("cosine", "norm_ratio", "sign_agreement"):
        np.testing.assert_allclose(each(bpda, f"bpda.{name}"), each(exact, f"bpda.{name}"), rtol=FLOAT32_NETWORK)
    scale = torch.tensor([record["logit_scale"] for record in exact["images"]], dtype=torch.float64)
    gradients = [
        Probe(model.with_(gradient=mode), torch.arange(4) % 3, scale).gradient(pixels(4))[1].flatten(1)
        for mode in ("exact", "bpda")
    ]
    ratio = gradients[1].norm(dim=1) / gradients[0].norm(dim=1)
    np.testing.assert_allclose(each(exact, "bpda.norm_ratio"), ratio, rtol=FLOAT32_NETWORK)
    expected = torch.cosine_similarity(*gradients, dim=1)
    np.testing.assert_allclose(each(exact, "bpda.cosine"), expected, rtol=FLOAT32_NETWORK)
    assert (each(exact, "bpda.cosine") < 0.9999).all()
    assert not [name for name in analysis(Linear())["summary"] if name.startswith("bpda")]


def test_noise_is_redrawn_and_otherwise_fixed(robust):
    model, result = robust
    assert result["stochastic"] and result["fixed_noise"] and not result["note"]
    assert (each(result, "redraws.cosine") < 0.9999).all() and (each(result, "redraws.relative_variance") > 1e-4).all()
    norm = np.abs(each(result, "gradient.norm_l2"))
    assert (norm > 0).all() and model.noise.policy == "fixed"


def test_images_do_not_influence_each_other(robust):
    model, whole = robust
    settings = GradientSettings("x", **{**SMALLEST, "batch": 1, "slices": 1})
    single = analyze_model(model, pixels(4)[3:4], torch.arange(4)[3:4] % 3, [3], settings)
    margins = [np.array(found["margin"]) for found in (single["slices"][0], whole["slices"][3])]
    np.testing.assert_allclose(*margins, rtol=FLOAT32_GRADIENT, atol=FLOAT32_NETWORK * np.abs(margins[1]).max())
    for name, (value,) in single["per_image"].items():
        together = whole["per_image"][name][3]
        if not name.startswith("images."):
            assert value == pytest.approx(together, rel=FLOAT32_STEPS, abs=FLOAT32_SUM), name


def test_auto_scale_makes_logit_units_irrelevant():
    linear = Linear(classes=4)
    a = analysis(linear, logit_scale="auto")
    b = analysis(lambda x: 1000 * linear(x) + 3, logit_scale="auto")
    for name in a["per_image"]:
        np.testing.assert_allclose(each(b, name), each(a, name), rtol=FLOAT32_RESCALED, atol=FLOAT32_SUM, err_msg=name)


def test_models_that_are_none_are_refused():
    with pytest.raises(InputError, match="differentiably"):
        analysis(lambda x: Linear()(x).detach())
    with pytest.raises(InputError, match="logits"):
        analysis(lambda x: x)
    with pytest.raises(InputError, match="out of range"):
        analysis(Linear(), labels=torch.full((5,), 2))


# --- settings and model texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fashion-mnist", ("fashion-mnist", None, None, None, "fashion-mnist")),
        ("a/b@c", ("a/b@c", None, None, None, "b@c")),
        ("pkg.mod:make", ("pkg.mod:make", None, None, None, "pkg.mod:make")),
        (
            "m@lm=paper-v2,steps=10@gradient=bpda@levels=log:8:0.8:4:flat",
            ("m", "log:8:0.8:4:flat", "paper-v2,steps=10", "bpda", "m, levels log:8:0.8:4:flat, lm paper-v2,steps=10, bpda"),
        ),
        ("m@label=RDC, exact", ("m", None, None, None, "RDC, exact")),
    ],
)  # fmt: skip
def test_model_text(text, expected):
    found = parse_model(text)
    assert (found.name, found.levels, found.lm, found.gradient, found.label) == expected


@pytest.mark.parametrize("text", ["", "@lm=none", "m@lvl=edm", "m@lm=", "m@lm=none@lm=none", "m@gradient=approximate"])
def test_bad_model_text(text):
    with pytest.raises(ConfigError, match="model"):
        parse_model(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 0}, {"draws": 1}, {"grid": 4}, {"norm": "l1"}, {"eps": "0"}, {"eps": 8}, {"eps_l2": "x"}, {"seed": -1},
        {"logit_scale": "big"}, {"logit_scale": -1}, {"split": "dev"}, {"batch": True},
    ],
)  # fmt: skip
def test_bad_settings(changes):
    with pytest.raises(ConfigError, match=f"{next(iter(changes))}|budget"):
        GradientSettings("x", **changes)


# --- command line, folder, resumption -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def command(tiny, out, *models, more=()):
    named = [word for model in models or ("",) for word in ("--model", f"{tiny[0]}{model}")]
    small = [word for name, value in SMALLEST.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["gradients", *named, "--data", tiny[1], "--n", "3", "--out", str(out), "--device", "cpu", *small, *more]


LM, BPDA = "@lm=paper-v2,steps=1@label=RDC", "@lm=paper-v2,steps=1@gradient=bpda@label=RDC BPDA"


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a finished comparison of three models."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(command(tiny, out, "@label=DC", LM, BPDA, more=["--quiet"])) == 0
    return out


def test_command_writes_report_table_and_plots(finished, tiny, capsys):
    assert main(command(tiny, finished, "@label=DC", LM, BPDA)) == 0  # all parts are there: only the report is made
    shown = capsys.readouterr()
    assert "cosine between draws" in shown.out and "exact gradient against BPDA" in shown.out
    assert "1 DC" in shown.out and "3 RDC BPDA" in shown.out and "gradients.json" in shown.out
    assert "already complete, 3 of 3 models; nothing is computed again" in shown.err
    report = json.loads((finished / "gradients.json").read_text())
    assert report["schema"] == "rdc.gradients/1" and report["command"].startswith("rdc gradients")
    assert {"commit", "versions", "settings", "dataset", "models"} <= set(report)
    assert [model["label"] for model in report["models"]] == ["DC", "RDC", "RDC BPDA"]
    assert [model["classifier"]["gradient"] for model in report["models"]] == ["exact", "exact", "bpda"]
    dc, exact, bpda = (model["summary"] for model in report["models"])
    assert "bpda.cosine" not in dc and exact["bpda.cosine"]["median"] == pytest.approx(bpda["bpda.cosine"]["median"])
    assert all(len(model["images"]) == 3 and len(model["slices"]) == 2 for model in report["models"])
    for name in ("gradients.png", "gradients-paths.png", "gradients-slices.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    assert comparison_table(report) in shown.out


def test_finished_models_are_not_measured_again(finished, tiny, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "analyze_model", lambda *arguments: 1 / 0)
    assert main(command(tiny, finished, "@label=DC", LM, more=["--quiet", "--format", "json"])) == 0
    assert [model["label"] for model in json.loads(capsys.readouterr().out)["models"]] == ["DC", "RDC"]
    monkeypatch.setenv("RDC_DEBUG", "1")  # errors as they are
    with pytest.raises(ZeroDivisionError):
        main(command(tiny, finished, "@lm=paper-v2,steps=3", more=["--quiet"]))


def without_times(report):
    return {
        **report,
        "models": [{k: v for k, v in model.items() if k not in ("seconds", "commit")} for model in report["models"]],
    }


def test_interrupted_and_continued_is_uninterrupted(finished, tiny, tmp_path, monkeypatch, capsys):
    out, calls, real = tmp_path / "out", [], comparison.analyze_model

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    words = command(tiny, out, "@label=DC", LM, BPDA, more=["--quiet"])
    monkeypatch.setattr(comparison, "analyze_model", interrupted)
    assert main(words) == 130
    assert "1 of 3 models are finished" in capsys.readouterr().err
    assert len(list((out / "models").glob("*.json"))) == 1 and not (out / "gradients.json").exists()
    assert main(words) == 0
    assert len(calls) == 4  # DC once
    assert main(command(tiny, finished, "@label=DC", LM, BPDA, more=["--quiet"])) == 0
    reports = [without_times(json.loads((folder / "gradients.json").read_text())) for folder in (out, finished)]
    for report in reports:
        report.pop("command"), report.pop("commit", None)
    assert reports[0] == reports[1]


def test_other_settings_and_other_weights_are_refused(finished, tiny, tmp_path, capsys):
    before = (finished / "run.json").read_bytes()
    assert main(command(tiny, finished, "@label=DC", more=["--quiet", "--seed", "5"])) == 2
    assert "seed: 0 there, 5 now" in capsys.readouterr().err and (finished / "run.json").read_bytes() == before
    settings = GradientSettings("blobs", n=2, **SMALL)
    data = labelled_by(gaussian_classifier())
    models = [NamedModel("a", "a", Linear(4, seed=seed)) for seed in (0, 1)]
    compare_models(models[:1], data, settings, tmp_path / "a", progress=False)
    with pytest.raises(ConfigError, match="weights"):
        compare_models(models[1:], data, settings, tmp_path / "a", progress=False)
    compare_models(models[1:], data, settings, tmp_path / "a", progress=False, overwrite=True)
    part = next((tmp_path / "a" / "models").glob("*.json"))
    part.write_text(part.read_text()[:-40])
    with pytest.raises(DataError, match="damaged"):
        compare_models(models[1:], data, settings, tmp_path / "a", progress=False)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--n", "400"], "has 40 images"),
        (["--draws", "1"], "draws"),
        (["--eps", "eight"], "budget"),
        (["--model", "nowhere"], "nowhere"),
        (["--model", "m@colour=red"], "colour"),
        (["--logit-scale", "x"], "logit_scale"),
    ],
)
def test_bad_use(tiny, tmp_path, more, says, capsys):
    assert main([*command(tiny, tmp_path / "out"), "--quiet", *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rdc: error: ") and says in error


def test_two_models_of_one_name_and_foreign_folders_are_refused(tiny, tmp_path, capsys):
    assert main([*command(tiny, tmp_path / "out", "", ""), "--quiet"]) == 2
    assert "@label=" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("!")
    assert main([*command(tiny, tmp_path / "full"), "--quiet"]) == 2
    assert "not empty" in capsys.readouterr().err and (tmp_path / "full" / "thesis.txt").exists()
