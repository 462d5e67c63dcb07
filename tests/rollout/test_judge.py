"""The judge as other code calls it: what it returns, what it depends on, and that no text makes it raise."""

import re
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patarm_core.prompts import Message
from patarm_core.rubrics import default_rubrics
from patarm_core.voting import mean_score
from rollout.contexts import ContextBuilder, PromptConfig
from rollout.grammar import JudgmentGrammar
from rollout.judge import Judge, Unanswered
from tests import models
from tests.fake_engine import FakeEngine

PROMPTS = [f"Say something about {word}, number {i}." for i, word in enumerate(["tea", "rain", "bread", "stone"])]
RESPONSES = ["A good tea.", "A bad rain.", "A good bread.", "A bad stone."]


@pytest.fixture(scope="module")
def judge(tiny_judge, tiny_files):
    return Judge.from_pretrained(
        tiny_judge, rubrics="primary", template="bare", rubrics_file=str(tiny_files["prompt.rubrics_file"]),
        num_votes=4, max_completion_tokens=24,
    )  # fmt: skip


def scripted(say, **settings) -> Judge:
    """A judge whose engine writes `say(text of the context, sample)`."""
    tokenizer = models.tokenizer()
    engine = FakeEngine(tokenizer, lambda context, params, sample: say(tokenizer.decode(context), sample), limit=4096)
    contexts = ContextBuilder(tokenizer, PromptConfig(template="bare"), default_rubrics())
    return Judge(engine=engine, contexts=contexts, **settings)


def answering(*answers: str) -> Judge:
    """A judge whose i-th judgment of everything ends in the i-th answer."""
    return scripted(lambda _, sample: f"so <answer>{answers[sample]}</answer>", num_votes=len(answers))


def test_a_score_is_the_mean_of_the_valid_ones():
    assert answering("8", "7.5", "none", "11").score(["Why?"], ["So."]) == [7.75]


def test_a_response_without_a_valid_score_has_none_and_not_0():
    assert answering("eight", "11").score(["Why?"], ["So."]) == [None]


def test_a_record_holds_every_judgment_with_its_errors():
    (judged,) = answering("8", "eight").judgments(["Why?"], ["So."])
    assert judged.texts == ["so <answer>8</answer>", "so <answer>eight</answer>"]
    assert judged.answers == [Fraction(8), None] and judged.score == 8
    assert judged.errors == ["tags", "tags"]  # the strict parser misses the other blocks


def test_judgments_are_those_of_the_engine(judge):
    (judged,) = judge.judgments(PROMPTS[:1], RESPONSES[:1])
    question = judge.ask(PROMPTS[0], RESPONSES[0], "chat")
    (completions,) = judge.engine.generate(question.contexts, question.params)
    assert judged.texts == [completion.text for completion in completions]
    assert len(set(judged.texts)) > 1 and any(judged.answers)


