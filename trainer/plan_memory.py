"""Memory of one GPU, in bytes: each quantity is a function of a job, whose docstring is its formula.

    N parameters   s shards: GPUs that share one copy   T tokens of a micro-batch   V vocabulary   D model width
    F feed-forward width   H query heads   K key/value heads   C head width

What lives through a step, and of the phases of a step the one that needs most. All are of the code as it stands:
master weights and reductions in float32, compute in bfloat16, FSDP2 with a unit per block.
"""

from __future__ import annotations

from collections.abc import Callable

from trainer.plan_job import BF16, FP32, GIB, Job

Quantity = Callable[[Job], float]
_ELEMENTS = 1 << 28  # of a chunk's logits (kernels/linear_logprob.py)


def compute_bytes(job: Job) -> int:
    return BF16 if job.dtype == "bfloat16" else FP32


def master_weights(job: Job) -> float:
    """4 B x N / s"""
    return FP32 * job.N / job.shards


def moments_of_adamw(job: Job) -> float:
    """2 x 4 B x N / s; with optim.cpu_offload on the host, but for those of one matrix"""
    if job.config.optim.cpu_offload:
        return 2 * FP32 * job.shape.vocab_size * job.shape.hidden_size / job.shards
    return 2 * FP32 * job.N / job.shards


def reference_model(job: Job) -> float:
    """4 B x N / s; nothing with kl_coef = 0"""
    return FP32 * job.N / job.shards if job.has_reference else 0.0


def rollout_replica(job: Job) -> float:
    """2 B x N, whole on every GPU; nothing where nothing is drawn"""
    return compute_bytes(job) * job.N if job.has_replica else 0.0


def reward_model(job: Job) -> float:
    """2 B x N of rlhf.reward.model, whole on every GPU (4 B in float32, rlhf.reward.dtype's default)"""
    return compute_bytes(job.scoring) * job.scoring.N if job.scoring else 0.0


def context_and_libraries(job: Job) -> float:
    """3 GiB: CUDA's context, NCCL's and cuBLAS's buffers, pieces that the allocator cannot use"""
    return 3 * GIB


def gradients(job: Job) -> float:
    """4 B x N / s; whole, 4 B x N, where model.reduce_each_micro_batch is off"""
    return FP32 * job.N / (job.shards if job.recipe.model.reduce_each_micro_batch else 1)


def gathered_weights(job: Job) -> float:
    """2 B x (head + embedding + 2 blocks: the one at work and the next); on a single GPU 2 B x N, which stay"""
    if job.num_gpus == 1:
        return compute_bytes(job) * job.N
    outside = job.N - job.shape.num_hidden_layers * job.block
    return compute_bytes(job) * (outside + 2 * job.block)


def gathered_reference(job: Job) -> float:
    """2 B x (head + embedding), which a model without a backward pass keeps"""
    outside = job.N - job.shape.num_hidden_layers * job.block
    return compute_bytes(job) * outside if job.has_reference else 0.0


def gradients_on_their_way(job: Job) -> float:
    """(2 B + 4 B) x 2 blocks: as computed and as reduced, of the one at work and the one before"""
    return (compute_bytes(job) + FP32) * 2 * job.block


def block_activations_per_token(job: Job) -> float:
    """B per token of what one block keeps for its backward pass, its input aside: 6 D + 6 F + 6 C (H + K), in bfloat16

    Each three times: two norms and the sum between them; gate, up and their product; queries before and after they are
    turned and what attention makes of them, keys before and after, and values. (What lies between products is compiled
    on a GPU: `kernels.fused`.)
    """
    shape = job.shape
    heads = shape.head_dim * (shape.num_attention_heads + shape.num_key_value_heads)
    return 3 * (shape.hidden_size + shape.intermediate_size + heads) * compute_bytes(job)


