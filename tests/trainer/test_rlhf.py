"""Stage `rlhf`: a policy's steps by hand, and tiny runs of it."""

import copy
import json
import os
import shutil
import signal
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from patarm_core.advantages import Estimator
from patarm_core.policy_rows import PolicyPrompt
from rollout.contexts import ContextBuilder, PromptConfig
from rollout.judge import Judge
from rollout.scalar import score_all
from rollout.weights import save_decoder
from tests import tiny_runs
from tests.models import config, random_decoder, tokenizer
from trainer import rlhf, scorers
from trainer.checkers import Checker
from trainer.distributed import World
from trainer.main import main
from trainer.mistakes import Halt
from trainer.policy import Answer, Examiner, answer_metrics, answer_text, draw_answers
from trainer.rlhf_config import RewardConfig, RlhfConfig
from trainer.scorers import (
    CheckerScorer,
    FunctionScorer,
    JudgeScorer,
    ScalarScorer,
    Scored,
    ScorerFailure,
    open_scorer,
)
from trainer.shared_rollout import Drawn


def answer(score: float | None, num_tokens: int = 4, checked: float | None = None) -> Answer:
    return Answer("text", num_tokens, False, checked, Scored(score, None if score is not None else "why"))


def prompt(number: int) -> PolicyPrompt:
    return PolicyPrompt(prompt=f"Say something, {number}.", source="here", id=str(number))


# What recipes of these tests name as tests.trainer.test_rlhf:NAME.
def by_length(prompts, completions, **_columns) -> list[float]:
    return [float(len(text)) for text in completions]


def never(prompts, completions, **_columns) -> list[None]:
    return [None] * len(completions)


def needs_more(prompt, response, checks) -> float:
    return float(checks["words"] in response)


def has_a_good(prompt, response, checks) -> float:
    return float(checks["word"] in response)


def test_an_unscored_answer_has_no_advantage_or_is_left_out():
    answers = [[answer(8.0), answer(None), answer(6.0)], [answer(5.0), answer(5.0), answer(None)]]
    groups, metrics = rlhf.step_groups(answers, RlhfConfig(advantage="dr_grpo"), 9)
    assert groups[0] == [(1.0, 1 / 24), (0.0, 1 / 24), (-1.0, 1 / 24)]
    assert [value for value, _ in groups[1]] == [0.0] * 3
    assert (metrics["reward"], metrics["zero_advantage_groups"], metrics["unscored_groups"]) == (6.0, 1, 0)
    groups, _ = rlhf.step_groups(answers, RlhfConfig(advantage="dr_grpo", unscored="drop"), 9)
    assert groups == [[(1.0, 1 / 16), None, (-1.0, 1 / 16)], [(0.0, 1 / 16), (0.0, 1 / 16), None]]


@pytest.mark.parametrize("advantage", get_args(Estimator))
def test_a_prompt_without_any_score_teaches_nothing_whatever_the_baseline(advantage):
    """A 0 for it would be the worst of scores where the baseline is the step's."""
    scored, config = [answer(8.0), answer(7.0), answer(6.0)], RlhfConfig(advantage=advantage)
    alone, _ = rlhf.step_groups([scored], config, 9)
    groups, metrics = rlhf.step_groups([scored, [answer(None)] * 3], config, 9)
    assert groups == [alone[0], [None] * 3]
    assert (metrics["reward"], metrics["unscored_groups"], metrics["zero_advantage_groups"]) == (7.0, 1, 1)


def test_a_judge_that_never_answers_halts_the_run():
    with pytest.raises(Halt, match="no answer of the step has a score; the first: why"):
        rlhf.step_groups([[answer(None), answer(None)]], RlhfConfig(), 9)
    with pytest.raises(Halt, match="two answers with a score"):
        rlhf.step_groups([[answer(None), answer(3.0)]], RlhfConfig(unscored="drop"), 9)


def test_what_runs_into_the_limit_loses_reward():
    config = RlhfConfig(advantage="dr_grpo", overlong_buffer_tokens=4)
    ((first, second),), _ = rlhf.step_groups([[answer(5.0, 2), answer(5.0, 8)]], config, 8)
    assert (first[0], second[0]) == (0.5, -0.5)


