"""Voting: many judgments of one response or pair, one verdict (arXiv 2510.24235, sec. 5.4).

Scores are numbers, or None for a judgment without a valid score. Means and comparisons are exact, so that a tie is a
tie. A response without one valid judgment has no score: None, never 0.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

from patarm_core.judgment import Choice
from patarm_core.par import Score, exact, mean_score

Verdict = Literal["chosen", "rejected", "tie"]
Item = TypeVar("Item")


def average(scores: Iterable[Score]) -> float | None:
    """Average voting: the mean of the valid scores, None where there is none.

    For a report. Compare with `compare(mean_score(...), mean_score(...))`: two different means may be one float.
    """
    mean = mean_score(scores)
    return None if mean is None else float(mean)


def compare(chosen_score: Score, rejected_score: Score) -> Verdict | None:
    """Which side has the higher score; None where a side has none."""
    if chosen_score is None or rejected_score is None:
        return None
    return _winner(exact(chosen_score), exact(rejected_score), ("chosen", "rejected"))


def majority(chosen_scores: Sequence[Score], rejected_scores: Sequence[Score]) -> Verdict | None:
    """Majority voting: the i-th judgments of the two sides vote together for the side they score higher.

    Equal scores abstain and an even vote is a tie. None where no i has a valid score on both sides.

    Raises:
        ValueError: the sides have different numbers of judgments.
    """
    if len(chosen_scores) != len(rejected_scores):
        raise ValueError(f"majority voting pairs judgments, got {len(chosen_scores)} and {len(rejected_scores)}")
    votes = [compare(c, r) for c, r in zip(chosen_scores, rejected_scores, strict=True)]
    return _winner_of_votes(votes, ("chosen", "rejected"))


def unswap(choice: Choice | None, is_swapped: bool) -> Choice | None:
    """The choice in the pair's own order, where the judge may have seen B first."""
    if choice is None or not is_swapped:
        return choice
    return "B" if choice == "A" else "A"


def majority_choice(choices: Iterable[Choice | None]) -> Choice | Literal["tie"] | None:
    """Majority of pairwise choices, already un-swapped; None entries do not vote. None where nothing votes."""
    votes = list(choices)
    for vote in votes:
        if vote not in ("A", "B", None):
            raise ValueError(f"a choice must be 'A', 'B' or None, got {vote!r}")
    return _winner_of_votes(votes, ("A", "B"))


def at_n(items: Sequence[Item], n: int) -> Sequence[Item]:
    """The first n judgments of a set, for voting@n: every n is read from one set of judgments.

    Raises:
        ValueError: n < 1, or the set holds fewer than n.
    """
    if not 1 <= n <= len(items):
        raise ValueError(f"voting@n needs 1 <= n <= the number of judgments, got n={n} of {len(items)}")
    return items[:n]


def _winner_of_votes(votes: list, sides: tuple[str, str]):
    if all(vote is None for vote in votes):
        return None
    return _winner(votes.count(sides[0]), votes.count(sides[1]), sides)


def _winner(first, second, sides: tuple[str, str]):
    if first == second:
        return "tie"
    return sides[0] if first > second else sides[1]
