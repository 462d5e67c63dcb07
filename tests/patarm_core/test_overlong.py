"""The soft overlong punishment against equation 13 in exact fractions."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patarm_core.overlong import overlong_reward

limits = st.integers(1, 5000).flatmap(lambda most: st.tuples(st.just(most), st.integers(1, most)))


@given(st.integers(0, 6000), limits)
@example(80, (100, 20))  # the last token without punishment
@example(100, (100, 20))  # at the limit: all of it
@example(101, (100, 20))
def test_is_equation_13(num_tokens, limit):
    most, buffer = limit
    if num_tokens <= most - buffer:
        expected = Fraction()
    elif num_tokens <= most:
        expected = Fraction((most - buffer) - num_tokens, buffer)
    else:
        expected = Fraction(-1)
    assert overlong_reward(num_tokens, most, buffer) == expected


@given(st.lists(st.integers(0, 6000), min_size=2), limits)
def test_a_longer_completion_never_gains(lengths, limit):
    found = [overlong_reward(length, *limit) for length in sorted(lengths)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_a_buffer_out_of_range_is_refused(buffer):
    with pytest.raises(ValueError, match=f"has 1 to max_tokens=100 tokens, got {buffer}"):
        overlong_reward(5, 100, buffer)
