"""The mean of a value over each sequence's tokens, at each of them: what GSPO makes of a token's log-ratio.

T loss tokens of all sequences, one sequence after the other   S sequences
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.check import check_dtype, check_shapes

FLOATS = (torch.float32, torch.float64)


def sequence_mean_ref(x_T: Tensor, sequence_T: Tensor) -> Tensor:
    """The definition; autograd gives its gradient. See `sequence_mean`."""
    means = [x_T[sequence_T == sequence].mean() for sequence in sequence_T.tolist()]
    return torch.stack(means) if means else x_T.clone()


def sequence_mean(x_T: Tensor, sequence_T: Tensor, num_sequences: int) -> Tensor:
    """For every token the mean of x over its sequence.

    As a linear map it is its own transpose (1 / length in the block of each sequence), so its gradient is the same mean
    of the upstream gradient. Sums run in the order of the tokens on every device, without atomics: deterministic.

    Args:
        x_T: float32 or float64.
        sequence_T: int64, which sequence a token belongs to, from 0 and never falling; a sequence may have no token.
            (The order is not checked: a GPU would have to wait.)
        num_sequences: S.

    Raises:
        TypeError, ValueError: an argument of another shape, dtype or device.
    """
    check_shapes(x=(x_T, "T"), sequence=(sequence_T, "T"))
    check_dtype("x", x_T, *FLOATS)
    check_dtype("sequence", sequence_T, torch.int64)
    num_tokens_S = torch.bincount(sequence_T, minlength=num_sequences)
    return _SequenceMean.apply(x_T, sequence_T, num_tokens_S)


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
    mean_S = torch.segment_reduce(x_T, "sum", lengths=num_tokens_S, unsafe=True) / num_tokens_S.clamp(min=1)
    return mean_S[sequence_T]
