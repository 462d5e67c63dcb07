"""How right an answer is, by a program; and what is told of programs and rows that are wrong."""

import numpy as np
import pytest

from patarm_core.policy_rows import PolicyPrompt
from tests import tiny_runs
from trainer.checkers import CheckerFailure, open_checker
from trainer.inputs import load_inputs

# Of IFEval's published rows (keys 1000 and 1019), with settings as the Hugging Face copy fills them up.
SUMMARY = {
    "instruction_id_list": [
        "punctuation:no_comma", "detectable_format:number_highlighted_sections", "length_constraints:number_words",
    ],
    "kwargs": [{}, {"num_highlights": 3, "relation": None}, {"relation": "at least", "num_words": 8}],
}  # fmt: skip
LETTER = {"instruction_id_list": ["startend:quotation"], "kwargs": [{}]}


def prompt(checks: object = None, text: str = "Write a summary.") -> PolicyPrompt:
    return PolicyPrompt(prompt=text, checks=checks, source="ifeval", id="1000")


# Named by these tests as tests.trainer.test_checkers:NAME.
def above_one(prompt, response, checks) -> float:
    return 5.0


@pytest.mark.parametrize(
    ("checks", "text", "share"),
    [
        (SUMMARY, "*Who* he was *what* he did and *where* it all ended", 1.0),
        (SUMMARY, "*Who*, *what*, *where*", 1 / 3),
        (SUMMARY, "Who he was and what he did, and where it all ended", 1 / 3),
        (SUMMARY, "A count", 1 / 3),
        (SUMMARY, " \n", 0.0),
        (LETTER, '"Dear Sir"', 1.0),
        (LETTER, "Dear Sir", 0.0),
    ],
)
def test_an_answer_is_worth_the_share_of_instructions_that_it_follows(checks, text, share):
    assert open_checker("ifeval")(prompt(checks), text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("checks", "problem"),
    [
        (None, "checks: is null; expected an object of instruction_id_list and kwargs"),
        ({"instruction_id_list": ["punctuation:no_comma"]}, "checks.kwargs: missing"),
        ({"instruction_id_list": ["no:such"], "kwargs": [{}]}, r'checks.instruction_id_list\[0\]: is "no:such"'),
        (
            {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"relation": "at least"}]},
            r"checks.kwargs\[0\].num_words: missing; expected a whole number",
        ),
    ],
)
def test_instructions_that_cannot_be_checked_are_told_before_anything_is_drawn(checks, problem, tiny_judge, tmp_path):
    row = {"prompt": "Write.", "id": 1000, "checks": checks}
    job = {
        "out": tmp_path / "run", "role": "policy", "stages": [], "model.path": tiny_judge, "data.checker": "ifeval",
        "data.held_out_prompts": tiny_runs.write_jsonl(tmp_path / "ifeval.jsonl", [row]),
        "rollout.max_completion_tokens": 8,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"prompt 1000 of ifeval: {problem}"):
        load_inputs(tiny_runs.recipe_of(job), str(tiny_judge))


def half(prompt, response, checks) -> np.float32:
    return np.float32(0.5)


def test_the_embedded_checker_and_functions_of_the_users():
    assert open_checker("") is None
    assert open_checker("embedded")(prompt(text="Work out a) 1+1 b) 2+2"), "a) 2; b) 5.") == 0.5
    assert open_checker("tests.trainer.test_checkers:half")(prompt(), "x") == 0.5
    with pytest.raises(CheckerFailure, match="above_one: prompt 1000 of ifeval: gave 5"):
        open_checker("tests.trainer.test_checkers:above_one")(prompt(), "x")
    with pytest.raises(ValueError, match='is not a function; expected "embedded", "ifeval" or "module:function"'):
        open_checker("ifevil")


def test_a_module_that_fails_when_it_is_imported_is_told(tmp_path, monkeypatch):
    (tmp_path / "my_broken_checks.py").write_text("def check(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"'my_broken_checks:check' cannot be imported: .*my_broken_checks.py, line 1"):
        open_checker("my_broken_checks:check")
