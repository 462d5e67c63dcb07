"""Runs a step: tokens in, keys and values written, one token drawn for each sample that is due.

T tokens of a step   B samples that draw   D model width   V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.fused import rows_alike
from kernels.linear_sample import linear_sample
from kernels.matmul import ROWS, PackedWeights, float32_logits
from kernels.sample import sample as sample_logits
from kernels.upload import upload
from rollout.block_attention import BlockAttention
from rollout.decode_graphs import DecodeGraphs
from rollout.decoder import Decoder
from rollout.drawn import Drawn, Pending, Readback, packed
from rollout.kv_cache import KvCache
from rollout.paged_rows import PagedAttention
from rollout.scheduler import Scheduler
from rollout.steps import Sample, Step

_FEW = 64  # tokens of a step


class Runner:
    """
    Args:
        scheduler: whose steps are run; its tables are read.
        batch_invariant: products have shapes whose rows do not depend on one another: on a CPU a multiple of `ROWS`
            and `rows_alike` rows, on a GPU, whose libraries choose by shape, always the same number.
        is_paged: attention by the paged kernel, not by blocks.
        graphs: replay steps that only decode, on a GPU.
    """

    def __init__(
        self, decoder: Decoder, cache: KvCache, scheduler: Scheduler, *,
        batch_invariant: bool, is_paged: bool, graphs: bool,
    ) -> None:  # fmt: skip
        self._decoder, self._cache, self._scheduler = decoder, cache, scheduler
        self._device = next(decoder.parameters()).device
        self._batch_invariant, self._is_paged = batch_invariant, is_paged
        self._heads = decoder.config.num_attention_heads, decoder.config.num_key_value_heads
        self._multiple = 1
        if batch_invariant:
            alike = math.lcm(ROWS, rows_alike(decoder.config.intermediate_size))
            self._multiple = alike if self._device.type == "cpu" else scheduler.max_step_tokens
        self._packed = PackedWeights()
        self._graphs = DecodeGraphs(decoder, cache, scheduler) if graphs and is_paged and not batch_invariant else None

    def release(self) -> None:
        """Gives the memory of the cache back, and what is tied to its place."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # a step may be running that nobody waited for
        if self._graphs is not None:
            self._graphs.clear()
        self._cache.release()
        self.forget_weights()
        if self._device.type == "cuda":
            # Kept by torch, that one piece would be cut up for whatever comes next; if any of it stays (AdamW's
            # moments), the keys and values of the next rollout do not fit there, nor beside it.
            torch.cuda.empty_cache()

    def forget_weights(self) -> None:
        """What was made of weights that have changed."""
        self._packed.clear()

    def launch(self, step: Step, before: Pending | None = None) -> Pending:
        """Begins a step. Steps that are replayed run on by themselves, the others until they have drawn.

        Args:
            before: the replayed step before it, of a step that was planned ahead.
        """
        self._cache.acquire()
        if step.copies:
            self._cache.copy(step.copies)
        tokens_4T = self._tokens(step)
        if self._graphs is not None and self._graphs.takes(step):
            token_B = None if before is None else before.token_B
            return self._graphs.launch(step, tokens_4T[:3, : step.num_tokens], token_B)  # it fills up by itself
        assert before is None, "a step that is not replayed needs its tokens on the host"
        token_T, position_T, page_T, slot_T = self._upload(tokens_4T)
        last_B, samples = self._drawing(step)
        if self._is_paged:
            attend = PagedAttention(self._cache, step, self._scheduler, page_T, slot_T, self._batch_invariant)
        else:
            attend = BlockAttention(self._cache, step, self._scheduler.tables, page_T, slot_T, self._heads)

        def readout(hidden_1TD: Tensor, head_VD: Tensor) -> Drawn:
            if not samples:
                return Drawn.nothing()
            return _draw(hidden_1TD[0, self._upload(self._padded(last_B))], head_VD, samples)

        with self._packed.in_use():
            return Pending(step, samples, self._decoder(token_T[None], position_T[None], attend, readout))

    def _tokens(self, step: Step) -> np.ndarray:
        """(token, position, page, slot) of the step's rows and then of its chunks; padding writes to page 0.

        Of a step that was planned ahead, tokens are those before the ones that nobody knows yet.
        """
        P, block = self._cache.page_size, self._scheduler.block_size
        rows = step.rows
        token_T = np.array([s.token_ids[-1] if s.token_ids else s.request.context[-1] for s in rows], dtype=np.int64)
        position_T = np.array([s.own_start + s.num_computed for s in rows], dtype=np.int64) + step.ahead
        row_T = np.array([s.row for s in rows], dtype=np.int64)
        first_T = np.array([s.first_block for s in rows], dtype=np.int64) * (block // P)
        page_T = self._scheduler.tables[row_T, position_T // P - first_T]
        parts = [(token_T, position_T, page_T)]
        for chunk in step.chunks:
            position_T = np.arange(chunk.start, chunk.start + len(chunk.tokens))
            parts.append((np.array(chunk.tokens), position_T, np.array(chunk.table)[position_T // P]))
        token_T, position_T, page_T = (self._padded(np.concatenate(x)) for x in zip(*parts, strict=True))
        page_T[step.num_tokens :] = 0
        return np.stack([token_T, position_T, page_T, position_T % P])

    def _drawing(self, step: Step) -> tuple[np.ndarray, list[Sample]]:
        """The places of the last tokens of samples, and the samples."""
        last_B, samples, end = list(range(len(step.rows))), list(step.rows), len(step.rows)
        for chunk in step.chunks:
            end += len(chunk.tokens)
            holder = chunk.holder
            if isinstance(holder, Sample) and holder.num_computed + len(chunk.tokens) == holder.num_own:
                last_B.append(end - 1)
                samples.append(holder)
        return np.array(last_B, dtype=np.int64), samples

    def _padded(self, x_T: np.ndarray) -> np.ndarray:
        """Filled up with its first entry. Few lengths are better than short ones: see `PackedWeights`."""
        multiple = self._multiple if len(x_T) <= _FEW else max(self._multiple, 16)
        return np.pad(x_T, (0, -len(x_T) % multiple), constant_values=x_T[0])

    def _upload(self, x: np.ndarray) -> Tensor:
        return upload(x, self._device)


def _draw(hidden_BD: Tensor, head_VD: Tensor, samples: Sequence[Sample]) -> Drawn:
    """The next token of each sample; rows of `hidden` behind them are padding."""
    rows = [*samples, *[samples[0]] * (len(hidden_BD) - len(samples))]
    params = [sample.request.params for sample in rows]
    arguments = (
        np.array([p.seed for p in params], dtype=np.uint64),
        np.array([sample.index for sample in rows], dtype=np.uint64),
        np.array([len(sample.token_ids) for sample in rows], dtype=np.uint64),
        np.array([p.temperature for p in params]),
        np.array([p.top_k for p in params]),
        np.array([p.top_p for p in params]),
        np.array([p.min_p for p in params]),
    )
    drawn = Readback(packed(linear_sample(hidden_BD, head_VD, *arguments, check=False))).wait(len(samples))
    masked = [place for place in range(len(samples)) if params[place].grammar is not None]
    if masked:
        _redraw_well_formed_(drawn, hidden_BD, head_VD, rows, arguments, masked)
    return drawn


def _redraw_well_formed_(
    drawn: Drawn, hidden_BD: Tensor, head_VD: Tensor, rows: Sequence[Sample], arguments: tuple, places: list[int]
) -> None:
    """Draws these places again, from the tokens that their grammars allow. Entropies are of the policy and stay."""
    # On a GPU as many as are drawn without: with batch invariance that is always the same number.
    num_padding = len(hidden_BD) - len(places) if hidden_BD.is_cuda else -len(places) % ROWS
    places_B = np.array(places + [places[0]] * num_padding)
    allowed_BV = np.stack(
        [
            params.grammar.allowed_V(sample.grammar_state, params.max_tokens - len(sample.token_ids))
            for sample in (rows[place] for place in places_B)
            for params in [sample.request.params]
        ]
    )
    logits_BV = float32_logits(hidden_BD[torch.from_numpy(places_B).to(hidden_BD.device)], head_VD)
    is_allowed_BV = torch.from_numpy(allowed_BV).to(logits_BV.device)
    draw = sample_logits(
        logits_BV.masked_fill(~is_allowed_BV, -torch.inf), *(argument_B[places_B] for argument_B in arguments)
    )
    logit_B = logits_BV.gather(-1, draw.token_B[:, None])[:, 0]
    logprob_B = (logit_B - logits_BV.logsumexp(-1)).clamp(max=0)
    num = len(places)
    drawn.token_B[places] = draw.token_B[:num].cpu().numpy()
    drawn.logprob_B[places] = logprob_B[:num].cpu().numpy()
    drawn.drawn_logprob_B[places] = draw.drawn_logprob_B[:num].cpu().numpy()
