import re

import pytest

from patarm_core.rubrics import Rubric, default_rubrics, parse_rubrics, render

COMPACT = '[[chat]]\nname = "Usefulness"\nquestion = "Does it help?"\nbands = []\n'


def test_the_default_book_has_the_primary_rubrics_of_the_paper():
    book = default_rubrics()
    assert {task: [rubric.name for rubric in book.for_task(task)] for task in book.tasks} == {
        "chat": ["Usefulness"],
        "math": ["Correctness", "Logic"],
        "code": ["Correctness", "Logic"],
        "safety": ["Safety"],
        "instruction_following": ["Instruction Coverage", "Instruction Constraints"],
    }


def test_the_bands_of_every_default_rubric_cover_0_to_10_without_overlap():
    book = default_rubrics()
    for rubric in [rubric for task in book.tasks for rubric in book.for_task(task)]:
        covered = []
        for band in rubric.bands:
            low, high = map(int, re.match(r"(\d+)-(\d+): ", band).groups())
            covered += range(high, low - 1, -1)
        assert covered == list(range(10, -1, -1)), rubric


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError) as error:
        default_rubrics().for_task("maths")
    known = "chat, math, code, safety, instruction_following"
    assert str(error.value) == f"unknown task 'maths'; known tasks are {known} (nearest: 'math')"


def test_a_rubric_is_rendered_with_its_question_and_bands():
    rubrics = [Rubric("Logic", "Is it sound?", ("6-10: Yes.", "0-5: No.")), Rubric("Tone", "Is it kind?")]
    assert render(rubrics) == "Logic:\n  Is it sound?\n  - 6-10: Yes.\n  - 0-5: No.\nTone: Is it kind?"
    assert render(rubrics, questions=False) == "Logic:\n  - 6-10: Yes.\n  - 0-5: No.\nTone: Is it kind?"


def test_bands_may_be_empty_or_left_out():
    book = parse_rubrics(COMPACT, "my.toml")
    assert book.for_task("chat") == (Rubric("Usefulness", "Does it help?"),)
    assert parse_rubrics(COMPACT.replace("bands = []", ""), "my.toml") == book


def test_malformed_toml_is_refused_with_its_line():
    with pytest.raises(ValueError, match=r"^my.toml: not TOML: .* \(at line 2, column 7\)$"):
        parse_rubrics("\n[[chat]\n", "my.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.toml: no rubrics; write at least one [[task]] table"),
        ("chat = 3", "my.toml: chat: expected one or more [[chat]] tables"),
        ("chat = []", "my.toml: chat: expected one or more [[chat]] tables"),
        ('["a b"]', "my.toml: a b: a task name has letters, digits, _ and - only"),
        ('[[chat]]\nquestion = "?"', "my.toml: chat: rubric 1: name: missing; expected one line of text"),
        ('[[chat]]\nname = "U"', "my.toml: chat: rubric 1: question: missing; expected one line of text"),
        (
            '[[chat]]\nname = "U"\nquestion = " "',
            "my.toml: chat: rubric 1: question: expected one line of text, got ' '",
        ),
        (
            COMPACT.replace("[]", '["8-10: a\\nb"]'),
            "my.toml: chat: rubric 1: bands: expected one line of text, got '8-10: a\\nb'",
        ),
        (COMPACT.replace("[]", "3"), "my.toml: chat: rubric 1: bands: expected a list of lines, got 3"),
        (
            COMPACT.replace("bands", "band"),
            "my.toml: chat: rubric 1: band: unknown field; fields are name, question, bands (nearest: 'bands')",
        ),
        (COMPACT + COMPACT, "my.toml: chat: rubric 2: name: 'Usefulness' is used twice in this task"),
    ],
)
def test_a_wrong_book_is_refused_with_the_place(text, message):
    with pytest.raises(ValueError) as error:
        parse_rubrics(text, "my.toml")
    assert str(error.value) == message
