"""What has been sampled so far in a wave, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from kernels.settings import Draw
from rollout.params import Completion, SamplingParams
from rollout.stops import StopFinder


class Rows:
    """One row per sample, context-major. R rows, T steps, at most max_tokens.

    Args:
        length_P: context lengths in tokens.
        seed_P: uint64 noise keys of the contexts.
        params: the sampling settings that all of them share.
        end_token_ids: tokens that end a completion.
    """

    def __init__(
        self,
        length_P: Sequence[int],
        seed_P: Sequence[int],
        params: SamplingParams,
        end_token_ids: Sequence[int],
        stops: StopFinder,
    ) -> None:
        n = params.n
        R = len(length_P) * n
        self.context_R = np.repeat(np.arange(len(length_P)), n)
        self.length_R = np.repeat(np.array(length_P, dtype=np.int64), n)
        self.seed_R = np.repeat(np.array(seed_P, dtype=np.uint64), n)
        self.sample_R = np.tile(np.arange(n, dtype=np.uint64), len(length_P))
        self.is_finished_R = np.zeros(R, dtype=bool)
        self.last_token_R = np.zeros(R, dtype=np.int64)
        self.num_steps = 0
        self._n, self._stop, self._stops = n, params.stop, stops
        self._end_token_ids = np.array(end_token_ids, dtype=np.int64)
        self._num_sampled_R = np.zeros(R, dtype=np.int64)
        self._text_R: list[str | None] = [None] * R  # of rows that a stop string has ended
        # Time-major, so that a step writes to one place. Memory of steps that never come is never touched.
        self._token_TR = np.zeros((params.max_tokens, R), dtype=np.int64)
        self._statistics_T3R = np.zeros((params.max_tokens, 3, R), dtype=np.float32)

    def append(self, draw: Draw, row_R: np.ndarray) -> None:
        """Takes the next token of these rows; finished rows among them are passed over."""
        step = self.num_steps
        token_R = draw.token_B.cpu().numpy()
        self.last_token_R[row_R] = token_R
        self._token_TR[step, row_R] = token_R
        statistics = torch.stack((draw.logprob_B, draw.drawn_logprob_B, draw.entropy_B))
        self._statistics_T3R[step][:, row_R] = statistics.cpu().numpy()
        self.num_steps += 1
        is_open_R = ~self.is_finished_R[row_R]
        self._num_sampled_R[row_R[is_open_R]] = self.num_steps
        is_end_R = np.isin(token_R, self._end_token_ids)
        self.is_finished_R[row_R[is_open_R & is_end_R]] = True
        if self._stop:
            for row in row_R[is_open_R & ~is_end_R & self._stops.can_end_V(self._stop)[token_R]]:
                self._text_R[row] = self._stops.cut(self._token_ids(row), self._stop)
                self.is_finished_R[row] = self._text_R[row] is not None

    def completions(self, tokenizer: PreTrainedTokenizerBase, num_contexts: int) -> list[list[Completion]]:
        """The completions of the first contexts."""
        flat = []
        for row in range(num_contexts * self._n):
            token_ids, text = self._token_ids(row), self._text_R[row]
            if text is None:
                text = tokenizer.decode(token_ids, skip_special_tokens=True)
            statistics_3T = self._statistics_T3R[: len(token_ids), :, row].T.copy()
            flat.append(Completion(token_ids, text, *statistics_3T, "stop" if self.is_finished_R[row] else "length"))
        return [flat[start : start + self._n] for start in range(0, len(flat), self._n)]

    def _token_ids(self, row: int) -> list[int]:
        return self._token_TR[: self._num_sampled_R[row], row].tolist()
