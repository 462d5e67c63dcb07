"""What a policy is trained and measured on: prompts, and responses to imitate. Their schema, as JSON lines:

    {"prompt": …, "task": "chat", "checks": …, "source": "…", "id": "…"}
    {"prompt": …, "response": "…", "source": "…", "id": "…"}

`prompt` is a text or a list of messages. `task` names the rubrics by which a judge scores the responses (default:
chat); `checks` is what a checker needs to know, any JSON. `source` defaults to the file's stem, `id` to the beginning
of the row's SHA-256. Other keys are passed over.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

from patarm_core.fields import Fields
from patarm_core.prompts import Message, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPrompt:
    """A prompt that a policy answers. (source, id) names it, and with it the noise of its rollouts."""

    prompt: str | tuple[Message, ...]
    task: str = "chat"
    checks: object = None
    source: str
    id: str

    @classmethod
    def of(cls, row: Fields, source: str) -> "PolicyPrompt":
        """Of a row of the file `source`; FieldError if it is not as above."""
        return cls(
            prompt=row.prompt("prompt"), task=row.text("task", "chat"), checks=row.data.get("checks"),
            source=row.text("source", source), id=_id(row),
        )  # fmt: skip

    @property
    def key(self) -> tuple[str, str]:
        return self.source, self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseExample:
    """A prompt and a response to imitate."""

    prompt: str | tuple[Message, ...]
    response: str
    source: str
    id: str

    @classmethod
    def of(cls, row: Fields, source: str) -> "ResponseExample":
        response = row.text("response")
        if not response.strip():
            raise row.error("response", "is empty; expected some text")
        return cls(
            prompt=row.prompt("prompt"), response=response, source=row.text("source", source), id=_id(row)
        )  # fmt: skip


def row_to_json(row: PolicyPrompt | ResponseExample) -> str:
    """The row as one line, without its line end; `of` gives it back."""
    return json.dumps({**asdict(row), "prompt": plain(row.prompt)}, ensure_ascii=False)


def plain(prompt: Prompt) -> str | list[dict[str, str]]:
    """As it stands in a row: a text, or messages of role and content."""
    return prompt if isinstance(prompt, str) else [message._asdict() for message in prompt]


def _id(row: Fields) -> str:
    value = row.data.get("id")
    if type(value) is int:
        return str(value)
    own = json.dumps(row.data, sort_keys=True, ensure_ascii=True)
    return row.text("id", hashlib.sha256(own.encode()).hexdigest()[:16])
