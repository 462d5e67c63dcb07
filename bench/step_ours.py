"""This project's GRPO step on imposed work, in parts that can be timed: weights, rollout, reward, update.

The parts are those of `trainer.grpo` but for two: every judgment ends where it is told to (`bench.step_workload`), and
rewards are read from well-formed judgments with drawn scores, since a random model writes none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from random import Random

import torch

from bench.rollout_peers import number_tokenizer
from bench.rollout_workload import Work
from bench.step_memory import Peak, peak_memory
from eval.pair_accuracy import read_strictly
from kernels.philox import stream_seed
from patarm_core.pairs import Pair
from rollout.decoder import Decoder, DecoderConfig
from rollout.engine import Engine, EngineConfig
from rollout.params import Completion, SamplingParams
from trainer.balance import my_share
from trainer.config import GrpoConfig, ModelConfig, OptimConfig, Recipe, RolloutConfig
from trainer.distributed import world
from trainer.grpo import with_advantages
from trainer.learner import DTYPES, Learner
from trainer.live_weights import refuse_stale_weights, share_weights_
from trainer.policy_loss import VALUES, PolicyLoss
from trainer.rewards import PairRollout, rewarded
from trainer.run_folder import Stopwatch
from trainer.token_tree import Leaf, TokenTree, pack

Sides = list[list[Completion]]  # of the chosen and of the rejected response
_JUDGMENT = "<think>-</think><generate_rubrics>-</generate_rubrics><eval>-</eval><answer>{}</answer>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    folder: str  # a Hugging Face directory
    model: ModelConfig = field(default_factory=ModelConfig)
    tokens_per_micro_batch: int = 16_384
    exact_logprobs: bool = False
    cpu_offload: bool = False
    kv_gib: float | None = None
    threads: int = 0  # of this process; 0: as many as torch takes
    rank: int = 0
    num_processes: int = 1
    port: int = 0  # by which several processes find each other

    def recipe(self, n: int) -> Recipe:
        return Recipe(
            out="bench", stages=("grpo",), model=self.model, rollout=RolloutConfig(num_rollouts=n),
            grpo=GrpoConfig(
                # Of one judgment a side there are none to compare it with.
                group="side" if n > 1 else "pair", kl_coef=0.0, exact_logprobs=self.exact_logprobs,
                tokens_per_micro_batch=self.tokens_per_micro_batch,
                optim=OptimConfig(lr=1e-6, schedule="constant", cpu_offload=self.cpu_offload),
            ),
        )  # fmt: skip


class OurStep:
    """One process's engine and learner."""

    def __init__(self, setup: Setup) -> None:
        if setup.threads:
            torch.set_num_threads(setup.threads)
        if setup.num_processes > 1:
            rank, size = str(setup.rank), str(setup.num_processes)
            os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(setup.port))
        self._setup, self._open = setup, ExitStack()
        self._world = self._open.enter_context(world())
        config = DecoderConfig.from_pretrained(setup.folder)
        recipe = setup.recipe(2)
        self._learner = Learner(setup.folder, setup.model, recipe.grpo.optim, 1000, self._world)
        dtype = DTYPES[setup.model.dtype]
        with torch.device("meta"):
            decoder = Decoder(config).to(dtype)
        decoder.to_empty(device=self._world.device).requires_grad_(False)
        self._shares = self._world.size == 1 and dtype == torch.float32
        engine_config = EngineConfig(max_rows=512, kv_gib=setup.kv_gib)
        self._engine = Engine(decoder, number_tokenizer(config.vocab_size, end_token=None), engine_config)
        self._loss = PolicyLoss(recipe.grpo, None)
        self._drawn: dict[int, Sides] = {}  # by pair
        self._num_updates = 0

    def __enter__(self) -> OurStep:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def roll_out(self, work: Work, turn: int, is_measured: bool = False) -> dict[str, float | int | None]:
        """Judgments of this process's share of the pairs, which stay here; seconds, and tokens computed."""
        watch, engine, learner = Stopwatch(self._world.device), self._engine, self._learner
        with watch.phase("sync_s"):
            if self._shares:
                share_weights_(engine.decoder, learner.decoder)
            else:
                learner.copy_weights_to_(engine.decoder)
            refuse_stale_weights(engine.decoder, learner.decoder, self._world)
        before = replace(engine.stats.counts)
        pairs = my_share(leaves_of(work), engine.decoder.config, self._setup.model.layout, self._world)
        contexts, params, places = [], [], []
        for pair in pairs:
            for side in range(2):
                for sample, length in enumerate(work.lengths[2 * pair + side]):
                    contexts.append(work.contexts[2 * pair + side])
                    seed = stream_seed("bench", turn, pair, side, sample)
                    params.append(SamplingParams(max_tokens=length, seed=seed))
                    places.append((pair, side))
        with watch.phase("rollout_s"), self._peak(is_measured) as peak:
            finished = engine.generate(contexts, params)
            if self._world.device.type == "cuda":
                engine.release_memory()
        self._drawn = {pair: [[], []] for pair in pairs}
        for (pair, side), (completion,) in zip(places, finished, strict=True):
            self._drawn[pair][side].append(completion)
        counts = engine.stats.counts
        num_computed = counts.num_prefilled_tokens - before.num_prefilled_tokens
        num_computed += counts.num_decoded_tokens - before.num_decoded_tokens
        return watch.seconds | {"rollout_tokens": num_computed, "rollout_peak": peak.num_bytes}

    def drawn(self) -> dict[int, Sides]:
        return self._drawn

    def take(self, drawn: dict[int, Sides]) -> None:
        """Another process's judgments, as if they had been drawn here."""
        self._drawn = drawn

    def learn(self, work: Work, turn: int, is_measured: bool = False) -> dict[str, float | int | None]:
        """Rewards, advantages and one update on the judgments that are here; seconds, and tokens computed."""
        setup, watch = self._setup, Stopwatch(self._world.device)
        recipe = setup.recipe(len(work.lengths[0]))
        with watch.phase("reward_s"):
            rollouts = [_rewarded(pair, work, sides, turn, recipe) for pair, sides in self._drawn.items()]
            trees, _ = with_advantages(rollouts, recipe, self._world)
        with watch.phase("update_s"), self._peak(is_measured) as peak, _timed_step(self._learner.optimizer, watch):
            metrics = self._learner.update(
                trees, self._loss.for_epoch(0), setup.tokens_per_micro_batch, self._num_updates, VALUES,
                setup.exact_logprobs,
            )  # fmt: skip
        self._num_updates += 1
        return watch.seconds | update_size(trees, setup.model.layout, setup.tokens_per_micro_batch) | {
            "update_peak": peak.num_bytes, "grad_norm": metrics["grad_norm"],
            "logprob_gap": metrics["max_logprob_gap"],
        }  # fmt: skip

    def peak_bytes(self) -> int:
        """The most that torch has had on this GPU since this was last asked; unless a part was measured."""
        most = torch.cuda.max_memory_allocated(self._world.device)
        torch.cuda.reset_peak_memory_stats(self._world.device)
        return most

    def _peak(self, is_measured: bool):
        return peak_memory(self._world.device) if is_measured else nullcontext(Peak())


