import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.errors import ConfigError
from rdc.method.levels import (
    LEVEL_PRESETS,
    MOST_LEVELS,
    NOISES,
    SCHEMES,
    SIGMA_RANGE,
    WEIGHTINGS,
    NoiseLevels,
    noise_levels,
    parse_levels,
)
from tests.tolerances import FLOAT64_FORMULA, FLOAT64_ORDER, QUANTILE_MEDIAN, SHARE_OF_DRAWS


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(SCHEMES)),
    st.sampled_from(sorted(WEIGHTINGS)),
    st.integers(1, 64),
    st.floats(0.01, 1),
    st.floats(1.5, 10),
)
def test_levels_are_sorted_inside_the_range_and_weights_sum_to_one(scheme, weighting, count, low, high):
    levels = noise_levels(scheme, count, low, high, weighting)
    sigma, weight = np.array(levels.sigma), np.array(levels.weight)
    assert len(levels) == count
    assert (
        (np.diff(sigma) > 0).all()
        and sigma[0] >= low * (1 - FLOAT64_FORMULA)
        and sigma[-1] <= high * (1 + FLOAT64_FORMULA)
    )
    assert (weight >= 0).all() and abs(weight.sum() - 1) < FLOAT64_ORDER


def test_rdc_released_grid_and_density():
    levels = parse_levels("rdc-released")
    sigma = np.linspace(1e-4, 3, 126)[:-1]
    density = np.exp(-((np.log(sigma) + 1.2) ** 2) / 2 * 1.2**2) / sigma
    np.testing.assert_allclose(levels.sigma, sigma)
    np.testing.assert_allclose(levels.weight, density / density.sum(), rtol=FLOAT64_ORDER)


def test_edm_weights_are_the_lognormal_density_and_keep_large_sigma():
    right, released = parse_levels("edm"), parse_levels("rdc-released")
    sigma = np.array(right.sigma)
    density = np.exp(-((np.log(sigma) + 1.2) ** 2) / (2 * 1.2**2)) / sigma
    np.testing.assert_allclose(right.weight, density / density.sum(), rtol=FLOAT64_ORDER)
    ratio = (released.weight[-1] / released.weight[40]) / (right.weight[-1] / right.weight[40])
    assert ratio < 0.3  # the released density starves sigma > 1 (method, section 2)


def test_flat_counts_levels_equally_in_x0_space_and_eps_in_noise_space():
    sigma = np.geomspace(0.3, 4, 7)
    c_out2 = (sigma * 0.5) ** 2 / (sigma**2 + 0.25)
    flat = noise_levels("log", 7, 0.3, 4, "flat").weight / c_out2
    eps = noise_levels("log", 7, 0.3, 4, "eps").weight / c_out2 * sigma**2
    assert np.ptp(flat) < FLOAT64_ORDER and np.ptp(eps) < FLOAT64_ORDER


def test_lognormal_quantiles_carry_equal_mass():
    levels = noise_levels("lognormal", 9, 1e-3, 100, "edm")
    assert abs(np.log(levels.sigma[4]) + 1.2) < QUANTILE_MEDIAN  # the median of EDM's distribution
    assert max(levels.weight[1:-1]) / min(levels.weight[1:-1]) < 1.5


def test_vp_levels_are_even_in_the_time_of_the_process():
    """abar(t) = exp(-(0.1 t + 19.9 t^2 / 2)), sigma^2 = 1 / abar - 1, at the mid-points of equal stretches of t."""
    levels = noise_levels("vp", 5, 0.08, 0.7, "flat")
    abar = 1 / (1 + np.array([0.08, *levels.sigma, 0.7]) ** 2)
    time = [max(np.roots([19.9 / 2, 0.1, np.log(value)]).real) for value in abar]
    step = (time[-1] - time[0]) / 5
    np.testing.assert_allclose(np.diff(time), [step / 2, *[step] * 4, step / 2], rtol=FLOAT64_FORMULA)


