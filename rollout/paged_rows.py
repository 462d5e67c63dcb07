"""Attention over pages on a GPU.

Rows that decode go to the paged kernel: siblings read the whole pages of their context once for all of them, then each
its own. Chunks are gathered from their pages for torch's attention. With batch invariance a chunk's tokens are rows of
the kernel too: what a row computes there depends on its own tokens and prefix alone.

    T tokens of a step   B rows   M pages of a row   G groups of consecutive rows   L pages of a prefix
    H query heads   K key/value heads   P tokens of a page   C head width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from kernels.jit import cdiv, next_power_of_2
from kernels.paged_attention import SharedPrefix, paged_attention
from rollout.kv_cache import KvCache
from rollout.scheduler import Scheduler
from rollout.steps import Chunk, Sample, Step

INVARIANT_GROUP = 16  # siblings of a query tile, where its shape must not depend on how many there are


@dataclass(frozen=True, slots=True)
class Rows:
    """What each row reads: the pages of a prefix that it shares with its neighbours, and pages behind it."""

    table_BM: np.ndarray
    length_B: np.ndarray  # tokens behind the prefix
    start_G: list[int]  # the first row of each group
    prefixes: list[Sequence[int]]  # pages, of each group

    @property
    def largest(self) -> int:
        """Rows of a group, at most."""
        return int(np.diff([*self.start_G, len(self.length_B)]).max())


def decoding_rows(step: Step, scheduler: Scheduler) -> Rows:
    P, node, start_G, prefixes = scheduler.pool.page_size, None, [], []
    for b, sample in enumerate(step.rows):
        if sample.request.node is not node:
            node = sample.request.node
            start_G.append(b)
            prefixes.append(node.table(P)[: sample.first_block])
    place_3B = np.array([(s.row, s.own_start + s.num_computed, s.first_block) for s in step.rows]).T
    length_B = place_3B[1] + step.ahead + 1 - place_3B[2] * scheduler.block_size
    return Rows(scheduler.tables[place_3B[0], : cdiv(int(length_B.max()), P)], length_B, start_G, prefixes)


def chunk_rows(chunk: Chunk, scheduler: Scheduler) -> Rows:
    """A sample's tokens are read as when they were decoded first; a context's tokens share nothing."""
    num_shared = chunk.holder.first_block if isinstance(chunk.holder, Sample) else 0
    length_B = chunk.start - num_shared * scheduler.block_size + np.arange(1, len(chunk.tokens) + 1)
    table_BM = np.tile(np.array(chunk.table[num_shared:]), (len(length_B), 1))
    return Rows(table_BM, length_B, list(range(len(length_B))), [chunk.table[:num_shared]] * len(length_B))


def joined(parts: Sequence[Rows]) -> Rows:
    width = max(part.table_BM.shape[1] for part in parts)
    tables = [np.pad(part.table_BM, ((0, 0), (0, width - part.table_BM.shape[1]))) for part in parts]
    firsts = np.cumsum([0, *(len(part.length_B) for part in parts)])
    return Rows(
        np.concatenate(tables),
        np.concatenate([part.length_B for part in parts]),
        [first + start for first, part in zip(firsts.tolist(), parts, strict=False) for start in part.start_G],
        [prefix for part in parts for prefix in part.prefixes],
    )


@dataclass(slots=True)
class RowTables:
    """What `paged_attention` takes. Rows and groups that only fill up have no tokens."""

    table_BM: Tensor
    length_B: Tensor
    prefix: SharedPrefix

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        prefix = self.prefix
        return self.table_BM, self.length_B, prefix.table_GL, prefix.length_G, prefix.row_start_G1

    def to(self, device: torch.device) -> RowTables:
        table_BM, length_B, *prefix = (x.to(device) for x in self.tensors)
        return RowTables(table_BM, length_B, SharedPrefix(*prefix, self.prefix.max_rows))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of tables that are filled up: for a graph, whose shapes cannot change."""

    B: int
    M: int
    G: int
    L: int
    group: int  # rows of a group, at most

    @classmethod
    def of(cls, rows: Rows, group: int | None = None) -> Sizes:
        """Just as large as they are, but for the rows of a group.

        Args:
            group: rows of a group, at most; if None, a power of two that is enough for those that share a prefix.
        """
        longest, num_groups = max(1, *map(len, rows.prefixes)), len(_starts(rows, group or len(rows.length_B)))
        # A kernel is compiled for each size of groups: few of them.
        group = group or max(8, next_power_of_2(rows.largest))
        return cls(len(rows.length_B), rows.table_BM.shape[1], num_groups, longest, group)

    @classmethod
    def rounded(cls, rows: Rows) -> Sizes:
        """Sizes that many steps share, so that few graphs are recorded; what fills up is skipped by the kernels."""
        few = cls.of(rows)
        B = max(8, next_power_of_2(few.B)) if few.B <= 64 else cdiv(few.B, 32) * 32
        M, L = (max(8, 4 ** cdiv(next_power_of_2(pages).bit_length() - 1, 2)) for pages in (few.M, few.L))
        return cls(B, M, B, L, few.group)  # groups enough for rows that share nothing


