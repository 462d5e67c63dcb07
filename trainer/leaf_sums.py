"""What a learner's model says of whole completions, without gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.fsdp import FSDPModule

from kernels.sequence_mean import sequence_sum
from trainer.learner import Learner, stand_in
from trainer.logprobs import token_values
from trainer.token_tree import Leaf, MicroBatch, TokenTree, pack


@torch.no_grad()
def leaf_sums(learner: Learner, trees: Sequence[Sequence[Leaf]], max_tokens: int) -> list[list[float]]:
    """For each leaf of this rank's trees the log-probability of its completion or, of a reward model, its score.

    Every rank calls it: their passes are collective.
    """
    whole = [TokenTree.of(leaves, learner.layout == "tree", is_atomic=True) for leaves in trees]
    found: dict[int, list[float]] = {}
    batches = pack(whole, max_tokens)
    for number in range(learner.world.maximum(len(batches))):
        learner.world.pause()
        is_real = number < len(batches)
        batch = MicroBatch.of(batches[number] if is_real else [stand_in()], learner.world.device)
        value_T, *_ = token_values(learner.decoder, batch)
        if is_real:
            remaining = iter(sequence_sum(value_T.double(), batch.leaf_T, batch.num_leaves).tolist())
            found |= {id(tree): [next(remaining) for _ in tree.leaves] for tree in batches[number]}
    # What stays gathered after a forward pass would not see weights that are loaded now.
    for unit in learner.decoder.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()
    return [found[id(tree)] for tree in whole]
