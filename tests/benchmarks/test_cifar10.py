"""benchmarks.studies.cifar10 from end to end without a GPU (--dry-run), its pack and its shards; nothing of it was run on a GPU."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.studies.cifar10 import __main__ as cifar10
from benchmarks.studies.cifar10 import pack as cifar10_pack
from benchmarks.studies.cifar10 import parts as cifar10_parts
from benchmarks.studies.cifar10 import shards as cifar10_shards
from rdc.data import load_dataset
from rdc.errors import CheckpointError, DataError
from rdc.models.checkpoints import load_model, save_model
from rdc.networks.presets import NETWORK_PRESETS, build_network, network_preset
from rdc.training import exporter

ROOT = Path(__file__).resolve().parents[2]


def records(count, seed):
    """A smooth picture and noise by turns, labels 0..9: uint8 [count, 3073]."""
    random = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(32), np.arange(32))[None] * random.uniform(0, 3, (3 * count, 1, 1))
    pixels = ramp.reshape(count, 3, 32, 32) + random.normal(0, 4, (count, 3, 32, 32))
    pixels[::2] = random.integers(0, 256, (len(pixels[::2]), 3, 32, 32))  # wraps around: every difference occurs
    made = np.empty((count, 3073), np.uint8)
    made[:, 0], made[:, 1:] = np.arange(count) % 10, pixels.clip(0, 255).astype(np.uint8).reshape(count, -1)
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """CIFAR-10's binary version with 12 images a training file and 20 test images."""
    folder = tmp_path_factory.mktemp("cifar10")
    (folder / "cifar-10-batches-bin").mkdir()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        content = records(20 if name == "test_batch" else 12, number).tobytes()
        (folder / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(content)
    return folder


@pytest.fixture
def small(monkeypatch):
    """A tiny network under the dry run's name, and no sample pictures."""
    preset = copy.deepcopy(NETWORK_PRESETS["small-32"])
    preset["unet"] |= {"model_channels": 8, "channel_mult": [1, 1]}
    monkeypatch.setitem(NETWORK_PRESETS, "small-32", preset)
    monkeypatch.setattr(exporter.Exporter, "samples", lambda *_: None)


def start(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["cifar10.py", *map(str, words)])
    try:
        status = cifar10.main()
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    return status, printed.out + printed.err


# --- pack -----------------------------------------------------------------------------------------------------------
def test_the_code_is_lossless_and_small():
    made = records(40, 3)
    assert np.array_equal(cifar10_pack.decode(cifar10_pack.encode(made), 40), made)
    extreme = np.zeros((4, 3073), np.uint8)
    extreme[1::2, 1:] = 255
    extreme[2:, 1::2] = 255
    assert np.array_equal(cifar10_pack.decode(cifar10_pack.encode(extreme), 4), extreme)
    smooth = made[1::2]
    assert len(cifar10_pack.encode(smooth)) < 0.75 * smooth.nbytes


def test_pack_and_unpack_in_two_calls(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cifar10_pack, "CHUNK", 5)
    data = ["--dry-run", "--data-root", root, "--pack", tmp_path / "pack"]
    status, printed = start(monkeypatch, capsys, *data, "--only", "pack", "--part-mib", "0.2")
    parts = sorted((tmp_path / "pack").iterdir())
    assert status == 0 and len(parts) == 2 and all(path.stat().st_size <= 0.2 * 2**20 for path in parts), printed
    for turn, part in enumerate(reversed(parts)):  # in any order
        words = ["--dry-run", "--only", "unpack", "--pack", part, "--data-root", tmp_path / "there"]
        status, printed = start(monkeypatch, capsys, *words)
        assert status == 0 and ("still to come" in printed, "complete" in printed) == (turn == 0, turn == 1)
    for path in (root / "cifar-10-batches-bin").iterdir():
        assert (tmp_path / "there" / "cifar-10-batches-bin" / path.name).read_bytes() == path.read_bytes()


def test_damaged_and_foreign_parts_are_refused(root, tmp_path):
    (part,) = cifar10_pack.pack(root, tmp_path / "a", 2, verify=False)
    content = bytearray(part.read_bytes())
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(part) as archive, zipfile.ZipFile(bad, "w") as other:
        for name in archive.namelist():
            payload = bytearray(archive.read(name))
            if name == "data_batch_2-0":
                payload[len(payload) // 2] ^= 1
            other.writestr(name, bytes(payload))
    with pytest.raises(DataError, match="data_batch_2-0 is damaged|cannot be unpacked"):
        cifar10_pack.unpack([bad], tmp_path / "x")
    assert not (tmp_path / "x" / "cifar-10-batches-bin").exists()
    bad.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="expected a part written by --only pack"):
        cifar10_pack.unpack([bad], tmp_path / "y")
    cifar10_pack.unpack([part], tmp_path / "z")
    with zipfile.ZipFile(bad, "w") as other, zipfile.ZipFile(part) as archive:
        other.writestr("manifest.json", archive.read("manifest.json").replace(b'"parts": 1', b'"parts": 3'))
    with pytest.raises(DataError, match="part of another pack"):
        cifar10_pack.unpack([bad], tmp_path / "z")
    with pytest.raises(DataError, match="part: expected at least"):
        cifar10_pack.pack(root, tmp_path / "a", 0.06, verify=False)


# --- shards ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def model(small, tmp_path):
    config = network_preset("small-32", 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(config)
    return save_model(tmp_path / "run" / "model", network, config, {"noise": [0.1, 0.9]}).parent / "model"


def test_shards_come_back_together(model, tmp_path):
    out = tmp_path / "out"
    paths = cifar10_shards.write_shards(model, out, "teacher", 0.1, history=[{"images": 7}])
    assert len(paths) > 1 and all(path.stat().st_size < 0.1 * 2**20 for path in paths)
    assert cifar10_shards.read_shards(out, "teacher", tmp_path / "back") == {
        "noise": [0.1, 0.9],
        "history": [{"images": 7}],
    }
    (network, config, _), (again, same, _) = load_model(model), load_model(tmp_path / "back")
    assert config == same
    for (name, p), q in zip(network.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.half().float(), q), name
    (one,) = cifar10_shards.write_shards(model, out, "teacher")  # fewer files than before: the old ones go
    assert sorted(out.iterdir()) == [one]


def test_shards_of_two_checkpoints_are_refused(model, tmp_path):
    paths = cifar10_shards.write_shards(model, tmp_path / "out", "student", 0.1)
    kept = paths[0].read_bytes()
    paths[0].unlink()
    with pytest.raises(CheckpointError, match="missing or damaged"):
        cifar10_shards.read_shards(tmp_path / "out", "student", tmp_path / "back")
    cifar10_shards.write_shards(model, tmp_path / "out", "student", 0.1, history=[1])
    paths[0].write_bytes(kept)
    with pytest.raises(CheckpointError, match="files of 2 checkpoints"):
        cifar10_shards.read_shards(tmp_path / "out", "student", tmp_path / "back")
    with pytest.raises(CheckpointError, match="got none"):
        cifar10_shards.read_shards(tmp_path / "out", "teacher", tmp_path / "back")
    with pytest.raises(CheckpointError, match="alone has"):
        cifar10_shards.write_shards(model, tmp_path / "out", "student", 0.064)


# --- the parts ------------------------------------------------------------------------------------------------------
def test_everything_and_then_on_from_what_came_back(root, small, tmp_path, monkeypatch, capsys):
    first = ["--dry-run", "--data-root", root, "--out", tmp_path / "out", "--work", tmp_path / "work"]
    status, printed = start(monkeypatch, capsys, *first, "--only", f"{cifar10.DEFAULT},student")
    assert status == 0, printed
    found = json.loads((tmp_path / "out" / "cifar10.json").read_text())
    assert (
        list(found["parts"]) == ["teacher", "student", *cifar10.DEFAULT.split(",")[1:]]
        and "NOT YET RUN ON A GPU" in found["label"]
    )
    assert found["label"] in printed and printed.strip().splitlines()[-1].lstrip().startswith("attack")
    back = {path.name for path in (tmp_path / "out").iterdir()}
    assert back == {"cifar10.json", "files.zip", "teacher-1-of-1.safetensors", "student-1-of-1.safetensors"}
    runs = found["parts"]["evaluate"]["runs"] | found["parts"]["attack"]["runs"]
    assert {name: row["report"]["n"] for name, row in runs.items()} == {"clean": 4, "linf": 2, "l2": 2}
    assert [a["name"] for a in runs["linf"]["report"]["attacks"]] == ["apgd-ce", "apgd-t"]
    assert runs["l2"]["report"]["attacks"][0]["norm"] == "l2"
    assert runs["clean"]["report"]["classifier"]["levels"]["count"] == len(found["parts"]["levels"]["levels"]["sigma"])
    assert found["parts"]["robust"]["last_row"]["robust_first_order"] >= 0

    more = ["--dry-run", "--data-root", root, "--resume", tmp_path / "out", "--out", tmp_path / "second"]
    status, printed = start(monkeypatch, capsys, *more, "--work", tmp_path / "other", "--only", "teacher,robust")
    assert status == 0, printed
    info = cifar10_shards.read_shards(tmp_path / "second", "teacher", tmp_path / "back")
    assert [row["images"] for row in info["history"]] == [16, 16]
    info = cifar10_shards.read_shards(tmp_path / "second", "student", tmp_path / "back")
    assert [row["part"] for row in info["history"]] == ["student", "robust", "robust"]
    second = json.loads((tmp_path / "second" / "cifar10.json").read_text())
    assert second["parts"]["teacher"]["recipe"]["init"] == str(tmp_path / "other" / "resumed" / "teacher")
    assert len(second["resumed"]["student"]) == 2


def test_students_see_what_the_teacher_drew(root, small, tmp_path, monkeypatch, capsys):
    words = ["--dry-run", "--data-root", root, "--out", tmp_path / "out", "--work", tmp_path / "work"]
    status, printed = start(
        monkeypatch, capsys, *words, "--only", "teacher,draw,robust", "--words", "draw=--images 11 --seed 3"
    )
    parts = json.loads((tmp_path / "out" / "cifar10.json").read_text())["parts"]
    assert status == 0 and "11 images" in parts["draw"]["line"], printed
    assert parts["robust"]["recipe"]["extra_share"] == 0.7 and "extra_data" not in parts["teacher"]["recipe"]
    said = json.loads((tmp_path / "work" / "robust" / "model.json").read_text())["info"]["extra_data"]
    assert said["images"] == 11 and said["name"] == str(tmp_path / "work" / "drawn")


def test_going_on_from_the_shipped_student_needs_no_teacher(root, small, tmp_path, monkeypatch, capsys):
    words = ["--dry-run", "--data-root", root, "--only", "robust", "--words", "robust=--batch-size 2 --images 2"]
    status, printed = start(
        monkeypatch, capsys, *words, "--resume", "cifar10", "--out", tmp_path, "--work", tmp_path / "work"
    )
    assert status == 0, printed
    found = json.loads((tmp_path / "cifar10.json").read_text())
    recipe = found["parts"]["robust"]["recipe"]
    assert recipe["init"] and "teacher" not in recipe and recipe["train"]["images"] == 2
    info = cifar10_shards.read_shards(tmp_path, "student", tmp_path / "back")
    assert len(info["history"]) > 1 and info["history"][-1]["images"] == 2
    status, printed = start(monkeypatch, capsys, *words, "--resume", "fashion-mnist-trades", "--work", tmp_path / "no")
    assert status == 2 and "expected a student" in printed


def test_a_part_that_fails_keeps_the_others(root, small, tmp_path, monkeypatch, capsys):
    words = ["--dry-run", "--data-root", root, "--out", tmp_path / "out", "--work", tmp_path / "work"]
    status, printed = start(
        monkeypatch, capsys, *words, "--only", "teacher,student", "--words", "student=--classes-per-image 99"
    )
    assert status == 1 and "student" in printed and "FAILED" in printed
    assert (tmp_path / "out" / "teacher-1-of-1.safetensors").exists()
    status, printed = start(monkeypatch, capsys, *words, "--only", "levels")
    assert status == 1 and "expected a student in" in printed and "--resume" in printed


def test_speed(small, tmp_path, monkeypatch, capsys):
    status, printed = start(monkeypatch, capsys, "--dry-run", "--only", "speed", "--out", tmp_path)
    rows = json.loads((tmp_path / "cifar10.json").read_text())["parts"]["speed"]["rows"]
    assert status == 0 and [row["step"] for row in rows] == ["teacher", "robust"], printed
    assert all(row["images_per_second"] > 0 for row in rows)


def test_wrong_use(tmp_path, monkeypatch, capsys):
    for words, text in (
        (["--dry-run", "--only", "teacher,dance"], "got 'dance'"),
        (["--dry-run", "--box", "teacher=long"], "expected PART=MINUTES"),
        (["--dry-run", "--words", "levels=--x"], 'expected "PART=OPTIONS"'),
        (["--dry-run", "--minutes", "-1"], "--minutes: expected a positive number"),
        (["--dry-run", "--resume", tmp_path], "expected the --out folder of an earlier run"),
    ):
        status, printed = start(monkeypatch, capsys, *words)
        assert status == 2 and text in printed, printed
    status, printed = start(monkeypatch, capsys, "--dry-run", "--only", "pack", "--data-root", tmp_path / "nowhere")
    assert status == 1 and "CIFAR-10, test split" in printed  # the loader's own words
    status, printed = start(
        monkeypatch, capsys, "--only", "pack", "--data-root", tmp_path / "nowhere", "--work", tmp_path
    )
    assert status == 1 and "CIFAR-10, test split" in printed  # needs no GPU
    status, printed = start(monkeypatch, capsys, "--dry-run", "--only", "teacher", "--minutes", "0.01")
    assert status == 0 and "left out: no time left" in printed
    if not torch.cuda.is_available():
        status, printed = start(monkeypatch, capsys, "--only", "teacher")
        assert status == 2 and "expected a CUDA device" in printed


def test_list_and_boxes(monkeypatch, capsys):
    status, printed = start(monkeypatch, capsys, "--list")
    assert status == 0 and [line.split()[0] for line in printed.splitlines()] == list(cifar10_parts.PARTS)
    assert sum(cifar10_parts.BOXES[name] for name in cifar10.DEFAULT.split(",")) == pytest.approx(8.6)


@pytest.mark.slow
def test_a_killed_part_keeps_what_was_done(root, tmp_path):
    """Real processes: the training is stopped by its box, this script by SIGTERM; both leave shards to go on from."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [
        sys.executable,
        "-m",
        "benchmarks.studies.cifar10",
        "--dry-run",
        "--processes",
        "--data-root",
        str(root),
    ]
    words += ["--only", "teacher", "--words", "teacher=--images 400000 --checkpoint-seconds 1"]
    words += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    child = subprocess.Popen(words, env=environment, cwd=tmp_path)
    shard = tmp_path / "out" / "teacher-1-of-1.safetensors"
    end = time.monotonic() + 120
    while not shard.exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert shard.exists()
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 130
    info = cifar10_shards.read_shards(tmp_path / "out", "teacher", tmp_path / "back")
    assert info["images"] > 0 and json.loads((tmp_path / "out" / "cifar10.json").read_text())["interrupted"]
    before = info["images"]
    done = subprocess.run(
        [*words, "--box", "teacher=0.3"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "status out of time" in done.stdout, done.stdout + done.stderr
    info = cifar10_shards.read_shards(tmp_path / "out", "teacher", tmp_path / "back")
    assert info["images"] > before  # it went on from its own state


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ((0, "1,000 images", True, "done"), "1,000 images"),
        (("out of time", "1,000 images", True, "stopped"), "status out of time; 1,000 images"),
        (("out of time", "", True, "stopped"), "status out of time; saved before the first row of its log"),
        (("out of time", "", False, "stopped"), "FAILED: stopped"),
        ((2, "", True, "no such file"), "FAILED: no such file"),
    ],
)
def test_a_training_ended_by_its_box_has_not_failed(case, line):
    from benchmarks.studies.cifar10.parts import _line

    assert _line(*case) == line


def test_nothing_of_the_data_is_in_git():
    """The default folders are ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for path in ("runs/cifar10-pack/cifar10-part-1-of-2.zip", "out/teacher-1-of-2.safetensors"):
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0


def test_the_unpacked_files_load(root):
    assert len(load_dataset("cifar10", "test", root, verify=False)) == 20


def test_a_stopped_evaluation_counts_its_finished_batches(tmp_path):
    """Two batches were closed, a third was cut short; without a report its images do not count."""
    rows = [{"clean": {"right": right}, "robust": robust} for right, robust in ((1, True), (1, False), (0, False))]
    close = {"end_of_batch": 0, "images": 3}
    lines = [*rows, close, *rows, close | {"end_of_batch": 1}, rows[0], rows[0]]  # and half a line
    assert cifar10_parts._figures(tmp_path) == {}
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"clean": {"ri')
    assert cifar10_parts._figures(tmp_path) == {"line": "33.3 % of the first 6 (stopped)", "finished": 6}
    (tmp_path / "results.jsonl").write_text(json.dumps(rows[0] | {"robust": None}) + "\n" + json.dumps(close) + "\n")
    assert cifar10_parts._figures(tmp_path)["line"].startswith("100.0 % of the first 1")
