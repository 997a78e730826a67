import numpy as np
import pytest
import torch

from rdc.data import Dataset
from rdc.decisions.anytime import AnytimeCalibration, AnytimeClassifier, calibrate_anytime
from rdc.decisions.anytime.calibration import (
    _binomial_cdf,
    _looks,
    _order,
    calibrate_from_losses,
    images_needed,
    simulate_stopping,
)
from rdc.errors import ConfigError, InputError
from rdc.evaluation import EvaluationSettings, evaluate
from tests.evaluation_models import CLASSES, NAMES, gaussian_classifier, images
from tests.tiny_models import pixels as tiny_pixels
from tests.tiny_models import tiny_classifier
from tests.tolerances import ANYTIME_DIFFERENCE, FLOAT32_NETWORK, FLOAT32_SUM, FLOAT64_ORDER

LEVELS = "log:8:0.5:4:flat"


def photos(n, seed=0):
    return images(n, seed).float() / 255


@pytest.fixture(scope="module", params=["multihead", "conditional"])
def tiny(request):
    """A random network of either kind, with a prior that lets every class win sometimes, and a rule that stops half at each look."""
    classifier, x = tiny_classifier(request.param, levels=LEVELS), tiny_pixels(120, seed=3)
    with torch.no_grad():
        losses = classifier.class_losses(x).double()
    scale = 1 / losses.std(0).mean().item()
    prior = (scale * losses.mean(0)).softmax(0).tolist()
    classifier = classifier.with_(class_prior=prior, logit_scale=scale)
    calibration = calibrate_anytime(classifier, x, 0.1)
    with torch.no_grad():
        scores = _cumulated(classifier, calibration, x)
    two = np.partition(scores, 1, axis=2)
    boundary = np.median(two[..., 1] - two[..., 0], axis=0)[:-1]
    return classifier, AnytimeCalibration.from_json({**calibration.to_json(), "boundary": boundary.tolist()})


def _cumulated(classifier, calibration, x):
    """Scores [n, looks, K] from recorded losses."""
    with torch.no_grad():
        losses = classifier.losses_per_level(x).double().numpy()
    weighted = losses * np.array(classifier.levels.weight)[:, None]
    prior = -np.log(classifier.class_prior) / classifier.scale
    return np.cumsum(weighted[:, list(calibration.order)], axis=1)[:, [k - 1 for k in calibration.looks]] + prior


def artificial(n, seed, steps=12, classes=6, drift=6.0):
    """Losses of n images [n, steps, classes]: the right class's are lower by a drift that differs from image to image."""
    random = np.random.Generator(np.random.Philox(key=seed))
    losses = random.normal(0, 1, (n, steps, classes)) + 10
    right = random.integers(0, classes, n)
    losses[np.arange(n), :, right] -= np.abs(random.normal(0, drift, n))[:, None] / np.sqrt(steps)
    return losses


# --- the statement: the true rate is at most the stated one, with the stated confidence ------------------------------


@pytest.mark.parametrize("eliminate", [False, True])
@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_true_rate_is_within_the_stated_one(rate, eliminate):
    """Many calibrations, each checked on 20,000 other images: the true rate is above the stated one in at most 5 % of them.

    The check itself has an error: a rate counts as above only if it is so by two standard errors.
    """
    weight, prior, trials, above, taken = np.ones(12) / 12, np.zeros(6), 20, 0, []
    others = artificial(20_000, 999)
    for trial in range(trials):
        made = calibrate_from_losses(
            artificial(400, trial), weight, prior, rate, 0.95, eliminate=eliminate, fingerprint="x"
        )
        assert made.differing / made.images < rate
        scores = np.cumsum(others[:, list(made.order)] / 12, axis=1)
        stopping = simulate_stopping(scores, np.array(made.boundary), made.looks, eliminate=eliminate)
        differs = (stopping.decision != scores[:, -1].argmin(1)).mean()
        above += differs > rate + 2 * np.sqrt(rate * (1 - rate) / len(others))
        taken.append(stopping.levels.mean())
    assert above <= 3  # P(Bin(20, 0.05) > 3) = 1.6 %
    assert np.mean(taken) < 10  # and it does stop


def test_a_stricter_rate_looks_longer():
    losses = artificial(2000, 1)
    made = [
        calibrate_from_losses(losses, np.ones(12), np.zeros(6), rate, 0.95, eliminate=False, fingerprint="")
        for rate in (0.2, 0.05, 0.005)
    ]
    assert made[0].z < made[1].z < made[2].z and made[0].mean_levels < made[1].mean_levels < made[2].mean_levels < 12


