"""Opening a file that ``rdc export`` wrote: its integrity, its description, and where it will run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from rdc.errors import CheckpointError, ConfigError

__all__ = ["open_session", "read_model"]

FORMAT = 1
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
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); expected a file by rdc export"
        ) from error
    found = _DIGEST.search(content)
    if found is None:
        what = "empty" if not content else f"{len(content):,} bytes without rdc's digest"
        raise CheckpointError(
            f"{path}: expected an ONNX file written by rdc export; got {what}. Export or copy it again"
        )
    if verify:
        begin, end = found.span(1)
        digest = hashlib.sha256(content[:begin] + b"0" * 64 + content[end:]).hexdigest()
        if digest != found.group(1).decode():
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
    session = _session(onnxruntime, content, path, chosen, threads)
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
    return session, _properties(session, path), f"{words}, onnxruntime {onnxruntime.__version__}"


def _session(onnxruntime: Any, content: bytes, path: Any, chosen: str, threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # inputs with default values are meant
    if threads:
        options.intra_op_num_threads = threads
    providers = [_PROVIDERS["cpu"]] if chosen == "cpu" else [_PROVIDERS["cuda"], _PROVIDERS["cpu"]]
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise CheckpointError(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot open it ({str(error).strip()[:300]}). Copy or export it again, or "
            "update onnxruntime"
        ) from error


def _properties(session: Any, path: Any) -> dict[str, Any]:
    raw = session.get_modelmeta().custom_metadata_map
    if raw.get("rdc.format") != str(FORMAT):
        raise CheckpointError(
            f"{path}: format {raw.get('rdc.format')!r}; this rdc reads {FORMAT}. Export the model again, or update rdc"
        )
    words = ("version", "sha256", "precision", "created", "method", "head", "pixel_type", "preprocessing", "licence")
    try:
        named = {key.removeprefix("rdc."): value for key, value in raw.items() if key.startswith("rdc.")}
        return {name: value if name in words else json.loads(value) for name, value in named.items()}
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata is not readable ({error}); export it again") from error
