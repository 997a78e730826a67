"""Three processes of one evaluation that share batches through a store; one of them is killed, the first or another."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from torch.distributed import TCPStore

from rdc.cli import main
from tests.evaluation_models import save_tiny

WORDS = [
    "--n",
    "40",
    "--batch",
    "2",
    "--steps",
    "6",
    "--attacks",
    "apgd-ce",
    "--threads",
    "1",
    "--sanity",
    "2",
    "--quiet",
]
SILENT = "2"  # seconds after which a process that gives no sign counts as dead


def plain(report):
    if isinstance(report, dict):
        dropped = ("seconds", "command", "arrays", "crc", "commit")
        return {key: plain(value) for key, value in report.items() if key not in dropped}
    return [plain(item) for item in report] if isinstance(report, list) else report


def started(words, out, port, rank, logs):
    """A worker, as torchrun starts it on a store that outlives it."""
    environment = {
        **os.environ, "RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        "RDC_SILENT_SECONDS": SILENT, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    log = open(logs / f"{rank}.log", "w")
    command = [sys.executable, "-m", "rdc", *words, "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def closed(out):
    return sum(file.read_text().count('"end_of_batch"') for file in out.glob("**/results*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 2])
def test_the_report_is_complete_and_that_of_one_process(tmp_path, killed):
    model, data = save_tiny(tmp_path)
    words = ["evaluate", "--model", model, "--data", data, *WORDS, "--threats", "linf:4/255,linf:8/255"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    out = tmp_path / "three"
    workers = [started(words, out, port, rank, tmp_path) for rank in range(3)]
    try:
        deadline = time.monotonic() + 300
        while closed(out) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(workers[killed].pid, signal.SIGKILL)
        finished = closed(out)
        assert finished < 40  # of twenty batches of each threat: it was at work
        codes = [worker.wait(300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    del store
    logs = "\n".join((tmp_path / f"{rank}.log").read_text() for rank in range(3))
    assert codes == [-signal.SIGKILL if rank == killed else 0 for rank in range(3)], logs
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    one, three = tmp_path / "one", out
    for name in ("", "linf-4-255/", "linf-8-255/"):
        reports = [json.loads((folder / f"{name}report.json").read_text()) for folder in (one, three)]
        assert plain(reports[0]) == plain(reports[1])
    assert (one / "results.jsonl").read_bytes() == (three / "results.jsonl").read_bytes()
    for file in one.glob("*/batches/*.npz"):
        mine, theirs = np.load(file), np.load(three / file.relative_to(one))
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine.files)
    assert not list(three.glob("*/results.*-of-*"))
