"""Preference pairs and SFT judgments: their schema, and how they are read from JSON lines.

    {"prompt": …, "chosen": "…", "rejected": "…", "task": "chat", "source": "…", "id": "…"}
    {"prompt": …, "response": "…", "judgment": "<think>…", "task": "chat", "source": "…", "id": "…"}
    {"prompt": …, "response_a": "…", "response_b": "…", "judgment": "<think>…", "task": "chat", "source": …, "id": …}

`prompt` is a text or a list of messages, {"role": "user", "content": "…"}. `source` defaults to the file's stem
and `id` to the line number. Other keys are ignored, and so are blank lines.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol, TypeVar

from patarm_core.fields import kind, missing
from patarm_core.prompts import ROLES, Message, Prompt, flatten
from patarm_core.rubrics import unknown_task


class DataError(ValueError):
    """Input that cannot be used; the message is one line, `FILE:LINE: field: what is wrong; what would be right`."""


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, of which `chosen` is preferred. (source, id) names the pair."""

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str
    task: str
    source: str
    id: str


@dataclass(frozen=True)
class JudgmentExample:
    """One row of supervised fine-tuning: the judgment to be written for one response."""

    prompt: str | tuple[Message, ...]
    response: str
    task: str
    judgment: str
    source: str
    id: str


@dataclass(frozen=True)
class ChoiceExample:
    """One row of pairwise supervised fine-tuning: the judgment that chooses between two responses, A and B."""

    prompt: str | tuple[Message, ...]
    response_a: str
    response_b: str
    task: str
    judgment: str
    source: str
    id: str


Example = JudgmentExample | ChoiceExample
E = TypeVar("E", JudgmentExample, ChoiceExample)


def read_pairs(lines: Iterable[str], name: str, tasks: Sequence[str], default_task: str | None = None) -> list[Pair]:
    """Reads preference pairs.

    Args:
        lines: JSON lines.
        name: the file's name, for errors and as the default source.
        tasks: the tasks that there are rubrics for.
        default_task: task of the rows that name none; without it such a row is an error.

    Raises:
        DataError: a malformed row; equal sides, which express no preference; a (source, id) that was used before;
            or no row at all.
    """
    pairs: list[Pair] = []
    first_line: dict[tuple[str, str], int] = {}
    for number, row in _rows(lines, name):
        chosen, rejected = row.text("chosen"), row.text("rejected")
        if chosen == rejected:
            raise row.error("rejected", "equal to chosen, so no preference is expressed; give two different responses")
        pair = Pair(row.prompt(), chosen, rejected, row.task(tasks, default_task), row.source(), row.id())
        key = (pair.source, pair.id)
        if key in first_line:
            taken = f"{pair.id!r} of source {pair.source!r} is already used on line {first_line[key]}"
            raise row.error("id", f"{taken}; (source, id) must be unique")
        first_line[key] = number
        pairs.append(pair)
    if not pairs:
        raise DataError(f"{name}: holds no pairs; expected one JSON object per line")
    return pairs


def read_judgments(
    lines: Iterable[str], name: str, tasks: Sequence[str], default_task: str | None = None
) -> list[JudgmentExample]:
    """Reads SFT rows; arguments and errors as in `read_pairs`.

    A (source, id) may recur: both sides of a pair have judgments, and there may be several of each.
    """
    return _read_examples(lines, name, JudgmentExample, ("response",), tasks, default_task)


def read_choice_judgments(
    lines: Iterable[str], name: str, tasks: Sequence[str], default_task: str | None = None
) -> list[ChoiceExample]:
    """Reads rows of pairwise SFT; arguments and errors as in `read_judgments`."""
    return _read_examples(lines, name, ChoiceExample, ("response_a", "response_b"), tasks, default_task)


def _read_examples(
    lines: Iterable[str],
    name: str,
    kind_of: type[E],
    responses: tuple[str, ...],
    tasks: Sequence[str],
    default_task: str | None,
) -> list[E]:
    examples = [
        kind_of(
            row.prompt(),
            *(row.text(field) for field in responses),
            row.task(tasks, default_task),
            row.text("judgment"),
            row.source(),
            row.id(),
        )
        for _, row in _rows(lines, name)
    ]
    if not examples:
        raise DataError(f"{name}: holds no judgments; expected one JSON object per line")
    return examples


def pair_to_json(pair: Pair) -> str:
    """The pair as one line, without its line end; `read_pairs` gives it back."""
    return _to_json(pair)


def judgment_to_json(example: Example) -> str:
    """The example as one line, without its line end; `read_judgments` (or `read_choice_judgments`) gives it back."""
    return _to_json(example)


class HasPrompt(Protocol):
    prompt: Prompt


