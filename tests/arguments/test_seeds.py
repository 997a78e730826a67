"""Every integer is a seed of its own, wherever rdc draws; seeds that always worked give the numbers they always gave."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rdc.arguments.seeds import random, step_seed
from rdc.attacks.options import AttackOptions
from rdc.data import Dataset, train_holdout
from rdc.defences import PlainClassifier
from rdc.defences.purified import PurifiedClassifier
from rdc.errors import ConfigError, RdcError
from rdc.method.levels import noise_levels
from rdc.method.likelihood_maximization import LikelihoodMaximization
from rdc.method.noise import NoisePlan
from rdc.method.sampling import sample_classes
from rdc.norm_balls import random_start
from rdc.statistics import bootstrap_interval, paired_permutation_test, simulate_boundary
from rdc.statistics.benchmark_comparison import compare_benchmarks
from rdc.statistics.kernels import seed_word
from rdc.training.batches import Batches
from tests.tiny_models import tiny_denoiser

BITS = st.sampled_from([0, 31, 32, 52, 53, 62, 63, 64, 65, 127, 128, 129, 400])
INTEGERS = st.builds(
    lambda sign, bits, near: sign * 2**bits + near, st.sampled_from([-1, 1]), BITS, st.integers(-3000, 3000)
)
DATA = Dataset(
    torch.zeros(40, 1, 1, 1, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64), ("only",), "made", "train"
)
DENOISER = tiny_denoiser("multihead")
GAPS = np.linspace(-1, 2, 40)


def coins(seed):
    flipped = Dataset(torch.arange(40 * 64).to(torch.uint8).view(40, 1, 1, 64), DATA.labels, ("only",), "made", "train")
    batches = Batches(flipped, 40, seed, torch.device("cpu"), flip=True)
    order = torch.from_numpy(batches.positions(7))
    plain = flipped.images[order].to(torch.float32) / 255 * 2 - 1
    return (batches(7)[0] != plain).flatten(1).any(1)


def purifier_draw(seed):
    model = PurifiedClassifier.__new__(PurifiedClassifier)
    model.noise_seed = seed
    return NoisePlan(2).normal(model._draw_number(3), 1, (64,))


#: what draws from a seed -> numbers that tell two seeds apart
DRAWS = {
    "noise": lambda seed: NoisePlan(seed).normal(0, 1, (64,)),
    "stream": lambda seed: NoisePlan(1, stream=seed).normal(0, 1, (64,)),
    "draw": lambda seed: NoisePlan(1, "fresh").normal(seed, 1, (64,)),
    "uniform": lambda seed: NoisePlan(seed).uniform(0, 0, 8),
    "purified": purifier_draw,
    "order": lambda seed: Batches(DATA, 40, seed, torch.device("cpu")).positions(0),
    "coins": coins,
    "step": lambda seed: torch.rand(8, generator=Batches(DATA, 4, seed, torch.device("cpu")).generator(5)),
    "levels": lambda seed: noise_levels("uniform", 8, 0.1, 2.0, "flat", seed=seed).sigma,
    "start": lambda seed: random_start(torch.full((1, 1, 8, 8), 0.5), 0.1, "linf", seed=seed, image_ids=[3], restart=1),
    "bootstrap": lambda seed: bootstrap_interval(GAPS, draws=200, seed=seed, backend="numpy").low,
    "word": lambda seed: seed_word(seed, 0),
    "samples": lambda seed: sample_classes(DENOISER, 1, steps=1, seed=seed, sigma_max=2.0, sigma_min=0.1, progress=False),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
@settings(deadline=None, max_examples=25)
@given(INTEGERS, INTEGERS)
@example(-1, -7)
@example(-1, -1024)
@example(0, 2**32)
@example(-1, 2**64 - 1)
@example(0, 2**64)
@example(2**63, 2**63 + 1)
@example(5, 5 + 2**31)
@example(2**127, -(2**127))
def test_two_integers_are_two_streams(name, one, other):
    first, again, second = (np.asarray(DRAWS[name](seed)) for seed in (one, one, other))
    assert np.array_equal(first, again)
    assert np.array_equal(first, second) == (one == other)


@pytest.mark.parametrize("name", [name for name in DRAWS if name not in ("word", "purified")])
def test_numpy_integers_are_the_integers_they_are(name):
    for kind in (np.int64, np.uint8, np.int32):
        assert np.array_equal(np.asarray(DRAWS[name](kind(7))), np.asarray(DRAWS[name](7)))
    if name not in ("start", "draw"):
        assert np.array_equal(np.asarray(DRAWS[name](torch.tensor(7))), np.asarray(DRAWS[name](7)))


WORDS = st.integers(0, 2**63 - 1)


@settings(deadline=None, max_examples=50)
@given(WORDS, WORDS, WORDS, WORDS)
def test_seeds_below_2_to_63_are_the_words_of_philox_themselves(seed, stream, index, draw):
    expected = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, index, draw])).random(3)
    assert np.array_equal(random(seed, stream, (0, 0, index, draw)).random(3), expected)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10**9))
def test_seeds_below_2_to_32_seed_steps_and_samples_as_before(seed, step):
    assert step_seed(seed, step) == (seed * 1_000_003 + step) * 4099


def test_samples_of_a_small_seed_start_where_they_did():
    noise = torch.randn(DENOISER.image_shape, generator=torch.Generator().manual_seed(5 * 1_000_003 + 1))
    from rdc.method.sampling import _starting_noise

    assert torch.equal(_starting_noise(5, 1, DENOISER.image_shape), noise)


@given(INTEGERS, st.integers(0, 2**31), st.integers(0, 2**31))
def test_steps_of_one_seed_never_share_the_32_bits_that_a_cpu_looks_at(seed, one, other):
    assert (step_seed(seed, one) % 2**32 == step_seed(seed, other) % 2**32) == (one == other)


def test_mirror_coins_differ_from_step_to_step():
    """They did not for 2,000 steps: a list with a word of 2^63 in it is float64 in NumPy."""
    data = Dataset(torch.arange(256).to(torch.uint8).view(1, 1, 1, 256), DATA.labels[:1], ("only",), "made", "train")
    batches = Batches(data, 32, 0, torch.device("cpu"), flip=True)
    seen = {tuple((batches(step)[0][:, 0, 0, 0] > 0).tolist()) for step in range(50)}
    assert len(seen) == 50


NO_SEEDS = [
    True,
    np.bool_(False),
    1.0,
    np.float32(2),
    "3",
    b"4",
    None,
    [5],
    torch.tensor(6.0),
    torch.tensor([7]),
    1j,
    float("nan"),
]


@pytest.mark.parametrize("seed", NO_SEEDS, ids=repr)
@pytest.mark.parametrize(
    "use",
    [
        NoisePlan,
        lambda seed: NoisePlan(0, "fresh").normal(seed, 1, (2,)),
        lambda seed: Batches(DATA, 4, seed, torch.device("cpu")),
        lambda seed: noise_levels("uniform", 8, 0.1, 2.0, "flat", seed=seed),
        lambda seed: bootstrap_interval(GAPS, seed=seed),
        lambda seed: paired_permutation_test(GAPS, 0 * GAPS, seed=seed),
        lambda seed: simulate_boundary(np.ones(3), 1.0, 0.1, draws=1000, seed=seed),
        lambda seed: train_holdout(DATA, 3, seed),
        lambda seed: sample_classes(DENOISER, 1, seed=seed),
        lambda seed: LikelihoodMaximization(seed=seed),
        lambda seed: PlainClassifier(lambda x: x, image_shape=(1, 2, 2), num_classes=2, noise_seed=seed),
        lambda seed: AttackOptions(seed=seed, image_ids=[0]),
        lambda seed: compare_benchmarks(
            {"rounds": {"a": [1.0]}, "path": ""}, {"rounds": {"a": [1.0]}, "path": ""}, seed=seed
        ),
    ],
)
def test_what_is_no_integer_is_refused_in_one_line(use, seed):
    with pytest.raises(RdcError, match="integer") as raised:
        use(seed)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@given(INTEGERS.filter(lambda seed: seed >= 0), INTEGERS.filter(lambda seed: seed >= 0))
@settings(deadline=None, max_examples=20)
def test_holdouts_of_two_seeds_differ(one, other):
    first, second = (train_holdout(DATA, 15, seed)[1].indices.tolist() for seed in (one, other))
    assert (first == second) == (one == other)


def test_boundaries_and_tests_take_any_integer():
    for seed in (-1, 2**63, -(2**200), np.int64(-5)):
        simulate_boundary(np.ones(3), 1.0, 0.1, draws=1000, seed=seed)
        paired_permutation_test(GAPS, 0 * GAPS, draws=200, seed=seed)
        with pytest.raises(ConfigError, match="common"):
            compare_benchmarks({"rounds": {}, "path": "a"}, {"rounds": {}, "path": "b"}, seed=seed)
