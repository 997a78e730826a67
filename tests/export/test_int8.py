"""Files in eight bits: what is quantised and what is not, what they say of themselves, and what is refused."""

import json
import sys

import numpy as np
import onnx
import pytest
import torch

import rdc
from rdc.cli import main
from rdc.data import Dataset, first_balanced, save_splits
from rdc.errors import ConfigError, InputError
from rdc.export import Int8Images, export_onnx
from rdc.runtime import OnnxClassifier
from tests.export.files import MULTIHEAD, PLAIN, classifier_of, images_of
from tests.tolerances import INT8_RECORD

CALIBRATED, TESTED = 24, 40


def images(classifier, seed=1):
    drawn = images_of(classifier, CALIBRATED + TESTED, seed)
    labels = torch.arange(TESTED) % classifier.num_classes
    return Int8Images(drawn[:CALIBRATED], drawn[CALIBRATED:], labels, "noise")


@pytest.fixture(scope="module", params=["multihead", "conditional"])
def made(request, tmp_path_factory):
    """(classifier, its images, path of the file in float32, path in int8, summary)."""
    classifier = classifier_of(MULTIHEAD if request.param == "multihead" else PLAIN)
    folder, chosen = tmp_path_factory.mktemp("int8"), images(classifier)
    info = {"evaluation": evaluation(classifier)}
    export_onnx(classifier, folder / "plain.onnx", info=info)
    summary = export_onnx(classifier, folder / "int8.onnx", precision="int8", int8=chosen, info=info)
    return classifier, chosen, folder / "plain.onnx", folder / "int8.onnx", summary


def evaluation(classifier):
    """As of a finished run of the classifier in float32."""
    rate = {"accuracy": 0.5, "ci95": [0.4, 0.6]}
    about = {"dataset": "noise", "n": 10, "norm": "linf", "eps": 0.03, "attacks": ["square"], "noise": "known"}
    return {**about, "clean": rate, "robust": rate, "classifier": json.loads(json.dumps(classifier.describe()))}


def convolutions(path):
    """(convolutions whose weights are in eight bits, the others), and which node makes each name."""
    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    every = [node for node in model.graph.node if node.op_type == "Conv"]
    small = [n for n in every if n.input[1] in makers and makers[n.input[1]].op_type == "DequantizeLinear"]
    return small, [node for node in every if node not in small], makers, model


def test_what_is_quantised(made):
    classifier, _, plain, path, summary = made
    small, others, makers, model = convolutions(path)
    assert not convolutions(plain)[0] and len(small) == summary["int8"]["convolutions"] > 5
    onnx.checker.check_model(model, full_check=True)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in small:
        scale = values[makers[node.input[1]].input[1]]
        weights = values[makers[node.input[1]].input[0]]
        assert len(scale) == len(weights) and weights.dtype == np.int8  # a scale for each output channel
        assert np.abs(weights.astype(int)).max() <= 64  # seven bits
        assert makers[node.input[0]].op_type == "DequantizeLinear"  # the activations, too
    kept = set(summary["int8"]["float32"])
    last = {"unet.dec.4x4_aux_conv.weight"}
    assert kept == (last if classifier.head == "conditional" else last | {"head"}) and len(others) == len(kept)


def test_the_record_is_what_the_files_answer(made):
    _, chosen, plain, path, summary = made
    exact, small = (OnnxClassifier(file)(chosen.test.numpy()).log_probabilities for file in (plain, path))
    labels, found = chosen.labels.numpy(), summary["int8"]
    assert found["accuracy_float32"]["accuracy"] == round((exact.argmax(1) == labels).mean(), 6)
    assert found["accuracy_int8"]["accuracy"] == round((small.argmax(1) == labels).mean(), 6)
    assert found["same_decisions"] == (exact.argmax(1) == small.argmax(1)).sum() > TESTED // 2
    rows = np.arange(TESTED)
    moved = np.abs(exact - small)[rows, exact.argmax(1)].max()
    assert abs(found["largest_movement_of_log_p"] - moved) <= INT8_RECORD * max(1, moved)
    assert not np.array_equal(exact, small)
    assert (found["images"], found["calibration_images"], found["data"]) == (TESTED, CALIBRATED, "noise")


