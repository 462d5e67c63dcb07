"""The policy loss of a token: clipped surrogate of a token's or a sequence's ratio, KL penalty, importance correction.

T loss entries of a micro-batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kernels.grpo_loss import TokenLoss, grpo_loss
from kernels.sequence_mean import sequence_mean
from rollout.params import Completion
from trainer.learner import Learner
from trainer.logprobs import token_logprobs
from trainer.stage_config import PolicyGradientConfig
from trainer.token_tree import Leaf, MicroBatch

VALUES = ("advantage", "old_logprob", "weight")
# How far rollout and trainer disagree: it shows before the first update of a step only.
AGREEMENT = ("logprob_gap", "max_logprob_gap", "rollout_kl")


def policy_leaf(context: list[int], completion: Completion, advantage: float, weight: float, name: str) -> Leaf:
    """A completion whose advantage holds for all of its tokens: the reward on the last, undiscounted."""
    num_tokens = len(completion.token_ids)
    values = {
        "advantage": np.full(num_tokens, advantage, dtype=np.float32),
        "old_logprob": completion.logprobs,
        "weight": np.full(num_tokens, weight, dtype=np.float32),
    }
    return Leaf(context, completion.token_ids, values, name)


def update_on(
    trees: Sequence[Sequence[Leaf]], learner: Learner, loss: PolicyLoss, config: PolicyGradientConfig, step: int
) -> dict[str, float]:
    """The inner epochs of a step on its rollouts; returns the last one's metrics, and `AGREEMENT` of the first.

    `skipped` counts those of them that were.
    """
    updates = [
        learner.update(
            trees,
            loss.for_epoch(epoch),
            config.tokens_per_micro_batch,
            step * config.inner_epochs + epoch,
            VALUES,
            config.exact_logprobs,
        )
        for epoch in range(config.inner_epochs)
    ]
    skipped = sum(update["skipped"] for update in updates)
    return updates[-1] | {name: updates[0][name] for name in AGREEMENT} | {"skipped": skipped}


@dataclass(slots=True)
class PolicyLoss:
    """The losses of one step after another; `for_epoch` gives that of an inner epoch.

    With `importance_cap` C the old log-probs are the trainer's own before the step's first update, and the rollout's
    serve for the correction alone: a token's policy loss has the constant weight min(π_old / π_rollout, C) (truncated
    importance sampling, https://fengyao.notion.site/off-policy-rl; used for GRPO in verl and TRL). The trainer's
    log-probs cost no pass of their own: the first inner epoch computes them, as no weight changes before its end, and
    later ones, which see the same micro-batches, remember them. Without a cap the old log-probs are the rollout's.

    In a group without variance the advantage is 0, and the KL penalty is all that pulls.
    """

    config: PolicyGradientConfig
    reference: torch.nn.Module | None  # of the KL penalty
    # (target_T, logprob_T) of each micro-batch before the step's first update
    _own: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _epoch: int = 0
    _number: int = 0  # of the micro-batch in the epoch

    def for_epoch(self, epoch: int) -> PolicyLoss:
        """Itself, at the beginning of an inner epoch; epoch 0 begins a step."""
        self._epoch, self._number = epoch, 0
        if epoch == 0:
            self._own.clear()
        return self

    def __call__(self, batch: MicroBatch, logprob_T: Tensor, entropy_T: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        reference_T = None
        if self.reference is not None:
            with torch.no_grad():
                reference_T, _ = token_logprobs(self.reference, batch, config.exact_logprobs)
        rollout_T = batch.values_T["old_logprob"]
        old_T, weight_T, metrics = rollout_T, None, {}
        if config.importance_cap:
            old_T = self._before_the_step(batch, logprob_T)
            ratio_T = (old_T - rollout_T).exp()
            weight_T = ratio_T.clamp(max=config.importance_cap)
            metrics = {"importance_weight": weight_T, "importance_capped": ratio_T > config.importance_cap}
        result = policy_loss(
            config, logprob_T, old_T, batch.values_T["advantage"], entropy_T, reference_T, weight_T,
            batch.leaf_T, batch.num_leaves,
        )  # fmt: skip
        log_ratio_T = (logprob_T - rollout_T).detach()
        gap_T = log_ratio_T.abs()
        metrics |= {
            "entropy": entropy_T, "clip_share": result.is_clipped_T, "logprob_gap": gap_T, "max_logprob_gap": gap_T,
            "rollout_kl": log_ratio_T.expm1() - log_ratio_T,  # KL(rollout || trainer), estimated as k3
        }  # fmt: skip
        return result.loss_T, metrics | ({"kl": result.kl_T} if reference_T is not None else {})

    def _before_the_step(self, batch: MicroBatch, logprob_T: Tensor) -> Tensor:
        if self._epoch == 0:
            self._own.append((batch.target_T, logprob_T.detach()))
        target_T, own_T = self._own[self._number]
        assert torch.equal(target_T, batch.target_T), "inner epochs see the same micro-batches"
        self._number += 1
        return own_T


def policy_loss(
    config: PolicyGradientConfig,
    logprob_T: Tensor,
    old_T: Tensor,
    advantage_T: Tensor,
    entropy_T: Tensor,
    reference_T: Tensor | None,
    weight_T: Tensor | None,
    leaf_T: Tensor,
    num_leaves: int,
) -> TokenLoss:
    """The loss of every entry, by the ratio that the recipe names; weights of tokens in a step are the learner's.

    With `ratio = "sequence"` (GSPO, arXiv:2507.18071, eq. 5 to 7) every token of a completion has the loss of

        s = exp(mean over the completion of (logprob - old_logprob)),

    whose gradient reaches all of its tokens. KL penalty and entropy bonus stay those of tokens.
    """
    clip = {"clip_low": config.clip_low, "clip_high": config.clip_high, "dual_clip": config.dual_clip or None}
    penalty = {
        "reference_logprob_T": reference_T, "kl_coef": config.kl_coef if reference_T is not None else 0.0,
        "kl_estimator": config.kl_estimator, "entropy_T": entropy_T, "entropy_coef": config.entropy_coef,
    }  # fmt: skip
    if config.ratio == "token":
        return grpo_loss(logprob_T, old_T, advantage_T, importance_weight_T=weight_T, **clip, **penalty)
    log_ratio_T = sequence_mean(logprob_T - old_T, leaf_T, num_leaves)
    zeros_T = torch.zeros_like(log_ratio_T)
    surrogate = grpo_loss(log_ratio_T, zeros_T, advantage_T, importance_weight_T=weight_T, **clip)
    pull = grpo_loss(logprob_T, logprob_T.detach(), zeros_T, **clip, **penalty)
    return TokenLoss(surrogate.loss_T + pull.loss_T, surrogate.is_clipped_T, pull.kl_T)
