"""What every judge of this package is: questions in, judgments out, as they are finished.

A judgment without a score or choice says why (`error`); nothing stands for it, least of all 0. One set of judgments
serves every voting@n: `mean_of` and `choice_of` read its first n.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

from patarm_core.prompts import Prompt
from patarm_core.voting import Verdict, at_n, compare, majority_choice, mean_score

Mode = Literal["pointwise", "pairwise"]
Winner = Literal["A", "B", "tie"]
WINNERS: Mapping[Verdict | None, Winner | None] = {"chosen": "A", "rejected": "B", "tie": "tie", None: None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One response to be scored, or two, A and B, to be compared."""

    id: str
    task: str = "chat"  # a task that there are rubrics for; judges without rubrics pass over it
    prompt: Prompt  # a text, or messages of role and content
    responses: tuple[str, ...]
    kept: frozenset[int] = frozenset()  # votes that are there from before: a judge may leave them out (`KEPT`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One judgment. `error` is None exactly where there is a score (pointwise) or a choice (pairwise)."""

    text: str | None = None  # as written; None of judges that write nothing, and where there is no reply
    score: float | None = None
    choice: Winner | None = None  # in the question's own order, whatever order was read
    error: str | None = None
    seed: int | None = None  # of the draw, where there is one
    seconds: float | None = None  # from when it was asked to when it was there
    is_swapped: bool = False  # pairwise: B was read first
    # Pairwise, of judges whose votes are sums of scores (DeepSeek-GRM): of A and of B, in the question's order.
    scores: tuple[float, float] | None = None


KEPT = Drawn(error="kept: there from before")  # in place of a vote that was not asked for, and passed over by who asks


class Judge(Protocol):
    """A pointwise judge takes questions of one response, a pairwise one of two."""

    name: str
    mode: Mode

    @property
    def fingerprint(self) -> Mapping[str, object]:
        """All that its judgments depend on besides the questions: model, template, sampling, seed. JSON-ready."""

    def judge(self, questions: Sequence[Question], votes: int) -> Iterator[tuple[int, list[Drawn]]]:
        """(index of a question, its `votes` judgments), in any order, as they are finished.

        Question k's judgments do not depend on the others, and its first n not on how many follow. What cannot be
        asked or read is an error of its judgments and raises nothing.

        Raises:
            ValueError: what no question can be judged with, such as a judge that cannot do this mode.
        """


def mean_of(drawn: Sequence[Drawn], votes: int) -> Fraction | None:
    """The mean of the valid scores of the first `votes` judgments, exactly; None where there is none."""
    return mean_score([item.score for item in at_n(drawn, votes)])


def choice_of(drawn: Sequence[Drawn], votes: int) -> Winner | None:
    """What the first `votes` judgments of two responses choose together.

    The majority of choices, of which ties abstain; where judgments have scores of both, the higher sum. None where
    there is nothing to go by.
    """
    first = at_n(drawn, votes)
    both = [item.scores for item in first if item.scores is not None]
    if both:
        return WINNERS[compare(*(mean_score(side) for side in zip(*both, strict=True)))]
    choices = [item.choice for item in first]
    decided = majority_choice([choice for choice in choices if choice != "tie"] or [None])
    return "tie" if decided is None and "tie" in choices else decided


def score(judge: Judge, prompt: Prompt, response: str, *, task: str = "chat", votes: int = 1) -> float | None:
    """The mean score of one response; None, never 0, where no judgment has one."""
    ((_, drawn),) = judge.judge([Question(id="0", task=task, prompt=prompt, responses=(response,))], votes)
    mean = mean_of(drawn, votes)
    return None if mean is None else float(mean)


def compare_two(judge: Judge, prompt: Prompt, a: str, b: str, *, task: str = "chat", votes: int = 1) -> Winner | None:
    """Which of two responses is better: by their mean scores, or by a pairwise judge's choices."""
    if judge.mode == "pairwise":
        ((_, drawn),) = judge.judge([Question(id="0", task=task, prompt=prompt, responses=(a, b))], votes)
        return choice_of(drawn, votes)
    questions = [Question(id=side, task=task, prompt=prompt, responses=(side,)) for side in (a, b)]
    drawn = dict(judge.judge(questions, votes))
    return WINNERS[compare(mean_of(drawn[0], votes), mean_of(drawn[1], votes))]
