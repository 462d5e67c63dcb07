"""Rows of tokens with a loss on their completions, and their micro-batches.

    B rows   L padded length   T loss tokens (completion tokens of a micro-batch)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kernels.linear_logprob import linear_logprob
from rollout.decoder import Decoder, causal_attention


@dataclass(frozen=True, slots=True)
class Row:
    """A context and its completion. `weight`, `old_logprob` and the like are per completion token."""

    context: list[int]
    completion: list[int]
    values: dict[str, np.ndarray] = field(default_factory=dict)  # name -> float32 per completion token

    @property
    def length(self) -> int:
        return len(self.context) + len(self.completion)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    token_BL: Tensor
    position_BL: Tensor
    predictor_BL: Tensor  # bool: the positions whose next token is a loss token
    target_T: Tensor
    values_T: dict[str, Tensor]


def micro_batches(rows: Sequence[Row], max_tokens: int) -> list[list[int]]:
    """Splits row indices into micro-batches of at most `max_tokens` padded tokens, rows of like length together.

    Raises:
        ValueError: one row alone is longer than the budget.
    """
    order = sorted(range(len(rows)), key=lambda i: (-rows[i].length, i))
    batches: list[list[int]] = []
    for index in order:
        length = rows[index].length
        if length > max_tokens:
            raise ValueError(f"a row of {length} tokens does not fit tokens_per_micro_batch={max_tokens}")
        # Rows come longest first, so the first row of a micro-batch is its padded length.
        if batches and (len(batches[-1]) + 1) * rows[batches[-1][0]].length <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def collate(rows: Sequence[Row], device: torch.device) -> MicroBatch:
    L = max(row.length for row in rows)
    token_BL = torch.zeros(len(rows), L, dtype=torch.int64)
    predictor_BL = torch.zeros(len(rows), L, dtype=torch.bool)
    for b, row in enumerate(rows):
        token_BL[b, : row.length] = torch.tensor(row.context + row.completion)
        predictor_BL[b, len(row.context) - 1 : row.length - 1] = True
    # Row-major, as boolean indexing reads them.
    target_T = torch.tensor([token for row in rows for token in row.completion], dtype=torch.int64)
    values_T = {
        name: torch.from_numpy(np.concatenate([row.values[name] for row in rows])).to(device) for name in rows[0].values
    }
    position_BL = torch.arange(L).expand_as(token_BL)
    return MicroBatch(*(x.to(device) for x in (token_BL, position_BL, predictor_BL, target_T)), values_T)


def token_logprobs(decoder: Decoder, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T) of the loss tokens under the decoder, with gradient."""

    def readout(hidden_BLD: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor]:
        return linear_logprob(hidden_BLD[batch.predictor_BL], head_VD, batch.target_T)

    return decoder(batch.token_BL, batch.position_BL, causal_attention, readout)
