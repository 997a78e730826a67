import copy

import pytest
import torch
import torch.nn.functional as F

from rdc.errors import ConfigError
from rdc.networks.presets import build_network, network_preset
from rdc.training.distillation import DistillationObjective, student_from_teacher
from rdc.training.objective import NoiseDistribution
from tests.tiny_models import CLASSES, CONFIG, SHAPE, pixels, randomize, tiny_denoiser
from tests.tolerances import FLOAT32_ROUNDING, FLOAT32_SUM, FLOAT64_SQUARE, MILLIONS

NOISE = NoiseDistribution(0.0, 0.5)
LABELS = torch.tensor([0, 2, 1, 1])


def images():
    return 2 * pixels(4, dtype=torch.float64) - 1


def run(objective, net, seed=0):
    return objective(net, images(), LABELS, torch.Generator().manual_seed(seed))


class Echo(torch.nn.Module):
    """A 'student' that answers exactly what the teacher would, for every class and the null label."""

    def __init__(self, teacher, error=None):
        super().__init__()
        self.teacher, self.error = teacher, error

    def forward(self, scaled, c_noise):
        sigma = (4 * c_noise).exp()
        x_t = scaled / self.teacher.precondition.c_in(sigma).reshape(-1, 1, 1, 1)
        every = [self.teacher.f(x_t, sigma, torch.full((len(x_t),), k)) for k in range(CLASSES + 1)]
        out = torch.stack(every, 1)
        return out if self.error is None else out + self.error


def test_a_student_that_equals_its_teacher_has_no_loss():
    teacher = tiny_denoiser(dtype=torch.float64)
    loss, values = run(DistillationObjective(teacher, NOISE, CLASSES + 1), Echo(teacher))
    assert loss < FLOAT64_SQUARE and values["distilled"] < FLOAT64_SQUARE and values["denoising"] > 1e-3


def test_a_shared_error_counts_once_and_a_difference_counts_twice():
    teacher = tiny_denoiser(dtype=torch.float64)
    objective = DistillationObjective(teacher, NOISE, CLASSES + 1, difference_weight=3.0)
    _, shared = run(objective, Echo(teacher, torch.full((1, CLASSES + 1, 1, 1, 1), 0.5)))
    torch.testing.assert_close(shared["distilled"], torch.tensor(0.25, dtype=torch.float64))
    assert shared["differences"] < FLOAT64_SQUARE
    error = torch.zeros(1, CLASSES + 1, 1, 1, 1)
    error[:, 3] = 1.0  # the null label, never the true class
    loss, apart = run(objective, Echo(teacher, error))
    torch.testing.assert_close(apart["distilled"], torch.tensor(1 / 4, dtype=torch.float64))
    torch.testing.assert_close(apart["differences"], torch.tensor(1 / 3, dtype=torch.float64))
    torch.testing.assert_close(loss, apart["distilled"] + 3 * apart["differences"])


def test_true_class_comes_first_and_the_others_are_distinct():
    objective = DistillationObjective(tiny_denoiser(), NOISE, 3)
    seen = set()
    for seed in range(40):
        classes = objective._choose(LABELS, torch.Generator().manual_seed(seed))
        assert (classes[:, 0] == LABELS).all()
        assert all(len(set(row)) == 3 for row in classes.tolist())
        seen |= set(classes.flatten().tolist())
    assert seen == {0, 1, 2, 3}  # the null label too


