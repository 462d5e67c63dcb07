"""What a step's gradient may not depend on, in numbers: layout and micro-batches, in float64; and the on-policy ratio.

Differences are norms over all parameters, relative to the gradient's norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import torch
from torch import Tensor

from bench.apart import random_decoder
from bench.remote import Remote
from bench.rollout_workload import Work
from bench.step_ours import OurStep, Setup
from bench.step_workload import pair_work
from rollout.decoder import Decoder, DecoderConfig
from trainer.config import GrpoConfig
from trainer.logprobs import token_logprobs
from trainer.policy_loss import PolicyLoss
from trainer.token_tree import Leaf, MicroBatch, TokenTree, pack

_PAIRS, _N, _SHORTEN = 2, 4, 24


def measure(folder: str, model: DecoderConfig) -> dict[str, float]:
    """In processes of their own, so that their threads are gone before anything is timed."""
    work = pair_work(_PAIRS, _N, _SHORTEN, model.vocab_size)
    checks = Remote(Checks, model)
    exact = Remote(OurStep, Setup(folder=folder, exact_logprobs=True))
    try:
        found = checks.call("differences", work)
        exact.call("roll_out", work, 0)
        return found | {"largest_logprob_gap": exact.call("learn", work, 0)["logprob_gap"]}
    finally:
        checks.close()
        exact.close()


class Checks:
    def __init__(self, model: DecoderConfig) -> None:
        self._decoder = random_decoder(model).double()

    def differences(self, work: Work) -> dict[str, float]:
        trees = _leaves(work, self._decoder.config.vocab_size)
        longest = max(len(leaf.path) for leaves in trees for leaf in leaves)
        whole = 1 << 20
        of_tree = gradient(self._decoder, trees, "tree", whole)
        others = {"tree_flat": ("flat", whole)}
        others |= {f"micro_batches_{k}": ("tree", k * (longest + 16)) for k in (1, 2, 4)}
        differences = {name: _difference(of_tree, gradient(self._decoder, trees, *how)) for name, how in others.items()}
        return {
            "tree_flat": differences.pop("tree_flat"),
            "micro_batches": max(differences.values()),
        }


def gradient(decoder: Decoder, trees: Sequence[Sequence[Leaf]], layout: str, max_tokens: int) -> list[Tensor]:
    """Of the policy loss of a step whose ratios are not 1, in micro-batches of at most `max_tokens`."""
    decoder.zero_grad()
    loss = PolicyLoss(GrpoConfig(kl_coef=0.0, entropy_coef=0.01), None)
    num_tokens = sum(len(leaf.completion) for leaves in trees for leaf in leaves)
    for trees_of_batch in pack([TokenTree.of(leaves, layout == "tree") for leaves in trees], max_tokens):
        batch = MicroBatch.of(trees_of_batch, torch.device("cpu"))
        loss_T, _ = loss(batch, *token_logprobs(decoder, batch))
        (loss_T.sum() / num_tokens).backward()
    return [parameter.grad.clone() for parameter in decoder.parameters()]


def _difference(one: list[Tensor], other: list[Tensor]) -> float:
    distance = torch.stack([(a - b).norm() for a, b in zip(one, other, strict=True)]).norm()
    return float(distance / torch.stack([a.norm() for a in one]).norm())


def _leaves(work: Work, vocab_size: int) -> list[list[Leaf]]:
    """Judgments of drawn tokens; old log-probs around those of an even distribution, so that ratios are clipped."""
    rng = Random(0)

    def leaf(context: list[int], length: int) -> Leaf:
        old = [-np.log(vocab_size) + rng.gauss(0, 0.2) for _ in range(length)]
        advantage = np.full(length, rng.gauss(0, 1), dtype=np.float32)
        values = {"advantage": advantage, "old_logprob": np.array(old, dtype=np.float32)}
        return Leaf(context, [rng.randrange(vocab_size) for _ in range(length)], values)

    leaves = [
        [leaf(context, length) for length in lengths]
        for context, lengths in zip(work.contexts, work.lengths, strict=True)
    ]
    return [leaves[i] + leaves[i + 1] for i in range(0, len(leaves), 2)]
