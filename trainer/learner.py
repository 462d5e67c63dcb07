"""The learner: a sharded decoder, its optimiser, and one optimiser step over any number of token trees.

T loss entries of a micro-batch
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed._composable import checkpoint
from torch.distributed.fsdp import FSDPModule

from kernels.matmul import packed_weights
from rollout.decoder import Decoder, DecoderConfig
from rollout.scalar import RewardHead
from rollout.weights import full_tensors, load_weights_, whole
from trainer.config import ModelConfig, OptimConfig
from trainer.distributed import World, shard_
from trainer.logprobs import token_values
from trainer.offload import OffloadedAdamW
from trainer.skipped import SkippedSteps
from trainer.token_tree import Leaf, MicroBatch, TokenTree, pack

# (micro-batch, logprob_T, entropy_T) -> (loss_T, {metric: values_T}); the metrics are averaged over the step's tokens.
# Of a reward model it is (micro-batch, score_T).
TokenLossFn = Callable[..., tuple[Tensor, dict[str, Tensor]]]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def sharded_decoder(path: str | Path, config: ModelConfig, world: World, head: RewardHead | None = None) -> Decoder:
    """Meta device, then sharding, then each rank's own slices from disk: no rank holds a full copy.

    Args:
        path: a Hugging Face directory of a language model; with `head`, of that or a reward model.
        head: makes it a reward model, whose head is drawn if it is not there.
    """
    shape, has_head = head.config(path) if head else (DecoderConfig.from_pretrained(path), True)
    with torch.device("meta"):
        decoder = Decoder(shape)
    if config.activation_checkpointing:
        for block in decoder.layers:
            checkpoint(block)
    shard_(decoder, world.mesh, DTYPES[config.dtype])
    decoder.to_empty(device=world.device)
    load_weights_(decoder, path, but=() if has_head else ("score.weight",))
    if not has_head:
        head.draw_(decoder)
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

    def __init__(
        self,
        path: str | Path,
        model: ModelConfig,
        optim: OptimConfig,
        num_steps: int,
        world: World,
        head: RewardHead | None = None,
    ) -> None:
        self.world, self.optim, self.num_steps = world, optim, num_steps
        self.layout, self.reduce_each_micro_batch = model.layout, model.reduce_each_micro_batch
        # Of all weights by one GPU alone: to gather them is to cast them, twice for each micro-batch.
        self.keeps_gathered = world.size == 1 and world.device.type == "cuda"
        self.num_updates = 0  # by this process
        self.skipped = SkippedSteps(optim.max_skipped_steps, world)
        self.decoder = sharded_decoder(path, model, world, head)
        make = OffloadedAdamW if optim.cpu_offload else torch.optim.AdamW
        # On a GPU by one pass: torch's other forms hold temporary tensors as large as the weights.
        self.optimizer = make(
            self.decoder.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay,
            fused=world.device.type == "cuda",
        )  # fmt: skip

    def update(
        self,
        trees: Sequence[Sequence[Leaf]],
        token_loss: TokenLossFn,
        max_tokens: int,
        step: int,
        value_names: Sequence[str] = (),
        exact_logprobs: bool = False,
        is_atomic: bool = False,
        weighted_metrics: bool = False,
    ) -> dict[str, float]:
        """One optimiser step on the trees of all ranks.

        The loss is the sum over all loss tokens divided by their global number, or with weights of their own if leaves
        carry the value `weight`; so it depends neither on layout and micro-batches nor on the number of ranks. Every
        rank runs the same number of micro-batches, or its peers would wait for ever.

        Args:
            trees: of this rank: the leaves of each, which share what they can.
            value_names: those that every leaf carries.
            is_atomic: the leaves of a tree stay in one micro-batch.
            weighted_metrics: the value `weight` says what a token counts in a mean, too.

        Returns:
            loss, grad_norm, lr, num_tokens, and the means of what `token_loss` returned; a metric named `max_…` is
            the largest value instead.
        """
        world, decoder = self.world, self.decoder
        shares = self.layout == "tree"
        batches = pack([TokenTree.of(leaves, shares, is_atomic) for leaves in trees], max_tokens)
        num_tokens = int(world.sums({"n": sum(len(leaf.completion) for leaves in trees for leaf in leaves)})["n"])
        if num_tokens == 0:
            raise ValueError("a step needs at least one loss token")
        num_batches = world.maximum(len(batches))
        totals, batch_losses = _Totals(), []
        # Weights are packed once a step: nothing is left of them when the optimiser changes them.
        with packed_weights() if exact_logprobs else nullcontext(), self._gathered() as keep:
            for number in range(num_batches):
                world.pause()
                is_real = number < len(batches)
                # A rank that has run out of trees goes on with a single token at weight 0.
                batch = MicroBatch.of(batches[number] if is_real else [stand_in(value_names)], world.device)
                is_last = number == num_batches - 1
                # The others accumulate, unsharded.
                decoder.set_requires_gradient_sync(is_last or self.reduce_each_micro_batch)
                decoder.set_requires_all_reduce(is_last)  # between copies of the shards, once a step in either case
                keep(not is_last)
                loss_T, metrics = token_loss(batch, *token_values(decoder, batch, exact_logprobs))
                weight_T = batch.values_T.get("weight", 1 / num_tokens)
                loss = (loss_T * weight_T).sum()
                (loss if is_real else loss * 0.0).backward()
                batch_losses.append(loss.detach())
                # What is told are sums divided by the number of tokens; the loss has been divided already.
                if weighted_metrics:
                    metrics = {name: values_T * weight_T * num_tokens for name, values_T in metrics.items()}
                totals.add(metrics | {"loss": loss_T.detach().double() * weight_T * num_tokens}, is_real)
        lr = learning_rate(self.optim, step, self.num_steps)
        parameters = list(decoder.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        grad_norm = float(whole(norm))
        sums = world.sums({name: float(total) for name, total in totals.sums.items()})
        means = {name: total / num_tokens for name, total in sums.items()}
        is_finite = math.isfinite(grad_norm) and math.isfinite(means["loss"])
        self.skipped.count(is_finite, decoder, batches, batch_losses)
        self.num_updates += 1
        if is_finite:
            nn.utils.clip_grads_with_norm_(parameters, self.optim.grad_clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        peaks = {name: max(world.gather(float(value))) for name, value in totals.largest.items()}
        return means | peaks | {
            "grad_norm": grad_norm, "lr": lr, "num_tokens": num_tokens, "skipped": float(not is_finite)
        }  # fmt: skip

    @contextmanager
    def _gathered(self) -> Iterator[Callable[[bool], None]]:
        """Inside, with `keeps_gathered`, weights stay gathered from one micro-batch to the next.

        What is yielded says before a micro-batch whether another one follows: after the last one nothing gathered may
        stay, for the optimiser changes what it was gathered from.
        """
        if not self.keeps_gathered:
            yield lambda has_next: None
            return
        try:
            for block in self.decoder.layers:
                block.set_reshard_after_forward(False)
            yield lambda has_next: self.decoder.set_reshard_after_backward(not has_next)
        except BaseException:
            for module in self.decoder.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # whoever reads the weights next gets those that are kept, not their copies
            raise
        finally:
            for block in self.decoder.layers:
                block.set_reshard_after_forward(True)
            self.decoder.set_reshard_after_backward(True)

    @torch.no_grad()
    def copy_weights_to_(self, replica: Decoder) -> None:
        """Refreshes a whole, unsharded decoder in place; every rank calls it."""
        for (_, tensor), target in zip(full_tensors(self.decoder), replica.parameters(), strict=True):
            target.copy_(tensor)


class _Totals:
    """Of a step's metrics on this rank. A stand-in adds their names alone: all ranks need the same."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.largest: dict[str, Tensor] = {}  # of those named `max_…`

    def add(self, metrics: dict[str, Tensor], is_real: bool) -> None:
        for name, values_T in metrics.items():
            values_T = values_T.detach().double()
            if name.startswith("max_"):
                value = values_T.max() if is_real else values_T.new_tensor(-math.inf)
                self.largest[name] = torch.maximum(self.largest.get(name, value), value)
            else:
                self.sums[name] = self.sums.get(name, 0.0) + (values_T.sum() if is_real else 0.0)


def stand_in(value_names: Sequence[str] = ()) -> TokenTree:
    leaf = Leaf([0], [0], {name: np.zeros(1, dtype=np.float32) for name in value_names})
    return TokenTree.of([leaf, leaf])  # two, for losses of pairs
