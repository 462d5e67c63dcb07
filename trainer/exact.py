"""Attention of training with the rollout's arithmetic: on a CPU in float32, log-probabilities equal to the bit.

The engine reads keys in blocks of positions (`rollout.block_attention`), each completion after its context. Here every
end of a path is a reader of its own, which gathers the keys of its path in that order; what is computed of them is the
engine's own function. What several paths begin with is read by the first of them. (A model whose feed-forward width is
no multiple of 4 would need micro-batches of whole 64 tokens, not 16: `kernels.fused.rows_alike`.)

    L tokens of a layout   R readers   N queries of a reader   S keys of a reader   X positions of a block
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
from trainer.token_tree import Nodes


@dataclass(frozen=True, slots=True)
class _Readers:
    """Places of a layout. Those that only fill up read what is at the first."""

    query_RN: np.ndarray
    position_RN: np.ndarray
    is_query_RN: np.ndarray
    key_RS: np.ndarray

    @classmethod
    def of(cls, readers: Sequence[tuple[np.ndarray, int]]) -> _Readers:
        """From (a path, how many of its last places have queries) of each."""
        num_queries = -(-max(num for _, num in readers) // QUERIES) * QUERIES
        num_keys = -(-max(len(path) for path, _ in readers) // BLOCK) * BLOCK
        query_RN, key_RS = (np.zeros((len(readers), num), dtype=np.int64) for num in (num_queries, num_keys))
        position_RN, is_query_RN = np.zeros_like(query_RN), np.zeros(query_RN.shape, dtype=bool)
        for r, (path, num) in enumerate(readers):
            query_RN[r, :num] = path[len(path) - num :]
            position_RN[r, :num] = np.arange(len(path) - num, len(path))
            is_query_RN[r, :num] = True
            key_RS[r] = path[0]
            key_RS[r, : len(path)] = path
        return cls(query_RN, position_RN, is_query_RN, key_RS)


def exact_attention(nodes: Nodes) -> Attention:
    """`trainer.tree_attention.dense_attention` of one layout, B = 1, by the engine's arithmetic."""
    by_size: dict[int, list[tuple[np.ndarray, int]]] = {}
    num_read = 0
    for node, end in enumerate(nodes.end_N):
        if nodes.subtree_end_N[node] == end:  # nothing below it
            num = int(end - num_read)  # depth first: these are the last of its path
            by_size.setdefault(num.bit_length(), []).append((nodes.path(node), num))
            num_read = int(end)
    kinds = [_Readers.of(readers) for readers in by_size.values()]

    def attend(layer: int, q_1LHC: Tensor, k_1LKC: Tensor, v_1LKC: Tensor) -> Tensor:
        q_LHC, k_LKC, v_LKC = (x[0] for x in (q_1LHC, k_1LKC, v_1LKC))
        o_LHC = torch.zeros_like(q_LHC)
        for readers in kinds:
            place_V = torch.from_numpy(readers.query_RN[readers.is_query_RN])
            o_RNHC = _attend(readers, q_LHC, k_LKC, v_LKC)
            o_LHC = o_LHC.index_copy(0, place_V, o_RNHC[torch.from_numpy(readers.is_query_RN)])
        return o_LHC[None]

    return attend


def _attend(readers: _Readers, q_LHC: Tensor, k_LKC: Tensor, v_LKC: Tensor) -> Tensor:
    (R, N), (H, C), K = readers.query_RN.shape, q_LHC.shape[1:], k_LKC.shape[1]
    Q = H // K

    def picked(x_LKY: Tensor, index_RN: np.ndarray) -> Tensor:
        """[R, K, N, ...]"""
        return x_LKY.index_select(0, torch.from_numpy(index_RN.flatten())).unflatten(0, index_RN.shape).transpose(1, 2)

    q_ZMC = picked(q_LHC.mul(C**-0.5).unflatten(1, (K, Q)), readers.query_RN).reshape(R * K, N * Q, C)
    position_RM = torch.from_numpy(readers.position_RN).repeat_interleave(Q, dim=1)
    blocks = []
    for start in range(0, readers.key_RS.shape[1], BLOCK):
        index_RX = readers.key_RS[:, start : start + BLOCK]
        key_ZXC, value_ZXC = (picked(x_LKC, index_RX).reshape(R * K, BLOCK, C) for x_LKC in (k_LKC, v_LKC))
        is_hidden_RMX = torch.arange(start, start + BLOCK) > position_RM[..., None]
        is_hidden_ZMX = is_hidden_RMX[:, None].expand(-1, K, -1, -1).reshape(R * K, N * Q, BLOCK)
        blocks.append((slice(None), key_ZXC, value_ZXC, is_hidden_ZMX))
    o_ZMC = attend_blocks(q_ZMC, blocks)
    return o_ZMC.view(R, K, N, Q, C).transpose(1, 2).reshape(R, N, H, C)
