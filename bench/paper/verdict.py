"""Whether a finding of the paper holds here, by one rule for all of them.

A finding is stated as a number per seed that is positive if it holds: a difference of two models trained from the same
start on the same data. Of the seeds' mean there is a 95 % interval by Student's t. The finding holds if the whole
interval is above 0, does not hold if it is below, and cannot be told otherwise, or from a single seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, stdev
from typing import Literal

Word = Literal["holds", "does not hold", "cannot be told"]

# 97.5 % points of Student's t by degrees of freedom; beyond, the last one, which is a little too wide.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and half the width of its 95 % interval, infinite with one seed."""

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """
    Args:
        values: one per seed, at least one.
    """
    num = len(values)
    if num == 1:
        return Estimate(values[0], inf)
    return Estimate(fmean(values), _T[min(num - 2, len(_T) - 1)] * stdev(values) / sqrt(num))


def verdict(values: Sequence[float]) -> Word:
    """Of one number per seed, positive where the finding holds. Equal numbers other than 0 leave no doubt."""
    found = estimate(values)
    if found.low > 0:
        return "holds"
    return "does not hold" if found.high < 0 else "cannot be told"
