"""A decode step that is launched before the one before it is read: nothing comes out otherwise, whatever happens.

On a CPU a launched step is computed at once, in the order in which a GPU would do it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rollout.decode_graphs import DecodeGraphs
from rollout.drawn import Readback
from rollout.engine import Engine, EngineConfig
from rollout.paged_rows import Sizes
from rollout.params import SamplingParams
from tests.engine_events import through_events
from tests.models import config, random_decoder, tokenizer
from tests.slow_engine import SOME_TOKENS, V, assert_identical, assert_same, context, decoder, slow_completions

DOUBLE = decoder(seed=5, dtype=torch.float64, num_hidden_layers=1)
LIMIT = 16  # tokens of a completion


def work() -> list[tuple[list[int], SamplingParams]]:
    """Contexts of three trunks; completions that end early, late, or at their limit."""
    pairs = []
    for i in range(16):
        tokens = context(150, i % 3)[: 13 * (i % 9)] + [i]
        stops = {"stop_token_ids": SOME_TOKENS[: 3 * (i % 6)], "stop": ("e",) if i % 5 == 4 else ()}
        params = SamplingParams(n=1 + i % 4, max_tokens=LIMIT - i % 3, seed=i, **stops)
        pairs.append((tokens, replace(params, top_k=20, max_tokens=4) if i == 7 else params))
    return pairs


def paged(model, look_ahead=True, **sizes) -> Engine:
    return Engine(
        model, tokenizer(), EngineConfig(attention="paged", batch_invariant=False, look_ahead=look_ahead, **sizes)
    )


def assert_nothing_is_held(engine: Engine) -> None:
    stats = engine.stats
    assert stats.num_running_rows == stats.num_waiting_requests == 0 and not engine.has_work
    assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages


def assert_agree(found, right) -> None:
    """To rounding: rows stand elsewhere in a product."""
    for completions, others in zip(found, right, strict=True):
        numbers = [(c.token_ids, c.text, c.finish_reason, c.logprobs, c.drawn_logprobs, c.entropies) for c in others]
        assert_same(completions, numbers)


@pytest.fixture(scope="module")
def alone() -> list:
    return [paged(DOUBLE, look_ahead=False).generate([tokens], [params])[0] for tokens, params in work()]


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """Launches of replayed steps, and what is read, in order."""
    events, launch, wait = [], DecodeGraphs.launch, Readback.wait

    def launched(self, step, *args):
        events.append("launch ahead" if step.ahead else "launch")
        return launch(self, step, *args)

    def read(self, num):
        events.append("read")
        return wait(self, num)

    monkeypatch.setattr(DecodeGraphs, "launch", launched)
    monkeypatch.setattr(Readback, "wait", read)
    return events


def test_a_step_is_launched_before_the_one_before_it_is_read(log):
    paged(DOUBLE).generate([context(1)], SamplingParams(max_tokens=5, temperature=0))
    assert log == ["launch", "launch ahead", "read", "launch ahead", "read", "launch ahead", "read", "launch ahead",
                   "read", "read"]  # fmt: skip
    log.clear()
    paged(DOUBLE, look_ahead=False).generate([context(1)], SamplingParams(max_tokens=5, temperature=0))
    assert log == ["launch", "read"] * 5


def test_what_is_not_replayed_is_not_launched_ahead(log):
    """What a grammar or a filter does to a draw, the host does; and `batch_invariant` replays nothing."""
    paged(DOUBLE).generate([context(1)], SamplingParams(max_tokens=5, top_k=3))
    Engine(DOUBLE, tokenizer(), EngineConfig(attention="paged")).generate([context(1)], SamplingParams(max_tokens=5))
    assert set(log) == {"read"}


def test_not_a_bit_changes_while_nobody_ends():
    params = [SamplingParams(n=4, max_tokens=30, seed=seed) for seed in (1, 6)]
    contexts = [context(20), context(40)]
    found, right = (paged(DOUBLE, look_ahead=ahead).generate(contexts, params) for ahead in (True, False))
    assert all(c.finish_reason == "length" for completions in right for c in completions)
    assert_identical(found, right)


@pytest.mark.parametrize(
    "sizes", [{}, {"max_rows": 3}, {"page_size": 8, "num_pages": 27}, {"page_size": 8, "num_pages": 40, "max_rows": 9}]
)
def test_as_without(sizes, alone, log):
    """Rows that end, requests that wait for rows, samples that give way."""
    engine = paged(DOUBLE, **sizes)
    assert_agree(engine.generate(*zip(*work(), strict=True)), alone)
    assert_nothing_is_held(engine)
    assert log.count("launch ahead") > 3 and log.count("launch") >= (3 if sizes else 1)
    if "num_pages" in sizes:
        assert engine.stats.counts.num_preemptions
    assert engine.stats.counts.num_decoded_tokens == sum(len(c.token_ids) for group in alone for c in group)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_in_between(seed, alone, log):
    """Requests come and go, memory is given back, weights are written, while a step runs ahead."""
    rng = np.random.default_rng(seed)
    model = decoder(seed=5, dtype=torch.float64, num_hidden_layers=1)
    num_pages = int(rng.choice([30, 40, 200]))
    engine = paged(model, page_size=8, num_pages=num_pages, max_rows=int(rng.choice([3, 8, 40])))
    in_flight = []
    finished = through_events(
        engine, work(), rng, [0.1, 0.02, 0.02, 0.02, 0.84],
        lambda event: in_flight.append(engine._ahead is not None and event not in ("submit", "step")),
    )  # fmt: skip
    assert len(finished) > 5 and any(in_flight)
    assert_agree([completions for _, completions in finished], [alone[number] for number, _ in finished])
    assert_nothing_is_held(engine)


def test_new_weights_make_a_step_that_runs_void():
    """The token after the change is drawn with the new ones, as if nothing had been launched."""
    outcomes = []
    for look_ahead in (True, False):
        model = decoder(seed=5, dtype=torch.float64, num_hidden_layers=1)
        engine = paged(model, look_ahead=look_ahead)
        requests = [engine.submit(context(20, i), SamplingParams(n=3, max_tokens=20, seed=i)) for i in range(3)]
        for _ in range(8):
            engine.step()
        assert (engine._ahead is not None) == look_ahead
        engine.update_weights(decoder(seed=6, dtype=torch.float64, num_hidden_layers=1).named_parameters())
        while engine.has_work:
            engine.step()
        outcomes.append([request.completions for request in requests])
    assert_agree(*outcomes)
    assert max(len(c.token_ids) for group in outcomes[0] for c in group) == 20


def test_a_wait_that_is_interrupted_loses_nothing(alone, monkeypatch):
    engine, wait = paged(DOUBLE), Readback.wait
    requests = [engine.submit(*pair) for pair in work()]
    while engine._ahead is None:
        engine.step()

    def interrupted(self, num):
        raise KeyboardInterrupt

    monkeypatch.setattr(Readback, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.setattr(Readback, "wait", wait)
    while engine.has_work:
        engine.step()
    assert_agree([request.completions for request in requests], alone)
    assert_nothing_is_held(engine)


def test_a_step_that_nobody_wants_any_more_is_forgotten(log):
    """All its samples were cancelled; the next request begins with a step of its own."""
    engine = paged(DOUBLE)
    request = engine.submit(context(5), SamplingParams(n=2, max_tokens=20))
    engine.step()
    engine.step()
    engine.cancel(request)
    assert engine._ahead is not None and not engine.has_work and engine.step() == []
    assert_nothing_is_held(engine)
    params = SamplingParams(n=2, max_tokens=6)
    (completions,) = engine.generate([context(6)], [params])
    assert_same(completions, slow_completions(DOUBLE, context(6), params))


def with_a_bad_token(bad: int):
    """A model that overflows on one token, which is drawn as often as it would be otherwise."""
    model = random_decoder(config(vocab_size=V, num_hidden_layers=1, tie_word_embeddings=False), 5, 0.15).double()
    with torch.no_grad():
        model.embed_tokens.weight[bad] = torch.nan
    return model


def drawn_in_the_middle(engine: Engine, params: SamplingParams) -> tuple[int, int]:
    """A token that one sample alone draws, and where: after some steps, and not as its last."""
    (group,) = engine.generate([context(6)], [params])
    drawn = [token for completion in group for token in completion.token_ids]
    return next(
        (token, place)
        for completion in group
        for place, token in enumerate(completion.token_ids[:-3])
        if place > 3 and drawn.count(token) == 1 and token not in context(6)
    )


def test_graphs_of_few_temperatures_are_kept():
    """A server's clients may name any; each is recorded anew when it comes again after others."""
    engine, right = paged(DOUBLE), paged(DOUBLE, look_ahead=False)
    kept = engine._runner._graphs._recorded
    for temperature in (0.5, 0.6, 0.7, 0.8, 0.9, 0.5, 1.0, 0.9, 0.8):
        params = SamplingParams(n=2, max_tokens=5, temperature=temperature)
        assert_agree(engine.generate([context(9)], params), right.generate([context(9)], params))
        assert len(kept) <= 4 and [*kept][-1] == temperature
    assert [*kept] == [0.5, 1.0, 0.9, 0.8]