def test_metrics_of_answers():
    metrics = answer_metrics([[answer(1.0, 4, 0.0), answer(3.0, 6, 1.0)], [answer(None, 2, 1.0), answer(2.0, 4, 0.5)]])
    assert metrics == pytest.approx(
        {
            "completion_tokens": 4.0, "cut_short_rate": 0.0, "accuracy": 0.625, "all_right": 0.5,
            "unscored_rate": 0.25, "score": 2.0, "score_correlation": 1.0,
        }
    )  # fmt: skip
    assert "score_correlation" not in answer_metrics([[answer(1.0, 1, 0.5), answer(1.0, 1, 0.7)]])  # r is undefined
    assert answer_text("<think>a</think>\n\n b", "</think>") == "b" and answer_text("a", "</think>") == "a"


def test_a_functions_scores_are_read_and_its_mistakes_told():
    scorer = FunctionScorer("f", by_length)
    scorer.take("a", prompt(0), ["x", "xyz"])
    scorer.take("b", prompt(1), [""])
    assert scorer.finish() == {"a": [Scored(1.0), Scored(3.0)], "b": [Scored(0.0)]}
    assert scorer.finish() == {}
    for function, problem in (
        (lambda p, c, **_: [1.0], "gave 1 scores for 2"),
        (lambda p, c, **_: 1 / 0, "ZeroDivisionError"),
    ):
        scorer = FunctionScorer("f", function)
        scorer.take("a", prompt(0), ["x", "y"])
        with pytest.raises(ScorerFailure, match=problem):
            scorer.finish()
    scorer = FunctionScorer("f", lambda p, c, **_: [float("nan"), None, True])
    scorer.take("a", prompt(0), ["x", "y", "z"])
    assert [item.score for item in scorer.finish()["a"]] == [None] * 3


def test_a_judges_scores_are_those_that_it_gives_alone(tiny_judge, tiny_files):
    asked = {"rubrics": "primary", "template": "bare", "rubrics_file": str(tiny_files["prompt.rubrics_file"])}
    judge = Judge.from_pretrained(tiny_judge, **asked, num_votes=3, max_completion_tokens=24, seed=5)
    texts = ["A good tea.", "A bad tea.", "A good tea.", "word " * 400]
    scorer = JudgeScorer(judge, "chat")
    scorer.take("late", prompt(1), texts[:2])
    scorer.take("first", prompt(0), texts)
    found = scorer.finish()
    for key, number, some in (("first", 0, texts), ("late", 1, texts[:2])):
        alone = judge.score([prompt(number).prompt] * len(some), some)
        assert [None if s.score is None else float(s.score) for s in found[key]] == alone
    assert found["first"][3].score is None and "tokens" in found["first"][3].error
    assert found["first"][0] is found["first"][2]  # judged once
    general = PromptConfig(template="general")
    with pytest.raises(ValueError, match="there are no rubrics for 'math'"):
        JudgeScorer(judge, "math").check([prompt(0)])
    config = RewardConfig(
        model=str(tiny_judge), votes=3, max_completion_tokens=24, prompt=PromptConfig(**asked), task="chat"
    )
    opened = open_scorer(config, None, 5, judge.engine.device)
    opened.take("late", prompt(1), texts[:2])
    assert opened.finish()["late"] == found["late"]
    # On a GPU, too: when the judge is opened, what is free is not what will be free.
    assert opened.judge.engine.config.kv_gib == scorers.KV_GIB
    with_general = replace(judge, contexts=ContextBuilder(judge.engine.tokenizer, general, judge.contexts.book))
    JudgeScorer(with_general, "math").check([prompt(0)])  # reads no rubrics


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"kind": "judge"}, 'rlhf.reward.model: missing; rlhf.reward.kind = "judge" needs it'),
        ({"kind": "checker"}, "data.checker: missing"),
        ({"kind": "callable", "function": "json:nothing"}, "cannot be imported"),
        ({"kind": "callable", "function": "json"}, "is not a function"),
        ({"kind": "endpoint", "url": "http://127.0.0.1:1/v1"}, "rlhf.reward.model: missing"),
    ],
)
def test_a_reward_that_is_not_there(config, problem):
    with pytest.raises(ValueError, match=problem):
        open_scorer(RewardConfig(**config), None, 0, None)


