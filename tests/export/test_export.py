"""What an exported file holds, and what is refused."""

import hashlib
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import rdc
from rdc.cli import main
from rdc.defences import PlainClassifier
from rdc.errors import ConfigError, RdcError
from rdc.export import export_onnx
from rdc.export.card import card_of
from rdc.export.graph import OPSET
from rdc.export.metadata import seal
from rdc.export.translate import trace, translate
from rdc.provenance.run import weights_digest
from rdc.runtime import OnnxClassifier
from tests.evaluation_models import grey, save_tiny
from tests.export.files import MULTIHEAD, NETWORKS, classifier_of


@pytest.fixture(scope="module")
def multihead():
    return classifier_of(MULTIHEAD, class_names=("bag", "coat", "shoe"))


@pytest.fixture(scope="module")
def with_lm(multihead, tmp_path_factory):
    """(path, summary) of a file with likelihood maximisation, checked as it was written."""
    path = tmp_path_factory.mktemp("onnx") / "rdc.onnx"
    info = {"licence": "CC0", "dataset": "noise"}
    lm = multihead.with_(lm="paper-v2")
    return path, export_onnx(lm, path, info=info, max_lm_steps=7, confidence_threshold=0.25)


def properties(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_valid_and_described(with_lm, multihead):
    path, summary = with_lm
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import] == [OPSET] == [summary["opset"]]
    assert summary["bytes"] == path.stat().st_size and summary["path"] == str(path)
    props = properties(path)
    assert props["rdc.version"] == rdc.__version__ and props["rdc.licence"] == "CC0" and props["rdc.method"] == "RDC"
    assert json.loads(props["rdc.model_card"]) == {"licence": "CC0", "dataset": "noise"}
    assert json.loads(props["rdc.levels"]) == multihead.levels.to_json()
    assert json.loads(props["rdc.class_names"]) == ["bag", "coat", "shoe"]
    assert json.loads(props["rdc.image_shape"]) == [2, 8, 8] and "0, 1" in props["rdc.preprocessing"]
    steps = json.loads(props["rdc.lm_steps"]), json.loads(props["rdc.max_lm_steps"])
    assert steps == (5, 7) and json.loads(props["rdc.confidence_threshold"]) == 0.25


def test_digest(with_lm):
    content, digest = with_lm[0].read_bytes(), properties(with_lm[0])["rdc.sha256"]
    assert hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_inputs_that_may_be_left_out(with_lm):
    session = onnxruntime.InferenceSession(str(with_lm[0]), providers=["CPUExecutionProvider"])
    assert {i.name: i.type for i in session.get_inputs()} == {
        "pixels": "tensor(float)",
        "lm_steps": "optional(tensor(int64))",
        "confidence_threshold": "optional(tensor(float))",
    }
    assert session.get_inputs()[0].shape == ["N", 2, 8, 8] and not session.get_overridable_initializers()
    pixels = np.full((1, 2, 8, 8), 0.5, np.float32)
    by_name, left_out = (
        session.run(["class_losses"], {"pixels": pixels, **more})[0] for more in ({"lm_steps": np.array(5)}, {})
    )
    assert np.array_equal(by_name, left_out)
    assert not np.array_equal(left_out, session.run(["class_losses"], {"pixels": pixels, "lm_steps": np.array(0)})[0])
    names = [o.name for o in session.get_outputs()]
    assert names == ["log_probabilities", "class_losses", "log_likelihood", "decision", "purified_pixels"]


def test_only_pixels(multihead, with_lm, tmp_path):
    """For servers that know no optional inputs: the same answers, by the exported steps and threshold."""
    lm = multihead.with_(lm="paper-v2")
    export_onnx(lm, tmp_path / "a.onnx", only_pixels=True, confidence_threshold=0.25)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["pixels"] and not session.get_overridable_initializers()
    pixels = grey((3, 2, 8, 8))
    fixed, free = OnnxClassifier(tmp_path / "a.onnx", threads=1), OnnxClassifier(with_lm[0], threads=1)
    for more in ({}, {"lm_steps": 5}, {"threshold": 0.34}, {"threshold": 1.0}, {"threshold": 0.0}):
        one, other = fixed(pixels, **more), free(pixels, **more)
        assert np.array_equal(one.log_probabilities, other.log_probabilities)
        assert np.array_equal(one.decision, other.decision), more
    with pytest.raises(
        ConfigError, match="lm_steps: expected 5, of a file that was exported with --only-pixels; got 2"
    ):
        fixed(pixels, lm_steps=2)
    with pytest.raises(ConfigError, match="only_pixels: such a file has no lm_steps"):
        export_onnx(lm, tmp_path / "b.onnx", only_pixels=True, max_lm_steps=9)


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_has_nothing_to_warn_of(name, tmp_path, capfd):
    """Loaded with its default options by somebody who knows nothing of rdc, with likelihood maximisation and without."""
    variants = (
        {},
        {"lm": "paper-v2", "precision": "float16"},
        {"lm": "paper-v2,optimizer=adam,steps=2", "pixel_type": "uint8", "only_pixels": True},
    )
    for number, settings in enumerate(variants):
        path, classifier = tmp_path / f"{number}.onnx", classifier_of(NETWORKS[name], lm=settings.pop("lm", None))
        export_onnx(classifier, path, check=False, **settings)
        capfd.readouterr()
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert capfd.readouterr().err == ""