def test_a_row_that_is_not_finite_is_told_and_leaves_no_trace():
    params = SamplingParams(n=4, max_tokens=LIMIT, seed=2)
    right = random_decoder(config(vocab_size=V, num_hidden_layers=1, tie_word_embeddings=False), 5, 0.15).double()
    expected = paged(right).generate([context(6)], [params])
    bad, place = drawn_in_the_middle(paged(right), params)
    engine = paged(with_a_bad_token(bad))
    request = engine.submit(context(6), params)
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        while engine.has_work:
            engine.step()
    assert max(len(sample.token_ids) for sample in request.samples) == place + 1 and engine._ahead is None
    engine.update_weights([("embed_tokens.weight", right.embed_tokens.weight)])
    while engine.has_work:
        engine.step()
    assert_agree([request.completions], expected)
    assert_nothing_is_held(engine)


def test_what_is_run_for_nothing_need_not_be_finite():
    """The token that a sample ends with is run all the same, if it was launched before; what comes of it is void."""
    params = SamplingParams(n=4, max_tokens=LIMIT, seed=2)
    right = random_decoder(config(vocab_size=V, num_hidden_layers=1, tie_word_embeddings=False), 5, 0.15).double()
    bad, _ = drawn_in_the_middle(paged(right), params)
    params = replace(params, stop_token_ids=(bad,))
    model = with_a_bad_token(bad)
    found, without = (paged(model, look_ahead=ahead).generate([context(6)], [params]) for ahead in (True, False))
    assert_agree(found, without)
    engine = paged(model, page_size=8, num_pages=9)  # its pages are others' soon
    contexts, several = [context(6)] * 4, [params] * 4
    assert_agree(engine.generate(contexts, several), without * 4)


