"""What is put to a judge for one item, as requests to the engine, and what its completions say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from kernels.philox import stream_seed
from patarm_core.fields import Fields
from patarm_core.judgment import AnswerKind, Choice, FormatError, RubricSetting, parse, read_answer
from patarm_core.prompts import Message, Prompt
from patarm_core.rubrics import unknown_task
from patarm_core.voting import compare, majority, majority_choice, mean_score, unswap
from rollout.params import Completion, SamplingParams

STOP = ("</answer>",)  # ends a judgment

Method = Literal["mean", "majority", "pairwise"]
Winner = Literal["A", "B", "tie"]
_NAMED: dict[str | None, Winner | None] = {"chosen": "A", "rejected": "B", "tie": "tie", None: None}


@dataclass(frozen=True, slots=True)
class Judged:
    """n judgments of one context. `errors` are the strict parser's; `answers` are read leniently (METHOD: sec. 3)."""

    texts: list[str]
    answers: list[Fraction | Choice | None]  # scores, or choices as written
    errors: list[FormatError | None]

    @property
    def score(self) -> Fraction | None:
        """The mean of the valid scores of a pointwise judgment; None where there is none."""
        return mean_score(self.answers)

    def record(self) -> dict:
        """A pointwise judgment as JSON."""
        scores = [as_float(score) for score in self.answers]
        return {
            "score": as_float(self.score), "scores": scores, "num_valid": len(scores) - scores.count(None),
            "judgments": self.texts, "errors": self.errors,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compared:
    """n votes on two responses, and the judgments behind them: of A and of B, or pairwise of both in one context."""

    winner: Winner | None  # None: nothing to go by
    votes: list[Winner | None]  # of the i-th judgment(s), in the caller's order
    judged: tuple[Judged, ...]
    is_swapped: bool = False  # pairwise: the judge read the caller's B as its A

    def record(self) -> dict:
        if len(self.judged) == 2:
            a, b = self.judged
            return {"winner": self.winner, "votes": self.votes, "a": a.record(), "b": b.record()}
        (both,) = self.judged
        return {
            "winner": self.winner, "votes": self.votes, "is_swapped": self.is_swapped, "judgments": both.texts,
            "errors": both.errors,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """One item's requests, and how their completions are read (to a Judged or a Compared)."""

    contexts: list[list[int]]
    params: list[SamplingParams]
    read: Callable[[Sequence[Sequence[Completion]]], Judged | Compared]


def judgment_params(n: int, max_tokens: int, temperature: float, *stream: int | str) -> SamplingParams:
    """How n judgments of one context are drawn; `stream` names their noise."""
    return SamplingParams(n=n, max_tokens=max_tokens, temperature=temperature, stop=STOP, seed=stream_seed(*stream))


def read_judged(completions: Sequence[Completion], answer: AnswerKind, rubrics: RubricSetting) -> Judged:
    texts = [completion.text for completion in completions]
    return Judged(
        texts, [read_answer(text, answer) for text in texts], [parse(text, answer, rubrics).error for text in texts]
    )


def compare_scores(a: Judged, b: Judged, method: Literal["mean", "majority"]) -> Compared:
    """The higher mean wins, or the majority of the votes of paired judgments (METHOD: sec. 6); exactly."""
    votes = [_NAMED[compare(first, second)] for first, second in zip(a.answers, b.answers, strict=True)]
    verdict = compare(a.score, b.score) if method == "mean" else majority(a.answers, b.answers)
    return Compared(_NAMED[verdict], votes, (a, b))


def count_choices(judged: Judged, is_swapped: bool) -> Compared:
    """The majority of pairwise choices, which were made with B first if `is_swapped`."""
    votes = [unswap(choice, is_swapped) for choice in judged.answers]
    return Compared(majority_choice(votes), votes, (judged,), is_swapped)


def as_float(score: Fraction | None) -> float | None:
    return None if score is None else float(score)


def read_task(fields: Fields, tasks: Sequence[str], default: str | None = None) -> str:
    """The task of an object; where it names none, `default`, or else chat if there are rubrics for it."""
    default = default or ("chat" if "chat" in tasks else None)
    task = fields.text("task") if default is None else fields.text("task", default)
    if task not in tasks:
        raise fields.error("task", unknown_task(task, tasks))
    return task


def read_prompt(prompt: Prompt) -> Prompt:
    """The prompt with contents that are texts; chat data may have parts, {"type": "text", "text": …}, or null instead.

    Raises:
        ValueError: neither a text nor messages, a part that is not text, or text that is not valid Unicode.
    """
    if isinstance(prompt, str):
        return _valid(prompt)
    return tuple(Message(_field(m, "role"), _content(m)) for m in _messages(prompt))


def read_response(response: str | Sequence) -> str:
    """The response as one text: of a list of messages, their contents with blank lines between. Errors as above."""
    return _valid(response) if isinstance(response, str) else "\n\n".join(map(_content, _messages(response)))


def _messages(value: object) -> Iterable:
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{type(value).__name__} found; a text or a list of messages is expected")
    return value


def _field(message: object, name: str) -> object:
    if isinstance(message, Message):
        message = message._asdict()
    if not isinstance(message, Mapping) or name not in message:
        raise ValueError(f'a message has no {name}; messages are {{"role", "content"}}')
    return message[name]


def _content(message: object) -> str:
    content = _field(message, "content")
    if isinstance(content, str):
        return _valid(content)
    parts = [] if content is None else _messages(content)
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"a message has a part of type {kind!r}; a judge reads text only")
        texts.append(part["text"])
    return _valid("".join(texts))


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode (half of a surrogate pair)") from None
    return text
