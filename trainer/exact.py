"""Attention of training with the rollout's arithmetic: on a CPU in float32, log-probabilities equal to the bit.

The engine reads keys in blocks of positions (`rollout.block_attention`), each completion after its context. Here every
context and every completion is a reader of its own, which gathers its keys in that order; what is computed of them is
the engine's own function.

    B sequences   L padded length   R readers   N queries of a reader   S keys of a reader   X positions of a block
    H query heads   K key/value heads   Q = H / K   C head width   Z = R·K   M = N·Q
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollout.block_attention import BLOCK, QUERIES, attend_blocks
from rollout.decoder import Attention


@dataclass(frozen=True, slots=True)
class _Readers:
    """Indices into B·L. Places that only fill up read what is at the first."""

    query_RN: np.ndarray
    position_RN: np.ndarray
    is_query_RN: np.ndarray
    key_RS: np.ndarray

    @classmethod
    def of(cls, readers: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> _Readers:
        """From (queries, their positions, keys from position 0 on) of each."""
        num_queries = -(-max(len(queries) for queries, _, _ in readers) // QUERIES) * QUERIES
        num_keys = -(-max(len(keys) for _, _, keys in readers) // BLOCK) * BLOCK
        query_RN, key_RS = (np.zeros((len(readers), num), dtype=np.int64) for num in (num_queries, num_keys))
        position_RN, is_query_RN = np.zeros_like(query_RN), np.zeros(query_RN.shape, dtype=bool)
        for r, (queries, positions, keys) in enumerate(readers):
            query_RN[r, : len(queries)], position_RN[r, : len(queries)] = queries, positions
            is_query_RN[r, : len(queries)] = True
            key_RS[r] = keys[0]
            key_RS[r, : len(keys)] = keys
        return cls(query_RN, position_RN, is_query_RN, key_RS)


def exact_attention(segment_BL: Tensor) -> Attention:
    """Position q sees k if k is not later and lies in the context (segment 0) or in q's own completion.

    Args:
        segment_BL: 0 context, 1 … n completions, -1 padding.
    """
    B, L = segment_BL.shape
    contexts, completions = [], []
    for b, segment_L in enumerate(segment_BL.numpy()):
        context = np.flatnonzero(segment_L == 0)
        contexts.append((b * L + context, np.arange(len(context)), b * L + context))
        for segment in range(1, int(segment_L.max()) + 1):
            own = np.flatnonzero(segment_L == segment)
            positions = len(context) + np.arange(len(own))
            completions.append((b * L + own, positions, b * L + np.concatenate((context, own))))
    kinds = [_Readers.of(readers) for readers in (contexts, completions)]

    def attend(layer: int, q_BLHC: Tensor, k_BLKC: Tensor, v_BLKC: Tensor) -> Tensor:
        flat = (x.flatten(0, 1) for x in (q_BLHC, k_BLKC, v_BLKC))
        q_THC, k_TKC, v_TKC = flat
        o_THC = torch.zeros_like(q_THC)
        for readers in kinds:
            place_V = torch.from_numpy(readers.query_RN[readers.is_query_RN])
            o_RNHC = _attend(readers, q_THC, k_TKC, v_TKC)
            o_THC = o_THC.index_copy(0, place_V, o_RNHC[torch.from_numpy(readers.is_query_RN)])
        return o_THC.view_as(q_BLHC)

    return attend


def _attend(readers: _Readers, q_THC: Tensor, k_TKC: Tensor, v_TKC: Tensor) -> Tensor:
    (R, N), (H, C), K = readers.query_RN.shape, q_THC.shape[1:], k_TKC.shape[1]
    Q = H // K

    def picked(x_TKY: Tensor, index_RN: np.ndarray) -> Tensor:
        """[R, K, N, ...]"""
        return x_TKY.index_select(0, torch.from_numpy(index_RN.flatten())).unflatten(0, index_RN.shape).transpose(1, 2)

    q_ZMC = picked(q_THC.mul(C**-0.5).unflatten(1, (K, Q)), readers.query_RN).reshape(R * K, N * Q, C)
    position_RM = torch.from_numpy(readers.position_RN).repeat_interleave(Q, dim=1)
    blocks = []
    for start in range(0, readers.key_RS.shape[1], BLOCK):
        index_RX = readers.key_RS[:, start : start + BLOCK]
        key_ZXC, value_ZXC = (picked(x_TKC, index_RX).reshape(R * K, BLOCK, C) for x_TKC in (k_TKC, v_TKC))
        is_hidden_RMX = torch.arange(start, start + BLOCK) > position_RM[..., None]
        is_hidden_ZMX = is_hidden_RMX[:, None].expand(-1, K, -1, -1).reshape(R * K, N * Q, BLOCK)
        blocks.append((slice(None), key_ZXC, value_ZXC, is_hidden_ZMX))
    o_ZMC = attend_blocks(q_ZMC, blocks)
    return o_ZMC.view(R, K, N, Q, C).transpose(1, 2).reshape(R, N, H, C)
