"""Seconds of a step: each quantity is a function of a job, whose docstring is its formula.

    N parameters   s shards   tokens: of a step on one GPU   P, R, J tokens of prompt, response, judgment

Products run at a share of a GPU's peak (--mfu), decoding at a share of its memory's bandwidth (--bandwidth), links at
0.7 of theirs. What is left out: Python between steps, padding, imbalance of ranks, checkpoints and measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from trainer.plan_job import BF16, FP32, GPUS_PER_NODE, Job
from trainer.plan_memory import compute_bytes, keys_and_values, kv_bytes_per_token

Quantity = Callable[[Job], float]
_HOST_LINK = 20e9  # B/s between a GPU and pinned memory of its host: what PCIe 4 x16 usually gives
# Table 8: seconds per step of 256 contexts at 4k tokens, 16 A100s.
PAPER_S = {("Qwen3-8B", 4): 125, ("Qwen3-8B", 8): 246, ("Qwen3-8B", 16): 486, ("Qwen3-14B", 4): 277}


def paper_line(n: int) -> float:
    """The line through Table 8's rows of 8B: 5 + 30 n"""
    return 5 + 30 * n


def block_flops(job: Job) -> float:
    """2 x parameters of blocks x tokens + 4 x H x C x layers x (query, key) that see each other"""
    shape = job.shape
    attention = 4 * shape.num_attention_heads * shape.head_dim * shape.num_hidden_layers * job.visible
    return 2 * shape.num_hidden_layers * job.block * job.tokens + attention


def head_flops(job: Job) -> float:
    """2 x V x D x tokens of the loss"""
    return 2 * job.head * job.loss_tokens


def _seconds(job: Job, flops: float) -> float:
    return flops / (job.gpu.flops * job.mfu)


def _link(job: Job, num_gpus: int) -> float:
    """B/s that each GPU gets of a ring over this many; across nodes it has its node's cards in common with its peers"""
    rate = job.gpu.node_link if num_gpus <= GPUS_PER_NODE else min(job.gpu.node_link, GPUS_PER_NODE * job.gpu.network)
    return rate * job.link


def _others(num_gpus: int) -> float:
    """Share of what a GPU needs of all that comes from others."""
    return (num_gpus - 1) / num_gpus


def num_micro_batches(job: Job) -> int:
    return ceil(job.tokens / job.config.tokens_per_micro_batch)


def refresh_of_the_replica(job: Job) -> float:
    """4 B x N x (s - 1) / s over the link + 6 B x N over the memory's bandwidth"""
    gather = FP32 * job.N * _others(job.shards) / _link(job, job.shards)
    return gather + (FP32 + BF16) * job.N / (job.gpu.bytes_per_s * job.bandwidth)


def reading_of_contexts(job: Job) -> float:
    """2 x N x (P + 2 R) FLOPs per pair, P per prompt of a policy: what completions share is read once"""
    return _seconds(job, 2 * job.shape.num_hidden_layers * job.block * job.num_trees * job.tree.contexts)


def rows(job: Job) -> float:
    """Completions that decode side by side: rollout.max_rows, those of a step, or those whose keys and values fit"""
    tree = job.tree
    per_row = kv_bytes_per_token(job) * (tree.leaf + tree.contexts / tree.num_leaves)
    return max(1.0, min(job.drawing.max_rows, job.num_trees * tree.num_leaves, keys_and_values(job) / per_row))


def decode_step(job: Job, num_rows: float) -> float:
    """Weights but the embedding's, and keys and values, over the bandwidth; at least 2 x N FLOPs per row"""
    num_read = job.shape.num_hidden_layers * job.block + job.head
    num_keys = job.tree.leaf / 2 + job.tree.contexts / job.tree.num_leaves
    num_bytes = compute_bytes(job) * num_read + num_rows * num_keys * kv_bytes_per_token(job)
    return max(num_bytes / (job.gpu.bytes_per_s * job.bandwidth), _seconds(job, 2 * num_read * num_rows))


