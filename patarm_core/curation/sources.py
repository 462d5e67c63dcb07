"""One row of a published preference set, as the pairs it holds.

    plain              {"prompt", "chosen", "rejected"} and, where they are, task, source, id: this project's own
    skywork            Skywork-Reward-Preference-80K: {"chosen": [messages], "rejected": [messages], "source"}
    code               Code-Preference-Pairs: {"input", "accepted", "rejected"}
    step_dpo           Math-Step-DPO-10K: {"prompt", "initial_reason_steps", "full_chosen", "full_rejected"}
    step_dpo_step      the same, up to the step in which they part: "chosen", "rejected"
    helpsteer2         HelpSteer2: {"prompt", "response_1", "response_2", "preference_strength"}, below 0 for the first
    helpsteer2_scores  its ratings, two rows a pair: {"prompt", "response", "helpfulness"}
    rmb                RMB: {"id", "prompt": [messages], "chosen", "rejected", "category"}
    gsm8k              GSM8K's example_model_solutions: every right solution of a question against every wrong one

A pair's task is "" where its source does not tell it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from patarm_core.fields import FieldError, Fields
from patarm_core.pairs import Pair
from patarm_core.prompts import Message

GSM8K_MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
_TURN = "<extra_id_1>"  # with which HelpSteer2 marks the turns of a prompt that has several
_FIELD_REASONS = {"is empty": "empty", "is not valid Unicode": "not_unicode"}


class Refusal(ValueError):
    """Why a row, or a pair, is not used: a reason to count by, and one line for a reader."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


Reader = Callable[[Sequence[Fields], str, str], list[Pair]]


def read_source_rows(schema: str, rows: Sequence[dict], source: str, id: str) -> list[Pair]:
    """The pairs of one row, or of `rows_per_pair(schema)` rows; whether their sides differ is `check_sides`' matter.

    Args:
        source: what the pairs' source is called if the row does not name it.
        id: likewise of the row.

    Raises:
        Refusal: `schema` (another schema, or a field of another kind), `empty` (the prompt), `not_unicode`,
            `no_preference` (a tie; all solutions right, or all wrong), or `no_partner` (the first of two rows, of which
            the second is about another prompt).
    """
    try:
        pairs = SCHEMAS[schema]([Fields(row) for row in rows], source, id)
    except FieldError as error:
        reason = next((r for start, r in _FIELD_REASONS.items() if error.problem.startswith(start)), "schema")
        raise Refusal(reason, str(error)) from None
    if not pairs:
        raise Refusal("no_preference", "nothing in the row is better than anything else in it")
    return pairs


def check_sides(pair: Pair) -> None:
    """
    Raises:
        Refusal: `empty`, or `identical`: sides that express no preference.
    """
    for field in ("chosen", "rejected"):
        if not getattr(pair, field).strip():
            raise Refusal("empty", f"{field}: is empty; expected some text")
    if pair.chosen == pair.rejected:
        raise Refusal("identical", "rejected: equal to chosen, so no preference is expressed")


def rows_per_pair(schema: str) -> int:
    return 2 if schema == "helpsteer2_scores" else 1


def _plain(rows: Sequence[Fields], source: str, id: str) -> list[Pair]:
    (row,) = rows
    named = row.text("task", ""), _named(row, "source", source), _named(row, "id", id)
    return [Pair(_prompt(row, "prompt"), row.text("chosen"), row.text("rejected"), *named)]


def _skywork(rows: Sequence[Fields], source: str, id: str) -> list[Pair]:
    (row,) = rows
    chosen, rejected = row.messages("chosen"), row.messages("rejected")
    for field, messages in (("chosen", chosen), ("rejected", rejected)):
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise row.error(field, "does not end in an answer; expected a prompt and a message of the assistant")
    if chosen[:-1] != rejected[:-1]:
        raise row.error("rejected", "answers another prompt than chosen; expected the same messages before the last")
    named = _named(row, "source", source)
    return [Pair(_one_form(chosen[:-1]), chosen[-1].content, rejected[-1].content, "", named, id)]


def _code(rows: Sequence[Fields], source: str, id: str) -> list[Pair]:
    (row,) = rows
    named = "code", source, _named(row, "ID", id)
    return [Pair(_prompt(row, "input"), row.text("accepted"), row.text("rejected"), *named)]


