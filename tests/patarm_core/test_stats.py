"""Intervals against published values and their own definitions."""

import math
import random
from statistics import NormalDist, fmean

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patarm_core.stats import bootstrap_interval, wilson_interval

# (successes, n): half successes stand for ties.
counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, 2 * n).map(lambda h: h / 2), st.just(n)))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
@example((0, 1), 0.95)
@example((0.5, 1), 0.95)
def test_wilson_ends_are_where_the_score_test_rejects(count, confidence):
    successes, n = count
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = wilson_interval(successes, n, confidence)
    assert 0 <= low <= successes / n <= high <= 1
    for end in (low, high):
        # |p − end| = z sqrt(end (1 − end) / n) on both ends, which is how the interval is defined.
        assert abs(successes / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-7)


@given(counts)
def test_wilson_is_symmetric_in_successes_and_failures(count):
    successes, n = count
    low, high = wilson_interval(successes, n)
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_reaches_zero_and_one_exactly():
    for n in range(1, 500):
        assert wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0


def test_wilson_without_trials_excludes_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("args", [(-1, 5), (6, 5), (1, 0), (0, -1), (math.nan, 5), (1, 5, 0), (1, 5, 1), (1, 5, 95)])
def test_wilson_refuses_what_is_no_proportion(args):
    with pytest.raises(ValueError):
        wilson_interval(*args)


def test_bootstrap_is_the_middle_of_the_resampled_means():
    rng = random.Random(1)
    values = [rng.gauss(0, 1) for _ in range(50)]
    rng = random.Random(7)
    means = sorted(fmean(rng.choices(values, k=50)) for _ in range(200))
    assert bootstrap_interval(values, seed=7, num_resamples=200, confidence=0.9) == (means[10], means[189])
    assert bootstrap_interval(values, seed=7, num_resamples=1) == (fmean(random.Random(7).choices(values, k=50)),) * 2


def test_bootstrap_is_a_function_of_its_seed():
    values = [0, 1, 1, 0, 1, 0.5]
    state = random.getstate()
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert random.getstate() == state  # the global generator is left alone
    wide = list(range(100))
    assert bootstrap_interval(wide, seed=3) != bootstrap_interval(wide, seed=4)


def test_bootstrap_agrees_with_the_normal_interval_where_that_holds():
    rng = random.Random(0)
    values = [rng.gauss(5, 2) for _ in range(400)]
    mean = fmean(values)
    half = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values)) / 400
    assert bootstrap_interval(values, seed=0, num_resamples=1000) == pytest.approx((mean - half, mean + half), abs=0.05)


def test_bootstrap_of_equal_values_is_a_point():
    assert bootstrap_interval([0.5] * 9, seed=0, num_resamples=50) == (0.5, 0.5)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95])
def test_bootstrap_refuses_an_impossible_confidence(confidence):
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0], seed=0, confidence=confidence)


def test_bootstrap_refuses_nothing_and_what_is_not_finite():
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="at least one value"):
            bootstrap_interval(values, seed=0)
    with pytest.raises(ValueError, match="num_resamples"):
        bootstrap_interval([1.0], seed=0, num_resamples=0)
