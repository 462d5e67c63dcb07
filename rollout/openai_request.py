"""What the bodies of `/v1/chat/completions` and `/v1/completions` ask for.

What is not supported is refused, not ignored. Beyond OpenAI's fields there are `top_k` and `min_p`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from kernels.philox import stream_seed
from patarm_core.fields import Fields, show
from rollout.params import SamplingParams
from rollout.server_http import ApiError

Kind = Literal["chat", "completion"]

_MAX_STOPS = 4
_SAMPLING = {
    "model", "n", "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "seed", "stream", "stream_options",
    "logprobs",
}  # fmt: skip
# Fields of OpenAI that change nothing here, and those that must be left as they would be anyway.
_IGNORED = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"}
_NEUTRAL = {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}}
_FIELDS: dict[Kind, set[str]] = {
    "chat": _SAMPLING | {"messages", "max_completion_tokens"},
    "completion": _SAMPLING | {"prompt"},
}
_NEUTRAL_FIELDS: dict[Kind, dict[str, object]] = {
    "chat": _NEUTRAL | {
        "top_logprobs": 0, "tools": [], "tool_choice": "none", "functions": [], "function_call": "none",
        "parallel_tool_calls": None, "response_format": {"type": "text"}, "modalities": ["text"], "audio": None,
        "prediction": None, "reasoning_effort": None, "verbosity": None, "web_search_options": None,
    },
    "completion": _NEUTRAL | {"best_of": 1, "echo": False, "suffix": ""},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and the server allow."""

    context_tokens: int
    max_n: int
    max_completion_tokens: int  # where a chat names no number


@dataclass(frozen=True, slots=True)
class Generation:
    """What a body asks for: n completions of each context."""

    kind: Kind
    contexts: list[list[int]]
    params: SamplingParams  # for the first context
    is_streaming: bool
    with_usage: bool  # at the end of a stream
    with_logprobs: bool

    @property
    def pairs(self) -> list[tuple[list[int], SamplingParams]]:
        """Context i has a seed derived from (seed, i), as `Engine.generate` has it."""
        seeds = [stream_seed(self.params.seed, i) for i in range(len(self.contexts))]
        return [(context, replace(self.params, seed=seed)) for context, seed in zip(self.contexts, seeds, strict=True)]


def read_generation(kind: Kind, fields: Fields, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> Generation:
    """
    Raises:
        ValueError: a field is wrong (FieldError) or not supported.
        ApiError: a context without room for its completion.
    """
    fields.only(_FIELDS[kind] | _IGNORED | _NEUTRAL_FIELDS[kind].keys())
    for name, neutral in _NEUTRAL_FIELDS[kind].items():
        if fields.data.get(name) not in (None, neutral):
            raise fields.error(name, f"is {show(fields.data[name])}; not supported, leave it out")
    if kind == "chat":
        contexts = [_chat_context(fields, tokenizer)]
        with_logprobs = fields.flag("logprobs", False)
    else:
        contexts = _prompts(fields, tokenizer)
        with_logprobs = fields.whole("logprobs", 0, 0, None) is not None  # 0: of the token itself, no alternatives
    longest = max(map(len, contexts))
    max_tokens = _max_tokens(kind, fields, limits, longest)
    if longest + max_tokens > limits.context_tokens:
        raise ApiError(
            400, f"the prompt has {longest} tokens and asks for {max_tokens} more; the model's limit is "
            f"{limits.context_tokens}", "messages" if kind == "chat" else "prompt", "context_length_exceeded",
        )  # fmt: skip
    params = SamplingParams(
        n=fields.whole("n", 1, limits.max_n, 1),
        max_tokens=max_tokens,
        temperature=fields.number("temperature", 0, 2, 1.0),
        top_k=max(0, fields.whole("top_k", -1, 1 << 31, 0)),
        top_p=fields.number("top_p", 0, 1, 1.0),
        min_p=fields.number("min_p", 0, 1, 0.0),
        stop=_stop(fields),
        seed=fields.whole("seed", 0, (1 << 64) - 1, secrets.randbits(64)),
    )
    is_streaming, with_usage = fields.flag("stream", False), False
    if (options := fields.value("stream_options", "an object", None)) is not None:
        if not isinstance(options, dict) or not is_streaming:
            raise fields.error("stream_options", 'expected {"include_usage": true or false}, with "stream": true')
        inner = Fields(options, "stream_options.")
        inner.only({"include_usage"})
        with_usage = inner.flag("include_usage", False)
    return Generation(kind, contexts, params, is_streaming, with_usage, with_logprobs)


def _chat_context(fields: Fields, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    messages = fields.messages("messages")
    for i, message in enumerate(messages):
        if message.role in ("tool", "function"):
            raise fields.error(f"messages[{i}].role", f'is "{message.role}"; tools are not supported')
    turns = [{"role": m.role.replace("developer", "system"), "content": m.content} for m in messages]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template raises what it likes, such as that roles must alternate
        raise fields.error("messages", f"the model's chat template refuses them: {str(error)[:200]}") from None
    return tokenizer.encode(text, add_special_tokens=False)


def _prompts(fields: Fields, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """A prompt is a text, or token ids; or there is a list of either."""
    expected = "a text, token ids, or a list of either"
    value = fields.value("prompt", expected)
    if isinstance(value, str) or _are_tokens(value):
        entries = {"prompt": value}
    elif isinstance(value, list) and value:
        entries = {f"prompt[{i}]": entry for i, entry in enumerate(value)}
    else:
        raise fields.error("prompt", f"is {show(value)}; expected {expected}")
    contexts = []
    for name, entry in entries.items():
        if _are_tokens(entry):
            contexts.append(entry)
            continue
        contexts.append(tokenizer.encode(Fields({name: entry}).text(name), add_special_tokens=False))
        if not contexts[-1]:
            raise fields.error(name, "is empty; expected some text")
    return contexts


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _max_tokens(kind: Kind, fields: Fields, limits: Limits, longest: int) -> int:
    names = ("max_completion_tokens", "max_tokens") if kind == "chat" else ("max_tokens",)
    for name in names:
        if (asked := fields.whole(name, 1, 1 << 31, None)) is not None:
            return asked
    if kind == "completion":
        return 16  # OpenAI's default
    return max(1, min(limits.max_completion_tokens, limits.context_tokens - longest))


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.value("stop", "a text or a list of texts", None)
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise fields.error("stop", f"expected a text that is not empty, or a list of at most {_MAX_STOPS}")
    return tuple(stops)
