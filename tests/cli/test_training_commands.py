"""``rdc train``, ``rdc distill`` and ``rdc sample`` from the command line to their files."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tolerances import COMPILED_LOSS, COMPILED_RISE, FEW_SMALL_STEPS, FEW_TINY_STEPS

pytest.importorskip("matplotlib")

from rdc.cli import main
from rdc.data import Dataset, load_dataset, save_npz
from rdc.models.checkpoints import load_model
from rdc.networks.heads import MultiHeadUNet
from rdc.training.drawn import DrawnFolder
from rdc.training.trainer import Trainer

FAST = ["--images", "48", "--batch-size", "8", "--warmup-images", "16", "--quiet", "--device", "cpu", "--threads", "1"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images, 28 x 28, of two classes: bright above or bright below."""
    labels = torch.arange(20) % 2
    pixels = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        pixels[row, :, 14 * label : 14 * label + 14] = 120 + 5 * row
    path = tmp_path_factory.mktemp("data") / "halves.npz"
    save_npz(Dataset(pixels, labels, ("above", "below"), "halves", "train"), path)
    return path


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    noise = ["--noise-mean", "-0.1", "--noise-std", "0.9", "--holdout", "4"]
    assert main(["train", "--data", str(data), "--out", str(out), *noise, *FAST]) == 0
    return out


def expect_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG" and len(set(picture.convert("L").tobytes())) > 10


def test_train_leaves_a_model_and_pictures(teacher: Path) -> None:
    names = {"model.safetensors", "model.json", "state.safetensors", "log.jsonl", "loss.png", "samples.png"}
    assert names <= {path.name for path in teacher.iterdir()}
    expect_picture(teacher / "loss.png")
    expect_picture(teacher / "samples.png")
    network, config, info = load_model(teacher)
    assert (config["kind"], config["num_classes"], config["image_shape"]) == ("conditional", 2, [1, 28, 28])
    assert info["class_names"] == ["above", "below"] and info["noise"] == [-0.1, 0.9] and info["images"] == 48
    from safetensors.torch import load_file

    state = load_file(teacher / "state.safetensors")
    for name, p in network.named_parameters():
        assert torch.equal(p, state[f"ema.{name}"])  # the averages, not the last weights
    assert json.loads((teacher / "config.json").read_text())["data"]["images"] == 16  # 20 but for the hold-out


def test_a_finished_run_is_left_as_it_is(teacher: Path, data: Path) -> None:
    before = (teacher / "model.safetensors").read_bytes()
    (teacher / "model.json").unlink()  # as if killed between the state and the model
    noise = ["--noise-mean", "-0.1", "--noise-std", "0.9", "--holdout", "4"]
    assert main(["train", "--data", str(data), "--out", str(teacher), *noise, *FAST]) == 0
    assert (teacher / "model.safetensors").read_bytes() == before
    load_model(teacher)


def test_other_data_or_settings_are_refused(teacher: Path, data: Path, tmp_path: Path, capsys) -> None:
    assert main(["train", "--data", str(data), "--out", str(teacher), *FAST]) == 2
    error = capsys.readouterr().err
    assert "noise: [-0.1, 0.9] there, [-1.2, 1.2] here" in error and "holdout: 4 there, 0 here" in error
    assert "data.crc32" in error and error.count("\n") == 1


def test_interrupt_saves_and_says_how_to_continue(
    data: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def interrupted(self: Trainer) -> dict:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    command = ["train", "--data", str(data), "--out", str(tmp_path / "run"), *FAST]
    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert main(command) == 130
    error = capsys.readouterr().err
    assert "stopped by SIGINT after step 3; the state is saved" in error
    assert re.search("[Tt]o continue|run the same command", error)
    assert load_model(tmp_path / "run")[2]["step"] == 3
    monkeypatch.setattr(Trainer, "train_step", step)
    assert main(command) == 0
    assert load_model(tmp_path / "run")[2]["step"] == 6


def test_train_can_start_from_another_model(teacher: Path, data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "sharper"
    terms = ["--posterior-weight", "0.5", "--wrong-classes", "1", "--lr", "1e-6"]
    assert main(["train", "--data", str(data), "--out", str(out), "--init", str(teacher), *terms, *FAST]) == 0
    network, _, info = load_model(out)
    assert info["posterior"] == {"posterior_weight": 0.5, "wrong_classes": 1, "posterior_scale": 2.0}
    taught = dict(load_model(teacher)[0].named_parameters())
    for name, p in network.named_parameters():
        torch.testing.assert_close(p, taught[name], rtol=0, atol=FEW_SMALL_STEPS)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"loss", "denoising", "posterior", "hits"} <= set(rows[-1])
    student = tmp_path / "student"
    command = ["distill", "--teacher", str(teacher), "--data", str(data), "--out", str(student), "--wide-channels", "8"]
    assert main([*command, *FAST]) == 0
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "no"), "--init", str(student), *FAST]) == 2
    assert "expected a model of the same network; it differs in kind, wide_channels" in capsys.readouterr().err


