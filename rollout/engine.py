"""The rollout engine: n completions of each context, the context prefilled once.

Contexts go through in waves. What a request is batched with never changes its noise, which is counter-based. With
`batch_invariant` (the default on CPU) it does not change its arithmetic either: a wave holds contexts of one padded
length, so a context is padded by its own length alone; its samples keep their places beside one another, and the rows
of a matrix product are many enough (`ROWS`) for the CPU to use one kernel. So in float32 tokens and log-probabilities
are the same bits. (With more than two threads SiLU may round the ends of their shares differently, in the last bit.)
Without it, contexts of any length share a wave: fewer and fuller waves, tokens equal to rounding.

    P contexts   R rows, at first P·n   L padded context length   D model width   V vocabulary
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import gcd
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kernels.linear_sample import ROWS, linear_sample
from kernels.philox import stream_seed
from kernels.settings import Draw
from rollout.cache import WaveCache
from rollout.decoder import Decoder, Readout
from rollout.params import Completion, SamplingParams
from rollout.rows import Rows
from rollout.stops import StopFinder
from rollout.weights import load_decoder

Request = tuple[list[int], SamplingParams]

_BUCKET = 32  # contexts are padded to a multiple of this
_PREFILL_TOKENS = 4096  # in one forward pass: its intermediates stay small, and their memory is used again
_COMPACT_BELOW = 0.75  # share of rows still open below which the others are dropped from the cache


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory; never asks a hub."""
    if not any((Path(path) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{path}: no tokenizer.json; a model directory holds its tokenizer")
    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more special on a file it cannot read
        raise ValueError(f"{path}: the tokenizer cannot be read: {error}") from error


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Control tokens of the chat format, the end token among them: whichever is sampled ends a completion."""
    ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(ids | ({tokenizer.eos_token_id} - {None}))


class Engine:
    """Draws completions from a decoder. The decoder's weights may change in place between calls of `generate`."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerBase,
        max_rows: int = 512,
        batch_invariant: bool | None = None,  # None: on CPU
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} must be at least 1")
        self.decoder, self.tokenizer, self.max_rows = decoder, tokenizer, max_rows
        self.device = next(decoder.parameters()).device
        self.batch_invariant = self.device.type == "cpu" if batch_invariant is None else batch_invariant
        self._special_token_ids = special_token_ids(tokenizer)
        self._stops = StopFinder(tokenizer, decoder.config.vocab_size)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", max_rows: int = 512
    ) -> Engine:
        return cls(load_decoder(path, dtype, device), load_tokenizer(path), max_rows)

    def generate(
        self,
        contexts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        progress: str = "",
    ) -> list[list[Completion]]:
        """Draws `params.n` completions of every context.

        Args:
            contexts: texts (tokenized as they are) or token ids.
            params: one for all, or one per context. One for all gives context i a seed derived from (seed, i), so
                that equal contexts differ; callers that need a draw to be independent of the list pass their own.
            progress: label of a progress bar over completions; none if empty.

        Returns:
            For each context, in order, its n completions.

        Raises:
            ValueError: an empty context, one that leaves no room for max_tokens, or a wrong number of params.
        """
        requests = self._requests(contexts, params)
        finished: list[list[Completion]] = [[] for _ in requests]
        total = sum(request.n for _, request in requests)
        with tqdm(total=total, desc=progress, unit="judgment", disable=not progress) as bar:
            for wave in self._waves(requests):
                with torch.inference_mode():
                    for index, completions in zip(wave, self._run_wave([requests[i] for i in wave]), strict=True):
                        finished[index] = completions
                bar.update(sum(requests[i][1].n for i in wave))
        return finished

    def _requests(self, contexts, params) -> list[Request]:
        if isinstance(params, SamplingParams):
            params = [replace(params, seed=stream_seed(params.seed, i)) for i in range(len(contexts))]
        if len(params) != len(contexts):
            raise ValueError(f"{len(contexts)} contexts but {len(params)} sampling params")
        requests = []
        limit, V = self.decoder.config.max_position_embeddings, self.decoder.config.vocab_size
        for index, (context, request) in enumerate(zip(contexts, params, strict=True)):
            token_ids = (
                self.tokenizer.encode(context, add_special_tokens=False) if isinstance(context, str) else context
            )
            if not token_ids:
                raise ValueError(f"context {index} is empty")
            if not 0 <= min(token_ids) <= max(token_ids) < V:
                wrong = next(token for token in token_ids if not 0 <= token < V)
                raise ValueError(f"context {index} has token {wrong}; the model has {V} tokens")
            if len(token_ids) + request.max_tokens > limit:
                raise ValueError(
                    f"context {index} has {len(token_ids)} tokens and asks for {request.max_tokens} more; "
                    f"the model's limit is {limit}"
                )
            requests.append((list(token_ids), request))
        return requests

    def _waves(self, requests: list[Request]) -> Iterator[list[int]]:
        """Splits requests into waves of one sampling setting; longest contexts first, which set the padded length."""
        alike: dict[tuple, list[int]] = defaultdict(list)
        for index in sorted(range(len(requests)), key=lambda i: -len(requests[i][0])):
            context, params = requests[index]
            alike[_padded(len(context)) if self.batch_invariant else 0, replace(params, seed=0)].append(index)
        for (_, params), indices in alike.items():
            unit = self._contexts_at_once(params.n)
            contexts_per_wave = max(unit, self.max_rows // params.n // unit * unit)
            for start in range(0, len(indices), contexts_per_wave):
                yield indices[start : start + contexts_per_wave]

    def _run_wave(self, requests: list[Request]) -> list[list[Completion]]:
        params = requests[0][1]
        # Copies of the last request fill up the rows; they count as finished from the start.
        wave = requests + [requests[-1]] * (-len(requests) % self._contexts_at_once(params.n))
        end_token_ids = [*params.stop_token_ids, *self._special_token_ids]
        rows = Rows(
            [len(context) for context, _ in wave], [request.seed for _, request in wave], params, end_token_ids,
            self._stops,
        )  # fmt: skip
        rows.is_finished_R[len(requests) * params.n :] = True
        row_R = np.arange(len(wave) * params.n)
        cache, drawn = self._prefill([context for context, _ in wave], params.n, _sampler(rows, row_R, params))
        rows.append(drawn, row_R)
        while rows.num_steps < params.max_tokens and not rows.is_finished_R.all():
            kept_R = _rows_to_keep(rows, row_R)
            if len(kept_R) < len(row_R):
                cache.keep(torch.from_numpy(kept_R).to(self.device))
                row_R = row_R[kept_R]
            token_R1 = self._column(rows.last_token_R[row_R])
            position_R1 = self._column(rows.length_R[row_R] + rows.num_steps - 1)
            drawn = self.decoder(token_R1, position_R1, cache.decode, _sampler(rows, row_R, params))
            cache.num_own += 1
            rows.append(drawn, row_R)
        return rows.completions(self.tokenizer, len(requests))

    def _prefill(self, contexts: list[list[int]], n: int, sampler: Readout) -> tuple[WaveCache, Draw]:
        """The cache of these contexts, and the first tokens of n rows of each."""
        length_P = torch.tensor([len(context) for context in contexts], device=self.device)
        token_PL = torch.zeros(len(contexts), _padded(len(contexts[0])), dtype=torch.int64)
        for row_L, context in zip(token_PL, contexts, strict=True):
            row_L[: len(context)] = torch.tensor(context)
        token_PL = token_PL.to(self.device)
        position_PL = torch.arange(token_PL.shape[1], device=self.device).expand_as(token_PL)
        cache = WaveCache(length_P, token_PL.shape[1], n)
        last_PD: list[Tensor] = []

        def readout(hidden_PLD: Tensor, head_VD: Tensor) -> Draw | None:
            start = sum(map(len, last_PD))
            last_P = length_P[start : start + len(hidden_PLD)] - 1
            last_PD.append(hidden_PLD[torch.arange(len(last_P), device=self.device), last_P])
            if start + len(last_P) == len(contexts):
                return sampler(torch.cat(last_PD).repeat_interleave(n, 0)[:, None], head_VD)
            return None

        step = max(1, _PREFILL_TOKENS // token_PL.shape[1])
        for start in range(0, len(contexts), step):
            some = slice(start, start + step)
            drawn = self.decoder(token_PL[some], position_PL[some], cache.prefill(start), readout)
        return cache, drawn

    def _contexts_at_once(self, n: int) -> int:
        """Contexts come in multiples of this; with batch invariance, their rows in multiples of `ROWS`."""
        return ROWS // gcd(ROWS, n) if self.batch_invariant else 1

    def _column(self, x_R: np.ndarray) -> Tensor:
        return torch.from_numpy(x_R)[:, None].to(self.device)


def _rows_to_keep(rows: Rows, row_R: np.ndarray) -> np.ndarray:
    """Indices into `row_R`: all of them, or if few enough are open, the open ones filled up with finished ones."""
    is_finished_R = rows.is_finished_R[row_R]
    open_R = np.flatnonzero(~is_finished_R)
    num_kept = -(-len(open_R) // ROWS) * ROWS
    if num_kept > _COMPACT_BELOW * len(row_R):
        return np.arange(len(row_R))
    finished_R = np.flatnonzero(is_finished_R)
    # First those whose context stays anyway.
    has_open_R = np.isin(rows.context_R[row_R[finished_R]], rows.context_R[row_R[open_R]])
    filler_R = finished_R[np.argsort(~has_open_R, kind="stable")][: num_kept - len(open_R)]
    return np.sort(np.concatenate((open_R, filler_R)))


def _sampler(rows: Rows, row_R: np.ndarray, params: SamplingParams) -> Readout:
    """The readout that draws the next token of these rows."""

    def readout(hidden_R1D: Tensor, head_VD: Tensor) -> Draw:
        return linear_sample(
            hidden_R1D[:, 0], head_VD, rows.seed_R[row_R], rows.sample_R[row_R], rows.num_steps,
            params.temperature, params.top_k, params.top_p, params.min_p,
        )  # fmt: skip

    return readout


def _padded(length: int) -> int:
    return -(-length // _BUCKET) * _BUCKET
