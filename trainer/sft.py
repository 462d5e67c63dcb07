"""Stage `sft`: cross-entropy on judgments, completions only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from patarm_core.pairs import JudgmentExample, Pair
from patarm_core.sampling import PairRandomSampler
from rollout.contexts import ContextBuilder
from trainer.batches import Group, MicroBatch
from trainer.config import Recipe
from trainer.learner import Learner
from trainer.replica import JudgeReplica
from trainer.run_folder import RunFolder
from trainer.stage import count_steps, run_steps

STAGE = "sft"


def sft_groups(examples: Sequence[JudgmentExample], contexts: ContextBuilder) -> list[Group]:
    """One group per judgment; the completion ends with the tokenizer's end token."""
    end = contexts.tokenizer.eos_token_id
    return [
        Group(
            contexts.pointwise(example.prompt, example.response, example.task, f"judgment {example.id}"),
            [[*contexts.tokenizer.encode(example.judgment, add_special_tokens=False), end]],
        )
        for example in examples
    ]


def negative_log_likelihood(batch: MicroBatch, logprob_T: Tensor, entropy_T: Tensor) -> tuple[Tensor, dict]:
    return -logprob_T, {"entropy": entropy_T}


def run_sft(
    recipe: Recipe,
    folder: RunFolder,
    model: str,
    groups: Sequence[Group],
    dev: Sequence[Pair],
    replica: JudgeReplica,
) -> Learner:
    """Trains on groups of one judgment each, from the Hugging Face directory `model`; returns the learner."""
    config, world = recipe.sft, replica.world
    sampler = PairRandomSampler(len(groups), config.rows_per_step, recipe.seed, world.rank, world.size)
    learner = Learner(model, recipe.model, config.optim, count_steps(config, sampler), world)
    for step in run_steps(STAGE, config, sampler, learner, folder, replica, dev, recipe):
        with step.watch.phase("step_s"):
            share = [groups[i] for i in step.share]
            metrics = learner.update(share, negative_log_likelihood, config.tokens_per_micro_batch, step.index)
        num_context_tokens = world.sums({"n": sum(len(group.context) for group in share)})["n"]
        metrics["tokens_per_s"] = (num_context_tokens + metrics["num_tokens"]) / step.watch.seconds["step_s"]
        step.metrics, step.note = metrics, f"loss {metrics['loss']:.3f}"
    return learner
