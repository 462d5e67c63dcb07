"""Whose scores are a policy's rewards: a judge, a reward model, a checker or any function, in one form.

A scorer takes the answers of a prompt as they are finished and gives all scores at the end. A score depends on the
prompt and the answer alone (and on the run's seed), never on what it was scored beside, on the step or on the rank; so
equal answers are scored once, and a run that resumes gets the scores that it would have got. (A user's function and an
endpoint have to keep this themselves.) Weights are loaded once, whole on every rank, and never change.

An endpoint judges while rollouts still go on. A model in this process begins when its rank has no prompt left, whether
or not other ranks have: on one device two engines would take turns anyway, and need the memory of both; so the policy's
keys and values are given back before the judge's are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Protocol, TypeVar

import torch

from patarm_core.par import Score
from patarm_core.policy_rows import PolicyPrompt, plain
from rollout.chat import whole_chat
from rollout.engine import EngineConfig
from rollout.judge import Judge
from rollout.questions import Judged, Question
from rollout.scalar import load_scalar, score_all
from rollout.vocabulary import load_tokenizer
from trainer.checkers import Checker, load_function
from trainer.rlhf_config import RewardConfig

Asked = TypeVar("Asked")


KV_GIB = 4.0  # of a judge that is told no other


class ScorerFailure(Exception):
    """Nothing can be scored: told in one line, and the run halts."""


class Unwanted(Exception):
    """The run leaves, and nobody waits for the scores any more."""


def never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Scored:
    """What one answer got. `error` says why there is no score."""

    score: Score
    error: str | None = None
    text: str | None = None  # the first judgment, of a judge that writes


class Scorer(Protocol):
    def check(self, prompts: Sequence[PolicyPrompt]) -> None:
        """ValueError, one line, if a prompt cannot be judged at all, such as one of a task without rubrics."""

    def take(self, key: Hashable, prompt: PolicyPrompt, texts: Sequence[str]) -> None:
        """Takes the answers to one prompt, and may begin with them. `key` is new since the last `finish`."""

    def finish(self, is_leaving: Callable[[], bool] = never) -> dict[Hashable, list[Scored]]:
        """The scores of all answers that were taken, by key and in order; gives the memory of a GPU back.

        Args:
            is_leaving: whether the run is about to end; a scorer that takes long looks at it now and then.

        Raises:
            ScorerFailure: there are none to be had.
            Unwanted: the run is leaving.
        """


@dataclass
class _Taking:
    """Remembers what was taken, for scorers that score it all at the end."""

    taken: dict[Hashable, tuple[PolicyPrompt, Sequence[str]]] = field(default_factory=dict, init=False)

    def check(self, prompts: Sequence[PolicyPrompt]) -> None:
        return

    def take(self, key: Hashable, prompt: PolicyPrompt, texts: Sequence[str]) -> None:
        self.taken[key] = prompt, texts

    def _emptied(self) -> dict[Hashable, tuple[PolicyPrompt, Sequence[str]]]:
        taken, self.taken = self.taken, {}
        return taken


@dataclass
class CheckerScorer(_Taking):
    """The true reward, where a program knows it."""

    checker: Checker

    def finish(self, is_leaving: Callable[[], bool] = never) -> dict[Hashable, list[Scored]]:
        return {
            key: [Scored(self.checker(prompt, text)) for text in texts]
            for key, (prompt, texts) in self._emptied().items()
        }


@dataclass
class FunctionScorer(_Taking):
    """A function of the user's, in TRL's form: lists of prompts and completions in, a list of scores out."""

    name: str
    function: Callable

    def finish(self, is_leaving: Callable[[], bool] = never) -> dict[Hashable, list[Scored]]:
        taken = self._emptied()
        asked = [(prompt, text) for prompt, texts in taken.values() for text in texts]
        try:
            found = list(
                self.function(
                    [plain(prompt.prompt) for prompt, _ in asked], [text for _, text in asked],
                    task=[prompt.task for prompt, _ in asked], checks=[prompt.checks for prompt, _ in asked],
                )
            ) if asked else []  # fmt: skip
        except Exception as error:  # whatever a user's function raises
            raise ScorerFailure(f"rlhf.reward.function {self.name}: {type(error).__name__}: {error}") from error
        if len(found) != len(asked):
            raise ScorerFailure(
                f"rlhf.reward.function {self.name}: gave {len(found)} scores for {len(asked)} completions; "
                "expected one each, None where there is none"
            )
        scored = iter(map(self._scored, found))
        return {key: [next(scored) for _ in texts] for key, (_, texts) in taken.items()}

    def _scored(self, value: object) -> Scored:
        if value is None:
            return Scored(None, "the function gave None")
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            return Scored(float(value))
        return Scored(None, f"the function gave {value!r}, not a finite number")


class ScalarScorer(_Taking):
    """The value that a reward model's head gives the whole chat."""

    def __init__(self, path: str, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.decoder = load_scalar(path, dtype, device)
        self.tokenizer = load_tokenizer(path)

    def finish(self, is_leaving: Callable[[], bool] = never) -> dict[Hashable, list[Scored]]:
        return _scored_once(self._emptied(), self._chat, self._score)

    def _chat(self, prompt: PolicyPrompt, text: str) -> list[int]:
        chat = whole_chat(self.tokenizer, prompt.prompt, text, f"prompt {prompt.id}")
        if len(chat) > (limit := self.decoder.config.max_position_embeddings):
            raise ValueError(f"the chat has {len(chat)} tokens; the reward model's limit is {limit}")
        return chat

    def _score(self, chats: Sequence[list[int]]) -> list[Scored]:
        return [
            Scored(score) if math.isfinite(score) else Scored(None, "the reward model gave no finite number")
            for score in score_all(self.decoder, chats)
        ]


class JudgeScorer(_Taking):
    """The mean score of m judgments (METHOD: sec. 6). Equal answers to a prompt share theirs."""

    def __init__(self, judge: Judge, task: str = "") -> None:
        super().__init__()
        self.judge, self.task = judge, task

    def check(self, prompts: Sequence[PolicyPrompt]) -> None:
        if self.judge.contexts.config.template != "general":  # whose prompt has no rubrics
            refuse_unknown_tasks(prompts, self.task, self.judge.contexts.book.tasks)

    def finish(self, is_leaving: Callable[[], bool] = never) -> dict[Hashable, list[Scored]]:
        score = partial(self._judge, is_leaving=is_leaving)
        try:
            return _scored_once(self._emptied(), self._ask, score, lambda question: question.contexts[0])
        finally:
            if self.judge.engine.device.type == "cuda":
                self.judge.engine.release_memory()  # keys and values would be in the way of an update

    def _ask(self, prompt: PolicyPrompt, text: str) -> Question:
        return self.judge.ask(prompt.prompt, text, self.task or prompt.task, f"prompt {prompt.id}")

    def _judge(self, questions: Sequence[Question], is_leaving: Callable[[], bool]) -> list[Scored]:
        found = []
        for judged in self.judge.answers(questions):
            if is_leaving():
                raise Unwanted
            found.append(_of_judged(judged))
        return found


def refuse_unknown_tasks(prompts: Sequence[PolicyPrompt], task: str, tasks: Sequence[str]) -> None:
    """ValueError, one line, if a prompt's task, or `task` for all, is not one of those that a judge has rubrics for."""
    for prompt in prompts:
        if (named := task or prompt.task) not in tasks:
            raise ValueError(
                f"prompt {prompt.id} of {prompt.source}: task: there are no rubrics for {named!r}; there are for "
                f"{', '.join(tasks)} (rlhf.reward.prompt.rubrics_file), and rlhf.reward.task names one for all"
            )


def _scored_once(
    taken: Mapping[Hashable, tuple[PolicyPrompt, Sequence[str]]],
    ask: Callable[[PolicyPrompt, str], Asked],
    score: Callable[[Sequence[Asked]], list[Scored]],
    tokens: Callable[[Asked], Sequence[int]] = lambda asked: asked,
) -> dict[Hashable, list[Scored]]:
    """Scores of all answers; those that read the same are asked about once.

    Args:
        ask: what is asked of an answer, or a ValueError that says why nothing can be.
        tokens: that are read.
    """
    distinct: dict[tuple[int, ...], Asked] = {}
    placed: dict[Hashable, list[tuple[int, ...] | Scored]] = {}
    for key, (prompt, texts) in taken.items():
        placed[key] = []
        for text in texts:
            try:
                asked = ask(prompt, text)
            except ValueError as error:
                placed[key].append(Scored(None, str(error)))
            else:
                placed[key].append(read := tuple(tokens(asked)))
                distinct.setdefault(read, asked)
    scored = dict(zip(distinct, score(list(distinct.values())), strict=True))
    return {
        key: [item if isinstance(item, Scored) else scored[item] for item in items] for key, items in placed.items()
    }


def _of_judged(judged: Judged) -> Scored:
    if judged.score is None:
        return Scored(None, f"none of {len(judged.texts)} judgments has a score", judged.texts[0])
    return Scored(judged.score, None, judged.texts[0])


def open_scorer(config: RewardConfig, checker: Checker | None, seed: int, device: torch.device) -> Scorer:
    """The scorer that a recipe names, its weights loaded.

    Raises:
        ValueError: one line; a key that its kind needs is missing, or what it names cannot be opened.
    """
    needs = {"judge": "model", "scalar": "model", "callable": "function", "endpoint": "url"}
    if (key := needs.get(config.kind)) and not getattr(config, key):
        raise ValueError(f'rlhf.reward.{key}: missing; rlhf.reward.kind = "{config.kind}" needs it')
    if config.kind == "checker":
        if checker is None:
            raise ValueError('data.checker: missing; rlhf.reward.kind = "checker" is that checker\'s score')
        return CheckerScorer(checker)
    if config.kind == "callable":
        right = 'rlhf.reward.function is "module:function"'
        return FunctionScorer(config.function, load_function(config.function, right))
    if config.kind == "endpoint":
        from trainer.endpoint_scorer import open_scorer_at_endpoint

        return open_scorer_at_endpoint(config, seed)
    dtype = getattr(torch, config.dtype)
    if config.kind == "scalar":
        return ScalarScorer(config.model, dtype, device)
    judge = Judge.from_pretrained(
        config.model, rubrics=config.prompt.rubrics, template=config.prompt.template,
        rubrics_file=config.prompt.rubrics_file, max_context_tokens=config.prompt.max_context_tokens,
        well_formed=config.well_formed, dtype=dtype, device=str(device),
        # Told, and not what is free now: the policy is not there yet, and its gradients and moments come last of all.
        engine_config=EngineConfig(max_rows=config.max_rows, kv_gib=config.kv_gib or KV_GIB),
        num_votes=config.votes, max_completion_tokens=config.max_completion_tokens, temperature=config.temperature,
        seed=seed,
    )  # fmt: skip
    return JudgeScorer(judge, config.task)