@pytest.fixture
def job(tiny_files, tiny_judge, tmp_path):
    """A policy that is the tiny judge, which answers a prompt somehow, judged by the tiny judge."""
    rows = [{"prompt": f"Which is good, {i}?", "id": i, "checks": {"word": "so"}} for i in range(9)]
    return {
        "role": "policy", "stages": ["rlhf"], "model.path": tiny_judge, "out": tmp_path / "run",
        "data.prompts": tiny_runs.write_jsonl(tmp_path / "prompts.jsonl", rows[:4]),
        "data.dev_prompts": tiny_runs.write_jsonl(tmp_path / "dev.jsonl", rows[4:6]),
        "data.held_out_prompts": tiny_runs.write_jsonl(tmp_path / "held_out.jsonl", rows[6:]),
        "data.checker": "tests.trainer.test_rlhf:has_a_good",
        "rollout.num_rollouts": 3, "rollout.max_completion_tokens": 8,
        "eval.num_judgments": 2, "eval.votes": [1], "eval.num_dev_judgments": 2,
        "rlhf.steps": 3, "rlhf.prompts_per_step": 2, "rlhf.tokens_per_micro_batch": 512, "rlhf.dev_every": 2,
        "rlhf.checkpoint_every": 1, "rlhf.optim.lr": 1e-3, "rlhf.inner_epochs": 2,
        "rlhf.reward.model": tiny_judge, "rlhf.reward.votes": 2, "rlhf.reward.max_completion_tokens": 24,
        "rlhf.reward.prompt.rubrics": "primary", "rlhf.reward.prompt.template": "bare",
        "rlhf.reward.prompt.rubrics_file": tiny_files["prompt.rubrics_file"],
    }  # fmt: skip


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "tokens_per_s" and not k.endswith("_s")} for row in rows]


def test_a_run_that_is_killed_while_it_judges_ends_as_one_that_was_not(job, tmp_path, monkeypatch):
    tiny_runs.train(job)
    whole = without_times(tiny_runs.records(tmp_path / "run"))
    assert [row["step"] for row in whole] == [1, 2, 3]
    for row in whole:
        assert row.keys() >= {
            "reward", "score", "checker_score", "kl", "entropy", "completion_tokens", "cut_short_rate",
            "unscored_rate", "unscored_groups", "zero_advantage_share", "prompts_by_rank", "logprob_gap",
        }  # fmt: skip
        assert row["logprob_gap"] < 1e-4
    assert whole[1].keys() >= {"dev_accuracy", "dev_score", "dev_completion_tokens"}
    assert "dev_accuracy" not in whole[0] and "dev_accuracy" in whole[2]
    report = json.loads((tmp_path / "run" / "report.json").read_text())["held_out_prompts"]
    assert report.keys() == {"initial", "rlhf"} and report["rlhf"]["num_prompts"] == 3
    assert "## Held-out prompts" in (tmp_path / "run" / "report.md").read_text()
    html = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Held-out prompts</h2>" in html and "held-out prompts by the checker, rlhf" in html
    times = (tmp_path / "run" / "report.md").read_text().partition("## Time")[2]
    assert "| judge |" in times and " - |" not in times.splitlines()[4]  # every phase of rlhf is there
    num_calls, real = 0, JudgeScorer.finish

    def finish(self, is_leaving):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:  # the held-out prompts, step 1, step 2
            raise KeyboardInterrupt
        return real(self, is_leaving)

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(JudgeScorer, "finish", finish)
        assert main(tiny_runs.arguments(job | {"out": cut})) != 0
    assert len(tiny_runs.records(cut)) == 1
    tiny_runs.train(job | {"out": cut, "resume": True})
    assert without_times(tiny_runs.records(cut)) == whole
    assert tiny_runs.records(cut, "samples.jsonl") == tiny_runs.records(tmp_path / "run", "samples.jsonl")
    for file in ("models/rlhf/model.safetensors", "answers/rlhf.jsonl"):
        assert (cut / file).read_bytes() == (tmp_path / "run" / file).read_bytes()
    shutil.rmtree(cut)
    answers, num_judged = Judge.answers, 0

    def asked_to_end(self, questions):
        nonlocal num_judged
        for judged in answers(self, questions):
            num_judged += len(tiny_runs.records(cut)) == 1 if (cut / "metrics.jsonl").is_file() else 0
            if num_judged == 1:  # the first of step 2
                os.kill(os.getpid(), signal.SIGTERM)
            yield judged

    with monkeypatch.context() as patch:
        patch.setattr(Judge, "answers", asked_to_end)
        assert main(tiny_runs.arguments(job | {"out": cut, "rlhf.checkpoint_every": 0})) == 143
    assert num_judged < 4 and len(tiny_runs.records(cut)) == 1  # it did not judge the step to its end
    tiny_runs.train(job | {"out": cut, "resume": True})
    assert without_times(tiny_runs.records(cut)) == whole


