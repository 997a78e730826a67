"""Certifications in folders: killed and continued to the same bytes, shared out, damaged, and the command line around them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

import rdc.certification.run as certification_run
from rdc.certification import CertificationSettings, certify
from rdc.certification.records import AttackedImage, CertifiedImage, Identity, RunRecord
from rdc.certification.report import markdown, summarize
from rdc.cli import main
from rdc.data import load_dataset
from rdc.errors import ConfigError, DataError
from rdc.execution import processes
from rdc.execution.peers import Peers
from rdc.models.zoo import load
from tests.evaluation_models import save_tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(folder, path of a tiny multi-head model, path of its data)."""
    folder = tmp_path_factory.mktemp("certify")
    return folder, *save_tiny(folder)


def command(place, out, *more):
    _, model, data = place
    few = ["--n-images", "6", "--n0", "5", "--n", "40", "--alpha", "0.05", "--batch", "7", "--noised-levels", "2"]
    return [
        "certify",
        "--model",
        model,
        "--data",
        data,
        "--sigma",
        "0.4",
        *few,
        "--device",
        "cpu",
        "--out",
        str(out),
        *more,
    ]


def whole(place, name, *more):
    out = place[0] / name
    assert main(command(place, out, "--quiet", *more)) == 0
    return out


def test_a_run_says_what_it_did(place, capsys):
    out = whole(
        place, "one", "--attack-radii", "0.1,0.3", "--attack-steps", "2", "--attack-draws", "2", "--attack-votes", "20"
    )
    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["n0"] == 5 and report["settings"]["n"] == 40 and report["settings"]["alpha"] == 0.05
    assert report["base"]["method"] == "epndc" and len(report["base"]["sigma"]) == 2
    assert [row["radius"] for row in report["attacked"]] == [0.1, 0.3]
    assert report["network_evaluations"] == 6 * 45 * 2
    assert (out / "report.md").read_text() == printed == markdown(report)
    assert "alpha = 0.05" in printed and (out / "certified.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == list(range(6)) and all(sum(line["votes"]) == 40 for line in lines)
    right = [line for line in lines if line["right"]]
    assert (
        report["certified"][0]["images"]
        == len(right)
        == sum(line["selected"] == line["label"] and not line["abstained"] for line in lines)
    )
    assert report["abstained"] + report["wrong"] + len(right) == 6


def test_python_gives_the_same(place):
    out = whole(place, "two")
    _, model, data = place
    dataset = load_dataset(data)
    settings = CertificationSettings(
        model, data, n_images=6, n0=5, n=40, alpha=0.05, sigma=0.4, batch=40, noised_levels=2
    )
    found = certify(load(model), dataset, settings, place[0] / "three", progress=False)
    assert (place[0] / "three" / "results.jsonl").read_bytes() == (out / "results.jsonl").read_bytes()
    assert [image.image for image in found.images] == list(range(6)) and found.report["n"] == 6


def test_killed_and_continued_to_the_same_bytes(place):
    expected = whole(place, "all-at-once", "--n", "400", "--batch", "4")
    out = place[0] / "killed"
    words = command(place, out, "--n", "400", "--batch", "4", "--quiet")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "rdc", *words], env=environment, cwd=place[0], stdout=subprocess.DEVNULL
    )
    for _ in range(30_000):
        lines = (out / "results.jsonl").read_bytes().count(b"\n") if (out / "results.jsonl").exists() else 0
        if lines or child.poll() is not None:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and 0 < lines < 6
    with open(out / "results.jsonl", "ab") as file:
        file.write(b'{"image": 3, "lab')  # what a killed write may leave
    assert main(words) == 0
    for name in ("results.jsonl", "certified.png"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()
    keys = ("certified", "images", "base", "network_evaluations")
    reports = [json.loads((folder / "report.json").read_text()) for folder in (out, expected)]
    assert all(reports[0][key] == reports[1][key] for key in keys)


def test_a_share_of_another_process_is_merged(place):
    expected = whole(place, "alone")
    out = whole(place, "shared")
    lines = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    (out / "results.jsonl").unlink()
    (out / "results.1-of-2.jsonl").write_bytes(b"".join([*lines[1::2], lines[0][:-5]]))
    assert main(command(place, out, "--quiet")) == 0
    assert not (out / "results.1-of-2.jsonl").exists()
    assert (out / "results.jsonl").read_bytes() == (expected / "results.jsonl").read_bytes()


class Shared:
    """Two threads in place of two processes, each with its own peers on one store."""

    def __init__(self, monkeypatch, silent=30.0):
        self.here, store = threading.local(), HashStore()
        self.peers = [Peers(store, rank, 2, silent) for rank in range(2)]
        monkeypatch.setattr(processes, "peers", self.mine)
        monkeypatch.setattr(certification_run, "peers", self.mine)
        monkeypatch.setattr(certification_run, "is_first_process", lambda: self.mine().is_first)

    def mine(self):
        return self.peers[self.here.rank]

    def run(self, *works):
        """One work for each thread; what each returned, or raised."""
        found = {}

        def work(rank):
            self.here.rank = rank
            try:
                found[rank] = works[rank]()
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        for one in self.peers:
            one.close()
        return found


def small(place):
    _, model, data = place
    return CertificationSettings(model, data, n_images=6, n0=5, n=40, alpha=0.05, sigma=0.4, batch=7, noised_levels=2)


def test_two_shares_at_once(place, monkeypatch):
    """The slow one does one image while the other does all the rest: nothing is shared out beforehand."""
    expected, out = whole(place, "all-shares"), place[0] / "two-shares"
    shared, done, waiting = Shared(monkeypatch), [[], []], threading.Event()
    certified = certification_run._certified

    def watched(votes, images, row, position, settings):
        rank = shared.here.rank
        done[rank].append(position)
        if rank == 0:  # it waits until the other has nothing more to take
            assert waiting.wait(60)
        else:
            while not done[0]:
                time.sleep(0.01)
            if len(done[1]) == 5:
                waiting.set()
        return certified(votes, images, row, position, settings)

    monkeypatch.setattr(certification_run, "_certified", watched)
    _, model, data = place
    counted = []

    def work():
        more = {"progress": False, "on_image": lambda finished, every: counted.append((finished, every))}
        return certify(load(model), load_dataset(data), small(place), out, **more)

    found = shared.run(work, work)
    assert found[0].images == found[1].images and len(found[0].images) == 6, found
    assert len(done[0]) == 1 and sorted(done[0] + done[1]) == list(range(6))
    assert sorted(counted) == [(count, 6) for count in range(1, 7)]
    assert (out / "results.jsonl").read_bytes() == (expected / "results.jsonl").read_bytes()
    assert not list(out.glob("results.*-of-*"))


@pytest.mark.parametrize("dead", [0, 1])
def test_the_images_of_a_dead_process_are_done_by_the_other(place, monkeypatch, dead):
    """It takes an image and gives no sign any more; the first one's place, too, is taken."""
    expected, out = whole(place, f"all-{dead}"), place[0] / f"one-left-{dead}"
    shared, certified = Shared(monkeypatch, silent=1.5), certification_run._certified

    def dying(votes, images, row, position, settings):
        if shared.here.rank == dead:
            shared.mine().close()
            raise SystemError("killed")
        return certified(votes, images, row, position, settings)

    monkeypatch.setattr(certification_run, "_certified", dying)
    _, model, data = place
    found = shared.run(*[lambda: certify(load(model), load_dataset(data), small(place), out, progress=False)] * 2)
    assert isinstance(found[dead], SystemError) and len(found[1 - dead].images) == 6, found
    for name in ("results.jsonl", "report.md", "certified.png"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()
    assert not list(out.glob("results.*-of-*"))


@pytest.mark.slow
def test_two_processes(place):
    expected, out = whole(place, "one-process"), place[0] / "two-processes"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "rdc"]
    subprocess.run([*start, *command(place, out, "--quiet")], env=environment, cwd=place[0], check=True, timeout=600)
    assert (out / "results.jsonl").read_bytes() == (expected / "results.jsonl").read_bytes()


def test_damage_and_other_settings_are_told(place, capsys):
    out = whole(place, "damaged")
    results = out / "results.jsonl"
    before = results.read_bytes()
    results.write_bytes(before.replace(b'"label": ', b'"label":  ', 1))
    capsys.readouterr()
    assert main(command(place, out, "--quiet")) == 2
    assert "line 1 is damaged" in (said := capsys.readouterr().err) and said.count("\n") == 1
    results.write_bytes(before)
    assert main(command(place, out, "--quiet", "--seed", "1")) == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err and results.read_bytes() == before
    assert main(command(place, out, "--quiet", "--seed", "1", "--overwrite")) == 0
    assert results.read_bytes() != before


def test_folders_of_others(place, tmp_path):
    (tmp_path / "run.json").write_text('{"identity": {}}')
    _, model, data = place
    settings = CertificationSettings(model, data, n_images=2)
    with pytest.raises(ConfigError, match="none of rdc certify"):
        certify(load(model), load_dataset(data), settings, tmp_path, progress=False)
    (tmp_path / "run.json").write_text('{"identity"')
    with pytest.raises(DataError, match="damaged"):
        certify(load(model), load_dataset(data), settings, tmp_path, progress=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", "4"], "n: expected at least as many votes as select a class, n >= n0 = 5; got 4"),
        (["--alpha", "0"], "alpha: expected a number above 0 and below 1"),
        (["--alpha", "1.5"], "alpha: expected a number above 0 and below 1"),
        (["--sigma", "7"], "s_tau = 14 in [-1, 1], and the model's levels go from 0.5 to 3"),
        (["--sigma", "0.01"], "s_tau = 0.02"),
        (["--method", "dc"], "method: expected epndc or apndc or plain"),
        (["--lm", "paper-v2"], "without likelihood maximisation"),
        (["--attack-radii", "a,b"], "attack_radii: expected numbers separated by commas"),
        (["--attack-radii", "1,0.5"], "attack_radii: expected at most 100 rising numbers"),
        (["--n-images", "41"], "has 40 images; expected n_images <= 40"),
        (["--n-images", "x"], "expected an integer, or all"),
    ],
)
def test_bad_commands_end_in_one_line(place, tmp_path, capsys, words, message):
    assert main(command(place, tmp_path / "out", *words)) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_model_that_does_not_denoise(place, tmp_path, capsys, monkeypatch):
    (tmp_path / "a_stranger.py").write_text("def make():\n    return lambda x: x.flatten(1)[:, :4]\n")
    monkeypatch.chdir(tmp_path)
    _, _, data = place
    words = [
        "certify",
        "--model",
        "a_stranger:make",
        "--data",
        data,
        "--n-images",
        "2",
        "--n",
        "100",
        "--device",
        "cpu",
    ]
    assert main([*words, "--out", "a", "--quiet"]) == 2
    assert "method epndc: expected a diffusion classifier" in capsys.readouterr().err
    assert main([*words, "--out", "a", "--quiet", "--method", "plain"]) == 0


