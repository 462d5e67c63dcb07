"""Intervals to print beside a number, with the standard library alone."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist


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
    _check_confidence(confidence)
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"a bootstrap needs at least one value, all finite, got {len(values)} values")
    if num_resamples < 1:
        raise ValueError(f"a bootstrap needs num_resamples >= 1, got {num_resamples}")
    rng = random.Random(seed)
    n = len(values)
    means = sorted(math.fsum(rng.choices(values, k=n)) / n for _ in range(num_resamples))
    # Off each end; exact, because (1 - 0.9) / 2 * 200 is just below 10 in floats.
    num_cut = math.floor((1 - Fraction(str(confidence))) / 2 * num_resamples)
    return means[num_cut], means[num_resamples - 1 - num_cut]


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
