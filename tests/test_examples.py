"""The scripts of examples/ run as they stand, each in a process of its own."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rdc.cli import _parser

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    path for path in (ROOT / "examples").glob("*.py") if path.name != "wong_kolter.py"
)  # needs a file of others


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs(script, tmp_path):
    if script.stem == "export_and_predict":
        pytest.importorskip("onnxruntime")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
    assert done.stdout.strip()


def test_there_are_five():
    assert len(SCRIPTS) == 5


FAKE = {
    "rdc": 'echo "$@" > rdc.words; trap "exit 143" TERM; [ -f slow ] && { touch begun; sleep 20 & wait $!; }; exit 0',
    "scontrol": 'echo "$@" > scontrol.words',
}


@pytest.mark.parametrize("stopped", [False, True])
def test_a_slurm_task_does_its_part_and_asks_to_go_on(tmp_path, stopped):
    """With commands that stand for rdc and Slurm's own: Slurm was not at hand."""
    for name, body in FAKE.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    if stopped:
        (tmp_path / "slow").touch()
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "16", "SLURM_ARRAY_JOB_ID": "77"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    script = ROOT / "examples" / "slurm_array.sh"
    task = subprocess.Popen(["bash", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    if stopped:
        deadline = time.monotonic() + 30
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        task.send_signal(signal.SIGUSR1)
    said = task.communicate(timeout=60)[0]
    assert task.returncode == 0 and ("queued again" in said) == stopped
    words = (tmp_path / "rdc.words").read_text().split()
    assert words[0] == "evaluate" and words[words.index("--shard") + 1] == "3/16" and words[-1] == "runs/cifar10/part-3"
    assert (tmp_path / "scontrol.words").exists() == stopped
    if stopped:
        assert (tmp_path / "scontrol.words").read_text() == "requeue 77_3\n"
    args = _parser("evaluate", importlib.import_module("rdc.cli.evaluate"))[0].parse_args(words)
    assert args.shard == "3/16"  # every option of it is one of rdc's