def activations(job: Job) -> float:
    """T x what a block keeps, of all blocks or, with activation checkpointing, of one; and 2 B x T x D of each"""
    T, layers = job.config.tokens_per_micro_batch, job.shape.num_hidden_layers
    inputs = layers * T * job.shape.hidden_size * compute_bytes(job)
    return inputs + (1 if job.recipe.model.activation_checkpointing else layers) * T * block_activations_per_token(job)


def work_of_backward(job: Job) -> float:
    """T x (3 F + 4 D) x 2 B: gradients of the feed-forward and around it"""
    elements = 3 * job.shape.intermediate_size + 4 * job.shape.hidden_size
    return job.config.tokens_per_micro_batch * elements * compute_bytes(job)


def logits_of_a_chunk(job: Job) -> float:
    """(4 B + 2 B) x at most 2^28 logits, and (4 B + 2 B) x V x D for the head's gradient"""
    if job.shape.is_scalar:
        return 0.0
    num_logits = min(_ELEMENTS, job.config.tokens_per_micro_batch * job.shape.vocab_size)
    return (FP32 + compute_bytes(job)) * (num_logits + job.head)


def keys_and_values(job: Job) -> float:
    """rollout.kv_gib; if 0, nine tenths of what is free between updates; at most max_rows whole texts"""
    if not job.has_replica:
        return 0.0
    free = job.gpu.memory_gib * GIB - sum(quantity(job) for quantity in ALWAYS)
    wanted = job.kv_gib * GIB or max(0.0, 0.9 * free)
    whole_texts = job.drawing.max_rows * job.shape.max_position_embeddings
    return min(wanted, whole_texts * kv_bytes_per_token(job))


def room_for_keys_and_values(job: Job) -> float:
    """What rollout.kv_gib could be."""
    return job.gpu.memory_gib * GIB - sum(quantity(job) for quantity in (*ALWAYS, work_of_decoding))


def work_of_decoding(job: Job) -> float:
    """12 B x rollout.max_rows x V of logits, 1 GiB for passes over contexts and recorded graphs"""
    return 12 * job.drawing.max_rows * job.shape.vocab_size + GIB if job.has_replica else 0.0


def keys_and_values_of_the_judge(job: Job) -> float:
    """rlhf.reward.kv_gib; if 0, 4; the policy's are given back before"""
    return keys_and_values(job.scoring) if job.scoring else 0.0


def work_of_scoring(job: Job) -> float:
    """as of decoding, with rlhf.reward.max_rows; of a scalar model 16,384 tokens x (3 F + 4 D) x 2 B"""
    if (it := job.scoring) is None:
        return 0.0
    elements = 3 * it.shape.intermediate_size + 4 * it.shape.hidden_size
    return 16_384 * elements * compute_bytes(it) if it.shape.is_scalar else work_of_decoding(it)


ALWAYS: tuple[Quantity, ...] = (
    master_weights,
    moments_of_adamw,
    reference_model,
    rollout_replica,
    reward_model,
    gathered_reference,
    context_and_libraries,
)
PHASES: dict[str, tuple[Quantity, ...]] = {
    "forward and backward": (
        gradients,
        gathered_weights,
        gradients_on_their_way,
        activations,
        work_of_backward,
        logits_of_a_chunk,
    ),
    "optimiser": (gradients,),  # one fused pass, without temporary tensors
    "rollout": (keys_and_values, work_of_decoding),
    "scoring": (keys_and_values_of_the_judge, work_of_scoring),
}


def kv_bytes_per_token(job: Job) -> int:
    shape = job.shape
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * compute_bytes(job)


def host_bytes(job: Job) -> float:
    """Of the host's memory for each GPU: 2 x 4 B x N / s with optim.cpu_offload."""
    return 2 * FP32 * job.N / job.shards if job.config.optim.cpu_offload else 0.0


def peak(job: Job) -> tuple[str, float]:
    """The phase that needs most, and bytes then."""
    always = sum(quantity(job) for quantity in ALWAYS)
    sums = {name: always + sum(quantity(job) for quantity in quantities) for name, quantities in PHASES.items()}
    name = max(sums, key=sums.get)
    return name, sums[name]