def test_an_attack_below_the_certificate_is_flagged():
    """Made-up records: image 1 is certified to 0.4 and has demonstrably lost at 0.25; image 0 has not."""

    def image(number, votes_for_selected):
        lost = votes_for_selected < 50
        attack = AttackedImage(0.25, 0.25, int(lost), votes_for_selected, 100, not lost)
        return CertifiedImage(number, 0, 0, (100, 0), 0.95, 0.4, False, True, 100, (attack,))

    identity = Identity(
        1, {**CertificationSettings("m", "d").to_json(), "method": "plain"}, {}, "", "", "cpu", torch.__version__
    )
    run = RunRecord(identity, "python", (None,), {})
    fine = summarize(run, [image(0, 90), image(1, 60)], 1.0)
    assert fine["attacked"][0]["images"] == fine["attacked"][0]["certified"] == 2 and fine["flags"] == []
    close = summarize(run, [image(0, 90), image(1, 45)], 1.0)
    assert [flag["severity"] for flag in close["flags"]] == ["warning"] and close["attacked"][0]["below"] == [1]
    broken = summarize(run, [image(0, 90), image(1, 10)], 1.0)
    assert broken["attacked"][0]["contradicted"] == [1]
    assert [flag["name"] for flag in broken["flags"]] == ["attack-below-certificate"]
    assert broken["flags"][0]["severity"] == "error" and "attack-below-certificate" in markdown(broken)