def test_distill_starts_from_the_teacher(teacher: Path, data: Path, tmp_path: Path) -> None:
    small = ["--wide-channels", "16", "--classes-per-image", "2", "--lr", "1e-6"]
    out = tmp_path / "student"
    command = ["distill", "--teacher", str(teacher), "--data", str(data), "--out", str(out), *small, *FAST]
    assert main(command) == 0
    student, config, info = load_model(out)
    assert isinstance(student, MultiHeadUNet) and config["kind"] == "multihead"
    assert info["noise"] == [-0.1, 0.9]  # the teacher's
    taught = dict(load_model(teacher)[0].named_parameters())
    for name, p in student.unet.named_parameters():
        torch.testing.assert_close(p, taught[f"unet.{name}"], rtol=0, atol=FEW_SMALL_STEPS)
    expect_picture(out / "samples.png")
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"loss", "distilled", "differences"} <= set(rows[-1])


def test_distill_can_start_from_another_student(teacher: Path, data: Path, tmp_path: Path, capsys) -> None:
    command = ["distill", "--teacher", str(teacher), "--data", str(data), *FAST]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*command, "--out", str(first), "--wide-channels", "8", "--lr", "1e-3"]) == 0
    again = ["--init", str(first), "--classes-per-image", "0", "--posterior-weight", "1", "--lr", "1e-7"]
    assert main([*command, "--out", str(second), "--wide-channels", "8", *again]) == 0
    begun = dict(load_model(first)[0].named_parameters())
    taught = dict(load_model(teacher)[0].named_parameters())
    network, _, info = load_model(second)
    assert len(info["init"]) == 8
    for name, p in network.named_parameters():
        torch.testing.assert_close(p, begun[name], rtol=0, atol=FEW_TINY_STEPS)
    assert any(not torch.equal(p, taught[f"unet.{name}"]) for name, p in network.unet.named_parameters())
    assert main([*command, "--out", str(tmp_path / "no"), "--wide-channels", "16", "--init", str(first)]) == 2
    assert "it differs in wide_channels" in capsys.readouterr().err