@contextmanager
def _timed_step(optimizer: torch.optim.Optimizer, watch: Stopwatch) -> Iterator[None]:
    """The phase "optimizer_s", a part of the update."""
    step = optimizer.step

    def timed() -> None:
        with watch.phase("optimizer_s"):
            step()

    optimizer.step = timed
    try:
        yield
    finally:
        del optimizer.step  # of the instance: the class has its own


def update_size(trees: Sequence[Sequence[Leaf]], layout: str, max_tokens: int) -> dict[str, int]:
    """Of an update: tokens computed, (query, key) that see each other, loss tokens, micro-batches."""
    batches = pack([TokenTree.of(leaves, layout == "tree") for leaves in trees], max_tokens)
    parts = [part for batch in batches for part in batch]
    return {
        "update_tokens": sum(part.num_tokens for part in parts),
        "attention_pairs": sum(part.num_attention_pairs for part in parts),
        "loss_tokens": sum(len(leaf.completion) for leaves in trees for leaf in leaves),
        "micro_batches": len(batches),
    }


def leaves_of(work: Work) -> list[list[Leaf]]:
    """Of each pair, of the shape that the step's will have: what is shared of judgments is their context."""
    leaves = [
        [Leaf(context, [i] * length) for i, length in enumerate(lengths)]
        for context, lengths in zip(work.contexts, work.lengths, strict=True)
    ]
    return [leaves[i] + leaves[i + 1] for i in range(0, len(leaves), 2)]


def _rewarded(index: int, work: Work, sides: Sides, turn: int, recipe: Recipe) -> PairRollout:
    rng = Random(f"scores {turn} {index}")
    told = [[replace(c, text=_JUDGMENT.format(rng.randrange(101) / 10)) for c in side] for side in sides]
    pair = Pair(prompt="-", chosen="-", rejected="-", task="chat", source="bench", id=str(index))
    contexts = tuple(work.contexts[2 * index : 2 * index + 2])
    return rewarded(index, read_strictly(pair, told, recipe.prompt.rubrics), contexts, told, recipe)
