"""Where one kind of answer ends and the next begins: draws right all times, some times or never; ties; the last tenth of steps.

A scripted defence answers rightly in as many of every R submissions as the image's first pixel says, and a scripted attack
moves that pixel. So every share, vote and step is known exactly, and each figure is checked on both sides of its boundary.
"""

import dataclasses

import pytest
import torch

from rdc.attacks import AttackResult
from rdc.data import Dataset
from rdc.defences import BaseDefence
from rdc.errors import InputError
from rdc.evaluation import EvaluationSettings, accuracy_per_class, evaluate
from rdc.evaluation import batch as batch_module
from tests.evaluation_models import CLASSES, NAMES

SHAPE, DRAWS = (1, 2, 2), 4  # pixels: right answers in DRAWS submissions, the label, the wrong classes, nothing
ONE_WRONG, TWO_WRONG = 0, 8


class Scripted(BaseDefence):
    """Right in the first so many draws of every four, then wrong: always by one class, or by two in turn."""

    stochastic = True

    def __init__(self):
        super().__init__(SHAPE, CLASSES, NAMES)

    def forward(self, x):
        self.network_evaluations += len(x)
        draw = self._next_draw() % DRAWS
        right, label, spread, _ = (255 * x.detach().flatten(1)).round().long().T
        wrong = (label + 1 + (spread >= TWO_WRONG / 2) * (draw % 2)) % CLASSES
        chosen = torch.where(draw < right, label, wrong)
        return 3.0 * torch.nn.functional.one_hot(chosen, CLASSES) + 0 * x.flatten(1).sum(1, keepdim=True)


@dataclasses.dataclass
class Script:
    """What one attack does to every image that it is given, by position in the data set."""

    right: list[int]  # right answers of DRAWS afterwards
    step: list[int]  # at which it says to have broken the image; -1: never
    steps: int = 20
    deceived: bool = False  # it says that all are right, whatever the defence answers


def attack_by(scripts, monkeypatch):
    """Replace attacks by scripts, one for each attack in turn."""
    waiting = list(scripts)

    def scripted(bench, spec, pixels, labels, ids, settings, endpoints, progress):
        script, n = waiting.pop(0), len(pixels)
        x_adv = pixels.clone()
        x_adv[:, 0, 0, 0] = torch.tensor([script.right[i] for i in ids.tolist()]) / 255
        x_adv[:, 0, 1, 1] = (len(scripts) - len(waiting)) / 255  # which attack's image this is
        step = torch.tensor([script.step[i] for i in ids.tolist()])
        right = (x_adv[:, 0, 0, 0] > 0) | script.deceived
        return AttackResult(
            name=spec.text, loss="ce", threat=settings.threat, steps=script.steps, restarts=1, eot=1, x_adv=x_adv,
            clean_correct=torch.ones(n, dtype=torch.bool), correct=right, broken_at=step,
            broken_restart=torch.where(step >= 0, 0, -1), best_loss=torch.zeros(n, dtype=torch.float64),
            accuracy_per_step=[], zero_gradient_steps=torch.zeros(n, dtype=torch.int64),
            non_finite_logits=torch.zeros(n, dtype=torch.bool), forward_evaluations=0, gradient_evaluations=0,
            verify_mismatches=0,
        )  # fmt: skip

    monkeypatch.setattr(batch_module, "run_attack", scripted)


def run(tmp_path, clean, attacks=(), noise="fresh", spread=ONE_WRONG):
    """Images right in ``clean[i]`` of four draws, label i mod K, then the named attacks."""
    n = len(clean)
    pixels = torch.zeros(n, *SHAPE, dtype=torch.uint8)
    labels = torch.arange(n) % CLASSES
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1], pixels[:, 0, 1, 0] = torch.tensor(clean), labels, spread
    settings = EvaluationSettings(
        model="scripted", dataset="script", n=n, attacks=attacks, eps="4/255", steps=20, batch=n, noise=noise,
        resubmissions=DRAWS if noise != "known" else 1, sanity=0,
    )  # fmt: skip
    data = Dataset(pixels, labels, NAMES, "script", "test")
    return evaluate(Scripted(), data, settings, tmp_path / "run", progress=False)


