"""Prompts of benchmarks found in training data, whatever their case, white space and punctuation.

A prompt is contaminated if it, or one of its user messages, is a benchmark's prompt by content hash, or if it shares
word n-grams with one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from patarm_core.prompts import Message, Prompt

# Scripts without spaces between words count by character: Han, kana, Thai.
_BY_CHARACTER = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(f"[{_BY_CHARACTER}]|[^\\W_{_BY_CHARACTER}]+")


def words(text: str) -> list[str]:
    """Letters and digits alone, case folded, compatibility forms unified (NFKC)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def content_hash(text: str) -> str | None:
    """Equal for texts that differ in case, white space and punctuation alone; None of a text without a word."""
    joined = "".join(words(text))
    return hashlib.sha256(joined.encode()).hexdigest() if joined else None


@dataclass(frozen=True, slots=True)
class BenchmarkIndex:
    """Hashes and n-grams of the prompts of benchmarks.

    With `min_share` 0 a single common n-gram is enough; otherwise that share of a benchmark prompt's own n-grams. A
    benchmark prompt of fewer than `n` words has no n-gram and is found by its hash alone.
    """

    n: int = 13  # words, as in GPT-3's (arXiv:2005.14165, app. C)
    min_share: float = 0.0
    _names: list[str] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)  # n-grams of each
    _by_hash: dict[str, int] = field(default_factory=dict)
    _by_ngram: dict[bytes, list[int]] = field(default_factory=dict)

    def add(self, name: str, prompt: Prompt) -> None:
        number, text = len(self._names), _whole(prompt)
        ngrams = self._ngrams(text)
        self._names.append(name)
        self._sizes.append(len(ngrams))
        if (key := content_hash(text)) is not None:
            self._by_hash.setdefault(key, number)
        for ngram in ngrams:
            self._by_ngram.setdefault(ngram, []).append(number)

    def find(self, prompt: Prompt) -> str | None:
        """How and whose prompt it is, such as `hash of hep/Python/0`; None: of no benchmark."""
        text = _whole(prompt)
        for part in [text, *_user_messages(prompt)]:
            if (number := self._by_hash.get(content_hash(part))) is not None:
                return f"hash of {self._names[number]}"
        common = Counter(number for ngram in self._ngrams(text) for number in self._by_ngram.get(ngram, ()))
        for number, count in sorted(common.items(), key=lambda item: (-item[1], item[0])):
            if count >= self.min_share * self._sizes[number]:
                return f"{count} of {self._sizes[number]} {self.n}-grams of {self._names[number]}"
        return None

    def _ngrams(self, text: str) -> set[bytes]:
        found = words(text)
        return {
            hashlib.blake2b(" ".join(found[i : i + self.n]).encode(), digest_size=8).digest()
            for i in range(len(found) - self.n + 1)
        }


def _messages(prompt: Prompt) -> Iterable[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt)]
    return [Message(m["role"], m["content"]) if isinstance(m, Mapping) else m for m in prompt]


def _whole(prompt: Prompt) -> str:
    return "\n".join(message.content for message in _messages(prompt))


def _user_messages(prompt: Prompt) -> list[str]:
    return [message.content for message in _messages(prompt) if message.role == "user"]
