"""Weights of tokens: what they make of a step's losses, however the step is split."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.loss_weights import StepCounts, token_weight

completions = st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=8), min_size=1, max_size=8)  # token losses


def weighted(normalization, losses, most):
    counts = StepCounts.of([len(of_one) for of_one in losses])
    return sum(token_weight(normalization, len(of_one), counts, most) * loss for of_one in losses for loss in of_one)


@given(completions, st.integers(8, 20))
def test_weighted_losses_are_the_means_that_the_papers_write(losses, most):
    N, flat = len(losses), [loss for of_one in losses for loss in of_one]
    by_sequence = sum(Fraction(sum(of_one), len(of_one)) for of_one in losses) / N
    assert weighted("token", losses, most) == pytest.approx(sum(flat) / len(flat))
    assert weighted("sequence", losses, most) == pytest.approx(float(by_sequence))
    assert weighted("constant", losses, most) == pytest.approx(sum(flat) / (N * most))


@given(completions, st.integers(1, 20))
def test_all_three_agree_where_every_completion_is_as_long_as_it_may_be(losses, most):
    full = [(of_one * most)[:most] for of_one in losses]
    expected = pytest.approx(weighted("token", full, most))
    assert weighted("sequence", full, most) == expected
    assert weighted("constant", full, most) == expected


def test_an_unknown_one_is_refused():
    with pytest.raises(ValueError, match="unknown normalisation 'batch'; there are token, sequence, constant"):
        token_weight("batch", 1, StepCounts(1, 1), 1)
