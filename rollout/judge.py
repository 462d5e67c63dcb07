"""A judge for any Python code: scores and comparisons of responses, and a reward function for other trainers.

    judge = Judge.from_pretrained("runs/quickstart/models/grpo", num_votes=8)
    judge.score(["Name a prime above 10."], ["11"])  # [9.125]
    GRPOTrainer(model, reward_funcs=judge, ...)      # TRL

A judgment depends on the seed, on what the judge reads and on its weights alone: not on the place in a list, nor on the
rest of it, nor on the process. Equal questions get equal answers; more judgments are more votes, or another seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from kernels.philox import stream_seed
from patarm_core.judgment import AnswerKind, RubricSetting
from patarm_core.prompts import Prompt
from patarm_core.rubrics import unknown_task
from rollout.contexts import ContextBuilder, PromptConfig, load_rubrics
from rollout.engine import Engine, EngineConfig
from rollout.grammar import JudgmentGrammar
from rollout.params import Completion, SamplingParams
from rollout.questions import (
    Compared,
    Judged,
    Method,
    Question,
    Winner,
    as_float,
    compare_scores,
    count_choices,
    judgment_params,
    read_judged,
    read_prompt,
    read_response,
)

Response = str | Sequence  # a text, or the messages of a conversational completion
Tasks = str | Sequence[str]  # one for all, or one for each


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Why an item could not be put to the judge: it has no score."""

    problem: str


