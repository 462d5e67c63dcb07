"""The whole model that is trained, on every rank: what it writes during training, and a judge's accuracy on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from eval.pair_accuracy import Judged, format_rates, judge_sampling, pair_accuracy
from patarm_core.pairs import Pair
from rollout.contexts import ContextBuilder
from rollout.decoder import Decoder, DecoderConfig
from rollout.engine import Engine, EngineConfig
from trainer.config import Recipe
from trainer.distributed import World
from trainer.learner import DTYPES, Learner
from trainer.live_weights import refuse_stale_weights, share_weights_
from trainer.shared_rollout import SharedRollout


class Replica:
    """One engine on each rank, with the learner's weights of now: before each use they are compared, bit by bit.

    One process that computes in float32 runs the weights that it trains, in place; otherwise the engine has a
    copy, refreshed before each use. The engine is made when it is first used: a run that only imitates needs none.
    """

    def __init__(self, recipe: Recipe, model_config: DecoderConfig, contexts: ContextBuilder, world: World) -> None:
        self.contexts, self.world = contexts, world
        self.shared = SharedRollout(contexts, world)
        self._model_config, self._dtype = model_config, DTYPES[recipe.model.dtype]
        self._seed, self._rollout, self._eval, self._mode = recipe.seed, recipe.rollout, recipe.eval, recipe.mode
        self._later_bytes = later_bytes(recipe, model_config, recipe.model.shard_size or world.size)

    @cached_property
    def _engine(self) -> Engine:
        with torch.device("meta"):
            decoder = Decoder(self._model_config).to(self._dtype)
        decoder.to_empty(device=self.world.device).requires_grad_(False)
        config = EngineConfig(max_rows=self._rollout.max_rows, kv_gib=self._rollout.kv_gib or self._kv_gib_left())
        return Engine(decoder, self.contexts.tokenizer, config)

    def _kv_gib_left(self) -> float | None:
        """On a GPU nine tenths of what training will leave free, between its updates."""
        if self.world.device.type != "cuda":
            return None
        free = torch.cuda.mem_get_info(self.world.device)[0]
        return max(0.9 * (free - self._later_bytes), 0.1 * free) / 2**30

    def refreshed(self, learner: Learner) -> Engine:
        """The engine with the learner's weights of now; every rank calls it."""
        decoder = self._engine.decoder
        if self.world.size == 1 and self._dtype == torch.float32:
            share_weights_(decoder, learner.decoder)
        else:
            learner.copy_weights_to_(decoder)
        refuse_stale_weights(decoder, learner.decoder, self.world)
        return self._engine


def later_bytes(recipe: Recipe, config: DecoderConfig, num_shards: int) -> float:
    """What the stage that needs most will keep on each rank beside weights and replica: AdamW's moments, and a
    reference model, of which the embedding and the head stay gathered."""
    most, N = 0.0, config.num_parameters
    for stage in recipe.stages:
        of_stage = getattr(recipe, stage)
        num_bytes = 0 if of_stage.optim.cpu_offload else 8 * N / num_shards
        if stage in ("grpo", "rlhf") and of_stage.kl_coef:
            tables = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
            num_bytes += 4 * N / num_shards + DTYPES[recipe.model.dtype].itemsize * tables
        most = max(most, num_bytes)
    return most


class JudgeReplica(Replica):
    """Judges pairs."""

    def judge(self, learner: Learner, pairs: Sequence[Pair], n: int, progress: str = "") -> list[Judged]:
        """n judgments of each side of the pairs (pairwise: of both together), drawn by all ranks.

        Every rank gets all of them, in order.
        """
        sampling = judge_sampling(
            n, self._seed, self._rollout.max_completion_tokens, self._eval.temperature, self._mode
        )
        rubrics = self.contexts.config.rubrics
        drawn = self.shared.draw(
            self.refreshed(learner),
            pairs,
            sampling,
            lambda pair, completions: sampling.read(pair, completions, rubrics, is_lenient=True),
            progress,
        )
        self.shared.wait(drawn)
        return self.shared.of_all_pairs(drawn)

    def measure(self, learner: Learner, dev: Sequence[Pair]) -> dict[str, float]:
        """Accuracy, margin and validity on the dev pairs."""
        judged = self.judge(learner, dev, self._eval.num_dev_judgments)
        return dev_metrics(judged, self._eval.num_dev_judgments)


def dev_metrics(judged: Sequence[Judged], votes: int) -> dict[str, float]:
    accuracy, rates = pair_accuracy(judged, votes), format_rates(judged)
    return {
        "dev_accuracy": accuracy.accuracy,
        "dev_accuracy_low": accuracy.low,
        "dev_accuracy_high": accuracy.high,
        "dev_margin": accuracy.margin if accuracy.margin is not None else 0.0,
        **({"dev_valid_rate": rates["valid_rate"]} if rates else {}),
    }
