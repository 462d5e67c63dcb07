"""Log-probabilities and entropies of a micro-batch's loss entries, with gradient."""

from __future__ import annotations

from contextlib import nullcontext

from torch import Tensor

from kernels.linear_logprob import linear_logprob
from kernels.matmul import packed_weights
from rollout.decoder import Decoder
from trainer.exact import exact_attention
from trainer.token_tree import MicroBatch
from trainer.tree_attention import tree_attention


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