def test_a_checker_that_fails_halts_with_one_line(job, capsys):
    assert main(tiny_runs.arguments(job | {"data.checker": "tests.trainer.test_rlhf:needs_more"})) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and "needs_more: prompt " in told[0] and told[0].endswith("KeyError: 'words'")


def test_a_reward_that_says_nothing_halts_with_one_line(job, capsys):
    silent = {"rlhf.reward.kind": "callable", "rlhf.reward.function": "tests.trainer.test_rlhf:never"}
    assert main(tiny_runs.arguments(job | silent | {"data.dev_prompts": "", "rlhf.dev_every": 0})) == 1
    assert "no answer of the step has a score; the first: the function gave None" in capsys.readouterr().err


def embedded(out) -> dict:
    small = {f"model.small.{key}": value for key, value in tiny_runs.SMALL.items()}
    counts = {"num_responses": 40, "num_prompts": 4, "num_dev": 2, "num_held_out": 3}
    return small | {f"data.embedded_policy.{key}": value for key, value in counts.items()} | {
        "out": out, "role": "policy", "data.source": "embedded", "rollout.max_completion_tokens": 8,
        "eval.votes": [1], "eval.num_judgments": 1, "sft.rows_per_step": 8,
    }  # fmt: skip


def test_a_policy_learns_what_is_rewarded(tmp_path):
    """One that has learned next to nothing; longer texts of its eight tokens earn more, and nothing holds it back."""
    tiny_runs.train(
        embedded(tmp_path / "run") | {
            "stages": ["sft", "rlhf"], "sft.steps": 1, "rollout.num_rollouts": 8, "rlhf.steps": 12,
            "rlhf.prompts_per_step": 4, "rlhf.kl_coef": 0.0, "rlhf.optim.lr": 1e-2, "rlhf.reward.kind": "callable",
            "rlhf.reward.function": "tests.trainer.test_rlhf:by_length", "data.embedded_policy.num_held_out": 0,
        }
    )  # fmt: skip
    rewards = [row["reward"] for row in tiny_runs.records(tmp_path / "run") if row["stage"] == "rlhf"]
    assert sum(rewards[-3:]) > 1.1 * sum(rewards[:3])


def test_a_policy_imitates_then_prefers_then_is_rewarded(tmp_path):
    """The three stages of a policy over the embedded set, from nothing."""
    tiny_runs.train(
        embedded(tmp_path / "run") | {
            "stages": ["sft", "dpo", "rlhf"], "rollout.num_rollouts": 2, "sft.steps": 2, "sft.dev_every": 2,
            "dpo.steps": 1, "dpo.pairs_per_step": 2, "dpo.dev_every": 1, "rlhf.steps": 1, "rlhf.prompts_per_step": 2,
            "rlhf.reward.kind": "checker",
        }
    )  # fmt: skip
    assert [row["stage"] for row in tiny_runs.records(tmp_path / "run")] == ["sft", "sft", "dpo", "rlhf"]
    results = json.loads((tmp_path / "run" / "report.json").read_text())["held_out_prompts"]
    assert list(results) == ["sft", "dpo", "rlhf"] and all("accuracy" in result for result in results.values())
    names = {"responses", "prompts", "pairs", "dev", "dev_prompts", "held_out_prompts"}
    assert {file.stem for file in (tmp_path / "run" / "data").iterdir()} == names


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"stages": ["grpo"]}, 'stages: grpo trains no policy; set role = "judge"'),
        ({"role": "judge"}, 'stages: rlhf trains no judge; set role = "policy"'),
        ({"rollout.temperature": 0.7}, "rollout.temperature=0.7 must be 1 with the stage rlhf"),
        ({"rollout.num_rollouts": 1}, "a group baseline needs at least 2 rollouts"),
        ({"data.prompts": ""}, "data.prompts: no file is given"),
        ({"data.checker": "", "rlhf.keep": "best"}, "rlhf.patience, rlhf.keep: go by data.checker"),
    ],
)
def test_settings_that_do_not_go_together(job, capsys, settings, problem):
    assert main(tiny_runs.arguments(job | settings)) == 1
    assert problem in capsys.readouterr().err