def test_the_card_has_int8_and_no_figure_of_float32(made):
    _, _, plain, path, summary = made
    with_figures, without = OnnxClassifier(plain), OnnxClassifier(path)
    assert "accuracy" in with_figures.card and "int8" not in with_figures.card
    assert "accuracy" not in without.card and without.card["int8"] == summary["int8"]
    assert without.properties["precision"] == "int8" and without.properties["int8"] == summary["int8"]
    words = onnx.load(path).doc_string
    assert "Eight bits: clean accuracy" in words and "Not evaluated under attack" in words


def test_ranges_come_from_the_calibration_images(tmp_path):
    classifier = classifier_of(MULTIHEAD)
    wide, scales = images(classifier), []
    narrow = Int8Images(0.5 + 0 * wide.calibration, wide.test, wide.labels, "grey")
    for name, chosen in (("wide", wide), ("narrow", narrow)):
        export_onnx(classifier, tmp_path / name, precision="int8", int8=chosen, check=False)
        small, _, makers, model = convolutions(tmp_path / name)
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        scales.append(float(values[makers[small[0].input[0]].input[1]]))
    assert scales[1] < scales[0]


def test_eight_bit_pixels(tmp_path):
    classifier = classifier_of(MULTIHEAD)
    chosen = images(classifier)
    found = {}
    for kind in ("float32", "uint8"):
        export_onnx(classifier, tmp_path / kind, precision="int8", int8=chosen, pixel_type=kind)
        found[kind] = OnnxClassifier(tmp_path / kind)(chosen.test.numpy()).log_probabilities
    assert np.array_equal(found["float32"].argmax(1), found["uint8"].argmax(1))


def test_what_is_refused(tmp_path, monkeypatch):
    classifier, path = classifier_of(MULTIHEAD), tmp_path / "no.onnx"
    chosen = images(classifier)

    def refused(match, classifier=classifier, precision="int8", **more):
        with pytest.raises((ConfigError, InputError), match=match):
            export_onnx(classifier, path, precision=precision, **more)

    refused("expected images to calibrate with")
    refused('expected precision "int8" beside these images', precision="float32", int8=chosen)
    refused("without likelihood maximisation", classifier=classifier.with_(lm="paper-v2"), int8=chosen)
    refused("pixels", int8=Int8Images(chosen.calibration[:, :1], chosen.test, chosen.labels, "x"))
    refused("expected 40 labels", int8=Int8Images(chosen.calibration, chosen.test, chosen.labels[:3], "x"))
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    refused(r"onnxruntime with its quantization is not installed; pip install .*\[onnx\]", int8=chosen)
    assert not path.exists()


def test_on_the_command_line(tmp_path, capsys):
    """The shipped student: decisions on its sample's images, and what is printed."""
    sample = rdc.load_dataset("fashion-mnist-sample")
    first, test = first_balanced(sample, 130), sample.subset(range(256, 512))
    many = (first.images.repeat(16, 1, 1, 1), first.labels.repeat(16), sample.class_names)  # 2,000 of them are held out
    save_splits(Dataset(*many, name="clothes", split="train"), test, tmp_path / "clothes.npz")
    out = tmp_path / "int8.onnx"
    export = ["export", "fashion-mnist", str(out), "--int8", "--calibration", str(tmp_path / "clothes.npz"), "--quiet"]
    assert main([*export, "--compared", "100", "--calibration-n", "32"]) == 0
    told = capsys.readouterr().out
    about = OnnxClassifier(out).properties["int8"]
    assert "in int8; in float32: head, unet.dec.14x14_aux_conv.weight" in told
    assert f"on 100 test images; {about['same_decisions']} decisions the same; calibrated on 32" in told
    assert about["same_decisions"] >= 92


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--int8"], "--int8: expected --calibration DATA"),
        (["--precision", "int8"], "--int8: expected --calibration DATA"),
        (["--calibration", "x.npz"], "--calibration: expected --int8 beside it"),
        (["--int8", "--precision", "float16", "--calibration", "x.npz"], "--int8: expected no --precision beside it"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, words, match):
    assert main(["export", "fashion-mnist", str(tmp_path / "x.onnx"), *words]) == 2
    assert match in capsys.readouterr().err and not (tmp_path / "x.onnx").exists()
