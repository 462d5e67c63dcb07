"""A policy that answers prompts: its rollouts, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from statistics import StatisticsError, correlation, fmean
from time import perf_counter

from kernels.philox import stream_seed
from patarm_core.policy_rows import PolicyPrompt
from rollout.chat import answered_chat
from rollout.contexts import ContextBuilder
from rollout.decoder import DecoderConfig
from rollout.engine import Engine
from rollout.params import SamplingParams
from trainer.checkers import Checker, CheckerFailure
from trainer.config import Recipe
from trainer.distributed import World
from trainer.learner import Learner
from trainer.mistakes import Halt
from trainer.replica import Replica
from trainer.scorers import CheckerScorer, Scored, Scorer, ScorerFailure, Unwanted
from trainer.shared_rollout import Drawn, SharedRollout, Sides


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSampling:
    """How prompts are answered (as PairSampling is of pairs). Noise is named by (stream, source, id) alone."""

    n: int
    max_tokens: int
    temperature: float = 1.0
    stream: tuple[int | str, ...]

    @property
    def num_judgments(self) -> int:
        """Completions of one prompt."""
        return self.n

    def contexts(self, builder: ContextBuilder, prompt: PolicyPrompt) -> tuple[list[int], ...]:
        return (prompt_tokens(builder, prompt),)

    def requests(self, prompt: PolicyPrompt, contexts: Sequence[list[int]]) -> list[tuple[list[int], SamplingParams]]:
        seed = stream_seed(*self.stream, *prompt.key)
        params = SamplingParams(n=self.n, max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)
        return [(context, params) for context in contexts]


def prompt_tokens(builder: ContextBuilder, prompt: PolicyPrompt) -> list[int]:
    """The chat up to where the policy speaks; ValueError if the chat template refuses it."""
    context, _ = answered_chat(builder.tokenizer, prompt.prompt, "", f"prompt {prompt.id} of {prompt.source}")
    return context


def answer_text(text: str, after: str) -> str:
    """What is judged of a completion: what follows the last `after`; all of it where there is none."""
    return text.rpartition(after)[2].lstrip() if after else text


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion and what is known of it."""

    text: str  # what is judged
    num_tokens: int
    is_cut: bool
    checked: float | None  # 0 to 1; None without a checker
    scored: Scored | None  # None where nobody scores


Answers = dict[tuple[str, str], list[Answer]]  # by PolicyPrompt.key


@dataclass(frozen=True, kw_only=True, slots=True)
class Examiner:
    """What a completion is read and judged by."""

    answer_after: str = ""
    checker: Checker | None = None
    scorer: Scorer | None = None

    @property
    def rewards_what_is_checked(self) -> bool:
        """The score is the checker's: it is asked once."""
        return isinstance(self.scorer, CheckerScorer)


