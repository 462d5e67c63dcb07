"""From completions to advantages: what a step's judgments earn, and what they are worth beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from eval.pair_accuracy import Judged, JudgedPair
from patarm_core import advantages
from patarm_core.overlong import overlong_reward
from patarm_core.par import pairwise_rewards, total_rewards
from rollout.params import Completion
from trainer.config import GrpoConfig, Recipe

Parts = dict[str, list[Real]]  # of rewards, by name: what a judgment says of its pair, its format, its length


@dataclass(frozen=True, slots=True)
class PairRollout:
    """One pair's completions with what they earned: 2n, those of the chosen side first, or pairwise n."""

    index: int  # of the pair in its step
    judged: Judged
    contexts: tuple[list[int], ...]  # of each side, or one with both
    completions: list[Completion]
    parts: Parts

    @property
    def rewards(self) -> list[float]:
        """R, the sum of the parts."""
        return advantages.totals(list(self.parts.values()))


def rewarded(
    index: int,
    judged: Judged,
    contexts: tuple[list[int], ...],
    completions: Sequence[Sequence[Completion]],
    recipe: Recipe,
) -> PairRollout:
    """R = R_PAR + R_format, of pairwise judgments R_choice + R_format; with overlong shaping + R_length."""
    if isinstance(judged, JudgedPair):
        name, sides = "par", total_rewards(judged.chosen, judged.rejected, recipe.grpo.margin.build())
        totals = sides[0] + sides[1]
    else:
        name, totals = "choice", pairwise_rewards(judged.judgments, judged.right_choice)
    flat = [completion for of_context in completions for completion in of_context]
    of_format = [judgment.format_reward for judgment in judged.judgments]
    # Exact: a judgment with a format reward has earned nothing else.
    parts = {name: [total - part for total, part in zip(totals, of_format, strict=True)], "format": of_format}
    if buffer := recipe.grpo.overlong_buffer_tokens:
        most = recipe.rollout.max_completion_tokens
        parts["length"] = [overlong_reward(len(completion.token_ids), most, buffer) for completion in flat]
    return PairRollout(index, judged, contexts, flat, parts)


def joined(parts_of_pairs: Sequence[Parts]) -> Parts:
    """The parts of many pairs' rewards, one pair after the other."""
    return {name: [r for parts in parts_of_pairs for r in parts[name]] for name in parts_of_pairs[0]}


def step_advantages(parts: Parts, num_pairs: int, config: GrpoConfig) -> tuple[list[float], dict[str, float]]:
    """Advantages of a step's rewards, pair by pair, and what there is to say of them.

    Returns:
        The advantages, and metrics: number and share of the groups that have none (lost compute), and what share of the
        variance of rewards within groups comes from each part; they add up to 1, and are left out where none vary.
    """
    columns = list(parts.values())
    num_rewards = len(columns[0])
    per_pair = num_rewards // num_pairs
    size = per_pair // 2 if "par" in parts and config.group == "side" else per_pair
    group_ids = [i // size for i in range(num_rewards)]
    if config.normalize_rewards == "separately":
        advantage = advantages.estimate_separately(config.advantage, columns, group_ids)
    else:
        advantage = advantages.estimate(config.advantage, advantages.totals(columns), group_ids)
    num_groups = num_rewards // size
    num_lost = num_groups - len({group for group, value in zip(group_ids, advantage, strict=True) if value})
    metrics = {"zero_advantage_groups": num_lost, "zero_advantage_share": num_lost / num_groups}
    baseline_ids = [0] * num_rewards if config.advantage == "reinforce++" else group_ids
    if (shares := advantages.variance_shares(columns, baseline_ids)) is not None:
        metrics |= {f"variance_share_{name}": share for name, share in zip(parts, shares, strict=True)}
    return advantage, metrics


def teaches(rollout: PairRollout, config: GrpoConfig) -> bool:
    """Whether any of the pair's judgments has an advantage, which its own groups decide."""
    return any(step_advantages(rollout.parts, 1, config)[0])
