"""Log-probability and entropy of given tokens from hidden states, without logits [T, V] for the whole input.

T tokens   D model width   V vocabulary
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def linear_logprob_ref(hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: (logprob_T, entropy_T), in nats, soft-max in float32 or better.

    Returns:
        logprob_T: log softmax(hidden · weightᵀ)[token], never positive.
        entropy_T: entropy of the same distribution; gradients flow through both.
    """
    logits_TV = F.linear(hidden_TD, weight_VD)
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    logprob_TV = logits_TV.log_softmax(-1)
    entropy_T = -(logprob_TV.exp() * logprob_TV).sum(-1)
    return logprob_TV.gather(-1, token_T[:, None])[:, 0], entropy_T


def linear_logprob(
    hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor, max_elements: int = 1 << 24
) -> tuple[Tensor, Tensor]:
    """`linear_logprob_ref` over chunks of tokens, each recomputed in backward: at most `max_elements` logits live."""
    chunk = max(1, max_elements // weight_VD.shape[0])
    if hidden_TD.shape[0] <= chunk:
        return linear_logprob_ref(hidden_TD, weight_VD, token_T)
    parts = [
        checkpoint(linear_logprob_ref, hidden, weight_VD, token, use_reentrant=False, preserve_rng_state=False)
        for hidden, token in zip(hidden_TD.split(chunk), token_T.split(chunk), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
