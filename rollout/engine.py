"""The rollout engine: n completions of each context, the context prefilled once.

Contexts go through in waves of equal padded length. A request's arithmetic has the same shapes whatever it is batched
with (prefix padded by its own length, at least `_MIN_ROWS` rows in every matrix product, one row after another
elsewhere), and its noise is counter-based; so on CPU in float32 its tokens do not depend on its neighbours.

    P contexts   R = P·n rows   L padded context length   V vocabulary
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kernels.sample import Draw, sample
from rollout.cache import WaveCache
from rollout.decoder import Decoder
from rollout.params import Completion, SamplingParams
from rollout.weights import load_decoder

_BUCKET = 32  # contexts are padded to a multiple of this
_MIN_ROWS = 16  # below this, CPU matrix products choose other kernels, which round differently


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory; never asks a hub."""
    if not any((Path(path) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{path}: no tokenizer.json; a model directory holds its tokenizer")
    return AutoTokenizer.from_pretrained(str(path), local_files_only=True)


class Engine:
    """Draws completions from a decoder. The decoder's weights may change in place between calls of `generate`."""

    def __init__(self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, max_rows: int = 512) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} must be at least 1")
        self.decoder, self.tokenizer, self.max_rows = decoder, tokenizer, max_rows
        self.device = next(decoder.parameters()).device
        self._stops = _StopFinder(tokenizer)

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
            params: one for all, or one per context. One for all gives context i the seed `seed + i` (mod 2^64), so
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

    def _requests(self, contexts, params) -> list[tuple[list[int], SamplingParams]]:
        if isinstance(params, SamplingParams):
            params = [replace(params, seed=(params.seed + i) % (1 << 64)) for i in range(len(contexts))]
        if len(params) != len(contexts):
            raise ValueError(f"{len(contexts)} contexts but {len(params)} sampling params")
        requests = []
        for index, (context, request) in enumerate(zip(contexts, params, strict=True)):
            token_ids = self.tokenizer.encode(context, add_special_tokens=False) if isinstance(context, str) else context
            limit = self.decoder.config.max_position_embeddings
            if not token_ids:
                raise ValueError(f"context {index} is empty")
            if len(token_ids) + request.max_tokens > limit:
                raise ValueError(
                    f"context {index} has {len(token_ids)} tokens and asks for {request.max_tokens} more; "
                    f"the model's limit is {limit}"
                )
            requests.append((list(token_ids), request))
        return requests

    def _waves(self, requests: list[tuple[list[int], SamplingParams]]) -> Iterator[list[int]]:
        """Splits requests into waves that share padded length and sampling settings; longest contexts first."""
        alike: dict[tuple, list[int]] = defaultdict(list)
        for index, (context, params) in enumerate(requests):
            alike[_padded(len(context)), replace(params, seed=0)].append(index)
        for (_, params), indices in sorted(alike.items(), key=lambda item: -item[0][0]):
            contexts_per_wave = max(1, self.max_rows // params.n)
            for start in range(0, len(indices), contexts_per_wave):
                yield indices[start : start + contexts_per_wave]

    def _run_wave(self, requests: list[tuple[list[int], SamplingParams]]) -> list[list[Completion]]:
        params = requests[0][1]
        n, num_requests = params.n, len(requests)
        num_contexts = max(num_requests, -(-_MIN_ROWS // n))
        padded = requests + [requests[-1]] * (num_contexts - num_requests)  # the extra ones are dropped at the end
        rows = _Rows(padded, params, self.tokenizer.eos_token_id, self._stops)
        cache, draw = self._prefill(padded, params, rows)
        kept_P = torch.arange(num_contexts)
        rows.append(draw, 0)
        for position in range(1, params.max_tokens):
            open_P = rows.open_contexts(num_requests)
            if not len(open_P):
                break
            if max(len(open_P), -(-_MIN_ROWS // n)) <= len(kept_P) // 2:
                kept_P = self._compact(cache, kept_P, open_P, n)
            rows_R = (kept_P[:, None] * n + torch.arange(n)).flatten().numpy()
            token_R1 = torch.from_numpy(rows.last_token[rows_R])[:, None].to(self.device)
            position_R1 = torch.from_numpy(rows.length[rows_R] + position - 1)[:, None].to(self.device)
            logits_RV = self.decoder(token_R1, position_R1, cache.decode, _last_logits)
            cache.num_own += 1
            rows.append(self._sample(logits_RV, rows, rows_R, position, params), position, rows_R)
        return rows.completions(self.tokenizer)[:num_requests]

    def _prefill(self, requests, params: SamplingParams, rows: _Rows) -> tuple[WaveCache, Draw]:
        length = [len(context) for context, _ in requests]
        token_PL = torch.zeros(len(requests), _padded(length[0]), dtype=torch.int64)
        for row, (context, _) in zip(token_PL, requests, strict=True):
            row[: len(context)] = torch.tensor(context)
        length_P = torch.tensor(length, device=self.device)
        position_PL = torch.arange(token_PL.shape[1], device=self.device).expand_as(token_PL)
        dtype = self.decoder.norm.weight.dtype
        cache = WaveCache(self.decoder.config, length_P, token_PL.shape[1], params.n, params.max_tokens, dtype)

        def last_logits(hidden_PLD: Tensor, head_VD: Tensor) -> Tensor:
            hidden_PD = hidden_PLD[torch.arange(len(length), device=self.device), length_P - 1]
            hidden_RD = hidden_PD.repeat_interleave(params.n, 0)  # n draws from one row: also at least _MIN_ROWS
            return F.linear(hidden_RD, head_VD)

        logits_RV = self.decoder(token_PL.to(self.device), position_PL, cache.prefill, last_logits)
        return cache, self._sample(logits_RV, rows, np.arange(len(requests) * params.n), 0, params)

    @staticmethod
    def _sample(logits_RV: Tensor, rows: _Rows, rows_R: np.ndarray, position: int, params: SamplingParams) -> Draw:
        return sample(
            logits_RV, rows.seed[rows_R], rows.sample[rows_R], np.uint64(position),
            params.temperature, params.top_k, params.top_p, params.min_p,
        )  # fmt: skip

    @staticmethod
    def _compact(cache: WaveCache, kept_P: Tensor, open_P: np.ndarray, n: int) -> Tensor:
        """Keeps the open contexts, topped up with closed ones to the least number of rows."""
        open_P = torch.from_numpy(open_P)
        missing = -(-_MIN_ROWS // n) - len(open_P)
        if missing > 0:
            closed_P = kept_P[~torch.isin(kept_P, open_P)]
            open_P = torch.cat((open_P, closed_P[:missing])).sort().values
        cache.keep(torch.searchsorted(kept_P, open_P))
        return open_P


class _Rows:
    """What has been sampled so far in a wave, row by row (context-major)."""

    def __init__(self, requests, params: SamplingParams, eos_token_id: int | None, stops: _StopFinder) -> None:
        n = params.n
        R = len(requests) * n
        self.params, self.stops = params, stops
        self.seed = np.repeat(np.array([request.seed for _, request in requests], dtype=np.uint64), n)
        self.sample = np.tile(np.arange(n, dtype=np.uint64), len(requests))
        self.length = np.repeat(np.array([len(context) for context, _ in requests]), n)
        self.last_token = np.zeros(R, dtype=np.int64)
        self.num_sampled = np.zeros(R, dtype=np.int64)
        self.is_finished = np.zeros(R, dtype=bool)
        self.finish_reason = np.full(R, "length", dtype=object)
        self.texts: list[str | None] = [None] * R
        self.token_ids: list[list[int]] = [[] for _ in range(R)]
        self.statistics: list[np.ndarray] = []  # per position float32 [3, R]
        self.stop_ids = {*params.stop_token_ids} | ({eos_token_id} if eos_token_id is not None else set())

    def append(self, draw: Draw, position: int, rows_R: np.ndarray | None = None) -> None:
        rows_R = np.arange(len(self.is_finished)) if rows_R is None else rows_R
        statistics = np.zeros((3, len(self.is_finished)), dtype=np.float32)
        statistics[:, rows_R] = torch.stack((draw.logprob_B, draw.drawn_logprob_B, draw.entropy_B)).cpu().numpy()
        self.statistics.append(statistics)
        token_R = draw.token_B.cpu().numpy()
        self.last_token[rows_R] = token_R
        for row, token in zip(rows_R.tolist(), token_R.tolist(), strict=True):
            if self.is_finished[row]:
                continue
            self.token_ids[row].append(token)
            self.num_sampled[row] = position + 1
            if token in self.stop_ids:
                self._finish(row)
            elif self.params.stop and self.stops.may_end(token, self.params.stop):
                text = self.stops.cut(self.token_ids[row], self.params.stop)
                if text is not None:
                    self._finish(row, text)

    def _finish(self, row: int, text: str | None = None) -> None:
        self.is_finished[row], self.finish_reason[row], self.texts[row] = True, "stop", text

    def open_contexts(self, num_requests: int) -> np.ndarray:
        return np.flatnonzero(~self.is_finished.reshape(-1, self.params.n).all(1)[:num_requests])

    def completions(self, tokenizer: PreTrainedTokenizerBase) -> list[list[Completion]]:
        statistics = np.stack(self.statistics, axis=2)  # [3, R, T]
        flat = []
        for row, token_ids in enumerate(self.token_ids):
            text = self.texts[row]
            if text is None:
                text = tokenizer.decode(token_ids, skip_special_tokens=True)
            flat.append(Completion(token_ids, text, *statistics[:, row, : len(token_ids)], self.finish_reason[row]))
        return [flat[start : start + self.params.n] for start in range(0, len(flat), self.params.n)]


class _StopFinder:
    """Finds stop strings; decodes a completion only when its newest token holds the last character of one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._enders: dict[tuple[str, ...], frozenset[int]] = {}

    def may_end(self, token: int, stop: tuple[str, ...]) -> bool:
        if stop not in self._enders:
            last_characters = {string[-1] for string in stop}
            pieces = self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))])
            # A piece of a multi-byte character decodes to U+FFFD: it may be the end of any character.
            self._enders[stop] = frozenset(
                i for i, piece in enumerate(pieces) if "�" in piece or not last_characters.isdisjoint(piece)
            )
        return token in self._enders[stop]

    def cut(self, token_ids: list[int], stop: tuple[str, ...]) -> str | None:
        """The text up to the end of the first stop string in it, or None."""
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        ends = [start + len(string) for string in stop if (start := text.find(string)) >= 0]
        return text[: min(ends)] if ends else None


def _last_logits(hidden_R1D: Tensor, head_VD: Tensor) -> Tensor:
    return F.linear(hidden_R1D[:, 0], head_VD)


def _padded(length: int) -> int:
    return -(-length // _BUCKET) * _BUCKET