# On a GPU


@pytest.fixture
def one_size(monkeypatch):
    """Products of one shape: a row's bits do not depend on how many have ended."""
    monkeypatch.setattr(Sizes, "rounded", classmethod(lambda cls, rows: cls(64, 64, 64, 64, 8)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_bit_changes_on_a_gpu(dtype, one_size, log):
    """Samples end at all times; with one shape of products everything else is equal to the bit."""
    model = decoder(dtype=dtype, hidden_size=64, num_attention_heads=4, head_dim=32).cuda()
    requests = [(tokens, replace(params, top_k=0, max_tokens=60)) for tokens, params in work()]
    contexts, params = zip(*requests, strict=True)
    engine = paged(model, num_pages=800, max_rows=64)
    plain = paged(model, False, num_pages=800, max_rows=64)
    for turn in range(4):  # from the second on there are graphs already, so that nothing waits, and contexts
        found, right = (it.generate(contexts, params) for it in (engine, plain))
        assert turn or log.count("launch ahead") > 30
        assert_identical(found, right)
    assert_nothing_is_held(engine)


@pytest.mark.gpu
def test_memory_and_weights_while_a_step_runs_on_a_gpu(one_size):
    model = decoder(dtype=torch.bfloat16, hidden_size=64, num_attention_heads=4, head_dim=32).cuda()
    requests = [(tokens, replace(params, top_k=0, max_tokens=60)) for tokens, params in work()]
    outcomes = []
    for look_ahead in (True, False):
        engine = paged(model, look_ahead, num_pages=800, max_rows=64)
        running = [engine.submit(*request) for request in requests]
        for step in range(400):
            if not engine.has_work:
                break
            if step in (10, 25):
                assert (engine._ahead is not None) == look_ahead
                engine.release_memory()
            if step == 18:
                engine.update_weights([("norm.weight", model.norm.weight.clone())])
            if step == 30:
                engine.cancel(running[2])
            engine.step()
        assert_nothing_is_held(engine)
        outcomes.append([request.completions for request in running if request.is_finished])
    one, other = ([c.token_ids for completions in outcome for c in completions] for outcome in outcomes)
    num_equal = sum(a == b for a, b in zip(one, other, strict=True))
    assert num_equal > 0.9 * len(one)  # chunks that compute samples again are cut elsewhere
