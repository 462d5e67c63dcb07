"""Reads the fields of a JSON object that others wrote, and says which one is wrong: `seed: is a text; expected …`."""

import difflib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from patarm_core.prompts import ROLES, Message

_MISSING = object()
_PROMPT = 'a text or a list of {"role", "content"}'


class FieldError(ValueError):
    """What is wrong with a field; the message is one line, `FIELD: what is wrong; what would be right`."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem = field, problem


def read_object(text: str | bytes) -> dict:
    """The JSON object in a text.

    Raises:
        ValueError: one line; the text is not UTF-8, not JSON, or not an object.
    """
    try:
        data = json.loads(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; expected a JSON object") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise ValueError(f"not JSON: {error.msg} at {place}; expected an object") from None
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets nested as deep
        raise ValueError("not JSON: too large a value; expected an object") from None
    if not isinstance(data, dict):
        raise ValueError(f"is {kind(data)}; expected a JSON object")
    return data


@dataclass(frozen=True)
class Fields:
    """The fields of one object, or of one nested in a field called `within`. A default makes a field optional; null
    counts as left out where there is one. Every reader raises FieldError."""

    data: dict[str, object]
    within: str = ""

    def error(self, field: str, problem: str) -> FieldError:
        return FieldError(self.within + field, problem)

    def only(self, names: Collection[str]) -> None:
        """No field but these."""
        for name in self.data:
            if name not in names:
                nearest = difflib.get_close_matches(name, sorted(names), n=1)
                hint = f" (nearest: {nearest[0]!r})" if nearest else ""
                shown = name if name.isidentifier() and len(name) <= 60 else show(name)
                raise self.error(shown, f"unknown field; fields are {', '.join(sorted(names))}{hint}")

    def value(self, field: str, expected: str, default: object = _MISSING) -> object:
        value = self.data.get(field)
        if value is not None:
            return value
        if default is not _MISSING:
            return default
        if field in self.data:
            raise self.error(field, f"is null; expected {expected}")
        raise self.error(field, missing(field, self.data, expected))

    def text(self, field: str, default: object = _MISSING) -> str:
        """A text, which may be empty."""
        value = self.value(field, "a text", default)
        return value if value is default else self._text(field, value)

    def label(self, field: str, default: object = _MISSING) -> str:
        """What names something: a text, or a whole number as its text."""
        value = self.value(field, "a number or a text", default)
        if value is default or isinstance(value, str):
            return value if value is default else self._text(field, value)
        if type(value) is not int or abs(value) >= 1 << 80:
            raise self.error(field, f"is {show(value)}; expected a number or a text")
        return str(value)

    def texts(self, field: str, length: int | None = None) -> tuple[str, ...]:
        """A list of texts, of a given length if there is one."""
        expected = f"a list of {'' if length is None else f'{length} '}texts"
        value = self.value(field, expected)
        if not isinstance(value, list):
            raise self.error(field, f"is {kind(value)}; expected {expected}")
        if length is not None and len(value) != length:
            raise self.error(field, f"has {len(value)} entries; expected {expected}")
        return tuple(self._text(f"{field}[{i}]", entry) for i, entry in enumerate(value))

    def one_of(self, field: str, names: Sequence[str], default: object = _MISSING) -> str:
        expected = f"one of {', '.join(names)}"
        value = self.value(field, expected, default)
        if value is not default and (not isinstance(value, str) or value not in names):
            raise self.error(field, f"is {show(value)}; expected {expected}")
        return value

    def flag(self, field: str, default: bool) -> bool:
        value = self.value(field, "true or false", default)
        if not isinstance(value, bool):
            raise self.error(field, f"is {show(value)}; expected true or false")
        return value

    def whole(self, field: str, least: int, most: int, default: object = _MISSING) -> int:
        """A whole number, written as one: 3, not 3.0."""
        expected = f"a whole number from {least} to {most}"
        value = self.value(field, expected, default)
        if value is not default and (type(value) is not int or not least <= value <= most):
            raise self.error(field, f"is {show(value)}; expected {expected}")
        return value

    def number(self, field: str, least: float, most: float, default: object = _MISSING) -> float:
        expected = f"a number from {least:g} to {most:g}"
        value = self.value(field, expected, default)
        if value is not default and (type(value) not in (int, float) or not least <= value <= most):
            raise self.error(field, f"is {show(value)}; expected {expected}")
        return value if value is default else float(value)

    def messages(self, field: str) -> tuple[Message, ...]:
        """A list of {"role", "content"}, one of which says something. A content may be a list of text parts."""
        value = self.value(field, 'a list of {"role", "content"}')
        if not isinstance(value, list):
            raise self.error(field, f'is {kind(value)}; expected a list of {{"role", "content"}}')
        messages = tuple(self._message(f"{field}[{i}]", entry) for i, entry in enumerate(value))
        if not any(message.content.strip() for message in messages):
            raise self.error(field, "is empty; expected a message with some text")
        return messages

    def prompt(self, field: str) -> str | tuple[Message, ...]:
        """A text that is not empty, or messages."""
        value = self.value(field, _PROMPT)
        if isinstance(value, list):
            return self.messages(field)
        if not isinstance(value, str):
            raise self.error(field, f"is {kind(value)}; expected {_PROMPT}")
        if not value.strip():
            raise self.error(field, "is empty; expected some text")
        return self._text(field, value)

    def _message(self, field: str, entry: object) -> Message:
        if not isinstance(entry, dict):
            raise self.error(field, f'is {kind(entry)}; expected {{"role", "content"}}')
        inner = Fields(entry, f"{self.within}{field}.")
        role, content = inner.one_of("role", ROLES), inner.value("content", "a text")
        if not isinstance(content, list):
            return Message(role, inner.text("content"))
        return Message(role, "".join(inner._part(f"content[{i}]", part) for i, part in enumerate(content)))

    def _part(self, field: str, part: object) -> str:
        if not isinstance(part, dict):
            raise self.error(field, f'is {kind(part)}; expected {{"type": "text", "text"}}')
        inner = Fields(part, f"{self.within}{field}.")
        inner.one_of("type", ("text",))
        return inner.text("text")

    def _text(self, field: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.error(field, f"is {kind(value)}; expected a text")
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            raise self.error(field, "is not valid Unicode; expected UTF-8 text") from None
        return value


def missing(field: str, names: Collection[str], expected: str) -> str:
    """What is wrong with a field that is not there, and which of the names that are may be meant for it."""
    mistyped = difflib.get_close_matches(field, names, n=1, cutoff=0.75)
    return f"missing; expected {expected}" + (f" (nearest here: {show(mistyped[0])})" if mistyped else "")


def kind(value: object) -> str:
    """What sort of value it is, in words: of JSON, or what parquet has besides, such as bytes and dates."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value)) or f"of the type {type(value).__name__}"


def show(value: object) -> str:
    """The value as JSON if it is short, else its kind."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) > 1 << 80:  # thousands of digits take their time
        return "too large a number"
    text = json.dumps(value) if value is None or isinstance(value, bool | int | float | str) else ""
    return text if 0 < len(text) <= 60 else kind(value)
