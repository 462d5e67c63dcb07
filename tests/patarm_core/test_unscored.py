"""What an answer without a score counts for."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.advantages import group_relative
from patarm_core.par import mean_score
from patarm_core.unscored import filled

scores = st.one_of(st.none(), st.integers(0, 100).map(lambda tenths: Fraction(tenths, 10)))
groups = st.lists(st.lists(scores, min_size=1, max_size=8), max_size=5)


@given(groups)
def test_by_mean_every_answer_has_a_reward_and_the_group_keeps_its_mean(given_scores):
    for group, rewards in zip(given_scores, filled(given_scores, "mean"), strict=True):
        assert (None in rewards) == (mean_score(group) is None)
        assert mean_score(rewards) == mean_score(group)
        assert [r for r, s in zip(rewards, group, strict=True) if s is not None] == [s for s in group if s is not None]


@given(groups)
def test_by_drop_what_is_left_is_the_group_as_if_the_others_had_not_been_drawn(given_scores):
    for group, rewards in zip(given_scores, filled(given_scores, "drop"), strict=True):
        valid = [s for s in group if s is not None]
        assert [r for r in rewards if r is not None] == (valid if len(valid) > 1 else [])


def test_an_unscored_answer_is_never_a_zero():
    """0 would be the worst score there is: the answer would be unlearned because the judge stumbled."""
    (rewards,) = filled([[8.0, None, 6.0]], "mean")
    assert rewards == [8, 7, 6]
    assert group_relative([float(r) for r in rewards], [0] * 3)[1] == pytest.approx(0, abs=1e-12)
    assert filled([[8.0, None, 6.0], [None, 5.0]], "drop") == [[8, None, 6], [None, None]]
    assert filled([[None, None]], "mean") == [[None, None]]  # nor where there is no mean


def test_an_unknown_rule():
    with pytest.raises(ValueError, match="rules are mean, drop"):
        filled([[1]], "zero")
