"""Attention over pages on a CPU, the same bits for a token whoever it is computed with.

A token's keys are read in blocks of `BLOCK` positions, counted from position 0. Its weights are exp(score - largest),
its output the sum of the blocks' sums, first block first. Nothing in it depends on how many other queries a product has
beside it (in multiples of four: a remainder is multiplied by other code), on how positions lie on pages, or on which of
them are read together with other samples. So prefill in chunks of any size, decoding among any others, and computing a
sample's tokens again give equal bits. A masked key adds a weight of exactly 0.

    T tokens of a step   R rows: samples that decode   N tokens of a chunk   G groups: rows of one context
    H query heads   K key/value heads   Q = H / K   M queries of a product   X positions of a block   C head width
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rollout.kv_cache import KvCache
from rollout.scheduler import Chunk, Sample, Step

BLOCK = 64  # positions; products with up to 128 of them are added up in one way
_QUERIES = 4  # products of multiples of this are rounded alike


@dataclass(slots=True)
class _Rows:
    """What decoding rows read, by block; rows are ordered by the number of blocks that they read alone."""

    order_R: Tensor  # of the step's rows
    place_R: Tensor  # of a row among the G · S places of its group, in that order
    row_GS: Tensor  # the row at each place; some row at empty ones
    prefix: list[Tensor]  # of each shared block: pages of the groups that have it, the first ones
    own: list[tuple[Tensor, Tensor]]  # of each block of their own: (pages, bias_RX) of the rows that have it


@dataclass(slots=True)
class _Part:
    """A chunk's place among the step's tokens, its blocks' pages, and its first position."""

    first: int
    num: int
    start: int
    blocks: list[Tensor]