@dataclass(frozen=True, kw_only=True)
class Judge:
    """n judgments per question. A frozen value: `replace(judge, seed=1)` shares the engine."""

    engine: Engine
    contexts: ContextBuilder
    num_votes: int = 1  # judgments per response (pairwise: per pair)
    max_completion_tokens: int = 4096  # fewer where the model's context leaves less room
    temperature: float = 1.0
    seed: int = 0
    grammars: Mapping[AnswerKind, JudgmentGrammar] = field(default_factory=dict, repr=False)  # masks, if any

    __name__ = "patarm_judge"  # trainers log a reward function under its name

    def __post_init__(self) -> None:
        judgment_params(self.num_votes, self.max_completion_tokens, self.temperature, self.seed)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        rubrics: RubricSetting = "adaptive",
        template: str = "full",
        rubrics_file: str = "",
        max_context_tokens: int = 8192,
        well_formed: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
        engine_config: EngineConfig | None = None,
        **settings,
    ) -> Judge:
        """The judge of a Hugging Face directory, on the GPU if there is one.

        Args:
            well_formed: draw only tokens that keep a judgment well-formed (`JudgmentGrammar`).
            settings: fields of this class.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        engine = Engine.from_pretrained(path, dtype, device, engine_config)
        prompt = PromptConfig(
            rubrics=rubrics, template=template, rubrics_file=rubrics_file, max_context_tokens=max_context_tokens
        )
        contexts = ContextBuilder(engine.tokenizer, prompt, load_rubrics(rubrics_file))
        if well_formed:
            V = engine.decoder.config.vocab_size
            kinds: tuple[AnswerKind, ...] = ("score", "choice")
            settings["grammars"] = {kind: JudgmentGrammar(engine.tokenizer, V, rubrics, kind) for kind in kinds}
        return cls(engine=engine, contexts=contexts, **settings)

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], task: Tasks = "chat"
    ) -> list[float | None]:
        """The mean score of each response as a float, and None (never 0) for one without any valid score.

        Args:
            prompts: texts, or lists of messages.
            responses: texts, or lists of messages.
            task: a task that there are rubrics for; one for all, or one for each.
        """
        judged = self.judgments(prompts, responses, task)
        return [as_float(item.score) if isinstance(item, Judged) else None for item in judged]

    def judgments(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], task: Tasks = "chat"
    ) -> list[Judged | Unanswered]:
        """Every judgment of each response. What cannot be judged, such as a context too long, is Unanswered.

        Raises:
            ValueError: lists of unlike lengths, or a task without rubrics, under which nothing could be judged.
        """
        return self._answer_all(self.ask, task, prompts=prompts, responses=responses)

    def compare(
        self,
        prompts: Sequence[Prompt],
        responses_a: Sequence[Response],
        responses_b: Sequence[Response],
        task: Tasks = "chat",
        method: Method = "mean",
    ) -> list[Winner | None]:
        """Which of two responses is better: "A", "B", "tie", or None where nothing could be read."""
        compared = self.comparisons(prompts, responses_a, responses_b, task, method)
        return [item.winner if isinstance(item, Compared) else None for item in compared]

    def comparisons(
        self,
        prompts: Sequence[Prompt],
        responses_a: Sequence[Response],
        responses_b: Sequence[Response],
        task: Tasks = "chat",
        method: Method = "mean",
    ) -> list[Compared | Unanswered]:
        """Votes and judgments behind each comparison.

        Args:
            method: "mean" compares mean scores, "majority" lets the i-th judgments of both vote together, "pairwise"
                shows both to the judge, in an order that is drawn, and counts its choices.

        Raises:
            ValueError: as in `judgments`, or an unknown method.
        """
        _check_method(method)
        ask = partial(self.ask_to_compare, method=method)
        return self._answer_all(ask, task, prompts=prompts, responses_a=responses_a, responses_b=responses_b)

    def __call__(self, prompts, completions, task: Tasks = "chat", **_) -> list[float | None]:
        """As a reward function of TRL: other columns and what the trainer says of itself are passed over."""
        return self.score(prompts, completions, task)

    def ask(self, prompt: Prompt, response: Response, task: str, name: str = "this item") -> Question:
        """How one response is scored.

        Raises:
            ValueError: what cannot be judged, such as a context too long; `name` says which item.
        """
        context = self.contexts.pointwise(read_prompt(prompt), read_response(response), task, name)
        rubrics = self.contexts.config.rubrics
        return Question(
            [context], [self._params(context, name, "score")], lambda c: read_judged(c[0], "score", rubrics)
        )

    def ask_to_compare(
        self,
        prompt: Prompt,
        response_a: Response,
        response_b: Response,
        task: str,
        method: Method = "mean",
        name: str = "this item",
    ) -> Question:
        """How two responses are compared; errors as in `ask`."""
        _check_method(method)
        prompt, a, b = read_prompt(prompt), read_response(response_a), read_response(response_b)
        if method != "pairwise":
            sides = [self.ask(prompt, response, task, name) for response in (a, b)]
            return Question(
                [side.contexts[0] for side in sides],
                [side.params[0] for side in sides],
                lambda c: compare_scores(*(side.read(c[i : i + 1]) for i, side in enumerate(sides)), method),
            )
        is_swapped = bool(stream_seed("order", self.seed, *self.contexts.pairwise(prompt, a, b, task, name)) & 1)
        context = self.contexts.pairwise(prompt, *((b, a) if is_swapped else (a, b)), task, name)
        rubrics = self.contexts.config.rubrics
        return Question(
            [context],
            [self._params(context, name, "choice")],
            lambda c: count_choices(read_judged(c[0], "choice", rubrics), is_swapped),
        )

    def answers(self, questions: Iterable[Question]) -> Iterator[Judged | Compared]:
        """The answers in the order of the questions, which are taken one by one as the engine has room for more."""
        open_questions: deque[Question] = deque()

        def requests() -> Iterator[tuple[list[int], SamplingParams]]:
            for question in questions:
                open_questions.append(question)
                yield from zip(question.contexts, question.params, strict=True)

        finished: dict[int, list[Completion]] = {}
        first = 0  # number of the first request of the first open question
        for number, completions in self.engine.stream(requests()):
            finished[number] = completions
            while open_questions:
                numbers = range(first, first + len(open_questions[0].contexts))
                if not finished.keys() >= set(numbers):
                    break
                yield open_questions.popleft().read([finished.pop(i) for i in numbers])
                first = numbers.stop

    def _answer_all(self, ask: Callable[..., Question], task: Tasks, **columns: Sequence) -> list:
        columns["tasks"] = [task] * len(columns["prompts"]) if isinstance(task, str) else task
        lengths = {name: len(column) for name, column in columns.items()}
        if len({*lengths.values()}) > 1 or any(isinstance(column, str) for column in columns.values()):
            told = ", ".join(f"{name} {count}" for name, count in lengths.items())
            raise ValueError(f"lists of equal lengths are expected, one entry for each item; found {told}")
        book, template = self.contexts.book, self.contexts.config.template
        for one in {*columns["tasks"]} - {*book.tasks} if template != "general" else ():
            raise ValueError(unknown_task(str(one), book.tasks))
        questions: list[Question | Unanswered] = []
        for number, item in enumerate(zip(*columns.values(), strict=True)):
            try:
                questions.append(ask(*item, name=f"item {number}"))
            except ValueError as error:
                questions.append(Unanswered(str(error)))
        answers = self.answers(question for question in questions if isinstance(question, Question))
        return [next(answers) if isinstance(question, Question) else question for question in questions]

    def _params(self, context: list[int], name: str, kind: AnswerKind) -> SamplingParams:
        limit = self.engine.decoder.config.max_position_embeddings
        if len(context) >= limit:
            raise ValueError(
                f"{name}: the context has {len(context)} tokens; the model's limit, with a judgment, is {limit}"
            )
        max_tokens, grammar = min(self.max_completion_tokens, limit - len(context)), self.grammars.get(kind)
        if grammar is not None and (least := grammar.shortest(grammar.start)) > max_tokens:
            raise ValueError(f"{name}: there is room for {max_tokens} tokens; a well-formed judgment takes {least}")
        params = judgment_params(self.num_votes, max_tokens, self.temperature, "ask", self.seed, *context)
        return replace(params, grammar=grammar)


def _check_method(method: str) -> None:
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}; methods are {', '.join(get_args(Method))}")
