"""Transformers, autoencoders and prompted U-Nets of diffusers as ONNX, and what such networks are made of."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

import rdc
from rdc.errors import ConfigError
from rdc.export.graph import IR_VERSION, OPSET, Constants, Graph
from rdc.export.translate import peak_bytes, trace, translate
from tests.export.files import answers, assert_parity, exported, images_of, open_file, relative
from tests.tolerances import FLOAT32_SUM, ONNX_PARITY


def run_in_onnx(function, x, tmp_path):
    """What the translation of ``function`` gives in onnxruntime for x [N, ...]."""
    constants = Constants()
    graph = Graph(constants)
    graph.batch = graph.op("Shape", "x", start=0, end=1)
    traced = trace(function, lambda n: [torch.randn(n, *x.shape[1:], generator=torch.Generator().manual_seed(n))])
    (result,) = translate(traced, graph, ["x"], {})
    graph.nodes.append(onnx.helper.make_node("Identity", [result], ["y"]))
    value = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        constants.nodes + graph.nodes,
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["N", *x.shape[1:]])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.initializers.items()],
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, tmp_path / "f.onnx")
    return open_file(tmp_path / "f.onnx").run(None, {"x": x.numpy()})[0]


def gradient_of(function):
    """x -> the gradient of the sum of sin(function(x))."""

    def gradient(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(function(leaf).sin().sum(), leaf)[0]

    return gradient


def attend(x, **more):
    q, k, v = x.unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, 2 * k, v, **more)


WEIGHT = torch.linspace(0.5, 1.5, 24)
MASK = torch.linspace(-1, 1, 25).reshape(5, 5)
PARTS = {
    "layer norm": lambda x: F.layer_norm(x, (24,), WEIGHT, WEIGHT - 1, 1e-5),
    "layer norm, plain": lambda x: F.layer_norm(x, (24,), eps=1e-6),
    "layer norm of two dimensions": lambda x: F.layer_norm(x, (5, 24), WEIGHT.expand(5, 24).contiguous()),
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": lambda x: F.relu(x),
    "attention": attend,
    "attention, scaled": lambda x: attend(x, scale=0.3),
    "attention, masked": lambda x: attend(x, attn_mask=MASK),
    "attention, causal": lambda x: attend(x, is_causal=True),
    "filled": lambda x: x + torch.full((len(x), 1, 1), 3.0),
}
RESIZED = {
    "nearest": {"size": (10, 9)},
    "nearest by a factor": {"scale_factor": 2},
    "nearest-exact": {"size": (4, 9), "mode": "nearest-exact"},
    "bilinear": {"size": (10, 3), "mode": "bilinear"},
    "bilinear, corners": {"size": (10, 3), "mode": "bilinear", "align_corners": True},
    "bilinear, by a factor": {"scale_factor": 1.7, "mode": "bilinear"},
    "bilinear, antialiased": {"size": (3, 8), "mode": "bilinear", "antialias": True},
    "bicubic": {"size": (10, 3), "mode": "bicubic"},
    "bicubic, antialiased": {"size": (3, 4), "mode": "bicubic", "antialias": True},
}  # fmt: skip


@pytest.mark.parametrize("slope", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_transformers(name, slope, tmp_path):
    x = 2 * torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    function = gradient_of(PARTS[name]) if slope else PARTS[name]
    assert relative(run_in_onnx(function, x, tmp_path), function(x).numpy()) < ONNX_PARITY


@pytest.mark.parametrize("slope", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize("name", RESIZED)
def test_resizing(name, slope, tmp_path):
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))

    def resized(x):
        return F.interpolate(x, **RESIZED[name])

    function = gradient_of(resized) if slope else resized
    assert relative(run_in_onnx(function, x, tmp_path), function(x).numpy()) < ONNX_PARITY


def test_the_batch_size_is_no_filling(tmp_path):
    x = torch.randn(2, 5, 24)
    with pytest.raises(ConfigError, match="batch size"):
        run_in_onnx(lambda x: x + torch.full((1,), float(len(x))), x, tmp_path)


def test_what_is_written_over_must_not_be_used_again(tmp_path):
    x = torch.randn(2, 5)
    once = run_in_onnx(lambda x: torch.empty_like(x).fill_(2).sub_(x).mul_(x), x, tmp_path)
    assert relative(once, ((2 - x) * x).numpy()) < ONNX_PARITY

    def twice(x):
        y = x + 1
        return y[:, :3] + y.mul_(2)[:, :3]

    with pytest.raises(ConfigError, match="used again"):
        run_in_onnx(twice, x, tmp_path)


def test_scores_of_attention_count_as_memory():
    """[2 heads, 64, 64] scores of 64 tokens are sixteen times the queries; PyTorch's own call never holds them."""
    traced = trace(attend, lambda n: [torch.randn(n, 64, 24)])
    scores = 4 * 2 * 64 * 64
    assert 2 * scores < peak_bytes(traced) < 4 * scores


