"""What the aggregation of a benchmark gives back, and how its numbers get their 95 % intervals.

Each file beside this one has `report(rows) -> Report`; a row is a JSON object as the file's docstring shows it.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from patarm_core.stats import bootstrap_intervals, wilson_interval

SEED = 0  # of the bootstrap: the same rows give the same interval
NUM_RESAMPLES = 1000

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a report."""

    name: str
    value: float | None  # a share in 0..1; None: nothing was scored
    num: int  # items that it was computed from
    low: float | None = None  # 95 % interval; None: of what was not scored, or see `composites`
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The official numbers of one benchmark, headline first, and what must be known to read them."""

    benchmark: str
    metrics: tuple[Metric, ...]  # under the official tie rule
    policies: Mapping[str, tuple[Metric, ...]]  # other tie rule, in words → the same metrics under it
    num_items: int
    num_ties: int  # judgments that preferred neither
    num_unparsed: int  # judgments without a verdict or score
    notes: tuple[str, ...]  # missing parts, identities checked, what is not official


class RowError(ValueError):
    """A row that cannot be used; the message is `row N: field: what is wrong; what would be right`, N from 1."""

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"row {index + 1}: {problem}")
        self.index, self.problem = index, problem


def read_rows(rows: Sequence[Mapping], read_row: Callable[[Mapping], Row], unique: str = "") -> list[Row]:
    """Every row, checked by `read_row`.

    Args:
        rows: JSON objects.
        read_row: raises a ValueError that names the field and what would be right.
        unique: field that no two rows may share, and attribute of what `read_row` returns; None apart.

    Raises:
        RowError: one of them cannot be used, or stands there twice.
        ValueError: there are none.
    """
    if not rows:
        raise ValueError("no rows; expected one JSON object per judged item")
    read, seen = [], {}
    for index, row in enumerate(rows):
        try:
            read.append(read_row(row))
        except ValueError as error:
            raise RowError(index, str(error)) from None
        key = getattr(read[-1], unique) if unique else None
        if key is not None and seen.setdefault(key, index) != index:
            raise RowError(index, f"{unique}: row {seen[key] + 1} has the same; expected each item once")
    return read


def proportion(name: str, successes: float, num: int) -> Metric:
    """A share of independent items, with its Wilson interval."""
    if num == 0:
        return Metric(name, None, 0)
    return Metric(name, successes / num, num, *wilson_interval(successes, num))


def composites(
    strata: Mapping[str, Mapping[str, Sequence[float]]],
    statistic: Callable[[Mapping[str, Mapping[str, float]]], Mapping[Key, float | None]],
    label: Callable[[Key], tuple[str, int]],
) -> dict[Key, Metric]:
    """Numbers made of several means or of clustered items, with bootstrap intervals over prompts.

    A number that is the same in every resample has no interval: one prompt, or prompts that are all alike, do not show
    how far off it may be, and a point would pass for certainty.

    Args:
        strata: part of the benchmark → column → one value per prompt; parts without prompts are left out.
        statistic: from the sums, part → column → sum, to the numbers by key; None for a share of nothing.
        label: a key's name and its number of items.
    """
    sums = {name: {column: math.fsum(values) for column, values in columns.items()} for name, columns in strata.items()}
    intervals = bootstrap_intervals(strata, statistic, SEED, NUM_RESAMPLES)

    found = {}
    for key, value in statistic(sums).items():
        (name, num), (low, high) = label(key), intervals[key] if value is not None else (None, None)
        found[key] = Metric(name, value, num, *((low, high) if low != high else ()))
    return found


def missing_parts(found: Mapping[str, int], official: Mapping[str, int]) -> list[str]:
    """Which parts of the benchmark differ in size from the published one, in words: `math: 0 of 529`."""
    return [f"{part}: {found.get(part, 0)} of {num}" for part, num in official.items() if found.get(part, 0) != num]


def whole(name: str, missing: Sequence[str]) -> str:
    """The name of a number over the whole benchmark, which says so where it is not the whole."""
    return name if not missing else f"{name} of an incomplete set"


def incomplete_note(missing: Sequence[str]) -> list[str]:
    return (
        [f"Not the whole benchmark, and not comparable with published totals: {'; '.join(missing)}."] if missing else []
    )