def test_images_needed():
    from scipy.stats import binom

    for rate in (0.01, 0.05, 0.2):
        n = images_needed(rate)
        tested = n - -(-n // 4)  # every fourth shapes the rule
        assert n >= 40 and binom.cdf(0, tested, rate) <= 0.05
    for successes, trials, chance in ((0, 50, 0.1), (7, 300, 0.03), (40, 100, 0.5)):
        assert _binomial_cdf(successes, trials, chance) == pytest.approx(
            binom.cdf(successes, trials, chance), rel=FLOAT64_ORDER
        )


def test_sorted_images_do_no_harm():
    """Easy images first, hard ones last: both parts of the calibration see both."""
    losses = artificial(1200, 5)
    full = np.sort(losses.sum(1), axis=1)
    hardest_last = losses[np.argsort(-(full[:, 1] - full[:, 0]))]
    made = calibrate_from_losses(hardest_last, np.ones(12), np.zeros(6), 0.05, 0.95, eliminate=False, fingerprint="")
    others = np.cumsum(artificial(4000, 998)[:, list(made.order)], axis=1)
    stopping = simulate_stopping(others, np.array(made.boundary), made.looks, eliminate=False)
    assert (stopping.decision != others[:, -1].argmin(1)).mean() <= 0.05 and stopping.levels.mean() < 10


# --- what is computed ------------------------------------------------------------------------------------------------


def test_runs_as_simulated(tiny):
    """Decisions, levels and passes of the network are those of the recorded losses under the same rule."""
    classifier, calibration = tiny
    x = tiny_pixels(60, seed=8)
    with torch.no_grad():
        result = AnytimeClassifier(classifier, 0.1, calibration).decide(x)
    expected = simulate_stopping(
        _cumulated(classifier, calibration, x),
        np.array(calibration.boundary),
        calibration.looks,
        eliminate=classifier.denoiser.head == "conditional",
    )
    assert np.array_equal(result.log_probabilities.argmax(1).numpy(), expected.decision)
    assert np.array_equal(result.levels.numpy(), expected.levels)
    assert np.array_equal(result.passes.numpy(), expected.passes)
    assert len(set(expected.levels.tolist())) > 2 and len(set(expected.decision.tolist())) > 1


def test_without_stopping_it_is_the_full_classifier(tiny):
    classifier, calibration = tiny
    never = AnytimeCalibration.from_json({**calibration.to_json(), "boundary": [float("inf")] * 7})
    x = tiny_pixels(9)
    anytime = AnytimeClassifier(classifier, 0.1, never)
    with torch.no_grad():
        torch.testing.assert_close(anytime(x), classifier(x), rtol=FLOAT32_NETWORK, atol=FLOAT32_NETWORK)
    assert anytime.network_evaluations == 9 * classifier.evaluations_per_image


def test_batches_change_nothing(tiny):
    classifier, calibration = tiny
    x = tiny_pixels(7, seed=4)
    with torch.no_grad():
        whole = AnytimeClassifier(classifier, 0.1, calibration).decide(x)
        small = AnytimeClassifier(classifier.with_(memory_budget_mb=0.01), 0.1, calibration)
        parts = [small.decide(x[i : i + 1]) for i in range(7)]
    torch.testing.assert_close(torch.cat([p.log_probabilities for p in parts]), whole.log_probabilities)
    assert torch.equal(torch.cat([p.levels for p in parts]), whole.levels)
    assert torch.equal(torch.cat([p.passes for p in parts]), whole.passes)


def test_probabilities(tiny):
    classifier, calibration = tiny
    log_p = AnytimeClassifier(classifier, 0.1, calibration)(tiny_pixels(20, seed=6))
    torch.testing.assert_close(log_p.logsumexp(1), torch.zeros(20), atol=FLOAT32_SUM, rtol=0)


def test_gradients_do_not_change_the_answer(tiny):
    classifier, calibration = tiny
    anytime, x = AnytimeClassifier(classifier, 0.1, calibration), tiny_pixels(6, seed=5)
    leaf = x.clone().requires_grad_()
    log_p = anytime(leaf)
    with torch.no_grad():
        torch.testing.assert_close(log_p.detach(), anytime(x))
    (gradient,) = torch.autograd.grad(log_p[:, 0].sum(), leaf)
    h, direction = 1e-3, torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        slope = (anytime(x + h * direction)[:, 0] - anytime(x - h * direction)[:, 0]).sum() / (2 * h)
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=ANYTIME_DIFFERENCE)


def test_lm_comes_first():
    classifier = gaussian_classifier(lm="paper-v2", levels=LEVELS)
    anytime = AnytimeClassifier(classifier, 0.1)
    anytime.calibrate(photos(60))
    x = photos(5, 9)
    with torch.no_grad():
        agree = anytime(x).argmax(1) == classifier(x).argmax(1)
    assert agree.float().mean() >= 0.8 and anytime.purifies
    assert anytime.network_evaluations > 5 * 5