def test_distill_goes_on_without_a_teacher(teacher: Path, data: Path, tmp_path: Path, capsys) -> None:
    first = tmp_path / "first"
    command = ["distill", "--data", str(data), *FAST]
    assert main([*command, "--teacher", str(teacher), "--wide-channels", "8", "--out", str(first)]) == 0
    alone = [*command, "--posterior-weight", "1", "--lr", "1e-3", "--out"]
    labels = ["--classes-per-image", "0", "--init", str(first)]
    assert main([*alone, str(tmp_path / "on"), *labels]) == 0
    network, _, info = load_model(tmp_path / "on")
    before = dict(load_model(first)[0].named_parameters())
    assert "teacher" not in info and len(info["init"]) == 8
    moved = [name for name, p in network.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > 0.9 * len(before)  # trained, not frozen as a teacher would be
    for words in (["--init", str(first)], ["--classes-per-image", "0"]):
        assert main([*alone, str(tmp_path / "no"), *words]) == 2
        assert "it may be left out with --init STUDENT and --classes-per-image 0" in capsys.readouterr().err
    assert main([*alone, str(tmp_path / "no"), "--classes-per-image", "0", "--init", str(teacher)]) == 2
    assert "expected a student (kind multihead)" in capsys.readouterr().err


def test_augmentation_adds_a_label_and_goes_on_from_networks_without(teacher: Path, data: Path, tmp_path: Path, capsys):
    """Twice over: a model with the label is one to go on from as well, with --augment or without."""
    told, more = tmp_path / "told", tmp_path / "more"
    train = ["train", "--data", str(data), *FAST, "--augment", "0.5"]
    assert main([*train, "--init", str(teacher), "--lr", "1e-3", "--out", str(told)]) == 0
    network, config, info = load_model(told)
    assert info["augment"] == 0.5 and config["unet"]["augment_dim"] == 9
    assert network.unet.map_augment.weight.any()
    assert main([*train, "--init", str(told), "--out", str(more)]) == 0
    student, again = tmp_path / "student", tmp_path / "again"
    distil = ["distill", "--data", str(data), *FAST, "--posterior-weight", "1", "--classes-per-image", "0"]
    assert main([*distil, "--teacher", str(teacher), "--wide-channels", "8", "--out", str(student)]) == 0
    assert main([*distil, "--init", str(student), "--augment", "0.5", "--lr", "1e-3", "--out", str(again)]) == 0
    made, config, info = load_model(again)
    assert (info["augment"], config["unet"]["augment_dim"]) == (0.5, 9) and made.unet.map_augment.weight.any()
    assert main([*distil, "--init", str(again), "--out", str(tmp_path / "without")]) == 0
    wrong = ["--teacher", str(teacher), "--augment", "0.1", "--classes-per-image", "2"]
    assert main([*distil, *wrong, "--out", str(tmp_path / "no")]) == 2
    assert "expected --classes-per-image 0 with it" in capsys.readouterr().err
    assert main([*train, "--method", "standard", "--out", str(tmp_path / "no")]) == 2
    assert "--augment: has no meaning for --method standard" in capsys.readouterr().err


def test_distill_trains_on_the_first_order_worst_case(teacher: Path, data: Path, tmp_path: Path, capsys) -> None:
    command = ["distill", "--teacher", str(teacher), "--data", str(data), "--wide-channels", "8", "--lr", "1e-4", *FAST]
    command += ["--classes-per-image", "0", "--posterior-weight", "1", "--margin-eps", "8/255"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert {"posterior", "hits", "robust_first_order", "rise"} <= set(rows[-1]) and rows[-1]["rise"] > 0
    terms = load_model(tmp_path / "out")[2]["distillation"]
    assert terms["margin_eps"] == 8 / 255 and terms["margin_norm"] == "linf"
    assert main([*command, "--out", str(tmp_path / "no"), "--compile"]) == 2
    assert "expected no --compile with it" in capsys.readouterr().err


def test_a_secant_step_compiles(teacher: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    """Traced as by torch.compile (without its code generation): backward runs twice through the first pass."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setenv("RDC_DISABLE_NATIVE", "1")  # compiled code runs PyTorch's operators, which round in another way
    monkeypatch.setattr("rdc.training.exporter.Exporter.samples", lambda *_: None)
    command = ["distill", "--teacher", str(teacher), "--data", str(data), "--wide-channels", "8", "--lr", "1e-4", *FAST]
    command += ["--classes-per-image", "0", "--posterior-weight", "1", "--secant-eps", "8/255"]
    rows = []
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        assert main([*command, *more, "--out", str(tmp_path / name)]) == 0
        rows.append([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()])
    for plain, compiled in zip(*rows, strict=True):
        assert compiled["loss"] == pytest.approx(plain["loss"], rel=COMPILED_LOSS)
        assert compiled["rise"] == pytest.approx(plain["rise"], rel=COMPILED_RISE)


def test_distill_trains_by_differences(teacher: Path, data: Path, tmp_path: Path, capsys) -> None:
    command = ["distill", "--teacher", str(teacher), "--data", str(data), "--wide-channels", "8", "--lr", "1e-4", *FAST]
    command += ["--classes-per-image", "0", "--posterior-weight", "1", "--secant-eps", "8/255"]
    options = ["--secant-norm", "l2", "--secant-low", "0.3", "--secant-high", "0.8", "--secant-share", "0.25"]
    assert main([*command, *options, "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["rise"] > 0 and 0 <= rows[-1]["robust_first_order"] <= 1
    terms = load_model(tmp_path / "out")[2]["distillation"]
    assert terms["secant"] == {"eps": 8 / 255, "norm": "l2", "low": 0.3, "high": 0.8, "share": 0.25}
    scale = 80 / math.prod(load_model(tmp_path / "out")[1]["image_shape"])
    assert terms["posterior_scale"] == scale  # the number that was taken, where none was given
    assert f"posterior_scale = {scale!r}" in (tmp_path / "out" / "recipe.toml").read_text()
    assert main([*command, *options, "--secant-steps", "2", "--out", str(tmp_path / "two")]) == 0
    assert load_model(tmp_path / "two")[2]["distillation"]["secant"]["steps"] == 2
    assert main([*command, "--out", str(tmp_path / "no"), "--margin-eps", "8/255"]) == 2
    assert "expected at most one of them" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "no"), "--secant-low", "2"]) == 2
    assert "secant_range: expected 0 < low" in capsys.readouterr().err


def test_a_drawn_data_set_is_trained_on(teacher: Path, data: Path, tmp_path: Path, capsys) -> None:
    drawn = tmp_path / "drawn"
    command = [
        "sample",
        str(teacher),
        "--images",
        "10",
        "--out",
        str(drawn),
        "--steps",
        "2",
        "--batch",
        "4",
        "--json",
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out) == {"folder": str(drawn), "images": 10, "model": str(teacher), "steps": 2, "seed": 0}
    files = {file.name: file.read_bytes() for file in drawn.glob("*.npz")}
    assert files and main(command) == 0
    assert "already complete, 10 of 10 images" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in drawn.glob("*.npz")} == files
    loaded = load_dataset(str(drawn), "train")
    assert loaded.class_names == ("above", "below") and loaded.labels.bincount().tolist() == [5, 5]
    assert loaded.image_shape == (1, 28, 28) and len(loaded.images.unique()) > 20
    more = ["--extra-data", str(drawn), "--extra-share", "0.25", "--no-calibrate"]
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *more, *FAST]) == 0
    said = load_model(tmp_path / "run")[2]["extra_data"]
    assert (said["name"], said["images"], said["share"]) == (str(drawn), 10, 0.25)
    recipe = tmp_path / "run" / "recipe.toml"
    assert 'extra_data = "' in recipe.read_text() and "extra_share = 0.25" in recipe.read_text()
    assert main(["train", "--config", str(recipe), "--out", str(tmp_path / "again"), "--quiet", "--device", "cpu"]) == 0
    again, first = (load_model(tmp_path / name)[0].state_dict() for name in ("again", "run"))
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_an_interrupted_drawing_says_what_is_kept(
    teacher: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, parts = DrawnFolder.append, []

    def interrupted(self: DrawnFolder, part: Dataset) -> None:
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(part)
        append(self, part)

    out = tmp_path / "drawn"
    command = [
        "sample",
        str(teacher),
        "--images",
        "30",
        "--out",
        str(out),
        "--steps",
        "1",
        "--batch",
        "1",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(DrawnFolder, "append", interrupted)
    assert main([*command, "--overwrite"]) == 130
    error = capsys.readouterr().err
    assert f"20 of 30 images are kept in {out}; to continue" in error and "--overwrite" not in error
    monkeypatch.setattr(DrawnFolder, "append", append)
    assert main([*command, "--quiet"]) == 0
    assert len(load_dataset(str(out), "train")) == 30


def test_a_judge_of_drawn_images_is_any_model(teacher: Path, tmp_path: Path, capsys) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text(
        "import torch\nmake = lambda: lambda x: torch.stack([x.mean((1, 2, 3)) * 0 + 3, x.mean((1, 2, 3)) * 0], 1)\n"
    )
    command = ["sample", str(teacher), "--steps", "1", "--quiet", "--device", "cpu"]
    mine = [*command, "--batch", "8", "--judge", f"{judge}:make", "--out", str(tmp_path / "chosen")]
    assert main([*mine, "--images", "1"]) == 0  # one of the first class, which this judge names always
    assert main([*mine, "--images", "2"]) == 2
    assert re.search(r"class 1: the judge kept 0 of 2\d\d candidates", capsys.readouterr().err)
    assert load_dataset(str(tmp_path / "chosen"), "train").labels.tolist() == [0]
    assert main([*command, "--judge", "cifar10", "--images", "2", "--out", str(tmp_path / "other")]) == 2
    assert "--judge cifar10: expected a classifier of images [1, 28, 28]" in capsys.readouterr().err
    for wrong, words in (
        (["--judge-above", "0.5"], "--judge-above: goes with --images"),
        (["--images", "2", "--judge-above", "0.5"], "--judge-above: goes with --judge"),
        (["--images", "2", "--per-class", "2"], "--images and --per-class: expected one of the two"),
        (["--overwrite"], "--overwrite: goes with --images"),
        (["--images", "2", "--judge", f"{judge}:make", "--judge-above", "1"], "at least 0 and below 1; got 1.0"),
    ):
        assert main([*command, *wrong, "--out", str(tmp_path / "wrong")]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "wrong").exists()


def test_sample_draws_the_asked_for_grid(teacher: Path, tmp_path: Path) -> None:
    def grid(name: str, *options: str) -> bytes:
        command = ["sample", str(teacher), "--out", str(tmp_path / name), "--per-class", "2", "--steps", "3", "--quiet"]
        assert main([*command, *options]) == 0
        return (tmp_path / name).read_bytes()

    assert grid("a.png") == grid("b.png") == grid("c.png", "--seed", "0") != grid("d.png", "--seed", "1")
    expect_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["train", "--network", "huge"], "network preset: expected one of tiny, small, .*small-28.*; got 'huge'"),
        (
            ["train", "--network", "small-32"],
            "images of 3x32x32.*1 x 28 x 28.*: choose --network tiny, small, medium or large, which take any size$",
        ),
        (["train", "--network", "none.toml"], "none.toml: no such file"),
        (["train", "--network", "vit-small-28"], "--method diffusion trains a diffusion network such as small-28"),
        (["train", "--method", "hybvit", "--network", "resnet-small-28"], "trains a transformer such as vit-small-28"),
        (["train", "--method", "trades", "--network", "small-28"], "trains a classifier such as resnet-small-28"),
        (["train", "--device", "tpu"], "device: expected auto, cpu, cuda, cuda:N or mps; got 'tpu'"),
        (["train", "--threads", "0"], "--threads"),
        (["train", "--images", "3"], "images: expected at least batch_size"),
        (["train", "--holdout", "-1"], "--holdout: expected 0 or more"),
        (["train", "--noise-std", "0"], "noise: expected"),
        (["distill", "--teacher", "nowhere"], "nowhere"),
        (["distill"], "--teacher"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    command: list[str], expected: str, data: Path, tmp_path: Path, capsys
) -> None:
    assert main([*command, "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert re.search(expected, error) and error.count("\n") == 1, error
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_distill_refuses_a_teacher_of_other_data(teacher: Path, tmp_path: Path, capsys) -> None:
    labels = torch.arange(6) % 3
    pixels = torch.zeros(6, 1, 28, 28, dtype=torch.uint8)
    save_npz(Dataset(pixels, labels, ("a", "b", "c"), "three", "train"), tmp_path / "three.npz")
    command = [
        "distill",
        "--teacher",
        str(teacher),
        "--data",
        str(tmp_path / "three.npz"),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*command, *FAST]) == 2
    assert "expected data of 2 classes" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [10**15, -7, 10**40])
def test_any_integer_is_a_seed_of_samples(teacher: Path, tmp_path: Path, seed: int) -> None:
    command = ["sample", str(teacher), "--per-class", "1", "--steps", "1", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "a.png"), "--seed", str(seed)]) == 0
    expect_picture(tmp_path / "a.png")


@pytest.mark.parametrize("command", ["train", "distill", "sample"])
def test_help_has_examples(command: str, capsys) -> None:
    assert main([command, "--help"]) == 0
    assert f"examples:\n  rdc {command} " in capsys.readouterr().out


def test_minutes_in_place_of_images(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan is measured, recorded, and kept by the next start; the run ends in time."""
    words = ["--batch-size", "4", "--quiet", "--device", "cpu", "--threads", "1", "--warmup-images", "8"]
    command = ["train", "--data", str(data), "--out", str(tmp_path / "run"), *words, "--minutes"]
    begun = time.monotonic()
    assert main([*command, "0.1"]) == 0
    assert time.monotonic() - begun < 60  # 6 seconds and the samples, on a busy machine
    plan = json.loads((tmp_path / "run" / "config.json").read_text())["train"]["images"]
    done = load_model(tmp_path / "run")[2]["images"]
    assert 4 <= done <= plan < 10**6
    capsys.readouterr()
    assert main([*command, "0.2"]) == 0  # finished, or went on to the end of the same plan
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["images"] == plan
    assert main([*command, "nan"]) == 2 and "minutes: expected a positive number" in capsys.readouterr().err


def test_a_student_of_moved_images(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--shift is recorded and belongs to the run; the memory format does not."""
    command = ["distill", "--teacher", str(teacher), "--data", str(data), "--out", str(tmp_path), *FAST, "--flip"]
    assert main([*command, "--shift", "2"]) == 0
    assert load_model(tmp_path)[2]["shift"] == 2
    assert main([*command, "--shift", "2", "--memory-format", "contiguous"]) == 0  # finished: nothing to do
    capsys.readouterr()
    assert main(command) == 2 and "shift: 2 there, None here" in capsys.readouterr().err