def test_files_of_the_first_format(with_lm, tmp_path):
    """Their inputs that may be left out are initializers."""
    model = onnx.load(with_lm[0])
    nodes = [n for n in model.graph.node if n.op_type != "OptionalHasElement" and not n.output[0].endswith(".used")]
    for node in nodes:
        node.input[:] = [name.removesuffix(".used") for name in node.input]
    del model.graph.node[:], model.graph.input[1:]
    model.graph.node.extend(nodes)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".default"):
            tensor.name = tensor.name.removesuffix(".default")
            kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, [])
            model.graph.input.append(kind)
    changed = {"rdc.format": "1", "rdc.sha256": "0" * 64}
    kept = {entry.key: changed.get(entry.key, entry.value) for entry in model.metadata_props if entry.key != "rdc.card"}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, kept)
    (tmp_path / "old.onnx").write_bytes(seal(model.SerializeToString()))
    old, new, pixels = OnnxClassifier(tmp_path / "old.onnx"), OnnxClassifier(with_lm[0]), grey((2, 2, 8, 8))
    for more in ({}, {"lm_steps": 2, "threshold": 0.34}):
        assert np.array_equal(old(pixels, **more).decision, new(pixels, **more).decision)
        assert np.array_equal(old(pixels, **more).class_losses, new(pixels, **more).class_losses)
    assert old.card == {} and new.card["licence"] == "CC0"


def test_the_card(multihead, with_lm, tmp_path):
    """Licence, data, origin, noise, and accuracy where it was measured with these very settings; what is not known is left out."""
    about = onnx.load(with_lm[0]).doc_string
    assert "Licence: CC0\nTrained on: noise\nNoise: one draw (seed 0)" in about and "accuracy" not in about
    measured = json.loads(json.dumps(multihead.describe()))
    rates = {
        "clean": {"accuracy": 0.9, "ci95": [0.85, 0.93]},
        "robust": {"accuracy": 0.5, "ci95": [0.43, 0.57]},
    }
    evaluation = {
        "dataset": "noise", "n": 200, "norm": "linf", "eps": 8 / 255, "attacks": ["apgd-ce, 50 steps, noise known"], "noise": "known",
        **rates, "classifier": measured, "gradient": "exact", "from": "out/run",
    }  # fmt: skip
    info = {"evaluation": evaluation, "command": "distill", "converted_from": {"file": "a\n.pkl", "kind": "edm"}}
    export_onnx(multihead, tmp_path / "dc.onnx", info=info)
    card = OnnxClassifier(tmp_path / "dc.onnx").card
    assert set(card) == {"accuracy", "made_by", "origin", "noise", "weights"} and card["noise"] == {
        "policy": "fixed",
        "seed": 0,
    }
    assert card["accuracy"] == {key: value for key, value in evaluation.items() if key != "classifier"}
    assert card["weights"] == weights_digest(multihead) and card["origin"] == "converted from a\\n.pkl (edm)"
    words = onnx.load(tmp_path / "dc.onnx").doc_string
    assert "Made by: rdc distill" in words and "Licence" not in words
    assert "under attack (linf 0.03137: apgd-ce, 50 steps, noise known): 50.0 % [43.0, 57.0]; 200 test images" in words
    for other in (
        multihead.with_(lm="paper-v2"),
        multihead.with_(levels="log:2:1:2:flat"),
        multihead.with_(noise_seed=4),
    ):
        assert "accuracy" not in card_of(other, info)
    for damaged in (3, {}, {**evaluation, "n": "many"}, {**evaluation, "robust": None}):
        assert "accuracy" not in card_of(multihead, {"evaluation": damaged})


def test_weights_are_stored_once(with_lm, multihead):
    """Loop and classifier share them; the rest is noise and a few vectors."""
    tensors = onnx.load(with_lm[0]).graph.initializer
    elements = sum(int(np.prod(t.dims)) for t in tensors)
    weights, noise = sum(p.numel() for p in multihead.denoiser.parameters()), (3 + 7) * 2 * 8 * 8
    assert elements <= weights + noise + 3000


def test_the_classifier_is_left_alone(multihead, tmp_path):
    double = classifier_of(MULTIHEAD)
    double.denoiser.double()
    export_onnx(double, tmp_path / "a.onnx", check=False)
    assert next(double.denoiser.parameters()).dtype == torch.float64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx"]


