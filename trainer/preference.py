"""Losses over preference pairs, one loss per pair.

P pairs   S leaves of a micro-batch, two of a pair, the chosen side first   T loss tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from kernels.sequence_mean import sequence_sum
from trainer.learner import TokenLossFn
from trainer.token_tree import Leaf, MicroBatch

# (micro-batch, chosen_P, rejected_P) -> (loss_P, {metric: values_P})
PairLossFn = Callable[[MicroBatch, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


def bradley_terry_loss(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """loss_P = -log σ(r_c - r_r), of the scores of both sides (METHOD: sec. 5)."""
    return -F.logsigmoid(chosen_P - rejected_P)


def dpo_loss(chosen_P: Tensor, rejected_P: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """loss_P of implicit rewards r = β (log π(y|x) - log π_ref(y|x)) (arXiv:2305.18290, eq. 7).

        -(1 - ε) log σ(r_c - r_r) - ε log σ(r_r - r_c)

    Args:
        label_smoothing: ε, the share of labels held to be wrong; 0 is the paper's loss.
    """
    margin_P = chosen_P - rejected_P
    return -(1 - label_smoothing) * F.logsigmoid(margin_P) - label_smoothing * F.logsigmoid(-margin_P)


def sides(batch: MicroBatch, value_T: Tensor) -> tuple[Tensor, Tensor]:
    """(chosen_P, rejected_P): the sums of a value over the loss tokens of each side."""
    chosen_P, rejected_P = sequence_sum(value_T, batch.leaf_T, batch.num_leaves).view(-1, 2).unbind(1)
    return chosen_P, rejected_P


def per_pair(loss_of: PairLossFn) -> TokenLossFn:
    """The loss of pairs as one of tokens: each token has its pair's, and `weighted` leaves let one of them count."""

    def token_loss(batch: MicroBatch, value_T: Tensor, *_: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss_P, metrics = loss_of(batch, *sides(batch, value_T))
        pair_T = batch.leaf_T // 2
        return loss_P[pair_T], {name: value_P[pair_T] for name, value_P in metrics.items()}

    return token_loss


def weighted(pair: Sequence[Leaf], num_pairs: int) -> list[Leaf]:
    """The two leaves of a pair with weights that add up to 1 / num_pairs, all of it on the first loss token."""
    counted = []
    for number, leaf in enumerate(pair):
        weight = np.zeros(len(leaf.completion), dtype=np.float32)
        weight[0] = 1 / num_pairs if number == 0 else 0
        counted.append(replace(leaf, values=leaf.values | {"weight": weight}))
    return counted


def comparison(chosen_P: Tensor, rejected_P: Tensor) -> dict[str, Tensor]:
    """Metrics of both kinds of reward: how often, and by how much, the chosen side's is the larger."""
    return {"pair_accuracy": (chosen_P > rejected_P).float(), "margin": chosen_P - rejected_P}
