"""Whatever else the engine does, a request's tokens and numbers are those that it draws alone, bit for bit."""

from dataclasses import replace
from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patarm_core.judgment import parse
from rollout.engine import Engine, EngineConfig
from rollout.grammar import JudgmentGrammar
from rollout.params import SamplingParams
from tests.engine_events import through_events
from tests.models import tokenizer
from tests.simulated_steps import Prefixes
from tests.slow_engine import SOME_TOKENS, V, assert_identical, context, decoder, requests

# Powers of two; widths that leave a remainder in every vector loop; seven queries to a key, as in Qwen2.5-7B; one key
# head, so that one context is one matrix.
SHAPES = {
    "plain": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 32},
    "odd": {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 6, "head_dim": 48},
    "seven": {"num_attention_heads": 14, "head_dim": 16},
    "one-key": {"hidden_size": 32, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 64},
}
LIMIT = 16  # tokens of a completion


@cache
def grammar():
    return JudgmentGrammar(tokenizer(), V)


@cache
def work() -> list[tuple[list[int], SamplingParams]]:
    """Contexts of three trunks, some of them equal; completions of many lengths; all ways to draw."""
    rng = np.random.default_rng(0)
    trunks = [context(180, seed) for seed in range(3)]
    ways = [{}, {}, {}, {"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 20}, {"min_p": 0.02}]
    pairs = []
    for i in range(20):
        num_shared, num_own = int(rng.choice([0, 5, 63, 64, 65, 100, 127, 128, 180])), int(rng.integers(1, 9))
        tokens = trunks[i % 3][:num_shared] + (context(num_own, i) if i % 4 else [7])
        limits = {"max_tokens": LIMIT, "stop_token_ids": SOME_TOKENS[: int(rng.integers(0, 20))]}
        pairs.append((tokens, SamplingParams(n=int(rng.integers(1, 7)), seed=i, **limits, **ways[i % len(ways)])))
    return pairs


@cache
def alone(shape: str) -> list:
    """Each request's completions from an engine of its own."""
    model = decoder(num_hidden_layers=1, **SHAPES[shape])
    return [Engine(model, tokenizer()).generate([tokens], [params])[0] for tokens, params in work()]


def smallest(page_size: int) -> int:
    """Pages of the smallest cache that takes every request."""
    longest = max(len(tokens) for tokens, _ in work())
    return -(-(longest - 1) // page_size) - -LIMIT // page_size + 3


def engine(shape: str = "plain", **config) -> Engine:
    return Engine(decoder(num_hidden_layers=1, **SHAPES[shape]), tokenizer(), EngineConfig(**config))


def generate(it: Engine, numbers) -> list:
    return it.generate([work()[i][0] for i in numbers], [work()[i][1] for i in numbers])


def assert_nothing_is_held(it: Engine) -> None:
    stats = it.stats
    assert stats.num_running_rows == stats.num_waiting_requests == 0 and not it.has_work
    assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages


def test_the_work_is_mixed():
    lengths = [len(completion.token_ids) for completions in alone("plain") for completion in completions]
    assert len(set(lengths)) > 8


@pytest.mark.parametrize("page_size", [8, 16, 32, 64])
def test_pages_of_any_size_and_number(page_size):
    num_pages = (1 if page_size % 16 else 2) * smallest(page_size)
    it = engine(page_size=page_size, num_pages=num_pages)
    assert_identical(generate(it, range(20)), alone("plain"))
    assert_nothing_is_held(it)
    assert it.stats.num_pages == num_pages - 1


@pytest.mark.parametrize(("max_rows", "max_step_tokens", "stride"), [(2, 9, 19), (30, 31, 7), (256, 5000, 3)])
def test_order_rows_and_chunks(max_rows, max_step_tokens, stride):
    numbers = [(stride * i) % 20 for i in range(20)]
    found = generate(engine(max_rows=max_rows, max_step_tokens=max_step_tokens), numbers)
    assert_identical(found, [alone("plain")[i] for i in numbers])


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_any_configuration_and_any_events(shape):
    """Requests come and go while others run; memory is given back and weights are written in between."""
    num_preemptions = num_finished = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        page_size = int(rng.choice([8, 16, 32, 64]))
        it = engine(
            shape, page_size=page_size, num_pages=smallest(page_size) + int(rng.integers(0, 800 // page_size)),
            max_rows=int(rng.choice([1, 3, 10, 40])), max_step_tokens=int(rng.choice([5, 20, 100, 2000])),
        )  # fmt: skip
        finished = through_events(it, work(), rng, [0.3, 0.004, 0.004, 0.004, 0.688])
        assert_identical([completions for _, completions in finished], [alone(shape)[i] for i, _ in finished])
        assert_nothing_is_held(it)
        num_preemptions, num_finished = num_preemptions + it.stats.counts.num_preemptions, num_finished + len(finished)
    assert num_preemptions > 10 and num_finished > 40


@settings(max_examples=10)
@given(requests, requests, st.integers(1, 64))
def test_whatever_is_asked(requests, others, max_rows):
    one, other = engine(), engine(max_rows=max_rows)
    expected = one.generate(*zip(*requests, strict=True))
    assert_identical(other.generate(*zip(*others, *requests, strict=True))[len(others) :], expected)


def test_many_equal_rows():
    """A wave of hundreds of rows, a wave of sixteen, and a batch that shrinks from the one to the other."""
    params = [SamplingParams(n=8, max_tokens=30, stop_token_ids=SOME_TOKENS[: 2 * (i % 9)], seed=i) for i in range(60)]
    contexts = [context(50, i) for i in range(60)]
    together = engine().generate(contexts, params)
    for i in (0, 17, 59):
        assert_identical(engine().generate([contexts[i]], [params[i]]), [together[i]])
    assert_identical(engine(max_rows=1024).generate(contexts, params), together)


def test_the_last_row_is_like_any_other():
    """54 rows of 52 leave a remainder in vector loops, which would round on its own; each context is last once."""
    it = engine("odd")
    contexts = [context(9, i) for i in range(18)]
    params = [SamplingParams(n=3, max_tokens=4, seed=i) for i in range(18)]
    together = it.generate(contexts, params)
    for i in range(1, 18):
        turned = it.generate(contexts[i:] + contexts[:i], params[i:] + params[:i])
        assert_identical(turned, together[i:] + together[:i])


def test_samples_that_give_way_go_on():
    it = engine(page_size=8, num_pages=smallest(8), max_step_tokens=64)
    assert_identical(generate(it, range(20)), alone("plain"))
    counts = it.stats.counts
    assert counts.num_preemptions > 5 and counts.num_recomputed_tokens > 5
    assert counts.num_decoded_tokens == sum(len(c.token_ids) for completions in alone("plain") for c in completions)


def test_rows_that_read_shared_pages_one_by_one():
    """Few rows, and pages of a block: the pages of a context lie next to each other, and several rows read them."""
    it = engine(page_size=64, num_pages=8)
    trunk = context(180)
    pairs = [(trunk[: 170 + i], SamplingParams(n=2, max_tokens=30, seed=i)) for i in range(10)]
    expected = [engine().generate([tokens], [params])[0] for tokens, params in pairs]
    assert_identical(it.generate(*zip(*pairs, strict=True)), expected)
    assert it.stats.counts.num_preemptions


def test_what_contexts_share_is_computed_once():
    prefixes = Prefixes()
    for tokens, _ in work():
        prefixes.of(tokens[:-1])
    it = engine()
    assert_identical(generate(it, range(20)), alone("plain"))
    assert it.stats.counts.num_prefilled_tokens == len(prefixes)
    assert_identical(generate(it, range(20)), alone("plain"))  # from the tree alone
    assert it.stats.counts.num_prefilled_tokens == len(prefixes)


def test_those_that_stay_when_others_leave_and_come():
    it = engine(max_rows=12)
    running = {it.submit(*work()[i]): i for i in range(6)}
    finished = {}
    for step in range(200):
        if step == 3:
            leaving = [request for request, i in running.items() if i in (1, 4, 5)]
            assert len(leaving) == 3
            for request in leaving:
                it.cancel(request)
                del running[request]
            running |= {it.submit(*work()[i]): i for i in range(6, 12)}
        finished |= {running.pop(request): request.completions for request in it.step()}
    assert finished.keys() == {0, 2, 3, *range(6, 12)}
    assert_identical(list(finished.values()), [alone("plain")[i] for i in finished])
    assert_nothing_is_held(it)


# A stream


def test_a_stream_asks_for_another_when_it_has_a_row_for_it():
    asked, most_asked, read = 0, 0, {}

    def pairs():
        nonlocal asked
        for tokens, params in work():
            assert asked - len(read) < 5
            asked += 1
            yield tokens, replace(params, n=1)

    for number, completions in engine(max_rows=5).stream(pairs()):
        most_asked = max(most_asked, asked - len(read))
        read[number] = completions
    assert most_asked == 5 and read.keys() == set(range(20))
    assert_identical([read[number] for number in range(20)], [completions[:1] for completions in alone("plain")])


def test_a_stream_that_is_closed_frees_its_pages():
    it = engine(max_rows=8)
    stream = it.stream(work())
    for _ in range(3):
        next(stream)
    assert it.has_work and it.stats.num_running_rows
    stream.close()
    assert_nothing_is_held(it)
    assert_identical(generate(it, range(20)), alone("plain"))


def test_a_stream_leaves_the_requests_of_others_alone():
    it = engine()
    mine = it.submit(*work()[0])
    found = dict(it.stream(work()[1:5]))
    assert_identical([found[number] for number in range(4)], alone("plain")[1:5])
    while not mine.is_finished:
        it.step()
    assert_identical([mine.completions], alone("plain")[:1])


def test_streams_of_one_engine_may_take_turns():
    """What another stream's steps have finished is still told."""
    it = engine()
    first = it.stream(work()[:5])
    found = dict([next(first)])
    assert_identical(generate(it, range(20)), alone("plain"))
    assert not it.has_work
    found |= islice(first, 5)
    assert_identical([found[number] for number in range(5)], alone("plain")[:5])


# Weights and memory


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=0.0)


@pytest.mark.parametrize("num_pages", [None, 8])
def test_new_weights_in_the_middle_count_from_there_on(num_pages):
    """No key or value of the old ones is left: greedy tokens go on as a new engine goes on from the text so far."""
    it = engine(page_size=64, num_pages=num_pages)
    contexts = [context(180)[:length] for length in (1, 64, 90, 150)]
    running = [it.submit(tokens, greedy(20)) for tokens in contexts]
    for _ in range(9):
        it.step()
    so_far = [list(request.samples[0].token_ids) for request in running]
    assert sum(map(len, so_far)) > 10
    new = decoder(seed=1, num_hidden_layers=1, **SHAPES["plain"])
    it.update_weights(new.named_parameters())
    while it.has_work:
        it.step()
    for tokens, before, request in zip(contexts, so_far, running, strict=True):
        (completion,) = request.completions
        assert completion.token_ids[: len(before)] == before
        if len(completion.token_ids) == len(before):
            continue  # it had ended
        ((after,),) = Engine(new, tokenizer()).generate([tokens + before], [greedy(20 - len(before))])
        assert completion.token_ids[len(before) :] == after.token_ids
        for name in ("logprobs", "entropies"):
            assert getattr(completion, name)[len(before) :].tobytes() == getattr(after, name).tobytes()
    # Contexts that nobody used are gone too.
    assert_identical(generate(it, range(8)), generate(Engine(new, tokenizer()), range(8)))


def test_weights_written_anew_with_the_same_values_changenothing():
    it = engine()
    running = [it.submit(*pair) for pair in work()]
    for _ in range(5):
        it.step()
    it.update_weights([(name, tensor.clone()) for name, tensor in it.decoder.named_parameters()])
    while it.has_work:
        it.step()
    assert it.stats.counts.num_recomputed_tokens
    assert_identical([request.completions for request in running], alone("plain"))


def swap(decoder):
    mlp = decoder.layers[0].mlp
    mlp.gate_proj.weight, mlp.up_proj.weight = mlp.up_proj.weight, mlp.gate_proj.weight


def move(decoder):
    weight = decoder.layers[0].mlp.up_proj.weight
    weight.data = 1.5 * weight.data


@pytest.mark.parametrize("change", [swap, move])
def test_weights_that_lie_elsewhere_are_new_ones(change):
    it = engine()
    generate(it, range(8))
    change(it.decoder)
    assert_identical(generate(it, range(8)), generate(Engine(it.decoder, tokenizer()), range(8)))


@pytest.mark.parametrize("again", [True, False])
def test_memory_given_back_in_the_middle(again):
    it = engine()
    running = [it.submit(*pair) for pair in work()]
    for _ in range(5):
        it.step()
    it.release_memory()
    assert not it._cache.is_acquired and it.stats.num_free_pages == it.stats.num_pages
    assert it.stats.num_running_rows == 0 and it.has_work
    if again:
        it.acquire_memory()
        assert it._cache.is_acquired
    while it.has_work:
        it.step()
    assert it._cache.is_acquired
    assert_identical([request.completions for request in running], alone("plain"))


# In keys and values too, or in logits alone.
@pytest.mark.parametrize("name", ["embed_tokens.weight", "norm.weight"])
def test_numbers_that_are_not_finite_are_refused_and_leave_no_trace(name):
    it = engine()
    right = dict(it.decoder.named_parameters())[name].detach().clone()
    it.update_weights([(name, torch.full_like(right, torch.nan))])
    for _ in range(2):
        running = [it.submit(*pair) for pair in work()[::-1]]
        with pytest.raises(FloatingPointError, match="logits are not finite"):
            for _ in range(10):
                it.step()
        for request in running[:15]:
            it.cancel(request)
    it.update_weights([(name, right)])
    while it.has_work:
        it.step()
    assert_identical([request.completions for request in running[15:]], alone("plain")[4::-1])
    assert_nothing_is_held(it)
    assert_identical(generate(it, range(20)), alone("plain"))


# A grammar


def test_judgments_by_a_grammar_among_free_completions():
    with_grammar = [
        (tokens, SamplingParams(n=2, max_tokens=80, seed=i, grammar=grammar()))
        for i, (tokens, _) in enumerate(work()[:4])
    ]
    expected = [engine().generate([tokens], [params])[0] for tokens, params in with_grammar]
    assert all(parse(completion.text).error is None for completions in expected for completion in completions)
    for config in ({}, {"max_rows": 5, "max_step_tokens": 40, "page_size": 16, "num_pages": 28}):
        mixed = [pair for pairs in zip(work()[4:8], with_grammar, work()[8:12], strict=True) for pair in pairs]
        found = engine(**config).generate(*zip(*mixed, strict=True))
        assert_identical(found[1::3], expected)
        assert_identical(found[0::3], alone("plain")[4:8])
        assert_identical(found[2::3], alone("plain")[8:12])