def test_rows_that_are_wrong(job, tmp_path, capsys):
    same = tiny_runs.write_jsonl(tmp_path / "same.jsonl", [{"prompt": "Which is good, 0?", "id": 99}])
    twice = tiny_runs.write_jsonl(tmp_path / "twice.jsonl", [{"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}])
    empty = tiny_runs.write_jsonl(tmp_path / "empty.jsonl", [{"prompt": " "}])
    pairs = tiny_runs.write_jsonl(tmp_path / "pairs.jsonl", [tiny_runs.pair(number) for number in range(3)])
    dev = tiny_runs.write_jsonl(tmp_path / "dev_pairs.jsonl", [tiny_runs.pair(2)])
    for key, file, problem in (
        ("data.held_out_prompts", same, "prompt 99 of same: is trained on"),
        ("data.prompts", twice, "twice.jsonl:2: id: '1' of source 'twice' is already used above; (source, id) "),
        ("data.prompts", empty, "empty.jsonl:1: prompt: is empty"),
    ):
        assert main(tiny_runs.arguments(job | {key: file})) == 1
        assert problem in capsys.readouterr().err
    of_dpo = {"stages": ["dpo"], "data.pairs": pairs, "data.dev": dev, "dpo.dev_every": 1}
    assert main(tiny_runs.arguments(job | of_dpo)) == 1
    assert f"{dev}: pair 2 of tiny: its prompt is trained on, in {pairs}" in capsys.readouterr().err


def test_a_checker_that_is_the_reward_is_asked_once():
    asked = []
    checker = Checker(lambda prompt, text: asked.append(text) or len(text) / 4)
    said = [SimpleNamespace(text=text, token_ids=[1, 2], finish_reason="stop") for text in ("a", "bcd")]
    nothing = Drawn({}, {}, Counter(), Counter(), 0.0, None)
    shared = SimpleNamespace(
        world=World(0, 1, torch.device("cpu"), None), wait=lambda drawn: {},
        draw=lambda engine, prompts, sampling, keep, progress: [keep(one, [said]) for one in prompts] and nothing,
    )  # fmt: skip
    for scorer in (CheckerScorer(checker), FunctionScorer("f", by_length), None):
        asked.clear()
        _, _, found = draw_answers(None, shared, [prompt(0)], None, Examiner(checker=checker, scorer=scorer))
        assert [answer.checked for answer in found[prompt(0).key]] == [0.25, 0.75]
        assert asked == ["a", "bcd"]


@pytest.mark.parametrize("is_leaving", [False, True])
def test_on_a_gpu_a_judge_gives_the_memory_of_its_keys_back(is_leaving, monkeypatch):
    released = []
    engine = SimpleNamespace(device=torch.device("cuda"), release_memory=lambda: released.append(True))
    scorer = JudgeScorer(SimpleNamespace(engine=engine, answers=lambda questions: iter([None] * len(questions))))
    monkeypatch.setattr(scorer, "_ask", lambda prompt, text: SimpleNamespace(contexts=[[len(text)]]))
    monkeypatch.setattr(scorers, "_of_judged", lambda judged: Scored(1.0))
    scorer.take("a", prompt(0), ["x"])
    with pytest.raises(scorers.Unwanted) if is_leaving else nullcontext():
        assert scorer.finish(lambda: is_leaving) == {"a": [Scored(1.0)]}
    assert released == [True]


def test_a_reward_model_scores_what_reads_the_same_once_and_says_what_it_cannot(tmp_path, monkeypatch):
    decoder = random_decoder(config(is_scalar=True, max_position_embeddings=40, vocab_size=len(tokenizer())))
    save_decoder(decoder, tmp_path)
    chats = copy.copy(tokenizer())
    chats.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chats.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(scorers, "score_all", lambda model, some: asked.extend(some) or score_all(model, some))
    scorer = ScalarScorer(str(tmp_path), torch.float32, torch.device("cpu"))
    scorer.take("x", prompt(0), ["yes", "no", "yes"])
    scorer.take("y", prompt(0), ["no", "tea " * 100])
    found = scorer.finish()
    assert len(asked) == 2 and [scored.score for scored in found["x"]][::2] == [score_all(decoder, asked[:1])[0]] * 2
    assert found["y"][0] == found["x"][1] and found["x"][0] != found["x"][1]
    assert found["y"][1].score is None and "the reward model's limit is 40" in found["y"][1].error
    assert scorer.finish() == {}
