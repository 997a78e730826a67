"""ONNX files of anything: one line says what is wrong, before memory is taken or another file is read."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rdc.cli import main
from rdc.errors import CheckpointError, ConfigError
from rdc.export.metadata import seal
from rdc.runtime import OnnxClassifier
from tests.bounds import bounded
from tests.evaluation_models import grey


def refused(model: onnx.ModelProto | bytes, tmp_path, words: str) -> None:
    """By one line within the bounds, although its digest is right."""
    content = model
    if isinstance(model, onnx.ModelProto):
        for entry in model.metadata_props:
            if entry.key == "rdc.sha256":
                entry.value = "0" * 64
        content = seal(model.SerializeToString())
    (tmp_path / "b.onnx").write_bytes(content)
    with bounded(), pytest.raises(CheckpointError, match=words) as caught:
        OnnxClassifier(tmp_path / "b.onnx")(grey((2, 1, 8, 8)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2500


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", None, "format None; this rdc reads 1"),
        ("format", "1\n" * 10**5, r"format '1\\\\n1"),
        ("image_shape", None, "image_shape is missing"),
        ("image_shape", "[1, 8]", "image_shape: expected a list of 3"),
        ("image_shape", "[1, 8, 1e3]", "image_shape.2.: expected an integer"),
        ("image_shape", "[1, 8, 0]", "image_shape.2.: expected an integer >= 1"),
        ("image_shape", "[1, 8, 9]", "its inputs are pixels"),
        ("image_shape", "[" * 10**5, "nested too deeply"),
        ("image_shape", "", "property image_shape: not JSON"),
        ("class_names", None, "class_names is missing"),
        ("class_names", '"bag"', "class_names: expected a list"),
        ("class_names", "[1, 2, 3, 4]", "class_names.0.: expected"),
        ("class_names", "[]", "class_names: expected a list"),
        ("class_names", '["a", "b"]', "expected outputs .*2, 2.*got"),
        ("class_names", json.dumps([str(k) for k in range(100_001)]), "class_names: expected a list of 1 to 100000"),
        ("class_names", '["a", "a", "b", "c"]', "a class name is there twice"),
        ("pixel_type", "int8", "pixel_type: expected one of"),
        ("pixel_type", "uint8", "its inputs are pixels"),
        ("max_lm_steps", "1000000000", "max_lm_steps: expected an integer"),
        ("max_lm_steps", "0", "lm_steps 1 beyond max_lm_steps 0"),
        ("lm_steps", "-1", "lm_steps: expected an integer"),
        ("lm_steps", '"1"', "lm_steps: expected an integer"),
        ("bytes_per_image", "0", "bytes_per_image: expected an integer"),
        ("bytes_per_image", "NaN", "property bytes_per_image: not JSON"),
        ("bytes_per_image", "1e3", "bytes_per_image: expected an integer"),
        ("logit_scale", "-1.0", "logit_scale: expected a number"),
        ("model_card", "{", "property model_card: not JSON"),
        ("something", "[1", "property something: not JSON"),
    ],
)
def test_properties_of_anything(path, tmp_path, key, value, words):
    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != f"rdc.{key}"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if value is not None:
        model.metadata_props.add(key=f"rdc.{key}", value=value)
    refused(model, tmp_path, words)


def test_properties_that_are_no_text_or_come_twice(path, tmp_path):
    content = path.read_bytes()
    (tmp_path / "b.onnx").write_bytes(content.replace(b"rdc.licence", b"rdc.licen\xff\xfe"))
    with pytest.raises(CheckpointError, match="not a file by rdc export .*UnicodeDecodeError"):
        OnnxClassifier(tmp_path / "b.onnx", verify=False)
    model = onnx.load(path)
    model.metadata_props.add(key="rdc.lm_steps", value="2")
    refused(model, tmp_path, "the property rdc.lm_steps is there twice")


def external(path, model) -> onnx.TensorProto:
    tensor = model.graph.initializer.add(name="x", data_type=TensorProto.FLOAT, dims=[4])
    tensor.external_data.add(key="location", value=path)
    return tensor


@pytest.mark.parametrize("place", ["/etc/passwd", "../secret", "secret"])
def test_no_other_file_is_read(path, tmp_path, place):
    (tmp_path / "secret").write_bytes(bytes(16))
    model = onnx.load(path)
    external(place, model).data_location = TensorProto.EXTERNAL
    refused(model, tmp_path, "takes weights from other files")
    inside = onnx.load(path)
    tensor = external(place, inside)
    node = inside.graph.node.add(op_type="Constant", output=["y"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    inside.graph.initializer.pop()
    refused(inside, tmp_path, "takes weights from other files")


def test_weights_and_shapes_that_unpack(path, tmp_path):
    one, place = numpy_helper.from_array(np.ones(1, np.float32), "x"), numpy_helper.from_array(np.array([3]), "i")
    model = onnx.load(path)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(one, place, [2**40]))
    refused(model, tmp_path, "has sparse weights")
    model = onnx.load(path)
    node = helper.make_node("Constant", [], ["y"], sparse_value=helper.make_sparse_tensor(one, place, [2**40]))
    model.graph.node.append(node)
    refused(model, tmp_path, "has sparse weights")
    for kind, inputs in (("Expand", ["x", "s"]), ("Tile", ["x", "s"]), ("ConstantOfShape", ["s"])):
        model = onnx.load(path)
        model.graph.initializer.extend([one, numpy_helper.from_array(np.array([2**20, 2**10]), "s")])
        model.graph.node.append(helper.make_node(kind, inputs, ["y"]))
        refused(model, tmp_path, f"what {kind} makes of a constant asks for 4,294,967,296 bytes")
    model = onnx.load(path)
    model.graph.initializer[0].dims[:] = [2**40]
    refused(model, tmp_path, "cannot open it")


def test_structures_made_to_take_long(path, tmp_path):
    content = path.read_bytes()
    digest = b"rdc.sha256\x12@" + b"0" * 64
    inner = b""
    for _ in range(200):  # graphs in attributes of nodes
        for field in (b"\x32", b"\x2a", b"\x0a"):
            inner = field + varint(len(inner)) + inner
    for made, words in (
        (b"\x08\x08" * 400_000, "more than 200,000 parts"),
        (b"\x3a" + varint(len(inner)) + inner, "nested too deeply"),
        (b"\x08" + b"\xff" * 20, "more than ten bytes"),
        (b"\x0b", "unknown kind 3"),
        (b"\x3a\xff\xff\xff\xff\x0f", "longer than what is around it"),
        (b"\x08", "IndexError"),
    ):
        (tmp_path / "b.onnx").write_bytes(b"\x72" + varint(len(digest) + 2) + b"\x0a\x0a" + digest + made)
        with bounded(), pytest.raises(CheckpointError, match=words):
            OnnxClassifier(tmp_path / "b.onnx", verify=False)
    model = onnx.load_from_string(content)
    model.functions.add(name="f", domain="d")
    refused(model, tmp_path, "functions of its own")


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def test_graphs_of_something_else(path, tmp_path):
    model = onnx.load(path)
    model.graph.output.pop(0)
    refused(model, tmp_path, "it has no output log_probabilities")
    model = onnx.load(path)
    model.opset_import[0].version = 9999
    refused(model, tmp_path, "cannot open it")
    model = onnx.load(path)  # gives another number of rows
    at = next(i for i, node in enumerate(model.graph.node) if node.output[0] == "decision")
    source = model.graph.node[at].input[0]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    model.graph.node[at].CopyFrom(helper.make_node("Gather", [source, "zero"], ["decision"]))
    refused(model, tmp_path, "expected outputs|cannot run it")


def test_steps_are_those_of_the_properties(path, tmp_path):
    """A default of 10^12 turns inside the graph is not what runs."""
    model = onnx.load(path)
    (default,) = [tensor for tensor in model.graph.initializer if tensor.name == "lm_steps.default"]
    default.CopyFrom(numpy_helper.from_array(np.array(10**12), "lm_steps.default"))
    for entry in model.metadata_props:
        if entry.key == "rdc.sha256":
            entry.value = "0" * 64
    (tmp_path / "b.onnx").write_bytes(seal(model.SerializeToString()))
    pixels = grey((2, 1, 8, 8))
    found, expected = OnnxClassifier(tmp_path / "b.onnx")(pixels), OnnxClassifier(path)(pixels)
    assert np.array_equal(found.log_probabilities, expected.log_probabilities)


def test_what_is_no_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.onnx")
    with open(odd, "wb") as file:
        file.write(b"x")
    for name, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "device or pipe"),
        (tmp_path / "pointer", "Git LFS pointer"),
        (odd, r"udcff\\n.onnx: expected an ONNX file"),
        ("a\0b", "not a file by rdc export"),
    ):
        with pytest.raises(CheckpointError, match=words):
            OnnxClassifier(name)
    assert main(["predict", "--onnx", odd, "x.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "setting", [{"memory_budget_mb": float("inf")}, {"memory_budget_mb": float("nan")}, {"threads": 10**9}]
)
def test_settings_out_of_range(path, setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))}: expected"):
        OnnxClassifier(path, **setting)


def test_changed_bytes_anywhere_are_one_line(path, tmp_path):
    content, random = path.read_bytes(), np.random.default_rng(5)
    for trial in range(30):
        changed = bytearray(content)
        for _ in range(1 + trial % 3):
            changed[random.integers(len(changed) if trial % 2 else 3000)] = random.integers(256)
        (tmp_path / "b.onnx").write_bytes(changed)
        try:
            OnnxClassifier(tmp_path / "b.onnx", verify=False)
        except CheckpointError as error:
            assert "\n" not in str(error)
