"""Intervals to print beside a number, with the standard library alone."""

import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from statistics import NormalDist
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), without continuity correction.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),   p = successes / n

    Args:
        successes: 0 to n; may be fractional, so that a tie can count as half. (The interval is then a little too wide,
            because a half varies less than a 0 or a 1.)
        n: number of trials. With none, every proportion is possible: (0, 1).
        confidence: two-sided coverage, in (0, 1).

    Raises:
        ValueError: an argument is out of range.
    """
    _check_confidence(confidence)
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n, got successes={successes}, n={n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # The two ends that are exact in the formula and not in floats.
    low = 0.0 if successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if successes == n else min(1.0, centre + half_width)
    return low, high


def bootstrap_interval(
    values: Sequence[float], seed: int, num_resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979): the middle `confidence` share of resampled means.

    Args:
        values: one per independent unit, finite: for paired comparisons give differences, for clustered items give one
            value per cluster.
        seed: the interval is a function of it and of the other arguments.
        num_resamples: resamples with replacement, each as long as `values`.
        confidence: two-sided coverage, in (0, 1).

    Raises:
        ValueError: no values, a value that is not finite, or an option out of range.
    """
    n = len(values)
    strata = {"all": {"value": values}}
    return bootstrap_intervals(
        strata, lambda sums: {"mean": sums["all"]["value"] / n}, seed, num_resamples, confidence
    )["mean"]


def bootstrap_intervals(
    strata: Mapping[str, Mapping[str, Sequence[float]]],
    statistic: Callable[[Mapping[str, Mapping[str, float]]], Mapping[Key, float | None]],
    seed: int,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> dict[Key, tuple[float, float]]:
    """Percentile bootstrap intervals of numbers that are computed from sums over independent units.

    Each stratum is resampled on its own, so that its size stays what it is; all numbers come from the same resamples.

    Args:
        strata: stratum → column → one finite value per unit. The columns of a stratum are equally long.
        statistic: from the sums, stratum → column → sum, to numbers by key; None for one that does not exist there
            (a share of nothing).
        seed, num_resamples, confidence: as in `bootstrap_interval`.

    Returns:
        The interval of every key that had a number in some resample; resamples without one do not enter it.

    Raises:
        ValueError: a stratum without values, a value that is not finite, or an option out of range.
    """
    _check_confidence(confidence)
    if num_resamples < 1:
        raise ValueError(f"a bootstrap needs num_resamples >= 1, got {num_resamples}")
    for columns in strata.values():
        for values in columns.values():
            if not values or not all(map(math.isfinite, values)):
                raise ValueError(f"a bootstrap needs at least one value, all finite, got {len(values)} values")
    rng = random.Random(seed)
    drawn: dict[Key, list[float]] = {}
    for _ in range(num_resamples):
        sums = {}
        for name, columns in strata.items():
            n = len(next(iter(columns.values())))
            units = rng.choices(range(n), k=n)
            sums[name] = {column: math.fsum(map(values.__getitem__, units)) for column, values in columns.items()}
        for key, number in statistic(sums).items():
            if number is not None:
                drawn.setdefault(key, []).append(number)
    return {key: _middle(sorted(numbers), confidence) for key, numbers in drawn.items()}


def _middle(ordered: Sequence[float], confidence: float) -> tuple[float, float]:
    # Off each end; exact, because (1 - 0.9) / 2 * 200 is just below 10 in floats.
    num_cut = math.floor((1 - Fraction(str(confidence))) / 2 * len(ordered))
    return ordered[num_cut], ordered[len(ordered) - 1 - num_cut]


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
