"""An engine that writes what it is told, one token a step: the interface of rollout/engine.py without a model."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from rollout.engine import EngineStats
from rollout.params import Completion, SamplingParams
from rollout.scheduler import Counts


@dataclass
class FakeSample:
    script: list[int]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    completion: Completion | None = None


@dataclass(eq=False)
class FakeRequest:
    token_ids: list[int]
    params: SamplingParams
    samples: list[FakeSample]

    @property
    def is_finished(self) -> bool:
        return all(sample.completion is not None for sample in self.samples)

    @property
    def completions(self) -> list[Completion]:
        return [sample.completion for sample in self.samples]


class FakeEngine:
    """`say(context, params, sample)` gives the text, or the tokens, of a sample; all else is bookkeeping."""

    def __init__(self, tokenizer, say: Callable, limit: int = 512, step_s: float = 0.0) -> None:
        self.tokenizer, self.say, self.step_s = tokenizer, say, step_s
        config = SimpleNamespace(max_position_embeddings=limit, vocab_size=len(tokenizer))
        self.decoder = SimpleNamespace(config=config)
        self.open: list[FakeRequest] = []
        self.failures: list[Exception] = []  # raised by the next steps, one each
        self.num_submitted = self.num_cancelled = self.num_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self.open)

    @property
    def stats(self):
        known = {
            "counts": Counts(num_requests=self.num_submitted, num_steps=self.num_steps),
            "num_running_rows": sum(len(request.samples) for request in self.open),
        }
        return EngineStats(**{name: known.get(name, 0) for name in EngineStats.__dataclass_fields__})

    def submit(self, token_ids, params: SamplingParams) -> FakeRequest:
        config = self.decoder.config
        if not token_ids:
            raise ValueError("the context is empty")
        if not 0 <= min(token_ids) <= max(token_ids) < config.vocab_size:
            raise ValueError(f"the context has token {max(token_ids)}; the model has {config.vocab_size} tokens")
        if len(token_ids) + params.max_tokens > config.max_position_embeddings:
            raise ValueError("the context is too long")
        request = FakeRequest(
            list(token_ids), params, [FakeSample(self._script(token_ids, params, i)) for i in range(params.n)]
        )
        self.open.append(request)
        self.num_submitted += 1
        return request

    def step(self) -> list[FakeRequest]:
        self.num_steps += 1
        time.sleep(self.step_s)
        if self.failures:
            raise self.failures.pop(0)
        for request in self.open:
            for sample in request.samples:
                if sample.completion is None:
                    self._grow(sample, request.params)
        finished = [request for request in self.open if request.is_finished]
        self.open = [request for request in self.open if not request.is_finished]
        return finished

    def cancel(self, request: FakeRequest) -> None:
        if request in self.open:
            self.open.remove(request)
            self.num_cancelled += 1

    def stream(self, pairs):
        numbers = {self.submit(*pair): number for number, pair in enumerate(pairs)}
        while self.has_work:
            for request in self.step():
                yield numbers[request], request.completions

    def _script(self, token_ids, params: SamplingParams, sample: int) -> list[int]:
        said = self.say(token_ids, params, sample)
        return self.tokenizer.encode(said, add_special_tokens=False) if isinstance(said, str) else said

    def _grow(self, sample: FakeSample, params: SamplingParams) -> None:
        sample.token_ids.append(sample.script[len(sample.token_ids)])
        sample.logprobs.append(-0.5 * len(sample.token_ids))
        text = self.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
        ends = [text.find(stop) + len(stop) for stop in params.stop if stop in text]
        is_full = len(sample.token_ids) == params.max_tokens
        if ends or is_full or len(sample.token_ids) == len(sample.script):
            logprobs = np.array(sample.logprobs, dtype=np.float32)
            reason = "length" if is_full and not ends else "stop"
            text = text[: min(ends)] if ends else text
            sample.completion = Completion(list(sample.token_ids), text, logprobs, logprobs, logprobs, reason)
