"""Opening a file that ``rdc export`` wrote: its integrity, its description, and where it will run."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from rdc.errors import CheckpointError, ConfigError, one_line
from rdc.runtime.model_file import read_properties
from rdc.runtime.properties import properties_of
from rdc.storage.reading import read_content, reading

__all__ = ["open_session", "read_model"]

_LARGEST = 2**31  # bytes of a file: protobuf holds less
_DIGEST = re.compile(rb"rdc\.sha256\x12@([0-9a-f]{64})")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def read_model(path: str | os.PathLike[str], verify: bool = True) -> bytes:
    """The bytes of an exported file.

    Args:
        path: the file.
        verify: compare its digest.

    Raises:
        CheckpointError: missing, not written by ``rdc export``, or changed since.
    """
    content = read_content(path, CheckpointError, "a file by rdc export", _LARGEST)
    path = one_line(os.fspath(path), 400)
    found = _DIGEST.search(content)
    if found is None:
        what = "empty" if not content else f"{len(content):,} bytes without rdc's digest"
        raise CheckpointError(
            f"{path}: expected an ONNX file written by rdc export; got {what}. Export or copy it again"
        )
    if verify:
        begin, end = found.span(1)
        digest, whole = hashlib.sha256(), memoryview(content)
        for part in (whole[:begin], b"0" * 64, whole[end:]):
            digest.update(part)
        if digest.hexdigest() != found.group(1).decode():
            raise CheckpointError(
                f"{path}: its SHA-256 is not the one written into it; the file was damaged, cut short or changed. Copy or export "
                "it again (verify=False accepts it as it is)"
            )
    return content


def open_session(content: bytes, path: Any, provider: str, threads: int | None) -> tuple[Any, dict[str, Any], str]:
    """An onnxruntime session on the provider asked for.

    Args:
        content: the file's bytes.
        path: what to call it in errors.
        provider: "auto" (CUDA where it works, else CPU), "cpu" or "cuda".
        threads: CPU threads inside an operator; None: onnxruntime chooses.

    Returns:
        The session, the file's properties (JSON read), and what runs it and why, in words.

    Raises:
        ConfigError: onnxruntime or the provider is missing.
        CheckpointError: not a readable model, or not one of this version of rdc.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "onnxruntime is not installed; pip install onnxruntime (for CUDA: onnxruntime-gpu), or the extras "
            "robust-diffusion-classifier[onnx] (for CUDA: robust-diffusion-classifier[gpu])"
        ) from error
    if provider not in ("auto", *_PROVIDERS):
        raise ConfigError(f"provider: expected auto, cpu or cuda; got {provider!r}")
    available = onnxruntime.get_available_providers()
    has_cuda = _PROVIDERS["cuda"] in available
    if provider == "cuda" and not has_cuda:
        raise ConfigError(
            f"provider: cuda asked for, but this onnxruntime has {', '.join(available)} only. Install onnxruntime-gpu "
            "(robust-diffusion-classifier[gpu]) "
            "in place of onnxruntime, or use cpu"
        )
    chosen = "cuda" if provider != "cpu" and has_cuda else "cpu"
    path = one_line(os.fspath(path), 400)
    with reading(path, CheckpointError, "a file by rdc export (ONNX)", "Copy or export it again"):
        properties = properties_of(read_properties(content, path), path)
    session = _session(onnxruntime, content, path, chosen, threads)
    _check_session(session, properties, path)
    words = {"cuda": "CUDA", "cpu": "CPU"}[chosen]
    if chosen == "cuda" and _PROVIDERS["cuda"] not in session.get_providers():  # onnxruntime falls back by itself
        if provider == "cuda":
            raise ConfigError(
                "provider: onnxruntime could not start CUDA (its CUDA or cuDNN libraries do not fit, or there is no GPU); see its "
                "messages, or use cpu"
            )
        words = "CPU (CUDA did not start)"
    elif chosen == "cpu" and provider == "auto":
        words = "CPU (this onnxruntime has no CUDA)"
    return session, properties, f"{words}, onnxruntime {onnxruntime.__version__}"


def _session(onnxruntime: Any, content: bytes, path: Any, chosen: str, threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; of inputs with default values, which files of format 1 have, it would warn
    options.enable_mem_pattern = False  # a plan for each batch size would hold a second copy of everything
    if threads:
        options.intra_op_num_threads = threads
    providers = [_PROVIDERS["cpu"]] if chosen == "cpu" else [_PROVIDERS["cuda"], _PROVIDERS["cpu"]]
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise CheckpointError(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot open it ({one_line(str(error).strip(), 300)}). Copy or "
            "export it again, or update onnxruntime"
        ) from error


def _check_session(session: Any, properties: dict[str, Any], path: str) -> None:
    """Inputs and outputs are those that the properties promise."""
    shape, steps = properties["image_shape"], properties["max_lm_steps"]
    types = {"pixels": f"tensor({'uint8' if properties['pixel_type'] == 'uint8' else 'float'})"}
    may = {"confidence_threshold": "tensor(float)", **({"lm_steps": "tensor(int64)"} if steps else {})}
    with reading(path, CheckpointError, "a file by rdc export", "Export it again"):
        inputs = {entry.name: entry for entry in (*session.get_inputs(), *session.get_overridable_initializers())}
        outputs = {entry.name for entry in session.get_outputs()}
        found = {name: entry.type.removeprefix("optional(").replace("))", ")") for name, entry in inputs.items()}
        if found not in (types, types | may) or inputs["pixels"].shape[1:] != shape:
            got = ", ".join(f"{name} {entry.type} {entry.shape}" for name, entry in inputs.items())
            raise ValueError(f"its inputs are {got}")
        wanted = {
            "log_probabilities",
            "class_losses",
            "log_likelihood",
            "decision",
            *(["purified_pixels"] if steps else []),
        }
        if not wanted <= outputs:
            raise ValueError(f"it has no output {', '.join(sorted(wanted - outputs))}")
