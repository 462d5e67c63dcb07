import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.pairs import (
    ChoiceExample,
    DataError,
    JudgmentExample,
    Pair,
    judgment_to_json,
    pair_to_json,
    prompt_key,
    read_choice_judgments,
    read_judgments,
    read_pairs,
    split_by_prompt,
)
from patarm_core.prompts import ROLES, Message

TASKS = ("chat", "math", "code", "safety")
ROW = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "task": "math", "source": "sums", "id": "a"}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
conversations = st.lists(st.builds(Message, st.sampled_from(ROLES), texts), min_size=1, max_size=3).map(tuple)
prompts = texts | conversations
pairs = st.builds(Pair, prompts, texts, texts, st.sampled_from(TASKS), texts, texts).filter(
    lambda pair: pair.chosen != pair.rejected
)
judgments = st.builds(JudgmentExample, prompts, texts, st.sampled_from(TASKS), texts, texts, texts)

choices = st.builds(ChoiceExample, prompts, texts, texts, st.sampled_from(TASKS), texts, texts, texts)


def _line(**changes):
    row = ROW | changes
    return json.dumps({key: value for key, value in row.items() if value is not ...})


@given(st.lists(pairs, min_size=1, max_size=4, unique_by=lambda pair: (pair.source, pair.id)))
def test_pairs_survive_being_written_and_read(written):
    lines = [pair_to_json(pair) for pair in written]
    assert not any("\n" in line for line in lines)
    assert read_pairs(lines, "pairs.jsonl", TASKS) == written


@given(st.lists(judgments, min_size=1, max_size=4))
def test_judgments_survive_being_written_and_read(written):
    assert read_judgments(map(judgment_to_json, written), "sft.jsonl", TASKS) == written


@given(st.lists(choices, min_size=1, max_size=4))
def test_pairwise_judgments_survive_being_written_and_read(written):
    assert read_choice_judgments(map(judgment_to_json, written), "sft.jsonl", TASKS) == written
    with pytest.raises(DataError) as error:
        read_judgments(map(judgment_to_json, written), "sft.jsonl", TASKS)
    assert str(error.value) == 'sft.jsonl:1: response: missing; expected a text (nearest here: "response_b")'


def test_source_id_and_task_have_defaults():
    line = _line(source=..., id=..., task=...)
    read = read_pairs(["\n", line, "  \n", line], "data/prefs.jsonl", TASKS, default_task="chat")
    assert [(pair.source, pair.id, pair.task) for pair in read] == [("prefs", "2", "chat"), ("prefs", "4", "chat")]


def test_an_integer_id_becomes_text_and_other_keys_are_ignored():
    assert read_pairs([_line(id=12, difficulty=3)], "p.jsonl", TASKS)[0] == Pair(
        "2 + 2?", "4", "5", "math", "sums", "12"
    )


def test_messages_are_read():
    prompt = [{"role": "system", "content": ""}, {"role": "user", "content": "2 + 2?", "name": "Ann"}]
    pair = read_pairs([_line(prompt=prompt)], "p.jsonl", TASKS)[0]
    assert pair.prompt == (Message("system", ""), Message("user", "2 + 2?"))


