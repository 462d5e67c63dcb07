"""InFoBench (qinyiwei/InfoBench: evaluation.py): the share of decomposed requirements that a response follows (DRFR).

A row per instruction: the judge's answers to its yes/no questions, null for one that could not be read. Upstream asks
no further question after an unreadable answer, so `eval` may be shorter than the list of questions; how many there are
is known where the row has `questions` (a list, or as published `decomposed_questions`):

    {"id": "task_167", "subset": "Easy_set", "eval": [true, false], "labels": [["Format"], ["Content", "Style"]]}
    {"id": "task_168", "subset": "Hard_set", "eval": [true, null], "questions": ["Is it short?", "A list?", "Kind?"]}

Official: yes / questions answered, over all instructions; an unreadable answer is a no, and questions that were never
asked do not count. `labels` (as published: `question_label`) adds the share by kind of requirement.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from patarm_core.benchmarks.report import Report, composites, incomplete_note, missing_parts, read_rows, whole
from patarm_core.fields import Fields, kind, show

SIZES = {"Easy_set": 252, "Hard_set": 248}
NUM_QUESTIONS = {"Easy_set": 690, "Hard_set": 1560}
LABELS = ("Format", "Content", "Number", "Style", "Linguistic")
UNREAD_OUT = "unparsed answers left out"
ALL_ASKED = "every question counts, unparsed and not asked = no"
_NAMES = {"Easy_set": "Easy", "Hard_set": "Hard"}


@dataclass(frozen=True, slots=True)
class _Judged:
    id: str | None
    subset: str
    answers: tuple[bool | None, ...]
    num_questions: int  # asked or not
    labels: tuple[tuple[str, ...], ...]


def report(rows: Sequence[Mapping]) -> Report:
    judged = read_rows(rows, read_row, unique="id")
    by_subset = {subset: [one for one in judged if one.subset == subset] for subset in SIZES}
    strata = {subset: _columns(of_subset) for subset, of_subset in by_subset.items() if of_subset}
    totals = {subset: {name: sum(values) for name, values in part.items()} for subset, part in strata.items()}
    missing = missing_parts({subset: len(of_subset) for subset, of_subset in by_subset.items()}, SIZES)
    denominators = {"": "answered", UNREAD_OUT: "read", ALL_ASKED: "all"}

    def statistic(sums: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], float | None]:
        numbers = {}
        for policy, num in denominators.items():
            numbers[policy, "Overall"] = _share(sums.values(), "yes", num)
            numbers |= {(policy, _NAMES[subset]): _share([part], "yes", num) for subset, part in sums.items()}
        labels = [name for name in LABELS if any(part[f"{name} answered"] for part in totals.values())]
        return numbers | {("", name): _share(sums.values(), f"{name} yes", f"{name} answered") for name in labels}

    def label(key: tuple[str, str]) -> tuple[str, int]:
        policy, name = key
        of_subset = next((subset for subset, short in _NAMES.items() if short == name), None)
        parts = [totals[of_subset]] if of_subset else totals.values()
        column = f"{name} answered" if name in LABELS else denominators[policy]
        return whole(name, [m for m in missing if of_subset is None or m.startswith(of_subset)]), int(
            sum(part[column] for part in parts)
        )

    composed = composites(strata, statistic, label)
    easy, hard, overall = (composed.get(("", name)) for name in ("Easy", "Hard", "Overall"))
    identity = []
    if {subset: part["answered"] for subset, part in totals.items()} == NUM_QUESTIONS:
        assert identity_gap(easy.value, hard.value, overall.value) < 1e-12
        identity = ["Overall = 0.30667 Easy + 0.69333 Hard: checked."]
    not_asked = sum(one.num_questions - len(one.answers) for one in judged)
    return Report(
        benchmark="InFoBench",
        metrics=tuple(metric for (policy, _), metric in composed.items() if not policy),
        policies={
            policy: tuple(metric for (of, _), metric in composed.items() if of == policy)
            for policy in (UNREAD_OUT, ALL_ASKED)
        },
        num_items=len(judged),
        num_ties=0,
        num_unparsed=sum(one.answers.count(None) for one in judged),
        notes=(
            *incomplete_note(missing),
            f"Official rule: an unparsed answer is a no; questions never asked ({not_asked} known) do not count.",
            *identity,
        ),
    )


def read_verdict(text: str) -> bool | None:
    """What a judge answered, as published: how the text begins, else the one of YES and NO that stands in it."""
    said = text.strip().lower()
    if said.startswith(("yes", "no")):
        return said.startswith("yes")
    has_yes, has_no = "YES" in text, "NO" in text
    return has_yes if has_yes != has_no else None


def identity_gap(easy: float, hard: float, overall: float) -> float:
    """How far a table's Overall lies from 0.30667 Easy + 0.69333 Hard (690 and 1,560 questions), in its own units."""
    num_easy, num_hard = NUM_QUESTIONS.values()
    return abs((num_easy * easy + num_hard * hard) / (num_easy + num_hard) - overall)