def test_order_starts_with_what_decides():
    losses = artificial(100, 2, steps=4)
    losses[:, 2] *= 10
    assert _order(losses, np.zeros(6))[0] == 2


@pytest.mark.parametrize(("count", "number"), [(1, 1), (10, 10), (16, 16), (125, 16)])
def test_looks(count, number):
    looks = _looks(count)
    assert looks[-1] == count and looks[0] >= 1 and len(looks) == number


# --- what is refused --------------------------------------------------------------------------------------------------


def test_wrong_use(tiny):
    classifier, calibration = tiny
    with pytest.raises(ConfigError, match="expected a calibration"):
        AnytimeClassifier(classifier)(tiny_pixels(2))
    with pytest.raises(ConfigError, match="above the stated 0.01"):
        AnytimeClassifier(classifier, 0.01, calibration)
    for other in (
        classifier.with_(levels="log:8:0.5:5:flat"),
        classifier.with_(noise_seed=1),
        classifier.with_(class_prior=None),
    ):
        with pytest.raises(ConfigError, match="another classifier"):
            AnytimeClassifier(other, 0.1, calibration)
    with pytest.raises(ConfigError, match='noise="fixed"'):
        AnytimeClassifier(classifier.with_(noise="fresh"))
    with pytest.raises(ConfigError, match="error_rate"):
        AnytimeClassifier(classifier, 0.7)
    with pytest.raises(ConfigError, match=f"at least {images_needed(0.01)} images"):
        calibrate_anytime(classifier, tiny_pixels(100), 0.01)
    with pytest.raises(ConfigError, match="DiffusionClassifier; got Linear"):
        AnytimeClassifier(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="expected an object"):
        AnytimeCalibration.from_json({"z": 1})
    with pytest.raises(InputError, match="pixels"):
        AnytimeClassifier(classifier, 0.1, calibration)(torch.zeros(1, 1, 8, 8))


