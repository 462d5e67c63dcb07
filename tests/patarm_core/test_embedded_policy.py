"""The embedded set of a policy."""

from dataclasses import replace

import pytest

from patarm_core.embedded.policy import EmbeddedPolicyConfig, make_policy_splits, right_share
from patarm_core.embedded.tasks import question_of
from patarm_core.fields import Fields, read_object
from patarm_core.policy_rows import PolicyPrompt, ResponseExample, row_to_json

CONFIG = EmbeddedPolicyConfig(num_responses=300, num_prompts=60, num_dev=20, num_held_out=30)
SPLITS = make_policy_splits(CONFIG)


def test_no_question_is_in_two_splits():
    splits = [SPLITS.responses, SPLITS.prompts, SPLITS.dev, SPLITS.held_out]
    questions = [question_of(row.prompt) for split in splits for row in split]
    assert len(set(questions)) == len(questions) == 410


def test_pairs_are_of_the_prompts_and_their_chosen_side_is_better():
    assert [(pair.prompt, pair.id) for pair in SPLITS.pairs] == [(row.prompt, row.id) for row in SPLITS.prompts]
    assert [pair.prompt for pair in SPLITS.dev_pairs] == [row.prompt for row in SPLITS.dev]
    assert all(right_share(p.prompt, p.chosen) > right_share(p.prompt, p.rejected) for p in SPLITS.pairs)


def test_responses_are_right_about_as_often_as_asked_for():
    shares = [right_share(row.prompt, row.response) for row in SPLITS.responses]
    assert sum(shares) / len(shares) == pytest.approx(0.6, abs=0.06)
    perfect = make_policy_splits(replace(CONFIG, right_share=1.0))
    assert {right_share(row.prompt, row.response) for row in perfect.responses} == {1.0}
    assert perfect.held_out == SPLITS.held_out  # what is measured on stays


@pytest.mark.parametrize(("kind", "rows"), [(PolicyPrompt, SPLITS.prompts), (ResponseExample, SPLITS.responses)])
def test_rows_come_back_from_their_json(kind, rows):
    assert [kind.of(Fields(read_object(row_to_json(row))), "elsewhere") for row in rows] == rows


def test_a_row_is_named_by_its_text_where_it_has_no_id():
    first, second = (PolicyPrompt.of(Fields({"prompt": text}), "file") for text in ("a", "b"))
    assert (first.task, first.source, first.checks) == ("chat", "file", None) and first.id != second.id
    with pytest.raises(ValueError, match="response: is empty"):
        ResponseExample.of(Fields({"prompt": "a", "response": " "}), "file")
