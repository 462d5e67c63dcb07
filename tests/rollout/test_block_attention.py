"""Block attention of random steps: against soft-max attention in float64, and bit for bit against itself.

H query heads   K key/value heads   C head width
"""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rollout.block_attention as module
from rollout.block_attention import BLOCK, BlockAttention
from tests.attention_of_steps import AttentionOfSteps
from tests.simulated_steps import make_scheduler

NEVER, ALWAYS = 0, 10**9  # shared blocks that are read row by row


def block_scheduler(num_pages=300, page_size=64, max_rows=16, max_step_tokens=128):
    return make_scheduler(num_pages, page_size, max_rows, max_step_tokens, BLOCK)


def outputs(steps, scheduler, read_apart=64, **requests):
    """o_HC by number of the prefix: the same bits as often as it is computed."""

    def make(cache, step, scheduler, page_T, slot_T):
        heads = steps.config.num_attention_heads, steps.config.num_key_value_heads
        return BlockAttention(cache, step, scheduler.tables, page_T, slot_T, heads)

    by_prefix, pasts = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_READ_APART", read_apart)
        for past, o_HC in steps.outputs(scheduler, make, **requests):
            assert torch.equal(by_prefix.setdefault(past[-1], o_HC), o_HC)
            pasts[past[-1]] = past
    return by_prefix, pasts


def assert_identical(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[number], other[number]) for number in one)


# Qwen's and Llama's numbers of query heads to a key head, and those that are no part of four queries.
@pytest.mark.parametrize(("num_queries", "scale"), [(1, 1.0), (2, 20.0), (3, 1.0), (4, 20.0), (5, 20.0), (8, 1.0)])
def test_is_about_as_accurate_as_a_soft_max_in_float32(num_queries, scale):
    steps = AttentionOfSteps((2 * num_queries, 2), scale=scale)
    by_prefix, pasts = outputs(steps, block_scheduler(num_pages=14, max_rows=6), num_requests=6)
    errors = []
    for number, past in pasts.items():
        right_HC = steps.by_definition(past)
        rounded_HC = steps.by_definition(past, torch.float32)
        errors.append([(o_HC - right_HC).abs().max().item() for o_HC in (by_prefix[number], rounded_HC)])
    largest, largest_of_float32 = np.max(errors, axis=0)
    mean, mean_of_float32 = np.mean(errors, axis=0)
    assert mean <= 2 * mean_of_float32 and largest <= 4 * largest_of_float32


@pytest.mark.parametrize("num_queries", [1, 2, 3, 4, 5, 8])
def test_company_changes_no_bit(num_queries):
    steps = AttentionOfSteps((2 * num_queries, 2))
    alone, _ = outputs(steps, block_scheduler(max_rows=1, max_step_tokens=1), num_requests=5)
    for scheduler, read_apart in [
        (block_scheduler(max_rows=40, max_step_tokens=1000), NEVER),
        (block_scheduler(max_rows=7, max_step_tokens=50), ALWAYS),
        (block_scheduler(num_pages=8), 64),
        (block_scheduler(num_pages=60, page_size=8), NEVER),
    ]:
        together, _ = outputs(steps, scheduler, read_apart, num_requests=5)
        assert_identical(together, alone)


@settings(max_examples=10)
@given(
    st.sampled_from([8, 16, 32, 64]), st.integers(6, 30), st.integers(1, 20), st.integers(1, 200),
    st.sampled_from([NEVER, 5, 64, ALWAYS]), st.sampled_from([(1, 1), (6, 2), (4, 4)]), st.integers(0, 99),
)  # fmt: skip
@example(64, 8, 16, 128, ALWAYS, (6, 2), 0)  # rows that give way to others, and read shared pages
@example(8, 6, 1, 1, NEVER, (6, 2), 0)
def test_pages_chunks_and_rows_change_no_bit(page_size, num_pages, max_rows, max_step_tokens, read_apart, heads, seed):
    steps, requests = AttentionOfSteps(heads), {"seed": seed, "num_requests": 5, "max_length": 150}
    wide, pasts = outputs(steps, block_scheduler(), **requests)
    scheduler = block_scheduler(num_pages * 64 // page_size, page_size, max_rows, max_step_tokens)
    assert_identical(outputs(steps, scheduler, read_apart, **requests)[0], wide)
    for number, past in list(pasts.items())[:: len(pasts) // 20 + 1]:
        torch.testing.assert_close(wide[number].double(), steps.by_definition(past), atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.0, 2.0])
def test_pages_in_place_or_gathered_change_no_bit(share, monkeypatch):
    """Whatever share of a run of pages is wanted, the whole run is read; or none ever is."""
    steps = AttentionOfSteps((6, 2))
    expected, _ = outputs(steps, block_scheduler(num_pages=14))
    monkeypatch.setattr(module, "_READ_IN_PLACE", share)
    for read_apart in (NEVER, ALWAYS):
        assert_identical(outputs(steps, block_scheduler(num_pages=14), read_apart)[0], expected)


def test_rows_read_apart_share_pages():
    """Ten requests of one trunk in a pool that they do not fit: pages of several rows, next to each other."""
    steps, requests = AttentionOfSteps((4, 2)), {"seed": 3, "num_requests": 10, "max_tokens": 70}
    expected, _ = outputs(steps, block_scheduler(num_pages=100), NEVER, **requests)
    found, _ = outputs(steps, block_scheduler(num_pages=8), ALWAYS, **requests)
    assert steps.events["preempt"]
    assert_identical(found, expected)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.bfloat16, 2**-8, 1e-6), (torch.float64, 0, 1e-13)])
def test_only_results_are_rounded_to_16_bits(dtype, rtol, atol):
    steps = AttentionOfSteps((6, 2), dtype=dtype)
    alone, pasts = outputs(steps, block_scheduler(max_rows=1, max_step_tokens=3), num_requests=4)
    together, _ = outputs(steps, block_scheduler(num_pages=20), num_requests=4)
    assert_identical(together, alone)
    for number, past in pasts.items():
        torch.testing.assert_close(together[number].double(), steps.by_definition(past), rtol=rtol, atol=atol)
