"""What a caller asks of the engine, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral

import numpy as np

from kernels.settings import MAX_TEMPERATURE
from rollout.grammar import JudgmentGrammar


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to draw completions of a context.

    `seed` names the noise: the same (context, params) gives the same tokens whatever it is batched with; the n samples
    of a context and contexts of different seeds have independent noise. Training needs temperature 1 and no filter,
    or its importance ratios are biased.
    """

    n: int = 1
    max_tokens: int = 4096
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()  # a completion ends with the first of these, included in its text
    stop_token_ids: tuple[int, ...] = ()  # besides the tokenizer's special tokens
    seed: int = 0
    # Only tokens that keep a judgment well-formed, and let it end in time. For evaluation: `logprobs` stay those of the
    # policy, from which such tokens are not drawn.
    grammar: JudgmentGrammar | None = None

    def __post_init__(self) -> None:
        for name in ("n", "max_tokens", "top_k", "seed"):
            if not isinstance(getattr(self, name), Integral):
                raise ValueError(f"sampling {name}={getattr(self, name)!r} must be a whole number")
        is_tuple, stop_ids = isinstance(self.stop, tuple), self.stop_token_ids
        are_ids = isinstance(stop_ids, tuple) and all(isinstance(token, Integral) for token in stop_ids)
        for name, is_right, right in (
            ("n", self.n >= 1, "at least 1"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature <= MAX_TEMPERATURE, "in [0, 1e30] (0 is greedy)"),
            ("top_k", 0 <= self.top_k <= 1 << 62, "at least 0 (0 keeps all tokens)"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("stop", is_tuple and all(isinstance(s, str) and s for s in self.stop), "a tuple of non-empty strings"),
            ("stop_token_ids", are_ids, "a tuple of token ids"),
            ("seed", 0 <= self.seed < 1 << 64, "in [0, 2^64)"),
        ):
            if not is_right:
                raise ValueError(f"sampling {name}={getattr(self, name)!r} must be {right}")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion. Arrays have one entry per sampled token, the one that ended it included."""

    token_ids: list[int]
    text: str  # decoded, special tokens skipped, cut after the stop string
    logprobs: np.ndarray = field(repr=False)  # float32, under the untempered, unfiltered policy
    drawn_logprobs: np.ndarray = field(repr=False)  # float32, under the distribution each token was drawn from
    entropies: np.ndarray = field(repr=False)  # float32, nats
    finish_reason: str = "stop"  # "stop": a stop string or token; "length": max_tokens
