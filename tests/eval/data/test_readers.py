"""Every benchmark is read from its published layout; what is missing is said, what is wrong is named."""

import gzip
import json
import subprocess
import sys
from collections import Counter

import pytest

from eval.data.answered import read_ifeval, read_infobench
from eval.data.files import find_files
from eval.data.humanevalpack import read_humanevalpack
from eval.data.judgebench import read_judgebench
from eval.data.llmbar import read_llmbar
from eval.data.rewardbench import read_rewardbench, read_rewardbench2
from eval.data.rm_bench import read_rm_bench
from eval.data.rmb import read_rmb
from eval.data.xstest import read_xstest
from patarm_core.benchmarks.rewardbench import SIZES
from tests.eval.data import layouts
from tests.eval.data.layouts import lines, listed
from tests.real_data import real


def test_rm_bench_of_a_folder_and_of_one_file_with_domains_is_the_same(tmp_path):
    by_file = {
        "chat": [layouts.rm_bench_row(1), layouts.rm_bench_row(2)],
        "safety-response": [layouts.rm_bench_row(1)],
    }
    for domain, rows in by_file.items():
        listed(tmp_path / "folder" / f"{domain}_filtered.json", rows)
    whole = [row | {"domain": domain} for domain, rows in by_file.items() for row in rows]
    data, same = (read_rm_bench(path) for path in (tmp_path / "folder", listed(tmp_path / "total.json", whole)))
    assert data == same and data.digest == same.digest
    first, _, last = data.items
    assert first.responses == ("good 1 0", "good 1 1", "good 1 2", "bad 1 0", "bad 1 1", "bad 1 2")
    assert [item.id for item in data.items] == ["chat/1", "chat/2", "safety-response/1"]
    assert (last.part, last.task, last.prompt[0]) == ("safety-response", "safety", ("user", "Name 1."))
    assert "3 of 1327 prompts: math (529), code (228), safety-refuse (284) missing" in data.warnings[0]
    assert "chat has 2 prompts here and 129 as published" in data.warnings[1]


def test_a_whole_benchmark_has_nothing_to_warn_of_and_repeated_ids_stay_apart(tmp_path):
    rows = [layouts.rewardbench_row(subset, 0) for subset, num in SIZES.items() for _ in range(num)]
    data = read_rewardbench(lines(tmp_path / "filtered.jsonl", rows))
    assert data.warnings == () and len(data.items) == 2985 == len({item.id for item in data.items})
    assert Counter(item.task for item in data.items) == {"chat": 358 + 456, "safety": 740, "math": 447, "code": 984}


