"""The engine's thread: batching, cancelling, refusing and failing, with an engine that does as it is told."""

import asyncio

import pytest

from rollout.params import SamplingParams
from rollout.server_worker import Delta, EngineFailed, EngineWorker, QueueFull
from tests import models
from tests.fake_engine import FakeEngine

TOKENIZER = models.tokenizer()
CONTEXT = TOKENIZER.encode("Why?")


def scenario(play, max_open: int = 8, **engine_settings):
    """Runs `play(worker, engine)` on a loop; the engine writes "so <sample> <seed>"."""
    engine = FakeEngine(TOKENIZER, lambda context, params, sample: f"so {sample} {params.seed}", **engine_settings)

    async def run():
        worker = EngineWorker(engine, max_open)
        worker.start()
        try:
            return await asyncio.wait_for(play(worker, engine), 20)
        finally:
            worker.stop()

    return asyncio.run(run())


def pair(seed: int = 0, n: int = 1, **settings):
    return CONTEXT, SamplingParams(n=n, max_tokens=64, seed=seed, **settings)


def texts(completions):
    return [[completion.text for completion in request] for request in completions]


async def settled(worker, engine):
    """Waits until the engine has nothing left to do."""
    while engine.has_work or worker.num_open:
        await asyncio.sleep(0.005)


def test_a_call_gets_all_completions_of_its_requests():
    async def play(worker, engine):
        with worker.job([pair(1, n=2), pair(2)]) as job:
            assert texts(await job.completions()) == [["so 0 1", "so 1 1"], ["so 0 2"]]
        assert worker.num_open == 0 and engine.num_cancelled == 0

    scenario(play)


def test_concurrent_calls_share_steps():
    async def one(worker, seed):
        with worker.job([pair(seed)]) as job:
            return texts(await job.completions())

    async def play(worker, engine):
        answers = await asyncio.gather(*(one(worker, seed) for seed in range(8)))
        assert answers == [[[f"so 0 {seed}"]] for seed in range(8)]
        assert engine.num_steps < 3 * len(TOKENIZER.encode("so 0 0"))

    scenario(play, step_s=0.005)


def test_deltas_add_up_to_the_completions():
    async def play(worker, engine):
        grown = {0: [], 1: []}
        with worker.job([pair(n=2)], is_streaming=True) as job:
            while isinstance(event := await job.next(), Delta):
                grown[event.sample] += event.token_ids
                assert len(event.logprobs) == len(event.token_ids)
                assert (event.completion is not None) == (
                    grown[event.sample] == TOKENIZER.encode(f"so {event.sample} 0")
                )
        assert [completion.token_ids for completion in event[0]] == [grown[0], grown[1]]

    scenario(play)


def test_a_call_that_is_left_is_cancelled():
    async def play(worker, engine):
        with worker.job([pair(n=4)], is_streaming=True) as job:
            await job.next()
        await settled(worker, engine)
        assert engine.num_cancelled == 1 and worker.stats.num_running_rows == 0

    scenario(play, step_s=0.01)


def test_too_many_open_requests_are_refused_at_once():
    async def play(worker, engine):
        full = pytest.raises(QueueFull, match="2 requests are open; at most 2")
        with worker.job([pair(), pair()]), full, worker.job([pair()]):
            pass
        with worker.job([pair()]) as job:  # there is room again
            await job.completions()

    scenario(play, max_open=2, step_s=0.01)


def test_a_request_that_the_engine_refuses_takes_no_other_with_it():
    async def play(worker, engine):
        with worker.job([pair(1)]) as good, worker.job([pair(2), ([9999], SamplingParams(max_tokens=1))]) as bad:
            with pytest.raises(ValueError, match="token 9999"):
                await bad.completions()
            assert texts(await good.completions()) == [["so 0 1"]]
        await settled(worker, engine)
        assert engine.num_cancelled == 1  # the first request of the bad call

    scenario(play, step_s=0.01)


def test_a_failed_step_fails_what_runs_and_no_more():
    async def play(worker, engine):
        engine.failures.append(RuntimeError("out of memory"))
        with worker.job([pair(1)]) as job, pytest.raises(EngineFailed, match="out of memory"):
            await job.completions()
        assert worker.num_failures == 1 and worker.is_healthy
        with worker.job([pair(2)]) as job:
            assert texts(await job.completions()) == [["so 0 2"]]

    scenario(play)


def test_an_engine_that_keeps_failing_is_not_healthy_until_it_works():
    async def play(worker, engine):
        for number in range(3):
            assert worker.is_healthy
            engine.failures.append(RuntimeError("broken"))
            with worker.job([pair(number)]) as job, pytest.raises(EngineFailed):
                await job.completions()
        assert not worker.is_healthy
        with worker.job([pair(9)]) as job:
            await job.completions()
        assert worker.is_healthy

    scenario(play)


def test_a_dead_thread_is_told_to_who_waits_and_who_comes():
    async def play(worker, engine):
        engine.failures.append(RuntimeError("broken"))
        engine.cancel = lambda request: 1 / 0
        with worker.job([pair()]) as job, pytest.raises(EngineFailed):
            await job.completions()
        while worker._thread.is_alive():
            await asyncio.sleep(0.005)
        assert not worker.is_healthy
        with pytest.raises(EngineFailed, match="has stopped"), worker.job([pair()]):
            pass

    scenario(play)
