"""A policy's rewards from a judge behind an OpenAI-compatible API: it judges while rollouts still go on."""

from __future__ import annotations

import argparse
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from eval.judges.judge import Judge, Question, mean_of
from eval.judges.spec import add_judge_options, open_judge
from patarm_core.policy_rows import PolicyPrompt
from trainer.rlhf_config import RewardConfig
from trainer.scorers import Scored, ScorerFailure


class EndpointScorer:
    """Any pointwise judge of `eval.judges`, one thread for each prompt whose answers are being judged."""

    def __init__(self, judge: Judge, votes: int, task: str, num_threads: int) -> None:
        self.judge, self.votes, self.task = judge, votes, task
        self._threads = ThreadPoolExecutor(num_threads)
        self._open: dict[Hashable, Future[list[Scored]]] = {}

    def check(self, prompts: Sequence[PolicyPrompt]) -> None:
        """A task that the judge has no rubrics for is an error of the judgments."""

    def take(self, key: Hashable, prompt: PolicyPrompt, texts: Sequence[str]) -> None:
        self._open[key] = self._threads.submit(self._scored, prompt, texts)

    def _scored(self, prompt: PolicyPrompt, texts: Sequence[str]) -> list[Scored]:
        distinct = list(dict.fromkeys(texts))
        task = self.task or prompt.task
        questions = [
            Question(id=f"{prompt.id}#{number}", task=task, prompt=prompt.prompt, responses=(text,))
            for number, text in enumerate(distinct)
        ]
        found: dict[str, Scored] = {}
        for number, drawn in self.judge.judge(questions, self.votes):
            mean = mean_of(drawn, self.votes)
            error = None if mean is not None else drawn[0].error
            found[distinct[number]] = Scored(mean, error, drawn[0].text)
        return [found[text] for text in texts]

    def finish(self) -> dict[Hashable, list[Scored]]:
        futures, self._open = self._open, {}
        try:
            return {key: future.result() for key, future in futures.items()}
        except (ValueError, OSError) as error:
            raise ScorerFailure(f"rlhf.reward: {self.judge.name}: {error}") from error


def open_endpoint(config: RewardConfig, seed: int) -> EndpointScorer:
    """ValueError, one line: a key is missing or wrong."""
    if not config.model:
        raise ValueError('rlhf.reward.model: missing; rlhf.reward.kind = "endpoint" needs its name there')
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_judge_options(parser)
    options = ["--endpoint", config.url, "--endpoint-model", config.model, "--judge", config.judge]
    options += ["--mode", "pointwise", "--rubrics", config.prompt.rubrics, "--template", config.prompt.template]
    options += ["--rubrics-file", config.prompt.rubrics_file, "--temperature", str(config.temperature)]
    options += ["--max-completion-tokens", str(config.max_completion_tokens), "--seed", str(seed)]
    options += ["--concurrency", str(config.concurrency), "--api-key-env", config.api_key_env]
    try:
        judge = open_judge(parser.parse_args(options))
    except (argparse.ArgumentError, ValueError) as error:
        raise ValueError(f"rlhf.reward: {error}") from None
    return EndpointScorer(judge, config.votes, config.task, max(1, config.concurrency // 4))
