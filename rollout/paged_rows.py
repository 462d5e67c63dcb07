"""Attention over pages on a GPU, and the graphs that replay a decode step.

Rows that decode go to the paged kernel: siblings read the whole pages of their context once for all of them, then each
its own. Chunks are gathered from their pages for torch's attention. With batch invariance a chunk's tokens are rows of
the kernel too: what a row computes there depends on its own tokens and prefix alone.

    T tokens of a step   B rows   M pages of a row   G groups of consecutive rows   L pages of a prefix
    H query heads   K key/value heads   P tokens of a page   C head width
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from kernels.jit import next_power_of_2
from kernels.linear_sample import linear_sample
from kernels.paged_attention import SharedPrefix, paged_attention
from kernels.settings import Draw
from rollout.decoder import Decoder
from rollout.kv_cache import KvCache
from rollout.scheduler import Chunk, Sample, Scheduler, Step

INVARIANT_GROUP = 16  # siblings of a query tile, where its shape must not depend on how many there are


@dataclass(frozen=True, slots=True)
class _Row:
    prefix: Sequence[int]  # pages, read by consecutive rows with the same object
    own: Sequence[int]  # pages behind the prefix
    num_own: int  # tokens


@dataclass(slots=True)
class RowTables:
    """What `paged_attention` takes, on the device. Rows and groups that only fill up have no tokens."""

    table_BM: Tensor
    length_B: Tensor
    prefix: SharedPrefix


class PagedAttention:
    """The `attend` of one step: writes its keys and values, then lets each token see those up to itself."""

    def __init__(
        self, cache: KvCache, step: Step, scheduler: Scheduler, page_T: Tensor, slot_T: Tensor, batch_invariant: bool
    ) -> None:
        self._cache, self._page_T, self._slot_T = cache, page_T, slot_T
        rows = list(_decoding_rows(step.rows, scheduler))
        self._chunks: list[tuple[int, Chunk]] = []
        if batch_invariant:
            for chunk in step.chunks:
                rows += _chunk_rows(chunk, scheduler)
        else:
            first = len(rows)
            for chunk in step.chunks:
                self._chunks.append((first, chunk))
                first += len(chunk.tokens)
        self._num_rows = len(rows)
        group = INVARIANT_GROUP if batch_invariant else None
        tables = host_tables(rows, cache.page_size, group) if rows else None
        self._tables = on_device(tables, page_T.device) if rows else None

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


def _decoding_rows(samples: Sequence[Sample], scheduler: Scheduler) -> Iterator[_Row]:
    node, prefix = None, []
    for sample in samples:
        if sample.request.node is not node:
            node = sample.request.node
            prefix = node.table(scheduler.pool.page_size)[: sample.first_block]
        num_own = sample.own_start + sample.num_computed + 1 - sample.first_block * scheduler.block_size
        yield _Row(prefix, scheduler.tables[sample.row, : scheduler.pool.num_for(num_own)], num_own)


def _chunk_rows(chunk: Chunk, scheduler: Scheduler) -> Iterator[_Row]:
    """A sample's tokens are read as when they were decoded first; a context's tokens share nothing."""
    num_shared = chunk.holder.first_block if isinstance(chunk.holder, Sample) else 0
    start = chunk.start - num_shared * scheduler.block_size
    for token in range(len(chunk.tokens)):
        num_own = start + token + 1
        own = chunk.table[num_shared : num_shared + scheduler.pool.num_for(num_own)]
        yield _Row(chunk.table[:num_shared], own, num_own)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of tables that are filled up: for a graph, whose shapes cannot change."""

    B: int
    M: int
    L: int
    group: int  # rows of a group, at most

    @classmethod
    def for_rows(cls, rows: Sequence[_Row], multiple: int) -> Sizes:
        """Sizes that many steps share."""
        starts = _group_starts(rows, len(rows))
        largest = max(end - start for start, end in zip(starts, [*starts[1:], len(rows)], strict=True))
        B = next_power_of_2(len(rows)) if len(rows) <= multiple else -(-len(rows) // multiple) * multiple
        own, prefix = max(len(row.own) for row in rows), max(len(row.prefix) for row in rows)
        return cls(B, next_power_of_2(own), next_power_of_2(max(1, prefix)), next_power_of_2(largest))


def _group_starts(rows: Sequence[_Row], most: int) -> list[int]:
    """Where rows begin that do not share the prefix of the row before, or of which `most` do."""
    starts: list[int] = []
    for b, row in enumerate(rows):
        if not starts or row.prefix is not rows[b - 1].prefix or b - starts[-1] == most:
            starts.append(b)
    return starts


def host_tables(rows: Sequence[_Row], page_size: int, group_size: int | None, sizes: Sizes | None = None) -> RowTables:
    """
    Args:
        group_size: rows of a group, at most; as many as share a prefix if None.
        sizes: what to fill up to.
    """
    starts = _group_starts(rows, group_size or len(rows))
    if sizes is None:
        largest = max(end - start for start, end in zip(starts, [*starts[1:], len(rows)], strict=True))
        most_pages = max(1, *(len(row.prefix) for row in rows)), max(len(row.own) for row in rows)
        sizes = Sizes(len(rows), most_pages[1], most_pages[0], group_size or largest)
        num_groups = len(starts)
    else:
        num_groups = sizes.B  # enough for rows that share nothing, and for those that fill up
    table_BM, length_B = np.zeros((sizes.B, sizes.M), dtype=np.int32), np.zeros(sizes.B, dtype=np.int32)
    table_GL, length_G = np.zeros((num_groups, sizes.L), dtype=np.int32), np.zeros(num_groups, dtype=np.int32)
    for b, row in enumerate(rows):
        table_BM[b, : len(row.own)], length_B[b] = row.own, row.num_own
    for g, start in enumerate(starts):
        prefix = rows[start].prefix
        table_GL[g, : len(prefix)], length_G[g] = prefix, len(prefix) * page_size
    starts = [*starts, *range(len(rows), sizes.B, sizes.group)]
    row_start_G1 = np.full(num_groups + 1, sizes.B, dtype=np.int32)
    row_start_G1[: len(starts)] = starts
    tensors = (torch.from_numpy(x) for x in (table_GL, length_G, row_start_G1))
    return RowTables(torch.from_numpy(table_BM), torch.from_numpy(length_B), SharedPrefix(*tensors, sizes.group))


def on_device(tables: RowTables, device: torch.device) -> RowTables:
    prefix = tables.prefix
    moved = (x.to(device) for x in (prefix.table_GL, prefix.length_G, prefix.row_start_G1))
    return RowTables(tables.table_BM.to(device), tables.length_B.to(device), SharedPrefix(*moved, prefix.max_rows))


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
        rows = list(_decoding_rows(step.rows, self._scheduler))
        sizes = Sizes.for_rows(rows, 16)
        temperature = step.rows[0].request.params.temperature
        tables = host_tables(rows, self._cache.page_size, None, sizes)
        words = [
            np.array([of(sample) for sample in step.rows], dtype=np.uint64).view(np.int64)
            for of in (lambda s: s.request.params.seed, lambda s: s.index, lambda s: len(s.token_ids))
        ]
        columns = [torch.from_numpy(x) for x in (token_T, position_T, page_T, *words)]
        if (sizes, temperature) not in self._recorded:
            column_6B = torch.zeros(6, sizes.B, dtype=torch.int64, device=self._device)
            inputs = _Inputs(on_device(tables, self._device), column_6B)
            inputs.fill(tables, columns)
            self._recorded[sizes, temperature] = inputs, self._record(inputs, temperature)
        inputs, replay = self._recorded[sizes, temperature]
        inputs.fill(tables, columns)
        return replay()

    def _record(self, inputs: _Inputs, temperature: float) -> Callable[[], Draw]:
        token_B, position_B, page_B, seed_B, sample_B, draw_B = inputs.column_6B
        slot_P = self._cache.page_size

        def attend(layer: int, q_1BHC: Tensor, k_1BKC: Tensor, v_1BKC: Tensor) -> Tensor:
            self._cache.write(layer, page_B, position_B % slot_P, k_1BKC[0], v_1BKC[0])
            return _paged(q_1BHC[0], *self._cache.layer(layer), inputs.tables)[None]

        def readout(hidden_1BD: Tensor, head_VD: Tensor) -> Draw:
            return linear_sample(hidden_1BD[0], head_VD, seed_B, sample_B, draw_B, temperature, check=False)

        def run() -> Draw:
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


@dataclass(slots=True)
class _Inputs:
    """A graph's inputs. Columns: token, position, page; seed, sample and position of the draw."""

    tables: RowTables
    column_6B: Tensor

    def fill(self, tables: RowTables, columns: list[Tensor]) -> None:
        ours, theirs = self.tables, tables
        pairs = [(ours.table_BM, theirs.table_BM), (ours.length_B, theirs.length_B)]
        pairs += [
            (getattr(ours.prefix, name), getattr(theirs.prefix, name))
            for name in ("table_GL", "length_G", "row_start_G1")
        ]
        column_6B = torch.zeros(self.column_6B.shape, dtype=torch.int64)  # what fills up writes to page 0
        for column_B, x_B in zip(column_6B, columns, strict=True):
            column_B[: len(x_B)] = x_B
        pairs.append((self.column_6B, column_6B))
        for mine, new in pairs:
            mine.copy_(new.pin_memory() if mine.is_cuda else new, non_blocking=True)
