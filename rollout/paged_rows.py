"""Attention over pages on a GPU, and the graphs that replay a decode step.

Rows that decode go to the paged kernel: siblings read the whole pages of their context once for all of them, then each
its own. Chunks are gathered from their pages for torch's attention. With batch invariance a chunk's tokens are rows of
the kernel too: what a row computes there depends on its own tokens and prefix alone.

    T tokens of a step   B rows   M pages of a row   G groups of consecutive rows   L pages of a prefix
    H query heads   K key/value heads   P tokens of a page   C head width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from kernels.jit import cdiv, next_power_of_2
from kernels.linear_sample import linear_sample
from kernels.paged_attention import SharedPrefix, paged_attention
from kernels.settings import Draw
from rollout.decoder import Decoder
from rollout.kv_cache import KvCache
from rollout.scheduler import Chunk, Sample, Scheduler, Step

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


def decoding_rows(samples: Sequence[Sample], scheduler: Scheduler) -> Rows:
    P, node, start_G, prefixes = scheduler.pool.page_size, None, [], []
    for b, sample in enumerate(samples):
        if sample.request.node is not node:
            node = sample.request.node
            start_G.append(b)
            prefixes.append(node.table(P)[: sample.first_block])
    place_3B = np.array([(s.row, s.own_start + s.num_computed + 1, s.first_block) for s in samples]).T
    length_B = place_3B[1] - place_3B[2] * scheduler.block_size
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
        """Just as large as they are.

        Args:
            group: rows of a group, at most; as many as share a prefix if None.
        """
        longest, num_groups = max(1, *map(len, rows.prefixes)), len(_starts(rows, group or len(rows.length_B)))
        return cls(len(rows.length_B), rows.table_BM.shape[1], num_groups, longest, group or rows.largest)

    @classmethod
    def rounded(cls, rows: Rows) -> Sizes:
        """Sizes that many steps share, so that few graphs are recorded; what fills up is skipped by the kernels."""
        few = cls.of(rows)
        B = max(8, next_power_of_2(few.B)) if few.B <= 64 else cdiv(few.B, 32) * 32
        M, L = (max(8, 4 ** cdiv(next_power_of_2(pages).bit_length() - 1, 2)) for pages in (few.M, few.L))
        return cls(B, M, B, L, max(8, next_power_of_2(few.group)))  # groups enough for rows that share nothing


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
        parts = [decoding_rows(step.rows, scheduler)] if step.rows else []
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
            o_1THC[0, : self._num_rows] = _paged(q_1THC[0, : self._num_rows], *pages, self._tables)
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


def _paged(q_BHC: Tensor, keys_NKPC: Tensor, values_NKPC: Tensor, tables: RowTables) -> Tensor:
    pages = keys_NKPC.transpose(1, 2), values_NKPC.transpose(1, 2)
    return paged_attention(q_BHC, *pages, tables.table_BM, tables.length_B, prefix=tables.prefix, check=False)


class DecodeGraphs:
    """Replays decode steps: rows without chunks, drawn at one temperature without filters.

    A graph is recorded for each set of sizes when it first comes up. Its inputs lie at fixed places; weights and pages
    change in place. Without CUDA the same steps run on the same inputs, unrecorded (for tests).
    """

    def __init__(self, decoder: Decoder, cache: KvCache, scheduler: Scheduler) -> None:
        self._decoder, self._cache, self._scheduler = decoder, cache, scheduler
        self._device = next(decoder.parameters()).device
        self._recorded: dict[tuple[Sizes, float], tuple[_Inputs, Callable[[], Draw]]] = {}
        self._pool = None  # of memory, that all graphs share: only one of them runs at a time

    def clear(self) -> None:
        """Forgets all graphs: the pages are about to lie elsewhere."""
        self._recorded.clear()
        self._pool = None

    def takes(self, step: Step) -> bool:
        if step.chunks:
            return False
        params = [sample.request.params for sample in step.rows]
        is_filtered = any(p.top_k or p.top_p < 1 or p.min_p or p.grammar is not None for p in params)
        return not is_filtered and len({p.temperature for p in params}) == 1

    def run(self, step: Step, token_T: np.ndarray, position_T: np.ndarray, page_T: np.ndarray) -> Draw:
        """What the step's rows draw; rows behind them fill up."""
        rows = decoding_rows(step.rows, self._scheduler)
        sizes = Sizes.rounded(rows)
        temperature = step.rows[0].request.params.temperature
        tables = host_tables(rows, self._cache.page_size, sizes)
        words = [
            np.array([of(sample) for sample in step.rows], dtype=np.uint64).view(np.int64)
            for of in (lambda s: s.request.params.seed, lambda s: s.index, lambda s: len(s.token_ids))
        ]
        columns = [torch.from_numpy(x) for x in (token_T, position_T, page_T, *words)]
        if (sizes, temperature) not in self._recorded:
            inputs = _Inputs(sizes, self._device)
            inputs.fill(tables, columns)
            self._recorded[sizes, temperature] = inputs, self._record(inputs, temperature)
        inputs, replay = self._recorded[sizes, temperature]
        inputs.fill(tables, columns)
        return replay()

    def _record(self, inputs: _Inputs, temperature: float) -> Callable[[], Draw]:
        token_B, position_B, page_B, seed_B, sample_B, draw_B = inputs.column_6B
        slot_B = torch.empty_like(position_B)

        def attend(layer: int, q_1BHC: Tensor, k_1BKC: Tensor, v_1BKC: Tensor) -> Tensor:
            self._cache.write(layer, page_B, slot_B, k_1BKC[0], v_1BKC[0])
            return _paged(q_1BHC[0], *self._cache.layer(layer), inputs.tables)[None]

        def readout(hidden_1BD: Tensor, head_VD: Tensor) -> Draw:
            return linear_sample(hidden_1BD[0], head_VD, seed_B, sample_B, draw_B, temperature, check=False)

        def run() -> Draw:
            torch.remainder(position_B, self._cache.page_size, out=slot_B)
            return self._decoder(token_B[None], position_B[None], attend, readout)

        if self._device.type != "cuda":
            return run
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            run()  # compiles kernels and sets up libraries, which must not happen while recording
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            draw = run()
        self._pool = graph.pool()

        def replay() -> Draw:
            graph.replay()
            return draw

        return replay