def test_check_finds_a_difference(multihead, tmp_path, monkeypatch):
    """A wrong translation is noticed before anything is written."""
    from rdc.export import layers

    real = layers.LAYERS["aten.silu.default"]
    monkeypatch.setitem(layers.LAYERS, "aten.silu.default", lambda t, node: t.graph.op("Mul", real(t, node), 1.01))
    with pytest.raises(RdcError, match="differ by"):
        export_onnx(multihead, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_failure_keeps_the_old_file(multihead, tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.write_text("old")
    monkeypatch.setattr("rdc.export.checks.check_model", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_onnx(multihead, path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "int4"}, "precision: expected one of float32, float16-weights, float16, int8"),
        ({"pixel_type": "int8"}, "pixel type"),
        ({"confidence_threshold": 2.0}, "confidence threshold"),
        ({"confidence_threshold": float("nan")}, "confidence threshold"),
        ({"max_lm_steps": 3}, "no likelihood maximisation"),
    ],
)
def test_wrong_settings(multihead, tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        export_onnx(multihead, tmp_path / "a.onnx", **settings)


def test_what_cannot_be_exported(multihead, tmp_path):
    with pytest.raises(ConfigError, match="at least the classifier's own 5"):
        export_onnx(multihead.with_(lm="paper-v2"), tmp_path / "a.onnx", max_lm_steps=3)
    with pytest.raises(ConfigError, match='noise "fixed"'):
        export_onnx(multihead.with_(noise="fresh"), tmp_path / "a.onnx")
    plain = PlainClassifier(torch.nn.Flatten(), image_shape=(1, 2, 2), num_classes=4)
    with pytest.raises(ConfigError, match="diffusion classifier; got PlainClassifier"):
        export_onnx(plain, tmp_path / "a.onnx")


def test_unknown_call_is_named(tmp_path):
    from rdc.export.graph import Constants, Graph

    traced = trace(lambda x: torch.special.i0(x), lambda n: [torch.ones(n, 2)])
    with pytest.raises(ConfigError, match=r"aten.i0.* no translation"):
        translate(traced, Graph(Constants()), ["x"], {})


def test_batch_size_as_a_number_is_refused():
    """A mean over images would bake the example's batch size into the file."""
    with pytest.raises(ConfigError, match="batch size as a number"):
        trace(lambda x: x / x.shape[0], lambda n: [torch.ones(n, 2)])
    with pytest.raises(ConfigError, match="multiples of N"):
        trace(lambda x: torch.cat([x, x.new_zeros(1, 2)]), lambda n: [torch.ones(n, 2)])


# --- rdc export -----------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    model, _ = save_tiny(tmp_path)
    out = tmp_path / "new" / "tiny.onnx"
    arguments = [
        "export",
        model,
        str(out),
        "--lm",
        "paper-v2,steps=1",
        "--levels",
        "log:2:1:2:flat",
        "--threshold",
        "0.4",
    ]
    assert main([*arguments, "--precision", "float16-weights", "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert summary["path"] == str(out) and summary["bytes"] == out.stat().st_size
    assert "rdc: checking against PyTorch ..." in said.err
    props = properties(out)
    assert json.loads(props["rdc.levels"])["sigma"] == pytest.approx([1, 2])
    assert (
        props["rdc.precision"] == "float16-weights" and json.loads(props["rdc.model_card"])["class_names"][0] == "bag"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["no-such-model"], "no such file exists"),
        (["fashion-mnist-standard"], "expected a diffusion classifier"),
        (["--precision", "half"], "expected one of float32"),
        (["--lm", "paper-v9"], "paper-v9"),
        (["--max-lm-steps", "0"], "integer >= 1"),
    ],
)
def test_command_errors(tmp_path, capsys, change, words):
    model = change if not change[0].startswith("-") else [save_tiny(tmp_path)[0], *change]
    assert main(["export", model[0], str(tmp_path / "a.onnx"), "--quiet", *model[1:]]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "a.onnx").exists()


def test_without_onnx(tmp_path, capsys, monkeypatch, multihead):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install robust-diffusion-classifier\[onnx\]"):
        export_onnx(multihead, tmp_path / "a.onnx")
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["export", "fashion-mnist", str(tmp_path / "a.onnx")]) == 2
    assert "pip install robust-diffusion-classifier[onnx]" in capsys.readouterr().err


def test_every_network_has_its_own_head(tmp_path):
    heads = set()
    for name in ("conditional", "multihead"):
        export_onnx(classifier_of(NETWORKS[name]), tmp_path / name, check=False)
        heads.add(properties(tmp_path / name)["rdc.head"])
    assert heads == {"conditional", "multi-head"}
