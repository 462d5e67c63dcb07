"""Stage `grpo`: n judgments of each context of a pair, rewards, advantages, a policy-gradient step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.pair_accuracy import PairSampling
from patarm_core.dynamic_sampling import fill_step
from patarm_core.loss_weights import StepCounts, token_weight
from patarm_core.pairs import Pair
from patarm_core.sampling import PairRandomSampler, PairStream
from rollout.engine import Engine
from trainer.balance import my_share
from trainer.config import GrpoConfig, Recipe
from trainer.data import noisy
from trainer.distributed import World
from trainer.learner import Learner, sharded_decoder
from trainer.policy_loss import PolicyLoss, policy_leaf, update_on
from trainer.replica import JudgeReplica
from trainer.rewards import PairRollout, joined, rewarded, step_advantages, teaches
from trainer.rollout_report import sample_records, step_report
from trainer.run_folder import RunFolder, Stopwatch
from trainer.shared_rollout import SharedRollout
from trainer.stage import count_steps, run_steps
from trainer.token_tree import Leaf

STAGE = "grpo"
Metrics = dict[str, float | list[int]]


def roll_out(
    engine: Engine, shared: SharedRollout, pairs: Sequence[Pair], recipe: Recipe, step: int, watch: Stopwatch
) -> tuple[list[PairRollout], Metrics]:
    """Draws the judgments of pairs, over all ranks, and rewards those of this rank's share.

    Noise is named by (run seed, step, pair, side), and pairwise so is the order of A and B.

    Returns:
        The rollouts of this rank's share of the pairs, which costs all ranks the same, and metrics of how the pairs
        were spread over the ranks.
    """
    sampling = PairSampling(
        n=recipe.rollout.num_rollouts, max_tokens=recipe.rollout.max_completion_tokens,
        temperature=recipe.rollout.temperature, stream=("rollout", recipe.seed, step), mode=recipe.mode,
    )  # fmt: skip
    with watch.phase("rollout_s"):
        drawn = shared.draw(engine, pairs, sampling, keep=lambda pair, completions: completions)
    with watch.phase("wait_s"):
        spread = shared.wait(drawn)  # for the rank whose rollouts take longest
    with watch.phase("reward_s"):
        mine = shared.of_my_share(
            drawn, lambda trees: my_share(trees, engine.decoder.config, recipe.model.layout, shared.world)
        )
        rollouts = []
        for i, (contexts, completions) in mine.items():
            judged = sampling.read(pairs[i], completions, recipe.prompt.rubrics, is_lenient=False)
            rollouts.append(rewarded(i, judged, contexts, completions, recipe))
        return rollouts, spread


@dataclass(frozen=True, slots=True)
class StepRollouts:
    """This rank's part of what a step drew."""

    trained: list[PairRollout]
    drawn: list[PairRollout]  # with those that dynamic sampling dropped
    metrics: Metrics


def roll_out_until_full(
    stream: PairStream, roll_out_pairs: Callable[[list[int]], tuple[list[PairRollout], Metrics]], config: GrpoConfig,
    world: World,
) -> StepRollouts:  # fmt: skip
    """Dynamic sampling: rolls pairs out, round after round, until enough of them teach; all ranks together.

    A step none of whose pairs teaches trains on its first round, where only the KL penalty and the entropy bonus pull.

    Args:
        roll_out_pairs: of a list of pairs of the data; the rollouts of this rank's share, with their places in it.
    """
    rounds: list[tuple[list[PairRollout], Metrics, list[bool]]] = []

    def is_kept(pairs: list[int]) -> list[bool]:
        mine, spread = roll_out_pairs(pairs)
        of_rank = {rollout.index: teaches(rollout, config) for rollout in mine}
        everyone = {i: keep for rank in world.gather(of_rank) for i, keep in rank.items()}
        rounds.append((mine, spread, [everyone[i] for i in range(len(pairs))]))
        return rounds[-1][2]

    filled = fill_step(stream, config.pairs_per_step, 1 + config.refill_rounds, is_kept)
    trained, num_before = [], 0
    for mine, _, kept in rounds:
        place = np.cumsum(kept) - 1 + num_before
        trained += [replace(rollout, index=int(place[rollout.index])) for rollout in mine if kept[rollout.index]]
        num_before += sum(kept)
    spreads = [spread for _, spread, _ in rounds]
    metrics = {
        "pairs_by_rank": np.sum([spread["pairs_by_rank"] for spread in spreads], axis=0).tolist(),
        "rollout_idle_share": float(np.mean([spread["rollout_idle_share"] for spread in spreads])),
        "pairs_drawn": filled.num_drawn, "pairs_dropped": filled.num_dropped, "rollout_rounds": filled.num_rounds,
    }  # fmt: skip
    return StepRollouts(
        trained if filled.pairs else rounds[0][0], [rollout for mine, _, _ in rounds for rollout in mine], metrics
    )