def read_row(row: Mapping) -> _Judged:
    fields = Fields(row)
    subset = fields.one_of("subset", tuple(SIZES))
    answers = _list(fields, "eval", "true, false or null for each question")
    if not answers:
        raise fields.error("eval", "is empty; expected true, false or null for each question")
    for i, answer in enumerate(answers):
        if not isinstance(answer, bool | None):
            raise fields.error(f"eval[{i}]", f"is {show(answer)}; expected true, false or null")
    questions = next((name for name in ("questions", "decomposed_questions") if fields.data.get(name)), None)
    num_questions = len(_list(fields, questions, "the questions")) if questions else len(answers)
    if num_questions < len(answers):
        raise fields.error(
            "eval", f"has {len(answers)} entries; expected at most one for each of {num_questions} questions"
        )
    labels = read_labels(fields, len(answers))
    return _Judged(fields.label("id", None), subset, tuple(answers), num_questions, labels)


def _columns(judged: Sequence[_Judged]) -> dict[str, list[float]]:
    """One value per instruction."""
    columns = {
        "yes": [one.answers.count(True) for one in judged],
        "answered": [len(one.answers) for one in judged],
        "read": [len(one.answers) - one.answers.count(None) for one in judged],
        "all": [one.num_questions for one in judged],
    }
    for name in LABELS:
        of_label = [[a for a, labels in zip(one.answers, one.labels) if name in labels] for one in judged]
        columns |= {
            f"{name} yes": [answers.count(True) for answers in of_label],
            f"{name} answered": [len(answers) for answers in of_label],
        }
    return columns


def _share(parts, yes: str, num: str) -> float | None:
    parts = list(parts)
    total = math.fsum(part[num] for part in parts)
    return math.fsum(part[yes] for part in parts) / total if total else None


def read_labels(fields: Fields, num: int) -> tuple[tuple[str, ...], ...]:
    """Of each question, of which there are at least `num`; none where the row has no labels."""
    name = next((name for name in ("labels", "question_label") if fields.data.get(name)), None)
    if name is None:
        return ()
    labels = _list(fields, name, "a list of labels for each question")
    if len(labels) < num:
        raise fields.error(name, f"has {len(labels)} entries; expected a list of labels for each of {num} answers")
    for i, of_question in enumerate(labels):
        if not isinstance(of_question, list) or not all(label in LABELS for label in of_question):
            raise fields.error(f"{name}[{i}]", f"is {show(of_question)}; expected a list of {', '.join(LABELS)}")
    return tuple(tuple(of_question) for of_question in labels)


def _list(fields: Fields, field: str, expected: str) -> list:
    value = fields.value(field, f"a list, {expected}")
    if not isinstance(value, list):
        raise fields.error(field, f"is {kind(value)}; expected a list, {expected}")
    return value
