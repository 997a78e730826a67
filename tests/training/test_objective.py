"""The second term of the conditional objective: the posterior over a few classes."""

import math

import pytest
import torch

from rdc.errors import ConfigError
from rdc.training.objective import ConditionalObjective, NoiseDistribution
from tests.tiny_models import CLASSES, pixels, tiny_denoiser
from tests.tolerances import FLOAT32_ROUNDING, FLOAT64_ORDER

LABELS = torch.tensor([0, 2, 1, 1])
NOISE = NoiseDistribution(0.0, 0.5)


class Recorder(torch.nn.Module):
    """Passes everything on to a network and remembers what came and went."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, []

    def forward(self, *args):
        out = self.net(*args)
        self.calls.append((*args, out))
        return out


def run(**settings):
    objective = ConditionalObjective(CLASSES, NOISE, **{"label_dropout": 0.0, **settings})
    net = Recorder(tiny_denoiser(dtype=torch.float64).network)
    x0 = 2 * pixels(4, dtype=torch.float64) - 1
    loss, values = objective(net, x0, LABELS, torch.Generator().manual_seed(5))
    assert len(net.calls) == 1
    return x0, net.calls[0], loss, values


def test_posterior_follows_the_equation():
    """Denoised images, float64, one image after another; only the noisy inputs are taken from the objective."""
    x0, (scaled, c_noise, shown, f), loss, values = run(posterior_weight=0.7, posterior_scale=1.5, wrong_classes=2)
    assert shown.shape == (12, CLASSES)
    entropy, denoising, hits = [], [], []
    for image in range(4):
        rows = range(3 * image, 3 * image + 3)
        names = [int(shown[row].argmax()) for row in rows]
        assert names[0] == LABELS[image] and sorted(names) == [0, 1, 2]  # K = 3: both other classes
        sigma = math.exp(4 * c_noise[rows[0]])
        x_t = scaled[rows[0]] * math.sqrt(sigma**2 + 0.25)
        assert all(torch.equal(scaled[row], scaled[rows[0]]) for row in rows)
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
        errors = [((c_skip * x_t + c_out * f[row] - x0[image]) ** 2).sum().item() for row in rows]
        scores = [-1.5 * error / sigma**2 for error in errors]
        entropy.append(math.log(sum(math.exp(score - scores[0]) for score in scores)))
        denoising.append(errors[0] / c_out**2 / x0[image].numel())
        hits.append(min(errors) == errors[0])
    assert values["posterior"].item() == pytest.approx(sum(entropy) / 4, rel=FLOAT32_ROUNDING)
    assert values["denoising"].item() == pytest.approx(sum(denoising) / 4, rel=FLOAT32_ROUNDING)
    assert values["hits"].item() == pytest.approx(sum(hits) / 4)
    assert loss.item() == pytest.approx((sum(denoising) + 0.7 * sum(entropy)) / 4, rel=FLOAT32_ROUNDING)


def test_without_label_there_is_no_posterior():
    _, (_, _, shown, _), loss, values = run(posterior_weight=0.7, label_dropout=1.0)
    assert values["posterior"] == 0 and loss == values["denoising"]
    assert not shown[::3].any() and shown[1::3].any(1).all()


def test_switched_off_nothing_changes():
    _, (_, _, shown, _), loss, values = run(posterior_weight=0.0)
    assert shown.shape == (4, CLASSES) and set(values) == {"loss"}
    _, _, other, others = run(posterior_weight=0.7)
    torch.testing.assert_close(others["denoising"], loss.detach(), rtol=FLOAT64_ORDER, atol=0)  # the same draws


def test_wrong_classes_are_distinct_and_wrong():
    objective = ConditionalObjective(10, NOISE, posterior_weight=1.0, wrong_classes=4)
    labels = torch.arange(10).repeat(40)
    wrong = objective._wrong_classes(labels, torch.Generator().manual_seed(0))
    assert wrong.shape == (400, 4) and (wrong != labels[:, None]).all()
    assert all(len(set(row)) == 4 for row in wrong.tolist())
    counts = torch.zeros(10, 10).index_put((labels.repeat_interleave(4), wrong.flatten()), torch.ones(1600), True)
    assert (counts.fill_diagonal_(17.8) > 5).all()  # every wrong class turns up


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"posterior_weight": -1.0}, "posterior: expected a weight >= 0"),
        ({"posterior_weight": 1.0, "posterior_scale": 0.0}, "a scale > 0"),
        ({"posterior_weight": 1.0, "wrong_classes": 3}, "wrong_classes: expected 1 to 2; got 3"),
        ({"posterior_weight": 1.0, "wrong_classes": 0}, "wrong_classes"),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        ConditionalObjective(3, NOISE, **settings)