def draw_answers(
    engine: Engine,
    shared: SharedRollout,
    prompts: Sequence[PolicyPrompt],
    sampling: PromptSampling,
    examiner: Examiner,
    phase: Callable[[str], AbstractContextManager] = lambda _name: nullcontext(),
    progress: str = "",
) -> tuple[Drawn[Sides], dict[str, float | list[int]], Answers]:
    """Answers prompts over all ranks, and scores them: each rank those that it drew, as soon as it has no other left.

    Returns:
        What this rank drew; how work was spread, as metrics; and the answers to all prompts, on every rank.

    Raises:
        Halt: nothing can be scored, or a checker fails.
    """
    world, scorer, own = shared.world, examiner.scorer, {}
    failures: list[str] = []

    def is_leaving() -> bool:
        return world.stop.is_requested and world.stop.on_pause is not None

    def checked(prompt: PolicyPrompt, text: str) -> float | None:
        if examiner.checker is None or examiner.rewards_what_is_checked or failures:
            return None
        try:
            return examiner.checker(prompt, text)
        except CheckerFailure as error:  # ranks halt together, after the last prompt
            failures.append(str(error))
            return None

    def keep(prompt: PolicyPrompt, sides: Sides) -> Sides:
        (completions,) = sides
        texts = [answer_text(completion.text, examiner.answer_after) for completion in completions]
        own[prompt.key] = [
            Answer(
                text, len(completion.token_ids), completion.finish_reason == "length",
                checked(prompt, text), None,
            )
            for text, completion in zip(texts, completions, strict=True)
        ]  # fmt: skip
        if scorer is not None:
            scorer.take(prompt.key, prompt, texts)
        return sides

    with phase("rollout_s"):
        drawn = shared.draw(engine, prompts, sampling, keep, progress)
    with phase("judge_s"):
        start = perf_counter()
        if scorer is not None and not is_leaving() and not failures:
            try:
                for key, scored in scorer.finish(is_leaving).items():
                    own[key] = [replace(a, scored=s) for a, s in zip(own[key], scored, strict=True)]
                    if examiner.rewards_what_is_checked:
                        own[key] = [replace(answer, checked=answer.scored.score) for answer in own[key]]
            except (ScorerFailure, CheckerFailure) as error:
                failures.append(str(error))
            except Unwanted:  # `wait` leaves
                pass
        drawn = replace(drawn, seconds=drawn.seconds + perf_counter() - start)
    with phase("wait_s"):
        spread = shared.wait(drawn)  # for the rank that takes longest
    told = world.gather((failures, own))
    if everywhere := [failure for of_rank, _ in told for failure in of_rank]:
        raise Halt(everywhere[0])
    return drawn, spread, {key: answers for _, of_rank in told for key, answers in of_rank.items()}


class PolicyReplica(Replica):
    """The whole policy on every rank: rollouts during training, and answers to be measured."""

    def __init__(
        self, recipe: Recipe, model_config: DecoderConfig, contexts: ContextBuilder, world: World, examiner: Examiner
    ) -> None:
        super().__init__(recipe, model_config, contexts, world)
        self.examiner = examiner

    def answers(
        self, learner: Learner, prompts: Sequence[PolicyPrompt], n: int, progress: str = ""
    ) -> list[list[Answer]]:
        """n answers to each prompt, drawn by all ranks; every rank gets all of them, in order."""
        sampling = PromptSampling(
            n=n, max_tokens=self._rollout.max_completion_tokens, temperature=self._eval.temperature,
            stream=("answer", self._seed),
        )  # fmt: skip
        engine = self.refreshed(learner)
        _, _, found = draw_answers(engine, self.shared, prompts, sampling, self.examiner, progress=progress)
        return [found[prompt.key] for prompt in prompts]

    def measure(self, learner: Learner, dev: Sequence[PolicyPrompt]) -> dict[str, float]:
        """What checker and reward say of answers to the dev prompts: `dev_accuracy` is the checker's mean."""
        answers = self.answers(learner, dev, self._eval.num_dev_judgments)
        return {f"dev_{name}": value for name, value in answer_metrics(answers).items()}


def answer_metrics(answers: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """Means over all answers; what nothing is known of is left out.

    accuracy is the checker's mean (0 to 1), all_right its share of 1, score the reward's mean over what is scored,
    score_correlation Pearson's r of the two, which is left out where one of them does not vary.
    """
    flat = [answer for group in answers for answer in group]
    metrics = {
        "completion_tokens": fmean(answer.num_tokens for answer in flat),
        "cut_short_rate": fmean(answer.is_cut for answer in flat),
    }
    checked = [answer.checked for answer in flat if answer.checked is not None]
    if checked:
        metrics |= {"accuracy": fmean(checked), "all_right": fmean(value == 1 for value in checked)}
    judged = [answer for answer in flat if answer.scored is not None]
    scored = [(float(a.scored.score), a.checked) for a in judged if a.scored.score is not None]
    if judged:
        metrics["unscored_rate"] = 1 - len(scored) / len(judged)
    if scored:
        metrics["score"] = fmean(score for score, _ in scored)
    both = [pair for pair in scored if pair[1] is not None]
    with suppress(StatisticsError, TypeError):  # fewer than two, or all the same
        metrics["score_correlation"] = correlation(*zip(*both, strict=True))
    return metrics
