"""Files of raw pairs in every form, and recorded judgments."""

import gzip
import json
import sys

import pytest

from patarm_core.curation.sources import Refusal
from patarm_core.rubrics import default_rubrics
from tests.tiny_runs import write_jsonl
from trainer.curation.config import (
    CurateRecipe,
    JudgeConfig,
    PairwiseConfig,
    ReadConfig,
    RolloutsConfig,
    SftDataConfig,
)  # fmt: skip
from trainer.curation.input_rows import input_rows
from trainer.curation.judging import pair_question, side_questions
from trainer.curation.recorded import RecordedJudge
from trainer.curation.stage_files import Dropped, pair_of, row_of
from trainer.curation.stages import read

ROWS = [{"prompt": f"Tea {i}?", "chosen": "Yes", "rejected": "No", "task": "chat"} for i in range(3)]


def read_all(source: str, **settings) -> list:
    judge = JudgeConfig(model="none")
    judges = {"rollouts": RolloutsConfig(judge=judge), "sft": SftDataConfig(judge=judge)}
    recipe = CurateRecipe(
        out="none", sources={"mine": source}, pairwise=PairwiseConfig(judge=judge), **judges, **settings
    )
    return list(read(recipe, default_rubrics()))


def test_json_lines_zipped_or_not_and_lists_hold_the_same_rows(tmp_path):
    lines = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.json"):
        assert [(number, row) for number, _, row in input_rows(tmp_path / name)] == list(enumerate(ROWS, start=1))


def test_parquet_is_read_where_pyarrow_is(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert [row for _, _, row in input_rows(tmp_path / "rows.parquet")] == ROWS


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"rows.parquet: reading parquet needs pyarrow: pip install pyarrow$"):
        list(input_rows(tmp_path / "rows.parquet"))


def test_a_zipped_file_that_is_cut_is_one_line(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() * 99)[:40])
    with pytest.raises(ValueError, match=r"rows.jsonl.gz: cannot be read"):
        list(input_rows(tmp_path / "rows.jsonl.gz"))


def test_an_entry_of_a_list_that_is_no_object_stops_nothing(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([ROWS[0], 3]))
    _, (number, raw, refusal) = input_rows(tmp_path / "rows.json")
    assert (number, raw, type(refusal), refusal.reason) == (2, "3", Refusal, "not_json")


def test_rows_of_a_folder_have_ids_of_their_own(tmp_path):
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [ROWS["ab".index(name)]])
    assert [row["id"] for row in read_all(f"plain:{tmp_path}")] == ["a-1", "b-1"]


def test_an_id_that_is_taken_gets_a_number(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [row | {"id": "x"} for row in ROWS])
    assert [row["id"] for row in read_all(f"plain:{file}")] == ["x", "x.2", "x.3"]


def test_two_rows_a_pair_and_one_that_is_left_over(tmp_path):
    answers = [{"prompt": f"Tea {i // 2}?", "response": f"{i}", "helpfulness": i} for i in range(5)]
    file = write_jsonl(tmp_path / "rows.jsonl", answers)
    first, second, left = read_all(f"helpsteer2_scores:{file}")
    assert (first["chosen"], first["line"], second["chosen"], second["line"]) == ("1", 1, "3", 3)
    assert isinstance(left, Dropped) and (left.reason, left.line) == ("no_partner", 5)


def test_a_conversation_is_kept_cut_to_its_last_question_or_dropped(tmp_path):
    said = (("user", "Hi"), ("assistant", "Hi."), ("user", "Tea?"))
    turns = [{"role": role, "content": content} for role, content in said]
    file = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0] | {"prompt": turns}])
    found = {
        rule: read_all(f"plain:{file}", read=ReadConfig(multi_turn=rule))[0] for rule in ("keep", "last_turn", "drop")
    }
    assert found["keep"]["prompt"] == turns and found["last_turn"]["prompt"] == "Tea?"
    assert found["drop"].reason == "multi_turn"
    (too_long,) = read_all(f"plain:{file}", read=ReadConfig(max_prompt_chars=5))
    assert too_long.reason == "too_long"


@pytest.mark.parametrize(("rule", "num"), [("exact", 2), ("normalised", 1), ("keep", 3)])
def test_what_counts_as_there_already(rule, num, tmp_path):
    rows = [ROWS[0], ROWS[0], ROWS[0] | {"prompt": "tea 0"}]
    found = read_all(f"plain:{write_jsonl(tmp_path / 'rows.jsonl', rows)}", read=ReadConfig(duplicates=rule))
    assert sum(isinstance(row, dict) for row in found) == num


def test_recorded_judgments_in_place_of_a_judge(tmp_path):
    row = {"prompt": "Tea?", "chosen": "Yes", "rejected": "No", "task": "chat", "source": "s", "id": "1"}
    row |= {"file": "f", "line": 1}
    assert row_of(pair_of(row), "f", 1) == row
    known = {"source": "s", "id": "1", "chosen": [8, None], "rejected": ["<answer>5</answer>", "no"]}
    file = write_jsonl(tmp_path / "scores.jsonl", [known | {"a": "rejected", "choices": ["B", "<answer>A</answer>"]}])
    scores = dict(RecordedJudge(file, "pointwise").judge(side_questions(row), 3))
    assert [[one.score for one in scores[side]] for side in (0, 1)] == [[8, None, None], [5, None, None]]
    assert [one.error and one.error.partition(":")[0] for one in scores[1]] == [None, "unparsed", "unrecorded"]
    ((_, choices),) = RecordedJudge(file, "pairwise").judge([pair_question(row)], 2)
    assert [(one.choice, one.is_swapped) for one in choices] == [("A", True), ("B", True)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "s", "id": "1"}, "chosen: missing; expected scores"),
        ({"source": "s", "id": "1", "chosen": 3}, "chosen: expected a list"),
        ({"source": "s", "id": "1", "chosen": [True]}, "chosen: expected a list of numbers, texts and nulls"),
        ({"source": "s", "id": "1", "choices": ["A"]}, "a: missing"),
    ],
)
def test_a_recorded_row_that_cannot_be_read_is_one_line(row, message, tmp_path):
    file = write_jsonl(tmp_path / "scores.jsonl", [row])
    with pytest.raises(ValueError, match=rf"scores.jsonl:1: {message}"):
        RecordedJudge(file, "pointwise")
