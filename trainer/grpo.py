"""Stage `grpo`: n judgments of both sides of each pair, PAR and format rewards, group advantages, clipped surrogate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.pair_accuracy import JudgedPair, PairSampling, format_rates, pair_accuracy, read_strictly
from kernels.grpo_loss import grpo_loss
from patarm_core import advantages
from patarm_core.pairs import Pair
from patarm_core.par import total_rewards
from patarm_core.prompts import flatten
from patarm_core.sampling import PairRandomSampler
from rollout.engine import Engine
from rollout.params import Completion
from trainer.balance import my_share
from trainer.config import GrpoConfig, Recipe
from trainer.data import noisy
from trainer.distributed import World
from trainer.learner import Learner, TokenLossFn, sharded_decoder
from trainer.logprobs import token_logprobs
from trainer.replica import JudgeReplica
from trainer.run_folder import RunFolder, Stopwatch
from trainer.shared_rollout import SharedRollout
from trainer.stage import count_steps, run_steps
from trainer.token_tree import Leaf, MicroBatch

STAGE = "grpo"
VALUES = ("advantage", "old_logprob")


@dataclass(frozen=True, slots=True)
class PairRollout:
    """One pair's 2n completions, chosen side first, with what they earned."""

    index: int  # of the pair in its step
    judged: JudgedPair
    contexts: tuple[list[int], list[int]]
    completions: list[Completion]  # 2n
    rewards: list[float]  # 2n, R = R_PAR + R_format


def roll_out(
    engine: Engine, shared: SharedRollout, pairs: Sequence[Pair], recipe: Recipe, step: int, watch: Stopwatch
) -> tuple[list[PairRollout], dict[str, float | list[int]]]:
    """Draws the judgments of a step's pairs, over all ranks, and rewards those of this rank's share.

    Noise is named by (run seed, step, pair, side).

    Returns:
        The rollouts of this rank's share of the pairs, which costs all ranks the same, and metrics of how the pairs
        were spread over the ranks.
    """
    sampling = PairSampling(
        n=recipe.rollout.num_rollouts, max_tokens=recipe.rollout.max_completion_tokens,
        temperature=recipe.rollout.temperature, stream=("rollout", recipe.seed, step),
    )  # fmt: skip
    with watch.phase("rollout_s"):
        drawn = shared.draw(engine, pairs, sampling, keep=lambda pair, sides: sides)
    with watch.phase("wait_s"):
        spread = shared.wait(drawn)  # for the rank whose rollouts take longest
    with watch.phase("reward_s"):
        mine = shared.of_my_share(
            drawn, lambda trees: my_share(trees, engine.decoder.config, recipe.model.layout, shared.world)
        )
        return [rewarded(i, pairs[i], contexts, sides, recipe) for i, (contexts, sides) in mine.items()], spread


def rewarded(
    index: int, pair: Pair, contexts: tuple[list[int], list[int]], sides: Sequence[list[Completion]], recipe: Recipe
) -> PairRollout:
    judged = read_strictly(pair, sides, recipe.prompt.rubrics)
    rewards = total_rewards(judged.chosen, judged.rejected, margin_reward=recipe.grpo.margin.build())
    return PairRollout(index, judged, contexts, sides[0] + sides[1], rewards[0] + rewards[1])


def step_advantages(
    rewards: Sequence[float], num_pairs: int, n: int, config: GrpoConfig
) -> tuple[list[float], dict[str, float]]:
    """Advantages of a step's rewards over all ranks; number and share of the groups that have none (lost compute)."""
    group_ids = advantages.group_ids(num_pairs, n, config.group)
    advantage = advantages.estimate(config.advantage, rewards, group_ids)
    num_groups = len(set(group_ids))
    num_lost = num_groups - len({group for group, value in zip(group_ids, advantage, strict=True) if value})
    return advantage, {"zero_advantage_groups": num_lost, "zero_advantage_share": num_lost / num_groups}