def which(result):
    """The number of the attack that made each kept image; 0: the clean one."""
    return (255 * result.x_adv[:, 0, 1, 1]).round().astype(int).tolist()


def test_clean_in_all_draws_means_all(tmp_path):
    """Of class 0: 4, 3 and 0 right answers of 4; one image counts, not two."""
    result = run(tmp_path, [4, 1, 2, 4, 3, 4, 4, 4, 0])
    assert [row["clean"] for row in accuracy_per_class(result.images, CLASSES)] == [1, 1, 1, 2]
    assert [row["n"] for row in accuracy_per_class(result.images, CLASSES)] == [3, 2, 2, 2]
    assert result.report["clean"]["accuracy"] == round(26 / 36, 6)  # this one is the average


def test_broken_means_wrong_at_least_once(tmp_path, monkeypatch):
    attack_by([Script(right=[4, 3, 1, 0], step=[-1, 5, 5, 5])], monkeypatch)
    (attack,) = run(tmp_path, [4, 4, 4, 4], attacks=("apgd-ce",)).report["attacks"]
    assert (attack["attacked"], attack["broken"], attack["survivors"]) == (4, 3, 1)
    assert attack["accuracy"] == 0.25 and attack["average"]["accuracy"] == 0.5


def test_the_next_attack_goes_on_with_what_is_right_at_least_once(tmp_path, monkeypatch):
    scripts = [Script([4, 1, 0, 4], [-1, 1, 1, -1]), Script([4, 0, 4, 3], [-1, 1, -1, 1])]
    attack_by(scripts, monkeypatch)
    report = run(tmp_path, [4, 4, 4, 0], attacks=("apgd-ce", "apgd-dlr")).report
    assert [attack["attacked"] for attack in report["attacks"]] == [3, 2]
    assert [attack["survivors"] for attack in report["attacks"]] == [1, 1]
    assert report["robust"]["accuracy"] == 0.25


def test_of_images_that_do_equally_well_the_last_is_kept(tmp_path, monkeypatch):
    """Attack 1 changes nothing but the image, attack 2 gains on one image, ties on one, loses on one."""
    attack_by([Script([4, 4, 3], [-1, -1, -1]), Script([2, 4, 4], [3, -1, -1])], monkeypatch)
    result = run(tmp_path, [4, 4, 4], attacks=("apgd-ce", "apgd-dlr"))
    assert which(result) == [2, 2, 1]
    assert [record["adversarial"]["right"] for record in result.images] == [0.5, 1.0, 0.75]


def test_an_attack_that_fails_leaves_its_image_under_known_noise(tmp_path, monkeypatch):
    attack_by([Script([4, 0], [-1, 2])], monkeypatch)
    result = run(tmp_path, [4, 4], attacks=("apgd-ce",), noise="known")
    assert which(result) == [1, 1] and [record["robust"] for record in result.images] == [True, False]