def prompt_key(row: HasPrompt) -> str:
    """SHA-256 (hex) of the flattened prompt: equal for a text and for the same text as a single user message."""
    return hashlib.sha256(flatten(row.prompt).encode()).hexdigest()


def split_by_prompt(pairs: Sequence[Pair], held_out_share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Divides pairs into (train, held out) so that no prompt is on both sides.

    round(held_out_share · number of distinct prompts) prompts are held out with all of their pairs. Which ones depends
    on the seed and the prompts alone, not on the order of the pairs; a larger share holds out a superset.
    """
    if not 0 <= held_out_share <= 1:
        raise ValueError(f"held_out_share must lie in [0, 1], got {held_out_share}")
    keys = [prompt_key(pair) for pair in pairs]
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    held_out = set(ranked[: round(held_out_share * len(ranked))])
    return (
        [pair for pair, key in zip(pairs, keys, strict=True) if key not in held_out],
        [pair for pair, key in zip(pairs, keys, strict=True) if key in held_out],
    )


@dataclass(frozen=True)
class _Row:
    """One JSON object and where it stands. The readers of its fields raise DataError."""

    data: dict[str, object]
    name: str
    number: int

    def error(self, field: str, problem: str) -> DataError:
        return DataError(f"{self.name}:{self.number}: {field}: {problem}")

    def text(self, field: str) -> str:
        if field not in self.data:
            raise self.error(field, missing(field, self.data, "a text"))
        return self._checked(field, self.data[field])

    def prompt(self) -> str | tuple[Message, ...]:
        if "prompt" not in self.data:
            raise self.error("prompt", missing("prompt", self.data, 'a text or a list of {"role", "content"}'))
        value = self.data["prompt"]
        if isinstance(value, str):
            return self._checked("prompt", value)
        if not isinstance(value, list):
            raise self.error("prompt", f'is {kind(value)}; expected a text or a list of {{"role", "content"}}')
        if not value:
            raise self.error("prompt", "has no messages; expected at least one")
        messages = tuple(self._message(f"prompt[{i}]", entry) for i, entry in enumerate(value))
        if not any(message.content.strip() for message in messages):
            raise self.error("prompt", "is empty; expected some text")
        return messages

    def task(self, tasks: Sequence[str], default: str | None) -> str:
        if "task" not in self.data and default is None:
            raise self.error("task", missing("task", self.data, f"one of {', '.join(tasks)}"))
        value = self.data.get("task", default)
        if not isinstance(value, str):
            raise self.error("task", f"is {kind(value)}; expected one of {', '.join(tasks)}")
        if value not in tasks:
            raise self.error("task", unknown_task(value, tasks))
        return value

    def source(self) -> str:
        return self._checked("source", self.data.get("source", PurePath(self.name).stem))

    def id(self) -> str:
        value = self.data.get("id", self.number)
        if type(value) is int:
            return str(value)
        return self._checked("id", value)

    def _message(self, field: str, entry: object) -> Message:
        if not isinstance(entry, dict):
            raise self.error(field, f'is {kind(entry)}; expected {{"role", "content"}}')
        for part in Message._fields:
            if part not in entry:
                raise self.error(f"{field}.{part}", 'missing; expected {"role", "content"}')
        role = entry["role"]
        if role not in ROLES:
            raise self.error(f"{field}.role", f"is {json.dumps(role)}; expected one of {', '.join(ROLES)}")
        return Message(role, self._string(f"{field}.content", entry["content"]))

    def _checked(self, field: str, value: object) -> str:
        text = self._string(field, value)
        if not text.strip():
            raise self.error(field, "is empty; expected some text")
        return text

    def _string(self, field: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.error(field, f"is {kind(value)}; expected a text")
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, or bytes read with errors="surrogateescape"
            raise self.error(field, "is not valid Unicode; expected UTF-8 text") from None
        return value


def _rows(lines: Iterable[str], name: str) -> Iterator[tuple[int, _Row]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            problem = f"{error.msg} at column {error.colno}"
            raise DataError(f"{name}:{number}: not JSON: {problem}; expected one object per line") from None
        except (ValueError, RecursionError):  # a number of thousands of digits; brackets nested as deep
            raise DataError(f"{name}:{number}: not JSON: too large a value; expected one object per line") from None
        if not isinstance(data, dict):
            raise DataError(f"{name}:{number}: is {kind(data)}; expected one object per line")
        yield number, _Row(data, name, number)


def _to_json(record: Pair | Example) -> str:
    return json.dumps({**vars(record), "prompt": _plain(record.prompt)}, ensure_ascii=False)


def _plain(prompt: Prompt) -> str | list[dict[str, str]]:
    return prompt if isinstance(prompt, str) else [message._asdict() for message in prompt]
