"""LLMBar (princeton-nlp/LLMBar: LLMEvaluator/evaluate.py).

A row per instance: the ratings of its two outputs, as numbers or as the judge wrote them; or the winners that a judge
named in the two orders, both in the instance's own order, or "tie". null, and a rating that is no whole number, is
unparsed:

    {"id": "Natural/0", "subset": "Natural", "label": 1, "score_1": "9", "score_2": "7"}
    {"id": "GPTInst/4", "subset": "GPTInst", "label": 2, "winners": ["2", "1"]}

An instance counts in both orders, and accuracy is the mean of the two. Ratings decide alike in both, but equal ones
(and unparsed ones) are right in one of them: half. A tie or an unparsed winner is wrong. Agreement is the share of
instances whose two orders name one winner, or both none. Adversarial is the mean of four subsets, Average that of all
five.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from patarm_core.benchmarks.outcomes import (
    NULL,
    OFFICIAL,
    POLICIES,
    Comparison,
    Outcome,
    columns,
    mean,
    one_form,
    outcome_of,
    preference_report,
    read_score,
    share,
    summed,
    tally,
)
from patarm_core.benchmarks.report import (
    Metric,
    Report,
    composites,
    incomplete_note,
    missing_parts,
    proportion,
    read_rows,
    whole,
)
from patarm_core.fields import Fields, show

SIZES = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")


@dataclass(frozen=True, slots=True)
class _Judged:
    id: tuple[str, str] | None  # with its subset
    subset: str
    orders: tuple[Comparison, Comparison]
    outcomes: tuple[Outcome, ...]  # of the ratings, or of the two winners
    agree: bool


def report(rows: Sequence[Mapping]) -> Report:
    judged = read_rows(rows, read_row, unique="id")
    by_subset = {subset: [one for one in judged if one.subset == subset] for subset in SIZES}
    strata = {subset: columns(one.orders for one in of_subset) for subset, of_subset in by_subset.items() if of_subset}
    missing = missing_parts({subset: len(of_subset) for subset, of_subset in by_subset.items()}, SIZES)
    of_mean = {"Average": tuple(SIZES), "Adversarial": ADVERSARIAL}

    def statistic(sums: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], float | None]:
        return {
            (policy, name): mean(share(sums[subset], policy) for subset in subsets if subset in sums)
            for policy in POLICIES
            for name, subsets in of_mean.items()
            if any(subset in sums for subset in subsets)
        }

    def label(key: tuple[str, str]) -> tuple[str, int]:
        policy, name = key
        there = [strata[subset] for subset in of_mean[name] if subset in strata]
        missing_here = [m for m in missing if m.partition(":")[0] in of_mean[name]]
        return whole(name, missing_here), _num_instances(summed(there), policy)

    composed = composites(strata, statistic, label)
    tables: dict[str, list[Metric]] = {}
    for policy in POLICIES:
        tables[policy] = [metric for (of, _), metric in composed.items() if of == policy]
        for subset, part in strata.items():
            earned, num = tally(summed([part]), policy)
            half = proportion(subset, earned / 2, num / 2)  # both orders of an instance are one observation
            tables[policy].append(replace(half, num=_num_instances(summed([part]), policy)))
    tables[OFFICIAL] += [
        proportion(f"Agreement of the orders, {subset}", sum(one.agree for one in of_subset), len(of_subset))
        for subset, of_subset in by_subset.items()
        if of_subset
    ]
    return preference_report(
        "LLMBar",
        tables,
        [one.outcomes for one in judged],
        (
            *incomplete_note(missing),
            "Official rule: the mean of both orders, in which equal and unparsed ratings count half, and a tie or an "
            "unparsed winner counts 0.",
        ),
    )


def read_row(row: Mapping) -> _Judged:
    fields = Fields(row)
    subset = fields.one_of("subset", tuple(SIZES))
    label, given = fields.whole("label", 1, 2), fields.label("id", None)
    name = None if given is None else (subset, given)
    if one_form(fields, ("score_1", "winners")) == "winners":
        winners = _read_winners(fields)
        known: dict[str | None, Outcome] = {
            str(label): "right",
            str(3 - label): "wrong",
            "tie": "tie",
            None: "unparsed",
        }
        outcomes = tuple(known[winner] for winner in winners)
        first, second = (Comparison(outcome, float(outcome == "right")) for outcome in outcomes)
        named = {None if winner == "tie" else winner for winner in winners}
        return _Judged(name, subset, (first, second), outcomes, len(named) == 1)
    score_1, score_2 = (_read_rating(fields, f"score_{i}") for i in (1, 2))
    outcome = outcome_of(score_1, score_2) if label == 1 else outcome_of(score_2, score_1)
    # Undecided: of the two orders one is right.
    both = Comparison(outcome, {"right": 1.0, "wrong": 0.0}.get(outcome, 0.5))
    return _Judged(name, subset, (both, both), (outcome,), outcome in ("right", "wrong"))


def _num_instances(sums: Mapping[str, float], policy: str) -> int:
    """That count under a tie rule, if in one order alone."""
    return math.ceil(tally(sums, policy)[1] / 2)


def _read_rating(fields: Fields, field: str) -> float | None:
    """A number as it stands; of a text, the whole number that it is."""
    value = fields.data.get(field)
    if not isinstance(value, str):
        return read_score(fields, field)
    try:
        return int(value)
    except ValueError:
        return None


def _read_winners(fields: Fields) -> list[str | None]:
    value = fields.data["winners"]
    if not isinstance(value, list) or len(value) != 2:
        raise fields.error("winners", "is no list of two; expected those of the two orders")
    for i, winner in enumerate(value):
        if not isinstance(winner, str | None) or winner not in ("1", "2", "tie", None):
            raise fields.error(f"winners[{i}]", f'is {show(winner)}; expected "1", "2", "tie", or {NULL}')
    return value