def _step_dpo(rows: Sequence[Fields], source: str, id: str, which: str = "full_") -> list[Pair]:
    (row,) = rows
    begun, sides = row.text("initial_reason_steps", ""), [row.text(f"{which}{side}") for side in ("chosen", "rejected")]
    # A side may repeat the steps that both have in common, or begin where they part.
    chosen, rejected = (
        side if not begun or side.startswith(begun) or not side.strip() else begun + side for side in sides
    )
    return [Pair(_prompt(row, "prompt"), chosen, rejected, "math", source, id)]


def _step_dpo_step(rows: Sequence[Fields], source: str, id: str) -> list[Pair]:
    return _step_dpo(rows, source, id, which="")


def _helpsteer2(rows: Sequence[Fields], source: str, id: str) -> list[Pair]:
    (row,) = rows
    first, second = row.text("response_1"), row.text("response_2")
    return _better(_turns(row), first, second, -row.number("preference_strength", -3, 3), source, id)


def _helpsteer2_scores(rows: Sequence[Fields], source: str, id: str) -> list[Pair]:
    first, second = rows
    if first.text("prompt") != second.text("prompt"):
        raise Refusal("no_partner", "prompt: is not that of the next row; expected two rows of each prompt")
    gain = first.number("helpfulness", 0, 4) - second.number("helpfulness", 0, 4)
    return _better(_turns(first), first.text("response"), second.text("response"), gain, source, id)


def _better(
    prompt: str | tuple[Message, ...], first: str, second: str, gain: float, source: str, id: str
) -> list[Pair]:
    """`gain` is above 0 where the first is better."""
    if gain == 0:
        return []
    return [Pair(prompt, *((first, second) if gain > 0 else (second, first)), "", source, id)]


def _rmb(rows: Sequence[Fields], source: str, id: str) -> list[Pair]:
    (row,) = rows
    category = row.text("category", "")
    task = "safety" if "Harmlessness" in category else "code" if "/Code/" in category else "chat"
    named = task, source, _named(row, "id", id)
    return [Pair(_prompt(row, "prompt"), row.text("chosen"), row.text("rejected"), *named)]


def _gsm8k(rows: Sequence[Fields], source: str, id: str) -> list[Pair]:
    (row,) = rows
    question, solved = _prompt(row, "question"), {True: [], False: []}
    for model in GSM8K_MODELS:
        answer = row.value(model, 'an object of "is_correct" and "solution"')
        if not isinstance(answer, dict) or not isinstance(answer.get("is_correct"), bool):
            raise row.error(model, 'expected an object of "is_correct" and "solution"')
        solved[answer["is_correct"]].append((model, Fields(answer, f"{model}.").text("solution")))
    return [
        Pair(question, right, wrong, "math", source, f"{id}-{good}-{bad}")
        for good, right in solved[True]
        for bad, wrong in solved[False]
    ]


def _turns(row: Fields) -> str | tuple[Message, ...]:
    first, *more = row.text("prompt").split(_TURN)
    turns = [("user", first)] + [
        (role.strip().lower(), text) for role, _, text in (turn.partition("\n") for turn in more)
    ]
    if any(role not in ("user", "assistant") for role, _ in turns):
        raise row.error("prompt", f"has a turn of neither User nor Assistant after {_TURN}")
    said = tuple(Message(role, text.strip("\n")) for role, text in turns if text.strip())
    if not said:
        raise row.error("prompt", "is empty; expected some text")
    return _one_form(said)


def _prompt(row: Fields, field: str) -> str | tuple[Message, ...]:
    return _one_form(row.prompt(field))


def _one_form(prompt: str | tuple[Message, ...]) -> str | tuple[Message, ...]:
    """A single user message is a text: the judge reads the same, and one prompt has one form."""
    is_text = isinstance(prompt, str) or len(prompt) != 1 or prompt[0].role != "user"
    return prompt if is_text else prompt[0].content


def _named(row: Fields, field: str, otherwise: str) -> str:
    """What the row calls its source or itself, if it does; white space is no name."""
    label = row.label(field, otherwise)
    return label if label.strip() else otherwise


SCHEMAS: Mapping[str, Reader] = {
    "plain": _plain, "skywork": _skywork, "code": _code, "step_dpo": _step_dpo, "step_dpo_step": _step_dpo_step,
    "helpsteer2": _helpsteer2, "helpsteer2_scores": _helpsteer2_scores, "rmb": _rmb, "gsm8k": _gsm8k,
}  # fmt: skip
