"""Attention over pages on a CPU, the same bits for a token whoever it is computed with.

A token's keys are read in blocks of `BLOCK` positions, counted from position 0. Its weights are exp(score - largest),
its output the sum of the blocks' sums, first block first. Nothing in it depends on how many other queries a product has
beside it (in multiples of four: a remainder is multiplied by other code), on how positions lie on pages, or on which of
them are read together with other samples. So prefill in chunks of any size, decoding among any others, and computing a
sample's tokens again give equal bits. A masked key adds a weight of exactly 0.

    T tokens of a step   R rows: samples that decode   G groups: rows of one context   S rows of a group, at most
    B readers: rows, or groups   N blocks, each read by one reader   O blocks of a reader, at most
    H query heads   K key/value heads   Q = H / K   M queries of a reader   X positions of a block   C head width
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rollout.kv_cache import KvCache
from rollout.steps import Chunk, Sample, Step

BLOCK = 64  # positions; products with up to 128 of them are added up in one way
QUERIES = 4  # products of multiples of this are rounded alike
_READ_IN_PLACE = 0.5  # share of a run of pages that has to be wanted
_READ_APART = 64  # shared blocks that rows rather read one by one: fewer operations, and little memory


@dataclass(slots=True)
class _Reading:
    """Which blocks are read, and by whom: readers come in order, those with the most blocks first."""

    pages: slice | Tensor  # of the blocks: a run of pages that holds them all, or their pages one after the other
    reader_N: Tensor
    place_BO: Tensor  # of each reader's blocks among the N; where it has no more of them, of its first
    by_block_N: Tensor | None  # places of block 0 of the first readers, which have it, of block 1, …; None: 0, 1, …
    num_O: list[int]  # readers that have block 0, 1, …
    bias_NX: Tensor | None  # -inf at positions that are not there yet


@dataclass(slots=True)
class _Groups:
    """Decoding rows of one context stand side by side. Its whole blocks are read by the group, the rest by each row."""

    row_GKS: Tensor  # among rows × key heads, R·K; at empty places any. S·Q is a multiple of four
    place_RK: Tensor  # of each row among places × key heads, G·K·S; the one after the last where it has none
    reading: _Reading


@dataclass(slots=True)
class _Part:
    """A chunk's place among the step's tokens, its blocks' pages, and its first position."""

    first: int
    num: int
    start: int
    blocks: list[Tensor]


