"""The report's counts add up, and the released layout keeps a pair together."""

import json

import pytest

from patarm_core.curation.counts import PAPER, count, table, total
from patarm_core.curation.released import rl_rows, sft_rows
from patarm_core.pairs import JudgmentExample, Pair


def test_the_papers_columns_are_those_of_table_6():
    """Its RL column is 13 short of its own sum: magpie_air's."""
    assert tuple(sum(column) for column in zip(*PAPER.values())) == (73381, 20853 + 13, 17817, 16936)


def test_counts_by_source_and_in_all():
    found = count(
        {"a": 4, "b": 2}, [("a", "empty"), ("a", "easy")],
        [("a", "rl"), ("b", "sft_point"), ("a", "dev"), ("b", "rl")], "b",
    )  # fmt: skip
    assert found["a"] == {
        "initial": 4, "dropped": {"easy": 1, "empty": 1}, "rl": 1, "sft_point": 0, "dev": 1, "held_out": 0,
        "sft_pair": 0,
    }  # fmt: skip
    assert (total(found)["initial"], total(found)["rl"], total(found)["sft_pair"]) == (6, 2, 1)
    header, *rows = table(found)
    assert header == [
        "source", "initial", "easy", "empty", "RL", "SFT (point)", "SFT (pair)", "dev", "held out", "RL share",
        "RL share, paper",
    ]  # fmt: skip
    assert rows[0] == ["a", "4", "1", "1", "1", "0", "0", "1", "0", "25.0%", "-"]
    assert rows[-1][-2:] == ["33.3%", "28.4%"]


def test_a_pair_that_is_dropped_silently_is_an_error():
    with pytest.raises(ValueError, match="source a: 2 pairs were read and 1 are accounted for"):
        count({"a": 2}, [("a", "empty")], [], "")


def test_rows_of_a_pair_are_adjacent_the_chosen_one_first():
    pair = Pair("Tea?", "Yes", "No", "chat", "s", "7")
    rows = [json.loads(line) for line in rl_rows(pair, lambda prompt, response, task: f"{task}: {prompt} {response}")]
    assert [(row["source"], row["id"], row["side"], row["ground_truth"]) for row in rows] == [
        ("s", "7", "chosen", "chosen"),
        ("s", "7", "rejected", "rejected"),
    ]
    assert rows[1]["messages"] == [{"role": "user", "content": "chat: Tea? No"}]
    judged = JudgmentExample("Tea?", "Yes", "chat", "<answer>9</answer>", "s", "7")
    (row,) = map(json.loads, sft_rows([("chosen", judged)], lambda *texts: "asked"))
    assert [turn["content"] for turn in row["messages"]] == ["asked", "<answer>9</answer>"]
