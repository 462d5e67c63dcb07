"""Generative judges on our engine: what they read, what they depend on, and that every failure has a name."""

import json
from dataclasses import replace

import pytest

from eval.judges.baselines.deepseek_grm import DEEPSEEK_GRM
from eval.judges.baselines.judgelrm import JUDGELRM
from eval.judges.baselines.r3 import R3
from eval.judges.form import Sampling
from eval.judges.judge import Question, choice_of, compare_two, mean_of, score
from eval.judges.local import EngineJudge
from eval.judges.patarm import patarm_form
from patarm_core.rubrics import default_rubrics, parse_rubrics
from rollout.contexts import load_rubrics
from rollout.grammar import JudgmentGrammar
from rollout.judge import Judge
from tests import models
from tests.fake_engine import FakeEngine

FULL = patarm_form(default_rubrics())


def question(number: int = 0, responses=("So.",), **more) -> Question:
    return Question(**{"id": str(number), "prompt": f"Why {number}?", "responses": responses} | more)


def scripted(say, form=FULL, mode="pointwise", limit=8192, **settings) -> EngineJudge:
    """A judge whose engine writes `say(text of the context, sample)`."""
    tokenizer = models.tokenizer()
    engine = FakeEngine(tokenizer, lambda context, params, sample: say(tokenizer.decode(context), sample), limit)
    given = {"sampling": Sampling(max_tokens=400), "model": "fake", "name": "fake"} | settings
    return EngineJudge(engine=engine, form=form, mode=mode, **given)


@pytest.fixture(scope="module")
def tiny(tiny_judge, tiny_files):
    file = str(tiny_files["prompt.rubrics_file"])
    book = load_rubrics(file)
    settings = {"rubrics": "primary", "template": "bare"}
    theirs = Judge.from_pretrained(tiny_judge, rubrics_file=file, num_votes=3, max_completion_tokens=24, **settings)
    ours = EngineJudge(
        engine=theirs.engine, form=patarm_form(book, **settings), mode="pointwise", sampling=Sampling(max_tokens=24),
        model="tiny", name="tiny",
    )  # fmt: skip
    return theirs, ours


def test_judgments_are_those_of_the_judge_that_other_code_calls(tiny):
    theirs, ours = tiny
    prompts, responses = [f"Say {word}." for word in "abcd"], ["A good one.", "A bad one.", "good", "bad"]
    asked = [question(prompt=p, responses=(r,)) for p, r in zip(prompts, responses, strict=True)]
    drawn = dict(ours.judge(asked, 3))
    judged = theirs.judgments(prompts, responses)
    assert [[one.text for one in drawn[i]] for i in range(4)] == [item.texts for item in judged]
    assert [mean_of(drawn[i], 3) for i in range(4)] == [item.score for item in judged]
    assert any(one.score is not None for votes in drawn.values() for one in votes)


def test_fewer_votes_are_the_first_of_more_and_company_changes_nothing(tiny):
    _, ours = tiny
    asked = [question(i) for i in range(3)]
    three = {i: [one.text for one in drawn] for i, drawn in ours.judge(asked, 3)}
    assert {i: [one.text for one in drawn] for i, drawn in ours.judge(asked, 1)} == {i: t[:1] for i, t in three.items()}
    ((_, alone),) = ours.judge(asked[2:], 3)
    assert [one.text for one in alone] == three[2]
    ((_, other),) = replace(ours, seed=1).judge(asked[2:], 3)
    assert [one.text for one in other] != three[2]


def test_well_formed_judgments_all_have_scores(tiny):
    _, ours = tiny
    tokenizer, V = ours.engine.tokenizer, ours.engine.decoder.config.vocab_size
    held = replace(ours, grammar=JudgmentGrammar(tokenizer, V, "primary", "score"), sampling=Sampling(max_tokens=40))
    assert all(one.error is None for _, drawn in held.judge([question(0), question(1)], 2) for one in drawn)


def test_a_score_is_read_and_what_has_none_says_why():
    said = ["so <answer>7.5</answer>", "no tags", "<answer>11</answer>", " "]
    ((_, drawn),) = scripted(lambda _, sample: said[sample]).judge([question()], 4)
    assert [one.score for one in drawn] == [7.5, None, None, None]
    assert [(one.error or "").partition(":")[0] for one in drawn] == ["", "unparsed", "unparsed", "empty"]
    assert drawn[0].seed is not None and drawn[0].seconds >= 0


def test_a_judgment_that_ran_out_of_tokens_is_cut_and_not_a_score():
    judge = scripted(lambda *_: "very " * 50 + "<answer>7</answer>", sampling=Sampling(max_tokens=20))
    assert score(judge, "Why?", "So.") is None
    ((_, (drawn,)),) = judge.judge([question()], 1)
    assert drawn.error == "cut: before its answer" and drawn.text.startswith("very")


