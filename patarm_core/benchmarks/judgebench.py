"""JudgeBench (ScalerLab/JudgeBench: utils/metrics.py, run_judge.py).

A row per pair: two scores, or the decisions of a judge that read the pair in its own order and then swapped, each as
the judge gave it (so the second one is about the swapped pair). null is an unparsed judgment:

    {"source": "mmlu-pro-law", "label": "A>B", "scores": [7.5, 4.0]}
    {"source": "livecodebench", "label": "B>A", "decisions": ["B>A", "A=B"]}

Two orders: right if more decisions are right than wrong (one right and one tie is right, one each way is not). Scores:
the decision is A>B if A's is higher, else B>A, so that the official rule gives a tie to B. Overall is the share of all
pairs. A>>B counts as A>B.
"""

from collections.abc import Mapping, Sequence

from patarm_core.benchmarks.outcomes import (
    NULL,
    OFFICIAL,
    POLICIES,
    Comparison,
    accuracy,
    columns,
    of_policies,
    one_form,
    outcome_of,
    read_scores,
)
from patarm_core.benchmarks.report import Metric, Report, incomplete_note, missing_parts, proportion, read_rows, whole
from patarm_core.fields import Fields, show

CATEGORIES = {
    "mmlu-pro": "Knowledge", "livebench-reasoning": "Reasoning", "livebench-math": "Math", "livecodebench": "Coding",
}  # fmt: skip
SETS = {
    "gpt-4o": {"Knowledge": 154, "Reasoning": 98, "Math": 56, "Coding": 42},
    "claude": {"Knowledge": 154, "Reasoning": 51, "Math": 34, "Coding": 31},
}
LABELS = ("A>B", "B>A")
BOTH_ORDERS = "right in both orders"
_DECISIONS = {"A>B": "A>B", "A>>B": "A>B", "B>A": "B>A", "B>>A": "B>A", "A=B": "A=B", None: None}
_FLIPPED = {"A>B": "B>A", "B>A": "A>B"}


class _Judged:
    __slots__ = ("category", "comparison", "num_orders_right", "num_ties", "num_unparsed")

    def __init__(self, category: str, comparison: Comparison, right: int | None, ties: int, unparsed: int) -> None:
        self.category, self.comparison, self.num_orders_right = category, comparison, right
        self.num_ties, self.num_unparsed = ties, unparsed


def report(rows: Sequence[Mapping]) -> Report:
    judged = read_rows(rows, read_row)
    by_category = {name: [one for one in judged if one.category == name] for name in SETS["gpt-4o"]}
    found = {name: len(of) for name, of in by_category.items()}
    # Rows do not say which model wrote the pairs: it is the set that they come closest to.
    writer, missing = min(
        ((name, missing_parts(found, sizes)) for name, sizes in SETS.items()), key=lambda one: len(one[1])
    )

    def table(of: dict[str, list], metric) -> list[Metric]:
        return [
            metric(whole("Overall", missing), judged),
            *(metric(whole(name, [m for m in missing if m.startswith(name)]), of[name]) for name in of if of[name]),
        ]

    tables = {
        policy: [
            accuracy(metric.name, [columns([one.comparison] for one in items)], policy)
            for metric, items in zip(
                table(by_category, lambda name, items: proportion(name, 0, len(items))),
                [judged, *(of for of in by_category.values() if of)],
            )
        ]
        for policy in POLICIES
    }
    if all(one.num_orders_right is not None for one in judged):
        tables[BOTH_ORDERS] = table(
            by_category,
            lambda name, items: proportion(name, sum(one.num_orders_right == 2 for one in items), len(items)),
        )
    return Report(
        benchmark="JudgeBench",
        metrics=tuple(tables[OFFICIAL]),
        policies=of_policies(tables),
        num_items=len(judged),
        num_ties=sum(one.num_ties for one in judged),
        num_unparsed=sum(one.num_unparsed for one in judged),
        notes=(
            *incomplete_note([f"{part} pairs by {writer}" for part in missing]),
            *([] if missing else [f"The set of pairs by {writer}, {len(judged)} of them."]),
            "Official rule: of two orders, more decisions must be right than wrong; of two scores, a tie goes to B. In "
            "the other tables a pair that is not decided (a tie, or one order each way) is what they say.",
        ),
    )


def read_row(row: Mapping) -> _Judged:
    fields = Fields(row)
    source = fields.text("source")
    category = next((name for start, name in CATEGORIES.items() if source.startswith(start)), None)
    if category is None:
        raise fields.error("source", f"is {show(source)}; expected one that begins with {', '.join(CATEGORIES)}")
    label = fields.one_of("label", LABELS)
    if one_form(fields, ("scores", "decisions")) == "scores":
        score_a, score_b = read_scores(fields, "scores", 2)
        outcome = outcome_of(score_a, score_b) if label == "A>B" else outcome_of(score_b, score_a)
        is_right = outcome == "right" or (outcome == "tie" and label == "B>A")
        ties, unparsed = int(outcome == "tie"), int(outcome == "unparsed")
        return _Judged(category, Comparison(outcome, float(is_right)), None, ties, unparsed)
    decisions = _read_decisions(fields)
    own_order = [decisions[0], _FLIPPED.get(decisions[1], decisions[1])]
    right, wrong = own_order.count(label), own_order.count(_FLIPPED[label])
    is_unparsed = own_order.count(None) == len(own_order)
    undecided = "unparsed" if is_unparsed else "tie"
    outcome = "right" if right > wrong else "wrong" if wrong > right else undecided
    ties = own_order.count("A=B")
    return _Judged(category, Comparison(outcome, float(right > wrong)), right, ties, own_order.count(None))


def _read_decisions(fields: Fields) -> list[str | None]:
    value = fields.data["decisions"]
    if not isinstance(value, list) or len(value) != 2:
        raise fields.error("decisions", "is no list of two; expected those of the pair and of the pair swapped")
    for i, decision in enumerate(value):
        if not isinstance(decision, str | None) or decision not in _DECISIONS:
            names = ", ".join(name for name in _DECISIONS if name)
            raise fields.error(f"decisions[{i}]", f"is {show(decision)}; expected {names}, or {NULL}")
    return [_DECISIONS[decision] for decision in value]
