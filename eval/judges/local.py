"""A generative judge on our engine: any Form, any model that the engine runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from eval.judges.form import Form, Order, Sampling, check_order
from eval.judges.judge import Drawn, Mode, Question
from kernels.philox import stream_seed
from rollout.chat import asked_chat
from rollout.engine import Engine
from rollout.grammar import JudgmentGrammar
from rollout.params import Completion, SamplingParams


@dataclass(frozen=True, kw_only=True)
class EngineJudge:
    """Judgments depend on the seed, on what is read and on the weights alone; pointwise ones of PaTaRM's form are those
    of `rollout.judge.Judge`."""

    engine: Engine
    form: Form
    mode: Mode
    sampling: Sampling
    model: str  # names the weights in the fingerprint
    name: str
    seed: int = 0
    order: Order = "drawn"
    max_context_tokens: int = 8192
    grammar: JudgmentGrammar | None = None

    def __post_init__(self) -> None:
        self.form.check(self.mode)
        check_order(self.order)
        self._params([], 1)

    @property
    def fingerprint(self) -> dict[str, object]:
        return {
            "model": self.model, "form": self.form.fingerprint(self.mode), "mode": self.mode,
            "sampling": asdict(self.sampling), "seed": self.seed, "order": self.order,
            "max_context_tokens": self.max_context_tokens, "well_formed": self.grammar is not None,
        }  # fmt: skip

    def judge(self, questions: Sequence[Question], votes: int) -> Iterator[tuple[int, list[Drawn]]]:
        self.form.check(self.mode, questions)
        run = _Run(self, questions, votes)
        for number, completions in self.engine.stream(run.requests()):
            yield from run.finished(number, completions)
        yield from run.refused()

    def _context(self, question: Question, is_swapped: bool) -> list[int]:
        turns = self.form.turns(self.mode, question, is_swapped)
        context = asked_chat(self.engine.tokenizer, turns, "the question", self.form.opening)
        if len(context) > self.max_context_tokens:
            raise ValueError(
                f"the context has {len(context)} tokens; --max-context-tokens is {self.max_context_tokens}"
            )
        return context

    def _params(self, context: list[int], n: int) -> SamplingParams:
        limit = self.engine.decoder.config.max_position_embeddings
        if len(context) >= limit:
            raise ValueError(f"the context has {len(context)} tokens; the model's limit, with a judgment, is {limit}")
        max_tokens, grammar = min(self.sampling.max_tokens, limit - len(context)), self.grammar
        if grammar is not None and (least := grammar.shortest(grammar.start)) > max_tokens:
            raise ValueError(f"there is room for {max_tokens} tokens; a well-formed judgment takes {least}")
        return SamplingParams(
            n=n, max_tokens=max_tokens, temperature=self.sampling.temperature, top_p=self.sampling.top_p,
            top_k=self.sampling.top_k, stop=self.form.stop, seed=stream_seed("ask", self.seed, *context),
            grammar=grammar,
        )  # fmt: skip


@dataclass(slots=True)
class _Request:
    index: int  # of its question
    votes: list[int]  # which it draws
    is_swapped: bool
    seed: int
    begun: float


class _Run:
    """The bookkeeping of one call of `judge`: a question has one request, or one for each order of A and B."""

    def __init__(self, judge: EngineJudge, questions: Sequence[Question], votes: int) -> None:
        self.judge, self.questions, self.votes = judge, questions, votes
        self.open: dict[int, _Request] = {}
        self.drawn: dict[int, list[Drawn | None]] = {}
        self.errors: list[tuple[int, list[Drawn]]] = []

    def requests(self) -> Iterator[tuple[list[int], SamplingParams]]:
        number = 0
        for index, question in enumerate(self.questions):
            try:
                asked = self._asked(question)
            except ValueError as error:
                self.errors.append((index, [Drawn(error=f"unasked: {error}")] * self.votes))
                continue
            self.drawn[index] = [None] * self.votes
            for context, params, is_swapped, votes in asked:
                self.open[number] = _Request(index, votes, is_swapped, params.seed, time.monotonic())
                number += 1
                yield context, params

    def _asked(self, question: Question) -> list[tuple[list[int], SamplingParams, bool, list[int]]]:
        judge = self.judge
        swapped = judge.form.swaps(judge.mode, question, judge.order, judge.seed, self.votes)
        asked = []
        for is_swapped in sorted(set(swapped)):
            votes = [vote for vote in range(self.votes) if swapped[vote] == is_swapped]
            context = judge._context(question, is_swapped)
            asked.append((context, judge._params(context, len(votes)), is_swapped, votes))
        return asked

    def finished(self, number: int, completions: Sequence[Completion]) -> Iterator[tuple[int, list[Drawn]]]:
        request = self.open.pop(number)
        seconds = time.monotonic() - request.begun
        drawn = self.drawn[request.index]
        for vote, completion in zip(request.votes, completions, strict=True):
            drawn[vote] = self.judge.form.drawn(
                self.judge.mode, completion.text, completion.finish_reason == "length", request.is_swapped,
                request.seed, seconds,
            )  # fmt: skip
        if None not in drawn:
            yield request.index, self.drawn.pop(request.index)
        yield from self.refused()

    def refused(self) -> Iterator[tuple[int, list[Drawn]]]:
        while self.errors:
            yield self.errors.pop()
