"""Finding stop strings in a completion that grows token by token."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from rollout.vocabulary import token_texts

_NUM_SETS = 64  # of stop strings that are remembered; a server's clients name any


class StopFinder:
    """Says which tokens can complete a stop string, so that a completion is decoded only when one was drawn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._pieces: list[str] = []  # decoded when first asked for
        self.can_end_V = lru_cache(_NUM_SETS)(self._compute_can_end_V)

    def _compute_can_end_V(self, stop: tuple[str, ...]) -> np.ndarray:
        """bool [V]: the token can hold the last character of one of the strings."""
        if not self._pieces:
            self._pieces = token_texts(self._tokenizer, self._vocab_size)
        can_end_V = np.zeros(len(self._pieces), dtype=bool)
        for string in stop:  # running requests wait for this: few pieces are looked at closely
            last = string[-1]
            for token, piece in enumerate(self._pieces):
                if (last in piece or "\ufffd" in piece) and _can_end(piece, string):
                    can_end_V[token] = True
        return can_end_V

    def cut(self, token_ids: list[int], stop: tuple[str, ...]) -> str | None:
        """The text up to the end of the stop string that ends first, or None if there is none in it."""
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        ends = [start + len(string) for string in stop if (start := text.find(string)) >= 0]
        return text[: min(ends)] if ends else None


def _can_end(piece: str, string: str) -> bool:
    if "\ufffd" in piece and not string.isascii():
        return True  # part of a character, perhaps the string's last
    return string in piece or any(string.endswith(piece[:end]) for end in range(1, min(len(piece), len(string)) + 1))
