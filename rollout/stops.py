"""Finding stop strings in a completion that grows token by token."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase


class StopFinder:
    """Says which tokens can complete a stop string, so that a completion is decoded only when one was drawn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._pieces: list[str] = []
        self._can_end: dict[tuple[str, ...], np.ndarray] = {}

    def can_end_V(self, stop: tuple[str, ...]) -> np.ndarray:
        """bool [V]: the token can hold the last character of one of the strings."""
        if stop not in self._can_end:
            pieces = self._token_texts()
            self._can_end[stop] = np.array([any(_can_end(piece, string) for string in stop) for piece in pieces])
        return self._can_end[stop]

    def cut(self, token_ids: list[int], stop: tuple[str, ...]) -> str | None:
        """The text up to the end of the stop string that ends first, or None if there is none in it."""
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        ends = [start + len(string) for string in stop if (start := text.find(string)) >= 0]
        return text[: min(ends)] if ends else None

    def _token_texts(self) -> list[str]:
        """The text of every token after another one: some tokenizers drop the space before a first word."""
        if not self._pieces:
            before = self._tokenizer.encode("a", add_special_tokens=False)
            num_before = len(self._tokenizer.decode(before))
            texts = self._tokenizer.batch_decode([before + [token] for token in range(self._vocab_size)])
            self._pieces = [text[num_before:] for text in texts]
        return self._pieces


def _can_end(piece: str, string: str) -> bool:
    if "\ufffd" in piece and not string.isascii():
        return True  # part of a character, perhaps the string's last
    return string in piece or any(string.endswith(piece[:end]) for end in range(1, min(len(piece), len(string)) + 1))
