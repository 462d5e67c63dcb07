"""Files of raw pairs in every form, and recorded judgments."""

import gzip
import json
import sys
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.judges.judge import Drawn
from patarm_core.curation.sources import Refusal
from patarm_core.rubrics import default_rubrics
from rollout.contexts import PromptConfig
from tests.tiny_runs import write_jsonl
from trainer.curation.config import (
    CurateRecipe,
    JudgeConfig,
    PairwiseConfig,
    ReadConfig,
    RolloutsConfig,
    SftDataConfig,
)  # fmt: skip
from trainer.curation.embedded_judge import EmbeddedJudge
from trainer.curation.input_rows import input_rows
from trainer.curation.judging import ask_all, pair_question, side_questions, task_question
from trainer.curation.recorded import RecordedJudge
from trainer.curation.stage_files import Dropped, pair_of, question_id, row_of
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


def test_values_that_only_parquet_has_are_told_and_stop_nothing(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [row | {"chosen": b"Yes", "task": date(2024, 1, 1)} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = read_all(f"plain:{tmp_path / 'rows.parquet'}")
    assert [row.detail for row in found] == ["task: is of the type date; expected a text"] * 3
    assert "b'Yes'" in found[0].row


ZIPPED = gzip.compress(json.dumps(ROWS[0]).encode() * 99, mtime=0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (ZIPPED[:40], "Compressed file ended"),
        (b"no zip", "Not a gzipped file"),
        (ZIPPED[:10] + b"\xff" * 40, "invalid block type"),
        (ZIPPED[:-8] + b"\0" * 8, "CRC check failed"),
    ],
    ids=["cut", "not zipped", "broken", "changed"],
)
def test_a_zipped_file_that_is_cut_or_broken_is_one_line(content, problem, tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"rows.jsonl.gz: cannot be read: .*{problem}"):
        list(input_rows(tmp_path / "rows.jsonl.gz"))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_source_without_rows_is_a_mistake(content, tmp_path):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"sources.mine: .*rows.jsonl holds no rows"):
        read_all(f"plain:{tmp_path / 'rows.jsonl'}")


def test_an_entry_of_a_list_that_is_no_object_stops_nothing(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([ROWS[0], 3]))
    _, (number, raw, refusal) = input_rows(tmp_path / "rows.json")
    assert (number, raw, type(refusal), refusal.reason) == (2, "3", Refusal, "not_json")


raw_lines = st.binary(max_size=8) | st.sampled_from([json.dumps(row).encode() for row in [*ROWS, {}, [1], "x"]])


@given(st.lists(raw_lines, max_size=6), st.sampled_from(["plain", "helpsteer2_scores"]))
def test_every_line_that_is_not_blank_is_accounted_for(lines, schema):
    content = b"\n".join(lines)
    written = [line for line in content.split(b"\n") if line.strip()]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_bytes(content)
        if not written:
            with pytest.raises(ValueError, match="holds no rows"):
                read_all(f"{schema}:{file}")
            return
        found = read_all(f"{schema}:{file}", read=ReadConfig(duplicates="keep"))
    told = [row for row in found if isinstance(row, Dropped)]
    kept = {(row["source"], row["id"]) for row in found if isinstance(row, dict)}
    assert len(kept) + len(told) == len(found)  # each has a name of its own
    assert sum(len(row.row.split("\n")) for row in told) + len(kept) == len(written)


def test_rows_of_a_folder_have_ids_of_their_own(tmp_path):
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [ROWS["ab".index(name)]])
    (tmp_path / "c").mkdir()
    write_jsonl(tmp_path / "c" / "a.jsonl", [ROWS[2]])  # of the same name, in a folder of its own
    assert [row["id"] for row in read_all(f"plain:{tmp_path}")] == ["a-1", "b-1", "c/a-1"]


def test_an_id_that_is_taken_gets_a_number_that_is_free(tmp_path):
    rows = [ROWS[0] | {"prompt": f"Tea {i}?", "id": id} for i, id in enumerate(["x.2", "x", "x", "x", "x.2"])]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [row["id"] for row in read_all(f"plain:{file}")] == ["x.2", "x", "x.3", "x.4", "x.2.2"]


names = st.text(alphabet="a/%2F#.", min_size=1, max_size=4)


@given(st.lists(st.tuples(names, names), unique=True, max_size=8))
@example([("a", "b/c"), ("a/b", "c"), ("a%2Fb", "c")])
def test_no_two_pairs_are_asked_about_by_one_name(pairs):
    asked = {question_id(*pair, about) for pair in pairs for about in ("chosen", "rejected", "pair", "task")}
    assert len(asked) == 4 * len(pairs)


def test_two_rows_a_pair_and_one_that_is_left_over(tmp_path):
    answers = [{"prompt": f"Tea {i // 2}?", "response": f"{i}", "helpfulness": i} for i in range(5)]
    file = write_jsonl(tmp_path / "rows.jsonl", answers)
    first, second, left = read_all(f"helpsteer2_scores:{file}")
    assert (first["chosen"], first["line"], second["chosen"], second["line"]) == ("1", 1, "3", 3)
    assert isinstance(left, Dropped) and (left.reason, left.line) == ("no_partner", 5)