def to_trees(rollouts: Sequence[PairRollout], advantage: Sequence[float]) -> list[list[Leaf]]:
    """One tree per pair. A judgment's advantage holds for all of its tokens: the reward on the last, undiscounted.

    Args:
        advantage: of all judgments of the step, pair by pair.
    """
    trees = []
    for rollout in rollouts:
        pair, num = rollout.judged.pair, len(rollout.completions)
        contexts = [context for context in rollout.contexts for _ in range(num // 2)]
        own = advantage[rollout.index * num : (rollout.index + 1) * num]
        trees.append(
            [
                Leaf(
                    context,
                    completion.token_ids,
                    {
                        "advantage": np.full(len(completion.token_ids), value, dtype=np.float32),
                        "old_logprob": completion.logprobs,
                    },
                    f"pair {pair.id} of {pair.source}",
                )
                for context, completion, value in zip(contexts, rollout.completions, own, strict=True)
            ]
        )
    return trees


def policy_loss(config: GrpoConfig, reference: torch.nn.Module | None) -> TokenLossFn:
    """The loss of a token. In a group without variance the advantage is 0, and the KL penalty is all that pulls."""

    def token_loss(batch: MicroBatch, logprob_T: Tensor, entropy_T: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        reference_T = None
        if reference is not None:
            with torch.no_grad():
                reference_T, _ = token_logprobs(reference, batch, config.exact_logprobs)
        old_T = batch.values_T["old_logprob"]
        result = grpo_loss(
            logprob_T, old_T, batch.values_T["advantage"],
            clip_low=config.clip_low, clip_high=config.clip_high, dual_clip=config.dual_clip or None,
            reference_logprob_T=reference_T, kl_coef=config.kl_coef, kl_estimator=config.kl_estimator,
            entropy_T=entropy_T, entropy_coef=config.entropy_coef,
        )  # fmt: skip
        gap_T = (logprob_T - old_T).abs()
        metrics = {
            "entropy": entropy_T,
            "clip_share": result.is_clipped_T,
            "logprob_gap": gap_T,
            "max_logprob_gap": gap_T,
        }
        return result.loss_T, metrics | ({"kl": result.kl_T} if reference is not None else {})

    return token_loss


def rollout_metrics(rewarded: Sequence[tuple[JudgedPair, list[float]]]) -> dict[str, float]:
    """What a step's judgments say, given each pair with its 2n rewards. Reward is split into PAR and format."""
    judged = [item for item, _ in rewarded]
    judgments = [j for item in judged for j in (*item.chosen, *item.rejected)]
    rewards = [reward for _, item in rewarded for reward in item]
    format_reward = sum(j.format_reward for j in judgments) / len(judgments)
    accuracy = pair_accuracy(judged, len(judged[0].chosen))
    scores = [float(j.score) for j in judgments if j.score is not None]
    return {
        "reward": sum(rewards) / len(rewards),
        "reward_par": sum(rewards) / len(rewards) - format_reward,
        "reward_format": format_reward,
        "pair_accuracy": accuracy.accuracy,  # share of pairs ordered right by the mean score
        "pair_ties": accuracy.num_ties / accuracy.num_pairs,
        "pair_unscored": accuracy.num_unscored / accuracy.num_pairs,
        "margin": accuracy.margin if accuracy.margin is not None else 0.0,
        "score_mean": float(np.mean(scores)) if scores else 0.0,
        "score_std": float(np.std(scores)) if scores else 0.0,
        **format_rates(judged),
    }


def sample_records(rollouts: Sequence[PairRollout], step: int, num_pairs: int) -> list[dict]:
    """The first judgment of each side of a few pairs, with what was judged, for people to read."""
    return [
        {
            "stage": STAGE, "step": step, "source": r.judged.pair.source, "id": r.judged.pair.id, "side": side,
            "judgment": texts[0], "score": None if judged[0].score is None else float(judged[0].score),
            "error": judged[0].error, "reward": r.rewards[offset],
            "prompt": flatten(r.judged.pair.prompt), "response": getattr(r.judged.pair, side),
        }
        for r in rollouts[:num_pairs]
        for side, texts, judged, offset in (
            ("chosen", r.judged.chosen_texts, r.judged.chosen, 0),
            ("rejected", r.judged.rejected_texts, r.judged.rejected, len(r.judged.chosen)),
        )
    ]  # fmt: skip


def run_grpo(
    recipe: Recipe,
    folder: RunFolder,
    model: str,
    pairs: Sequence[Pair],
    dev: Sequence[Pair],
    replica: JudgeReplica,
) -> Learner:
    """Trains from the Hugging Face directory `model`, which is also the reference of the KL penalty."""
    config, world, n = recipe.grpo, replica.world, recipe.rollout.num_rollouts
    pairs = noisy(pairs, recipe)
    sampler = PairRandomSampler(len(pairs), config.pairs_per_step, recipe.seed)
    num_updates = count_steps(config, sampler) * config.inner_epochs
    learner = Learner(model, recipe.model, config.optim, num_updates, world)
    reference = sharded_decoder(model, recipe.model, world).requires_grad_(False) if config.kl_coef else None
    token_loss = policy_loss(config, reference)
    spans = {"rollout": replica.shared}
    for step in run_steps(STAGE, config, sampler, learner, folder, replica, dev, recipe, spans):
        phase = step.watch.phase
        with phase("step_s"):
            with phase("sync_s"):
                engine = replica.refreshed(learner)
            step_pairs = [pairs[i] for i in sampler.global_step(step.index)]
            mine, spread = roll_out(engine, replica.shared, step_pairs, recipe, step.index, step.watch)
            with phase("reward_s"):
                of_pair = {i: r for rank in world.gather({r.index: r.rewards for r in mine}) for i, r in rank.items()}
                rewards = [reward for i in range(len(of_pair)) for reward in of_pair[i]]
                advantage, lost = step_advantages(rewards, len(rewards) // (2 * n), n, config)
                trees = to_trees(mine, advantage)
            with phase("update_s"):
                first_update = step.index * config.inner_epochs
                updates = [
                    learner.update(
                        trees,
                        token_loss,
                        config.tokens_per_micro_batch,
                        first_update + epoch,
                        VALUES,
                        config.exact_logprobs,
                    )
                    for epoch in range(config.inner_epochs)
                ]
                # How far rollout and trainer disagree shows before the first update only.
                metrics = updates[-1] | {name: value for name, value in updates[0].items() if "gap" in name}
        metrics |= step_report(mine, world) | lost | spread
        metrics["tokens_per_s"] = metrics.pop("num_context_tokens") + metrics["num_tokens"]
        metrics["tokens_per_s"] /= step.watch.seconds["step_s"]
        step.metrics, step.samples = metrics, sample_records(mine, step.index + 1, config.num_sample_pairs)
        step.note = (
            f"reward {metrics['reward']:.2f} right {metrics['pair_accuracy']:.0%} valid {metrics['valid_rate']:.0%}"
        )
    return learner


def step_report(mine: Sequence[PairRollout], world: World) -> dict[str, float]:
    """Rollout metrics over all ranks, with lengths."""
    # Token ids and log-probs stay where they are: texts, rewards and lengths are enough.
    light = [(rollout.judged, rollout.rewards) for rollout in mine]
    lengths = [
        (len(completion.token_ids), completion.finish_reason == "length")
        for rollout in mine
        for completion in rollout.completions
    ]
    num_context_tokens = sum(len(context) for rollout in mine for context in rollout.contexts)
    everyone = world.gather((light, lengths, num_context_tokens))
    all_lengths = [item for _, rank_lengths, _ in everyone for item in rank_lengths]
    return rollout_metrics([item for rank_light, _, _ in everyone for item in rank_light]) | {
        "completion_tokens": sum(length for length, _ in all_lengths) / len(all_lengths),
        "cut_short_rate": sum(is_cut for _, is_cut in all_lengths) / len(all_lengths),
        "num_context_tokens": sum(count for _, _, count in everyone),
    }