def test_a_judgment_depends_on_its_question_and_the_seed_alone(judge):
    together = judge.judgments(PROMPTS, RESPONSES)
    backwards = judge.judgments(PROMPTS[::-1], RESPONSES[::-1])
    alone = [judge.judgments([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert together == backwards[::-1] == alone
    assert replace(judge, seed=1).judgments(PROMPTS, RESPONSES) != together


def test_conversations_are_accepted_as_trl_passes_them(judge):
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    completions = [[{"role": "assistant", "content": response}] for response in RESPONSES]
    parts = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in PROMPTS]
    expected = judge.score(PROMPTS, RESPONSES)
    assert judge.score(conversations, completions) == judge.score(parts, RESPONSES) == expected
    assert judge.score([[Message("user", prompt)] for prompt in PROMPTS], RESPONSES) == expected


def test_it_is_a_reward_function_of_trl(judge):
    """Called with keywords, columns of the data set and the trainer's own among them; None stands for no reward."""
    assert judge.__name__ == "patarm_judge"
    rewards = judge(
        prompts=PROMPTS, completions=RESPONSES, completion_ids=[[1]] * 4, task=["chat"] * 4, trainer_state=None
    )
    assert rewards == judge.score(PROMPTS, RESPONSES)
    assert all(reward is None or type(reward) is float for reward in rewards)
    assert answering("none")(prompts=["Why?"], completions=[[]]) == [None]


def test_what_cannot_be_judged_has_no_score_and_says_why(judge):
    prompts = ["Why?", "Why? " * 300, "Why?", [{"role": "robot", "content": "x"}], "Why?"]
    responses = ["So.", "So.", "\ud800", "So.", [{"role": "assistant", "content": [{"type": "image"}]}]]
    prompts += [[{"role": "user"}], ["Why?"], 5, "Why?", "Why?", "Why?"]
    responses += ["So.", "So.", "So.", None, {"content": "So."}, [{"content": 5}]]
    first, *others = judge.judgments(prompts, responses)
    assert first == judge.judgments(prompts[:1], responses[:1])[0]
    for item, reason in zip(
        others,
        ("item 1: ", "not valid Unicode", "unknown role 'robot'", "type 'image'", "no content", "no role", "int found")
        + ("NoneType found; a text or a list of messages", "dict found", "int found"),
        strict=True,
    ):
        assert isinstance(item, Unanswered) and reason in item.problem
    assert judge.score(prompts, responses)[1:] == [None] * 10


def test_a_judgment_takes_what_room_the_context_leaves(judge):
    wide = replace(judge, max_completion_tokens=10_000)
    (params,) = wide.ask(PROMPTS[0], RESPONSES[0], "chat").params
    (context,) = wide.ask(PROMPTS[0], RESPONSES[0], "chat").contexts
    assert len(context) + params.max_tokens == judge.engine.decoder.config.max_position_embeddings


def test_where_a_well_formed_judgment_has_no_room_there_is_none(judge):
    V = judge.engine.decoder.config.vocab_size
    grammar = JudgmentGrammar(judge.engine.tokenizer, V, "primary", "score")
    strict = replace(judge, grammars={"score": grammar}, temperature=2.0)
    assert strict.judgments(PROMPTS[:1], RESPONSES[:1])[0].errors == [None] * 4
    (item,) = replace(strict, max_completion_tokens=3).judgments(PROMPTS[:1], RESPONSES[:1])
    assert item.problem.startswith("item 0: there is room for 3 tokens; a well-formed judgment takes ")


def test_settings_that_cannot_be_are_refused(judge):
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        replace(judge, num_votes=0)
    with pytest.raises(ValueError, match="unknown method 'best'"):
        judge.ask_to_compare("Why?", "a", "b", "chat", "best")
    with pytest.raises(ValueError, match="unknown method 'best'"):
        judge.compare(["Why?"], ["a"], ["b"], method="best")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ((["Why?"], []), "one entry for each item; found prompts 1, responses 0, tasks 1"),
        (("Why?", "Soso"), "one entry for each item; found prompts 4, responses 4, tasks 4"),
        ((["Why?"] * 2, ["So."] * 2, ["chat"]), "found prompts 2, responses 2, tasks 1"),
        ((["Why?"], ["So."], "chess"), "unknown task 'chess'; known tasks are chat, "),
        ((["Why?"] * 2, ["So."] * 2, ["chat", None]), "unknown task 'None'; known tasks are chat, "),
    ],
)
def test_what_is_wrong_with_all_items_is_told_and_not_a_list_of_none(items, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        answering("7").score(*items)


def test_a_template_of_its_own_has_no_tasks():
    judge = answering("7")
    contexts = replace(judge.contexts, config=PromptConfig(template="general"))
    assert replace(judge, contexts=contexts).score(["Why?"], ["So."], "anything") == [7.0]


@given(st.lists(st.text(st.characters(codec=None), max_size=30), min_size=3, max_size=3), st.text(max_size=60))
@settings(max_examples=60)
def test_no_text_makes_it_raise(texts, written):
    judge = scripted(lambda *_: written or "x")
    score, winner = judge.score(texts[:1], texts[1:2]), judge.compare(*([text] for text in texts))
    assert score == [None] or 0 <= score[0] <= 10
    assert winner[0] in ("A", "B", "tie", None)


def by_length(text: str, sample: int) -> str:
    response = text.split("<response>\n")[1].split("\n</response>")[0]
    return f"<answer>{len(response) % 11 if sample else 5}</answer>"


def test_pointwise_comparisons_are_those_of_the_scores():
    judge = scripted(by_length, num_votes=3)
    items = [["Why?"] * 3, ["aaa", "a", "aa"], ["a", "aaa", "aa"]]
    assert judge.compare(*items) == judge.compare(*items, method="majority") == ["A", "B", "tie"]
    assert judge.comparisons(*items)[0].votes == ["tie", "A", "A"]


def test_equal_responses_tie(judge):
    assert set(judge.compare(PROMPTS, RESPONSES, RESPONSES)) <= {"tie", None}


def test_swapping_the_responses_mirrors_a_pointwise_comparison(judge):
    mirrored = {"A": "B", "B": "A", "tie": "tie", None: None}
    items = (PROMPTS, RESPONSES, RESPONSES[1:] + RESPONSES[:1])
    for method in ("mean", "majority"):
        one, other = judge.compare(*items, method=method), judge.compare(items[0], items[2], items[1], method=method)
        assert [mirrored[winner] for winner in one] == other


def test_the_mean_is_compared_exactly():
    """0.1 + 0.2 is not 0.3 in floats."""
    scores = {"a": ("0.1", "0.2", "0.3"), "b": ("0.2", "0.2", "0.2")}
    judge = scripted(
        lambda text, i: f"<answer>{scores[text.split('<response>')[1].strip()[0]][i]}</answer>", num_votes=3
    )
    assert judge.compare(["Why?"], ["a"], ["b"]) == ["tie"]
    (compared,) = judge.comparisons(["Why?"], ["a"], ["b"])
    assert [mean_score(side.answers) for side in compared.judged] == [Fraction(1, 5)] * 2


def better(text: str, _: int) -> str:
    a = text.split("<responseA>\n")[1]
    return f"<answer>{'A' if a.startswith('good') else 'B'}</answer>"


def test_a_pairwise_choice_is_told_in_the_callers_order():
    judge = scripted(better, num_votes=3)
    prompts = [f"Why {i}?" for i in range(20)]
    compared = judge.comparisons(prompts, ["good"] * 20, ["bad"] * 20, method="pairwise")
    assert {c.winner for c in compared} == {"A"} and compared[0].votes == ["A"] * 3
    assert {c.is_swapped for c in compared} == {True, False}  # a judge that always says A wins nothing by it
    assert judge.compare(prompts, ["bad"] * 20, ["good"] * 20, method="pairwise") == ["B"] * 20


def test_pairwise_judgments_without_a_choice_do_not_vote():
    judge = scripted(lambda _, sample: ["<answer>7</answer>", "<answer>A</answer>", "?"][sample], num_votes=3)
    (compared,) = judge.comparisons(["Why?"], ["x"], ["y"], method="pairwise")
    assert compared.winner == ("B" if compared.is_swapped else "A") and compared.votes.count(None) == 2
    assert scripted(lambda *_: "?").compare(["Why?"], ["x"], ["y"], method="pairwise") == [None]


@pytest.mark.slow
def test_trl_trains_with_it(judge, tiny_judge, tmp_path):
    trl = pytest.importorskip("trl", reason="the extra `peers` has it")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    rows = [{"prompt": [{"role": "user", "content": prompt}], "task": "chat"} for prompt in PROMPTS]
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_steps=1,
        per_device_train_batch_size=4, num_generations=2, max_completion_length=8, max_steps=2, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_judge), reward_funcs=judge, args=arguments,
        train_dataset=Dataset.from_list(rows), processing_class=judge.engine.tokenizer,
    )  # fmt: skip
    trainer.train()
    means = [entry["rewards/patarm_judge/mean"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(means) == 2 and all(0 <= mean <= 10 for mean in means)
