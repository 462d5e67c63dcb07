"""The text of a completion while it grows: nothing is told that a later token could change."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rollout.params import Completion

_BROKEN = "\ufffd"  # what bytes decode to that are not, or not yet, a character
_LONG = 64  # tokens without a whole character; then one try for as many more


def without_stop(completion: Completion, stop: Sequence[str]) -> str:
    """The text before the stop string that ended it, as OpenAI tells it; the engine's text includes the string."""
    if completion.finish_reason == "stop":
        ends = [string for string in stop if completion.text.endswith(string)]
        return completion.text[: len(completion.text) - max(map(len, ends), default=0)]
    return completion.text


class WholeCharacters:
    """Turns tokens into text as they come, whole characters only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # tokens told last: some tokenizers write a token by the one before it
        self._ahead: list[int] = []  # tokens not told yet

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token."""
        self._ahead.append(token_id)
        if len(self._ahead) > _LONG and len(self._ahead) % _LONG:
            return ""  # nothing but broken bytes for long: do not decode them all again with each token
        text = self._decode(self._before + self._ahead)[len(self._decode(self._before)) :]
        if text.endswith(_BROKEN):
            return ""
        self._before, self._ahead = self._ahead, []
        return text

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)


class TextStream:
    """One completion, told in parts that add up to `without_stop` of it.

    (Unless it ends in broken bytes that a tokenizer reads anew with each further one; then the last part is off.)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._decoder, self._stop = WholeCharacters(tokenizer), stop
        self._held = ""  # certain, but it may be the beginning of a stop string
        self._num_told = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """The next part of the text; often empty."""
        self._held += "".join(map(self._decoder.push, token_ids))
        return self._tell(self._held[: self._start_of_stop()])

    def finish(self, completion: Completion) -> str:
        """The last part."""
        return without_stop(completion, self._stop)[self._num_told :]

    def _start_of_stop(self) -> int:
        """Where a stop string begins in what is held, all of it or as much as is there."""
        for start in range(len(self._held)):
            if any(string.startswith(self._held[start : start + len(string)]) for string in self._stop):
                return start
        return len(self._held)

    def _tell(self, text: str) -> str:
        self._held = self._held[len(text) :]
        self._num_told += len(text)
        return text