class BlockAttention:
    """The `attend` of one step: writes its keys and values, then lets each token see those up to itself.

    Args:
        tables: of the scheduler.
        heads: (query heads, key/value heads).
    """

    def __init__(
        self, cache: KvCache, step: Step, tables: np.ndarray, page_T: Tensor, slot_T: Tensor, heads: tuple[int, int]
    ) -> None:
        self._cache, self._page_T, self._slot_T = cache, page_T, slot_T
        self._num_keys, self._num_queries = heads[1], heads[0] // heads[1]
        self._pages_per_block = BLOCK // cache.page_size
        self._num_rows = len(step.rows)
        if step.rows:
            self._plan_rows(step.rows, tables)
        self._parts, first = [], self._num_rows
        for chunk in step.chunks:
            self._parts.append(self._plan_chunk(chunk, first))
            first += len(chunk.tokens)

    def __call__(self, layer: int, q_1THC: Tensor, k_1TKC: Tensor, v_1TKC: Tensor) -> Tensor:
        self._cache.write(layer, self._page_T, self._slot_T, k_1TKC[0], v_1TKC[0])
        pages = self._cache.layer(layer)
        _, T, H, C = q_1THC.shape
        K = k_1TKC.shape[2]
        # In 16 bits scores and sums would lose what the GPU's kernels keep.
        q_TKQC = q_1THC[0].to(torch.promote_types(q_1THC.dtype, torch.float32)).mul(C**-0.5).view(T, K, H // K, C)
        o_TKQC = torch.zeros_like(q_TKQC)
        if self._num_rows:
            o_TKQC[: self._num_rows] = self._attend_rows(q_TKQC[: self._num_rows], *pages)
        for part in self._parts:
            some = slice(part.first, part.first + part.num)
            o_TKQC[some] = self._attend_chunk(part, q_TKQC[some], *pages)
        return o_TKQC.view(1, T, H, C).to(q_1THC.dtype)

    # Plans, on the host

    def _plan_rows(self, rows: list[Sample], tables: np.ndarray) -> None:
        first_R = np.array([sample.first_block for sample in rows])
        is_apart = 0 < first_R.sum() <= _READ_APART
        if is_apart:
            table_RM = self._whole_tables(rows, tables)
            first_R[:] = 0
        else:
            table_RM = tables[[sample.row for sample in rows]]
        last_R = np.array([sample.own_start + sample.num_computed for sample in rows]) - first_R * BLOCK
        num_blocks_R = last_R // BLOCK + 1
        order_R = np.argsort(-num_blocks_R, kind="stable")
        self._order_R, self._inverse_R = (torch.from_numpy(x_R) for x_R in (order_R, np.argsort(order_R)))
        # Pages that several rows read cannot be read in place, once for each.
        self._own = self._reading(table_RM[order_R], num_blocks_R[order_R], last_R[order_R], in_place=not is_apart)
        self._groups = self._plan_groups([rows[row] for row in order_R], first_R[order_R])

    def _whole_tables(self, rows: list[Sample], tables: np.ndarray) -> np.ndarray:
        """Pages from position 0 on."""
        P = self._cache.page_size
        num_pages = -(-max(s.own_start + s.num_computed + 1 for s in rows) // BLOCK) * self._pages_per_block
        table_RM, node, shared = np.zeros((len(rows), num_pages), dtype=np.int64), None, []
        for row, sample in enumerate(rows):
            num_shared = sample.first_block * self._pages_per_block
            if sample.request.node is not node:  # siblings follow one another
                node = sample.request.node
                shared = node.table(P)[:num_shared]
            table_RM[row, :num_shared] = shared
            table_RM[row, num_shared:] = tables[sample.row, : num_pages - num_shared]
        return table_RM

    def _plan_groups(self, rows: list[Sample], first_R: np.ndarray) -> _Groups | None:
        groups: dict[int, list[int]] = defaultdict(list)
        for row, sample in enumerate(rows):
            if first_R[row]:
                groups[id(sample.request.node)].append(row)
        if not groups:
            return None
        members = sorted(groups.values(), key=lambda members: -first_R[members[0]])
        num_blocks_G = np.array([first_R[rows_of_group[0]] for rows_of_group in members])
        S = max(map(len, members))
        while S * self._num_queries % QUERIES:
            S += 1
        K = np.arange(self._num_keys)
        row_GKS = np.zeros((len(members), len(K), S), dtype=np.int64)
        place_RK = np.full((len(rows), len(K)), row_GKS.size)
        table_GM = np.zeros((len(members), num_blocks_G[0] * self._pages_per_block), dtype=np.int64)
        for group, rows_of_group in enumerate(members):
            row_GKS[group, :, : len(rows_of_group)] = np.array(rows_of_group) * len(K) + K[:, None]
            place_RK[rows_of_group] = (group * len(K) + K) * S + np.arange(len(rows_of_group))[:, None]
            num_pages = num_blocks_G[group] * self._pages_per_block
            table_GM[group, :num_pages] = rows[rows_of_group[0]].request.node.table(self._cache.page_size)[:num_pages]
        reading = self._reading(table_GM, num_blocks_G, None, in_place=False)
        return _Groups(torch.from_numpy(row_GKS), torch.from_numpy(place_RK), reading)

    def _reading(
        self, table_BM: np.ndarray, num_blocks_B: np.ndarray, last_B: np.ndarray | None, in_place: bool
    ) -> _Reading:
        """
        Args:
            table_BM: pages of each reader, the ones with the most blocks first.
            last_B: the last position that is there, counted from a reader's first block; all of them if None.
            in_place: pages may be read where they lie, with what is between them; each has one reader.
        """
        n, O = self._pages_per_block, int(num_blocks_B[0])
        num_O = (num_blocks_B[:, None] > np.arange(O)).sum(0)
        reader_N = np.concatenate([np.arange(num) for num in num_O])
        block_N = np.repeat(np.arange(O), num_O)
        page_Nn = table_BM[reader_N[:, None], block_N[:, None] * n + np.arange(n)]
        place_N = np.arange(len(reader_N))
        pages, size = torch.from_numpy(page_Nn.reshape(-1)), len(reader_N)
        low, high = page_Nn.min(), page_Nn.max() + 1
        if in_place and n == 1 and len(page_Nn) >= _READ_IN_PLACE * (high - low):
            place_N = page_Nn[:, 0] - low
            pages, size = slice(int(low), int(high)), high - low
        place_BO = np.repeat(place_N[: len(num_blocks_B), None], O, axis=1)
        place_BO[reader_N, block_N] = place_N
        reader_of_place = np.zeros(size, dtype=np.int64)  # pages that nobody wants are read by anyone
        reader_of_place[place_N] = reader_N
        bias = None
        if last_B is not None:
            bias_NX = np.zeros((size, BLOCK), dtype=np.float32)
            position_NX = block_N[:, None] * BLOCK + np.arange(BLOCK)
            bias_NX[place_N] = np.where(position_NX > last_B[reader_N, None], -np.inf, 0)
            bias = torch.from_numpy(bias_NX)[:, None, None]
        by_block_N = None if isinstance(pages, Tensor) else torch.from_numpy(place_N)
        return _Reading(
            pages, torch.from_numpy(reader_of_place), torch.from_numpy(place_BO), by_block_N, num_O.tolist(), bias
        )

    def _plan_chunk(self, chunk: Chunk, first: int) -> _Part:
        table = chunk.table + [0] * (-len(chunk.table) % self._pages_per_block)
        blocks = torch.tensor(table).split(self._pages_per_block)
        return _Part(first, len(chunk.tokens), chunk.start, list(blocks))

    # Arithmetic

    def _blocks(self, pages_NKPC: Tensor, pages: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """[N·K, X, C]"""
        picked_NKPC = pages_NKPC[pages] if isinstance(pages, slice) else pages_NKPC.index_select(0, pages)
        if self._pages_per_block > 1:
            picked_NKPC = picked_NKPC.unflatten(0, (-1, self._pages_per_block)).transpose(1, 2)
        return picked_NKPC.reshape(-1, BLOCK, pages_NKPC.shape[-1]).to(dtype)

    def _attend_rows(self, q_RKQC: Tensor, keys_NKPC: Tensor, values_NKPC: Tensor) -> Tensor:
        R, K, Q, C = q_RKQC.shape
        num_padding = -Q % QUERIES
        q_RKQC = q_RKQC.index_select(0, self._order_R)
        q_RKMC = F.pad(q_RKQC, (0, 0, 0, num_padding)) if num_padding else q_RKQC
        score_NKMX, largest_RKM1 = self._scores(q_RKMC, self._own, keys_NKPC)
        total = None  # of weighted values and, as one column more, of weights
        if self._groups is not None:
            row_GKS, place_RK, reading = self._groups.row_GKS, self._groups.place_RK, self._groups.reading

            def to_groups(x_RKQY: Tensor) -> Tensor:
                return x_RKQY.flatten(0, 1)[row_GKS].flatten(2, 3)

            def to_rows(x_GKMY: Tensor, without: float) -> Tensor:
                x_ZQY = x_GKMY.view(row_GKS.numel(), Q, -1)
                return F.pad(x_ZQY, (0, 0, 0, num_padding, 0, 1), value=without)[place_RK]

            q_GKMC = to_groups(q_RKQC)
            shared_score_NKMX, largest_GKM1 = self._scores(q_GKMC, reading, keys_NKPC)
            torch.maximum(largest_RKM1, to_rows(largest_GKM1, -torch.inf), out=largest_RKM1)
            largest_GKM1 = to_groups(largest_RKM1[:, :, :Q])
            total = to_rows(self._sums(shared_score_NKMX, largest_GKM1, reading, values_NKPC, None), 0.0)
        total = self._sums(score_NKMX, largest_RKM1, self._own, values_NKPC, total)[:, :, :Q]
        return (total[..., :C] / total[..., C:]).index_select(0, self._inverse_R)

    def _scores(self, q_BKMC: Tensor, reading: _Reading, keys_NKPC: Tensor) -> tuple[Tensor, Tensor]:
        """score_NKMX, and each query's largest one, [B, K, M, 1]."""
        q_NKMC = q_BKMC.index_select(0, reading.reader_N)
        key_ZXC = self._blocks(keys_NKPC, reading.pages, q_BKMC.dtype)
        score_NKMX = (q_NKMC.flatten(0, 1) @ key_ZXC.transpose(1, 2)).view(*q_NKMC.shape[:3], BLOCK)
        if reading.bias_NX is not None:
            score_NKMX += reading.bias_NX
        return score_NKMX, score_NKMX.amax(-1, keepdim=True)[reading.place_BO].amax(1)

    def _sums(
        self, score_NKMX: Tensor, largest_BKM1: Tensor, reading: _Reading, values_NKPC: Tensor, before: Tensor | None
    ) -> Tensor:
        """[B, K, M, C + 1]: weighted values and weights, added to `before` block by block. Overwrites the scores."""
        weight_NKMX = score_NKMX.sub_(largest_BKM1.index_select(0, reading.reader_N)).exp_()
        value_ZXC = self._blocks(values_NKPC, reading.pages, score_NKMX.dtype)
        o_NKMC = (weight_NKMX.flatten(0, 1) @ value_ZXC).view(*weight_NKMX.shape[:3], -1)
        both_NKMY = torch.cat((o_NKMC, weight_NKMX.sum(-1, keepdim=True)), -1)
        if reading.by_block_N is not None:
            both_NKMY = both_NKMY.index_select(0, reading.by_block_N)
        first_BKMY, *others = both_NKMY.split(reading.num_O)
        total_BKMY = first_BKMY if before is None else before.add_(first_BKMY)
        for some_BKMY in others:
            total_BKMY[: len(some_BKMY)].add_(some_BKMY)
        return total_BKMY

    def _attend_chunk(self, part: _Part, q_NKQC: Tensor, keys_NKPC: Tensor, values_NKPC: Tensor) -> Tensor:
        """N tokens of the chunk, M = N·Q queries side by side."""
        N, K, Q, C = q_NKQC.shape
        num_queries = N * Q + -N * Q % QUERIES
        q_KMC = q_NKQC.new_zeros(K, num_queries, C)
        q_KMC[:, : N * Q] = q_NKQC.transpose(0, 1).reshape(K, N * Q, C)
        position_M = part.start + torch.arange(num_queries) // Q
        blocks = []
        for block, page_X in enumerate(part.blocks):
            # Queries before a block see nothing of it.
            some = slice(max(0, block * BLOCK - part.start) * Q // QUERIES * QUERIES, num_queries)
            is_hidden_MX = None
            if (block + 1) * BLOCK > part.start + 1:
                is_hidden_MX = torch.arange(block * BLOCK, (block + 1) * BLOCK) > position_M[some, None]
            keys, values = (self._blocks(x_NKPC, page_X, q_KMC.dtype) for x_NKPC in (keys_NKPC, values_NKPC))
            blocks.append((some, keys, values, is_hidden_MX))
        o_KMC = attend_blocks(q_KMC, blocks)[:, : N * Q]
        return o_KMC.view(K, N, Q, C).transpose(0, 1)


def attend_blocks(q_ZMC: Tensor, blocks: Sequence[tuple[slice, Tensor, Tensor, Tensor | None]]) -> Tensor:
    """Soft-max attention of scaled queries, M a multiple of four; gradients flow.

    Args:
        blocks: in order of their positions, (queries that see some of it, key_ZXC, value_ZXC, is_hidden_ZMX). Each
            query sees a key.
    """
    largest_ZM1 = q_ZMC.new_full((*q_ZMC.shape[:2], 1), -torch.inf)
    scores = []
    for some, key_ZXC, _, is_hidden_ZMX in blocks:
        score_ZMX = q_ZMC[:, some] @ key_ZXC.transpose(1, 2)
        if is_hidden_ZMX is not None:
            score_ZMX.masked_fill_(is_hidden_ZMX, -torch.inf)
        largest_ZM1[:, some] = torch.maximum(largest_ZM1[:, some], score_ZMX.detach().amax(-1, keepdim=True))
        scores.append(score_ZMX)
    sum_ZM1, o_ZMC = torch.zeros_like(largest_ZM1), torch.zeros_like(q_ZMC)
    for (some, _, value_ZXC, _), score_ZMX in zip(blocks, scores, strict=True):
        weight_ZMX = score_ZMX.sub_(largest_ZM1[:, some]).exp_()
        sum_ZM1[:, some] += weight_ZMX.sum(-1, keepdim=True)
        o_ZMC[:, some].baddbmm_(weight_ZMX, value_ZXC)
    return o_ZMC / sum_ZM1
