"""The exported file and PyTorch agree."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import rdc
from rdc.errors import InputError
from rdc.export import export_onnx
from rdc.method.denoiser import make_denoiser
from rdc.networks.presets import build_network
from rdc.networks.vp import VPNetwork, vp_sigmas
from tests.export.files import NETWORKS, answers, assert_parity, classifier_of, exported, images_of, open_file, relative
from tests.networks.cases import DIFFUSERS_CASES, EDM_CASES
from tests.tiny_models import randomize
from tests.tolerances import FLOAT32_ULP, ONNX_PARITY

LM = {
    "paper-v2": "paper-v2",
    "signs, all levels": "paper-v1,levels=log:3:0.3:2:edm",
    "adam": "released",
    "rmsprop": "paper-v2,optimizer=rmsprop,normalize=none,step_size=0.02,loss=x0",
    "lion": "paper-v2,optimizer=lion,step_size=2/255",
    "sgd": "paper-v2,optimizer=sgd,eta=none,clamp=false,levels_per_step=2",
    "same noise": "paper-v2,noise=same,normalize=l1,step_size=10",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_classifier_without_lm(name, tmp_path):
    classifier = classifier_of(NETWORKS[name])
    session = exported(classifier, tmp_path)
    for batch in (1, 3, 64):
        pixels = images_of(classifier, batch)
        assert_parity(answers(session, pixels), classifier, pixels)


@pytest.mark.parametrize("name", ["conditional", "multihead-attention"])
def test_likelihood_maximization(name, tmp_path):
    classifier = classifier_of(NETWORKS[name], lm="paper-v2")
    session = exported(classifier, tmp_path)
    for batch in (1, 3, 64):
        pixels = images_of(classifier, batch)
        found = answers(session, pixels)
        assert np.abs(found["purified_pixels"] - pixels.numpy()).max() > 0.01
        assert_parity(found, classifier, pixels)


@pytest.mark.slow
@pytest.mark.parametrize("setting", LM)
def test_every_ingredient_of_lm(setting, tmp_path):
    classifier = classifier_of(NETWORKS["multihead"], lm=LM[setting])
    pixels = images_of(classifier, 4)
    found = answers(exported(classifier, tmp_path), pixels)
    if "clamp=false" in LM[setting]:  # the classifier itself refuses such pixels
        assert relative(found["purified_pixels"], classifier.purify(pixels).numpy()) < ONNX_PARITY
    else:
        assert_parity(found, classifier, pixels)


def test_number_of_steps_is_an_input(tmp_path):
    classifier = classifier_of(NETWORKS["multihead"], lm="paper-v2,steps=2,optimizer=adam")
    session, pixels = exported(classifier, tmp_path, max_lm_steps=4), images_of(classifier, 3)
    assert_parity(answers(session, pixels), classifier, pixels)
    for steps in (1, 4):
        other = classifier.with_(lm=f"paper-v2,optimizer=adam,steps={steps}")
        assert_parity(answers(session, pixels, lm_steps=steps), other, pixels)
    none = answers(session, pixels, lm_steps=0)
    assert np.abs(none.pop("purified_pixels") - pixels.numpy()).max() < FLOAT32_ULP
    assert_parity(none, classifier.with_(lm=None), pixels)
    with pytest.raises(Exception, match="Gather"):
        answers(session, pixels, lm_steps=5)


def test_prior_scale_and_abstention(tmp_path):
    prior = [0.7, 0.2, 0.1]
    classifier = classifier_of(NETWORKS["multihead"], class_prior=prior, logit_scale=0.004)
    session = exported(classifier, tmp_path, confidence_threshold=0.6)
    pixels = images_of(classifier, 64)
    found, p = answers(session, pixels), classifier(pixels).exp()
    sure = p.amax(1) >= 0.6
    assert 0 < sure.sum() < 64
    assert (found["decision"] == torch.where(sure, p.argmax(1), -1).numpy()).all()
    losses = classifier.class_losses(pixels).double()
    likelihood = torch.logsumexp(torch.tensor(prior).double().log() - 0.004 * losses, 1)
    assert relative(found["log_likelihood"], likelihood.numpy()) < ONNX_PARITY
    assert (answers(session, pixels, confidence_threshold=np.float32(0))["decision"] >= 0).all()
    assert (answers(session, pixels, confidence_threshold=np.float32(1.1))["decision"] == -1).all()


def test_log_likelihood_of_a_uniform_prior(tmp_path):
    classifier = classifier_of(NETWORKS["conditional"], logit_scale=0.01)
    pixels = images_of(classifier, 3)
    found = answers(exported(classifier, tmp_path), pixels)
    expected = torch.logsumexp(-0.01 * classifier.class_losses(pixels).double(), 1) - np.log(3)
    assert relative(found["log_likelihood"], expected.numpy()) < ONNX_PARITY


@pytest.fixture(scope="module")
def rounded():
    """A classifier whose weights float16 holds exactly."""
    classifier = classifier_of(NETWORKS["multihead"], lm="paper-v2")
    for parameter in classifier.denoiser.parameters():
        parameter.copy_(parameter.half())
    return classifier


def test_weights_stored_in_half_precision(rounded, tmp_path):
    pixels = images_of(rounded, 8)
    assert_parity(answers(exported(rounded, tmp_path, precision="float16-weights"), pixels), rounded, pixels)
    tensors = onnx.load(tmp_path / "model.onnx").graph.initializer
    stored = {t.data_type: 0 for t in tensors}
    for t in tensors:
        stored[t.data_type] += int(np.prod(t.dims))
    weights = sum(p.numel() for p in rounded.denoiser.parameters())
    assert stored[onnx.TensorProto.FLOAT16] >= 0.9 * weights  # label embeddings are left out: the trunk has no label
    assert stored[onnx.TensorProto.FLOAT] <= 0.1 * weights + 7 * np.prod(rounded.image_shape)  # noise


def test_convolutions_in_half_precision(rounded, tmp_path):
    """Convolutions of the classifier take float16; nothing else does, and likelihood maximisation never."""
    session, pixels = exported(rounded, tmp_path, precision="float16"), images_of(rounded, 8)
    assert_parity(answers(session, pixels), rounded, pixels)  # onnxruntime on x86 CPUs computes float16 in float32
    model = onnx.load(tmp_path / "model.onnx")
    halves = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    kinds = {node.op_type for node in model.graph.node if halves & set(node.input)} - {"Cast"}
    assert "Conv" in kinds and not kinds & {"Add", "Mul", "LayerNormalization"}
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    assert not any(halves & set(node.input) for node in loop.attribute[0].g.node)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("precision", "least", "most"), [("float32", 0, 1e-6), ("float16", 1e-5, 2e-3)])
def test_another_reader_of_the_file(rounded, tmp_path, precision, least, most):
    """ONNX's own reference implementation in numpy, which does round to float16, reads the same from it."""
    classifier = rounded.with_(lm=None)
    exported(classifier, tmp_path, precision=precision)
    pixels = images_of(classifier, 2)
    reader = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    (found,) = reader.run(["class_losses"], {"pixels": pixels.numpy(), "confidence_threshold": None})
    assert least <= relative(found, classifier.class_losses(pixels).numpy()) < most


