"""Stage `sft`: cross-entropy on judgments, or on the responses that a policy imitates; completions only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from patarm_core.pairs import Example, Pair
from patarm_core.policy_rows import PolicyPrompt, ResponseExample
from patarm_core.sampling import PairRandomSampler
from rollout.chat import answered_chat
from rollout.contexts import ContextBuilder
from trainer.balance import my_share
from trainer.config import Recipe
from trainer.learner import Learner
from trainer.policy import PolicyReplica
from trainer.replica import JudgeReplica
from trainer.run_folder import RunFolder
from trainer.stage import count_steps, run_steps
from trainer.token_tree import Leaf, MicroBatch

STAGE = "sft"


def sft_leaves(examples: Sequence[Example], contexts: ContextBuilder) -> list[Leaf]:
    """One per judgment; the completion ends with the tokenizer's end token."""
    end = contexts.tokenizer.eos_token_id
    return [
        Leaf(
            contexts.of_example(example),
            [*contexts.tokenizer.encode(example.judgment, add_special_tokens=False), end],
            name=f"judgment {example.id} of {example.source}",
        )
        for example in examples
    ]


def response_leaves(examples: Sequence[ResponseExample], contexts: ContextBuilder) -> list[Leaf]:
    """One per response that a policy is to imitate, as the assistant's turn of the chat."""
    named = [(example, f"response {example.id} of {example.source}") for example in examples]
    return [
        Leaf(*answered_chat(contexts.tokenizer, example.prompt, example.response, name), name=name)
        for example, name in named
    ]


def negative_log_likelihood(batch: MicroBatch, logprob_T: Tensor, entropy_T: Tensor) -> tuple[Tensor, dict]:
    return -logprob_T, {"entropy": entropy_T}


def run_sft(
    recipe: Recipe,
    folder: RunFolder,
    model: str,
    leaves: Sequence[Leaf],
    dev: Sequence[Pair] | Sequence[PolicyPrompt],
    replica: JudgeReplica | PolicyReplica,
) -> Learner:
    """Trains on judgments, each a tree of its own, from the Hugging Face directory `model`; returns the learner."""
    config, world = recipe.sft, replica.world
    sampler = PairRandomSampler(len(leaves), config.rows_per_step, recipe.seed)
    learner = Learner(model, recipe.model, config.optim, count_steps(config, sampler), world)
    for step in run_steps(STAGE, config, sampler, learner, folder, replica, dev, recipe, {"rollout": replica.shared}):
        with step.watch.phase("step_s"):
            trees = [[leaves[i]] for i in sampler.global_step(step.index)]
            share = [trees[i] for i in my_share(trees, learner.decoder.config, recipe.model.layout, world)]
            metrics = learner.update(share, negative_log_likelihood, config.tokens_per_micro_batch, step.index)
        num_context_tokens = world.sums({"n": sum(len(leaf.context) for (leaf,) in share)})["n"]
        metrics["tokens_per_s"] = (num_context_tokens + metrics["num_tokens"]) / step.watch.seconds["step_s"]
        step.metrics, step.note = metrics, f"loss {metrics['loss']:.3f}"
    return learner
