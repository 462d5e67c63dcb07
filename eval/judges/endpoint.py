"""A judge behind any OpenAI-compatible endpoint: every vote is one request, and many are open at a time."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from eval.judges.chat_client import ChatClient, EndpointError, ReplyError
from eval.judges.form import Form, Order, Sampling, Turns, check_order
from eval.judges.judge import KEPT, Drawn, Mode, Question
from kernels.philox import stream_seed

CHARACTERS_PER_TOKEN = 4  # of English text, roughly; of code and other languages fewer
_UNASKED = "unasked"  # no request was sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """In any currency, per million tokens; None: not known."""

    tokens_in: float | None = None
    tokens_out: float | None = None

    def of(self, tokens_in: float, tokens_out: float) -> float | None:
        if self.tokens_in is None or self.tokens_out is None:
            return None
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


@dataclass(slots=True)
class Tally:
    """What a judge has met so far."""

    replies: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    retries: Counter = field(default_factory=Counter)  # by the name of what was tried again
    errors: Counter = field(default_factory=Counter)  # by the name of what was given up

    def text(self, price: Price) -> str:
        told = [f"{self.replies:,} replies", f"{self.tokens_in:,} tokens in, {self.tokens_out:,} out"]
        if (cost := price.of(self.tokens_in, self.tokens_out)) is not None:
            told.append(f"cost {cost:.2f}")
        for what, counts in (("tried again", self.retries), ("without a judgment", self.errors)):
            if counts:
                named = ", ".join(f"{name} {num}" for name, num in counts.most_common())
                told.append(f"{what}: {counts.total():,} ({named})")
        return "; ".join(told)


class _Stopped(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Vote:
    index: int  # of its question
    vote: int
    is_swapped: bool
    turns: Turns
    seed: int


@dataclass(kw_only=True)
class EndpointJudge:
    """`tell` is given two lines: what is to come, before the first request, and what came."""

    client: ChatClient
    form: Form
    mode: Mode
    sampling: Sampling
    model: str
    name: str
    seed: int = 0
    order: Order = "drawn"
    concurrency: int = 8
    extra: Mapping[str, object] = field(default_factory=dict)  # fields of every request; None leaves one out
    price: Price = field(default_factory=Price)
    requests_per_minute: float | None = None  # for the estimate; the client keeps to it
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    tally: Tally = field(default_factory=Tally)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.form.check(self.mode)
        check_order(self.order)
        if self.concurrency < 1:
            raise ValueError(f"--concurrency {self.concurrency}: must be at least 1")

    @property
    def fingerprint(self) -> dict[str, object]:
        """Without the address: a server that has moved, to the port of its next job or behind a gateway, goes on with
        what was paid for, as `url` may change in a training run that resumes. The model's name stands for the model:
        two servers that call different weights by one name need a folder each."""
        return {
            "endpoint_model": self.model, "form": self.form.fingerprint(self.mode), "mode": self.mode,
            "sampling": asdict(self.sampling), "seed": self.seed, "order": self.order, "extra": dict(self.extra),
        }  # fmt: skip

    def judge(self, questions: Sequence[Question], votes: int) -> Iterator[tuple[int, list[Drawn]]]:
        """Errors of a request are its vote's; what no request can escape, such as a wrong key, ends it all.

        Raises:
            ValueError: as in `Judge`; an endpoint that refuses everybody (EndpointError).
        """
        self.form.check(self.mode, questions)
        self.tell(self.estimate(questions, votes))
        drawn: dict[int, list[Drawn | None]] = {}
        asked = iter(self._votes(questions, votes, drawn))
        work, done, stopped = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
        num_threads = min(self.concurrency, max(1, len(questions) * votes))
        for _ in range(num_threads):
            # Daemons: who interrupts a run does not wait for replies that nobody will read.
            threading.Thread(target=self._serve, args=(work, done, stopped), daemon=True).start()
        num_open = 0
        try:
            while True:
                while num_open < num_threads and (vote := next(asked, None)) is not None:
                    if isinstance(vote, tuple):
                        yield vote
                        continue
                    work.put(vote)
                    num_open += 1
                if not num_open:
                    break
                vote, result = done.get()
                num_open -= 1
                if isinstance(result, Exception):
                    raise result
                self._count(result)
                num_lost = self.tally.errors.total() - self.tally.errors[_UNASKED]
                if self.tally.replies == 0 and num_lost >= max(16, 2 * self.concurrency):
                    raise EndpointError(f"no reply to the first {num_lost} requests; {result.error}")
                drawn[vote.index][vote.vote] = result
                if None not in drawn[vote.index]:
                    yield vote.index, drawn.pop(vote.index)
        finally:
            stopped.set()
            for _ in range(num_threads):
                work.put(None)
            self.tell(f"{self.name}: {self.tally.text(self.price)}")

    def estimate(self, questions: Sequence[Question], votes: int) -> str:
        """Requests, tokens, cost and time to come. Outputs are counted at their limit, the most they can be."""
        num = characters = 0
        for question in questions:
            with suppress(ValueError):  # which cannot be asked
                once = sum(len(turn["content"]) for turn in self.form.turns(self.mode, question))
                characters += once * (votes - len(question.kept))
                num += votes - len(question.kept)
        tokens_in, tokens_out = characters / CHARACTERS_PER_TOKEN, num * self.sampling.max_tokens
        told = [f"{num:,} requests", f"about {tokens_in:,.0f} tokens in, at most {tokens_out:,} out"]
        least, most = self.price.of(tokens_in, 0), self.price.of(tokens_in, tokens_out)
        if most is not None:
            told.append(f"cost {least:.2f} to {most:.2f}")
        else:
            told.append("cost not known without --price-in and --price-out")
        if self.requests_per_minute:
            told.append(f"at least {num / self.requests_per_minute:.1f} min at {self.requests_per_minute:g} a minute")
        told.append(f"{-(-num // self.concurrency) / 6:.1f} min where a reply takes 10 s, {self.concurrency} at a time")
        return f"{self.name}: {'; '.join(told)}"

    def _votes(self, questions: Sequence[Question], votes: int, drawn: dict[int, list[Drawn | None]]) -> Iterator:
        """Votes to ask for; a question that cannot be asked comes as its (index, votes)."""
        for index, question in enumerate(questions):
            try:
                given = self.form.turns(self.mode, question)
                swapped = self.form.swaps(self.mode, question, self.order, self.seed, votes)
                turns = {is_swapped: self.form.turns(self.mode, question, is_swapped) for is_swapped in set(swapped)}
            except ValueError as error:
                self.tally.errors[_UNASKED] += votes
                yield index, [Drawn(error=f"{_UNASKED}: {error}")] * votes
                continue
            drawn[index] = [KEPT if vote in question.kept else None for vote in range(votes)]
            for vote, is_swapped in enumerate(swapped):
                if vote in question.kept:
                    continue
                seed = stream_seed("ask", self.seed, json.dumps(given), vote) & 0x7FFFFFFF  # endpoints take 31 bits
                yield _Vote(index, vote, is_swapped, turns[is_swapped], seed)

    def _serve(self, work: queue.SimpleQueue, done: queue.SimpleQueue, stopped: threading.Event) -> None:
        while (vote := work.get()) is not None and not stopped.is_set():
            try:
                done.put((vote, self._drawn(vote, stopped)))
            except Exception as error:  # told where the answers are read
                done.put((vote, error))

    def _drawn(self, vote: _Vote, stopped: threading.Event) -> Drawn:
        def sleep(seconds: float) -> None:
            if stopped.wait(seconds):
                raise _Stopped

        begun = time.monotonic()
        try:
            reply = self.client.complete(self._body(vote), sleep, self._tried_again)
        except ReplyError as error:
            seconds = time.monotonic() - begun
            return Drawn(error=str(error), seed=vote.seed, seconds=seconds, is_swapped=vote.is_swapped)
        with self._lock:
            self.tally.tokens_in += reply.tokens_in or 0
            self.tally.tokens_out += reply.tokens_out or 0
        return self.form.drawn(
            self.mode, reply.text, reply.is_cut, vote.is_swapped, vote.seed, time.monotonic() - begun
        )

    def _body(self, vote: _Vote) -> dict:
        body = {
            "model": self.model, "messages": vote.turns, "max_tokens": self.sampling.max_tokens,
            "temperature": self.sampling.temperature, "top_p": self.sampling.top_p,
            "top_k": self.sampling.top_k or None, "seed": vote.seed,  # top_k is not OpenAI's, but vLLM's and ours
        } | dict(self.extra)  # fmt: skip
        return {name: value for name, value in body.items() if value is not None}

    def _tried_again(self, name: str) -> None:
        with self._lock:
            self.tally.retries[name] += 1

    def _count(self, drawn: Drawn) -> None:
        with self._lock:  # several threads may call `judge`
            self.tally.replies += drawn.text is not None
            if drawn.error is not None:
                self.tally.errors[drawn.error.partition(":")[0]] += 1
