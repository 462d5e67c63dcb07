"""Sums and means over sequences against the definition, with gradients.

T tokens   S sequences
"""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kernels.sequence_mean import sequence_mean, sequence_mean_ref, sequence_sum, sequence_sum_ref

lengths = st.lists(st.integers(0, 6), max_size=8)


def problem(lengths, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(lengths))
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    x_T, upstream_T = torch.randn(2, len(sequence_T), generator=generator, dtype=torch.float64).to(dtype)
    return x_T.requires_grad_(), sequence_T, upstream_T


@pytest.mark.parametrize("over_S", [False, True])
@given(lengths)
@example([])
@example([0, 3, 0, 0, 1])
def test_value_and_gradient_are_those_of_the_definition(over_S, lengths):
    x_T, sequence_T, upstream_T = problem(lengths)
    if over_S and lengths:
        found, right = (f(x_T, sequence_T, len(lengths)) for f in (sequence_sum, sequence_sum_ref))
        upstream = torch.arange(1.0, len(lengths) + 1, dtype=torch.float64)
    else:
        found, right = sequence_mean(x_T, sequence_T, len(lengths)), sequence_mean_ref(x_T, sequence_T)
        upstream = upstream_T
    torch.testing.assert_close(found, right, rtol=1e-13, atol=1e-13)
    if len(x_T):
        gradients = [torch.autograd.grad(y, x_T, upstream)[0] for y in (found, right)]
        torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-13)


@given(lengths, st.integers(0, 7))
def test_a_sequence_does_not_depend_on_the_others(lengths, place):
    """To the bit: micro-batches may be made in any way."""
    x_T, sequence_T, _ = problem(lengths, torch.float32)
    is_own_T = sequence_T == place
    alone_T = sequence_mean(x_T[is_own_T], torch.zeros_like(sequence_T[is_own_T]), 1)
    assert torch.equal(sequence_mean(x_T, sequence_T, len(lengths))[is_own_T], alone_T)


def test_zeros_have_the_mean_zero_exactly():
    assert sequence_mean(torch.zeros(5), torch.tensor([0, 0, 0, 1, 1]), 2).tolist() == [0.0] * 5


def test_what_does_not_fit_is_refused():
    sequence_T = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"sequence \[T\] has shape \(3,\), but T is 2 in x"):
        sequence_mean(torch.zeros(2), sequence_T, 1)
    with pytest.raises(ValueError, match=r"x must be torch.float32 or torch.float64, got torch.float16"):
        sequence_mean(torch.zeros(3, dtype=torch.float16), sequence_T, 1)
    with pytest.raises(ValueError, match=r"sequence must be torch.int64, got torch.float32"):
        sequence_mean(torch.zeros(3), sequence_T.float(), 1)
