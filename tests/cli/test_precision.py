"""``--precision auto`` on the command line: said in a line, recorded in the report, kept where a run goes on."""

import json

import pytest

from rdc.cli import main
from rdc.models import precision
from tests.evaluation_models import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("auto")
    save_tiny(path)
    return path


@pytest.fixture
def half(monkeypatch):
    """bfloat16 is taken, whatever the clock says and however far answers move."""
    monkeypatch.setattr(precision, "FASTER", 0.0)
    monkeypatch.setattr(precision, "MOST_MOVED", 1e9)


def words(folder, name, *more):
    return [name, "--model", str(folder / "tiny"), "--precision", "auto", "--device", "cpu", *more]


def test_evaluate_records_the_choice_and_goes_on_with_it(folder, tmp_path, capsys, monkeypatch, half):
    run = words(folder, "evaluate", "--data", str(folder / "blobs.npz"), "--n", "4", "--steps", "2")
    run += ["--attacks", "apgd-ce", "--sanity", "0", "--out", str(tmp_path / "run")]
    assert main(run) == 0
    told = capsys.readouterr()
    line = next(line for line in told.err.splitlines() if "precision auto" in line)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    found = report["precision_choice"]
    assert line == f"rdc: precision auto: {precision.PrecisionChoice.from_json(found, 'report').words()}"
    assert found["precision"] == report["classifier"]["precision"] == "bfloat16" and found["images"] > 0
    assert "precision, chosen by auto: bfloat16; on" in told.out
    assert "precision, chosen by auto" in (tmp_path / "run" / "report.html").read_text()
    assert "Precision, chosen by auto: bfloat16" in (tmp_path / "run" / "report.md").read_text()
    monkeypatch.setattr(precision, "FASTER", 1e9)  # measured again it would be float32
    assert main(run) == 0
    assert line.split("(allowed")[0] in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "report.json").read_text())["precision_choice"] == found
    assert main([*run, "--overwrite"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["precision_choice"]["precision"] == report["classifier"]["precision"] == "float32"


def test_a_run_without_it_says_nothing_of_it(folder, tmp_path, capsys):
    run = ["evaluate", "--model", str(folder / "tiny"), "--data", str(folder / "blobs.npz"), "--n", "2"]
    assert main([*run, "--attacks", "none", "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    assert "precision_choice" not in (tmp_path / "run" / "report.json").read_text()
    assert "precision auto" not in capsys.readouterr().err


def test_other_commands(folder, tmp_path, capsys, half):
    data = ["--data", str(folder / "blobs.npz")]
    certify = ["--n-images", "1", "--n0", "2", "--n", "4", "--noised-levels", "1", "--out", str(tmp_path / "certify")]
    likelihood = ["--n", "1", "--steps", "2", "--elbo-levels", "2", "--out", str(tmp_path / "likelihood")]
    for name, more in (("certify", certify), ("likelihood", likelihood)):
        assert main(words(folder, name, *data, *more)) == 0
        assert capsys.readouterr().err.count("rdc: precision auto: bfloat16; on") == 1, name
    assert main(["bench", "cost", *words(folder, "cost", *data)[1:]]) == 2
    assert "--precision: expected float32 or bfloat16 here; got auto" in capsys.readouterr().err


def test_classify_asks_its_own_pictures(folder, capsys, half):
    from PIL import Image

    paths = []
    for number in range(3):
        paths.append(str(folder / f"{number}.png"))
        Image.new("L", (8, 8), 40 * number + 20).save(paths[-1])
    assert main(words(folder, "classify", "--json", *paths)) == 0
    told = capsys.readouterr()
    assert "rdc: precision auto: bfloat16; on 3 images" in told.err and len(json.loads(told.out)) == 3
    assert main(words(folder, "classify", str(folder / "none.png"))) == 2  # nothing to measure on, no shipped images
    assert "rdc ships none that belong to this model" in capsys.readouterr().err