def decoding(job: Job) -> float:
    """completions x their mean tokens / rows steps of all rows"""
    num_rows = rows(job)
    return job.loss_tokens / num_rows * decode_step(job, num_rows)


def last_completion(job: Job) -> float:
    """(rollout.max_completion_tokens - their mean) steps of one row: one runs to the limit while its peers wait"""
    return max(0, job.drawing.max_completion_tokens - job.tree.leaf) * decode_step(job, 1)


def reading_of_answers(job: Job) -> float:
    """2 x N of rlhf.reward.model x (P + 350 of instructions + n R) FLOPs per prompt; n (P + R) of a scalar one"""
    return reading_of_contexts(job.scoring) if job.scoring else 0.0


def writing_of_judgments(job: Job) -> float:
    """answers x votes x J, and the last one alone, as the rollout is decoded, by rlhf.reward's limits"""
    it = job.scoring
    return decoding(it) + last_completion(it) if it and not it.shape.is_scalar else 0.0


def reference_logprobs(job: Job) -> float:
    """one forward pass: 2 x N FLOPs per token"""
    return _seconds(job, block_flops(job) + head_flops(job)) if job.has_reference else 0.0


def forward_and_backward(job: Job) -> float:
    """6 x N FLOPs per token, 8 x N with activation checkpointing; the head always computes its logits again"""
    return _seconds(
        job, (4 if job.recipe.model.activation_checkpointing else 3) * block_flops(job) + 4 * head_flops(job)
    )


def waiting_for_weights_and_gradients(job: Job) -> float:
    """What of 2 B x N per gathering (forward, backward, reference) and 4 B x N per reduction is not hidden by products

    Per micro-batch, times (s - 1) / s, over the link; gradients once a step if model.reduce_each_micro_batch is off.
    """
    num, model = num_micro_batches(job), job.recipe.model
    num_bytes = num * compute_bytes(job) * job.N * (3 if job.has_reference else 2)
    num_bytes += (num if model.reduce_each_micro_batch else 1) * FP32 * job.N
    seconds = num_bytes * _others(job.shards) / _link(job, job.shards)
    return max(0.0, seconds - forward_and_backward(job) - reference_logprobs(job))


def sum_over_copies(job: Job) -> float:
    """2 x 4 B x N / s x (copies - 1) / copies over the network: one all-reduce a step"""
    num_copies = job.num_gpus // job.shards
    rate = job.gpu.network if job.num_gpus > GPUS_PER_NODE else job.gpu.node_link
    return 2 * FP32 * job.N / job.shards * _others(num_copies) / (rate * job.link)


def optimiser(job: Job) -> float:
    """28 B x N / s over the memory's bandwidth; with optim.cpu_offload 16 B x N / s to and from the host at 20 GB/s"""
    seconds = 7 * FP32 * job.N / job.shards / (job.gpu.bytes_per_s * job.bandwidth)
    return seconds + (4 * FP32 * job.N / job.shards / _HOST_LINK if job.config.optim.cpu_offload else 0.0)


ROLLOUT: tuple[Quantity, ...] = (refresh_of_the_replica, reading_of_contexts, decoding, last_completion)
SCORE: tuple[Quantity, ...] = (reading_of_answers, writing_of_judgments)
UPDATE: tuple[Quantity, ...] = (
    reference_logprobs,
    forward_and_backward,
    waiting_for_weights_and_gradients,
    sum_over_copies,
    optimiser,
)


def seconds(job: Job) -> dict[str, dict[Quantity, float]]:
    """By phase; updates as many as there are inner epochs."""
    rollout = {"rollout": {quantity: quantity(job) for quantity in ROLLOUT}} if job.rolls_out else {}
    num_updates = job.config.inner_epochs if job.rolls_out else 1
    name = "update" if num_updates == 1 else f"{num_updates} updates"
    if job.rolls_out and job.scoring:
        rollout["scoring"] = {quantity: quantity(job) for quantity in SCORE}
    return rollout | {name: {quantity: num_updates * quantity(job) for quantity in UPDATE}}


def step_s(job: Job) -> float:
    return sum(sum(of_phase.values()) for of_phase in seconds(job).values())
