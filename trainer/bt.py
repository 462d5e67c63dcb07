"""Stage `bt`: a Bradley–Terry reward model (BTRM), a scalar head on the backbone (METHOD: sec. 5)."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from patarm_core.pairs import Pair
from rollout.chat import whole_chat
from rollout.scalar import RewardHead
from trainer.config import Recipe
from trainer.learner import TokenLossFn
from trainer.pair_stage import PairObjective
from trainer.preference import bradley_terry_loss, comparison, per_pair
from trainer.token_tree import MicroBatch


class BradleyTerry(PairObjective):
    stage = "bt"

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(recipe.bt, tokenizer)
        self.head = RewardHead(recipe.seed, tokenizer.pad_token_id)

    def tokens(self, pair: Pair, side: str, name: str) -> tuple[list[int], list[int]]:
        """The completion is a token that stands for the score, which is read at the one before, the chat's last."""
        return whole_chat(self.tokenizer, pair.prompt, side, name), [self.tokenizer.eos_token_id]

    def token_loss(self) -> TokenLossFn:
        return bradley_terry


@per_pair
def bradley_terry(batch: MicroBatch, chosen_P: Tensor, rejected_P: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return bradley_terry_loss(chosen_P, rejected_P), comparison(chosen_P, rejected_P)
