"""Advantages against their formulas in exact fractions."""

import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patarm_core.advantages import (
    dr_grpo,
    estimate,
    estimate_separately,
    group_relative,
    reinforce_plus_plus,
    rloo,
    totals,
    variance_shares,
)
from patarm_core.par import exact
from tests.strategies import grouped_rewards, rewards

BASELINES = [group_relative, dr_grpo, rloo, reinforce_plus_plus]


def columns(rows):
    return [r for r, _ in rows], [key for _, key in rows]


def mean(values):
    return sum(map(Fraction, values), Fraction()) / len(values)


def deviation(values, ddof):
    variance = sum((Fraction(v) - mean(values)) ** 2 for v in values) / (len(values) - ddof)
    return math.sqrt(variance)


def by_definition(rows, advantage):
    """`advantage(reward, group, position in the group)` for every row, 0 where the group is all equal."""
    expected = []
    for i, (r, key) in enumerate(rows):
        group = [value for value, other in rows if other == key]
        position = sum(other == key for _, other in rows[:i])
        expected.append(0.0 if len(set(group)) == 1 else float(advantage(r, group, position)))
    return expected


def close(values):
    return pytest.approx(values, rel=1e-9, abs=1e-12)


@given(grouped_rewards, st.sampled_from([0, 1]), st.sampled_from([1e-6, 1e-3, 1.0]))
@example([(1.2, 0), (0.0, 0), (-1.5, 0), (1.4, 0)], 1, 1e-6)
def test_group_relative_is_the_grpo_formula(rows, ddof, eps):
    expected = by_definition(rows, lambda r, g, _: (r - mean(g)) / Fraction(deviation(g, ddof) + eps))
    assert group_relative(*columns(rows), ddof=ddof, eps=eps) == close(expected)


def test_group_relative_divides_by_the_sample_deviation_by_default():
    assert group_relative([0.0, 1.0], "aa", eps=0) == close([-math.sqrt(0.5), math.sqrt(0.5)])
    assert group_relative([0.0, 1.0], "aa", eps=0, ddof=0) == close([-1.0, 1.0])


@given(grouped_rewards)
def test_dr_grpo_only_centres(rows):
    expected = close(by_definition(rows, lambda r, g, _: r - mean(g)))
    assert dr_grpo(*columns(rows)) == expected
    assert group_relative(*columns(rows), scale="none") == expected


@given(grouped_rewards)
def test_rloo_subtracts_the_mean_of_the_others(rows):
    expected = by_definition(rows, lambda r, g, i: r - mean(g[:i] + g[i + 1 :]))
    assert rloo(*columns(rows)) == close(expected)


@given(st.lists(rewards, min_size=2, max_size=24), st.sampled_from([0, 1]))
def test_reinforce_plus_plus_whitens_the_batch(batch, ddof):
    if len(set(batch)) == 1:
        assert reinforce_plus_plus(batch) == [0.0] * len(batch)
    else:
        std = deviation(batch, ddof) + 1e-6
        assert reinforce_plus_plus(batch, ddof=ddof) == close([float((r - mean(batch)) / Fraction(std)) for r in batch])


@given(grouped_rewards)
def test_the_baseline_variant_divides_centred_rewards_by_their_deviation_over_the_batch(rows):
    centred = by_definition(rows, lambda r, g, _: r - mean(g))
    if any(centred):
        std = math.sqrt(sum(c * c for c in centred) / (len(centred) - 1))
        centred = [c / (std + 1e-6) for c in centred]
    assert reinforce_plus_plus(*columns(rows)) == close(centred)


@pytest.mark.parametrize("advantages", BASELINES)
@given(rows=grouped_rewards, size=st.integers(1, 16), r=rewards)
@example(rows=[(1.2, 0), (0.0, 0)], size=3, r=0.1)  # the float mean of three 0.1 is not 0.1
def test_an_all_equal_group_has_exactly_zero_advantage(advantages, rows, size, r):
    batch, keys = columns([*rows, *[(r, "equal")] * size])
    assert advantages(batch, keys)[len(rows) :] == [0.0] * size


@pytest.mark.parametrize("advantages", BASELINES)
@given(rows=grouped_rewards)
def test_advantages_of_a_group_add_up_to_zero(advantages, rows):
    batch, keys = columns(rows)
    result = advantages(batch, keys)
    for key in set(keys):
        assert math.fsum(a for a, other in zip(result, keys, strict=True) if other == key) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("advantages", BASELINES)
