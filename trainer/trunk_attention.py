"""Attention over token trees on a CPU, without a mask: every trunk is read once by all that is below it.

What queries see of a long node with children is the same for all below it, and in a depth-first layout they are
neighbours: one unmasked attention. What is left is causal: each end (a leaf, or a trunk) with its tail, the tokens
from the last trunk above it on, siblings side by side. Parts are merged by their log-sum-exp, and the backward of
each part by the merged one is exact, as in ring attention (arXiv:2310.01889).

    L tokens of a layout   N nodes   R tails of a batch   S length of its longest   W what is read of these R·S places
    M queries of a part   X keys of a trunk   H query heads   K key/value heads   G = H / K   C head width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from rollout.decoder import Attention
from trainer.token_tree import Nodes

# Tokens that are rather read again by each child than by a call of their own.
_SHORT = 32
# Tails of a batch are at least this share of its longest.
_LEAST_SHARE = 0.75

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class _Trunk:
    """Keys that all queries of a stretch see."""

    key_X: Tensor
    queries: slice

    def picked(self, q_KLGC: Tensor, k_KLC: Tensor, v_KLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q_K1MC, k_K1XC, v_K1XC; M: the heads of a group side by side."""
        k_KXC, v_KXC = (x_KLC.index_select(1, self.key_X) for x_KLC in (k_KLC, v_KLC))
        return q_KLGC[:, self.queries].flatten(1, 2)[:, None], k_KXC[:, None], v_KXC[:, None]


