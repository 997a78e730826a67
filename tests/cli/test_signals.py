"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is kept is said, nothing half-written is left, the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from rdc.cli import main
from rdc.cli.stopping import stopping_signals
from rdc.data import Dataset, save_npz
from tests.cli.conftest import ROOT, commands

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

#: runs commands; during the k-th fsync of each, in the middle of writing a file, the signal comes
INTERRUPTED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[2])
from rdc.cli import main
real, left = os.fsync, [0]
def fsync(file):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), number)
    return real(file)
os.fsync = fsync
answers = {}
for name, (words, k, number) in json.loads(bytes.fromhex(sys.argv[1]).decode()).items():
    left[0] = k
    print("BEGIN", name, file=sys.stderr, flush=True)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    answers[name] = main(words)
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
print(json.dumps(answers))
"""


@pytest.fixture(autouse=True)
def heard():
    """SIGHUP and SIGINT reach the commands, also where the tests themselves run under nohup or behind a shell's ``&``."""
    before = [signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)]
    yield
    for number, handler in zip((signal.SIGHUP, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


def child(program, *arguments, cwd=None, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *program, *arguments],
        env={**environment, **options}, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def long_commands(place, tmp_path):
    """Name -> (words, at which fsync the signal comes, which signal, what is said)."""
    words = commands(place)
    model, data = str(place / "tiny"), str(place / "blobs.npz")
    out = {name: str(tmp_path / name) for name in ("run", "gradients", "train", "distill")}
    quick = [
        "--data",
        data,
        "--images",
        "24",
        "--batch-size",
        "8",
        "--quiet",
        "--checkpoint-seconds",
        "0",
        "--device",
        "cpu",
        "--noise-std",
        "1",
    ]
    evaluate = [*words["run"][:-2], "--batch", "2", "--quiet", "--out", out["run"]]
    gradients = [*words["gradients"][:-2], "--quiet", "--out", out["gradients"]]
    distill = ["distill", "--init", model, "--classes-per-image", "0", "--posterior-weight", "1", *quick]
    images = Dataset(
        torch.arange(8).reshape(8, 1, 1, 1).expand(8, 1, 28, 28).byte(), torch.arange(8) % 2, ("a", "b"), "b", "train"
    )
    save_npz(images, tmp_path / "28.npz")
    train = ["train", *quick[:-2], "--data", str(tmp_path / "28.npz"), "--method", "standard"]
    term, hup, interrupt = signal.SIGTERM, signal.SIGHUP, signal.SIGINT
    again, saved = "run the same command", "the state is saved"
    return {
        "evaluate": (evaluate, 5, term, "2 of 4 images are finished and kept in "),
        "evaluate, at once": (evaluate[:-1] + [out["run"] + "-2"], 1, hup, "No batch is finished yet; to continue, "),
        "gradients": (gradients, 2, term, "0 of 1 models are finished and kept in "),
        "export": (["export", model, str(tmp_path / "x.onnx"), "--no-check", "--quiet"], 1, term, again),
        "convert": (["convert", str(place / "weights.safetensors"), str(tmp_path / "made")], 1, term, again),
        "convert, later": (
            ["convert", str(place / "weights.safetensors"), str(tmp_path / "made")],
            2,
            interrupt,
            again,
        ),
        "distill": ([*distill, "--out", out["distill"]], 4, hup, saved),
        "train": ([*train, "--out", out["train"]], 4, term, saved),
    }


def test_long_commands(place, tmp_path, long_commands):
    asked = {name: (words, k, int(number)) for name, (words, k, number, _) in long_commands.items()}
    process = child(["-c", INTERRUPTED], json.dumps(asked).encode().hex(), str(ROOT), cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    said = {part.partition("\n")[0].strip(): part.partition("\n")[2] for part in err.split("BEGIN")[1:]}
    for name, (_, _, number, text) in long_commands.items():
        assert text in said[name] and "Traceback" not in said[name], (name, said, out)
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        assert f"rdc: interrupted{by}. " in said[name] or text == "the state is saved"
    assert json.loads(out.splitlines()[-1]) == {name: 128 + row[2] for name, row in long_commands.items()}
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    for words, *_ in long_commands.values():
        assert main(words) == 0


def test_a_signal_from_outside(place, tmp_path):
    """`rdc evaluate` as a process of its own, stopped when a batch is finished."""
    words = [*commands(place)["run"][:-2], "--batch", "1", "--n", "40", "--steps", "100", "--out", "run"]
    process = child(["-m", "rdc"], *words, cwd=tmp_path)
    results = tmp_path / "run" / "results.jsonl"
    deadline = time.monotonic() + 120
    while not (results.exists() and results.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and out == "" and "Traceback" not in err
    *_, last, command = err.splitlines()
    assert "rdc: interrupted by SIGTERM. " in last and " kept in run; to continue, run the same command again:" in last
    assert command.startswith("  rdc evaluate --model $'") and command.endswith("--steps 100 --out run")


STUBBORN = """
import os, signal, sys
from rdc.cli.stopping import stopping_signals
with stopping_signals() as stop:
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        print("not stopped")
    except KeyboardInterrupt:
        print(stop.name, stop.status, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""


@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [({}, -signal.SIGTERM, "SIGHUP 129\n"), ({"TORCHELASTIC_RUN_ID": "1"}, 0, "SIGHUP 129\nstill here\n")],
)
def test_a_second_signal(environment, status, words):
    """It ends the process at once; torchrun repeats signals and kills by itself."""
    process = child(["-c", STUBBORN], **environment)
    assert process.communicate(timeout=60) == (words, "") and process.returncode == status


def test_ignored_signals_stay_ignored():
    """nohup."""
    process = child(["-c", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + STUBBORN])
    assert process.communicate(timeout=60)[0] == "not stopped\n" and process.returncode


def test_a_callers_handler_stays(monkeypatch):
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with stopping_signals():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_outside_the_main_thread(capsys):
    found = []
    thread = threading.Thread(target=lambda: found.append(main(["--version"])))
    thread.start()
    thread.join()
    assert found == [0] and capsys.readouterr().out.startswith("rdc ")