class BlockAttention:
    """The `attend` of one step: writes its keys and values, then lets each token see those up to itself."""

    def __init__(self, cache: KvCache, step: Step, tables: np.ndarray, page_T: Tensor, slot_T: Tensor) -> None:
        self._cache, self._page_T, self._slot_T = cache, page_T, slot_T
        self._pages_per_block = BLOCK // cache.page_size
        self._num_rows = len(step.rows)
        self._rows = self._plan_rows(step.rows, tables) if step.rows else None
        self._parts, first = [], self._num_rows
        for chunk in step.chunks:
            self._parts.append(self._plan_chunk(chunk, first))
            first += len(chunk.tokens)
        self._num_tokens = first

    def __call__(self, layer: int, q_1THC: Tensor, k_1TKC: Tensor, v_1TKC: Tensor) -> Tensor:
        self._cache.write(layer, self._page_T, self._slot_T, k_1TKC[0], v_1TKC[0])
        pages = self._cache.layer(layer)
        _, T, H, C = q_1THC.shape
        K = k_1TKC.shape[2]
        # In 16 bits scores and sums would lose what the GPU's kernels keep.
        q_TKQC = q_1THC[0].to(torch.promote_types(q_1THC.dtype, torch.float32)).mul(C**-0.5).view(T, K, H // K, C)
        o_TKQC = torch.zeros_like(q_TKQC)
        if self._rows is not None:
            o_TKQC[: self._num_rows] = self._attend_rows(q_TKQC[: self._num_rows], *pages)
        for part in self._parts:
            some = slice(part.first, part.first + part.num)
            o_TKQC[some] = self._attend_chunk(part, q_TKQC[some], *pages)
        return o_TKQC.view(1, T, H, C).to(q_1THC.dtype)

    # Plans, on the host

    def _plan_rows(self, rows: list[Sample], tables: np.ndarray) -> _Rows:
        row_R = np.array([sample.row for sample in rows])
        start_R = np.array([sample.first_block for sample in rows]) * BLOCK
        last_R = np.array([sample.own_start + sample.num_computed for sample in rows]) - start_R
        num_blocks_R = last_R // BLOCK + 1
        order_R = np.argsort(-num_blocks_R, kind="stable")
        row_R, last_R, num_blocks_R = row_R[order_R], last_R[order_R], num_blocks_R[order_R]
        own = []
        for block in range(num_blocks_R[0]):
            num = int((num_blocks_R > block).sum())
            columns = slice(block * self._pages_per_block, (block + 1) * self._pages_per_block)
            is_hidden_RX = block * BLOCK + np.arange(BLOCK) > last_R[:num, None]
            bias_RX = np.where(is_hidden_RX, -np.inf, 0).astype(np.float32)
            own.append((torch.from_numpy(tables[row_R[:num], columns].reshape(-1)), torch.from_numpy(bias_RX)))

        groups: dict[int, list[int]] = defaultdict(list)
        for place, row in enumerate(order_R):
            groups[id(rows[row].request.node)].append(place)
        members = sorted(groups.values(), key=lambda places: -rows[order_R[places[0]]].first_block)
        row_GS = np.zeros((len(members), max(map(len, members))), dtype=np.int64)
        place_R = np.zeros(len(rows), dtype=np.int64)
        prefix_tables = []
        for group, places in enumerate(members):
            row_GS[group, : len(places)] = places
            place_R[places] = group * row_GS.shape[1] + np.arange(len(places))
            sample = rows[order_R[places[0]]]
            num_pages = sample.first_block * self._pages_per_block
            prefix_tables.append(np.array(sample.request.node.table(self._cache.page_size)[:num_pages]))
        prefix = []
        for block in range(len(prefix_tables[0]) // self._pages_per_block):
            columns = slice(block * self._pages_per_block, (block + 1) * self._pages_per_block)
            pages = [table[columns] for table in prefix_tables if len(table) >= columns.stop]
            prefix.append(torch.from_numpy(np.concatenate(pages)))
        return _Rows(torch.from_numpy(order_R), torch.from_numpy(place_R), torch.from_numpy(row_GS), prefix, own)

    def _plan_chunk(self, chunk: Chunk, first: int) -> _Part:
        table = chunk.table + [0] * (-len(chunk.table) % self._pages_per_block)
        blocks = torch.tensor(table).split(self._pages_per_block)
        return _Part(first, len(chunk.tokens), chunk.start, list(blocks))

    # Arithmetic

    def _block(self, pages_NKPC: Tensor, page_X: Tensor, dtype: torch.dtype) -> Tensor:
        """Blocks [B·K, X, C] of B readers, by the pages of all of them."""
        picked_NKPC = pages_NKPC.index_select(0, page_X)
        if self._pages_per_block > 1:
            picked_NKPC = picked_NKPC.unflatten(0, (-1, self._pages_per_block)).transpose(1, 2)
        return picked_NKPC.reshape(-1, BLOCK, pages_NKPC.shape[-1]).to(dtype)

    def _attend_rows(self, q_RKQC: Tensor, keys_NKPC: Tensor, values_NKPC: Tensor) -> Tensor:
        rows, dtype = self._rows, q_RKQC.dtype
        R, K, Q, C = q_RKQC.shape
        q_RKQC = q_RKQC[rows.order_R]
        num_padding = -Q % _QUERIES
        q_RKMC = F.pad(q_RKQC, (0, 0, 0, num_padding)) if num_padding else q_RKQC
        M = Q + num_padding

        # Shared blocks: the queries of a group's rows side by side.
        G, S = rows.row_GS.shape
        while S * Q % _QUERIES:
            S += 1
        row_GS = F.pad(rows.row_GS, (0, S - rows.row_GS.shape[1]))
        place_R = rows.place_R // rows.row_GS.shape[1] * S + rows.place_R % rows.row_GS.shape[1]

        def to_groups(x_RKQY: Tensor) -> Tensor:
            Y = x_RKQY.shape[-1]
            return x_RKQY[row_GS.flatten()].view(G, S, K, Q, Y).transpose(1, 2).reshape(G * K, S * Q, Y)

        def to_rows(x_GKMY: Tensor) -> Tensor:
            Y = x_GKMY.shape[-1]
            x_RKQY = x_GKMY.view(G, K, S, Q, Y).transpose(1, 2).reshape(G * S, K, Q, Y)[place_R]
            return F.pad(x_RKQY, (0, 0, 0, num_padding)) if num_padding else x_RKQY

        largest_RKM1 = q_RKMC.new_full((R, K, M, 1), -torch.inf)
        scores_G, scores_R = [], []
        if rows.prefix:
            q_GMC = to_groups(q_RKQC)
            largest_GM1 = q_GMC.new_full((G * K, S * Q, 1), -torch.inf)
            for page_X in rows.prefix:
                key_GXC = self._block(keys_NKPC, page_X, dtype)
                score_GMX = q_GMC[: len(key_GXC)] @ key_GXC.transpose(1, 2)
                some = largest_GM1[: len(key_GXC)]
                torch.maximum(some, score_GMX.amax(-1, keepdim=True), out=some)
                scores_G.append(score_GMX)
            largest_RKM1 = to_rows(largest_GM1)
        for page_X, bias_RX in rows.own:
            num = len(bias_RX)
            key_RXC = self._block(keys_NKPC, page_X, dtype)
            score_RKMX = (q_RKMC[:num].flatten(0, 1) @ key_RXC.transpose(1, 2)).view(num, K, M, BLOCK)
            score_RKMX += bias_RX[:, None, None]
            some = largest_RKM1[:num]
            torch.maximum(some, score_RKMX.amax(-1, keepdim=True), out=some)
            scores_R.append(score_RKMX)

        sum_RKM1, o_RKMC = torch.zeros_like(largest_RKM1), torch.zeros_like(q_RKMC)
        if rows.prefix:
            largest_GM1 = to_groups(largest_RKM1[:, :, :Q])
            sum_GM1, o_GMC = torch.zeros_like(largest_GM1), torch.zeros_like(q_GMC)
            for page_X, score_GMX in zip(rows.prefix, scores_G, strict=True):
                num = len(score_GMX)
                _add_block(
                    score_GMX, self._block(values_NKPC, page_X, dtype), largest_GM1[:num], sum_GM1[:num], o_GMC[:num]
                )
            sum_RKM1, o_RKMC = to_rows(sum_GM1), to_rows(o_GMC)
        for (page_X, _), score_RKMX in zip(rows.own, scores_R, strict=True):
            num = len(score_RKMX)
            of_rows = (x_RKMY[:num].flatten(0, 1) for x_RKMY in (score_RKMX, largest_RKM1, sum_RKM1, o_RKMC))
            score_RMX, largest_RM1, sum_RM1, o_RMC = of_rows
            _add_block(score_RMX, self._block(values_NKPC, page_X, dtype), largest_RM1, sum_RM1, o_RMC)
        o_RKQC = (o_RKMC / sum_RKM1)[:, :, :Q]
        return torch.empty_like(o_RKQC).index_copy_(0, rows.order_R, o_RKQC)

    def _attend_chunk(self, part: _Part, q_NKQC: Tensor, keys_NKPC: Tensor, values_NKPC: Tensor) -> Tensor:
        N, K, Q, C = q_NKQC.shape
        num_queries = N * Q + -N * Q % _QUERIES
        q_KMC = q_NKQC.new_zeros(K, num_queries, C)
        q_KMC[:, : N * Q] = q_NKQC.transpose(0, 1).reshape(K, N * Q, C)
        position_M = part.start + torch.arange(num_queries) // Q
        largest_KM1 = q_KMC.new_full((K, num_queries, 1), -torch.inf)
        seen, scores = [], []
        for block, page_X in enumerate(part.blocks):
            # Queries before a block see nothing of it.
            some = slice(max(0, block * BLOCK - part.start) * Q // _QUERIES * _QUERIES, num_queries)
            score_KMX = q_KMC[:, some] @ self._block(keys_NKPC, page_X, q_KMC.dtype).transpose(1, 2)
            if (block + 1) * BLOCK > part.start + 1:
                key_X = torch.arange(block * BLOCK, (block + 1) * BLOCK)
                score_KMX.masked_fill_(key_X > position_M[some, None], -torch.inf)
            largest_KM1[:, some] = torch.maximum(largest_KM1[:, some], score_KMX.amax(-1, keepdim=True))
            seen.append(some)
            scores.append(score_KMX)
        sum_KM1, o_KMC = torch.zeros_like(largest_KM1), torch.zeros_like(q_KMC)
        for page_X, some, score_KMX in zip(part.blocks, seen, scores, strict=True):
            value_KXC = self._block(values_NKPC, page_X, q_KMC.dtype)
            _add_block(score_KMX, value_KXC, largest_KM1[:, some], sum_KM1[:, some], o_KMC[:, some])
        o_KMC = (o_KMC / sum_KM1)[:, : N * Q]
        return o_KMC.view(K, N, Q, C).transpose(0, 1)


def _add_block(score_BMX: Tensor, value_BXC: Tensor, largest_BM1: Tensor, sum_BM1: Tensor, o_BMC: Tensor) -> None:
    """Adds a block's weights and weighted values to `sum` and `o`; overwrites the scores."""
    weight_BMX = score_BMX.sub_(largest_BM1).exp_()
    sum_BM1 += weight_BMX.sum(-1, keepdim=True)
    o_BMC.baddbmm_(weight_BMX, value_BXC)
