"""A draw keeps levels, weights and noise together, whichever of them are picked."""

import pytest
import torch

from rdc.errors import ConfigError
from rdc.method.draw import Draw
from rdc.method.noise import NoisePlan
from tests.tiny_models import pixels, tiny_classifier, tiny_denoiser

SHAPE = (1, 2, 2)


def draw(levels=4, dtype=torch.float64):
    place = torch.arange(levels, dtype=dtype)
    return Draw(1 + place, 10 + place, 100 + place.reshape(-1, 1, 1, 1).expand(-1, *SHAPE))


@pytest.mark.parametrize("pick, kept", [(slice(1, 3), [1, 2]), (slice(2, None), [2, 3]), ([3, 0], [3, 0])])
def test_levels_are_picked_with_their_weights_and_noise(pick, kept):
    some = draw()[pick]
    assert len(some) == len(kept)
    assert some.sigma.tolist() == [1 + t for t in kept] and some.weight.tolist() == [10 + t for t in kept]
    assert some.noise.shape[1:] == SHAPE and some.noise[:, 0, 0, 0].tolist() == [100 + t for t in kept]


def test_slices_copy_nothing():
    whole = draw()
    assert all(a.data_ptr() == b[1:].data_ptr() for a, b in zip(whole[1:].tensors, whole.tensors, strict=True))


def test_tensors_make_the_same_draw_and_one_type_for_all():
    whole = Draw(torch.ones(2).double(), torch.ones(2).half(), torch.ones(2, *SHAPE))
    assert all(a is b for a, b in zip(Draw(*whole.tensors).tensors, whole.tensors, strict=True))
    assert {tensor.dtype for tensor in whole.to(torch.zeros(1)).tensors} == {torch.float32}


def test_rows_are_image_major_as_the_noisy_images_are():
    denoiser, some = tiny_denoiser("conditional", torch.float64), tiny_classifier("conditional", torch.float64)
    x0 = 2 * pixels(3, dtype=torch.float64) - 1
    d = some.drawn(0, x0)
    x_t, target = denoiser.noisy(x0, d)
    rows = d.rows(3)
    assert len(rows) == len(x_t) == len(target) == 3 * len(d)
    for row, (n, t) in enumerate((n, t) for n in range(3) for t in range(len(d))):
        assert rows[row] == d.sigma[t] and torch.equal(x_t[row], x0[n] + d.sigma[t] * d.noise[t])


@pytest.mark.parametrize(
    "sigma, weight, noise",
    [
        ((2,), (3,), (2, *SHAPE)),
        ((2,), (2,), (3, *SHAPE)),
        ((), (), SHAPE),
        ((2, 1), (2, 1), (2, 1, *SHAPE)),
        ((2,), (2,), (2,)),
    ],
)
def test_what_does_not_belong_together_is_refused(sigma, weight, noise):
    with pytest.raises(ConfigError, match=r"expected sigma \[T\].*; got .*\["):
        Draw(torch.ones(sigma), torch.ones(weight), torch.ones(noise))


def test_a_classifier_draws_its_own_levels_and_plan():
    classifier, like = tiny_classifier("multihead"), torch.zeros(1, dtype=torch.float64)
    found = classifier.drawn(5, like)
    assert found.sigma.tolist() == list(classifier.levels.sigma)
    assert found.weight.tolist() == list(classifier.levels.weight)
    noise = NoisePlan(classifier.noise_seed).normal(5, len(found), classifier.image_shape)
    assert torch.equal(found.noise, noise.double())
    assert classifier.drawn(5, like) is found and classifier.drawn(6, like).noise.ne(found.noise).any()
