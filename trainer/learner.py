"""The learner: a sharded decoder, its optimiser, and one optimiser step over any number of groups.

T loss tokens of a micro-batch
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed._composable import checkpoint
from torch.distributed.tensor import DTensor

from rollout.decoder import Decoder, DecoderConfig
from rollout.weights import full_tensors, load_weights_
from trainer.batches import Group, MicroBatch, collate, micro_batches, token_logprobs
from trainer.config import ModelConfig, OptimConfig
from trainer.distributed import World, shard_
from trainer.offload import OffloadedAdamW

# (micro-batch, logprob_T, entropy_T) -> (loss_T, {metric: values_T}); the metrics are averaged over the step's tokens
TokenLossFn = Callable[[MicroBatch, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def sharded_decoder(path: str | Path, config: ModelConfig, world: World) -> Decoder:
    """Meta device, then sharding, then each rank's own slices from disk: no rank holds a full copy."""
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig.from_pretrained(path))
    if config.activation_checkpointing:
        for block in decoder.layers:
            checkpoint(block)
    shard_(decoder, world.mesh, DTYPES[config.dtype])
    decoder.to_empty(device=world.device)
    load_weights_(decoder, path)
    return decoder


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Rate of step 0, 1, …: linear warm-up that ends at lr, then the schedule, which ends at final_lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps)
    share = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.final_lr + (config.lr - config.final_lr) * share


class Learner:
    """Owns the weights that are trained."""

    def __init__(self, path: str | Path, model: ModelConfig, optim: OptimConfig, num_steps: int, world: World) -> None:
        self.world, self.optim, self.num_steps = world, optim, num_steps
        self.reduce_each_micro_batch = model.reduce_each_micro_batch
        self.decoder = sharded_decoder(path, model, world)
        make = OffloadedAdamW if optim.cpu_offload else torch.optim.AdamW
        self.optimizer = make(
            self.decoder.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
        )

    def update(
        self,
        groups: Sequence[Group],
        token_loss: TokenLossFn,
        max_tokens: int,
        step: int,
        value_names: Sequence[str] = (),
        exact_logprobs: bool = False,
    ) -> dict[str, float]:
        """One optimiser step on the groups of all ranks; `value_names` are those that every group carries.

        The loss is the sum over all loss tokens divided by their global number, so it depends neither on micro-batches
        nor on the number of ranks. Every rank runs the same number of micro-batches, or its peers would wait for ever.

        Returns:
            loss, grad_norm, lr, num_tokens, and the means of what `token_loss` returned; a metric named `max_…` is
            the largest value instead.
        """
        world, decoder = self.world, self.decoder
        batches = micro_batches(groups, max_tokens)
        num_tokens = int(world.sums({"n": sum(group.num_loss_tokens for group in groups)})["n"])
        if num_tokens == 0:
            raise ValueError("a step needs at least one loss token")
        num_batches = world.maximum(len(batches))
        sums: dict[str, Tensor | float] = {}
        largest: dict[str, Tensor] = {}
        for number in range(num_batches):
            is_real = number < len(batches)
            # A rank that has run out of groups goes on with a single token at weight 0.
            batch = collate(batches[number] if is_real else [_stand_in(value_names)], world.device)
            is_last = number == num_batches - 1
            decoder.set_requires_gradient_sync(is_last or self.reduce_each_micro_batch)  # others accumulate, unsharded
            decoder.set_requires_all_reduce(is_last)  # between copies of the shards, once a step in either case
            logprob_T, entropy_T = token_logprobs(decoder, batch, exact_logprobs)
            loss_T, metrics = token_loss(batch, logprob_T, entropy_T)
            loss = loss_T.sum() / num_tokens if is_real else loss_T.sum() * 0.0
            loss.backward()
            for name, values_T in ({"loss": loss_T} | metrics).items():
                values_T = values_T.detach().double()
                if name.startswith("max_"):
                    value = values_T.max() if is_real else values_T.new_tensor(-math.inf)
                    largest[name] = torch.maximum(largest.get(name, value), value)
                else:
                    sums[name] = sums.get(name, 0.0) + (values_T.sum() if is_real else 0.0)
        lr = learning_rate(self.optim, step, self.num_steps)
        grad_norm = nn.utils.clip_grad_norm_(decoder.parameters(), self.optim.grad_clip)
        grad_norm = float(grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm)
        is_finite = math.isfinite(grad_norm)
        if is_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        means = {name: total / num_tokens for name, total in world.sums({k: float(v) for k, v in sums.items()}).items()}
        peaks = {name: max(world.gather(float(value))) for name, value in largest.items()}
        return means | peaks | {
            "grad_norm": grad_norm, "lr": lr, "num_tokens": num_tokens, "skipped": float(not is_finite)
        }  # fmt: skip

    @torch.no_grad()
    def copy_weights_to_(self, replica: Decoder) -> None:
        """Refreshes a whole, unsharded decoder in place; every rank calls it."""
        for (_, tensor), target in zip(full_tensors(self.decoder), replica.parameters(), strict=True):
            target.copy_(tensor)


def _stand_in(value_names: Sequence[str]) -> Group:
    return Group([0], [[0]], {name: [np.zeros(1, dtype=np.float32)] for name in value_names})
