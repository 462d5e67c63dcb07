"""What a step's judgments say, as metrics and as samples for people to read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.pair_accuracy import Judged, JudgedPair, format_rates, pair_accuracy
from patarm_core.prompts import flatten
from trainer.distributed import World
from trainer.rewards import PairRollout, Parts, joined


def rollout_metrics(rewarded: Sequence[tuple[Judged, Parts]]) -> dict[str, float]:
    """Given each pair with the parts of its rewards.

    Scores and their margin are pointwise judgments' alone, and left out where nothing is scored: 0 would be a score.
    """
    judged = [item for item, _ in rewarded]
    parts = joined([of_pair for _, of_pair in rewarded])
    means = {f"reward_{name}": float(sum(rewards) / len(rewards)) for name, rewards in parts.items()}
    per_context = len(judged[0].judgments) // (2 if isinstance(judged[0], JudgedPair) else 1)
    accuracy = pair_accuracy(judged, per_context)
    metrics = {
        "reward": sum(means.values()),
        **means,
        "pair_accuracy": accuracy.accuracy,  # share of pairs ordered right by the mean score, or by the majority
        "pair_ties": accuracy.num_ties / accuracy.num_pairs,
        "pair_unscored": accuracy.num_unscored / accuracy.num_pairs,
    }
    if isinstance(judged[0], JudgedPair):
        scores = [float(j.score) for item in judged for j in item.judgments if j.score is not None]
        if accuracy.margin is not None:
            metrics["margin"] = accuracy.margin
        if scores:
            metrics |= {"score_mean": float(np.mean(scores)), "score_std": float(np.std(scores))}
    return metrics | format_rates(judged)


def sample_records(rollouts: Sequence[PairRollout], stage: str, step: int, num_pairs: int) -> list[dict]:
    """The first judgment of each context of a few pairs, with what was judged, for people to read."""
    samples = []
    for rollout in rollouts[:num_pairs]:
        records, rewards = rollout.judged.records(), rollout.rewards
        for first in range(0, len(records), len(records) // len(rollout.contexts)):
            told = {"reward": rewards[first], **_judged_texts(rollout.judged, records[first])}
            samples.append({"stage": stage, "step": step, **records[first], **told})
    return samples


def _judged_texts(judged: Judged, record: dict) -> dict[str, str]:
    """The prompt and what was read beside it: one response, or both as A and B."""
    pair = judged.pair
    if "side" in record:
        response = getattr(pair, record["side"])
    else:
        a, b = (pair.rejected, pair.chosen) if record["is_swapped"] else (pair.chosen, pair.rejected)
        response = f"A: {a}\n\nB: {b}"
    return {"prompt": flatten(pair.prompt), "response": response}


def step_report(mine: Sequence[PairRollout], world: World) -> dict[str, float]:
    """Rollout metrics over all ranks, with lengths."""
    # Token ids and log-probs stay where they are: texts, rewards and lengths are enough.
    light = [(rollout.judged, rollout.parts) for rollout in mine]
    lengths = [
        (len(completion.token_ids), completion.finish_reason == "length")
        for rollout in mine
        for completion in rollout.completions
    ]
    everyone = world.gather((light, lengths))
    all_lengths = [item for _, rank_lengths in everyone for item in rank_lengths]
    return rollout_metrics([item for rank_light, _ in everyone for item in rank_light]) | {
        "completion_tokens": sum(length for length, _ in all_lengths) / len(all_lengths),
        "cut_short_rate": sum(is_cut for _, is_cut in all_lengths) / len(all_lengths),
    }
