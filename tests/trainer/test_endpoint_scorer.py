"""Scores that come from elsewhere, while rollouts still go on."""

import threading
import time
from concurrent.futures import Future

import pytest

from eval.judges.judge import Drawn
from patarm_core.policy_rows import PolicyPrompt
from patarm_core.prompts import Message
from rollout.contexts import PromptConfig
from trainer.endpoint_scorer import EndpointScorer, open_scorer_at_endpoint
from trainer.rlhf_config import RewardConfig
from trainer.scorers import FunctionScorer, Scored, ScorerFailure, Unwanted


def prompt(number: int, **changes) -> PolicyPrompt:
    return PolicyPrompt(**{"prompt": f"Say something, {number}.", "source": "here", "id": str(number)} | changes)


class Lengths:
    """Scores by length; counts how many ask at a time, and waits for `go` where there is one."""

    name, mode, fingerprint = "lengths", "pointwise", {}

    def __init__(self, go: threading.Event | None = None) -> None:
        self.go, self.lock, self.num_open, self.most_open, self.asked = go, threading.Lock(), 0, 0, []

    def judge(self, questions, votes):
        with self.lock:
            self.num_open += 1
            self.most_open = max(self.most_open, self.num_open)
            self.asked += [(question.prompt, question.responses[0]) for question in questions]
        if self.go is not None:
            self.go.wait(10)
        time.sleep(0.002)
        with self.lock:
            self.num_open -= 1
        for number, question in enumerate(questions):
            score = float(len(question.responses[0])) or None
            yield number, [Drawn(score=score, error=None if score else "empty", text="said")] * votes


def test_answers_are_scored_in_the_background_and_equal_ones_once():
    judge = Lengths()
    scorer = EndpointScorer(judge, votes=2, task="", num_threads=3)
    for number in range(5):
        scorer.take(number, prompt(number), ["x" * number, "x", "x" * number])
    found = scorer.finish()
    assert [[s.score for s in found[n]] for n in range(1, 5)] == [[n, 1, n] for n in range(1, 5)]
    assert found[0][0] == Scored(None, "empty", "said")
    assert len(judge.asked) == len(set(judge.asked)) == 9  # of prompt 1 all answers are equal
    assert judge.most_open <= 3 and scorer.finish() == {}


def test_a_run_that_leaves_waits_for_no_reply():
    scorer = EndpointScorer(Lengths(go := threading.Event()), votes=1, task="", num_threads=1)
    scorer.take(0, prompt(0), ["x", "xx"])
    with pytest.raises(Unwanted):
        scorer.finish(lambda: True)
    go.set()


@pytest.mark.parametrize("error", [ValueError("a wrong key"), TimeoutError("a wrong key")])
def test_what_no_request_escapes_is_told(error):
    class Refuses(Lengths):
        def judge(self, questions, votes):
            raise error

    scorer = EndpointScorer(Refuses(), votes=1, task="", num_threads=1)
    scorer.take(0, prompt(0), ["x"])
    with pytest.raises(ScorerFailure, match="lengths: a wrong key"):
        scorer.finish()


def test_a_reply_that_comes_as_the_wait_for_it_ends_is_taken():
    class Late(Future):
        def result(self, timeout=None):
            if not self.done():
                self.set_result(Scored(7.0))
                raise TimeoutError
            return super().result(timeout)

    scorer = EndpointScorer(Lengths(), votes=1, task="", num_threads=0)
    scorer._open["a"] = [Late()]
    assert scorer.finish() == {"a": [Scored(7.0)]}


@pytest.mark.parametrize(("votes", "concurrency", "at_once", "threads"), [(1, 16, 1, 16), (4, 16, 4, 4), (8, 3, 3, 1)])
def test_no_more_requests_are_open_than_the_recipe_says(monkeypatch, votes, concurrency, at_once, threads):
    started = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
    scorer = open_scorer_at_endpoint(
        RewardConfig(kind="endpoint", url="http://127.0.0.1:1/v1", model="m", votes=votes, concurrency=concurrency), 3
    )
    assert (scorer.judge.concurrency, len(started)) == (at_once, threads) and at_once * threads <= concurrency
    assert scorer.judge.seed == 3 and scorer.judge.sampling.max_tokens == 4096


ENDPOINT = {"kind": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": ""}, "rlhf.reward.model: missing"),
        ({"judge": "scalar"}, "rlhf.reward.judge: 'scalar' is no judge that writes; expected one of patarm, general"),
        ({"judge": "rrm"}, "rlhf.reward.judge: rrm: has no pointwise judgments"),
        ({"api_key_env": "NOT_SET_HERE"}, "rlhf.reward.api_key_env: NOT_SET_HERE: expected a variable that holds"),
        ({"url": "ftp://x"}, "rlhf.reward.url: "),
        ({"prompt": PromptConfig(rubrics_file="nowhere.toml")}, "nowhere.toml: no such file"),
    ],
)
def test_an_endpoint_that_cannot_be_asked_is_told_by_the_recipes_keys(changes, problem):
    with pytest.raises(ValueError, match=problem):
        open_scorer_at_endpoint(RewardConfig(**ENDPOINT | changes), 0)


def test_a_task_without_rubrics_is_told_before_anything_is_asked():
    scorer = open_scorer_at_endpoint(RewardConfig(**ENDPOINT), 0)
    scorer.check([prompt(0)])
    with pytest.raises(ValueError, match="prompt 1 of here: task: there are no rubrics for 'cooking'"):
        scorer.check([prompt(0), prompt(1, task="cooking")])
    open_scorer_at_endpoint(RewardConfig(**ENDPOINT, judge="general"), 0).check([prompt(1, task="cooking")])
    open_scorer_at_endpoint(RewardConfig(**ENDPOINT, task="math"), 0).check([prompt(1, task="cooking")])


def test_a_function_gets_messages_as_they_stand_in_a_row():
    given = []
    scorer = FunctionScorer("f", lambda prompts, completions, **_: given.extend(prompts) or [1.0])
    scorer.take("a", prompt(0, prompt=(Message("system", "Be brief."), Message("user", "Why?"))), ["So."])
    scorer.finish()
    assert given == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]]
