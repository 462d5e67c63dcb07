"""Rewards of groups some of whose completions have no score: a judge that did not answer is not a score of 0."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from patarm_core.par import Score, exact, mean_score

UnscoredRule = Literal["mean", "drop"]


def filled(scores: Sequence[Sequence[Score]], rule: UnscoredRule) -> list[list[Fraction | None]]:
    """The rewards of each group; None where a completion is left out of the step.

        mean   an unscored completion gets the mean of its group's scores: the group's mean stays what it was, and the
               completion is neither better nor worse than it. A group without any score has no mean and is left out: an
               invented one would be a reward where the baseline is that of the step ("reinforce++").
        drop   it is left out, as if it had not been drawn; of a group with fewer than two scores everything is, for
               one score cannot be compared.

    Args:
        scores: of each group, exact or floats (which stand for their shortest decimal form); None where there is none.
    """
    if rule not in ("mean", "drop"):
        raise ValueError(f"unknown rule {rule!r} for unscored completions; rules are mean, drop")
    return [_mean_filled(group) if rule == "mean" else _dropped(group) for group in scores]


def _mean_filled(group: Sequence[Score]) -> list[Fraction | None]:
    mean = mean_score(group)
    return [mean if score is None else exact(score) for score in group]


def _dropped(group: Sequence[Score]) -> list[Fraction | None]:
    num_scored = sum(score is not None for score in group)
    return [exact(score) if score is not None and num_scored > 1 else None for score in group]
