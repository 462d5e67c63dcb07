"""What the stages share that train on preference pairs without a rollout, `bt` and `dpo`: loop and measurements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from eval.pair_scores import ScoredPair
from patarm_core.pairs import Pair
from patarm_core.sampling import PairRandomSampler
from rollout.scalar import RewardHead
from trainer.balance import my_share
from trainer.config import BtConfig, Recipe
from trainer.data import RunData, noisy
from trainer.distributed import World
from trainer.leaf_sums import leaf_sums
from trainer.learner import Learner, TokenLossFn
from trainer.preference import weighted
from trainer.replica import dev_metrics
from trainer.run_folder import RunFolder
from trainer.stage import count_steps, run_steps
from trainer.token_tree import Leaf

Sides = tuple[float, float]  # of the chosen and of the rejected response


class PairObjective(ABC):
    """A reward of single responses, and the loss that trains it. Measures pairs as a JudgeReplica does judgments."""

    stage: ClassVar[str]
    value_names: ClassVar[tuple[str, ...]] = ("weight",)  # that the leaves of a step carry
    head: RewardHead | None = None  # of a reward model; None: the language model is trained

    def __init__(self, config: BtConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tokenizer = config, tokenizer
        self._known: dict[Pair, list[tuple[array, array]]] = {}

    @abstractmethod
    def tokens(self, pair: Pair, side: str, name: str) -> tuple[list[int], list[int]]:
        """(context, completion) of a response; ValueError, with `name`, if the chat template refuses it."""

    def leaves(self, pair: Pair) -> list[Leaf]:
        """Both sides, chosen first. A pair is tokenized once in a run, by the check of its length."""
        name = f"pair {pair.id} of {pair.source}"
        if pair not in self._known:
            sides = (self.tokens(pair, side, name) for side in (pair.chosen, pair.rejected))
            self._known[pair] = [(array("i", context), array("i", completion)) for context, completion in sides]
        return [Leaf(context.tolist(), completion.tolist(), {}, name) for context, completion in self._known[pair]]

    @abstractmethod
    def token_loss(self) -> TokenLossFn: ...

    def prepare(self, learner: Learner, pairs: Sequence[Pair]) -> None:
        """Looks at all pairs that will be trained or measured on, with the weights that the stage starts from."""
        return

    def training_leaves(self, pair: Pair) -> list[Leaf]:
        return self.leaves(pair)

    def rewards(self, learner: Learner, pairs: Sequence[Pair]) -> list[Sides]:
        return self.sums(learner, pairs)

    def sums(self, learner: Learner, pairs: Sequence[Pair]) -> list[Sides]:
        """The sum over each side of what the model says of its loss tokens; every rank calls it and gets them all."""
        world = learner.world
        mine = [self.leaves(pair) for pair in world.share(list(pairs))]
        of_ranks = world.gather(leaf_sums(learner, mine, self.config.tokens_per_micro_batch))
        return [tuple(of_ranks[i % world.size][i // world.size]) for i in range(len(pairs))]

    def scored(self, learner: Learner, pairs: Sequence[Pair]) -> list[ScoredPair]:
        return [ScoredPair.of(*of_pair) for of_pair in zip(pairs, self.rewards(learner, pairs), strict=True)]

    def measure(self, learner: Learner, dev: Sequence[Pair]) -> dict[str, float]:
        return dev_metrics(self.scored(learner, dev), 1)


def run_on_pairs(
    objective: PairObjective,
    recipe: Recipe,
    folder: RunFolder,
    model: str,
    data: RunData,
    world: World,
) -> Learner:
    """Trains from the Hugging Face directory `model` on the pairs that GRPO sees; returns the learner."""
    config, pairs = objective.config, noisy(data.pairs, recipe)
    sampler = PairRandomSampler(len(pairs), config.pairs_per_step, recipe.seed)
    num_steps = count_steps(config, sampler)
    learner = Learner(model, recipe.model, config.optim, num_steps, world, objective.head)
    seen = sorted({i for step in range(min(num_steps, sampler.steps_per_epoch)) for i in sampler.global_step(step)})
    objective.prepare(learner, [*(pairs[i] for i in seen), *(data.dev if config.dev_every else ()), *data.held_out])
    token_loss = objective.token_loss()
    for step in run_steps(objective.stage, config, sampler, learner, folder, objective, data.dev, recipe):
        with step.watch.phase("step_s"):
            step_pairs = [pairs[i] for i in sampler.global_step(step.index)]
            trees = [weighted(objective.training_leaves(pair), len(step_pairs)) for pair in step_pairs]
            mine = [trees[i] for i in my_share(trees, learner.decoder.config, recipe.model.layout, world)]
            metrics = learner.update(
                mine, token_loss, config.tokens_per_micro_batch, step.index, objective.value_names,
                is_atomic=True, weighted_metrics=True,
            )  # fmt: skip
        num_tokens = sum(len(leaf.path) for leaves in trees for leaf in leaves)  # both sides of a pair read its prompt
        metrics["tokens_per_s"] = num_tokens / step.watch.seconds["step_s"]
        step.metrics = metrics
        step.note = f"loss {metrics['loss']:.3f} right {metrics['pair_accuracy']:.0%}"
    return learner
