"""examples/fastapi_server: the app in a process of its own on a free port, asked over HTTP; what its container would hold."""

import asyncio
import io
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdc.export import export_onnx
from rdc.models.zoo import load
from rdc.runtime import OnnxClassifier
from tests.evaluation_models import grey, save_tiny
from tests.tolerances import ONNX_PARITY

FOLDER = Path(__file__).resolve().parents[1] / "examples/fastapi_server"
MOST_BYTES, MOST_PIXELS = 300_000, 90_000
CONCURRENT = 200
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'

httpx = pytest.importorskip("httpx")
for name in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(name)


def png(array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels, all there, none but zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes(side // 8 + 1)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, the classifier of the same file) of a server that runs while this module's tests do."""
    folder = tmp_path_factory.mktemp("server")
    path, log = folder / "tiny.onnx", folder / "log"
    export_onnx(load(save_tiny(folder)[0], logit_scale=0.02), path, check=False, info={"licence": "CC0"})
    limits = {"RDC_MOST_BYTES": str(MOST_BYTES), "RDC_MOST_PIXELS": str(MOST_PIXELS), "RDC_THREADS": "1"}
    root = os.pathsep.join([str(FOLDER.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | limits | {"RDC_MODEL": str(path), "PYTHONPATH": root}
    words = ["uvicorn", "--app-dir", str(FOLDER), "--port", "0", "app:app"]  # 0: a free one
    with open(log, "wb") as file:
        child = subprocess.Popen([sys.executable, "-m", *words], env=environment, stdout=file, stderr=file)
    try:
        begun = time.monotonic()
        while not (found := re.search(r"running on (http://[\d.:]+)", log.read_text())):
            assert child.poll() is None and time.monotonic() - begun < 120, log.read_text()
            time.sleep(0.1)
        yield found[1], OnnxClassifier(path, threads=1)
    finally:
        child.terminate()
        child.wait(30)
    assert "Traceback" not in log.read_text()


@pytest.fixture
def client(served):
    with httpx.Client(base_url=served[0], timeout=60) as client:
        yield client


def close(answer, expected):
    """The same answer, but for the order of sums in a batch of another size."""
    numbers = [found.pop(key) for key in ("confidence", "log_likelihood") for found in (answer, expected)]
    shares, others = answer.pop("probabilities"), expected.pop("probabilities")
    assert answer == expected and shares.keys() == others.keys()
    assert np.allclose(numbers[0::2], numbers[1::2], rtol=ONNX_PARITY)
    assert np.allclose([shares[k] for k in others], list(others.values()), rtol=ONNX_PARITY)


def test_health(client, served):
    found = client.get("/health").json()
    assert found["status"] == "ok" and found["classes"] == list(served[1].class_names)
    assert found["image_shape"] == [1, 8, 8] and found["card"]["licence"] == "CC0"


def test_a_picture_gets_the_answer_of_rdc_predict(client, served):
    array = grey((8, 8), seed=3)
    for content, notices in ((png(array), []), (png(np.stack([array] * 3, 2)), [])):
        found = client.post("/predict", files={"file": ("x.png", content, "image/png")})
        assert found.status_code == 200
        expected = {"notices": notices, "unlike": [], "calibrated": True}
        close(found.json(), served[1](array).describe(0) | expected)
    large = client.post("/predict", files={"file": png(np.kron(array, np.ones((9, 9), np.uint8)))}).json()
    assert "resized" in large["notices"][0] and "size" in large["unlike"][0]


def test_two_hundred_at_once(served):
    """Each gets its own picture's answer, whatever was classified beside it; bad ones among them disturb nobody."""
    address, classifier = served
    arrays = [grey((8, 8), seed=seed) for seed in range(CONCURRENT)]
    expected = classifier(np.stack(arrays)[:, None])

    async def ask():
        limits = httpx.Limits(max_connections=CONCURRENT)
        async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
            good = [client.post("/predict", files={"file": png(array)}) for array in arrays]
            bad = [client.post("/predict", files={"file": b"no picture"}) for _ in range(20)]
            return await asyncio.gather(*good, *bad)

    found = asyncio.run(ask())
    assert [answer.status_code for answer in found] == [200] * CONCURRENT + [400] * 20
    for row, answer in enumerate(found[:CONCURRENT]):
        close(answer.json(), expected.describe(row) | {"notices": [], "unlike": [], "calibrated": True})


BAD = {
    "not an image": ({"files": {"file": b"hello"}}, 400, "not a PNG or JPEG file"),
    "an image of another format": ({"files": {"file": b"GIF89a" + bytes(100)}}, 400, "not a PNG or JPEG file"),
    "cut short": ({"files": {"file": png(grey((8, 8)))[:60]}}, 400, "cannot be read"),
    "empty": ({"files": {"file": b""}}, 400, "not a PNG or JPEG file"),
    "too large": ({"files": {"file": bytes(MOST_BYTES)}}, 413, "at most 300,000 bytes"),
    "too large, not told": ({"content": [PART, *[bytes(1000)] * 400]}, 413, "at most 300,000 bytes"),
    "too many pixels": ({"files": {"file": png(np.zeros((301, 301), np.uint8))}}, 413, "at most 90,000 pixels"),
    "a bomb": ({"files": {"file": bomb(20_000)}}, 413, "pixels"),
    "wrong field": ({"files": {"image": png(grey((8, 8)))}}, 422, "the field `file`"),
    "no form": ({"json": {"file": "x"}}, 422, "the field `file`"),
    "a text field": ({"data": {"file": "x"}}, 422, "the field `file`"),
    "nothing": ({}, 422, "the field `file`"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused(name, client):
    request, status, words = BAD[name]
    headers = {"Content-Type": "multipart/form-data; boundary=x"} if "content" in request else {}
    answer = client.post("/predict", **request, headers=headers)
    assert answer.status_code == status and words in answer.json()["error"] and set(answer.json()) == {"error"}
    assert client.get("/health").status_code == 200


def test_other_addresses_and_methods(client):
    assert client.get("/nothing").json() == {"error": "Not Found"} and client.get("/nothing").status_code == 404
    assert client.get("/predict").status_code == 405 and "error" in client.get("/predict").json()


def test_the_container_has_what_the_app_imports():
    """Its requirements are the imports of the app, and each has its version in constraints.txt."""
    wanted = set((FOLDER / "requirements.txt").read_text().split())
    assert wanted == {"numpy", "onnxruntime", "pillow", "fastapi", "uvicorn", "python-multipart"}
    pinned = {line.split("==")[0] for line in (FOLDER.parents[1] / "constraints.txt").read_text().splitlines()}
    assert wanted <= pinned
    lines = (FOLDER / "Dockerfile").read_text()
    copied = re.findall(r"examples/fastapi_server/[\w.]+", "\n".join(re.findall("^COPY .*", lines, re.MULTILINE)))
    assert copied and all((FOLDER.parents[1] / name).is_file() for name in copied)
    assert "USER 10001" in lines and "torch" not in wanted
    program = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, sys.argv[1]); import app; print(app.app.title)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(FOLDER)], capture_output=True, text=True)
    assert done.stdout == "rdc\n", done.stderr
