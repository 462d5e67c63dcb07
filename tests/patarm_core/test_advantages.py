"""Advantages against their formulas in exact fractions."""

import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patarm_core.advantages import (
    dr_grpo,
    group_ids,
    group_relative,
    reinforce_plus_plus,
    rloo,
    zero_variance_groups,
)
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


@given(grouped_rewards)
@example([(0.1 + 0.2, "a"), (0.3, "a"), (1.2, "b"), (1.2, "b"), (0.0, "c")])  # nearly equal is not equal
def test_zero_variance_groups_are_those_of_one_exact_reward(rows):
    batch, keys = columns(rows)
    equal = [k for k in dict.fromkeys(keys) if len({r for r, other in rows if other == k}) == 1]
    assert zero_variance_groups(batch, keys) == equal


@given(st.integers(0, 4), st.integers(0, 4))
def test_group_ids_follow_the_layout_pair_by_pair(num_pairs, num_rollouts):
    layout = [(p, side) for p in range(num_pairs) for side in (0, 1) for _ in range(num_rollouts)]
    assert group_ids(num_pairs, num_rollouts) == [2 * p + side for p, side in layout]
    assert group_ids(num_pairs, num_rollouts, group="pair") == [p for p, _ in layout]


@pytest.mark.parametrize("advantages", [*BASELINES, zero_variance_groups])
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
    with pytest.raises(ValueError, match="group must be"):
        group_ids(1, 2, group="row")