ROLE_LIST = "system, developer, user, assistant, tool, function"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": ', "not JSON: Expecting value at column 12; expected one object per line"),
        ("[" * 100_000, "not JSON: too large a value; expected one object per line"),
        (f'{{"id": {"9" * 5000}}}', "not JSON: too large a value; expected one object per line"),
        ("[1]", "is a list; expected one object per line"),
        (_line(chosen=...), "chosen: missing; expected a text"),
        (_line(rejected=...), "rejected: missing; expected a text"),
        (
            _line(rejected=...)[:-1] + ', "rejectd": "5"}',
            'rejected: missing; expected a text (nearest here: "rejectd")',
        ),
        (_line(chosen=""), "chosen: is empty; expected some text"),
        (_line(rejected=" \n"), "rejected: is empty; expected some text"),
        (_line(chosen=None), "chosen: is null; expected a text"),
        (_line(rejected=["5"]), "rejected: is a list; expected a text"),
        (_line(chosen="\ud800"), "chosen: is not valid Unicode; expected UTF-8 text"),
        (
            _line(rejected="4"),
            "rejected: equal to chosen, so no preference is expressed; give two different responses",
        ),
        (_line(prompt=...), 'prompt: missing; expected a text or a list of {"role", "content"}'),
        (_line(prompt=" "), "prompt: is empty; expected some text"),
        (_line(prompt=3), 'prompt: is a number; expected a text or a list of {"role", "content"}'),
        (_line(prompt=[]), "prompt: has no messages; expected at least one"),
        (_line(prompt=["hi"]), 'prompt[0]: is a text; expected {"role", "content"}'),
        (_line(prompt=[{"content": "hi"}]), 'prompt[0].role: missing; expected {"role", "content"}'),
        (_line(prompt=[{"role": "user"}]), 'prompt[0].content: missing; expected {"role", "content"}'),
        (_line(prompt=[{"role": "user", "content": {}}]), "prompt[0].content: is an object; expected a text"),
        (_line(prompt=[{"role": "bot", "content": "x"}]), f'prompt[0].role: is "bot"; expected one of {ROLE_LIST}'),
        (_line(prompt=[{"role": "user", "content": " "}]), "prompt: is empty; expected some text"),
        (_line(task=...), "task: missing; expected one of chat, math, code, safety"),
        (_line(task=True), "task: is true or false; expected one of chat, math, code, safety"),
        (
            _line(task="maths"),
            "task: unknown task 'maths'; known tasks are chat, math, code, safety (nearest: 'math')",
        ),
        (_line(source=1.5), "source: is a number; expected a text"),
        (_line(id=False), "id: is true or false; expected a text"),
        (
            _line(id="first"),
            "id: 'first' of source 'sums' is already used on line 1; (source, id) must be unique",
        ),
    ],
)
def test_a_bad_row_is_refused_with_its_line_and_field(line, message):
    with pytest.raises(DataError) as error:
        read_pairs([_line(id="first"), "", line], "dir/prefs.jsonl", TASKS)
    assert str(error.value) == f"dir/prefs.jsonl:3: {message}"


def test_an_empty_file_is_refused():
    with pytest.raises(DataError, match=r"^p\.jsonl: holds no pairs; expected one JSON object per line$"):
        read_pairs(["", "\n"], "p.jsonl", TASKS)
    with pytest.raises(DataError, match=r"^s\.jsonl: holds no judgments; expected one JSON object per line$"):
        read_judgments([], "s.jsonl", TASKS)


@pytest.mark.parametrize("field", ["response", "judgment"])
def test_a_judgment_needs_its_texts(field):
    row = {"prompt": "p", "response": "r", "judgment": "j", "task": "chat"} | {field: " "}
    with pytest.raises(DataError) as error:
        read_judgments([json.dumps(row)], "s.jsonl", TASKS)
    assert str(error.value) == f"s.jsonl:1: {field}: is empty; expected some text"


def test_the_prompt_key_never_changes():
    pair = Pair("2 + 2?", "4", "5", "math", "s", "1")
    assert prompt_key(pair) == "70b499c547e0a11fc693677f477746c45a8133b4dadeb0a2090a1c44cf783b20"
    assert prompt_key(Pair((Message("user", "2 + 2?"),), "x", "y", "chat", "t", "2")) == prompt_key(pair)
    assert prompt_key(Pair((Message("system", "2 + 2?"),), "4", "5", "math", "s", "1")) != prompt_key(pair)


few_prompts = st.lists(
    st.builds(Pair, st.sampled_from("abcdefgh"), texts, texts, st.just("chat"), st.just("s"), texts), max_size=20
)


@given(few_prompts, st.floats(0, 1), st.integers(0, 99))
def test_no_prompt_is_on_both_sides_of_a_split(all_pairs, share, seed):
    train, held_out = split_by_prompt(all_pairs, share, seed)
    in_train, in_held_out = ({pair.prompt for pair in side} for side in (train, held_out))
    assert not in_train & in_held_out
    assert len(in_held_out) == round(share * len(in_train | in_held_out))
    assert train == [pair for pair in all_pairs if pair.prompt in in_train]
    assert held_out == [pair for pair in all_pairs if pair.prompt in in_held_out]


@given(few_prompts, st.floats(0, 1), st.integers(0, 99))
def test_a_split_does_not_depend_on_the_order_of_the_pairs(all_pairs, share, seed):
    forwards, backwards = split_by_prompt(all_pairs, share, seed), split_by_prompt(all_pairs[::-1], share, seed)
    assert [side[::-1] for side in backwards] == list(forwards)


@given(few_prompts, st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_a_larger_share_holds_out_a_superset(all_pairs, one, other, seed):
    few, many = (split_by_prompt(all_pairs, share, seed)[1] for share in sorted([one, other]))
    assert set(few) <= set(many)


def test_a_share_beyond_1_is_refused():
    with pytest.raises(ValueError, match=r"held_out_share must lie in \[0, 1\], got 20"):
        split_by_prompt([], 20, 0)
