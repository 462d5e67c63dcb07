"""Voting against its rules."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patarm_core.voting import at_n, average, compare, majority, majority_choice, mean_score, unswap
from tests.strategies import scores, sides

paired = st.lists(st.tuples(st.none() | scores, st.none() | scores), max_size=8)


@given(sides)
@example([None, None])
@example([])
@example([0])  # a score of 0 is a score
def test_average_is_the_mean_of_the_valid_scores_and_none_without_one(side):
    valid = [s for s in side if s is not None]
    assert mean_score(side) == (sum(valid) / Fraction(len(valid)) if valid else None)
    assert average(side) == (float(mean_score(side)) if valid else None)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_equal_scores_tie_at_any_of_the_101_values(n):
    for tenths in range(101):
        s = tenths / 10
        assert compare(mean_score([s] * n), s) == "tie"
        assert average([s] * n) == s


def test_compare_is_exact():
    assert compare(mean_score([0.1, 0.2]), 0.15) == "tie"  # 0.1 + 0.2 is not 0.3 in floats
    assert compare(Fraction(10**20 + 1, 10**20), 1) == "chosen"  # one float
    assert compare(1, Fraction(10**20 + 1, 10**20)) == "rejected"
    assert compare(None, 1) is None and compare(0, None) is None
    assert compare(0, 0) == "tie"


@given(paired)
@example([(Fraction(7), Fraction(5)), (Fraction(5), Fraction(7))])  # one vote each
@example([(Fraction(7), Fraction(7))])  # all abstain
@example([(Fraction(9), Fraction(1)), (Fraction(4), Fraction(5)), (Fraction(4), Fraction(5))])  # the means disagree
@example([(Fraction(9), None), (None, Fraction(1))])  # no pair is valid
def test_majority_counts_the_pairs_that_are_valid_on_both_sides(rows):
    votes = [(c > r) - (c < r) for c, r in rows if c is not None and r is not None]
    expected = None if not votes else {1: "chosen", -1: "rejected", 0: "tie"}[(sum(votes) > 0) - (sum(votes) < 0)]
    assert majority([c for c, _ in rows], [r for _, r in rows]) == expected


@given(paired)
def test_swapping_the_sides_swaps_the_verdict(rows):
    chosen, rejected = [c for c, _ in rows], [r for _, r in rows]
    swap = {"chosen": "rejected", "rejected": "chosen", "tie": "tie", None: None}
    assert majority(rejected, chosen) == swap[majority(chosen, rejected)]
    means = mean_score(chosen), mean_score(rejected)
    assert compare(*means[::-1]) == swap[compare(*means)]


def test_majority_needs_paired_judgments():
    with pytest.raises(ValueError, match="2 and 1"):
        majority([1, 2], [3])


@pytest.mark.parametrize(
    ("choices", "verdict"),
    [
        ("AAB", "A"),
        ("ABB", "B"),
        ("AB", "tie"),
        ([None, "B", None], "B"),
        ([None, "A", "B"], "tie"),
        ([None, None], None),
        ([], None),
    ],
)
def test_majority_choice_counts_valid_choices(choices, verdict):
    assert majority_choice(choices) == verdict
    assert majority_choice(iter(choices)) == verdict


def test_majority_choice_refuses_what_is_no_choice():
    with pytest.raises(ValueError, match="'C'"):
        majority_choice(["A", "C"])


def test_unswap_undoes_the_order_shown_to_the_judge():
    assert [unswap(c, True) for c in ("A", "B", None)] == ["B", "A", None]
    assert [unswap(c, False) for c in ("A", "B", None)] == ["A", "B", None]


def test_voting_at_n_reads_the_first_n_judgments():
    assert [at_n([3, 1, 2], n) for n in (1, 2, 3)] == [[3], [3, 1], [3, 1, 2]]
    for n in (0, -1, 4):
        with pytest.raises(ValueError, match=f"n={n} of 3"):
            at_n([3, 1, 2], n)
