"""What a run does beside its figures: identity, sanity checks once, progress, and what it skips."""

import pytest
import torch

import rdc.evaluation.run as run_module
from rdc.data import Dataset
from rdc.defences import BaseDefence
from rdc.evaluation import EvaluationSettings, evaluate
from rdc.evaluation.sanity_records import Sanity
from tests.evaluation_models import CLASSES, NAMES, images

WEIGHT = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))


class Linear(BaseDefence):
    """Says of itself one thing more than others do, whose name comes before "gradient"."""

    def __init__(self):
        super().__init__((1, 8, 8), CLASSES, NAMES)

    def forward(self, pixels):
        self.network_evaluations += len(pixels)
        return torch.log_softmax(3 * (pixels.flatten(1) - 0.5) @ WEIGHT, 1)

    def describe(self):
        return {"budget": 7, **super().describe()}


@pytest.fixture
def data():
    pixels = images(6)
    with torch.no_grad():
        labels = Linear()(pixels.float() / 255).argmax(1)
    return Dataset(pixels, labels, NAMES, "blobs", "test")


@pytest.fixture
def checked(monkeypatch):
    """How many images each call of the sanity checks was given."""
    counts = []

    def counting(classifier, pixels, labels, ids, settings, progress):
        assert len(pixels) == len(labels) == len(ids)
        counts.append(len(pixels))
        return Sanity(n=0)

    monkeypatch.setattr(run_module, "run_sanity", counting)
    return counts


@pytest.fixture
def bars(monkeypatch):
    """(images, finished, right of them, attacks, drawn?) of each run that had something to do."""
    made, real = [], run_module.ProgressBars

    def recording(total, done, standing, attacks, *, enabled):
        made.append((total, done, standing, list(attacks), enabled))
        return real(total, done, standing, attacks, enabled=False)

    monkeypatch.setattr(run_module, "ProgressBars", recording)
    return made


def run(data, out, progress=False, on_batch=None, **changes):
    values = {"n": 6, "batch": 2, "eps": "1/255", "steps": 2, "attacks": ("apgd-ce",), "sanity": 3, **changes}
    settings = EvaluationSettings(model="linear", dataset="blobs", **values)
    return evaluate(Linear(), data, settings, out, progress=progress, on_batch=on_batch)


def test_the_identity_has_all_that_the_model_says_of_itself_but_the_gradient(data, tmp_path, checked):
    """The gradient is a setting of the attack and stands there."""
    said = Linear().describe()
    identity = run(data, tmp_path / "run").run["identity"]
    assert identity["classifier"] == {key: said[key] for key in said if key != "gradient"}
    assert identity["classifier"]["budget"] == 7 and identity["device"] == "cpu" and identity["purifies"] is False
    assert identity["radius"] == pytest.approx(1 / 255)
    assert run(data, tmp_path / "clean", attacks=()).run["identity"]["radius"] is None


def test_sanity_checks_are_made_once_and_of_as_many_images_as_asked_for(data, tmp_path, checked):
    run(data, tmp_path / "run")
    assert checked == [3]
    run(data, tmp_path / "run")  # finished
    assert checked == [3]
    run(data, tmp_path / "more", sanity=100)
    assert checked == [3, 6]


@pytest.mark.parametrize("changes", [{"attacks": ()}, {"sanity": 0}])
def test_no_sanity_checks_without_attacks_or_when_none_are_asked_for(data, tmp_path, checked, bars, changes):
    result = run(data, tmp_path / "run", **changes)
    assert not checked and result.report["sanity"] == Sanity().to_json()
    assert bars[0][3] == list(changes.get("attacks", ("apgd-ce",)))


@pytest.mark.parametrize("progress", [True, False])
def test_bars_are_drawn_if_asked_for(data, tmp_path, checked, bars, progress):
    run(data, tmp_path / "run", progress=progress)
    assert [(total, done, enabled) for total, done, _, _, enabled in bars] == [(6, 0, progress)]
    run(data, tmp_path / "run", progress=progress)
    assert len(bars) == 1  # nothing is left to do


def test_a_run_that_goes_on_counts_what_is_finished(data, tmp_path, checked, bars):
    class Enough(Exception):
        pass

    def stop(finished, total):
        if finished == 4:
            raise Enough

    with pytest.raises(Enough):
        run(data, tmp_path / "run", on_batch=stop)
    seen = []
    result = run(data, tmp_path / "run", on_batch=lambda *counts: seen.append(counts))
    robust = sum(record["robust"] for record in result.images[:4])
    assert bars[1][:3] == (6, 4, robust) and robust > 0
    assert seen == [(6, 6)]
