"""Attention by the paged kernel, and decode steps on filled-up tables: the CPU form, and on a GPU the graphs.

B rows   M pages of a row   G groups   L pages of a prefix   H query heads   K key/value heads   C head width
"""

from dataclasses import astuple, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.paged_attention import paged_attention
from rollout.decode_graphs import DecodeGraphs
from rollout.engine import Engine, EngineConfig
from rollout.paged_rows import PagedAttention, Rows, Sizes, host_tables
from rollout.params import SamplingParams
from tests.attention_of_steps import AttentionOfSteps
from tests.models import tokenizer
from tests.simulated_steps import make_scheduler
from tests.slow_engine import SOME_TOKENS, assert_identical, assert_same, context, decoder, requests, slow_completions

DOUBLE = decoder(seed=5, dtype=torch.float64, num_hidden_layers=2)


def outputs(steps, scheduler, batch_invariant, **requests):
    """(numbers of the prefixes up to it, o_HC) of each token."""

    def make(cache, step, scheduler, page_T, slot_T):
        return PagedAttention(cache, step, scheduler, page_T, slot_T, batch_invariant)

    return list(steps.outputs(scheduler, make, **requests))


@settings(max_examples=15)
@given(
    st.booleans(), st.sampled_from([8, 16, 32, 64]), st.integers(6, 30), st.integers(1, 40), st.integers(1, 200),
    st.sampled_from([(1, 1), (6, 2), (4, 4), (14, 2)]), st.integers(0, 99), st.booleans(),
)  # fmt: skip
def test_attention_of_any_steps(
    batch_invariant, page_size, num_pages, max_rows, max_step_tokens, heads, seed, look_ahead
):
    steps = AttentionOfSteps(heads, dtype=torch.float64)
    scheduler = make_scheduler(num_pages * 64 // page_size, page_size, max_rows, max_step_tokens)
    found = outputs(steps, scheduler, batch_invariant, seed=seed, num_requests=5, max_length=150, look_ahead=look_ahead)
    for past, o_HC in found[:: len(found) // 100 + 1]:
        torch.testing.assert_close(o_HC, steps.by_definition(past), atol=1e-12, rtol=0)


# Tables


@st.composite
def some_rows(draw) -> Rows:
    """Groups with and without a prefix, each row with tokens of its own."""
    P, groups = 8, draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    B = sum(num for _, num in groups)
    length_B = rng.integers(1, 5 * P, B)
    starts = np.cumsum([0, *(num for _, num in groups)])[:-1].tolist()
    table_BM = rng.integers(1, 30, (B, -(-int(length_B.max()) // P)))
    return Rows(table_BM, length_B, starts, [rng.integers(1, 30, num_pages).tolist() for num_pages, _ in groups])


@settings(max_examples=60)
@given(some_rows(), st.tuples(*[st.integers(0, 9)] * 4), st.sampled_from([None, 1, 3, 16]), st.booleans())
def test_what_fills_up_changes_nothing(rows, more, group, is_rounded):
    generator = torch.Generator().manual_seed(0)
    B = len(rows.length_B)
    q_BHC = torch.randn(B, 6, 16, dtype=torch.float64, generator=generator)
    pages = torch.randn(2, 30, 8, 2, 16, dtype=torch.float64, generator=generator)
    exact_BHC = torch.stack([_by_definition(rows, b, q_BHC[b], pages) for b in range(B)])
    sizes = Sizes.of(rows, group)
    larger = replace(sizes, **{name: getattr(sizes, name) + x for name, x in zip("BMGL", more, strict=True)})
    larger = replace(larger, G=larger.G + larger.B - B)  # groups for the rows that fill up
    for each in (sizes, Sizes.rounded(rows) if is_rounded else larger):
        tables = host_tables(rows, 8, each)
        assert astuple(each)[:4] == (*tables.table_BM.shape, *tables.prefix.table_GL.shape)
        q = torch.cat([q_BHC, torch.randn(each.B - B, 6, 16, dtype=torch.float64, generator=generator)])
        o_BHC = paged_attention(q, *pages, tables.table_BM, tables.length_B, prefix=tables.prefix, check=True)
        torch.testing.assert_close(o_BHC[:B], exact_BHC, atol=1e-12, rtol=0)
        assert not o_BHC[B:].any()


def _by_definition(rows: Rows, b: int, q_HC: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    group = max(g for g, start in enumerate(rows.start_G) if start <= b)
    own = rows.table_BM[b][: -(-rows.length_B[b] // 8)].tolist()
    num_tokens = 8 * len(rows.prefixes[group]) + rows.length_B[b]
    k_XHC, v_XHC = pages[:, [*rows.prefixes[group], *own]].flatten(1, 2)[:, :num_tokens].repeat_interleave(3, dim=2)
    return torch.einsum("hx,xhc->hc", (torch.einsum("hc,xhc->hx", q_HC, k_XHC) / 4).softmax(-1), v_XHC)


@given(some_rows())
def test_rounded_sizes_hold_the_rows(rows):
    sizes, exact = Sizes.rounded(rows), Sizes.of(rows)
    assert all(a >= b for a, b in zip(astuple(sizes), astuple(exact), strict=True))


def test_rounded_sizes_are_few():
    def rounded(num_rows, num_pages, prefix):
        rows = Rows(np.zeros((num_rows, num_pages), dtype=int), np.ones(num_rows, dtype=int), [0], [[1] * prefix])
        return Sizes.rounded(rows)

    assert len({rounded(B, 1, 0) for B in range(1, 65)}) == 4
    assert len({rounded(B, 1, 0).B for B in range(65, 257)}) == 6
    assert len({(sizes.M, sizes.L) for x in range(1, 257) for sizes in [rounded(1, x, x)]}) == 4


# Decode steps


def paged(model, **config) -> Engine:
    return Engine(model, tokenizer(), EngineConfig(attention="paged", **config))


@settings(max_examples=15)
@given(requests, st.sampled_from([1, 3, 16, 70]), st.sampled_from([8, 16, 64]), st.booleans(), st.booleans())
def test_matches_the_slow_engine(requests, max_rows, page_size, batch_invariant, cuda_graphs):
    engine = paged(
        DOUBLE, max_rows=max_rows, page_size=page_size, batch_invariant=batch_invariant, cuda_graphs=cuda_graphs,
        num_pages=5 + 150 // page_size,
    )  # fmt: skip
    contexts, params = zip(*requests, strict=True)
    for completions, one_context, one_params in zip(engine.generate(contexts, params), contexts, params, strict=True):
        assert_same(completions, slow_completions(DOUBLE, one_context, one_params))


@pytest.fixture
def recorded(monkeypatch):
    """The (sizes, temperature) of graphs in the order of their recording, and how often one ran."""
    sizes, num_runs, record = [], [0], DecodeGraphs._record

    def counted(self, inputs, temperature):
        sizes.append((len(inputs.tables.length_B), temperature))
        replay = record(self, inputs, temperature)

        def run():
            num_runs[0] += 1
            return replay()

        return run

    monkeypatch.setattr(DecodeGraphs, "_record", counted)
    return sizes, num_runs


def test_steps_of_equal_sizes_share_a_graph(recorded):
    sizes, num_runs = recorded
    engine = paged(DOUBLE, batch_invariant=False)
    params = SamplingParams(n=5, max_tokens=20, seed=1)
    engine.generate([context(20)], params)
    assert sizes == [(8, 1.0)] and num_runs[0] == engine.stats.counts.num_steps - 1  # all but the prefill
    engine.generate([context(20)], replace(params, n=9))
    assert sizes == [(8, 1.0), (16, 1.0)]
    engine.generate([context(20), context(30)], replace(params, n=3, temperature=0.5))
    assert sizes == [(8, 1.0), (16, 1.0), (8, 0.5)]


def test_any_number_of_rows_is_replayed(recorded):
    """Other steps of more than 64 tokens are filled up to multiples of 16."""
    sizes, _ = recorded
    params = [SamplingParams(max_tokens=3 + i % 5, seed=i) for i in range(90)]
    found, plain = (
        paged(DOUBLE, max_rows=90, num_pages=200, batch_invariant=False, cuda_graphs=graphs).generate(
            [context(20)] * 90, params
        )
        for graphs in (True, False)
    )
    assert {B for B, _ in sizes} >= {96, 64} and [c.token_ids for [c] in found] == [c.token_ids for [c] in plain]


def test_graphs_are_forgotten_with_the_memory(recorded):
    sizes, _ = recorded
    engine = paged(DOUBLE, batch_invariant=False)
    params = [SamplingParams(n=5, max_tokens=20, seed=1)]
    before = engine.generate([context(20)], params)
    engine.release_memory()
    assert not engine._runner._graphs._recorded
    assert_identical(engine.generate([context(20)], params), before)
    assert sizes == [(8, 1.0)] * 2


def test_memory_on_a_gpu_goes_back_to_the_device(monkeypatch):
    """torch would keep it, and cut it up for what comes next: as one piece it could not be had again."""
    engine, told = paged(DOUBLE, batch_invariant=False), []
    engine.generate([context(20)], [SamplingParams(n=1, max_tokens=2)])
    stream = SimpleNamespace(synchronize=lambda: told.append("waits"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.append(engine._cache.is_acquired))
    monkeypatch.setattr(engine._runner, "_device", torch.device("cuda"))
    engine.release_memory()
    assert told == ["waits", False]


def test_graphs_are_forgotten_when_weights_lie_elsewhere(recorded):
    """They read them where they were recorded; what is written in place they see."""
    sizes, _ = recorded
    model = decoder(seed=5, dtype=torch.float64, num_hidden_layers=1)
    engine = paged(model, batch_invariant=False)
    params = [SamplingParams(n=5, max_tokens=20, seed=1)]
    engine.generate([context(20)], params)
    engine.update_weights([("norm.weight", 0.5 * model.norm.weight)])
    engine.generate([context(20)], params)
    assert sizes == [(8, 1.0)]
    model.norm.weight = torch.nn.Parameter(model.norm.weight.detach().clone())
    engine.generate([context(20)], params)
    assert sizes == [(8, 1.0)] * 2


def test_what_a_graph_does_not_do_is_run_plainly(recorded):
    sizes, _ = recorded
    engine = paged(DOUBLE, batch_invariant=False)
    for filters in ({"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}):
        engine.generate([context(20)], SamplingParams(n=2, max_tokens=5, **filters))
    # Two temperatures at a time, until one of the requests has ended.
    engine.generate([context(20)] * 2, [SamplingParams(max_tokens=5, temperature=t, seed=1) for t in (0.5, 1.0)])
    assert not sizes
    for config in ({"batch_invariant": True}, {"batch_invariant": False, "cuda_graphs": False}):
        paged(DOUBLE, **config).generate([context(20)], SamplingParams(n=2, max_tokens=5))
    assert not sizes


# On a GPU


def mixed_work():
    contexts = [context(150, i % 3)[: 20 + 13 * (i % 9)] + [i] for i in range(24)]
    params = [
        SamplingParams(n=1 + i % 7, max_tokens=30, stop_token_ids=SOME_TOKENS[: i % 9], seed=i) for i in range(24)
    ]
    return contexts, params


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_graphs_on_a_gpu(dtype):
    """Up to rounding (tables are cut elsewhere) replayed steps draw what plain ones draw."""
    model = decoder(dtype=dtype, hidden_size=64, num_attention_heads=4, head_dim=32).cuda()
    config = {"num_pages": 400, "max_rows": 40, "batch_invariant": False}
    engines = [paged(model, cuda_graphs=graphs, **config) for graphs in (True, False)]
    replayed, plain = (engine.generate(*mixed_work()) for engine in engines)
    assert sum(map(len, engines[0]._runner._graphs._recorded.values())) >= 2
    num_equal = num_tokens = 0
    for completions, others in zip(replayed, plain, strict=True):
        for a, b in zip(completions, others, strict=True):
            same = next((t for t, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), None)
            np.testing.assert_allclose(a.logprobs[:same], b.logprobs[:same], atol=1e-4 if dtype.itemsize == 4 else 0.1)
            num_equal, num_tokens = num_equal + len(a.logprobs[:same]), num_tokens + len(b.token_ids)
    assert num_equal > (0.95 if dtype.itemsize == 4 else 0.5) * num_tokens
    engines[0].release_memory()
    assert_identical(engines[0].generate(*mixed_work()), replayed)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_company_changes_no_bit_on_a_gpu(dtype):
    model = decoder(dtype=dtype, hidden_size=64, num_attention_heads=4, head_dim=32).cuda()
    contexts, params = mixed_work()
    together = paged(model, num_pages=400, batch_invariant=True, max_rows=64).generate(contexts, params)
    order = np.random.default_rng(0).permutation(24)
    tight = paged(model, num_pages=30, batch_invariant=True, max_rows=64)
    found = tight.generate([contexts[i] for i in order], [params[i] for i in order])
    assert tight.stats.counts.num_preemptions
    assert_identical(found, [together[i] for i in order])
    for i in range(0, 24, 5):
        alone = paged(model, num_pages=400, batch_invariant=True, max_rows=64).generate([contexts[i]], [params[i]])
        assert_identical(alone, [together[i]])
