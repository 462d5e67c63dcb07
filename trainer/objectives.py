"""Losses per token. They are summed, and divided once by the step's global number of loss tokens.

T loss tokens
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenLoss:
    loss_T: Tensor
    is_clipped_T: Tensor  # bool: the clipped branch is the one that counts, so the token has no policy gradient
    kl_T: Tensor  # k3 estimate against the reference; zeros without one


def grpo_loss(
    logprob_T: Tensor,
    old_logprob_T: Tensor,
    advantage_T: Tensor,
    clip_low: float,
    clip_high: float,
    reference_logprob_T: Tensor | None = None,
    kl_coef: float = 0.0,
    entropy_T: Tensor | None = None,
    entropy_coef: float = 0.0,
) -> TokenLoss:
    """Clipped surrogate with a KL penalty (DeepSeekMath, arXiv:2402.03300, eq. 3), for every token.

    ratio = exp(logprob - old_logprob)
    loss = -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) + kl_coef k3 - entropy_coef H
    k3 = exp(ref - logprob) - (ref - logprob) - 1
    """
    ratio_T = (logprob_T - old_logprob_T).exp()
    free_T = ratio_T * advantage_T
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high) * advantage_T
    loss_T = -torch.minimum(free_T, clipped_T)
    kl_T = torch.zeros_like(logprob_T)
    if reference_logprob_T is not None:
        log_ratio_T = reference_logprob_T - logprob_T
        kl_T = log_ratio_T.exp() - log_ratio_T - 1
        loss_T = loss_T + kl_coef * kl_T
    if entropy_T is not None and entropy_coef:
        loss_T = loss_T - entropy_coef * entropy_T
    return TokenLoss(loss_T, clipped_T.detach() < free_T.detach(), kl_T.detach())
