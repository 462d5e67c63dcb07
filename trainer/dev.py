"""The whole-model replica that judges: rollouts during training, and accuracy on pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eval.contexts import ContextBuilder
from eval.pair_accuracy import JudgedPair, format_rates, judge_pairs, pair_accuracy
from patarm_core.pairs import Pair
from rollout.decoder import Decoder, DecoderConfig
from rollout.engine import Engine
from trainer.config import Recipe
from trainer.distributed import World
from trainer.learner import DTYPES, Learner


class DevMeter:
    """Holds one engine whose weights are refreshed from the learner before each use, so they are never stale."""

    def __init__(self, recipe: Recipe, model: str, contexts: ContextBuilder, world: World) -> None:
        self.recipe, self.contexts, self.world = recipe, contexts, world
        with torch.device("meta"):
            replica = Decoder(DecoderConfig.from_pretrained(model)).to(DTYPES[recipe.model.dtype])
        replica.to_empty(device=world.device).requires_grad_(False)
        self.engine = Engine(replica, contexts.tokenizer, recipe.rollout.max_rows)

    def judge(self, learner: Learner, pairs: Sequence[Pair], n: int, progress: str = "") -> list[JudgedPair]:
        """n judgments of each side of the pairs, spread over the ranks; every rank gets all of them, in order."""
        learner.copy_weights_to_(self.engine.decoder)
        rollout = self.recipe.rollout
        share = judge_pairs(
            self.engine, self.contexts, self.world.share(list(pairs)), n, self.recipe.seed,
            rollout.max_completion_tokens, rollout.temperature, progress if self.world.is_main else "",
        )  # fmt: skip
        judged: list = [None] * len(pairs)
        for rank, items in enumerate(self.world.gather(share)):
            judged[rank :: self.world.size] = items
        return judged

    def measure(self, learner: Learner, dev: Sequence[Pair]) -> dict[str, float]:
        """Accuracy, margin and validity on the dev pairs."""
        judged = self.judge(learner, dev, self.recipe.eval.num_dev_judgments)
        accuracy = pair_accuracy(judged, self.recipe.eval.num_dev_judgments)
        return {
            "dev_accuracy": accuracy.accuracy,
            "dev_accuracy_low": accuracy.low,
            "dev_accuracy_high": accuracy.high,
            "dev_margin": accuracy.margin if accuracy.margin is not None else 0.0,
            "dev_valid_rate": format_rates(judged)["valid_rate"],
        }