def test_a_row_without_a_partner_spoils_no_pair_after_it(tmp_path):
    answers = [{"prompt": f"Tea {i}?", "response": side, "helpfulness": int(side)} for i in range(3) for side in "12"]
    lines = [json.dumps(row) for row in answers]
    lines[0:1], lines[4:4] = [], ["{"]  # the first row is lost, another one is broken, between the two of its pair
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = read_all(f"helpsteer2_scores:{tmp_path / 'rows.jsonl'}")
    assert [(row.reason, row.line) for row in found if isinstance(row, Dropped)] == [("no_partner", 1), ("not_json", 5)]
    assert [(row["prompt"], row["line"]) for row in found if isinstance(row, dict)] == [("Tea 1?", 2), ("Tea 2?", 4)]


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
    assert {row.reason for row in found if isinstance(row, Dropped)} <= {"duplicate"}


def test_of_sides_that_are_alike_a_second_pair_is_a_duplicate(tmp_path):
    """Not a contradiction: exchanged, they are alike too."""
    file = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0] | {"chosen": "Yes!", "rejected": "yes"}] * 2)
    _, again = read_all(f"plain:{file}", read=ReadConfig(duplicates="normalised"))
    assert again.reason == "duplicate"


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


def test_recorded_replies_about_a_pair_whose_id_is_a_number(tmp_path):
    row = {"prompt": "Tea?", "source": "s", "id": "1"}
    file = write_jsonl(tmp_path / "replies.jsonl", [{"source": "s", "id": 1, "replies": [None, "so"]}])
    ((_, drawn),) = RecordedJudge(file, "pointwise").judge([task_question(row)], 2)
    assert [one.text for one in drawn] == ["", "so"] and drawn[0].error.startswith("unparsed")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "s", "id": "1"}, "chosen: missing; expected scores"),
        ({"source": "s", "id": "1", "chosen": 3}, "chosen: expected a list"),
        ({"source": "s", "id": "1", "chosen": [True]}, "chosen: holds true; expected a list of finite numbers"),
        ({"source": "s", "id": "1", "chosen": [float("nan")]}, "chosen: holds nan; expected a list of finite numbers"),
        ({"source": "s", "id": "1", "rejected": [float("inf")]}, "rejected: holds inf; expected"),
        ({"source": "s", "id": "1", "chosen": [10**400]}, "chosen: holds too large a number; expected"),
        ({"source": "s", "id": "1", "a": "chosen", "choices": [1]}, "choices: holds 1; expected a list of texts"),
        ({"source": "s", "id": "1", "replies": [1]}, "replies: holds 1; expected a list of texts"),
        ({"source": "s", "id": "1", "choices": ["A"]}, "a: missing"),
    ],
)
def test_a_recorded_row_that_cannot_be_read_is_one_line(row, message, tmp_path):
    file = write_jsonl(tmp_path / "scores.jsonl", [row])
    with pytest.raises(ValueError, match=rf"scores.jsonl:1: {message}"):
        RecordedJudge(file, "pointwise")


def test_judges_have_the_rubrics_of_the_run_where_they_name_no_other():
    own = JudgeConfig(model="none", prompt=PromptConfig(rubrics_file="own.toml"))
    other = JudgeConfig(model="none", prompt=PromptConfig(rubrics="primary"))
    recipe = CurateRecipe(
        out="none", sources={"mine": "plain:none"}, rubrics_file="run.toml", rollouts=RolloutsConfig(judge=own),
        sft=SftDataConfig(judge=other), pairwise=PairwiseConfig(samples=0),
    )  # fmt: skip
    prompts = {key: judge.prompt for key, judge in recipe.judges().items()}
    assert prompts == {
        "rollouts.judge": own.prompt, "sft.judge": PromptConfig(rubrics="primary", rubrics_file="run.toml")
    }  # fmt: skip
    assert "rubrics_file" in recipe.files()  # a run goes on with the same ones alone


def test_a_pair_that_is_recorded_twice_is_a_mistake(tmp_path):
    file = write_jsonl(tmp_path / "scores.jsonl", [{"source": "s", "id": "1", "chosen": [i]} for i in range(2)])
    with pytest.raises(ValueError, match=r"scores.jsonl:2: id: '1' of source 's' is there already"):
        RecordedJudge(file, "pointwise")


class DownAtFirst(EmbeddedJudge):
    def judge(self, questions, votes):
        for index, _ in enumerate(questions):
            is_down, self.is_down = self.is_down, False
            yield index, [Drawn(error="no_reply: down") if is_down else Drawn(text="so", score=7.0)] * votes


def test_what_got_no_reply_is_asked_again_when_the_stage_goes_on(tmp_path):
    row = {"prompt": "Tea?", "chosen": "Yes", "rejected": "No", "source": "s", "id": "1", "task": "chat"}
    judge = DownAtFirst("pointwise", 0)
    judge.is_down = True
    first, again = (ask_all(tmp_path, "stage", judge, side_questions(row), 2, keep_texts=False) for _ in range(2))
    assert [[one.score for one in of] for of in first] == [[None] * 2, [7.0] * 2]
    assert [[one.score for one in of] for of in again] == [[7.0] * 2] * 2


class HalfACharacter(EmbeddedJudge):
    """As an endpoint may answer that escapes what it sends."""

    def judge(self, questions, votes):
        for index, _ in enumerate(questions):
            yield index, [Drawn(text="a\ud800<answer>7</answer>", score=7.0)] * votes


def test_half_a_character_of_a_judge_can_be_written_and_goes_on_the_same(tmp_path):
    questions = side_questions(
        {"prompt": "Tea?", "chosen": "Yes", "rejected": "No", "source": "s", "id": "1", "task": "chat"}
    )
    first, again = (ask_all(tmp_path, "stage", HalfACharacter("pointwise", 0), questions, 2) for _ in range(2))
    assert first == again and {one.text for of in first for one in of} == {"a?<answer>7</answer>"}