def to_trees(
    rollouts: Sequence[PairRollout], advantage: Sequence[float], weight: Callable[[int], float]
) -> list[list[Leaf]]:
    """One tree per pair.

    Args:
        advantage: of all judgments of the step, pair by pair.
        weight: of each token of a completion in the step's loss, given how many it has.
    """
    trees = []
    for rollout in rollouts:
        pair, num = rollout.judged.pair, len(rollout.completions)
        contexts = [context for context in rollout.contexts for _ in range(num // len(rollout.contexts))]
        own = advantage[rollout.index * num : (rollout.index + 1) * num]
        trees.append(
            [
                policy_leaf(
                    context, completion, value, weight(len(completion.token_ids)), f"pair {pair.id} of {pair.source}"
                )
                for context, completion, value in zip(contexts, rollout.completions, own, strict=True)
            ]
        )
    return trees


def with_advantages(
    rollouts: Sequence[PairRollout], recipe: Recipe, world: World
) -> tuple[list[list[Leaf]], dict[str, float]]:
    """This rank's rollouts as trees, their advantages and weights by all ranks'; and metrics of the advantages."""
    own = {
        rollout.index: (rollout.parts, [len(completion.token_ids) for completion in rollout.completions])
        for rollout in rollouts
    }
    of_pair = {i: item for rank in world.gather(own) for i, item in rank.items()}
    parts = joined([of_pair[i][0] for i in range(len(of_pair))])
    advantage, metrics = step_advantages(parts, len(of_pair), recipe.grpo)
    counts = StepCounts.of([length for _, lengths in of_pair.values() for length in lengths])
    most = recipe.rollout.max_completion_tokens
    trees = to_trees(rollouts, advantage, lambda length: token_weight(recipe.grpo.normalization, length, counts, most))
    return trees, metrics


def run_grpo(
    recipe: Recipe,
    folder: RunFolder,
    model: str,
    pairs: Sequence[Pair],
    dev: Sequence[Pair],
    replica: JudgeReplica,
) -> Learner:
    """Trains from the Hugging Face directory `model`, which is also the reference of the KL penalty."""
    config, world = recipe.grpo, replica.world
    pairs = noisy(pairs, recipe)
    sampler = PairRandomSampler(len(pairs), config.pairs_per_step, recipe.seed)
    stream = PairStream(len(pairs), recipe.seed)  # of dynamic sampling
    num_updates = count_steps(config, sampler) * config.inner_epochs
    learner = Learner(model, recipe.model, config.optim, num_updates, world)
    reference = sharded_decoder(model, recipe.model, world).requires_grad_(False) if config.kl_coef else None
    loss = PolicyLoss(config, reference)
    spans = {"rollout": replica.shared, "stream": stream}
    for step in run_steps(STAGE, config, sampler, learner, folder, replica, dev, recipe, spans):
        phase = step.watch.phase
        with phase("step_s"):
            with phase("sync_s"):
                engine = replica.refreshed(learner)

            def draw(some: list[int], step=step, engine=engine) -> tuple[list[PairRollout], Metrics]:
                return roll_out(engine, replica.shared, [pairs[i] for i in some], recipe, step.index, step.watch)

            if config.refill_rounds:
                rollouts = roll_out_until_full(stream, draw, config, world)
            else:
                mine, spread = draw(sampler.global_step(step.index))
                rollouts = StepRollouts(mine, mine, spread)
            with phase("reward_s"):
                trees, of_advantages = with_advantages(rollouts.trained, recipe, world)
            with phase("update_s"):
                metrics = update_on(trees, learner, loss, config, step.index)
        metrics |= step_report(rollouts.drawn, world) | of_advantages | rollouts.metrics
        num_context_tokens = sum(len(context) for rollout in rollouts.trained for context in rollout.contexts)
        num_tokens = world.sums({"n": num_context_tokens})["n"] + metrics["num_tokens"]
        metrics["tokens_per_s"] = num_tokens / step.watch.seconds["step_s"]
        step.metrics = metrics
        step.samples = sample_records(rollouts.drawn, STAGE, step.index + 1, config.num_sample_pairs)
        step.note = (
            f"reward {metrics['reward']:.2f} right {metrics['pair_accuracy']:.0%} valid {metrics['valid_rate']:.0%}"
        )
    return learner
