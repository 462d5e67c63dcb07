"""Stage `dpo`: direct preference optimisation (arXiv:2305.18290) of the language model that answers the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from patarm_core.pairs import Pair
from rollout.chat import answered_chat
from trainer.config import DpoConfig, Recipe
from trainer.learner import Learner, TokenLossFn
from trainer.pair_stage import PairObjective, Sides
from trainer.preference import comparison, dpo_loss, per_pair, sides
from trainer.token_tree import Leaf, MicroBatch


class DirectPreference(PairObjective):
    """The reward of a response is implicit: β (log π(y|x) - log π_ref(y|x)).

    What the reference says of a pair never changes. It is computed once, by the weights that the stage starts from, so
    that no second model is held; a run that resumes computes it again, from the same directory.
    """

    stage = "dpo"
    value_names = ("weight", "reference")

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(recipe.dpo, tokenizer)
        self.reference: dict[Pair, Sides] = {}

    def tokens(self, pair: Pair, side: str, name: str) -> tuple[list[int], list[int]]:
        return answered_chat(self.tokenizer, pair.prompt, side, name)

    def prepare(self, learner: Learner, pairs: Sequence[Pair]) -> None:
        self.reference = dict(zip(pairs, self.sums(learner, pairs), strict=True))

    def training_leaves(self, pair: Pair) -> list[Leaf]:
        return [referred(*side) for side in zip(self.leaves(pair), self.reference[pair], strict=True)]

    def rewards(self, learner: Learner, pairs: Sequence[Pair]) -> list[Sides]:
        return [
            tuple(self.config.beta * (now - then) for now, then in zip(sums, self.reference[pair], strict=True))
            for pair, sums in zip(pairs, self.sums(learner, pairs), strict=True)
        ]

    def token_loss(self) -> TokenLossFn:
        return implicit_reward(self.config)


def implicit_reward(config: DpoConfig) -> TokenLossFn:
    def loss(batch: MicroBatch, chosen_P: Tensor, rejected_P: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        chosen_reference_P, rejected_reference_P = sides(batch, batch.values_T["reference"])
        chosen_reward_P = config.beta * (chosen_P - chosen_reference_P)
        rejected_reward_P = config.beta * (rejected_P - rejected_reference_P)
        metrics = comparison(chosen_reward_P, rejected_reward_P) | {
            "chosen_reward": chosen_reward_P,
            "rejected_reward": rejected_reward_P,
            "chosen_logprob": chosen_P,  # of the whole response
            "rejected_logprob": rejected_P,
        }
        return dpo_loss(chosen_reward_P, rejected_reward_P, config.label_smoothing), metrics

    return per_pair(loss)


def referred(leaf: Leaf, logprob: float) -> Leaf:
    """The leaf with its log-probability under the reference, all of it on the first token: `sides` adds up."""
    reference = np.zeros(len(leaf.completion), dtype=np.float32)
    reference[0] = logprob
    return replace(leaf, values=leaf.values | {"reference": reference})