def test_thinking_that_was_cut_is_no_answer_though_it_names_one():
    judge = scripted(
        lambda *_: 'maybe "score": 4 ' * 40, form=R3, sampling=Sampling(max_tokens=60), max_context_tokens=4096
    )
    ((_, (drawn,)),) = judge.judge([question()], 1)
    assert drawn.score is None and drawn.error == "cut: while it was thinking"


def test_what_cannot_be_asked_is_an_error_of_that_question_alone():
    judge = scripted(lambda *_: "<answer>7</answer>", max_context_tokens=6000)
    asked = [question(0), question(1, prompt="long " * 9000), question(2, responses=("half \ud800",)), question(3)]
    drawn = {i: votes for i, votes in judge.judge(asked, 2)}
    assert sorted(drawn) == [0, 1, 2, 3]
    assert [mean_of(drawn[i], 2) for i in range(4)] == [7, None, None, 7]
    assert "--max-context-tokens is 6000" in drawn[1][0].error and drawn[1][0].error.startswith("unasked: ")
    assert "not valid Unicode" in drawn[2][1].error


@pytest.mark.parametrize(
    "asked, message",
    [
        (question(4, responses=("a", "b")), "question 4: has 2 responses; pointwise judges take 1"),
        (question(5, task="poetry"), "question 5: unknown task 'poetry'"),
    ],
)
def test_a_question_that_no_such_judge_can_take_is_refused_at_once(asked, message):
    with pytest.raises(ValueError, match=message):
        list(scripted(lambda *_: "").judge([question(), asked], 1))


def prefers_good(context, _):
    """Chooses the place of the good response, whichever it is."""
    return f"<answer>{'A' if context.index('good') < context.index('bad') else 'B'}</answer>"


@pytest.mark.parametrize("order", ["drawn", "both", "given"])
def test_choices_are_told_in_the_order_of_the_question(order):
    judge = scripted(prefers_good, mode="pairwise", order=order)
    drawn = dict(judge.judge([question(i, ("good", "bad")) for i in range(12)], 3))
    assert {choice_of(votes, 3) for votes in drawn.values()} == {"A"}
    swaps = [[one.is_swapped for one in drawn[i]] for i in range(12)]
    assert swaps == [[False, True, False]] * 12 if order == "both" else all(len(set(votes)) == 1 for votes in swaps)
    assert len({votes[0] for votes in swaps}) == (2 if order == "drawn" else 1)


def test_a_judge_that_always_says_a_prefers_what_it_read_first():
    judge = scripted(lambda *_: "<answer>A</answer>", mode="pairwise", order="both")
    ((_, drawn),) = judge.judge([question(0, ("x", "y"))], 2)
    assert [one.choice for one in drawn] == ["A", "B"] and choice_of(drawn, 2) == "tie"


def test_scores_of_two_are_told_in_the_order_of_the_question_and_summed():
    judge = scripted(lambda *_: r"Scores: \boxed{9, 2}", form=DEEPSEEK_GRM, mode="pairwise", order="both")
    ((_, drawn),) = judge.judge([question(0, ("x", "y"))], 2)
    assert [one.scores for one in drawn] == [(9, 2), (2, 9)] and choice_of(drawn, 2) == "tie"
    assert compare_two(replace(judge, order="given"), "Why?", "x", "y") == "A"


def test_the_opening_is_read_after_the_turn_of_the_judge_begins():
    seen = []
    judge = scripted(
        lambda context, _: seen.append(context) or "<answer>8</answer><answer>7</answer>",
        form=JUDGELRM,
        mode="pairwise",
    )
    assert compare_two(replace(judge, order="given"), "Why?", "x", "y") == "A"
    assert seen[0].endswith("<think>")


def test_the_fingerprint_tells_apart_what_judgments_depend_on():
    judge = scripted(lambda *_: "")
    others = [
        replace(judge, seed=1), replace(judge, model="other"), replace(judge, sampling=Sampling(temperature=0.5)),
        replace(judge, form=patarm_form(default_rubrics(), "primary")), replace(judge, mode="pairwise"),
        replace(judge, form=patarm_form(default_rubrics(), template="general")),
        replace(judge, form=patarm_form(parse_rubrics('[[chat]]\nname="N"\nquestion="Q?"\nbands=["0-10: all"]', "f"))),
    ]  # fmt: skip
    prints = [json.dumps(one.fingerprint) for one in [judge, *others]]
    assert len(set(prints)) == len(prints)
    assert replace(judge, name="another").fingerprint == judge.fingerprint


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"form": JUDGELRM}, "judgelrm: has no pointwise judgments; --mode pairwise is right"),
        ({"order": "random"}, "unknown order 'random'"),
        ({"sampling": Sampling(temperature=-1)}, "temperature=-1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        scripted(lambda *_: "", **settings)
