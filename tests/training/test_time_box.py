"""Training for so many minutes: the plan fits, measuring leaves no trace, a continued run keeps its plan."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import torch

from rdc.errors import CheckpointError, ConfigError
from rdc.training.adversarial import InnerAttack
from rdc.training.confidence import cost_of_selection
from rdc.training.recipes import Recipe
from rdc.training.selection import SelectionTerms
from rdc.training.time_box import SHARE, images_per_second, plan_images
from tests.tolerances import PLANNED_IMAGES
from tests.training.test_trainer import CONFIG, expect_same_state, stop_after, trainer


class Clock:
    """A clock that every training step moves on by ``second`` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, second: float) -> None:
        self.now, self.second = 1000.0, second
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def attach(self, run):
        step = run.train_step

        def slow():
            self.now += self.second
            return step()

        run.train_step = slow
        return run


def test_measuring_leaves_no_trace(tmp_path: Path) -> None:
    measured, plain = trainer(tmp_path / "measured"), trainer(tmp_path / "plain")
    assert images_per_second(measured, 0.0) > 0
    assert measured.step == 0 and not measured.optimizer.state and not measured.window
    measured.run()
    plain.run()
    expect_same_state(tmp_path / "measured", tmp_path / "plain")


def test_the_plan_is_speed_times_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5)
    run = clock.attach(trainer(tmp_path, dataclasses.replace(CONFIG, images=10**9)))
    assert images_per_second(run, 4.0) == pytest.approx(12 / 0.5)
    begun = clock.now - 10  # seconds that went into the start
    images = plan_images(run, 1.0, begun)
    left = 60 - 10 - 8 * 0.5 + 0.0
    assert images == run.config.images == pytest.approx(SHARE * left * 24, abs=PLANNED_IMAGES)
    run.run()
    assert run.step == run.config.steps and clock.now - begun < 60
    assert run.config.rate(run.step) == pytest.approx(0)  # the cosine ends where the plan does


def test_time_is_kept_for_what_comes_after_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration and samples; at most half of the box."""
    planned = []
    for number, afterwards in enumerate((0, 100, 10**9)):
        clock = Clock(monkeypatch, 0.5)
        run = clock.attach(trainer(tmp_path / str(number), dataclasses.replace(CONFIG, images=10**9)))
        planned.append(plan_images(run, 1.0, clock.now, afterwards))
    assert planned[1] == planned[0] - 100 and planned[2] == planned[0] - planned[0] // 2


def test_time_is_kept_for_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []
    for number, selecting in enumerate((0.0, 0.25)):
        clock = Clock(monkeypatch, 0.5)
        run = clock.attach(trainer(tmp_path / str(number), dataclasses.replace(CONFIG, images=10**9)))
        planned.append(plan_images(run, 1.0, clock.now, 40, selecting))
    assert planned[1] == int(planned[0] / 1.25)
    terms = SelectionTerms(1000, "linf:0.1,flow:0.05", 50, 8)
    rival = Recipe("pgd-at", attack=InnerAttack(0.1, steps=9), selection=terms)
    assert cost_of_selection(rival, {}) == 50 * 2 * 10 / 10 / 1000
    student = Recipe("distill", teacher="t", levels="log:4:0.1:1:flat", selection=terms)
    assert cost_of_selection(student, {"num_classes": 10}) == 50 * 2 * 10 * 4 / 2 / 1000
    teacher = Recipe("diffusion", levels="log:4:0.1:1:flat", selection=terms)
    assert cost_of_selection(teacher, {"num_classes": 10}) == 50 * 2 * 10 * 4 * 10 / 1000
    assert cost_of_selection(Recipe("standard", selection=terms), {}) == 1.0
    assert cost_of_selection(Recipe("trades"), {}) == 0.0


def test_no_step_begins_after_the_deadline_and_the_next_start_keeps_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 0.5)
    run = clock.attach(trainer(tmp_path))
    images = plan_images(run, 0.5, clock.now)
    clock.second = 2.0  # the machine became slower
    begun = clock.now
    run.run()
    assert 0 < run.step < run.config.steps and clock.now - begun <= 30
    clock.second = 0.1
    again = clock.attach(trainer(tmp_path))
    assert plan_images(again, 0.2, clock.now) == images
    again.run()
    assert again.step == again.config.steps
    whole = clock.attach(trainer(tmp_path / "whole", dataclasses.replace(CONFIG, images=images)))
    whole.run()
    expect_same_state(tmp_path, tmp_path / "whole")


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for minutes in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="minutes: expected a positive number"):
            plan_images(trainer(tmp_path), minutes, time.monotonic())
    with pytest.raises(ConfigError, match="not one step of 12 images fits"):
        plan_images(trainer(tmp_path), 0.1, time.monotonic() - 60)
    (tmp_path / "state.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="not a training state"):
        plan_images(trainer(tmp_path), 1.0, time.monotonic())


def test_weights_stay_the_same_objects(tmp_path: Path) -> None:
    """A compiled network holds on to them."""
    run = trainer(tmp_path)
    before = [p.data_ptr() for p in run.net.parameters()]
    images_per_second(run, 0.0)
    assert before == [p.data_ptr() for p in run.net.parameters()]
    assert all(torch.equal(run.ema[name], p) for name, p in run.parameters.items())


def test_a_stopped_run_can_be_planned_again(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    stop_after(run, 3)
    with pytest.raises(StopIteration):
        run.run()
    assert run.folder.planned_images() is None  # nothing was saved