def test_parquet_reads_as_json_lines_do(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for read, rows in (
        (read_rewardbench, [layouts.rewardbench_row(number=i) for i in range(5)]),
        (read_rewardbench2, [layouts.rewardbench2_row(name=str(i)) for i in range(5)]),
    ):
        file = tmp_path / f"{read.__name__}.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        assert read(file) == read(lines(file.with_suffix(".jsonl"), rows))
        broken = tmp_path / "broken.parquet"
        broken.write_bytes(file.read_bytes()[:-7])
        with pytest.raises(ValueError, match=r"broken\.parquet: not parquet, or cut"):
            read(broken)
        parquet.write_table(pyarrow.Table.from_pylist([*rows, rows[0] | {"subset": "hep-cobol"}]), file)
        with pytest.raises(ValueError, match=r"\.parquet\[5\]: subset: is \"hep-cobol\"; expected one of"):
            read(file)


def test_rewardbench_2_keeps_how_many_are_right(tmp_path):
    rows = [
        layouts.rewardbench2_row("Ties", "tied:3", chosen=["red", "blue"], rejected=["soup"]),
        layouts.rewardbench2_row("Math", "9"),
    ]
    ties, math = read_rewardbench2(lines(tmp_path / "rows.jsonl", rows)).items
    assert ties.responses == ("red", "blue", "soup")
    assert ties.row == {"id": "tied:3", "subset": "Ties", "num_correct": 2} and math.task == "math"


def test_rmb_reads_pairs_and_lists_of_a_folder(tmp_path):
    listed(tmp_path / "BoN_set" / "Helpfulness" / "Code" / "Data.json", [layouts.rmb_list(1)])
    listed(tmp_path / "Pairwise_set" / "Harmlessness" / "S1.json", [layouts.rmb_pair(1)])
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    chat = layouts.rmb_pair(2, "Helpfulness/Chat/Discussion", conversation_input=turns)
    listed(tmp_path / "Pairwise_set" / "Helpfulness" / "Chat" / "Discussion.json", [chat])
    data = read_rmb(tmp_path)
    best_of_four, safe, discussion = data.items
    assert best_of_four.responses == ("good", "bad 0", "bad 1", "bad 2") and safe.responses == ("good", "bad")
    assert [item.task for item in data.items] == ["code", "safety", "chat"]
    assert [item.id for item in data.items] == ["bon/1", "pairwise/1", "pairwise/2"]
    assert (
        safe.row == {"id": "1", "task": "pairwise", "goal": "harmlessness"} and safe.prompt[0].content == "Tell me 1."
    )
    assert [turn.role for turn in discussion.prompt] == ["user", "assistant", "user"]
    assert "3 of 20917 pairs and lists: BoN harmlessness (1677) missing" in data.warnings[0]
    assert "rmb: Pairwise harmlessness has 1 pairs and lists here and 7064 as published" in data.warnings


def test_rmb_reads_its_real_pairs(tmp_path):
    """A sample of 4,000, put back into the layout in which they were published."""
    with gzip.open(real("rmb/pairs_4000.jsonl.gz"), "rt", encoding="utf-8") as file:
        sample = [json.loads(line) for line in file]
    rows = [
        {"pair_uid": row["id"], "conversation_input": row["prompt"], "category_path": row["category"]}
        | {side: {"answer": row[ours]} for side, ours in (("chosen", "chosen"), ("reject", "rejected"))}
        for row in sample
    ]
    data = read_rmb(lines(tmp_path / "pairs.jsonl", rows))
    assert Counter(item.part for item in data.items) == {"Pairwise helpfulness": 2336, "Pairwise harmlessness": 1664}
    assert len({item.id for item in data.items}) == 4000 and {len(item.prompt) for item in data.items} == {1, 3, 5}
    # Numbers up to 10066 are pairs for helpfulness: what `SIZES` says of the whole.
    assert all((int(item.row["id"]) < 10067) == (item.row["goal"] == "helpfulness") for item in data.items)


def test_llmbar_reads_both_names_of_its_files(tmp_path):
    listed(tmp_path / "a" / "Natural" / "dataset.json", [layouts.llmbar_row()])
    listed(tmp_path / "a" / "Adversarial" / "GPTOut" / "dataset.json", [layouts.llmbar_row(label=2)])
    listed(tmp_path / "b" / "Natural.json", [layouts.llmbar_row()])
    listed(tmp_path / "b" / "Adversarial_GPTOut.json", [layouts.llmbar_row(label=2)])
    a, b = (read_llmbar(tmp_path / folder) for folder in "ab")
    assert {item.id: item.row["label"] for item in a.items} == {"Natural/0": 1, "GPTOut/0": 2}
    assert set(map(str, a.items)) == set(map(str, b.items))


def test_judgebench_tells_its_two_sets_apart(tmp_path):
    rows = [layouts.judgebench_row(), layouts.judgebench_row("q", "livebench-math", label="B>A")]
    data = read_judgebench(lines(tmp_path / "gpt.jsonl", rows))
    assert [item.part for item in data.items] == ["mmlu-pro", "livebench-math"] and "56 as published" in str(
        data.warnings
    )
    claude = [row | {"response_model": "claude-3-5-sonnet-20240620"} for row in rows]
    assert "34 as published" in str(read_judgebench(lines(tmp_path / "claude.jsonl", claude)).warnings)
    with pytest.raises(ValueError, match="holds both sets of JudgeBench"):
        read_judgebench(tmp_path)


def test_infobench_brings_a_recorded_response_along(tmp_path):
    rows = [layouts.infobench_row(), layouts.infobench_row("task_2", output="Dogs", input="")]
    asked, answered = read_infobench(lines(tmp_path / "rows.jsonl", rows)).items
    assert asked.responses == () and asked.prompt[0].content == "Choose a title.\n\nA dog."
    assert answered.responses == ("Dogs",) and answered.prompt[0].content == "Choose a title."


BROKEN = [
    (read_rm_bench, "chat.json", [layouts.rm_bench_row(chosen=["a", "b"])], r"\[0\]: chosen: has 2 entries; expected"),
    (read_rm_bench, "chat.json", [layouts.rm_bench_row(rejected="bad")], r"\[0\]: rejected: is a text; expected"),
    (read_rm_bench, "chat.json", [layouts.rm_bench_row(), layouts.rm_bench_row(id=None)], r"\[1\]: id: is null"),
    (read_rm_bench, "all.json", [layouts.rm_bench_row()], r"\[0\]: domain: missing; expected one of chat, math"),
    (read_rm_bench, "chat.json", [3], r"\[0\]: is a number; expected an object"),
    (read_rewardbench, "rows.jsonl", [layouts.rewardbench_row(subset="hep")], r':1: subset: is "hep"; expected'),
    (read_rewardbench, "rows.jsonl", [layouts.rewardbench_row(), layouts.rewardbench_row(chosen=1)], ":2: chosen: is"),
    (read_rewardbench2, "rows.jsonl", [layouts.rewardbench2_row(rejected=["a"])], ":1: rejected: 1 chosen and 1"),
    (read_rewardbench2, "rows.jsonl", [layouts.rewardbench2_row("Ties", "9")], ":1: id: is '9'; expected ref:NUMBER"),
    (read_rmb, "S1.json", [layouts.rmb_pair(category_path="RM/x")], r'\[0\]: category_path: is "RM/x"; expected'),
    (read_rmb, "S1.json", [layouts.rmb_pair(reject="bad")], r"\[0\]: reject: is a text; expected an answer"),
    (read_rmb, "S1.json", [layouts.rmb_pair(chosen={"text": "x"})], r"\[0\]: chosen.answer: missing; expected a text"),
    (read_rmb, "S1.json", [layouts.rmb_pair(pair_uid=None)], r"\[0\]: pair_uid: is null; expected a number or a text"),
    (read_rmb, "S1.json", [layouts.rmb_pair(conversation_input=[])], r"\[0\]: conversation_input: is empty"),
    (read_rmb, "S1.json", [layouts.rmb_list(loser_list=[])], r"\[0\]: loser_list: is empty; expected a list of at"),
    (read_rmb, "S1.json", [layouts.rmb_list(loser_list=[{"answer": 3}])], r"\[0\]: loser_list\[0\].answer: is a"),
    (read_llmbar, "Natural.json", [layouts.llmbar_row(label=3)], r"\[0\]: label: is 3; expected a whole number"),
    (read_llmbar, "Unnatural.json", [layouts.llmbar_row()], "its name holds no subset of LLMBar"),
    (read_humanevalpack, "perl.jsonl", [layouts.hep_row()], "called after a language: cpp, go"),
    (read_humanevalpack, "python.jsonl", [layouts.hep_row(buggy_solution=None)], ":1: buggy_solution: is null"),
    (read_judgebench, "rows.jsonl", [layouts.judgebench_row(label="A")], ':1: label: is "A"; expected one of A>B, B>A'),
    (read_judgebench, "rows.jsonl", [layouts.judgebench_row(source="gsm8k")], ":1: source: is 'gsm8k'"),
    (read_ifeval, "rows.jsonl", [layouts.ifeval_row(kwargs=[])], ":1: kwargs: is 0 entries; expected a list of 1"),
    (read_ifeval, "rows.jsonl", [layouts.ifeval_row(kwargs=[3])], r":1: kwargs\[0\]: is a number"),
    (read_infobench, "rows.jsonl", [layouts.infobench_row(decomposed_questions=[])], ":1: decomposed_q.*: is empty"),
    (read_infobench, "rows.jsonl", [layouts.infobench_row(subset="Easy")], ':1: subset: is "Easy"'),
    (read_infobench, "rows.jsonl", [layouts.infobench_row(question_label=[["Tone"], []])], r":1: question_label\[0\]"),
    (read_infobench, "rows.jsonl", [layouts.infobench_row(question_label=[[]])], ":1: question_label: has 1 entries"),
    (read_ifeval, "rows.jsonl", [layouts.ifeval_row(instruction_id_list=["a:b"])], r":1: instruction_id_list\[0\]: is"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "name", "rows", "message"), BROKEN)
def test_what_is_wrong_is_named_with_its_place(read, name, rows, message, tmp_path):
    file = (listed if name.endswith(".json") else lines)(tmp_path / name, rows)
    with pytest.raises(ValueError, match=message) as told:
        read(file)
    assert str(told.value).startswith(str(file)) and "\n" not in str(told.value)


READERS = [
    (read_rm_bench, "chat.json", layouts.rm_bench_row), (read_rewardbench, "rows.jsonl", layouts.rewardbench_row),
    (read_rewardbench2, "rows.jsonl", layouts.rewardbench2_row), (read_rmb, "S1.json", layouts.rmb_pair),
    (read_llmbar, "Natural.json", layouts.llmbar_row), (read_humanevalpack, "python.jsonl", layouts.hep_row),
    (read_judgebench, "rows.jsonl", layouts.judgebench_row), (read_ifeval, "rows.jsonl", layouts.ifeval_row),
    (read_infobench, "rows.jsonl", layouts.infobench_row),
]  # fmt: skip


@pytest.mark.parametrize(("read", "name", "row"), READERS)
def test_a_file_that_is_cut_is_named_with_the_line(read, name, row, tmp_path):
    is_list = name.endswith(".json")
    file = (listed if is_list else lines)(tmp_path / name, [row(), row()])
    whole = file.read_bytes()
    assert len(read(file).items) == 2
    for size, line in ((len(whole) - 20, None if is_list else 2), (len(whole) // 3, None if is_list else 1)):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{name}:{line or '[0-9]+'}: not JSON: ") as told:
            read(file)
        assert str(told.value).startswith(str(file)) and "\n" not in str(told.value)
    file.write_bytes(whole[:-20] + b"\xff" + whole[-20:])
    with pytest.raises(ValueError, match=rf"{name}: not UTF-8 at byte {len(whole) - 20}"):
        read(file)


@pytest.mark.parametrize(("read", "name", "row"), READERS)
def test_a_file_that_is_not_there_is_named(read, name, row, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: no such file or folder"):
        read(tmp_path / name)
    (tmp_path / name).write_text("[]" if name.endswith(".json") else "")
    with pytest.raises(ValueError, match=f"{name}: holds no rows"):
        read(tmp_path / name)


def test_a_path_with_nothing_there_is_named(tmp_path):
    for path, message in ((tmp_path / "x", "no such file or folder"), (tmp_path, "holds no file that ends in .json")):
        with pytest.raises(ValueError, match=message):
            find_files(path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: holds no rows"):
        read_rewardbench(tmp_path)


def test_prompts_of_xstest_are_read_and_a_file_without_them_is_told(tmp_path):
    file = tmp_path / "xstest.csv"
    file.write_text('id,type,prompt,completion\nv2-1,homonyms,"How can I ""kill""\na process?",Well\nv2-2,x,Why?,\n')
    items = read_xstest(tmp_path).items
    assert [(item.id, item.prompt[0].content) for item in items] == [
        ("v2-1", 'How can I "kill"\na process?'),
        ("v2-2", "Why?"),
    ]
    file.write_text("id,question\nv2-1,Why?\n")
    with pytest.raises(ValueError, match=r"xstest\.csv:2: prompt: missing"):
        read_xstest(tmp_path)


def test_the_published_files_are_read_whole():
    rm_bench = read_rm_bench(real("rmbench"))
    assert Counter(item.part for item in rm_bench.items) == {"chat": 129, "safety-refuse": 284}
    assert (
        len(rm_bench.warnings) == 1 and "math (529), code (228), safety-response (157) missing" in rm_bench.warnings[0]
    )
    for read, name, num in (
        (read_llmbar, "llmbar", 419), (read_humanevalpack, "hep", 984), (read_ifeval, "ifeval", 541),
        (read_infobench, "infobench", 500),
    ):  # fmt: skip
        data = read(real(name))
        # HumanEvalPack is code alone: RewardBench's other subsets are no part of it.
        assert len(data.items) == num and data.warnings == ()
    assert len({item.prompt for item in read_xstest(real("xstest")).items}) == 450


def test_right_and_buggy_solutions_of_humanevalpack_are_what_they_say():
    """A few of them, each in a process of its own: the chosen one passes the row's test, the rejected one does not."""
    file = real("hep/python.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    items = read_humanevalpack(file).items
    for number in (0, 23, 53, 120):
        right, buggy = (
            subprocess.run(
                [sys.executable, "-I", "-c", f"from typing import *\n{response}\n{rows[number]['test']}"],
                timeout=20, capture_output=True,
            ).returncode
            for response in items[number].responses
        )  # fmt: skip
        assert (right, buggy) == (0, 1)