def test_what_is_wrong_at_the_last_counts_as_wrong(tmp_path, monkeypatch):
    """The attack saw two images right; once more submitted, one of them is not."""
    attack_by([Script([4, 0], [-1, -1], deceived=True)], monkeypatch)
    result = run(tmp_path, [4, 4], attacks=("apgd-ce",), noise="known")
    assert [record["robust"] for record in result.images] == [True, False]
    assert [record["adversarial"]["predicted"] for record in result.images] == [0, 2]
    assert result.report["robust"]["accuracy"] == 0.5 and result.report["attacks"][0]["survivors"] == 2
    assert {flag["name"]: flag["evidence"] for flag in result.report["flags"]}["unstable-decisions"] == "1 decisions"
    assert result.adversarial_logits.argmax(1).tolist() == [0, 2] and result.clean_logits.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("right", "spread", "majority"),
    [
        (3, ONE_WRONG, True),
        (2, ONE_WRONG, False),  # 2 votes against 2: a tie is none
        (2, TWO_WRONG, True),  # 2 votes against 1 and 1
        (1, TWO_WRONG, False),
        (0, TWO_WRONG, False),
    ],
)
def test_majority_is_more_votes_than_any_other_class(tmp_path, monkeypatch, right, spread, majority):
    attack_by([Script([right, 4], [1, -1])], monkeypatch)
    result = run(tmp_path, [4, 4], attacks=("apgd-ce",), spread=spread)
    assert [record["scores"]["fresh"]["majority"] for record in result.images] == [majority, True]
    assert result.report["scores"]["majority"]["accuracy"] == (1.0 if majority else 0.5)


def test_a_majority_lost_in_one_attack_stays_lost(tmp_path, monkeypatch):
    attack_by([Script([2, 4], [1, -1]), Script([4, 4], [-1, -1])], monkeypatch)
    result = run(tmp_path, [4, 4], attacks=("apgd-ce", "apgd-dlr"))
    assert [record["scores"]["fresh"]["majority"] for record in result.images] == [False, True]


@pytest.mark.parametrize(
    ("steps", "broken_at", "late"),
    [
        (20, [18, 18, 18, 18], 0),  # nine tenths are not the last tenth
        (20, [19, 20, 18, -1], 2),
        (100, [90, 89, 0, -1], 0),
        (100, [91, 95, 100, 90], 3),
    ],
)
def test_still_falling_looks_at_the_last_tenth(tmp_path, monkeypatch, steps, broken_at, late):
    attack_by([Script([0, 0, 0, 0], broken_at, steps)], monkeypatch)
    flags = {flag["name"]: flag["evidence"] for flag in run(tmp_path, [4] * 4, ("apgd-ce",)).report["flags"]}
    expected = {"still-falling": f"apgd-ce broke {late} in its last tenth of steps"} if late else {}
    assert {name: text for name, text in flags.items() if name == "still-falling"} == expected


def test_answers_that_mean_nothing_stop_a_run_at_its_first_batch(tmp_path):
    class Same(Scripted):
        def forward(self, x):
            return (x.flatten(1)[:, :1] * 255).expand(-1, CLASSES)

    pixels = torch.zeros(4, *SHAPE, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor([7, 8, 9, 10])
    data = Dataset(pixels, torch.arange(4), NAMES, "script", "test")
    settings = EvaluationSettings(model="same", dataset="script", n=4, attacks=(), batch=2)
    finished = []
    with pytest.raises(InputError, match=r"all 4 classes the same value \(7 to the first\)"):
        evaluate(Same(), data, settings, tmp_path / "run", progress=False, on_batch=lambda *n: finished.append(n))
    assert not finished


def test_scores_of_known_and_fresh_noise_count_what_they_say(tmp_path, monkeypatch):
    """Known noise is the first draw: right where at least one of four is. Worst of R: right in all."""
    attack_by([Script([4, 3, 2, 0], [-1, 1, 1, 1]), Script([4, 4, 2, 4], [-1, -1, 1, -1])], monkeypatch)
    result = run(tmp_path, [4, 4, 4, 4], attacks=("apgd-ce",), noise="all")
    scores = result.report["scores"]
    assert scores["known"]["accuracy"] == 0.75
    assert (scores["average"]["accuracy"], scores["majority"]["accuracy"]) == (0.5625, 0.5)
    assert (scores["worst"]["accuracy"], scores["submissions"]) == (0.25, DRAWS)
    assert [record["robust"] for record in result.images] == [True, False, False, False]
    assert result.report["robust"]["accuracy"] == 0.25
