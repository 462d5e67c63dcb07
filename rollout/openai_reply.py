"""How completions are told on `/v1/chat/completions` and `/v1/completions`: whole, or chunk by chunk.

A log-probability is that of the token under the untempered, unfiltered policy. The tokens of a stop string have theirs
too, though the text ends before it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from rollout.openai_request import Generation
from rollout.params import Completion
from rollout.server_text import TextStream, WholeCharacters, without_stop
from rollout.server_worker import Delta

_LEAST_LOGPROB = -9999.0  # JSON has no -inf


class Teller:
    """Tells the completions of a generation: whole, or chunk by chunk."""

    def __init__(self, generation: Generation, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        self._generation, self._tokenizer = generation, tokenizer
        self._is_chat = generation.kind == "chat"
        name = "chat.completion" if self._is_chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{name}.chunk" if self._is_chat and generation.is_streaming else name,
            "created": int(time.time()),
            "model": model,
        }
        n, stop = generation.params.n, generation.params.stop
        self._choices = [_Choice(tokenizer, stop) for _ in range(n * len(generation.contexts))]

    def whole(self, completions: Sequence[Sequence[Completion]]) -> dict:
        choices = []
        for index, completion in enumerate(one for request in completions for one in request):
            text = without_stop(completion, self._generation.params.stop)
            said = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if self._is_chat
                else {"text": text}
            )
            logprobs = self._logprobs(index, completion.token_ids, completion.logprobs.tolist(), len(text))
            choices.append({"index": index, **said, "logprobs": logprobs, "finish_reason": completion.finish_reason})
        return self._head | {"choices": choices, "usage": self._usage(completions)}

    def first(self) -> Iterator[dict]:
        """The chunks before anything is said."""
        for index in range(len(self._choices) if self._is_chat else 0):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def part(self, delta: Delta) -> Iterator[dict]:
        """The chunks of a delta, often none: text waits until it is certain, and log-probabilities for their text."""
        index = delta.request * self._generation.params.n + delta.sample
        choice, completion = self._choices[index], delta.completion
        choice.token_ids += delta.token_ids
        choice.logprobs += delta.logprobs
        text = choice.stream.push(delta.token_ids) if completion is None else choice.stream.finish(completion)
        if text or (completion is not None and choice.token_ids and self._generation.with_logprobs):
            logprobs = self._logprobs(index, choice.token_ids, choice.logprobs, None)
            choice.token_ids, choice.logprobs = [], []
            yield self._chunk(index, {"content": text} if self._is_chat else text, logprobs, None)
        if completion is not None:
            yield self._chunk(index, {} if self._is_chat else "", None, completion.finish_reason)

    def last(self, completions: Sequence[Sequence[Completion]]) -> Iterator[dict]:
        """The chunk after everything is said."""
        if self._generation.with_usage:
            yield self._head | {"choices": [], "usage": self._usage(completions)}

    def _chunk(self, index: int, said: dict | str, logprobs: dict | None, finish_reason: str | None) -> dict:
        choice = {"index": index, "delta" if self._is_chat else "text": said, "logprobs": logprobs}
        usage = {"usage": None} if self._generation.with_usage else {}
        return self._head | {"choices": [choice | {"finish_reason": finish_reason}]} | usage

    def _usage(self, completions: Sequence[Sequence[Completion]]) -> dict:
        num_context = sum(map(len, self._generation.contexts))
        num_sampled = sum(len(completion.token_ids) for request in completions for completion in request)
        return {
            "prompt_tokens": num_context, "completion_tokens": num_sampled, "total_tokens": num_context + num_sampled,
        }  # fmt: skip

    def _logprobs(self, index: int, token_ids: list[int], logprobs: list[float], num_chars: int | None) -> dict | None:
        if not self._generation.with_logprobs:
            return None
        pieces = [self._tokenizer.decode([token]) for token in token_ids]
        logprobs = [max(logprob, _LEAST_LOGPROB) for logprob in logprobs]
        if not self._is_chat:
            offsets = self._choices[index].offsets(token_ids)
            if num_chars is not None:
                offsets = [min(offset, num_chars) for offset in offsets]
            return {"tokens": pieces, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": offsets}
        return {
            "content": [
                {"token": piece, "logprob": logprob, "bytes": _bytes(piece), "top_logprobs": []}
                for piece, logprob in zip(pieces, logprobs, strict=True)
            ],
            "refusal": None,
        }


class _Choice:
    """One completion while it is told."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.stream = TextStream(tokenizer, stop)
        self.token_ids: list[int] = []  # whose log-probabilities are still to be told
        self.logprobs: list[float] = []
        self._characters, self._num_chars = WholeCharacters(tokenizer), 0

    def offsets(self, token_ids: list[int]) -> list[int]:
        """Where each of the next tokens begins in the text."""
        offsets = []
        for token in token_ids:
            offsets.append(self._num_chars)
            self._num_chars += len(self._characters.push(token))
        return offsets


def _bytes(piece: str) -> list[int] | None:
    return None if "\ufffd" in piece else list(piece.encode())
