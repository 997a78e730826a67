"""examples/triton_server: the configuration parses, and says of the model what an exported file says of itself."""

import re
from pathlib import Path

import onnx
import pytest

import rdc
from rdc.export import export_onnx
from rdc.networks.presets import build_network, network_preset

CONFIG = Path(__file__).resolve().parents[2] / "examples/triton_server/model_repository/rdc/config.pbtxt"
_TOKEN = re.compile(r"#[^\n]*|\s+|(\"[^\"]*\"|[A-Za-z_][\w.]*|-?\d+|[\[\]{}:,])")


def parse(text):
    """Protobuf text format, as far as Triton's configurations use it: fields, messages, lists."""
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match, f"unexpected {text[at : at + 20]!r}"
        tokens += [match.group(1)] if match.group(1) else []
        at = match.end()
    message, rest = _message(tokens, None)
    assert not rest
    return message


def _message(tokens, end):
    fields = {}
    while tokens and tokens[0] != end:
        name, tokens = tokens[0], tokens[1:]
        assert re.fullmatch(r"[A-Za-z_]\w*", name), name
        if tokens[0] == ":":
            tokens = tokens[1:]
        value, tokens = _value(tokens)
        assert name not in fields or name == "parameters", f"{name} twice"
        fields[name] = value
        if tokens and tokens[0] == ",":
            tokens = tokens[1:]
    return fields, tokens[1:]


def _value(tokens):
    if tokens[0] == "{":
        return _message(tokens[1:], "}")
    if tokens[0] == "[":
        values, tokens = [], tokens[1:]
        while tokens[0] != "]":
            value, tokens = _value(tokens)
            values.append(value)
            tokens = tokens[1:] if tokens[0] == "," else tokens
        return values, tokens[1:]
    word = tokens[0]
    return (word[1:-1] if word[0] == '"' else int(word) if re.fullmatch(r"-?\d+", word) else word), tokens[1:]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file of the shipped model's kind: its shape and its classes, a smaller network."""
    config = network_preset("small-28", 10)
    config["unet"] |= {"model_channels": 8, "channel_mult": [1]}
    from rdc.method.classifier import DiffusionClassifier
    from rdc.method.denoiser import make_denoiser

    path = tmp_path_factory.mktemp("triton") / "model.onnx"
    classifier = DiffusionClassifier(make_denoiser(build_network(config), config), "log:1:1:2:flat", lm="paper-v2")
    export_onnx(classifier, path, check=False, only_pixels=True)
    return onnx.load(path)


def of_file(value):
    """Name, Triton's type, and shape without the batch dimension."""
    kinds = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.INT64: "TYPE_INT64"}
    first, *rest = value.type.tensor_type.shape.dim
    assert first.dim_param == "N"
    return value.name, kinds[value.type.tensor_type.elem_type], [d.dim_value for d in rest]


def of_config(entry):
    return entry["name"], entry["data_type"], entry.get("reshape", entry).get("shape", entry["dims"])


def test_names_types_and_shapes(model):
    config = parse(CONFIG.read_text())
    assert [of_config(entry) for entry in config["output"]] == [of_file(value) for value in model.graph.output]
    assert [of_config(entry) for entry in config["input"]] == [of_file(value) for value in model.graph.input]
    assert all(entry["dims"] for entry in config["input"] + config["output"])  # Triton refuses empty shapes
    assert all(entry["dims"] == [1] for entry in config["output"] if "reshape" in entry)


def test_layout_and_scheduling():
    config = parse(CONFIG.read_text())
    assert config["name"] == CONFIG.parent.name and config["platform"] == "onnxruntime_onnx"
    assert max(config["dynamic_batching"]["preferred_batch_size"]) <= config["max_batch_size"]
    assert config["instance_group"][0]["kind"] in ("KIND_CPU", "KIND_GPU")
    shipped = rdc.load("fashion-mnist")
    assert config["input"][0]["dims"] == list(shipped.image_shape) and config["output"][0]["dims"] == [
        shipped.num_classes
    ]
