"""What a model says of a micro-batch's loss entries, with gradient: log-probabilities and entropies, or scores."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from kernels.linear_logprob import linear_logprob
from kernels.matmul import packed_weights
from rollout.decoder import Decoder
from trainer.exact import exact_attention
from trainer.token_tree import MicroBatch
from trainer.tree_attention import tree_attention


def token_values(decoder: Decoder, batch: MicroBatch, is_exact: bool = False) -> tuple[Tensor, ...]:
    """(logprob_T, entropy_T) of a language model, (score_T,) of a reward model."""
    return (token_scores(decoder, batch),) if decoder.config.is_scalar else token_logprobs(decoder, batch, is_exact)


def token_scores(decoder: Decoder, batch: MicroBatch) -> Tensor:
    """score_T where each loss token is predicted; float32 or better, so that bfloat16 makes no ties."""

    def readout(hidden_BLD: Tensor, head_1D: Tensor) -> Tensor:
        hidden_TD = hidden_BLD.flatten(0, 1)[batch.predictor_T]
        dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
        return hidden_TD.to(dtype) @ head_1D[0].to(dtype)

    return decoder(batch.token_BL, batch.position_BL, tree_attention(batch.nodes, batch.token_BL.device), readout)


def token_logprobs(decoder: Decoder, batch: MicroBatch, is_exact: bool = False) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T) of the loss entries under the decoder, computed once for entries that are the same.

    Args:
        is_exact: for float32 on a CPU: equal to the bit to what the rollout engine records.
    """
    predictor_U, target_U = batch.predictor_T[batch.distinct_U], batch.target_T[batch.distinct_U]

    def readout(hidden_BLD: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor]:
        # The check would wait for a GPU. A target out of range gives nan, and by that a step that is skipped.
        hidden_UD = hidden_BLD.flatten(0, 1)[predictor_U]
        return linear_logprob(hidden_UD, head_VD, target_U, like_sample=is_exact, check=False)

    attend = exact_attention(batch.nodes) if is_exact else tree_attention(batch.nodes, batch.token_BL.device)
    with packed_weights() if is_exact else nullcontext():
        logprob_U, entropy_U = decoder(batch.token_BL, batch.position_BL, attend, readout)
    return logprob_U[batch.kind_T], entropy_U[batch.kind_T]