def test_posterior_term_is_cross_entropy_with_elbo_weights():
    teacher = tiny_denoiser(dtype=torch.float64)
    student = tiny_denoiser("multihead", torch.float64).network
    objective = DistillationObjective(teacher, NOISE, 0, posterior_weight=0.7, posterior_scale=1.5)
    loss, values = run(objective, student)
    generator = torch.Generator().manual_seed(0)
    sigma = NOISE.sample(4, generator).to(torch.float64)
    noise = torch.randn(4, *SHAPE, generator=generator).double()
    x0 = images()
    s = sigma.reshape(-1, 1, 1, 1)
    x_t = x0 + s * noise
    f = student(x_t / (s**2 + 0.25).sqrt(), sigma.log() / 4)
    d = 0.25 / (s**2 + 0.25) * x_t
    d = d[:, None] + (s * 0.5 / (s**2 + 0.25).sqrt())[:, None] * f[:, :CLASSES]
    score = -1.5 * (d - x0[:, None]).square().flatten(2).sum(2) / sigma[:, None] ** 2
    torch.testing.assert_close(
        values["posterior"], F.cross_entropy(score, LABELS), rtol=FLOAT32_SUM, atol=FLOAT32_ROUNDING
    )
    torch.testing.assert_close(loss, values["denoising"] + values["unlabelled"] + 0.7 * values["posterior"])
    target = (x0 - 0.25 / (s**2 + 0.25) * x_t) / (s * 0.5 / (s**2 + 0.25).sqrt())
    torch.testing.assert_close(
        values["unlabelled"], (f[:, CLASSES] - target).square().mean(), rtol=FLOAT32_SUM, atol=FLOAT32_ROUNDING
    )


def test_student_starts_as_its_teacher_without_label():
    config = copy.deepcopy(CONFIG)
    teacher = tiny_denoiser()
    student, made = student_from_teacher(teacher.network, config, wide_channels=8)
    x_t, sigma = 2 * pixels(2) - 1, torch.tensor([0.4, 2.0])
    every = student(*teacher._inputs(x_t, sigma))
    assert every.shape == (2, CLASSES + 1, *SHAPE) and made["kind"] == "multihead" and config["kind"] == "conditional"
    for k in range(CLASSES + 1):
        torch.testing.assert_close(every[:, k], teacher.f_null(x_t, sigma))


def test_gradients_reach_every_weight_of_the_student():
    teacher = tiny_denoiser()
    student = randomize(student_from_teacher(teacher.network, CONFIG, 8)[0])
    objective = DistillationObjective(teacher, NOISE, 2, posterior_weight=0.1)
    objective(student, images().float(), LABELS, torch.Generator().manual_seed(0))[0].backward()
    idle = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in idle if "map_label.weight" not in name] == []
    assert all(p.grad is None for p in teacher.parameters())


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="classes_per_image: expected 0 to 4; got 5"):
        DistillationObjective(tiny_denoiser(), NOISE, 5)
    for bad in ({"posterior_weight": -1.0}, {"difference_weight": float("inf")}, {"posterior_scale": 0.0}):
        with pytest.raises(ConfigError, match="distillation: expected weights >= 0"):
            DistillationObjective(tiny_denoiser(), NOISE, 3, **bad)
    with pytest.raises(ConfigError, match="neither"):
        DistillationObjective(tiny_denoiser(), NOISE, 0)
    with pytest.raises(ConfigError, match="teacher: expected a conditional"):
        student_from_teacher(tiny_denoiser("multihead").network, {**CONFIG, "kind": "multihead"})


@pytest.mark.parametrize(("name", "millions"), [("medium-32", 7.2), ("large-32", 21.2)])
def test_presets_for_a_gpu_have_students_of_their_size(name, millions):
    """In float16 the medium student stays below 20 MB, the large one in three files of 16 MiB; nothing is drawn or computed."""
    config = network_preset(name, 10)
    with torch.device("meta"):
        teacher = build_network(config)
        student = build_network({**config, "kind": "multihead", "wide_channels": 256})
        x, sigma = torch.empty(2, 3, 32, 32), torch.empty(2)
        assert teacher(x, sigma, torch.empty(2, 10)).shape == (2, 3, 32, 32)
        assert student(x, sigma).shape == (2, 11, 3, 32, 32)
    counts = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (teacher, student)]
    assert counts[0] == pytest.approx(millions, abs=MILLIONS) and counts[0] < counts[1] < (
        10 if name == "medium-32" else 25
    )