@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS))
def test_importance_draws_follow_the_weighting_as_a_density(weighting):
    """Shares of 10,000 draws below some sigma are those of the weights of as many even levels."""
    drawn = noise_levels("importance", MOST_LEVELS, 0.1, 3, weighting, seed=5)
    even = noise_levels("midpoint", MOST_LEVELS, 0.1, 3, weighting)
    assert np.ptp(drawn.weight) == 0
    for border in (0.15, 0.3, 0.6, 1.2, 2.4):
        share = np.mean(np.array(drawn.sigma) < border)
        expected = np.sum(np.array(even.weight)[np.array(even.sigma) < border])
        assert abs(share - expected) < SHARE_OF_DRAWS
    again = noise_levels("importance", 7, 0.1, 3, weighting, seed=5)
    assert again == noise_levels("importance", 7, 0.1, 3, weighting, seed=5)
    assert again != noise_levels("importance", 7, 0.1, 3, weighting, seed=6)


def test_several_draws_of_a_level_are_rows_of_their_own():
    one, three = parse_levels("log:4:0.1:1:eps"), parse_levels("log:4:0.1:1:eps:draws=3")
    assert three.sigma == tuple(np.repeat(one.sigma, 3)) and len(three) == 12
    np.testing.assert_allclose(np.reshape(three.weight, (4, 3)).sum(1), one.weight, rtol=FLOAT64_FORMULA)
    assert three.describe()["scheme"] == "log, 3 draws each"


def test_changes_behind_a_weighting():
    assert parse_levels("uniform:4:0.1:1:eps:seed=3") == noise_levels("uniform", 4, 0.1, 1, "eps", seed=3)
    twice = parse_levels("log:4:0.1:1:eps:noise=antithetic:draws=2")
    assert twice == noise_levels("log", 4, 0.1, 1, "eps", draws=2, noise="antithetic")
    assert twice.describe()["noise"] == "antithetic" and "noise" not in parse_levels("log:4:0.1:1:eps").describe()


@pytest.mark.parametrize("noise", sorted(NOISES))
def test_levels_keep_their_noise_in_a_file(tmp_path, noise):
    levels = noise_levels("log", 4, 0.1, 1, "eps", noise=noise)
    (tmp_path / "levels.json").write_text(json.dumps(levels.to_json()))
    assert parse_levels(tmp_path / "levels.json") == levels
    assert ("noise" in levels.to_json()) is (noise != "independent")


def test_uniform_depends_on_its_seed_only():
    first, again = (noise_levels("uniform", 5, 0.1, 3, "flat", seed=3) for _ in range(2))
    assert first == again != noise_levels("uniform", 5, 0.1, 3, "flat", seed=4)


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "log:8:0.8:4",
        "log:x:1:2:flat",
        "log:0:1:2:flat",
        "log:3:2:1:flat",
        "lag:3:1:2:flat",
        "log:3:1:2:flut",
        "log:3:-1:2:flat",
        "log:3:1:2:flat:",
        "log:3:1:2:flat:draws",
        "log:3:1:2:flat:draws=0",
        "log:3:1:2:flat:draws=x",
        "log:3:1:2:flat:draws=4000",
        "log:3:1:2:flat:noise=other",
        "log:3:1:2:flat:step=2",
        "log:3:1:2:flat:seed=1:seed=2:seed=3:seed=4",
        "log:100000000:0.8:4:flat",
        "systematic:10001:0.8:4:flat",
        "log:8:0.8:1e30:flat",
        "log:8:1e-30:4:flat",
        "log:8:0.8:inf:flat",
        "log:8:nan:4:flat",
        "log:" + "9" * 6000 + ":1:2:flat",
        "log:8:0.8:4:flat:" * 100_000,
        "lognormal:3:9e5:1e6:edm",
        "a\0b.json",
    ],
)
def test_unknown_levels_say_what_was_expected(text):
    with pytest.raises(ConfigError, match="expected") as caught:
        parse_levels(text)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("wrong", [None, 3, b"edm", ["edm"]])
def test_levels_that_are_no_text(wrong):
    with pytest.raises(ConfigError, match="levels: expected text"):
        parse_levels(wrong)


def test_the_most_levels_and_the_widest_range_give_finite_weights():
    low, high = SIGMA_RANGE
    for scheme in (*SCHEMES, "importance"):
        for weighting in WEIGHTINGS:
            levels = noise_levels(scheme, MOST_LEVELS, low, high, weighting)
            assert len(levels) == MOST_LEVELS and np.isfinite([levels.sigma, levels.weight]).all()


def test_presets_parse():
    assert all(len(parse_levels(name)) == setting[1] for name, setting in LEVEL_PRESETS.items())


