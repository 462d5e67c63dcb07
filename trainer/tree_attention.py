"""Attention over token trees: a query sees the keys of its node and of the nodes above it that are not later.

In a depth-first layout: k ≤ q < end of the subtree of k's node. `dense_attention` defines it; on a GPU it is
`kernels/tree_attention.py`, on a CPU `trainer/trunk_attention.py`.

    L tokens of a layout   N nodes   H query heads   K key/value heads   C head width
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels.tree_attention import Tiles, has_kernel, tree_attention_ref
from kernels.tree_attention import tree_attention as by_tiles
from kernels.upload import upload
from rollout.decoder import Attention
from trainer.token_tree import Nodes
from trainer.trunk_attention import trunk_attention


def tree_attention(nodes: Nodes, device: torch.device) -> Attention:
    """Of one layout, B = 1."""
    return trunk_attention(nodes) if device.type == "cpu" else tiled_attention(nodes, device)


def dense_attention(nodes: Nodes, device: torch.device) -> Attention:
    """The definition, by a mask [L, L]."""
    end_L = upload(subtree_ends(nodes), device)

    def attend(layer: int, q_1LHC: Tensor, k_1LKC: Tensor, v_1LKC: Tensor) -> Tensor:
        return tree_attention_ref(q_1LHC[0], k_1LKC[0], v_1LKC[0], end_L)[None]

    return attend


def tiled_attention(nodes: Nodes, device: torch.device) -> Attention:
    """By kernels; what they are not for (float64, odd widths) by the definition."""
    tiles = Tiles(subtree_ends(nodes), device)
    by_definition = dense_attention(nodes, device)

    def attend(layer: int, q_1LHC: Tensor, k_1LKC: Tensor, v_1LKC: Tensor) -> Tensor:
        if not has_kernel(device, q_1LHC.dtype, q_1LHC.shape[-1]):
            return by_definition(layer, q_1LHC, k_1LKC, v_1LKC)
        return by_tiles(q_1LHC[0], k_1LKC[0], v_1LKC[0], tiles)[None]

    return attend


def subtree_ends(nodes: Nodes) -> np.ndarray:
    """Of each token's node, [L]."""
    return np.repeat(nodes.subtree_end_N, nodes.end_N - nodes.start_N)