class _Inputs:
    """A graph's inputs, one piece of memory, so that one copy brings them all.

    Columns: token, position, page; seed, sample and position of the draw.
    """

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        shapes = (sizes.B, sizes.M), (sizes.B,), (sizes.G, sizes.L), (sizes.G,), (sizes.G + 1,)
        parts = [12 * sizes.B, *map(prod, shapes)]  # in words of 32 bits
        self._on_device = torch.zeros(sum(parts), dtype=torch.int32, device=device)
        self._on_host = torch.zeros(sum(parts), dtype=torch.int32, pin_memory=device.type == "cuda")
        columns, *tables = self._on_device.split(parts)
        self.column_6B = columns.view(torch.int64).view(6, sizes.B)
        table_BM, length_B, *prefix = (x.view(shape) for x, shape in zip(tables, shapes, strict=True))
        self.tables = RowTables(table_BM, length_B, SharedPrefix(*prefix, sizes.group))

    def fill(self, tables: RowTables, columns: list[Tensor]) -> None:
        """The step before has ended: its draws are on the host."""
        column_6B = torch.zeros(self.column_6B.shape, dtype=torch.int64)  # what fills up writes to page 0
        for column_B, x_B in zip(column_6B, columns, strict=True):
            column_B[: len(x_B)] = x_B
        torch.cat([x.view(torch.int32).flatten() for x in (column_6B, *tables.tensors)], out=self._on_host)
        self._on_device.copy_(self._on_host, non_blocking=True)
