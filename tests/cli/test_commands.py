import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rdc.evaluation.run
from rdc.cli import COMMANDS, main
from rdc.data import Dataset
from rdc.data.npz import save_npz
from rdc.models.zoo import load
from tests.evaluation_models import NAMES, grey, save_tiny
from tests.tolerances import FLOAT32_ROUNDING, PROBABILITIES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(--model, --data) of a tiny multi-head model and the images it knows."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def evaluation_of(tiny, out, *more):
    return [
        "evaluate",
        "--model",
        tiny[0],
        "--data",
        tiny[1],
        "--n",
        "40",
        "--eps",
        "4/255",
        "--out",
        str(out),
        "--quiet",
        "--device",
        "cpu",
        *more,
    ]


def process(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# --- the frame ----------------------------------------------------------------------------------------------------


def test_help_lists_commands_and_waits_for_nothing_heavy():
    program = (
        "import sys, rdc.cli; code = rdc.cli.main(['--help']); "
        "heavy = [name for name in ('torch', 'numpy', 'matplotlib', 'PIL') if name in sys.modules]; "
        "sys.exit(f'{code} {heavy}')"
    )
    child = process("-c", program)
    out, error = child.communicate(timeout=60)
    assert error.strip() == "0 []"
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"rdc {command}" in capsys.readouterr().out


def test_version(capsys):
    import rdc

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rdc {rdc.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["evalute"], ["evaluate", "--nn", "3"], ["evaluate", "--n", "three"], ["classify"]]
)
def test_wrong_use(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("rdc: error: ") and error.count("\n") == 1


def test_module_runs():
    child = process("-m", "rdc", "--version", cwd="/")
    assert child.communicate(timeout=60)[0].startswith("rdc ") and child.returncode == 0


def test_defects_are_called_defects(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rdc.evaluation, "evaluate", lambda *arguments, **options: 1 / 0)
    assert main(evaluation_of(tiny, tmp_path)) == 70
    error = capsys.readouterr().err
    assert error.startswith("rdc: bug: ZeroDivisionError: division by zero (rdc/cli/evaluate.py, line ")
    assert error.endswith("; please report it, RDC_DEBUG=1 shows the traceback\n") and error.count("\n") == 1
    monkeypatch.setenv("RDC_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(evaluation_of(tiny, tmp_path))


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("RDC_DEBUG", "1")
    with pytest.raises(ValueError, match="norm"):
        main(["evaluate", "--norm", "l7"])


# --- evaluate -----------------------------------------------------------------------------------------------------


def test_evaluate(tiny, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = evaluation_of(tiny, out, "--steps", "8", "--batch", "16", "--attacks", "apgd-ce,apgd-dlr")
    assert main(arguments) == 0
    printed = capsys.readouterr()
    report = json.loads((out / "report.json").read_text())
    assert report["clean"]["accuracy"] == 0.9 and 0 < report["robust"]["accuracy"] < 0.8
    assert f"{100 * report['robust']['accuracy']:.1f} %" in printed.out and printed.err == ""
    assert report["command"].startswith("rdc evaluate --model") and "--quiet" not in report["command"]
    assert {path.name for path in out.iterdir()} >= {
        "report.html",
        "report.md",
        "model_info.json",
        "results.jsonl",
        "run.json",
        "batches",
    }
    before = (out / "report.json").read_bytes()
    assert main(arguments) == 0 and (out / "report.json").read_bytes() == before  # nothing left to do
    assert main([*arguments, "--seed", "1"]) == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err
    assert (out / "report.json").read_bytes() == before


@pytest.mark.parametrize(("form", "start"), [("json", "{"), ("markdown", "| model")])
def test_evaluate_prints_other_forms(tiny, tmp_path, capsys, form, start):
    assert main(evaluation_of(tiny, tmp_path / "run", "--attacks", "none", "--format", form)) == 0
    out = capsys.readouterr().out
    assert out.startswith(start)
    if form == "json":
        assert json.loads(out)["robust"]["accuracy"] is None


def test_memory_reaches_the_classifier(tiny, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("rdc.method.classifier.memory_budget", lambda mb, device: asked.append(mb) or mb or 2048.0)
    words = [*evaluation_of(tiny, tmp_path / "run"), "--attacks", "none", "--n", "4"]
    assert main([*words, "--memory-mb", "96.5"]) == 0 and set(asked) == {96.5}
    asked.clear()
    assert main(words) == 0 and asked[0] is None  # the same run: nothing is computed again
    capsys.readouterr()
    assert main([*words, "--memory-mb", "0"]) == 2 and "expected a number > 0" in capsys.readouterr().err


def test_levels_and_lm_reach_the_classifier(tiny, tmp_path):
    out = tmp_path / "run"
    more = ["--levels", "log:2:1:2:eps", "--lm", "paper-v2", "--attacks", "pgd", "--steps", "2", "--n", "4"]
    assert main([*evaluation_of(tiny, out), *more, "--precision", "bfloat16"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["classifier"]["precision"] == "bfloat16"
    assert "multi-head, bfloat16" in (out / "report.html").read_text()
    assert report["classifier"]["levels"]["sigma"] == [1.0, 2.0] and report["classifier"]["weighting"] == "eps"
    assert report["classifier"]["lm"]["name"] == "paper-v2" and report["attacks"][0]["name"] == "pgd-ce"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "resnet"], "resnet"),
        (["--data", "imagenet"], "imagenet"),
        (["--attacks", "fub"], "apgd-ce"),
        (["--norm", "l7"], "linf, l2"),
        (["--eps", "8"], "8.0/255"),
        (["--eps", "8/0"], "zero"),
        (["--n", "41"], "has 40 images"),
        (["--n", "0"], "n: expected"),
        (["--levels", "many"], "levels"),
        (["--lm", "paper-v3"], "paper-v3"),
        (["--gradient", "none"], "exact, bpda"),
        (["--noise", "quiet"], "known, fresh"),
        (["--device", "tpu"], "device"),
        (["--split", "validation"], "split"),
        (["--eot", "5"], "eot"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, capsys, more, words):
    assert main([*evaluation_of(tiny, tmp_path / "run"), *more]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("rdc: error: ") and words in printed.err and "Traceback" not in printed.err
    assert printed.err.count("\n") == 1 and printed.out == "" and not (tmp_path / "run").exists()


def test_cuda_where_there_is_none(tiny, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert main([*evaluation_of(tiny, tmp_path / "run"), "--device", "cuda"]) == 2
    assert "0 CUDA devices" in capsys.readouterr().err


def test_interrupt_says_how_to_go_on(tiny, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    arguments = evaluation_of(tiny, out, "--attacks", "none", "--batch", "16")
    real = rdc.evaluation.run.evaluate_batch

    def stop(*parts, **options):
        if parts[5] == 1:
            raise KeyboardInterrupt
        return real(*parts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(rdc.evaluation.run, "evaluate_batch", stop)
        assert main(arguments) == 130
    error = capsys.readouterr().err
    assert "interrupted" in error and "16 of 40" in error and f"--out {out}" in error and "Traceback" not in error
    assert main(arguments) == 0
    assert json.loads((out / "report.json").read_text())["clean"]["accuracy"] == 0.9


def finished_batches(out):
    path = out / "results.jsonl"
    return path.read_bytes().count(b"end_of_batch") if path.exists() else 0


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_kill_and_rerun_give_the_same_report(tiny, tmp_path, monkeypatch, one_thread):
    found = []
    arguments = evaluation_of(tiny, "run", "--steps", "12", "--batch", "4", "--threads", "1")
    for name in ("whole", "killed"):
        out = tmp_path / name / "run"
        out.parent.mkdir()
        if name == "killed":
            child = process("-m", "rdc", *arguments, cwd=out.parent)
            deadline = time.monotonic() + 120
            while finished_batches(out) < 2 and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            child.communicate()
            assert child.returncode == -signal.SIGKILL and 2 <= finished_batches(out) < 10
            assert not (out / "report.json").exists()
        monkeypatch.chdir(out.parent)
        assert main(arguments) == 0
        report = json.loads((out / "report.json").read_text())
        for part in (report, *report["attacks"]):
            del part["seconds"]
        del report["commit"]  # somebody may commit between the two runs
        images = [line for line in (out / "results.jsonl").read_text().splitlines() if "end_of_batch" not in line]
        found.append((report, images, (out / "report.md").read_text()))
    assert found[0] == found[1]
    assert 0 < found[0][0]["robust"]["accuracy"] < 0.9


# --- classify -----------------------------------------------------------------------------------------------------


def classified(capsys, *arguments):
    code = main(["classify", "--json", "--device", "cpu", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, json.loads(printed.out), printed.err


def test_classify_agrees_with_the_classifier(tiny, tmp_path, capsys):
    pixels = grey((3, 8, 8))
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    with torch.no_grad():
        expected = load(tiny[0])(torch.from_numpy(pixels[:, None].astype(np.float32) / 255)).exp()
    code, answers, error = classified(capsys, "--model", tiny[0], *files)
    assert code == 0 and error == ""
    for answer, row in zip(answers, expected, strict=True):
        assert answer["class"] == NAMES[int(row.argmax())] and answer["notices"] == []
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=FLOAT32_ROUNDING)
        assert [answer["probabilities"][name] for name in NAMES] == pytest.approx(row.tolist(), abs=PROBABILITIES)
    assert main(["classify", "--model", tiny[0], *map(str, files)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4 and "confidence" in table[0] and answers[0]["class"] in table[1]


def save(path, array, mode=None, **options):
    (Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)).save(path, **options)
    return path


def test_classify_converts_and_says_so(tiny, tmp_path, capsys):
    image = grey((8, 8))
    plain = save(tmp_path / "plain.png", image)
    colour = np.stack([image, image // 2, 255 - image], 2)
    transparent = np.stack([image, image, image, np.full_like(image, 255)], 2)
    files = {
        "palette.png": ([], {"mode": "P"}),
        "grey-rgb.png": ([], {"mode": "RGB"}),
        "opaque.png": ([], {}),
        "deep.png": (["16 bits reduced to 8"], {}),
        "colour.png": (["colour (RGB) turned to grey"], {}),
        "large.png": (["resized from 24 x 24 to 8 x 8"], {}),
        "wide.png": (["resized from 32 x 16 to 8 x 8, proportions changed"], {}),
    }
    arrays = {"opaque.png": transparent, "deep.png": image.astype(np.uint16) * 257, "colour.png": colour}
    arrays |= {"large.png": image.repeat(3, 0).repeat(3, 1), "wide.png": image.repeat(2, 0).repeat(4, 1)}
    paths = [save(tmp_path / name, arrays.get(name, image), **options) for name, (_, options) in files.items()]
    code, answers, _ = classified(capsys, "--model", tiny[0], plain, *paths)
    assert code == 0
    for answer, (notices, _) in zip(answers[1:], files.values(), strict=True):
        assert answer["notices"] == notices
    for answer in answers[2:5]:  # grey-rgb.png, opaque.png and deep.png hold the same grey levels as plain.png
        assert answer["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=PROBABILITIES)
    code, answers, error = classified(
        capsys, "--model", tiny[0], "--strict", plain, tmp_path / "large.png", tmp_path / "colour.png"
    )
    assert (
        code == 1 and "class" in answers[0] and "--strict" in answers[1]["error"] and "--strict" in answers[2]["error"]
    )


def test_classify_transparency_lies_on_black(tiny, tmp_path, capsys):
    clear = np.full((8, 8, 4), 255, np.uint8)
    clear[:, 4:, 3] = 0
    black = np.full((8, 8), 255, np.uint8)
    black[:, 4:] = 0
    code, answers, _ = classified(
        capsys, "--model", tiny[0], save(tmp_path / "a.png", clear), save(tmp_path / "b.png", black)
    )
    assert answers[0]["notices"] == ["transparent parts shown on black"] and code == 0
    assert answers[0]["probabilities"] == pytest.approx(answers[1]["probabilities"], abs=FLOAT32_ROUNDING)


def test_classify_inverts(tiny, tmp_path, capsys):
    image = grey((8, 8)) // 4
    one, other = save(tmp_path / "a.png", image), save(tmp_path / "b.png", 255 - image)
    _, plain, _ = classified(capsys, "--model", tiny[0], one, other)
    _, inverted, _ = classified(capsys, "--model", tiny[0], "--invert", other)
    assert plain[0]["notices"] == [] and "--invert" in plain[1]["notices"][0]
    assert inverted[0]["probabilities"] == pytest.approx(plain[0]["probabilities"], abs=PROBABILITIES)
    assert inverted[0]["notices"] == ["inverted"]


def test_classify_goes_on_after_bad_files(tiny, tmp_path, capsys):
    good = save(tmp_path / "good.jpg", grey((8, 8)))
    cut = tmp_path / "cut.png"
    save(cut, grey((64, 64)))
    cut.write_bytes(cut.read_bytes()[:2000])
    text = tmp_path / "text.png"
    text.write_text("hello")
    save(tmp_path / "a.gif", grey((8, 8)))
    (tmp_path / "empty").mkdir()
    bad = [tmp_path / "missing.png", cut, text, tmp_path / "a.gif", tmp_path / "empty"]
    code, answers, error = classified(capsys, "--model", tiny[0], *bad, good)
    assert code == 1 and "class" in answers[-1]
    said = ("no such file", "damaged", "not a PNG or JPEG", "not a PNG or JPEG", "a folder without PNG or JPEG files")
    for answer, words in zip(answers[:-1], said, strict=True):
        assert words in answer["error"] and f"rdc: error: {answer['file']}: " in error and "Traceback" not in error
    assert main(["classify", "--model", tiny[0], str(text)]) == 1
    assert "no file could be classified" in capsys.readouterr().out


def test_classify_unknown_model(tmp_path, capsys):
    assert main(["classify", "--model", "nothing", str(save(tmp_path / "a.png", grey((8, 8))))]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_model_of_somebody(tiny, tmp_path, capsys, monkeypatch):
    """package.module:factory in rdc evaluate and rdc gradients; errors are one line and results so far stay."""
    (tmp_path / "somebody.py").write_text(
        "import torch\n"
        "weight = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))\n"
        "class Model(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.tanh(3 * x.flatten(1) - 1.5) @ weight\n"
        "def bad():\n    return lambda x: x.numpy()\n"
    )
    monkeypatch.chdir(tmp_path)
    words = [
        "evaluate",
        "--data",
        tiny[1],
        "--n",
        "6",
        "--steps",
        "2",
        "--attacks",
        "apgd-ce,autoattack-rand",
        "--quiet",
    ]
    words = [*words, "--noise", "fresh", "--eot", "2", "--resubmissions", "2", "--sanity", "2"]
    assert main([*words, "--model", "somebody:Model", "--out", "run"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["classifier"]["head"] == "somebody:Model" and report["classifier"]["levels"] is None
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "model_info.json").read_text())["name"] == "somebody:Model"
    both = [*words, "--noise", "all", "--model", "somebody:Model", "--out", "both"]
    assert main(both) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "both" / "report.html").read_text()
    assert "worst of 2" in printed and "known noise" in printed and "by every protocol in use" in page
    small = ["--n", "2", "--draws", "2", "--steps", "2", "--samples", "1", "--slices", "0", "--quiet"]
    assert main(["gradients", "--model", "somebody:Model", "--data", tiny[1], *small, "--out", "gradients"]) == 0
    capsys.readouterr()
    for name, expected in {"somebody:bad": "torch tensor", "somebody:nothing": "has no nothing"}.items():
        assert main([*words, "--model", name, "--out", "other"]) == 2
        assert expected in capsys.readouterr().err
    assert main([*words, "--model", "somebody:Model", "--lm", "paper-v2", "--out", "other"]) == 2
    assert "leave it out" in capsys.readouterr().err and not (tmp_path / "other").exists()


@pytest.mark.parametrize(("order", "said"), [("sorted", True), ("mixed", False), ("reversed", True)])
def test_images_sorted_by_class_are_said(tiny, tmp_path, capsys, order, said):
    """Packed folder by folder, the first images are of one class, and nothing else would show it."""
    labels = torch.arange(40) // 10
    labels = {"sorted": labels, "mixed": torch.arange(40) % 4, "reversed": labels.flip(0)}[order]
    pixels = torch.randint(0, 256, (40, *load(tiny[0]).image_shape), generator=torch.Generator().manual_seed(0))
    save_npz(Dataset(pixels.to(torch.uint8), labels, NAMES, "letters", "test"), tmp_path / "letters.npz")
    words = ["evaluate", "--model", tiny[0], "--data", str(tmp_path / "letters.npz"), "--attacks", "none", "--quiet"]
    assert main([*words, "--n", "20", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    error = capsys.readouterr().err
    sentence = "letters is sorted by class, and its images 0 to 19 are of 2 of 4 classes; shuffle the file"
    assert (sentence in error) is said and error.count("\n") == said
