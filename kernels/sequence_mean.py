"""Sums of a value over each sequence's tokens, and its mean at each of them: what GSPO makes of a token's log-ratio.

Both run in the order of the tokens on every device, without atomics: deterministic.

T loss tokens of all sequences, one sequence after the other   S sequences
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.check import check_dtype, check_shapes

FLOATS = (torch.float32, torch.float64)


def sequence_sum_ref(x_T: Tensor, sequence_T: Tensor, num_sequences: int) -> Tensor:
    """The definition; autograd gives its gradient. See `sequence_sum`."""
    return torch.stack([x_T[sequence_T == sequence].sum() for sequence in range(num_sequences)])


def sequence_sum(x_T: Tensor, sequence_T: Tensor, num_sequences: int) -> Tensor:
    """sum_S of x over each sequence; 0 of one without tokens. Arguments and errors as in `sequence_mean`."""
    return _sums(x_T, _num_tokens(x_T, sequence_T, num_sequences))


def sequence_mean_ref(x_T: Tensor, sequence_T: Tensor) -> Tensor:
    """The definition; autograd gives its gradient. See `sequence_mean`."""
    means = [x_T[sequence_T == sequence].mean() for sequence in sequence_T.tolist()]
    return torch.stack(means) if means else x_T.clone()


def sequence_mean(x_T: Tensor, sequence_T: Tensor, num_sequences: int) -> Tensor:
    """For every token the mean of x over its sequence.

    As a linear map it is its own transpose (1 / length in the block of each sequence), so its gradient is the same mean
    of the upstream gradient.

    Args:
        x_T: float32 or float64.
        sequence_T: int64, which sequence a token belongs to, from 0 and never falling; a sequence may have no token.
            (The order is not checked: a GPU would have to wait.)
        num_sequences: S.

    Raises:
        TypeError, ValueError: an argument of another shape, dtype or device.
    """
    return _SequenceMean.apply(x_T, sequence_T, _num_tokens(x_T, sequence_T, num_sequences))


class _SequenceMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_T: Tensor, sequence_T: Tensor, num_tokens_S: Tensor) -> Tensor:
        ctx.save_for_backward(sequence_T, num_tokens_S)
        return _mean(x_T, sequence_T, num_tokens_S)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream_T: Tensor) -> tuple[Tensor, None, None]:
        return _mean(upstream_T.contiguous(), *ctx.saved_tensors), None, None


def _mean(x_T: Tensor, sequence_T: Tensor, num_tokens_S: Tensor) -> Tensor:
    # A sequence without tokens has the mean 0, which nobody reads.
    return (_sums(x_T, num_tokens_S) / num_tokens_S.clamp(min=1))[sequence_T]


def _num_tokens(x_T: Tensor, sequence_T: Tensor, num_sequences: int) -> Tensor:
    check_shapes(x=(x_T, "T"), sequence=(sequence_T, "T"))
    check_dtype("x", x_T, *FLOATS)
    check_dtype("sequence", sequence_T, torch.int64)
    return torch.bincount(sequence_T, minlength=num_sequences)


def _sums(x_T: Tensor, num_tokens_S: Tensor) -> Tensor:
    return torch.segment_reduce(x_T, "sum", lengths=num_tokens_S, unsafe=True)
