"""Attention over token trees: a query sees the keys of its node and of the nodes above it that are not later.

In a depth-first layout: k ≤ q < end of the subtree of k's node. `dense_attention` defines it; on CUDA it is
`flex_attention` over blocks, on a CPU `trainer/trunk_attention.py`.

    L tokens of a layout   N nodes   P pieces: of one node and one block   B blocks
    H query heads   K key/value heads   C head width
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from kernels.upload import upload
from rollout.decoder import Attention
from trainer.token_tree import Nodes
from trainer.trunk_attention import trunk_attention

BLOCK = 128


def tree_attention(nodes: Nodes, device: torch.device) -> Attention:
    """Of one layout, B = 1."""
    return trunk_attention(nodes) if device.type == "cpu" else block_attention(nodes, device)


def dense_attention(nodes: Nodes, device: torch.device) -> Attention:
    """The definition, by a mask [L, L]."""
    L = nodes.end_N[-1]
    subtree_end_L = np.repeat(nodes.subtree_end_N, nodes.end_N - nodes.start_N)
    place_L = np.arange(L)
    is_seen_LL = (place_L <= place_L[:, None]) & (place_L[:, None] < subtree_end_L)
    mask_LL = torch.from_numpy(is_seen_LL).to(device)

    def attend(layer: int, q_1LHC: Tensor, k_1LKC: Tensor, v_1LKC: Tensor) -> Tensor:
        q_1HLC, k_1KLC, v_1KLC = (x.transpose(1, 2) for x in (q_1LHC, k_1LKC, v_1LKC))
        o_1HLC = F.scaled_dot_product_attention(q_1HLC, k_1KLC, v_1KLC, attn_mask=mask_LL, enable_gqa=True)
        return o_1HLC.transpose(1, 2)

    return attend


def block_attention(nodes: Nodes, device: torch.device) -> Attention:
    """By `flex_attention`, which skips the blocks that are not seen and asks the mask where a part of one is."""
    mask = block_mask(nodes, device)
    attention = _compiled() if device.type == "cuda" else flex_attention

    def attend(layer: int, q_1LHC: Tensor, k_1LKC: Tensor, v_1LKC: Tensor) -> Tensor:
        q_1HLC, k_1KLC, v_1KLC = (x.transpose(1, 2) for x in (q_1LHC, k_1LKC, v_1LKC))
        return attention(q_1HLC, k_1KLC, v_1KLC, block_mask=mask, enable_gqa=True).transpose(1, 2)

    return attend


@cache
def _compiled():
    """Compiled once; layouts differ by their lengths, which are dynamic from the second on."""
    return torch.compile(flex_attention)


def block_mask(nodes: Nodes, device: torch.device) -> BlockMask:
    """What `create_block_mask` finds out from a mask [L, L], from the nodes."""
    L = int(nodes.end_N[-1])
    num_blocks = -(-L // BLOCK)
    subtree_end_L = upload(np.repeat(nodes.subtree_end_N, nodes.end_N - nodes.start_N), device)

    def is_seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < subtree_end_L[k])

    # Pieces: of two different ones all pairs are seen or none, of a piece and itself the lower triangle.
    start_P = np.union1d(nodes.start_N, np.arange(0, L, BLOCK))
    subtree_end_P = nodes.subtree_end_N[np.searchsorted(nodes.start_N, start_P, side="right") - 1]
    is_seen_PP = (start_P <= start_P[:, None]) & (start_P[:, None] < subtree_end_P)
    is_whole_PP = is_seen_PP & ~np.eye(len(start_P), dtype=bool)
    first_B = np.searchsorted(start_P, np.arange(0, L, BLOCK))

    def of_blocks(reduce: np.ufunc, is_PP: np.ndarray) -> np.ndarray:
        return reduce.reduceat(reduce.reduceat(is_PP, first_B, axis=0), first_B, axis=1)

    # A last block with less than `BLOCK` tokens is never whole: what is beyond it has to be masked.
    is_whole_BB = of_blocks(np.logical_and, is_whole_PP)
    is_whole_BB[L // BLOCK :] = is_whole_BB[:, L // BLOCK :] = False
    is_part_BB = of_blocks(np.logical_or, is_seen_PP) & ~is_whole_BB

    def listed(is_BB: np.ndarray) -> tuple[Tensor, Tensor]:
        """(number of the blocks that are, their indices and then those of the others)"""
        order_BB = np.argsort(~is_BB, axis=1, kind="stable").astype(np.int32)
        counts = is_BB.sum(1).astype(np.int32)
        return tuple(upload(x, device)[None, None] for x in (counts, order_BB))

    assert is_part_BB.shape == (num_blocks, num_blocks)
    return BlockMask.from_kv_blocks(
        *listed(is_part_BB), *listed(is_whole_BB), BLOCK_SIZE=BLOCK, mask_mod=is_seen, seq_lengths=(L, L)
    )
