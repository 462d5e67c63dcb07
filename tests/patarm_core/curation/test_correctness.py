"""Correctness of rollouts under every option, against the definitions written the slow way."""

from fractions import Fraction
from itertools import product
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patarm_core.curation.correctness import Correctness, Definition, Ties, Unit, Unparsed
from patarm_core.par import par_rewards
from tests.strategies import scores

both = st.integers(1, 6).flatmap(lambda n: st.tuples(*[st.lists(st.none() | scores, min_size=n, max_size=n)] * 2))
options = st.builds(
    Correctness, definition=st.sampled_from(get_args(Definition)), ties=st.sampled_from(get_args(Ties)),
    unparsed=st.sampled_from(get_args(Unparsed)), unit=st.sampled_from(get_args(Unit)),
)  # fmt: skip


def by_definition(chosen, rejected, rule, side=None):
    """One comparison after the other, as the options say it."""
    mean = {
        name: sum(valid) / Fraction(len(valid)) if (valid := [s for s in of if s is not None]) else None
        for name, of in (("chosen", chosen), ("rejected", rejected))
    }
    if None in mean.values():
        return None
    n = range(len(chosen))
    compared = {
        "index": {"chosen": [(chosen[i], rejected[i]) for i in n], "rejected": []},
        "all": {"chosen": [(chosen[i], rejected[j]) for i, j in product(n, n)], "rejected": []},
        "mean": {
            "chosen": [(s, mean["rejected"]) for s in chosen],
            "rejected": [(mean["chosen"], s) for s in rejected],
        },
    }[rule.definition]
    sides = ("chosen", "rejected") if side is None or rule.definition != "mean" else (side,)
    k = total = Fraction(0)
    for c, r in [pair for name in sides for pair in compared[name]]:
        if c is None or r is None:
            total += rule.unparsed == "wrong"
        elif c == r:
            total += rule.ties != "left_out"
            k += Fraction(1, 2) if rule.ties == "half" else 0
        else:
            total += 1
            k += c > r
    return k / total if total else None


@given(both, options)
@example(([Fraction("8.3")] * 6, [Fraction("8.3")] * 6), Correctness(definition="mean"))  # a tie that floats break
def test_shares_are_those_of_the_definition(sides, rule):
    shares = rule.shares(*sides)
    assert shares == tuple(by_definition(*sides, rule, side) for side in (None, "chosen", "rejected"))


@given(both)
def test_by_mean_a_score_is_right_where_par_rewards_it(sides):
    rewards = [reward for side in par_rewards(*sides) for reward in side]
    share = Correctness(definition="mean").shares(*sides)[0]
    assert (share or 0) == Fraction(sum(reward > 0 for reward in rewards), len(rewards))


@given(both, options)
def test_exchanging_the_sides_turns_right_into_wrong(sides, rule):
    """But for what is counted as wrong either way."""
    there, back = rule.shares(*sides)[0], rule.shares(*sides[::-1])[0]
    if there is not None and back is not None:
        assert there + back <= 1
        if rule.ties != "wrong" and rule.unparsed == "left_out":
            assert there + back == 1


@pytest.mark.parametrize("k", range(9))
def test_the_bounds_are_inclusive(k):
    chosen = [Fraction(9)] * k + [Fraction(1)] * (8 - k)
    expected = "hard" if k < 1 else "easy" if k > 6 else "keep"
    assert Correctness().verdict(chosen, [Fraction(5)] * 8) == expected


@given(both, options)
def test_a_verdict_follows_from_the_shares_that_the_unit_names(sides, rule):
    of_pair, *of_sides = rule.shares(*sides)
    verdict = rule.verdict(*sides)
    counted = [of_pair] if rule.unit == "pair" else of_sides
    if None in counted:
        has_both = all(any(score is not None for score in side) for side in sides)
        assert verdict == ("undecided" if has_both else "unjudged")
        return
    within = [Fraction(1, 8) <= share <= Fraction(3, 4) for share in counted]
    assert (verdict == "keep") == (any(within) if rule.unit == "either_side" else all(within))
    if verdict == "hard":
        assert min(counted) < Fraction(1, 8)
    if verdict == "easy":
        assert max(counted) > Fraction(3, 4) and min(counted) >= Fraction(1, 8)


def test_a_judge_that_never_answers_about_a_side_is_not_a_wrong_one():
    for definition in get_args(Definition):
        assert Correctness(definition=definition).verdict([None] * 8, [Fraction(5)] * 8) == "unjudged"


def test_where_all_that_counts_is_left_out_the_judge_has_answered_all_the_same():
    rule = Correctness(ties="left_out", unparsed="left_out")
    assert rule.verdict([Fraction(5)] * 8, [Fraction(5)] * 8) == "undecided"
    assert rule.verdict([Fraction(9), None], [None, Fraction(1)]) == "undecided"


def test_the_ith_scores_need_each_other():
    with pytest.raises(ValueError, match="2 scores of the chosen response and 1 of the rejected one"):
        Correctness().shares([1, 2], [1])
