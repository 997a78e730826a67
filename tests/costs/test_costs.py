"""What models cost: calls in turn, processes of their own, the report and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import math
import time

import pytest
import torch

from rdc.cli import main
from rdc.costs import Accuracy, CostSettings, MeasuredModel, cost_table, measure_costs, read_accuracy, write_plot
from rdc.costs import measure as measuring
from rdc.costs.calls import filled, prepared
from rdc.costs.memory import in_a_process, resident
from rdc.costs.table import milliseconds
from rdc.costs.timing import spread
from rdc.data import load_dataset
from rdc.errors import ConfigError, DataError, InputError
from rdc.execution.timing import alternate, clock
from rdc.models.choice import ModelChoice
from tests.evaluation_models import save_tiny
from tests.tiny_models import pixels, tiny_classifier

SMALL = CostSettings(batches=(1, 3), rounds=2, memory=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(name of a tiny model, name of its data)."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def models_of(tiny):
    plain = ModelChoice(tiny[0], device="cpu")
    return [MeasuredModel("DC", plain), MeasuredModel("RDC", dataclasses.replace(plain, lm="paper-v2"), "bpda")]


@pytest.fixture(scope="module")
def report(tiny):
    rate = Accuracy("DC", "r.json", 10, 0.9, (0.6, 0.98), 0.5, (0.24, 0.76))
    return measure_costs(
        models_of(tiny), load_dataset(tiny[1]), SMALL, accuracies=[rate], command="rdc bench cost", progress=False
    )


def test_every_model_batch_and_work_is_there(report, tiny):
    assert report["schema"] == "rdc.cost/1" and report["command"] == "rdc bench cost" and report["commit"] is not False
    assert {"cpu", "usable_cpus", "system"} <= set(report["machine"]) and report["versions"][
        "torch"
    ] == torch.__version__
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    dc, with_lm = report["models"]
    for model in (dc, with_lm):
        assert [(cost["work"], cost["batch"]) for cost in model["costs"]] == [
            (work, batch) for work in ("prediction", "gradient") for batch in (1, 3)
        ]
        for cost in model["costs"]:
            times = cost["ms_per_image"]
            assert 0 < times["least"] <= times["median"] <= times["most"] and cost["rounds"] == 2
            assert cost["memory_mb"] is None
    levels = load_levels(tiny)
    assert {cost["evaluations_per_image"] for cost in dc["costs"]} == {levels}
    assert {cost["evaluations_per_image"] for cost in with_lm["costs"]} == {levels + 5}
    assert with_lm["gradient"] == with_lm["classifier"]["gradient"] == "bpda" and dc["weights"] == with_lm["weights"]


def load_levels(tiny):
    return models_of(tiny)[0].load(None).evaluations_per_image


def test_the_calls_are_a_prediction_and_a_step_of_the_attack():
    model, x = tiny_classifier(dtype=torch.float32), pixels(3)
    labels = model(x).argmax(1)
    torch.testing.assert_close(prepared(model, "prediction", x, labels)(), model(x))
    slope = prepared(model, "gradient", x, labels)()
    leaf = x.clone().requires_grad_()
    own = model(leaf)
    odds = (own - own.gather(1, labels[:, None])).scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    (expected,) = torch.autograd.grad(odds.sum(), leaf)
    away = torch.nn.functional.cosine_similarity(slope.flatten(1), expected.flatten(1).double(), dim=1)
    assert slope.shape == x.shape and bool((away > 0).all())
    assert filled(torch.arange(3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_candidates_take_turns_and_the_first_one_moves_on():
    called, done = [], []
    found = alternate(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3, done=lambda: done.append(1)
    )
    assert "".join(called) == "abbaab" and len(done) == 6
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}
    assert spread([0.2, 0.1, 0.6], 4) == {"median": 50.0, "least": 25.0, "most": 150.0}
    assert clock(1)[1] is time.process_time and clock(2)[1] is time.perf_counter


@pytest.mark.parametrize(("longest", "left_out"), [(0.6, True), (0.7, False)])
def test_a_call_that_would_take_too_long_is_left_out(tiny, monkeypatch, longest, left_out):
    """A hundredth of a second an image: 64 take 0.64 s."""
    monkeypatch.setattr(measuring, "alternate", lambda calls, *rest: {name: [0.02, 0.01] for name in calls})
    settings = CostSettings(batches=(1, 64), rounds=2, memory=False, work=("prediction",), longest=longest)
    (model,) = measure_costs(models_of(tiny)[:1], load_dataset(tiny[1]), settings, progress=False)["models"]
    first, second = model["costs"]
    assert first["ms_per_image"] == {"median": 15.0, "least": 10.0, "most": 20.0}
    assert ("skipped" in second) is left_out and ("ms_per_image" in second) is not left_out
    assert not left_out or "a call of 64 images would take about 1 s" in second["skipped"]


def test_memory_of_a_process_of_its_own(tiny):
    """A larger batch needs more, and what the parent holds does not count."""
    dataset = load_dataset(tiny[1])
    ballast = torch.ones(200 * 2**18)  # 200 MiB in this process
    x, labels = filled(dataset.pixels(), 4096), filled(dataset.labels, 4096)
    found = in_a_process(models_of(tiny)[0], "prediction", x, labels, dataset.class_names, 1)
    assert found["loaded"] < found["peak"] < resident("VmRSS") + 1024 and len(ballast)
    assert found["loaded"] < resident("VmRSS") - 100


def test_memory_is_in_the_report(tiny, monkeypatch):
    asked = []

    def process(model, work, x, labels, names, threads):
        asked.append((model.label, work, len(x), len(labels), names))
        return {"loaded": 10.0, "peak": 20.0 + len(x)}

    monkeypatch.setattr(measuring, "in_a_process", process)
    dataset = load_dataset(tiny[1])
    settings = dataclasses.replace(SMALL, memory=True, rounds=1)
    report = measure_costs(models_of(tiny), dataset, settings, progress=False)
    assert report["models"][1]["costs"][3]["memory_mb"] == {"loaded": 10.0, "peak": 23.0}
    assert len(asked) == 8 and asked[-1] == ("RDC", "gradient", 3, 3, dataset.class_names)
    assert "23 (10)" in cost_table(report)


def test_the_table_has_every_figure(report):
    lines = cost_table(report).splitlines()
    assert "2 rounds in turn" in lines[0] and lines[3].split()[-4:] == ["batch", "1", "batch", "3"]
    first = report["models"][0]["costs"][0]["ms_per_image"]
    assert lines[4].split()[:3] == [
        "DC",
        f"{report['models'][0]['costs'][0]['evaluations_per_image']:g}",
        f"{first['median']:.3g}",
    ]
    assert len([line for line in lines if line.startswith("  RDC")]) == 2
    shorter = json.loads(json.dumps(report))
    shorter["models"][0]["costs"][1] = {"work": "prediction", "batch": 3, "skipped": "too long"}
    assert "skipped" in cost_table(shorter).splitlines()[4]


def test_long_times_are_whole_numbers():
    assert [milliseconds(value) for value in (0.22712, 999.4, 999.6, 4360.2)] == ["0.227", "999", "1,000", "4,360"]


def test_the_plot_has_the_models_with_an_accuracy(report, tmp_path):
    assert write_plot(report, tmp_path).read_bytes()[:4] == b"\x89PNG"
    assert write_plot({**report, "accuracies": []}, tmp_path) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batches", ()), ("batches", (8, 1)), ("batches", (1, 1)), ("batches", (0,)), ("batches", (10**6,)), ("batches", ("1",)),
        ("work", ()), ("work", ("prediction", "prediction")), ("work", ("training",)),
        ("rounds", 0), ("rounds", 10**6), ("longest", 0), ("longest", math.nan), ("longest", math.inf), ("memory", "on"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(field, value):
    with pytest.raises(ConfigError, match="expected"):
        CostSettings(**{field: value})


def test_models_and_accuracies_that_do_not_fit(tiny):
    data, models = load_dataset(tiny[1]), models_of(tiny)
    with pytest.raises(ConfigError, match="at least one"):
        measure_costs([], data, SMALL)
    with pytest.raises(ConfigError, match="labels that differ; got 'DC' twice"):
        measure_costs([models[0], models[0]], data, SMALL)
    with pytest.raises(ConfigError, match="a label of DC, RDC; got 'other'"):
        measure_costs(models, data, SMALL, accuracies=[Accuracy("other", "x", 1, 1, (0, 1), 1, (0, 1))])
    with pytest.raises(InputError, match="expected images"):
        measure_costs(models, load_dataset("fashion-mnist-sample"), SMALL)


def test_accuracies_of_a_report(tmp_path):
    rates = {"clean": {"accuracy": 0.9, "ci95": [0.8, 0.95]}, "robust": {"accuracy": 0.5, "ci95": [0.4, 0.6]}}
    (tmp_path / "report.json").write_text(json.dumps({"n": 64, **rates}))
    for path in (tmp_path, tmp_path / "report.json"):
        found = read_accuracy(f"RDC, N = 5={path}")
        assert (found.label, found.n, found.robust, found.robust_ci95) == ("RDC, N = 5", 64, 0.5, (0.4, 0.6))
    for text in ("RDC", "=x", "RDC="):
        with pytest.raises(ConfigError, match="LABEL=PATH"):
            read_accuracy(text)
    for content in (
        "{}",
        "[]",
        "{",
        json.dumps({"n": 64, **rates, "robust": None}),
        json.dumps({**rates, "n": 0}),
    ):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(DataError):
            read_accuracy(f"RDC={tmp_path}")
    with pytest.raises(DataError):
        read_accuracy(f"RDC={tmp_path / 'none.json'}")


def test_the_command(tiny, tmp_path, capsys):
    report = {"n": 8, **{kind: {"accuracy": 0.5, "ci95": [0.2, 0.8]} for kind in ("clean", "robust")}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    command = [
        "bench",
        "cost",
        "--model",
        f"{tiny[0]}@label=DC",
        "--model",
        f"{tiny[0]}@lm=paper-v2@gradient=bpda",
        "--data",
        tiny[1],
    ]
    command += ["--batch", "1,2", "--rounds", "1", "--memory", "off", "--threads", "1", "--device", "cpu"]
    assert main([*command, "--report", f"DC={tmp_path}", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "ms an image, median [least, most]" in out and "cost.json" in out and "cost.png" in out
    kept = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert (
        kept["threads"] == 1
        and kept["clock"] == "CPU seconds of the process"
        and kept["models"][1]["gradient"] == "bpda"
    )
    assert kept["command"].startswith("rdc bench cost --model ")
    assert main([*command, "--format", "json", "--quiet", "--work", "prediction"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["work"] == ["prediction"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--batch", "0"], "batch"), (["--batch", "4,x"], "batch"), (["--batch", "9" * 100], "batch"), (["--work", "x"], "work"),
        (["--rounds", "0"], "rounds"), (["--longest", "nan"], "longest"), (["--report", "x"], "LABEL=PATH"),
        (["--model", "fashion-mnist@x=1"], "unknown setting"),
    ],
)  # fmt: skip
def test_what_the_command_refuses(more, words, capsys):
    assert main(["bench", "cost", *more]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_options_of_compare_may_stand_before_it(tmp_path, capsys):
    """As they could when comparing was all that rdc bench did."""
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"benchmarks": [{"fullname": "a", "stats": {"data": [1.0, 1.1, 0.9]}}]}))
    for words in (["--json", "compare", str(file), str(file)], ["compare", str(file), str(file), "--json"]):
        assert main(["bench", *words]) == 0
        assert json.loads(capsys.readouterr().out)["changes"][0]["verdict"] == "same"