def test_json_there_and_back(tiny):
    calibration = tiny[1]
    assert AnytimeCalibration.from_json(calibration.to_json()) == calibration


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"error_rate": 0.9}, "0 < error_rate < 0.5"),
        ({"error_rate": "0.1"}, "error_rate: expected a number"),
        ({"confidence": True}, "confidence: expected a number"),
        ({"order": None}, "order: expected a list"),
        ({"order": [0, 1, 2, 3, 4, 5, 6, 6]}, "order to name every level once"),
        ({"order": [0] * 10**5}, "order: expected a list of 1 to 10000"),
        ({"order": [0, 1, 2, 3, 4, 5, 6, "7"]}, "order.7.: expected an integer"),
        ({"order": []}, "order: expected a list"),
        ({"looks": [1, 3, 2, 8], "boundary": [1, 1, 1]}, "looks that grow"),
        ({"looks": [0, 8], "boundary": [1]}, "looks that grow"),
        ({"looks": [2, 7], "boundary": [1]}, "the last look to be the last level"),
        ({"boundary": [1.0]}, "a boundary at each look"),
        ({"boundary": [-1.0] * 7}, "boundary.0.: expected a number >= 0"),
        ({"boundary": [float("nan")] * 7}, "boundary.0.: expected a number"),
        ({"boundary": [10**400] * 7}, "boundary.0.: expected a number"),
        ({"images": -1}, "images: expected an integer"),
        ({"differing": 10**9}, "differing <= images"),
        ({"fingerprint": ["x"]}, "fingerprint: expected"),
        ({"z" * 10**6: 1}, "expected an object with"),
    ],
)
def test_damaged_rules_are_refused(tiny, change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        AnytimeCalibration.from_json({**tiny[1].to_json(), **change})
    assert len(str(caught.value)) < 1000
    with pytest.raises(ConfigError, match="got a list|got list"):
        AnytimeCalibration.from_json([])


def test_a_rule_for_more_levels_than_there_are(tiny):
    classifier, calibration = tiny
    parts = {"order": list(range(9)), "looks": [1, 9], "boundary": [1.0]}
    other = AnytimeCalibration.from_json({**calibration.to_json(), **parts})
    with pytest.raises(ConfigError, match="made for 9 levels; this classifier has 8"):
        AnytimeClassifier(classifier, 0.1, other)


# --- evaluation says so -----------------------------------------------------------------------------------------------


def test_evaluation_says_so(tmp_path):
    classifier = gaussian_classifier(levels=LEVELS)
    anytime = AnytimeClassifier(classifier, 0.1)
    anytime.calibrate(photos(60, 1))
    with torch.no_grad():
        data = Dataset(images(12), classifier(photos(12)).argmax(1), NAMES, "blobs", "test")
    for model, expected in ((anytime, True), (classifier, False)):
        for attacks in (("apgd-ce",), ()):
            settings = EvaluationSettings(
                model="m", dataset="blobs", n=12, eps="2/255", steps=3, sanity=0, attacks=attacks
            )
            report = evaluate(model, data, settings, tmp_path / f"{expected}{len(attacks)}", progress=False).report
            flags = {flag["name"]: flag for flag in report["flags"]}
            assert ("anytime-decisions" in flags) is expected
            if expected:
                assert (
                    "10 %" in flags["anytime-decisions"]["evidence"]
                    and "of 8 levels" in flags["anytime-decisions"]["evidence"]
                )
                assert report["classifier"]["head"] == "conditional, anytime"
    assert anytime.num_classes == CLASSES


# --- kept calibrations and the command --------------------------------------------------------------------------------


def test_kept(tmp_path, monkeypatch):
    from rdc.decisions.anytime import kept

    classifier, data = (
        gaussian_classifier(levels=LEVELS),
        Dataset(images(60, 1), torch.zeros(60).long(), NAMES, "b", "test"),
    )
    made = kept.calibrated(classifier, data, 0.1, folder=tmp_path, progress=False)
    (file,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(kept, "calibrate_anytime", None)
        assert kept.calibrated(classifier, data, 0.1, folder=tmp_path).calibration == made.calibration
        with pytest.raises(TypeError):  # other levels are another classifier
            kept.calibrated(classifier.with_(levels="log:4:1:2:flat"), data, 0.1, folder=tmp_path)
    kept_text = file.read_text()
    without = kept_text.replace(kept_text[kept_text.index(',\n  "digest"') : -3], "")  # as older versions wrote it
    changed = kept_text.replace('"z": ', '"z": 1')  # damage that is still a rule
    for text in (without, changed, "{", "[" * 10**5, "\0", ""):
        file.write_text(text)
        made_again = []
        with monkeypatch.context() as patch:
            patch.setattr(
                kept,
                "calibrate_anytime",
                lambda *a, made_again=made_again, **k: made_again.append(1) or made.calibration,
            )
            assert kept.calibrated(classifier, data, 0.1, folder=tmp_path).calibration == made.calibration
        assert bool(made_again) is (text != without), text
        assert file.read_text() == (without if text == without else kept_text)
    (tmp_path / "file").write_text("")
    kept.calibrated(
        classifier, data, 0.1, folder=tmp_path / "file" / "below", progress=False
    )  # cannot be written: no error
    with pytest.raises(ConfigError, match="--anytime-data"):
        kept.calibrated(tiny_classifier(), data, 0.1, folder=tmp_path)
    monkeypatch.setattr(kept, "cache_folder", lambda name: None)  # a user without a home folder
    assert kept.calibrated(classifier, data, 0.1, progress=False).calibration == made.calibration


def test_command(tmp_path, monkeypatch, capsys):
    import json

    from PIL import Image

    from rdc.cli import main
    from tests.evaluation_models import save_tiny

    monkeypatch.setenv("HOME", str(tmp_path))
    model, data = save_tiny(tmp_path)
    for i, image in enumerate(images(3, 5)):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    options = ["--model", model, "--device", "cpu", "--anytime-data", data]
    assert main(["classify", *files, *options, "--anytime", "0.2"]) == 0
    printed = capsys.readouterr()
    assert "of 3 levels looked at on average; stated rate 20 %" in printed.out
    assert "anytime calibration" in printed.err  # the bar: it was calibrated, once
    assert len(list((tmp_path / ".cache" / "rdc" / "anytime").glob("*-0.2.json"))) == 1
    assert main(["classify", *files, *options, "--anytime", "0.2", "--json"]) == 0
    printed = capsys.readouterr()
    assert [1 <= answer["levels"] <= 3 for answer in json.loads(printed.out)] == [True] * 3 and printed.err == ""
    assert main(["classify", *files, *options, "--json"]) == 0
    assert all("levels" not in answer for answer in json.loads(capsys.readouterr().out))
    assert main(["classify", *files, *options, "--anytime", "0.01"]) == 2
    assert f"{images_needed(0.01)} images for a rate of 0.01" in capsys.readouterr().err
    assert main(["classify", *files, *options, "--anytime", "2"]) == 2
    assert "error_rate" in capsys.readouterr().err
    assert main(["classify", *files, "--device", "cpu", "--anytime", "0.1", "--model", model]) == 2
    assert "--anytime-data" in capsys.readouterr().err
