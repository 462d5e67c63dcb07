"""Judged comparisons and what they count under each tie rule, shared by the benchmarks of preferences."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from patarm_core.benchmarks.report import Metric, Report, proportion
from patarm_core.fields import Fields, kind, show

Outcome = Literal["right", "wrong", "tie", "unparsed"]

OFFICIAL = "official"
TIES_WRONG = "tie = wrong, unparsed = wrong"
TIES_HALF = "tie = half, unparsed = half"
LEFT_OUT = "ties and unparsed left out"
POLICIES = (OFFICIAL, TIES_WRONG, TIES_HALF, LEFT_OUT)

NULL = "null for an unparsed judgment"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison of a right and a wrong response, and what the official rule gives for it (0 to 1)."""

    outcome: Outcome
    official: float


def outcome_of(chosen: float | None, rejected: float | None) -> Outcome:
    """Of two scores; None is a judgment without one."""
    if chosen is None or rejected is None:
        return "unparsed"
    return "tie" if chosen == rejected else "right" if chosen > rejected else "wrong"


def columns(groups: Iterable[Sequence[Comparison]], prefix: str = "") -> dict[str, list[float]]:
    """One value per prompt, whose comparisons are a group: what `tally` needs of them."""
    groups = list(groups)
    return {
        f"{prefix}num": [len(group) for group in groups],
        f"{prefix}official": [math.fsum(one.official for one in group) for group in groups],
        f"{prefix}right": [sum(one.outcome == "right" for one in group) for group in groups],
        f"{prefix}undecided": [sum(one.outcome in ("tie", "unparsed") for one in group) for group in groups],
    }


def tally(sums: Mapping[str, float], policy: str, prefix: str = "") -> tuple[float, int]:
    """What the comparisons earned under a tie rule, and how many of them count."""
    num, undecided, right = (sums[prefix + name] for name in ("num", "undecided", "right"))
    if policy == OFFICIAL:
        return sums[f"{prefix}official"], int(num)
    if policy == LEFT_OUT:
        return right, int(num - undecided)
    return right + (undecided / 2 if policy == TIES_HALF else 0), int(num)


def share(sums: Mapping[str, float], policy: str, prefix: str = "") -> float | None:
    earned, num = tally(sums, policy, prefix)
    return earned / num if num else None


def mean(values: Iterable[float | None]) -> float | None:
    """Of all of them; None if one does not exist, or none is there."""
    values = list(values)
    return None if not values or None in values else math.fsum(values) / len(values)


def summed(parts: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The columns of several parts, each added up."""
    sums: dict[str, float] = {}
    for part in parts:
        for column, values in part.items():
            sums[column] = sums.get(column, 0) + math.fsum(values)
    return sums


def accuracy(name: str, parts: Iterable[Mapping[str, Sequence[float]]], policy: str) -> Metric:
    """The share of a pool of prompts with one comparison each, with its Wilson interval."""
    return proportion(name, *tally(summed(parts), policy))


def preference_report(
    benchmark: str,
    tables: Mapping[str, Sequence[Metric]],
    outcomes: Sequence[Sequence[Outcome]],
    notes: Sequence[str],
) -> Report:
    """
    Args:
        tables: by policy.
        outcomes: of each item those of its judgments or comparisons, among which ties and unparsed ones are counted.
    """
    return Report(
        benchmark=benchmark,
        metrics=tuple(tables[OFFICIAL]),
        policies={policy: tuple(metrics) for policy, metrics in tables.items() if policy != OFFICIAL},
        num_items=len(outcomes),
        num_ties=sum(one.count("tie") for one in outcomes),
        num_unparsed=sum(one.count("unparsed") for one in outcomes),
        notes=tuple(notes),
    )


def read_score(fields: Fields, field: str) -> float | None:
    """A finite number, or null."""
    return _score(fields, field, _given(fields, field, f"a number, or {NULL}"))


def read_scores(fields: Fields, field: str, num: int | None = None) -> list[float | None]:
    """A list of finite numbers and nulls."""
    expected = f"a list of {num or ''} numbers, or {NULL}".replace("  ", " ")
    value = _given(fields, field, expected)
    if not isinstance(value, list):
        raise fields.error(field, f"is {kind(value)}; expected {expected}")
    if not value or num not in (None, len(value)):
        raise fields.error(field, f"has {len(value)} entries; expected {expected}")
    return [_score(fields, f"{field}[{i}]", entry) for i, entry in enumerate(value)]


def read_result(fields: Fields, field: str) -> Outcome:
    """A verdict as judges' files record it: 1 right, 0 wrong, 0.5 neither, null unparsed."""
    return result_outcome(fields, field, _given(fields, field, f"1, 0, 0.5, or {NULL}"))


def result_outcome(fields: Fields, field: str, value: object) -> Outcome:
    if value is None:
        return "unparsed"
    if isinstance(value, int | float) and value in (0, 0.5, 1):  # true and false, too
        return "right" if value == 1 else "wrong" if value == 0 else "tie"
    raise fields.error(field, f"is {show(value)}; expected 1, 0, 0.5, or {NULL}")


def one_form(fields: Fields, forms: Sequence[str]) -> str:
    """Which of these fields, of which a row has one, it has."""
    there = [form for form in forms if form in fields.data]
    if len(there) != 1:
        given = " and ".join(there) if there else "neither is there"
        raise fields.error(forms[0], f"{given}; expected {' or '.join(forms)}")
    return there[0]


def _given(fields: Fields, field: str, expected: str) -> object:
    if field not in fields.data:
        raise fields.error(field, f"missing; expected {expected}")
    return fields.data[field]


def _score(fields: Fields, field: str, value: object) -> float | None:
    # Not math.isfinite: JSON has whole numbers that no float can hold.
    if value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max):
        return value
    raise fields.error(field, f"is {show(value)}; expected a number, or {NULL}")
