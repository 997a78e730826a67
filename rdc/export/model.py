"""The whole classifier as one ONNX model: pixels -> [likelihood maximisation] -> class losses -> probabilities and decision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rdc import __version__
from rdc.export.graph import IR_VERSION, OPSET, Constants, Graph
from rdc.export.optional_inputs import setting, used_names
from rdc.export.programs import class_losses, example_images, lm_step, step_draws
from rdc.export.translate import peak_bytes, trace, translate
from rdc.method.classifier import DiffusionClassifier

__all__ = ["OUTPUTS", "build_model"]

_ABOUT = "Robust diffusion classifier (arXiv 2305.15241), written by rdc; see its metadata and docs/deployment.md."

#: name -> meaning, in the order of the file
OUTPUTS: dict[str, str] = {
    "log_probabilities": "log p(y|x) [N, K] float32",
    "class_losses": "weighted denoising losses [N, K] float32",
    "log_likelihood": "log sum_y p(y) exp(scale f_y) [N] float32: the log-likelihood up to a constant, in the units of "
    "the log-probabilities",
    "decision": "class [N] int64; -1 where the largest probability is below confidence_threshold",
    "purified_pixels": "what was classified [N, C, H, W] float32 in [0, 1] (files with likelihood maximisation only)",
}


def build_model(
    classifier: DiffusionClassifier,
    *,
    max_steps: int,
    threshold: float,
    precision: str,
    pixel_type: str,
    only_pixels: bool = False,
) -> tuple[Any, int]:
    """The ONNX model without its description.

    Args:
        classifier: on the CPU in float32, with fixed noise.
        max_steps: how many steps of LM have their draws in the file.
        threshold: default of the input ``confidence_threshold``.
        precision: "float32", "float16-weights" or "float16"; "int8" begins as float32.
        pixel_type: "float32" (in [0, 1]) or "uint8".
        only_pixels: no other input; the steps are the classifier's.

    Returns:
        ``onnx.ModelProto``, and an estimate of the bytes that one image needs while it is worked on.
    """
    from onnx import TensorProto, helper

    constants = Constants(half=precision.startswith("float16"))
    graph = Graph(constants, half=precision == "float16")
    weights = _names_of_weights(classifier)
    op, channels = graph.op, list(classifier.image_shape)
    graph.batch = op("Shape", "pixels", start=0, end=1)
    pixels = op("Div", op("Cast", "pixels", to=TensorProto.FLOAT), 255.0) if pixel_type == "uint8" else "pixels"
    anchor = x0 = op("Sub", op("Mul", pixels, 2.0), 1.0)
    inputs = [helper.make_tensor_value_info("pixels", _type(pixel_type), ["N", *channels])]
    step_bytes, more = 0, []
    if classifier.lm is not None:
        steps, taken = setting(graph, constants, "lm_steps", np.int64(classifier.lm.steps), not only_pixels)
        more.append(taken)
        x0, step_bytes = _loop(classifier, graph, constants, anchor, weights, max_steps, steps)
        half = op("Mul", op("Add", x0, 1.0), 0.5)
        graph.nodes.append(helper.make_node("Identity", [half], ["purified_pixels"]))
    traced = trace(class_losses(classifier), lambda n: [example_images(classifier.denoiser, n)])
    (loss,) = translate(traced, graph, [x0], weights)
    least, taken = setting(graph, constants, "confidence_threshold", np.float32(threshold), not only_pixels)
    more.append(taken)
    _decide(classifier, graph, loss, least)

    inputs += [entry for entry in more if entry is not None]
    nodes = constants.nodes + graph.nodes
    built = helper.make_graph(
        nodes, "rdc_classifier", inputs, _outputs(classifier), _initializers(constants, used_names(nodes))
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name, model.producer_version, model.doc_string = "rdc", __version__, _ABOUT
    return model, max(step_bytes, peak_bytes(traced))


def _names_of_weights(classifier: DiffusionClassifier) -> dict[int, str]:
    """Address -> name in the file; those of a second network, which likelihood maximisation asks, begin with ``lm.``."""
    names: dict[int, str] = {}
    others = [] if classifier.lm is None or classifier.lm_denoiser is None else [("lm.", classifier.lm_denoiser)]
    for prefix, denoiser in (*others, ("", classifier.denoiser)):
        network = denoiser.network
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            names[tensor.data_ptr()] = prefix + name
        for name, tensor in denoiser.named_parameters():  # an encoder's, too
            names.setdefault(tensor.data_ptr(), prefix + name)
    return names


def _loop(
    classifier: DiffusionClassifier,
    graph: Graph,
    constants: Constants,
    anchor: str,
    weights: dict[int, str],
    max_steps: int,
    steps: str,
) -> tuple[str, int]:
    """LM as a Loop of ``steps`` turns (a name); returns the name of what it moved ``anchor`` to, and bytes per image.
    Arithmetic is float32: gradients of mean losses vanish in float16."""
    from onnx import TensorProto, helper

    settings, denoiser = classifier.lm, classifier.moved_by
    assert settings is not None
    one = example_images(denoiser, 1)
    with torch.no_grad():
        denoiser.f_null(denoiser.encode(one), torch.ones(1))  # refuses networks that have no null label
    draws = step_draws(settings, classifier.denoiser.latent_shape, max_steps)
    body = Graph(constants)
    body.batch = graph.batch
    carried = [constants.fresh(stem) for stem in ("x", "first", "second")]
    turn, go_on = constants.fresh("turn"), constants.fresh("go_on")

    def of_turn(table: torch.Tensor, name: str) -> str:
        array = table.numpy()
        if len(array) == 1:
            return constants.array(array[0], name)
        return body.op("Gather", constants.array(array, name), turn, axis=0)

    drawn = [of_turn(draws.noise, "lm_noise"), of_turn(draws.sigma, "lm_sigma"), of_turn(draws.bias, "lm_adam_bias")]

    def examples(batch: int) -> list[torch.Tensor]:
        images = [example_images(denoiser, batch) for _ in range(4)]
        return [*images, draws.noise[0], draws.sigma[0], draws.bias[0]]

    traced = trace(lm_step(denoiser, settings, draws.weight), examples)
    results = translate(traced, body, [anchor, *carried, *drawn], weights)
    outs = []
    for name in (go_on, *results):  # a result may be an input, which a body must not hand back under its own name
        outs.append(constants.fresh("out"))
        body.nodes.append(helper.make_node("Identity", [name], [outs[-1]]))
    image = [*classifier.image_shape]
    inside = [
        helper.make_tensor_value_info(turn, TensorProto.INT64, []),
        helper.make_tensor_value_info(go_on, TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *image]) for name in carried),
    ]
    after = [
        helper.make_tensor_value_info(outs[0], TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *image]) for name in outs[1:]),
    ]
    loop = helper.make_graph(body.nodes, "likelihood_maximization_step", inside, after)
    zeros = graph.op("Expand", np.zeros((1, 1, 1, 1), np.float32), graph.op("Shape", anchor))
    moved = constants.fresh("x_after_lm")
    unused = [constants.fresh("state") for _ in range(2)]
    graph.nodes.append(
        helper.make_node("Loop", [steps, "", anchor, zeros, zeros], [moved, *unused], name="lm", body=loop)
    )
    return moved, peak_bytes(traced)


def _decide(classifier: DiffusionClassifier, graph: Graph, loss: str, least: str) -> None:
    """Bayes' rule, log-likelihood, and the decision, with abstention below the confidence ``least`` (a name)."""
    from onnx import helper

    op = graph.op
    score = op("Mul", loss, -classifier.scale)
    prior = classifier._log_prior
    if prior is not None:
        score = op("Add", score, prior.float().numpy())
    log_p = op("LogSoftmax", score, axis=1)
    flat = np.float32(0 if prior is not None else np.log(classifier.num_classes))
    likelihood = op("Sub", op("ReduceLogSumExp", score, graph.ints(1), keepdims=0), flat)
    confidence = op("ReduceMax", op("Exp", log_p), graph.ints(1), keepdims=0)
    sure = op("GreaterOrEqual", confidence, least)
    decision = op("Where", sure, op("ArgMax", log_p, axis=1, keepdims=0), np.array(-1, np.int64))
    results = {"log_probabilities": log_p, "class_losses": loss, "log_likelihood": likelihood, "decision": decision}
    for name, value in results.items():
        graph.nodes.append(helper.make_node("Identity", [value], [name]))


def _outputs(classifier: DiffusionClassifier) -> list[Any]:
    from onnx import TensorProto, helper

    shapes: dict[str, tuple[int, list[str | int | None]]] = {
        "log_probabilities": (TensorProto.FLOAT, ["N", classifier.num_classes]),
        "class_losses": (TensorProto.FLOAT, ["N", classifier.num_classes]),
        "log_likelihood": (TensorProto.FLOAT, ["N"]),
        "decision": (TensorProto.INT64, ["N"]),
    }
    if classifier.lm is not None:
        shapes["purified_pixels"] = (TensorProto.FLOAT, ["N", *classifier.image_shape])
    return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()]


def _initializers(constants: Constants, used: set[str]) -> list[Any]:
    """Those that a node takes: of others onnxruntime warns."""
    from onnx import numpy_helper

    return [numpy_helper.from_array(value, name) for name, value in constants.initializers.items() if name in used]


def _type(name: str) -> int:
    from onnx import TensorProto

    kind: int = TensorProto.UINT8 if name == "uint8" else TensorProto.FLOAT  # without onnx installed, mypy sees Any
    return kind