@pytest.mark.parametrize(
    "sigma, weight",
    [
        ((), ()),
        ((1.0,), (0.0,)),
        ((1.0, 2.0), (1.0,)),
        ((-1.0,), (1.0,)),
        ((1.0,), (float("nan"),)),
        ((1e30,), (1.0,)),
        ((0.0,), (1.0,)),
        ((float("inf"),), (1.0,)),
        ((1.0, 2.0), (1.0, -1e-9)),
        ((1.0, 2.0), (1e308, 1e308)),
        ((1.0,) * 20_000, (1.0,) * 20_000),
        (("1.0",), (1.0,)),
        ((10**400,), (1.0,)),
        ((10**30, None), (1.0, 1.0)),
        (((1.0,), (2.0, 3.0)), (1.0,)),
        (1.0, 1.0),
        (None, (1.0,)),
    ],
)
def test_bad_levels_are_refused(sigma, weight):
    with pytest.raises(ConfigError, match="expected"):
        NoiseLevels(sigma, weight)


@pytest.mark.parametrize(
    ("sigma", "named"),
    [
        ([1.0, None], "NoneType"),
        ([2**80, "2"], "<U|str"),
        ([2**80, [1.0]], "list|inhomogeneous"),
        ([2**80, True], "bool"),
    ],
)
def test_what_is_no_number_is_named(sigma, named):
    with pytest.raises(ConfigError, match=f"expected a list of numbers as sigma; got.*({named})"):
        NoiseLevels(tuple(sigma), (1.0, 1.0))


def test_integers_beyond_64_bits_are_numbers():
    assert NoiseLevels((1.0, 2.0), (2**80, 3 * 2**80)).weight == (0.25, 0.75)


def test_levels_from_a_file(tmp_path):
    levels = NoiseLevels((0.5, 1.25, 4.0), (1.0, 2.5, 0.25), "log", "fitted")
    path = tmp_path / "levels.json"
    path.write_text(json.dumps(levels.to_json()))
    assert parse_levels(str(path)) == levels and levels.describe()["weighting"] == "fitted"
    path.write_text(json.dumps({"sigma": [1, 2.0], "weight": [3, 1]}))
    assert parse_levels(str(path)) == NoiseLevels((1.0, 2.0), (0.75, 0.25))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[1, 2]", "an object with the lists sigma and weight .*got list"),
        ('{"sigma": [1]}', "got .'sigma'"),
        ('{"sigma": [1], "weight": [1], "levels": 3}', "got .'levels', 'sigma'"),
        ('{"sigma": [1, "2"], "weight": [1, 1]}', "lists of numbers"),
        ('{"sigma": [1, true], "weight": [1, 1]}', "lists of numbers"),
        ('{"sigma": [1, 2], "weight": [1]}', "as many weights as levels"),
        ("{", "JSON file"),
        ("[" * 100_000, "JSON file .*nested too deeply"),
        ('{"sigma": [NaN], "weight": [1]}', "JSON file .*NaN is not JSON"),
        ('{"sigma": [1e30], "weight": [1]}', r"levels.json: .*between 1e-06 and 1e\+06; got 1e\+30 at position 0"),
        ('{"sigma": [1' + "0" * 400 + '], "weight": [1]}', "levels.json: noise levels: expected a list of numbers"),
        ('{"sigma": ' + "[" * 900 + "]" * 900 + ', "weight": [1]}', "sigma has a list"),
        ('{"sigma": {}, "weight": [1]}', "sigma has a dict"),
        ('{"sigma": [1], "weight": [1], "scheme": [2]}', "scheme to be a word .*got a list"),
        ('{"sigma": [1], "weight": [1], "weighting": "' + "x" * 10**6 + '"}', "got 1,000,000 characters"),
        ('{"sigma": [' + "1," * 99_999 + '1], "weight": [1]}', "1 to 10,000; got 100,000 levels"),
        ('{"a": 1, "' + "b" * 10**6 + '": 1}', "got .'a', 'bbb.*1,000,0"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, match):
    path = tmp_path / "levels.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=match) as caught:
        parse_levels(str(path))
    assert len(str(caught.value)) < 1500
    with pytest.raises(ConfigError, match="no.json"):
        parse_levels(str(tmp_path / "no.json"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_levels_as_editors_of_other_systems_save_them(tmp_path, encoding):
    (tmp_path / "levels.json").write_bytes('{"sigma": [1, 2.0], "weight": [3, 1]}'.encode(encoding))
    assert parse_levels(tmp_path / "levels.json").weight == (0.75, 0.25)
