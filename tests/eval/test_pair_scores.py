"""Accuracy of scores of single responses."""

import math

from eval.pair_accuracy import format_rates, pair_accuracy, summary
from eval.pair_scores import ScoredPair
from eval.tables import accuracy_table, task_table
from patarm_core.pairs import Pair

PAIRS = [Pair("p", "good", "bad", task, "mine", str(i)) for i, task in enumerate(["chat", "math", "chat", "math"])]
SCORES = [(1.5, -0.5), (0.25, 0.25), (math.nan, 3.0), (-1.0, 1.0)]
SCORED = [ScoredPair.of(pair, sides) for pair, sides in zip(PAIRS, SCORES, strict=True)]


def test_right_tied_unscored_and_wrong_pairs_are_told_apart():
    assert [item.verdict() for item in SCORED] == ["chosen", "tie", None, "rejected"]
    found = pair_accuracy(SCORED, 1)
    assert (found.num_pairs, found.num_right, found.num_ties, found.num_unscored) == (4, 1, 1, 1)
    assert (found.accuracy, found.accuracy_ties_half) == (0.25, 0.375)
    assert found.margin == 0.0  # (2 + 0 - 2) / 3, over the pairs with two scores
    assert found.low < 0.25 < found.high


def test_there_are_no_judgments_to_be_valid():
    assert format_rates(SCORED) == {}


def test_the_tables_take_scores_beside_judgments():
    judged = summary([ScoredPair.of(pair, (2.0, 1.0)) for pair in PAIRS], [1]) | {"valid_rate": 0.5}
    results = {"initial": judged, "bt": summary(SCORED, [1])}
    assert accuracy_table(results).splitlines()[2:] == [
        "| start | 1 | 100.0% | 51.0% - 100.0% | 100.0% | 0 | 0 | +1.00 | 50.0% | 4 |",
        "| after BT, by score | 1 | 25.0% | 4.6% - 69.9% | 37.5% | 1 | 1 | +0.00 | - | 4 |",
    ]
    by_task = "50.0% (9.5% - 90.5%), 2 | 0.0% (0.0% - 65.8%), 2"
    assert task_table(results).splitlines()[-1] == f"| after BT, by score | {by_task} |"


def test_every_response_has_a_line():
    lines = [line for item in SCORED[2:] for line in item.records()]
    assert lines[0] == {"source": "mine", "id": "2", "side": "chosen", "score": None}
    assert [(line["id"], line["side"], line["score"]) for line in lines[1:]] == [
        ("2", "rejected", 3.0), ("3", "chosen", -1.0), ("3", "rejected", 1.0),
    ]  # fmt: skip
