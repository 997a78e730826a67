"""An exported classifier behind HTTP. No PyTorch: numpy, onnxruntime, pillow, and FastAPI.

    RDC_MODEL=fashion-mnist.onnx uvicorn --app-dir examples/fastapi_server app:app
    curl -F file=@shoe.png http://127.0.0.1:8000/predict

Requests that arrive while a batch runs make up the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.exceptions import HTTPException as AnyHTTPException

from rdc.errors import InputError
from rdc.images.files import ImageFile, image_of
from rdc.runtime import OnnxClassifier

MOST_BYTES = int(os.environ.get("RDC_MOST_BYTES", 10 * 2**20))  # of a request
MOST_PIXELS = int(os.environ.get("RDC_MOST_PIXELS", 25_000_000))  # of a picture
MOST_WAITING = int(os.environ.get("RDC_MOST_WAITING", 1000))  # requests; more are told to come again
MOST_AT_ONCE = int(os.environ.get("RDC_MOST_AT_ONCE", 64))  # pictures in a batch
THREADS = int(os.environ["RDC_THREADS"]) if "RDC_THREADS" in os.environ else None


class Batches:
    """Pictures of many requests, classified together."""

    def __init__(self, classifier: OnnxClassifier) -> None:
        self.classifier = classifier
        self.queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future[dict[str, Any]]]] = asyncio.Queue(MOST_WAITING)

    async def answer(self, pixels: np.ndarray) -> dict[str, Any]:
        """What ``rdc predict`` says of a picture [C, H, W]."""
        future = asyncio.get_running_loop().create_future()
        try:
            self.queue.put_nowait((pixels, future))
        except asyncio.QueueFull:
            raise HTTPException(503, "too many requests are waiting", {"Retry-After": "1"}) from None
        return await future

    async def run(self) -> None:
        """Classify for ever."""
        while True:
            waiting = [await self.queue.get()]
            while len(waiting) < MOST_AT_ONCE and not self.queue.empty():
                waiting.append(self.queue.get_nowait())
            waiting = [(pixels, future) for pixels, future in waiting if not future.cancelled()]
            if not waiting:
                continue
            try:
                found = await asyncio.to_thread(self.classifier, np.stack([pixels for pixels, _ in waiting]))
            except Exception as error:  # of these requests, not of the server
                for _, future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for row, (_, future) in enumerate(waiting):
                if future.done():  # its client is gone
                    continue
                try:
                    future.set_result(found.describe(row))
                except InputError as error:
                    future.set_exception(error)


@contextlib.asynccontextmanager
async def loaded(app: FastAPI) -> AsyncIterator[None]:
    """The model is read once, before the first request."""
    if "RDC_MODEL" not in os.environ:
        raise RuntimeError("RDC_MODEL: expected the path of a file by `rdc export`; it is not set")
    app.state.batches = Batches(OnnxClassifier(os.environ["RDC_MODEL"], threads=THREADS))
    worker = asyncio.create_task(app.state.batches.run())
    yield
    worker.cancel()


app = FastAPI(title="rdc", lifespan=loaded)


class LimitedBody:
    """Refuses a body of more than ``MOST_BYTES``, by what it says of itself or as soon as it is that long."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        told = dict(scope.get("headers") or ()).get(b"content-length", b"")
        if told.isdigit() and int(told) > MOST_BYTES:
            answer = JSONResponse({"error": _too_long()}, 413, headers={"Connection": "close"})
            return await answer(scope, receive, send)
        taken = 0

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MOST_BYTES:
                raise HTTPException(413, _too_long())
            return message

        return await self.app(scope, counted, send)


def _too_long() -> str:
    return f"a request has at most {MOST_BYTES:,} bytes"


app.add_middleware(LimitedBody)


@app.exception_handler(AnyHTTPException)
async def refused(request: Request, error: AnyHTTPException) -> JSONResponse:
    """All errors are JSON with one key."""
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


@app.exception_handler(RequestValidationError)
async def not_understood(request: Request, error: RequestValidationError) -> JSONResponse:
    """The form lacks what it should have."""
    return JSONResponse({"error": "expected a form (multipart/form-data) with one picture in the field `file`"}, 422)


@app.exception_handler(Exception)
async def failed(request: Request, error: Exception) -> JSONResponse:
    """A fault of the model or of this program; the log has the traceback, the client does not."""
    return JSONResponse({"error": "the classifier failed"}, 500)


@app.get("/health")
async def health() -> dict[str, Any]:
    """That it works, and what it serves."""
    model: OnnxClassifier = app.state.batches.classifier
    return {
        "status": "ok",
        "runs_on": model.provider,
        "image_shape": model.image_shape,
        "classes": model.class_names,
        "calibrated": model.properties.get("calibrated"),
        "card": model.card,
    }


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, Any]:
    """One PNG or JPEG file; the answer is that of ``rdc predict``."""
    batches: Batches = app.state.batches
    image = await asyncio.to_thread(_picture, await file.read(), batches.classifier.image_shape)
    answer = await batches.answer(image.pixels)
    more = {
        "notices": image.notices,
        "unlike": image.unlike,
        "calibrated": batches.classifier.properties.get("calibrated"),
    }
    return answer | more


def _picture(content: bytes, shape: tuple[int, int, int]) -> ImageFile:
    """The picture, of the model's size; refused before it is unpacked where it is too large."""
    try:
        with contextlib.suppress(OSError), Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise HTTPException(
                    413, f"a picture has at most {MOST_PIXELS:,} pixels; this has {opened.width} x {opened.height}"
                )
        return image_of(content, "upload", shape)
    except Image.DecompressionBombError:
        raise HTTPException(413, f"a picture has at most {MOST_PIXELS:,} pixels") from None
    except InputError as error:
        raise HTTPException(400, str(error)) from error
