"""The engine in a thread of its own, asked from asyncio.

The engine is not thread-safe: one thread runs it. Commands reach it by a queue, which it empties between steps, so that
requests of all clients decode side by side; what it has to say goes to the loop that the worker was made in.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from rollout.engine import Engine, EngineStats
from rollout.params import Completion, SamplingParams
from rollout.steps import Request

logger = logging.getLogger("rollout.server")

Pairs = Sequence[tuple[list[int], SamplingParams]]

_FAILURES = 3  # steps that fail in a row before the engine counts as broken
_JOIN_S = 10.0


class QueueFull(Exception):
    """There are as many open requests as are allowed."""


class Refused(ValueError):
    """The engine does not take a request; one line says why."""


class EngineFailed(Exception):
    """A step of the engine raised an exception, or its thread is gone."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one sample of a job's request has grown by; `completion` is there when it has ended."""

    request: int
    sample: int
    token_ids: list[int]
    logprobs: list[float]
    completion: Completion | None


class Job:
    """The requests of one call, and what there is to tell about them: Deltas, then all completions, or an exception."""

    def __init__(self, pairs: Pairs, is_streaming: bool) -> None:
        self.pairs, self.is_streaming = pairs, is_streaming
        self.events: asyncio.Queue[Delta | list[list[Completion]] | Exception] = asyncio.Queue()
        # Of the engine's thread:
        self.requests: list[Request] = []
        self.num_told: list[list[int]] = [[0] * params.n for _, params in pairs]

    async def next(self) -> Delta | list[list[Completion]]:
        """
        Raises:
            Refused: the engine does not take a request.
            EngineFailed: it broke down on it.
        """
        event = await self.events.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def completions(self) -> list[list[Completion]]:
        while isinstance(event := await self.next(), Delta):
            pass
        return event


class EngineWorker:
    """
    Args:
        engine: not used by anyone else from `start` on.
        max_open: requests that may be open at once, running or waiting.
    """

    def __init__(self, engine: Engine, max_open: int) -> None:
        self.engine, self.max_open = engine, max_open
        self.num_open = self.num_failures = 0
        self.stats: EngineStats = engine.stats
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: list[Job] = []  # of the engine's thread
        self._failures_in_a_row = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its step; what is still open gets no answer."""
        self._commands.put(None)
        self._thread.join(_JOIN_S)

    @property
    def is_healthy(self) -> bool:
        return self._thread.is_alive() and self._failures_in_a_row < _FAILURES

    @contextmanager
    def job(self, pairs: Pairs, is_streaming: bool = False) -> Iterator[Job]:
        """Submits requests; what is not finished at the end of the block is cancelled.

        Raises:
            QueueFull: too many requests are open.
        """
        if self.num_open + len(pairs) > self.max_open:
            raise QueueFull(f"{self.num_open} requests are open; at most {self.max_open} may be")
        if not self._thread.is_alive():
            raise EngineFailed("the engine has stopped")
        job = Job(pairs, is_streaming)
        self.num_open += len(pairs)
        self._commands.put(partial(self._begin, job))
        try:
            yield job
        finally:
            self.num_open -= len(pairs)
            self._commands.put(partial(self._end, job))

    # From here on, in the engine's thread

    def _run(self) -> None:
        try:
            while True:
                for command in self._next_commands():
                    if command is None:
                        return
                    command()
                if self.engine.has_work:
                    self._step()
                self.stats = self.engine.stats
        except Exception as error:
            logger.exception("the engine's thread has died")
            self._post([(job, EngineFailed(f"the engine has stopped: {error}")) for job in self._jobs])

    def _next_commands(self) -> Iterator[Callable[[], None] | None]:
        """Those that have come; waits for one if there is nothing else to do."""
        if not self.engine.has_work:
            yield self._commands.get()
        while not self._commands.empty():
            yield self._commands.get()

    def _begin(self, job: Job) -> None:
        self._jobs.append(job)
        try:
            for context, params in job.pairs:
                job.requests.append(self.engine.submit(context, params))
        except ValueError as error:
            self._end(job)
            self._post([(job, Refused(str(error)))])

    def _end(self, job: Job) -> None:
        if job in self._jobs:
            self._jobs.remove(job)
            for request in job.requests:
                self.engine.cancel(request)

    def _step(self) -> None:
        try:
            self.engine.step()
        except Exception as error:
            logger.exception("a step of the engine failed; %d calls with it", len(self._jobs))
            self.num_failures += 1
            self._failures_in_a_row += 1
            self._post([(job, EngineFailed(f"the engine failed: {error}")) for job in self._jobs])
            for job in list(self._jobs):
                self._end(job)
            return
        self._failures_in_a_row = 0
        events = []
        for job in self._jobs:
            events += [(job, delta) for delta in _deltas(job)]
            if all(request.is_finished for request in job.requests):
                events.append((job, [request.completions for request in job.requests]))
        self._jobs = [job for job in self._jobs if not all(request.is_finished for request in job.requests)]
        self._post(events)

    def _post(self, events: list[tuple[Job, object]]) -> None:
        if events:
            try:
                self._loop.call_soon_threadsafe(_deliver, events)
            except RuntimeError:  # the loop is closed: the server is gone, and so is whoever asked
                logger.warning("%d answers had nowhere to go", len(events))


def _deliver(events: list[tuple[Job, object]]) -> None:
    for job, event in events:
        job.events.put_nowait(event)


def _deltas(job: Job) -> Iterator[Delta]:
    if not job.is_streaming:
        return
    for number, request in enumerate(job.requests):
        for index, sample in enumerate(request.samples):
            start, end = job.num_told[number][index], len(sample.token_ids)
            if start < end:
                job.num_told[number][index] = end
                yield Delta(number, index, sample.token_ids[start:end], sample.logprobs[start:end], sample.completion)
