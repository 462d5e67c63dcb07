"""Stage `sft`: cross-entropy on judgments, completions only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from tqdm import trange

from eval.contexts import ContextBuilder
from patarm_core.pairs import JudgmentExample, Pair
from patarm_core.sampling import PairRandomSampler
from trainer.batches import Group, MicroBatch
from trainer.checkpoint import load_checkpoint_, put_in_place, write_checkpoint_aside
from trainer.config import Recipe
from trainer.learner import Learner
from trainer.replica import JudgeReplica
from trainer.run_folder import RunFolder, Stopwatch

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
    num_steps = config.steps or config.epochs * sampler.steps_per_epoch
    learner = Learner(model, recipe.model, config.optim, num_steps, world)
    first = load_checkpoint_(folder.checkpoints(STAGE), learner) if recipe.resume else 0
    sampler.load_state_dict(sampler.state_dict() | {"step": first})
    folder.rewind(STAGE, first)
    bar = trange(first, num_steps, initial=first, total=num_steps, desc=STAGE, disable=not world.is_main)
    for step, rows in zip(bar, sampler):
        watch = Stopwatch(world.device)
        with watch.phase("step_s"):
            share = [groups[i] for i in rows]
            metrics = learner.update(share, negative_log_likelihood, config.tokens_per_micro_batch, step)
        num_context_tokens = world.sums({"n": sum(len(group.context) for group in share)})["n"]
        metrics["tokens_per_s"] = (num_context_tokens + metrics["num_tokens"]) / watch.seconds["step_s"]
        done = step + 1
        if config.dev_every and (done % config.dev_every == 0 or done == num_steps):
            with watch.phase("dev_s"):
                metrics |= replica.measure(learner, dev)
        is_checkpoint = done == num_steps or (config.checkpoint_every and done % config.checkpoint_every == 0)
        if is_checkpoint:
            with watch.phase("checkpoint_s"):
                write_checkpoint_aside(folder.checkpoints(STAGE), learner, done, world)
        folder.append("metrics.jsonl", {"stage": STAGE, "step": done, **metrics, **watch.seconds})
        bar.set_postfix_str(f"loss {metrics['loss']:.3f}", refresh=False)
        if is_checkpoint:  # after the log, which a run that resumes cuts back to the checkpoint
            put_in_place(folder.checkpoints(STAGE), done, world)
    return learner
