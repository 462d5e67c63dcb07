"""Completions as a few flat arrays, for the way from one process to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rollout.params import Completion


@dataclass(frozen=True, slots=True)
class PackedCompletions:
    """The T tokens of B completions, one after the other."""

    length_B: np.ndarray  # int32
    token_T: np.ndarray  # int32
    values_3T: np.ndarray  # float32: logprobs, drawn_logprobs, entropies
    texts: list[str]
    finish_reasons: list[str]

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> PackedCompletions:
        recorded = [np.stack((c.logprobs, c.drawn_logprobs, c.entropies)) for c in completions]
        return cls(
            np.array([len(c.token_ids) for c in completions], dtype=np.int32),
            np.concatenate([np.array(c.token_ids, dtype=np.int32) for c in completions]),
            np.concatenate(recorded, axis=1),
            [c.text for c in completions],
            [c.finish_reason for c in completions],
        )

    def unpack(self) -> list[Completion]:
        ends_B = np.cumsum(self.length_B)
        spans = [slice(end - length, end) for end, length in zip(ends_B, self.length_B, strict=True)]
        return [
            Completion(self.token_T[span].tolist(), text, *(x_T[span] for x_T in self.values_3T), reason)
            for span, text, reason in zip(spans, self.texts, self.finish_reasons, strict=True)
        ]