@dataclass(frozen=True, slots=True)
class _Tails:
    """Ends side by side, filled up with their last token. A token that several begin with is read of the first."""

    place_Z: Tensor  # R·S places of the layout
    num: int  # R
    own_W: Tensor  # among R·S
    own_place_W: Tensor  # of the layout

    def rows(self, x_KZG: Tensor) -> Tensor:
        """[K·R, G, S, ...] from [K, R·S, G, ...]"""
        return x_KZG.unflatten(1, (self.num, -1)).flatten(0, 1).transpose(1, 2)

    def of_places(self, x_ZS: Tensor) -> Tensor:
        """[K, R·S, ...] from [K·R, S, ...]"""
        return x_ZS.unflatten(0, (-1, self.num)).flatten(1, 2)

    def picked(self, q_KLGC: Tensor, k_KLC: Tensor, v_KLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q_ZGSC, k_ZGSC, v_ZGSC, Z = K·R; keys and values are the same for all G."""
        q_ZGSC = self.rows(q_KLGC.index_select(1, self.place_Z))
        k_ZGSC, v_ZGSC = (
            self.rows(x_KLC.index_select(1, self.place_Z)[:, :, None]).expand(-1, q_KLGC.shape[2], -1, -1)
            for x_KLC in (k_KLC, v_KLC)
        )
        return q_ZGSC, k_ZGSC, v_ZGSC


def plan(nodes: Nodes) -> tuple[list[_Trunk], list[_Tails]]:
    trunks, ends = [], []
    tails: list[np.ndarray] = []  # from the last trunk above a node to its end
    is_trunk = np.zeros(len(nodes), dtype=bool)
    for i, (start, end, subtree_end, parent) in enumerate(
        zip(nodes.start_N, nodes.end_N, nodes.subtree_end_N, nodes.parent_N)
    ):
        above = tails[parent] if parent >= 0 and not is_trunk[parent] else np.zeros(0, dtype=np.int64)
        tails.append(np.concatenate((above, np.arange(start, end))))
        is_trunk[i] = subtree_end > end and len(tails[i]) >= _SHORT
        if is_trunk[i]:
            trunks.append(_Trunk(torch.from_numpy(tails[i]), slice(int(end), int(subtree_end))))
        if is_trunk[i] or subtree_end == end:
            ends.append(tails[i])
    is_read = np.zeros(nodes.end_N[-1], dtype=bool)
    own = []
    for tail in ends:
        own.append(~is_read[tail])
        is_read[tail] = True
    batches: list[list[int]] = []
    for i in sorted(range(len(ends)), key=lambda i: -len(ends[i])):
        if batches and len(ends[i]) >= _LEAST_SHARE * len(ends[batches[-1][0]]):
            batches[-1].append(i)
        else:
            batches.append([i])
    return trunks, [_batch([ends[i] for i in batch], [own[i] for i in batch]) for batch in batches]


def _batch(tails: Sequence[np.ndarray], own: Sequence[np.ndarray]) -> _Tails:
    S = len(tails[0])
    # The last token sees all before it: no weight of a place that only fills up overflows.
    place_RS = np.stack([np.pad(tail, (0, S - len(tail)), mode="edge") for tail in tails])
    is_own_RS = np.stack([np.pad(is_own, (0, S - len(is_own))) for is_own in own])
    own_W = np.flatnonzero(is_own_RS)
    place_Z = place_RS.reshape(-1)
    return _Tails(*(torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in (
        place_Z, len(tails), own_W, place_Z[own_W]
    )))  # fmt: skip


def trunk_attention(nodes: Nodes) -> Attention:
    parts = plan(nodes)

    def attend(layer: int, q_1LHC: Tensor, k_1LKC: Tensor, v_1LKC: Tensor) -> Tensor:
        K, (H, C) = k_1LKC.shape[2], q_1LHC.shape[2:]
        q_KLGC = q_1LHC[0].view(-1, K, H // K, C).transpose(0, 1).contiguous()
        k_KLC, v_KLC = (x_1LKC[0].transpose(0, 1).contiguous() for x_1LKC in (k_1LKC, v_1LKC))
        o_KLGC = _TrunkAttention.apply(q_KLGC, k_KLC, v_KLC, parts)
        return o_KLGC.transpose(0, 1).reshape(q_1LHC.shape)

    return attend


class _TrunkAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q_KLGC: Tensor, k_KLC: Tensor, v_KLC: Tensor, parts: tuple[list[_Trunk], list[_Tails]]
    ) -> Tensor:
        trunks, batches = parts
        dtype = torch.promote_types(q_KLGC.dtype, torch.float32)
        o_KLGC = torch.empty_like(q_KLGC, dtype=dtype)
        logsum_KLG = torch.empty(q_KLGC.shape[:3], dtype=dtype)
        for tails in batches:
            q_ZGSC, k_ZGSC, v_ZGSC = tails.picked(q_KLGC, k_KLC, v_KLC)
            o_ZGSC, logsum_ZGS = _flash(q_ZGSC, k_ZGSC, v_ZGSC, 0.0, True)
            for whole, part in ((o_KLGC, o_ZGSC), (logsum_KLG, logsum_ZGS)):
                part = tails.of_places(part.transpose(1, 2)).index_select(1, tails.own_W)
                whole.index_copy_(1, tails.own_place_W, part.to(dtype))
        for trunk in trunks:
            q_K1MC, k_K1XC, v_K1XC = trunk.picked(q_KLGC, k_KLC, v_KLC)
            part_K1MC, logsum_K1M = _flash(q_K1MC, k_K1XC, v_K1XC, 0.0, False)
            o_KmGC, before_KmG = o_KLGC[:, trunk.queries], logsum_KLG[:, trunk.queries]
            part_KmGC, logsum_KmG = part_K1MC.reshape(o_KmGC.shape), logsum_K1M.reshape(before_KmG.shape)
            merged_KmG = torch.logaddexp(before_KmG, logsum_KmG)
            o_KmGC.mul_((before_KmG - merged_KmG).exp_()[..., None])
            o_KmGC.addcmul_(part_KmGC.to(dtype), (logsum_KmG - merged_KmG).exp_()[..., None])
            before_KmG.copy_(merged_KmG)
        o_KLGC = o_KLGC.to(q_KLGC.dtype)
        ctx.save_for_backward(q_KLGC, k_KLC, v_KLC, o_KLGC, logsum_KLG)
        ctx.parts = parts
        return o_KLGC

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, do_KLGC: Tensor) -> tuple[Tensor | None, ...]:
        q_KLGC, k_KLC, v_KLC, o_KLGC, logsum_KLG = ctx.saved_tensors
        trunks, batches = ctx.parts
        do_KLGC = do_KLGC.contiguous()
        dq_KLGC = torch.empty_like(q_KLGC, dtype=logsum_KLG.dtype)
        # Rows of places: the form in which torch adds fast.
        dk_LKC, dv_LKC = (torch.zeros_like(k_KLC.transpose(0, 1), dtype=logsum_KLG.dtype).contiguous() for _ in "kv")
        for tails in batches:
            q_ZGSC, k_ZGSC, v_ZGSC = tails.picked(q_KLGC, k_KLC, v_KLC)
            # Places that are not read have no gradient.
            do_KZGC = torch.zeros_like(q_ZGSC).transpose(1, 2).view(len(q_KLGC), -1, *q_KLGC.shape[2:])
            do_KZGC.index_copy_(1, tails.own_W, do_KLGC.index_select(1, tails.own_place_W))
            do_ZGSC, o_ZGSC = tails.rows(do_KZGC), tails.rows(o_KLGC.index_select(1, tails.place_Z))
            logsum_ZGS = tails.rows(logsum_KLG.index_select(1, tails.place_Z))
            dq_ZGSC, dk_ZGSC, dv_ZGSC = _flash_backward(do_ZGSC, q_ZGSC, k_ZGSC, v_ZGSC, o_ZGSC, logsum_ZGS, 0.0, True)
            dq_KWGC = tails.of_places(dq_ZGSC.transpose(1, 2)).index_select(1, tails.own_W)
            dq_KLGC.index_copy_(1, tails.own_place_W, dq_KWGC.to(dq_KLGC.dtype))
            for whole_LKC, part_ZGSC in ((dk_LKC, dk_ZGSC), (dv_LKC, dv_ZGSC)):
                part_KZC = tails.of_places(part_ZGSC.sum(1, dtype=whole_LKC.dtype))
                whole_LKC.index_add_(0, tails.place_Z, part_KZC.transpose(0, 1))
        for trunk in trunks:
            q_K1MC, k_K1XC, v_K1XC = trunk.picked(q_KLGC, k_KLC, v_KLC)
            do_K1MC, o_K1MC = (x_KLGC[:, trunk.queries].flatten(1, 2)[:, None] for x_KLGC in (do_KLGC, o_KLGC))
            logsum_K1M = logsum_KLG[:, trunk.queries].flatten(1, 2)[:, None]
            dq_K1MC, dk_K1XC, dv_K1XC = _flash_backward(do_K1MC, q_K1MC, k_K1XC, v_K1XC, o_K1MC, logsum_K1M, 0.0, False)
            dq_KmGC = dq_KLGC[:, trunk.queries]
            dq_KmGC += dq_K1MC.reshape(dq_KmGC.shape)
            for whole_LKC, part_K1XC in ((dk_LKC, dk_K1XC), (dv_LKC, dv_K1XC)):
                whole_LKC.index_add_(0, trunk.key_X, part_K1XC[:, 0].transpose(0, 1).to(whole_LKC.dtype))
        dk_KLC, dv_KLC = (x_LKC.transpose(0, 1).to(k_KLC.dtype) for x_LKC in (dk_LKC, dv_LKC))
        return dq_KLGC.to(q_KLGC.dtype), dk_KLC, dv_KLC, None
