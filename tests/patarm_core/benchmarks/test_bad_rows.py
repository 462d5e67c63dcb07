"""Rows that cannot be used: one line that says which row, which field, and what would be right."""

from importlib import import_module

import pytest

from patarm_core.benchmarks.report import RowError

GOOD = {
    "rewardbench": {"subset": "hep-go", "score_chosen": 1, "score_rejected": 0.5},
    "rewardbench2": {"id": "7", "subset": "Math", "scores": [1, 0, None, 0.5]},
    "rm_bench": {"id": 8, "domain": "chat", "scores_chosen": [1, 2, 3], "scores_rejected": [0, None, 0.5]},
    "judgebench": {"id": "p", "source": "mmlu-pro-law", "label": "A>B", "scores": [1, 0.5]},
    "rmb": {"id": "3", "task": "pairwise", "goal": "helpfulness", "score_chosen": 1, "score_rejected": 0.5},
    "rmb list": {"id": "3", "task": "bon", "goal": "helpfulness", "score_best": 1, "scores_losers": [0.5, None]},
    "llmbar": {"id": "Natural/0", "subset": "Natural", "label": 1, "score_1": 1, "score_2": "0"},
    "infobench": {"id": "task_1", "subset": "Easy_set", "eval": [True, None]},
}
SCORES = {  # a field with scores; `[i]` is an entry of a list
    "rewardbench": "score_rejected", "rewardbench2": "scores[2]", "rm_bench": "scores_chosen[1]",
    "judgebench": "scores[1]", "rmb": "score_chosen", "rmb list": "scores_losers[0]", "llmbar": "score_1",
    "infobench": "eval[1]",
}  # fmt: skip
PARTS = {
    "rewardbench": "subset", "rewardbench2": "subset", "rm_bench": "domain", "judgebench": "source", "rmb": "goal",
    "rmb list": "task", "llmbar": "subset", "infobench": "subset",
}  # fmt: skip
HAVE_IDS = [name for name in GOOD if name != "rewardbench"]  # whose published ids recur


def problem(name, *rows):
    """What is said of the second row, after a good one."""
    report = import_module(f"patarm_core.benchmarks.{name.split()[0]}").report
    first = {field: value for field, value in GOOD[name].items() if field != "id"}
    with pytest.raises(RowError) as told:
        report([first, *rows])
    assert "\n" not in str(told.value)
    return str(told.value)


def changed(name, field, value):
    row, (field, _, index) = dict(GOOD[name]), field.rstrip("]").partition("[")
    row[field] = [value if i == int(index) else one for i, one in enumerate(row[field])] if index else value
    return row


@pytest.mark.parametrize("name", GOOD)
def test_the_good_rows_are_good(name):
    assert import_module(f"patarm_core.benchmarks.{name.split()[0]}").report([GOOD[name]]).num_items == 1


@pytest.mark.parametrize("name, field", [(name, field) for name, row in GOOD.items() for field in row if field != "id"])
def test_a_missing_field_is_named(name, field):
    row = {other: value for other, value in GOOD[name].items() if other != field}
    assert problem(name, row).startswith(f"row 2: {field}: ")


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), "high", [1], {"score": 1}, pytest.param(1 << 2000, id="huge")]
)
@pytest.mark.parametrize("name", SCORES)
def test_what_is_no_score_is_named(name, bad):
    if (name, bad) == ("llmbar", "high"):
        return  # what a judge wrote there: unparsed
    said = problem(name, changed(name, SCORES[name], bad))
    assert said.startswith(f"row 2: {SCORES[name]}: ") and "expected" in said


@pytest.mark.parametrize("name", [name for name in SCORES if name != "infobench"])
def test_true_is_no_score(name):
    assert problem(name, changed(name, SCORES[name], True)).startswith(f"row 2: {SCORES[name]}: is true; expected")


@pytest.mark.parametrize("bad", ["nobody's", None, 3, ["chat"]])
@pytest.mark.parametrize("name", PARTS)
def test_an_unknown_part_is_named(name, bad):
    said = problem(name, GOOD[name] | {PARTS[name]: bad})
    assert said.startswith(f"row 2: {PARTS[name]}: ") and "expected" in said


@pytest.mark.parametrize("name", HAVE_IDS)
def test_an_item_that_is_there_twice_is_named(name):
    assert problem(name, GOOD[name], GOOD[name]) == "row 3: id: row 2 has the same; expected each item once"


@pytest.mark.parametrize("bad", [[1], {"a": 1}, True, 0.5, 1 << 100])
@pytest.mark.parametrize("name", HAVE_IDS)
def test_what_is_no_id_is_named(name, bad):
    assert problem(name, GOOD[name] | {"id": bad}).startswith("row 2: id: is ")


@pytest.mark.parametrize(
    "name, row, field",
    [
        ("rewardbench", {"subset": "hep-go", "result": 0.7}, "result"),
        ("rewardbench", GOOD["rewardbench"] | {"result": 1}, "score_chosen"),
        ("rewardbench2", {"subset": "Math", "result": 0.5}, "result"),
        ("rewardbench2", {"subset": "Math", "result": [1]}, "result"),
        ("rewardbench2", {"subset": "Ties", "id": "tied:1", "result": 1}, "result"),
        ("rewardbench2", {"subset": "Ties", "id": "1", "scores": [1, 0]}, "id"),
        ("rewardbench2", GOOD["rewardbench2"] | {"num_correct": 4}, "num_correct"),
        ("rm_bench", {"domain": "chat", "results": [[1, 1, 1], [1, 1]]}, "results"),
        ("rm_bench", {"domain": "chat", "results": [[1, 1, 1], [1, 2, 1], [1, 1, 1]]}, "results[1][1]"),
        ("judgebench", {"source": "mmlu-pro", "label": "A>B", "decisions": ["A>B"]}, "decisions"),
        ("judgebench", {"source": "mmlu-pro", "label": "A>B", "decisions": ["A>B", "B"]}, "decisions[1]"),
        ("judgebench", {"source": "mmlu-pro", "label": "A=B", "scores": [1, 2]}, "label"),
        ("rmb list", {"task": "bon", "goal": "helpfulness", "results": []}, "results"),
        ("rmb list", {"task": "bon", "goal": "helpfulness", "results": [1, "1"]}, "results[1]"),
        ("llmbar", {"subset": "Natural", "label": 1, "winners": ["1"]}, "winners"),
        ("llmbar", {"subset": "Natural", "label": 1, "winners": ["1", 2]}, "winners[1]"),
        ("infobench", {"subset": "Easy_set", "eval": [True, True], "questions": ["Is it?"]}, "eval"),
        ("infobench", {"subset": "Easy_set", "eval": [True], "labels": [["Tone"]]}, "labels[0]"),
    ],
)  # fmt: skip
def test_a_bad_verdict_is_named(name, row, field):
    assert problem(name, row).startswith(f"row 2: {field}: ")