@given(rows=grouped_rewards, rng=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(advantages, rows, rng):
    order = list(range(len(rows)))
    rng.shuffle(order)
    before = advantages(*columns(rows))
    assert advantages(*columns([rows[i] for i in order])) == close([before[i] for i in order])


@pytest.mark.parametrize("advantages", [group_relative, dr_grpo, rloo])
@given(rows=grouped_rewards, others=grouped_rewards)
def test_a_group_does_not_depend_on_other_groups(advantages, rows, others):
    alone = advantages(*columns(rows))
    assert advantages(*columns([*rows, *[(r, (key,)) for r, key in others]]))[: len(rows)] == alone


@given(st.lists(st.tuples(rewards, st.fractions(-1, 0, max_denominator=5000)), min_size=2, max_size=16))
def test_rewards_are_equal_exactly_where_their_parts_add_up_to_the_same(rows):
    par, length = map(list, zip(*rows, strict=True))
    found = totals([par, length])
    whole = [exact(r) + punishment for r, punishment in rows]
    assert found == [float(r) for r in whole]
    assert len(set(found)) <= len(set(whole))
    assert totals([par]) == par


def test_rounding_makes_no_variance():
    parts = [[1.4, 1.2], [-0.4, -0.2]]
    assert math.fsum((1.4, -0.4)) != math.fsum((1.2, -0.2))
    assert totals(parts) == [1.0, 1.0]
    assert group_relative(totals(parts), "aa") == [0.0, 0.0] and variance_shares(parts, "aa") is None
    assert totals([[1.4, 1.2], [Fraction(-8, 15), Fraction(-1, 3)]]) == [13 / 15] * 2


# (PAR, format, group id) rows of one batch, as rewards have them and any others.
part_rows = st.lists(st.tuples(rewards, st.sampled_from([-1.5, -1.0, 0.0]) | st.floats(-10, 10), st.integers(0, 3)))


def of_parts(rows):
    par, format, keys = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    return [par, format], keys


@given(part_rows)
@example([(1.2, 0.0, 0), (0.0, -1.5, 0), (1.4, 0.0, 1), (0.0, 0.0, 1)])
@example([(1.2, -1.2, 0), (0.0, 0.0, 0)])  # parts that cancel: R does not vary
def test_shares_of_variance_are_covariances_with_the_whole_within_groups(rows):
    parts, keys = of_parts(rows)
    whole = [exact(par) + exact(format) for par, format in zip(*parts, strict=True)]

    def covariance(xs, ys):
        total = Fraction()
        for key in set(keys):
            own = [(Fraction(x), Fraction(y)) for x, y, other in zip(xs, ys, keys, strict=True) if other == key]
            total += sum((x - mean([a for a, _ in own])) * (y - mean([b for _, b in own])) for x, y in own)
        return total

    shares = variance_shares(parts, keys)
    variance = covariance(whole, whole)
    if variance == 0:
        assert shares is None
    elif variance > 1e-9:  # below, rounding of the rewards is what varies
        assert shares == pytest.approx(
            [float(covariance(part, whole) / variance) for part in parts], rel=1e-6, abs=1e-6
        )
        assert sum(shares) == pytest.approx(1, abs=1e-6)


def test_shares_of_variance_by_hand():
    # One group: R = 1.2, 0, -1.5. mean -0.1; PAR·(R - mean) = 1.56, format·(R - mean) = 2.1; variance 3.66.
    assert variance_shares([[1.2, 0, 0], [0, 0, -1.5]], "aaa") == close([1.56 / 3.66, 2.1 / 3.66])
    assert variance_shares([[1.2] * 8, [0.0] * 8], "a" * 8) is None  # of which a float mean is not 1.2
    assert variance_shares([[1.0, 0.0], [0.0, 0.5]], "aa") == close([2.0, -1.0])  # format works against PAR


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"])
@given(rows=part_rows)
def test_separate_parts_are_estimated_apart_and_added(name, rows):
    parts, keys = of_parts(rows)
    sums = [a + b for a, b in zip(*(estimate(name, part, keys) for part in parts), strict=True)]
    assert estimate_separately(name, parts, keys) == close(sums)
    assert estimate_separately(name, parts[:1], keys) == estimate(name, parts[0], keys)
    if name in ("dr_grpo", "rloo"):  # which divide by nothing, and so are linear
        together = estimate(name, [a + b for a, b in zip(*parts, strict=True)], keys)
        assert sums == pytest.approx(together, rel=1e-9, abs=1e-9)


@given(grouped_rewards)
def test_an_estimator_goes_by_its_name(rows):
    batch, keys = columns(rows)
    assert estimate("grpo", batch, keys) == group_relative(batch, keys)
    assert estimate("dr_grpo", batch, keys) == dr_grpo(batch, keys)
    assert estimate("rloo", batch, keys) == rloo(batch, keys)
    assert estimate("reinforce++", batch, keys) == reinforce_plus_plus(batch)
    assert estimate("reinforce++_baseline", batch, keys) == reinforce_plus_plus(batch, keys)
    with pytest.raises(ValueError, match="unknown estimator 'ppo'; estimators are reinforce"):
        estimate("ppo", batch, keys)


@pytest.mark.parametrize("advantages", BASELINES)
def test_bad_rewards_are_refused(advantages):
    assert advantages([], []) == []
    with pytest.raises(ValueError, match="2 rewards and 1 group ids"):
        advantages([1.0, 2.0], [0])
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="at index 1"):
            advantages([1.0, bad], [0, 0])


@pytest.mark.parametrize("options", [{"scale": "var"}, {"ddof": 2}, {"eps": -1.0}, {"eps": float("nan")}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError):
        group_relative([0.0, 1.0], [0, 0], **options)


def test_other_bad_options_are_refused():
    with pytest.raises(ValueError, match="finite"):
        reinforce_plus_plus([0.0, float("nan")])
    with pytest.raises(ValueError, match="ddof"):
        reinforce_plus_plus([0.0, 1.0], ddof=2)
