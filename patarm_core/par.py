"""Preference-aware reward (PAR): rewards of pointwise judgments, from preference pairs alone (arXiv 2510.24235).

    R_PAR(y_i^c) = 1[s_i^c > s̄^r] f(δ_i^c)      δ_i^c = |s_i^c − s̄^r|
    R_PAR(y_j^r) = 1[s_j^r < s̄^c] f(δ_j^r)      δ_j^r = |s_j^r − s̄^c|
    R            = R_PAR + R_format

The rule is a strict inequality against a mean, so everything is computed in exact fractions: in float32 the mean of
eight equal scores differs from the score for 64 of the 101 values 0.0 … 10.0, and a tie would earn a reward.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from numbers import Rational, Real

from patarm_core.judgment import Choice, Judgment

Score = Real | Decimal | None  # None: the judgment has no valid score
MarginReward = Callable[[Fraction], float]  # f(δ), called with δ > 0 only


def exact(number: Real | Decimal) -> Fraction:
    """The fraction that a number stands for; of a float, that is its shortest decimal form (8.3 is 83/10).

    Raises:
        ValueError: not a finite number (booleans are refused too).
    """
    if type(number) is Fraction:
        return number
    if isinstance(number, bool) or not isinstance(number, Real | Decimal):
        raise ValueError(f"expected a finite number, got {number!r}")
    if isinstance(number, Rational):
        return Fraction(int(number.numerator), int(number.denominator))  # int(): numpy's integers would wrap around
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {number!r}")
    # Real types other than float (numpy.float32) print the shortest decimal of their own precision.
    return Fraction(float.__repr__(number) if isinstance(number, float) else str(number))


def mean_score(scores: Iterable[Score]) -> Fraction | None:
    """s̄: the exact mean of the valid scores, None where there is none."""
    valid = [exact(s) for s in scores if s is not None]
    return sum(valid, Fraction()) / len(valid) if valid else None


@dataclass(frozen=True)
class Graded:
    """f(δ) = low for 0 < δ ≤ threshold, high for δ > threshold. Made by `graded`."""

    threshold: float  # of the margin, in score points
    low: float
    high: float

    def __post_init__(self):
        threshold, low, high = (exact(value) for value in (self.threshold, self.low, self.high))
        if threshold < 0 or not 0 <= low <= high:
            raise ValueError(f"a graded margin reward needs threshold >= 0 and 0 <= low <= high, got {self}")

    def __call__(self, margin: Fraction) -> float:
        return self.low if margin <= self._exact_threshold else self.high

    @cached_property
    def _exact_threshold(self) -> Fraction:
        return exact(self.threshold)


@dataclass(frozen=True)
class Constant:
    """f(δ) = value for every δ > 0. Made by `constant`."""

    value: float

    def __post_init__(self):
        if exact(self.value) < 0:
            raise ValueError(f"a constant margin reward needs value >= 0, got {self}")

    def __call__(self, margin: Fraction) -> float:
        return self.value


def graded(threshold: float = 2.0, low: float = 1.2, high: float = 1.4) -> Graded:
    """The paper's graded margin reward: `low` up to and including `threshold`, `high` above it."""
    return Graded(threshold, low, high)


def constant(value: float = 1.3) -> Constant:
    """The paper's constant margin reward: `value` for every margin."""
    return Constant(value)


GRADED = graded()


def par_rewards(
    chosen_scores: Sequence[Score], rejected_scores: Sequence[Score], margin_reward: MarginReward = GRADED
) -> tuple[list[float], list[float]]:
    """R_PAR: rewards every judgment that puts its response on the right side of the other one's mean score.

    A judgment without a score gets 0 and enters no mean. Where a side has no score at all, no comparison is made and
    both sides get 0 throughout. (The paper is silent on both.) A tie with the mean gets 0.

    Args:
        chosen_scores: s_i^c, one per judgment of the chosen response; numbers, or None for no valid score. They are
            compared exactly, a float standing for its shortest decimal form.
        rejected_scores: s_j^r, one per judgment of the rejected response. The two sides may differ in length.
        margin_reward: f(δ) of an exact margin δ > 0.

    Returns:
        Rewards of the chosen and of the rejected judgments, in the order given.

    Raises:
        ValueError: a score is not a finite number.
    """
    chosen = [None if s is None else exact(s) for s in chosen_scores]
    rejected = [None if s is None else exact(s) for s in rejected_scores]
    mean_c, mean_r = mean_score(chosen), mean_score(rejected)
    if mean_c is None or mean_r is None:
        return [0.0] * len(chosen), [0.0] * len(rejected)
    return (
        [float(margin_reward(s - mean_r)) if s is not None and s > mean_r else 0.0 for s in chosen],
        [float(margin_reward(mean_c - s)) if s is not None and s < mean_c else 0.0 for s in rejected],
    )


def total_rewards(
    chosen: Sequence[Judgment], rejected: Sequence[Judgment], margin_reward: MarginReward = GRADED
) -> tuple[list[float], list[float]]:
    """R = R_PAR + R_format of every pointwise judgment of a pair; a malformed one gets R_format alone.

    Raises:
        ValueError: a judgment was parsed as a pairwise choice.
    """
    for judgment in (*chosen, *rejected):
        if judgment.error is None and judgment.score is None:
            raise ValueError("PAR needs judgments with scores, got one that was parsed with answer='choice'")
    par_c, par_r = par_rewards([j.score for j in chosen], [j.score for j in rejected], margin_reward)
    return (
        [par + j.format_reward for par, j in zip(par_c, chosen, strict=True)],
        [par + j.format_reward for par, j in zip(par_r, rejected, strict=True)],
    )


def pairwise_rewards(judgments: Sequence[Judgment], right_choice: Choice) -> list[float]:
    """Rewards of pairwise judgments: 1 for the right choice, 0 for the wrong one, plus R_format.

    Args:
        judgments: of one rollout set, so with one order of A and B.
        right_choice: the side on which the chosen response was shown.

    Raises:
        ValueError: `right_choice` is neither "A" nor "B", or a judgment was parsed as a score.
    """
    if right_choice not in ("A", "B"):
        raise ValueError(f"right_choice must be 'A' or 'B', got {right_choice!r}")
    for judgment in judgments:
        if judgment.error is None and judgment.choice is None:
            raise ValueError("pairwise rewards need judgments with choices, got one parsed with answer='score'")
    return [(1.0 if j.choice == right_choice else 0.0) + j.format_reward for j in judgments]
