"""A policy's rewards from a judge behind an OpenAI-compatible API: it judges while rollouts still go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue

from eval.judges.judge import Judge, Question, mean_of
from eval.judges.spec import judge_form, open_endpoint, read_api_key
from patarm_core.policy_rows import PolicyPrompt
from trainer.rlhf_config import RewardConfig
from trainer.scorers import Scored, ScorerFailure, Unwanted, never, refuse_unknown_tasks

_LOOK_S = 0.5  # how often a wait looks whether the run leaves


class EndpointScorer:
    """Any pointwise judge of `eval.judges`, in threads that take one answer at a time."""

    def __init__(self, judge: Judge, votes: int, task: str, num_threads: int, tasks: Sequence[str] = ()) -> None:
        """
        Args:
            task: whose rubrics all prompts are judged by; empty: each prompt's own.
            tasks: that the judge has rubrics for; none: it takes any.
        """
        self.judge, self.votes, self.task, self.tasks = judge, votes, task, tasks
        self._work: SimpleQueue[tuple[Future[Scored], Question]] = SimpleQueue()
        self._open: dict[Hashable, list[Future[Scored]]] = {}
        for _ in range(num_threads):
            # Daemons: a run that halts or is asked to leave does not wait for replies that nobody will read.
            threading.Thread(target=self._serve, daemon=True).start()

    def check(self, prompts: Sequence[PolicyPrompt]) -> None:
        if self.tasks:
            refuse_unknown_tasks(prompts, self.task, self.tasks)

    def take(self, key: Hashable, prompt: PolicyPrompt, texts: Sequence[str]) -> None:
        futures: dict[str, Future[Scored]] = {text: Future() for text in texts}  # equal answers share theirs
        self._open[key] = [futures[text] for text in texts]
        for number, (text, future) in enumerate(futures.items()):
            name, task = f"{prompt.id}#{number}", self.task or prompt.task
            self._work.put((future, Question(id=name, task=task, prompt=prompt.prompt, responses=(text,))))

    def _serve(self) -> None:
        while True:
            future, question = self._work.get()
            try:
                future.set_result(self._scored(question))
            except Exception as error:  # told by `finish`
                future.set_exception(error)

    def _scored(self, question: Question) -> Scored:
        ((_, drawn),) = self.judge.judge([question], self.votes)
        mean = mean_of(drawn, self.votes)
        return Scored(mean, None if mean is not None else drawn[0].error, drawn[0].text)

    def finish(self, is_leaving: Callable[[], bool] = never) -> dict[Hashable, list[Scored]]:
        opened, self._open = self._open, {}
        try:
            return {key: [_waited_for(future, is_leaving) for future in futures] for key, futures in opened.items()}
        except (ValueError, OSError) as error:
            raise ScorerFailure(f"rlhf.reward: {self.judge.name}: {error}") from error


def _waited_for(future: Future[Scored], is_leaving: Callable[[], bool]) -> Scored:
    while True:
        try:
            return future.result(timeout=_LOOK_S)
        except TimeoutError:
            if future.done():  # meanwhile, or the timeout is the judge's own
                return future.result()
            if is_leaving():
                raise Unwanted from None


def open_scorer_at_endpoint(config: RewardConfig, seed: int) -> EndpointScorer:
    """ValueError, one line: a key is missing or wrong."""
    if not config.model:
        raise ValueError('rlhf.reward.model: missing; rlhf.reward.kind = "endpoint" needs its name there')
    try:
        form = judge_form(config.judge, config.prompt.rubrics, config.prompt.template, config.prompt.rubrics_file)
        form.check("pointwise")
    except ValueError as error:
        raise ValueError(f"rlhf.reward.judge: {error}") from None
    try:
        api_key = read_api_key(config.api_key_env)
    except ValueError as error:
        raise ValueError(f"rlhf.reward.api_key_env: {error}") from None
    # The votes of an answer are open side by side, and as many answers as `concurrency` has room for.
    at_once = min(config.votes, config.concurrency)
    sampling = replace(form.sampling, temperature=config.temperature, max_tokens=config.max_completion_tokens)
    try:
        judge = open_endpoint(
            form, "pointwise", sampling, url=config.url, model=config.model, api_key=api_key, seed=seed,
            concurrency=at_once, tell=lambda _line: None,  # of every answer would be too much
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"rlhf.reward.url: {error}") from None
    return EndpointScorer(judge, config.votes, config.task, config.concurrency // at_once, form.tasks)
