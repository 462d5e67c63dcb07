"""The graphs that replay a decode step on a GPU.

A step that is replayed is launched in a moment and runs on by itself. So the next one can be launched while it runs,
with the tokens that it draws as inputs, which never come to the host in between: everything is in the order of one
stream, and the device does not wait for the host.

    B rows   M pages of a row   G groups of consecutive rows   L pages of a prefix
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch import Tensor

from kernels.linear_sample import linear_sample
from kernels.paged_attention import SharedPrefix
from kernels.settings import Draw
from rollout.decoder import Decoder
from rollout.drawn import Pending, Readback, packed
from rollout.kv_cache import KvCache
from rollout.paged_rows import RowTables, Sizes, attend_pages, decoding_rows, host_tables
from rollout.scheduler import Scheduler
from rollout.steps import Step

_NUM_TEMPERATURES = 4  # whose graphs are kept; a server's clients name any

# (tokens drawn, the whole draw packed), at places where the next replay of any graph may write
Replay = Callable[[], tuple[Tensor, Tensor]]


class DecodeGraphs:
    """Replays decode steps: rows without chunks, drawn at one temperature without filters.

    A graph is recorded for each set of sizes when it first comes up at a temperature. Its inputs lie at fixed places;
    weights and pages change in place. Without CUDA the same steps run on the same inputs, unrecorded (for tests).
    """

    def __init__(self, decoder: Decoder, cache: KvCache, scheduler: Scheduler) -> None:
        self._decoder, self._cache, self._scheduler = decoder, cache, scheduler
        self._device = next(decoder.parameters()).device
        self._recorded: dict[float, dict[Sizes, tuple[_Inputs, Replay]]] = {}  # by temperature, the latest last
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

    def launch(self, step: Step, tokens_3T: np.ndarray, before_B: Tensor | None) -> Pending:
        """Begins a step; rows behind its own fill up.

        Args:
            tokens_3T: (token, position, page) of its rows.
            before_B: what the step before draws, if this one was planned ahead: tokens of its rows.
        """
        rows = decoding_rows(step, self._scheduler)
        sizes = Sizes.rounded(rows)
        temperature = step.rows[0].request.params.temperature
        words = [
            np.array([of(sample) for sample in step.rows], dtype=np.uint64).view(np.int64)
            for of in (lambda s: s.request.params.seed, lambda s: s.index, lambda s: len(s.token_ids) + step.ahead)
        ]
        place_B = np.array(step.places or [0] * len(step.rows))
        recorded = self._recorded[temperature] = self._recorded.pop(temperature, {})
        if len(self._recorded) > _NUM_TEMPERATURES:  # the first has ended: no more than two steps run at a time
            del self._recorded[next(iter(self._recorded))]
        is_new = sizes not in recorded
        inputs = _Inputs(sizes, self._device) if is_new else recorded[sizes][0]
        inputs.fill(host_tables(rows, self._cache.page_size, sizes), np.stack([*tokens_3T, *words, place_B]))
        if before_B is not None:
            inputs.take_tokens(before_B, len(step.rows))
        if is_new:
            recorded[sizes] = inputs, self._record(inputs, temperature)
        token_B, packed_5B = recorded[sizes][1]()
        return Pending(step, step.rows, Readback(packed_5B), token_B)

    def _record(self, inputs: _Inputs, temperature: float) -> Replay:
        token_B, position_B, page_B, seed_B, sample_B, draw_B, _ = inputs.column_7B
        slot_B = torch.empty_like(position_B)

        def attend(layer: int, q_1BHC: Tensor, k_1BKC: Tensor, v_1BKC: Tensor) -> Tensor:
            self._cache.write(layer, page_B, slot_B, k_1BKC[0], v_1BKC[0])
            return attend_pages(q_1BHC[0], *self._cache.layer(layer), inputs.tables)[None]

        def readout(hidden_1BD: Tensor, head_VD: Tensor) -> Draw:
            return linear_sample(hidden_1BD[0], head_VD, seed_B, sample_B, draw_B, temperature, check=False)

        def run() -> tuple[Tensor, Tensor]:
            torch.remainder(position_B, self._cache.page_size, out=slot_B)
            draw = self._decoder(token_B[None], position_B[None], attend, readout)
            return draw.token_B, packed(draw)

        if self._device.type != "cuda":
            return run
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            run()  # compiles kernels and sets up libraries, which must not happen while recording
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # By default any call to CUDA that another thread makes (NCCL's, a trainer's that saves) would spoil it.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            drawn = run()
        self._pool = graph.pool()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return drawn

        return replay


class _Inputs:
    """A graph's inputs, one piece of memory, so that one copy brings them all.

    Columns: token, position, page; seed, sample and position of the draw; place in the step before.
    """

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        shapes = (sizes.B, sizes.M), (sizes.B,), (sizes.G, sizes.L), (sizes.G,), (sizes.G + 1,)
        parts = [14 * sizes.B, *map(prod, shapes)]  # in words of 32 bits
        self._on_device = torch.zeros(sum(parts), dtype=torch.int32, device=device)
        columns, *tables = self._on_device.split(parts)
        self.column_7B = columns.view(torch.int64).view(7, sizes.B)
        table_BM, length_B, *prefix = (x.view(shape) for x, shape in zip(tables, shapes, strict=True))
        self.tables = RowTables(table_BM, length_B, SharedPrefix(*prefix, sizes.group))

    def fill(self, tables: RowTables, rows_7B: np.ndarray) -> None:
        """Brings a step's inputs, behind what the device has to do before it."""
        column_7B = np.zeros(self.column_7B.shape, dtype=np.int64)  # what fills up writes to page 0
        column_7B[:, : rows_7B.shape[1]] = rows_7B
        # Memory of its own for each step, from torch's cache: the copy for the step before may not have begun.
        on_host = torch.empty(self._on_device.shape, dtype=torch.int32, pin_memory=self._on_device.is_cuda)
        columns = torch.from_numpy(column_7B)
        torch.cat([x.view(torch.int32).flatten() for x in (columns, *tables.tensors)], out=on_host)
        self._on_device.copy_(on_host, non_blocking=True)

    def take_tokens(self, before_B: Tensor, num: int) -> None:
        """The first `num` tokens from their places among those that the step before draws."""
        token_B, place_B = self.column_7B[0, :num], self.column_7B[6, :num]
        torch.index_select(before_B, 0, place_B, out=token_B)
        token_B.clamp_(min=0)  # a row that has no distribution draws -1; whoever reads it will say so
