"""Groups of completions that share a context, laid out so that the context is computed once, and their micro-batches.

One sequence holds a context and then all of its completions. A completion token sees the context and its own
completion, at the positions it would have alone; so loss and gradient are those of separate sequences (a test holds
them together), for the tokens of one context and n completions instead of n contexts.

    B sequences   L padded length   T loss tokens (all completion tokens of a micro-batch); in attention, positions
    H query heads   K key/value heads   C head width
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear_logprob import linear_logprob
from kernels.matmul import PackedWeights
from rollout.decoder import Attention, Decoder, causal_attention
from trainer.exact import exact_attention

_TILE = 16  # positions; matrix products are made of whole tiles


@dataclass(frozen=True, slots=True)
class Group:
    """A context and completions of it. `values` are what the loss needs, per completion token."""

    context: list[int]
    completions: list[list[int]]
    values: dict[str, list[np.ndarray]] = field(default_factory=dict)  # name -> float32 array per completion

    @property
    def length(self) -> int:
        return len(self.context) + self.num_loss_tokens

    @property
    def num_loss_tokens(self) -> int:
        return sum(len(completion) for completion in self.completions)

    def part(self, start: int, end: int) -> Group:
        values = {name: arrays[start:end] for name, arrays in self.values.items()}
        return replace(self, completions=self.completions[start:end], values=values)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    token_BL: Tensor
    position_BL: Tensor
    segment_BL: Tensor  # 0 context, 1 … n completions, -1 padding
    predictor_T: Tensor  # index into B·L of the position that predicts each loss token
    target_T: Tensor
    values_T: dict[str, Tensor]


def micro_batches(groups: Sequence[Group], max_tokens: int) -> list[list[Group]]:
    """Packs groups into micro-batches of at most `max_tokens` padded tokens, like lengths together.

    A group that is longer than the budget is cut between completions, each part with the context again.

    Raises:
        ValueError: a context with one completion is longer than the budget.
    """
    parts = [part for group in groups for part in _cut(group, max_tokens)]
    batches: list[list[Group]] = []
    for part in sorted(parts, key=lambda part: -part.length):
        # Longest first, so the first of a micro-batch is its padded length.
        if batches and (len(batches[-1]) + 1) * batches[-1][0].length <= max_tokens:
            batches[-1].append(part)
        else:
            batches.append([part])
    return batches


def _cut(group: Group, max_tokens: int) -> list[Group]:
    parts, start, length = [], 0, len(group.context)
    for i, completion in enumerate(group.completions):
        if len(group.context) + len(completion) > max_tokens:
            raise ValueError(
                f"a context of {len(group.context)} tokens and a completion of {len(completion)} do not fit "
                f"tokens_per_micro_batch={max_tokens}"
            )
        if length + len(completion) > max_tokens:
            parts.append(group.part(start, i))
            start, length = i, len(group.context)
        length += len(completion)
    return [*parts, group.part(start, len(group.completions))]


def collate(groups: Sequence[Group], device: torch.device) -> MicroBatch:
    B, L = len(groups), -(-max(group.length for group in groups) // _TILE) * _TILE
    token_BL = np.zeros((B, L), dtype=np.int64)
    position_BL = np.zeros((B, L), dtype=np.int64)
    segment_BL = np.full((B, L), -1, dtype=np.int64)
    predictors = []
    for b, group in enumerate(groups):
        C = len(group.context)
        token_BL[b, :C], position_BL[b, :C], segment_BL[b, :C] = group.context, np.arange(C), 0
        start = C
        for segment, completion in enumerate(group.completions, 1):
            end = start + len(completion)
            token_BL[b, start:end], segment_BL[b, start:end] = completion, segment
            position_BL[b, start:end] = np.arange(C, C + len(completion))
            # The first token of every completion is predicted by the context's last.
            predictors += [np.array([b * L + C - 1]), np.arange(b * L + start, b * L + end - 1)]
            start = end
    target_T = np.concatenate([np.array(completion) for group in groups for completion in group.completions])
    values_T = {
        name: torch.from_numpy(np.concatenate([array for group in groups for array in group.values[name]])).to(device)
        for name in groups[0].values
    }
    arrays = (token_BL, position_BL, segment_BL, np.concatenate(predictors), target_T)
    return MicroBatch(*(torch.from_numpy(array).to(device) for array in arrays), values_T)


def group_attention(segment_BL: Tensor) -> Attention:
    """Position q sees k if k is not later in the layout and lies in the context or in q's own completion."""
    if int(segment_BL.max()) <= 1:
        return causal_attention  # one completion each: an ordinary causal sequence
    L = segment_BL.shape[1]
    is_own_BLL = segment_BL[:, :, None] == segment_BL[:, None, :]
    is_not_later_LL = torch.ones(L, L, dtype=torch.bool, device=segment_BL.device).tril()
    is_seen_BLL = (is_own_BLL | (segment_BL == 0)[:, None, :]) & is_not_later_LL

    def attend(layer: int, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
        q_BHTC, k_BKTC, v_BKTC = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
        return masked_attention(q_BHTC, k_BKTC, v_BKTC, is_seen_BLL, repeats_heads=q_BTHC.is_cuda).transpose(1, 2)

    return attend


def masked_attention(
    q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, is_seen_BTT: Tensor, repeats_heads: bool
) -> Tensor:
    """Attention of H query heads over K key heads, each serving H / K of them.

    With `repeats_heads`, K is made H first: CUDA's memory-efficient kernel takes a mask but no shared heads, and
    without it all scores would be in memory at once.
    """
    if repeats_heads:
        k_BKTC, v_BKTC = (x.repeat_interleave(q_BHTC.shape[1] // x.shape[1], dim=1) for x in (k_BKTC, v_BKTC))
    return F.scaled_dot_product_attention(
        q_BHTC, k_BKTC, v_BKTC, attn_mask=is_seen_BTT[:, None], enable_gqa=not repeats_heads
    )


def token_logprobs(decoder: Decoder, batch: MicroBatch, is_exact: bool = False) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T) of the loss tokens under the decoder, with gradient.

    Args:
        is_exact: for float32 on a CPU: equal to the bit to what the rollout engine records.
    """

    def readout(hidden_BLD: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor]:
        # The check would wait for a GPU and tell nothing new: every target is a token of the layout too, and one out of
        # range has been refused by the embedding, which has as many rows as the head.
        hidden_TD = hidden_BLD.flatten(0, 1)[batch.predictor_T]
        return linear_logprob(hidden_TD, head_VD, batch.target_T, like_sample=is_exact, check=False)

    attention = exact_attention if is_exact else group_attention
    with PackedWeights().in_use() if is_exact else nullcontext():
        return decoder(batch.token_BL, batch.position_BL, attention(batch.segment_BL), readout)
