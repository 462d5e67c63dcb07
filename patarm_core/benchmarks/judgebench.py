"""JudgeBench (ScalerLab/JudgeBench: utils/metrics.py, run_judge.py).

A row per pair: two scores, or the decisions of a judge that read the pair in its own order and then swapped, each as
the judge gave it (so the second one is about the swapped pair). null is an unparsed judgment:

    {"id": "81ec57f2", "source": "mmlu-pro-law", "label": "A>B", "scores": [7.5, 4.0]}
    {"id": "1fb1a4a0", "source": "livecodebench", "label": "B>A", "decisions": ["B>A", "A=B"]}

Two orders: right if more decisions are right than wrong (one right and one tie is right, one each way is not). Scores:
the decision is A>B if A's is higher, else B>A, so that the official rule gives a tie to B. Overall is the share of all
pairs. A>>B counts as A>B.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from patarm_core.benchmarks.outcomes import (
    NULL,
    POLICIES,
    Comparison,
    Outcome,
    accuracy,
    columns,
    one_form,
    outcome_of,
    preference_report,
    read_scores,
)
from patarm_core.benchmarks.report import Report, incomplete_note, missing_parts, proportion, read_rows, whole
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


@dataclass(frozen=True, slots=True)
class _Judged:
    id: str | None
    category: str
    comparison: Comparison
    outcomes: tuple[Outcome, ...]  # of the scores, or of the two decisions


def report(rows: Sequence[Mapping]) -> Report:
    judged = read_rows(rows, read_row, unique="id")
    by_category = {name: [one for one in judged if one.category == name] for name in SETS["gpt-4o"]}
    found = {name: len(of) for name, of in by_category.items()}
    # Rows do not say which model wrote the pairs: it is the set that they come closest to.
    writer, missing = min(
        ((name, missing_parts(found, sizes)) for name, sizes in SETS.items()), key=lambda one: len(one[1])
    )
    named = [(whole("Overall", missing), judged)]
    for name, of in by_category.items():
        if of:
            named.append((whole(name, [m for m in missing if m.startswith(name)]), of))
    tables = {
        policy: [accuracy(name, [columns([one.comparison] for one in of)], policy) for name, of in named]
        for policy in POLICIES
    }
    if all(len(one.outcomes) == 2 for one in judged):
        tables[BOTH_ORDERS] = [
            proportion(name, sum(one.outcomes.count("right") == 2 for one in of), len(of)) for name, of in named
        ]
    return preference_report(
        "JudgeBench",
        tables,
        [one.outcomes for one in judged],
        (
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
    label, given = fields.one_of("label", LABELS), fields.label("id", None)
    if one_form(fields, ("scores", "decisions")) == "scores":
        score_a, score_b = read_scores(fields, "scores", 2)
        outcome = outcome_of(score_a, score_b) if label == "A>B" else outcome_of(score_b, score_a)
        is_right = outcome == "right" or (outcome == "tie" and label == "B>A")
        return _Judged(given, category, Comparison(outcome, float(is_right)), (outcome,))
    first, swapped = _read_decisions(fields)
    named: dict[str | None, Outcome] = {label: "right", _FLIPPED[label]: "wrong", "A=B": "tie", None: "unparsed"}
    outcomes = (named[first], named[_FLIPPED.get(swapped, swapped)])
    right, wrong = outcomes.count("right"), outcomes.count("wrong")
    undecided = "unparsed" if outcomes == ("unparsed", "unparsed") else "tie"
    outcome = "right" if right > wrong else "wrong" if wrong > right else undecided
    return _Judged(given, category, Comparison(outcome, float(right > wrong)), outcomes)


def _read_decisions(fields: Fields) -> list[str | None]:
    value = fields.data["decisions"]
    if not isinstance(value, list) or len(value) != 2:
        raise fields.error("decisions", "is no list of two; expected those of the pair and of the pair swapped")
    for i, decision in enumerate(value):
        if not isinstance(decision, str | None) or decision not in _DECISIONS:
            names = ", ".join(name for name in _DECISIONS if name)
            raise fields.error(f"decisions[{i}]", f"is {show(decision)}; expected {names}, or {NULL}")
    return [_DECISIONS[decision] for decision in value]