# --- whole pipelines ------------------------------------------------------------------------------------------------

LATENT = "vae"


def pipeline(kind, folder, **settings):
    """A tiny random pipeline, loaded by its path."""
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    from tests.models import test_pipelines as made

    root, more = folder / "pipeline", ""
    if kind in ("stable diffusion", "stable diffusion 3"):
        (folder / "p.csv").write_text(made.PROMPTS)
        build = made.stable_diffusion if kind == "stable diffusion" else made.stable_diffusion_3
        build(root)
        more = f",prompts={folder / 'p.csv'}"
    else:
        latent = kind != "pixels"
        parts = {"transformer": made.dit(channels=4), LATENT: made.vae()} if latent else {"transformer": made.dit()}
        made.saved(root, made.flow() if kind == "flow" else made.ddpm(), {}, **parts)
        more = ",image=1x12x10" if kind == "resized" else ""
    classifier = rdc.load(f"diffusers:{root}{more}", levels=made.LEVELS, **settings)
    if kind == "stable diffusion":  # of random prompts so little arrives that decisions are a matter of rounding
        classifier.denoiser.network.states.mul_(30)
    return classifier


@pytest.mark.parametrize("kind", ["pixels", "flow", "latents", "resized", "stable diffusion", "stable diffusion 3"])
def test_pipelines_answer_as_pytorch_does(kind, tmp_path):
    classifier = pipeline(kind, tmp_path)
    session = exported(classifier, tmp_path)
    for batch in (1, 3):
        pixels = images_of(classifier, batch)
        found = answers(session, pixels)
        assert_parity(found, classifier, pixels)
        with torch.no_grad():
            scale = classifier.class_losses(pixels).abs().max() * classifier.scale
            assert np.abs(found["log_probabilities"] - classifier(pixels).numpy()).max() < ONNX_PARITY * scale


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pixels", "resized", "stable diffusion"])
def test_likelihood_maximization_of_pipelines(kind, tmp_path):
    classifier = pipeline(kind, tmp_path, lm="paper-v2,steps=2")
    pixels = images_of(classifier, 2)
    found = answers(exported(classifier, tmp_path), pixels)
    assert np.abs(found["purified_pixels"] - pixels.numpy()).max() > FLOAT32_SUM
    assert_parity(found, classifier, pixels)


def test_the_encoder_counts_among_the_weights(tmp_path):
    """By their own names, once, and stored in half precision where that is asked for."""
    classifier = pipeline("latents", tmp_path)
    exported(classifier, tmp_path, precision="float16-weights")
    tensors = {t.name: t for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    encoders = [t for name, t in tensors.items() if name.startswith("encoder.")]
    assert len(encoders) > 20 and all(t.data_type == onnx.TensorProto.FLOAT16 for t in encoders)


def test_rdc_export_takes_a_folder(tmp_path, capsys):
    from rdc.cli import main

    pipeline("pixels", tmp_path)
    arguments = [
        "export",
        f"diffusers:{tmp_path / 'pipeline'}",
        str(tmp_path / "m.onnx"),
        "--levels",
        "log:2:0.5:2:flat",
    ]
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["path"] == str(tmp_path / "m.onnx")
