import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.errors import ConfigError
from rdc.method.levels import (
    LEVEL_PRESETS,
    MOST_LEVELS,
    SCHEMES,
    SIGMA_RANGE,
    WEIGHTINGS,
    NoiseLevels,
    noise_levels,
    parse_levels,
)
from tests.tolerances import FLOAT64_FORMULA, FLOAT64_ORDER, QUANTILE_MEDIAN


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
    for scheme in SCHEMES:
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
