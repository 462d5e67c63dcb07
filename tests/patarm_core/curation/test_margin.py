"""Which sample of a pair's judgments is kept."""

from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.curation.margin import Keep, sample_to_keep
from tests.strategies import scores

sides = st.integers(0, 5).flatmap(lambda n: st.tuples(*[st.lists(st.none() | scores, min_size=n, max_size=n)] * 2))
above = st.sampled_from([Fraction(0), Fraction(2), Fraction("2.5")])


@pytest.mark.parametrize("keep", get_args(Keep))
def test_the_margin_is_strict(keep):
    assert sample_to_keep([Fraction("8.3")], [Fraction("6.3")], Fraction(2), keep) is None
    assert sample_to_keep([Fraction("8.4")], [Fraction("6.3")], Fraction(2), keep) == 0


@given(sides, above)
def test_first_and_largest_keep_the_same_pairs_and_a_mean_no_more(sides, above):
    kept = {keep: sample_to_keep(*sides, above, keep) for keep in get_args(Keep)}
    margins = [None if None in (c, r) else c - r for c, r in zip(*sides)]
    qualified = [i for i, margin in enumerate(margins) if margin is not None and margin > above]
    assert kept["first"] == (qualified[0] if qualified else None)
    assert kept["largest"] == (max(qualified, key=lambda i: (margins[i], -i)) if qualified else None)
    if kept["mean"] is not None:
        valid = [margin for margin in margins if margin is not None]
        mean = sum(valid) / Fraction(len(valid))
        assert qualified and mean > above
        assert abs(margins[kept["mean"]] - mean) == min(abs(margin - mean) for margin in valid)


def test_samples_come_in_twos():
    with pytest.raises(ValueError):
        sample_to_keep([Fraction(9)], [], Fraction(2))
