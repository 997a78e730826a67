"""``--lm-model``: RDC with two networks, through every command that has likelihood maximisation."""

import json

import pytest
import torch
from PIL import Image

from rdc.cli import main
from rdc.data.npz import save_npz
from rdc.models.checkpoints import save_model
from rdc.models.zoo import load
from rdc.networks.presets import build_network
from rdc.provenance.run import weights_digest
from tests.evaluation_models import NAMES, TINY, grey, labelled_by
from tests.tiny_models import randomize

LM = ["--lm", "paper-v2,steps=2", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the conditional models ``trained`` and ``untrained``, the unconditional ``mover`` and ``other``, and data."""
    folder = tmp_path_factory.mktemp("two")
    conditional = {key: value for key, value in TINY.items() if key != "wide_channels"} | {"kind": "conditional"}
    kinds = (("trained", 4, True), ("untrained", 4, False), ("mover", 0, True), ("other", 0, True))
    for seed, (name, classes, trained) in enumerate(kinds):
        config = conditional | {"num_classes": classes}
        with torch.random.fork_rng():
            network = randomize(build_network(config), seed=seed)
        info = {"classifier": {"levels": "log:3:0.5:3:flat"}, "class_names": list(NAMES)} if classes else {}
        info["null_label"] = {"trained": trained, "why": "a test says so"}
        save_model(folder / name, network, config, info)
    save_npz(labelled_by(load(folder / "trained")), folder / "blobs.npz")
    Image.fromarray(grey((8, 8))).save(folder / "image.png")
    return folder


def evaluation(place, out, *more, model="trained"):
    words = [
        "evaluate",
        "--model",
        str(place / model),
        "--data",
        str(place / "blobs.npz"),
        "--n",
        "4",
        "--eps",
        "4/255",
    ]
    words += ["--steps", "2", "--attacks", "apgd-ce", "--sanity", "2", "--out", str(out), "--quiet", *LM]
    return [*words, *more]


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    """(folder of a finished run, what was printed)."""
    out = tmp_path_factory.mktemp("run") / "run"
    arguments = evaluation(
        place, out, "--lm-model", str(place / "mover"), "--noise", "all", "--eot", "2", "--resubmissions", "3"
    )
    assert main(arguments) == 0
    return out, arguments


def test_both_networks_are_in_every_report(place, run, capsys):
    out, arguments = run
    assert main(arguments) == 0  # finished: it prints the same
    printed = capsys.readouterr()
    report = json.loads((out / "report.json").read_text())
    model = load(place / "trained", lm="paper-v2", lm_denoiser=place / "mover")
    digests = {
        "classification": weights_digest(model.denoiser),
        "likelihood maximisation": weights_digest(model.lm_denoiser),
    }
    assert {network["role"]: network["weights"] for network in report["networks"]} == digests
    assert {network["name"] for network in report["networks"]} == {str(place / "trained"), str(place / "mover")}
    assert report["classifier"]["lm_network"] == {"head": "unconditional", "num_classes": 0}
    page, row = (out / "report.html").read_text(), (out / "report.md").read_text()
    for digest in digests.values():
        assert digest in page and digest in row and digest in printed.out
    assert not any("null-label" in flag["name"] for flag in report["flags"])
    assert "warning: likelihood" not in printed.err
    evaluations = json.loads((out / "model_info.json").read_text())["number_forward_passes"]
    assert evaluations == 3 * 4 + 2 == model.with_(lm="paper-v2,steps=2").evaluations_per_image


def test_another_network_is_another_run(place, run, capsys):
    out, arguments = run
    other = [str(place / "other") if word == str(place / "mover") else word for word in arguments]
    assert main(other) == 2
    error = capsys.readouterr().err
    assert "lm_model" in error and "weights" in error
    without = [word for word in arguments if word not in ("--lm-model", str(place / "mover"))]
    assert main(without) == 2


def test_a_folder_of_an_earlier_version_goes_on(place, tmp_path, capsys):
    """It has neither ``networks`` nor ``lm_model``; its weights tell whose it is."""
    from rdc.storage.sealed import read_sealed, write_sealed

    out = tmp_path / "run"
    assert main(evaluation(place, out)) == 0
    content, _ = read_sealed(out / "run.json", advice="")
    del content["identity"]["networks"]
    assert "lm_model" not in content["identity"]["settings"]  # where none was named
    write_sealed(out / "run.json", content)
    before = (out / "report.json").read_text()
    assert main(evaluation(place, out)) == 0
    assert (out / "report.json").read_text() == before


def test_a_null_label_that_was_never_trained_is_flagged_and_said_once(place, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(evaluation(place, out, model="untrained")) == 0
    printed = capsys.readouterr()
    words = f"rdc: warning: classification and likelihood maximisation: the null label of {place / 'untrained'} was never trained"
    assert printed.err.count(words) == 1 and "(a test says so)" in printed.err
    assert "warning: untrained-null-label" in printed.out
    flags = {flag["name"]: flag for flag in json.loads((out / "report.json").read_text())["flags"]}
    assert "a test says so" in flags["untrained-null-label"]["evidence"]
    assert "untrained-null-label" in (out / "report.html").read_text()
    more = ["--lm-model", str(place / "mover")]
    assert main(evaluation(place, tmp_path / "moved", *more, model="untrained")) == 0
    assert "null label" not in capsys.readouterr().err
    assert "untrained-null-label" not in (tmp_path / "moved" / "report.json").read_text()


def test_classify(place, capsys):
    words = ["classify", str(place / "image.png"), "--json", *LM]
    assert main([*words, "--model", str(place / "untrained")]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("was never trained") == 1
    assert main([*words, "--model", str(place / "untrained"), "--lm-model", str(place / "mover")]) == 0
    moved = capsys.readouterr()
    assert moved.err == "" and json.loads(moved.out) != json.loads(printed.out)
    assert main(["classify", str(place / "image.png"), "--model", str(place / "trained"), "--lm-model", "nothing"]) == 2
    assert "lm_denoiser: expected fashion-mnist" in capsys.readouterr().err


def test_gradients(place, tmp_path, capsys):
    words = [
        "gradients",
        "--data",
        str(place / "blobs.npz"),
        "--n",
        "2",
        "--draws",
        "2",
        "--samples",
        "1",
        "--ascent-steps",
        "1",
    ]
    words += [
        "--steps",
        "1",
        "--slices",
        "0",
        "--grid",
        "3",
        "--quiet",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "g"),
    ]
    own, moved = (
        f"{place / 'untrained'}@lm=paper-v2,steps=2",
        f"{place / 'untrained'}@lm=paper-v2,steps=2@lm-model={place / 'mover'}",
    )
    assert main([*words, "--model", f"{own}@label=own", "--model", f"{moved}@label=moved"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("was never trained") == 1 and "null label never trained (a test says so)" in printed.out
    first, second = json.loads((tmp_path / "g" / "gradients.json").read_text())["models"]
    assert "lm_network" in second["classifier"] and "lm_network" not in first["classifier"]
    assert [network["role"] for network in second["classifier"]["networks"]] == [
        "classification",
        "likelihood maximisation",
    ]


def test_certify(place, tmp_path, capsys):
    words = [
        "certify",
        "--data",
        str(place / "blobs.npz"),
        "--n-images",
        "2",
        "--n0",
        "4",
        "--n",
        "8",
        "--sigma",
        "0.5",
        "--quiet",
    ]
    words += ["--device", "cpu", "--model", str(place / "untrained")]
    assert main([*words, "--method", "apndc", "--noised-levels", "1", "--out", str(tmp_path / "apndc")]) == 0
    assert "null-label-in-doubt" in capsys.readouterr().out
    assert main([*words, "--method", "epndc", "--noised-levels", "1", "--out", str(tmp_path / "epndc")]) == 0
    assert "null-label" not in capsys.readouterr().out
    plain = [*words, "--method", "plain", "--lm", "paper-v2,steps=1"]
    assert main([*plain, "--out", str(tmp_path / "plain")]) == 0
    assert "null-label-in-doubt" in capsys.readouterr().out
    assert main([*plain, "--lm-model", str(place / "mover"), "--out", str(tmp_path / "two")]) == 0
    assert "null-label" not in capsys.readouterr().out
    base = json.loads((tmp_path / "two" / "report.json").read_text())["base"]
    assert len(base["networks"]) == 2 and base["passes"] == 3 * 4 + 1


def test_export(place, tmp_path, capsys):
    pytest.importorskip("onnx")
    out = tmp_path / "two.onnx"
    words = [
        "export",
        str(place / "untrained"),
        str(out),
        "--lm",
        "paper-v2,steps=1",
        "--lm-model",
        str(place / "mover"),
        "--json",
    ]
    assert main([*words, "--quiet"]) == 0
    summary = json.loads(capsys.readouterr().out)
    model = load(place / "untrained", lm="paper-v2", lm_denoiser=place / "mover")
    assert summary["weights_bytes"] == 4 * sum(parameter.numel() for parameter in model.parameters())
