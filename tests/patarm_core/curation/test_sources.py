"""Every published schema, and every way in which a row cannot be used."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.curation.sources import SCHEMAS, Refusal, check_sides, read_source_rows, rows_per_pair
from patarm_core.pairs import pair_to_json, read_pairs
from patarm_core.prompts import Message

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Tea?"},
]


def talk(answer: str, turns=TURNS) -> list[dict]:
    return [*turns, {"role": "assistant", "content": answer}]


def solved(*right: str) -> dict:
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    return {name: {"is_correct": name in right, "solution": f"by {name}"} for name in names}


ROWS = {
    "plain": [{"prompt": "Tea?", "chosen": "Yes", "rejected": "No", "task": "chat", "source": "s", "id": 7}],
    "skywork": [{"chosen": talk("Yes"), "rejected": talk("No"), "source": "s"}],
    "code": [{"input": "Tea?", "accepted": "Yes", "rejected": "No"}],
    "step_dpo": [
        {"prompt": "Tea?", "initial_reason_steps": "So: ", "full_chosen": "Yes", "full_rejected": "No",
         "chosen": "Y", "rejected": "N", "answer": "1", "dataset": "d"}
    ],
    "helpsteer2": [{"prompt": "Tea?", "response_1": "Yes", "response_2": "No", "preference_strength": -2}],
    "helpsteer2_scores": [
        {"prompt": "Tea?", "response": "No", "helpfulness": 1}, {"prompt": "Tea?", "response": "Yes", "helpfulness": 3}
    ],
    "rmb": [{"id": "7", "prompt": TURNS[2:], "chosen": "Yes", "rejected": "No", "category": "Set/Harmlessness/S2"}],
    "gsm8k": [{"question": "Tea?", "ground_truth": "1", **solved("6b_finetuning", "175b_verification")}],
}  # fmt: skip
ROWS["step_dpo_step"] = ROWS["step_dpo"]


def read(schema: str, rows=None):
    return read_source_rows(schema, rows or ROWS[schema], "file", "12")


def refused(schema: str, *rows: dict) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        check_sides(*read(schema, list(rows)))
    return caught.value.reason, caught.value.detail


def test_every_schema_has_an_example():
    assert ROWS.keys() == SCHEMAS.keys()
    assert {schema: len(rows) for schema, rows in ROWS.items()} == {schema: rows_per_pair(schema) for schema in ROWS}


def test_a_row_of_every_schema_is_a_pair():
    found = {schema: read(schema)[0] for schema in ROWS if schema != "gsm8k"}
    sides = {schema: (pair.chosen, pair.rejected) for schema, pair in found.items()}
    steps = {"step_dpo": ("So: Yes", "So: No"), "step_dpo_step": ("So: Y", "So: N")}
    assert sides == {schema: steps.get(schema, ("Yes", "No")) for schema in found}
    assert {schema: pair.task for schema, pair in found.items()} == {
        "plain": "chat", "skywork": "", "code": "code", "step_dpo": "math", "step_dpo_step": "math", "helpsteer2": "",
        "helpsteer2_scores": "", "rmb": "safety",
    }  # fmt: skip
    named = {schema: (pair.source, pair.id) for schema, pair in found.items()}
    assert named == dict.fromkeys(found, ("file", "12")) | {
        "plain": ("s", "7"), "skywork": ("s", "12"), "rmb": ("file", "7"),
    }  # fmt: skip
    assert found["skywork"].prompt == tuple(Message(**turn) for turn in TURNS)
    assert found["rmb"].prompt == "Tea?"


def test_every_right_solution_stands_against_every_wrong_one():
    pairs = read("gsm8k")
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [
        (f"by {right}", f"by {wrong}")
        for right in ("6b_finetuning", "175b_verification")
        for wrong in ("6b_verification", "175b_finetuning")
    ]
    assert len({pair.id for pair in pairs}) == 4 and {pair.task for pair in pairs} == {"math"}


def test_equal_solutions_are_pairs_of_their_own_so_that_none_is_dropped_silently():
    row = {"question": "Tea?", **solved("6b_finetuning", "6b_verification", "175b_finetuning")}
    row["6b_verification"]["solution"] = row["6b_finetuning"]["solution"]
    row["175b_verification"]["solution"] = row["175b_finetuning"]["solution"]  # right by one count, wrong by the other
    first, again, same = read("gsm8k", [row])
    assert (first.chosen, first.rejected) == (again.chosen, again.rejected) and first.id != again.id
    check_sides(first)
    with pytest.raises(Refusal, match="equal to chosen"):
        check_sides(same)


def test_a_prompt_has_one_form_and_white_space_is_no_name():
    for schema, field in (("plain", "prompt"), ("code", "input"), ("step_dpo", "prompt"), ("gsm8k", "question")):
        (pair, *_) = read(schema, [ROWS[schema][0] | {field: TURNS[2:]}])
        assert pair.prompt == "Tea?"
    (pair,) = read("plain", [ROWS["plain"][0] | {"source": " ", "id": "\n"}])
    assert (pair.source, pair.id) == ("file", "12")


def test_a_step_that_repeats_what_came_before_is_not_repeated():
    row = ROWS["step_dpo"][0] | {"full_chosen": "So: Yes"}
    assert read("step_dpo", [row])[0].chosen == "So: Yes"


def test_helpsteer2_the_other_way_round_and_over_several_turns():
    row = ROWS["helpsteer2"][0] | {
        "preference_strength": 1, "prompt": "Hi\n\n<extra_id_1>Assistant\nHi.\n\n<extra_id_1>User\nTea?"
    }  # fmt: skip
    (pair,) = read("helpsteer2", [row])
    assert (pair.chosen, pair.prompt) == ("No", tuple(Message(**turn) for turn in TURNS))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=2)
    | st.sampled_from(["Yes", "user", "assistant", " ", "<extra_id_1>", "\ud800", 10**4000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "is_correct", "solution"]), inner, max_size=3
    ),
    max_leaves=8,
)  # fmt: skip


@given(st.sampled_from(sorted(SCHEMAS)), st.data())
def test_any_row_is_pairs_or_a_refusal(schema, data):
    rows = [
        row | data.draw(st.dictionaries(st.sampled_from(sorted(row)), values, min_size=1, max_size=2))
        for row in ROWS[schema]
    ]
    try:
        pairs = read(schema, rows)
    except Refusal as refusal:
        assert refusal.reason in ("schema", "empty", "not_unicode", "no_preference", "no_partner")
        assert "\n" not in refusal.detail
        return
    for pair in pairs:
        (written,) = read_pairs([pair_to_json(replace(pair, chosen="Yes", rejected="No", task="chat"))], "", ["chat"])
        assert (written.prompt, written.source, written.id) == (pair.prompt, pair.source, pair.id)


@pytest.mark.parametrize(
    ("schema", "rows", "reason", "detail"),
    [
        ("plain", ROWS["code"], "schema", "prompt: missing"),  # a row of another schema
        ("skywork", ROWS["plain"], "schema", "chosen: is a text; expected a list"),
        ("skywork", [{"chosen": talk("Yes"), "rejected": talk("No", TURNS[2:])}], "schema", "another prompt"),
        ("skywork", [{"chosen": TURNS, "rejected": talk("No")}], "schema", "does not end in an answer"),
        ("helpsteer2", [ROWS["helpsteer2"][0] | {"preference_strength": 9}], "schema", "a number from -3 to 3"),
        ("helpsteer2_scores", [ROWS["helpsteer2_scores"][0], {"prompt": "x"}], "no_partner", "not that of the next"),
        ("helpsteer2", [ROWS["helpsteer2"][0] | {"prompt": TURNS}], "schema", "prompt: is a list; expected a text"),
        ("plain", [ROWS["plain"][0] | {"chosen": b"Yes"}], "schema", "chosen: is of the type bytes"),  # of parquet
        ("plain", [ROWS["plain"][0] | {"id": 1 << 90}], "schema", "id: is too large a number"),
        ("gsm8k", [{"question": "Tea?"}], "schema", "6b_finetuning: missing"),
        ("plain", [ROWS["plain"][0] | {"chosen": " \n"}], "empty", "chosen: is empty"),
        ("plain", [ROWS["plain"][0] | {"prompt": ""}], "empty", "prompt: is empty"),
        ("helpsteer2", [ROWS["helpsteer2"][0] | {"prompt": " <extra_id_1>User\n"}], "empty", "prompt: is empty"),
        ("step_dpo", [ROWS["step_dpo"][0] | {"full_rejected": ""}], "empty", "rejected: is empty"),
        ("plain", [ROWS["plain"][0] | {"rejected": "Yes"}], "identical", "equal to chosen"),
        ("plain", [ROWS["plain"][0] | {"rejected": "\ud800"}], "not_unicode", "rejected: is not valid Unicode"),
        ("helpsteer2", [ROWS["helpsteer2"][0] | {"preference_strength": 0}], "no_preference", "nothing"),
        ("gsm8k", [{"question": "Tea?", **solved()}], "no_preference", "nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_says_why(schema, rows, reason, detail):
    found = refused(schema, *rows)
    assert found[0] == reason and detail in found[1]