def test_uint8_pixels(tmp_path):
    classifier = classifier_of(NETWORKS["multihead"])
    session, pixels = exported(classifier, tmp_path, pixel_type="uint8"), images_of(classifier, 3)
    found = answers(session, (255 * pixels).round().to(torch.uint8))
    assert_parity(found, classifier, pixels)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EDM_CASES if name != "ddpmpp-uncond"])
def test_edm_architectures(name, tmp_path):
    classifier = classifier_of(EDM_CASES[name], lm="paper-v2,steps=2")
    pixels = images_of(classifier, 2)
    assert_parity(answers(exported(classifier, tmp_path), pixels), classifier, pixels)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFUSERS_CASES)
def test_variance_preserving_networks(name, tmp_path):
    config = {
        "kind": "conditional",
        "image_shape": [3, 8, 8],
        "num_classes": 4,
        "unet": {"architecture": "UNet2DModel", **DIFFUSERS_CASES[name]},
        "vp": {"schedule": {"num_train_timesteps": 20}, "prediction": "epsilon", "null_label": "mean"},
    }
    classifier = classifier_of(config, lm="paper-v2,steps=2", levels="log:3:0.5:2:flat")
    pixels = images_of(classifier, 2)
    assert_parity(answers(exported(classifier, tmp_path), pixels), classifier, pixels)


@pytest.mark.parametrize("precision", ["float32", "float16-weights"])
def test_two_networks(tmp_path, precision):
    """Likelihood maximisation by an unconditional network of another size, in the same file."""
    config = copy.deepcopy(NETWORKS["conditional"]) | {"num_classes": 0}
    config["unet"]["model_channels"] = 16
    with torch.random.fork_rng():
        other = make_denoiser(randomize(build_network(config), seed=7), config)
    classifier = classifier_of(NETWORKS["multihead"], lm="paper-v2,steps=3", lm_denoiser=other)
    if precision != "float32":
        for parameter in classifier.parameters():
            parameter.copy_(parameter.half())
    pixels = images_of(classifier, 3)
    session = exported(classifier, tmp_path, precision=precision)
    assert_parity(answers(session, pixels), classifier, pixels)
    networks = json.loads(session.get_modelmeta().custom_metadata_map["rdc.networks"])
    assert [network["role"] for network in networks] == ["classification", "likelihood maximisation"]
    names = {tensor.name for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert sum(name.startswith("lm.") for name in names) > 10


def test_lm_needs_a_null_label(tmp_path):
    classifier = classifier_of(NETWORKS["conditional"], lm="paper-v2")
    unet = lambda x, step, weights: x * weights.sum(1).reshape(-1, 1, 1, 1)  # noqa: E731
    network = VPNetwork(unet, vp_sigmas({}), "epsilon", 3)
    classifier.denoiser.network = network
    with pytest.raises(InputError, match="null label"):
        exported(classifier, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("lm", [None, "paper-v2"])
def test_shipped_model(lm, tmp_path):
    """benchmarks/studies/onnx_parity.py does this for 512 images."""
    classifier = rdc.load("fashion-mnist", lm=lm)
    summary = export_onnx(classifier, tmp_path / "model.onnx")
    assert summary["bytes"] < 1.3 * summary["weights_bytes"]
    session = open_file(tmp_path / "model.onnx")
    images = rdc.load_dataset("fashion-mnist-sample").pixels(range(68))
    for pixels in (images[:1], images[1:4], images[4:]):
        found = answers(session, pixels)
        assert_parity(found, classifier, pixels)
        with torch.no_grad():
            expected = classifier(pixels).numpy()
        assert (found["decision"] == expected.argmax(1)).all()
        if lm is None:
            assert relative(found["log_probabilities"], expected) < ONNX_PARITY