def _starts(rows: Rows, most: int) -> list[tuple[int, Sequence[int]]]:
    """(first row, prefix) of the groups, of at most `most` rows each."""
    ends = [*rows.start_G[1:], len(rows.length_B)]
    return [
        (b, prefix)
        for start, end, prefix in zip(rows.start_G, ends, rows.prefixes, strict=True)
        for b in range(start, end, most)
    ]


def host_tables(rows: Rows, page_size: int, sizes: Sizes) -> RowTables:
    """The tables of `rows`, filled up to `sizes`."""
    (B, M), starts = rows.table_BM.shape, _starts(rows, sizes.group)
    table_BM, length_B = np.zeros((sizes.B, sizes.M), dtype=np.int32), np.zeros(sizes.B, dtype=np.int32)
    table_GL, length_G = np.zeros((sizes.G, sizes.L), dtype=np.int32), np.zeros(sizes.G, dtype=np.int32)
    table_BM[:B, :M], length_B[:B] = rows.table_BM, rows.length_B
    for g, (_, prefix) in enumerate(starts):
        table_GL[g, : len(prefix)], length_G[g] = prefix, len(prefix) * page_size
    starts = [*(b for b, _ in starts), *range(B, sizes.B, sizes.group)]
    row_start_G1 = np.full(sizes.G + 1, sizes.B, dtype=np.int32)
    row_start_G1[: len(starts)] = starts
    tensors = (torch.from_numpy(x) for x in (table_GL, length_G, row_start_G1))
    return RowTables(torch.from_numpy(table_BM), torch.from_numpy(length_B), SharedPrefix(*tensors, sizes.group))


class PagedAttention:
    """The `attend` of one step: writes its keys and values, then lets each token see those up to itself."""

    def __init__(
        self, cache: KvCache, step: Step, scheduler: Scheduler, page_T: Tensor, slot_T: Tensor, batch_invariant: bool
    ) -> None:
        self._cache, self._page_T, self._slot_T = cache, page_T, slot_T
        parts = [decoding_rows(step, scheduler)] if step.rows else []
        self._chunks: list[tuple[int, Chunk]] = []
        if batch_invariant:
            parts += [chunk_rows(chunk, scheduler) for chunk in step.chunks]
        else:
            first = len(step.rows)
            for chunk in step.chunks:
                self._chunks.append((first, chunk))
                first += len(chunk.tokens)
        self._num_rows, self._tables = 0, None
        if parts:
            rows = joined(parts)
            self._num_rows = len(rows.length_B)
            sizes = Sizes.of(rows, INVARIANT_GROUP if batch_invariant else None)
            self._tables = host_tables(rows, cache.page_size, sizes).to(page_T.device)

    def __call__(self, layer: int, q_1THC: Tensor, k_1TKC: Tensor, v_1TKC: Tensor) -> Tensor:
        self._cache.write(layer, self._page_T, self._slot_T, k_1TKC[0], v_1TKC[0])
        pages = self._cache.layer(layer)
        o_1THC = torch.zeros_like(q_1THC)
        if self._tables is not None:
            o_1THC[0, : self._num_rows] = attend_pages(q_1THC[0, : self._num_rows], *pages, self._tables)
        for first, chunk in self._chunks:
            some = slice(first, first + len(chunk.tokens))
            o_1THC[:, some] = self._attend_chunk(chunk, q_1THC[:, some], *pages)
        return o_1THC

    def _attend_chunk(self, chunk: Chunk, q_1THC: Tensor, keys_NKPC: Tensor, values_NKPC: Tensor) -> Tensor:
        page_M = torch.tensor(chunk.table, device=q_1THC.device)
        end = chunk.start + len(chunk.tokens)
        k_1KXC, v_1KXC = (
            pages_NKPC[page_M].transpose(0, 1).flatten(1, 2)[None, :, :end] for pages_NKPC in (keys_NKPC, values_NKPC)
        )
        mask = causal_lower_right(len(chunk.tokens), end)
        o_1HTC = F.scaled_dot_product_attention(q_1THC.transpose(1, 2), k_1KXC, v_1KXC, mask, enable_gqa=True)
        return o_1HTC.transpose(1, 2)


def attend_pages(q_BHC: Tensor, keys_NKPC: Tensor, values_NKPC: Tensor, tables: RowTables) -> Tensor:
    pages = keys_NKPC.transpose(1, 2), values_NKPC.transpose(1, 2)
    return paged_attention(q_BHC, *pages, tables.table_BM, tables.length_B, prefix=tables.prefix, check=False)
