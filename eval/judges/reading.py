"""What a judgment says. Every reader is total: for any text a Reading, in linear time, that has an answer or an error.

No regular expression here scans from more than one place: a text is split at its marks, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from eval.judges.judge import WINNERS, Winner
from patarm_core.voting import compare


@dataclass(frozen=True, slots=True)
class Reading:
    """A score, or a choice (with the scores of both, where votes are sums of them), or why there is none."""

    score: float | None = None
    choice: Winner | None = None
    scores: tuple[float, float] | None = None
    error: str | None = None


def unread(why: str) -> Reading:
    return Reading(error=f"unparsed: {why}")


def higher(first: float, second: float) -> Winner:
    """A where the first is greater, B where the second is, or a tie."""
    return WINNERS[compare(first, second)]


def after_thinking(text: str) -> str:
    """What follows the last `</think>`; all, where there is no thinking; nothing, where it does not end."""
    _, mark, answer = text.rpartition("</think>")
    return "" if not mark and "<think>" in text else answer


def between(text: str, opening: str, closing: str) -> Iterator[str]:
    """What stands between an opening mark and the closing one that follows before the next opening one."""
    for part in text.split(opening)[1:]:
        inside, mark, _ = part.partition(closing)
        if mark:
            yield inside


def boxed(text: str) -> Iterator[str]:
    r"""What stands in each `\boxed{…}`, out of `\text{…}`."""
    for inside in between(text, "\\boxed{", "}"):
        yield inside.removeprefix("\\text{").strip()


def whole_number(text: str, least: int, most: int) -> int | None:
    """The number that the text is, white space around it allowed; None unless it is whole and in range."""
    text = text.strip()
    if not 0 < len(text) <= 4 or not (text.isascii() and text.isdigit()):
        return None
    return number if least <= (number := int(text)) <= most else None


def one_of_marks(text: str, mark_a: str, mark_b: str) -> Reading:
    """The choice whose mark the text has; with both it says nothing (as RM-R1 counts, against hedging)."""
    match mark_a in text, mark_b in text:
        case True, False:
            return Reading(choice="A")
        case False, True:
            return Reading(choice="B")
        case True, True:
            return unread(f"both {mark_a} and {mark_b}")
    return unread(f"neither {mark_a} nor {mark_b}")
