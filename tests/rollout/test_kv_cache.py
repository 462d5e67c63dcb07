"""Memory of keys and values.

N pages   P slots of a page   T tokens   K key/value heads   C head width
"""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from rollout.kv_cache import KvCache, bytes_per_token, longest_sample
from rollout.params import SamplingParams
from tests.models import config
from tests.simulated_steps import make_scheduler

CONFIG = config()  # 3 layers, 2 key/value heads of width 16
CPU = torch.device("cpu")


def cache(num_pages=6, page_size=8, dtype=torch.float32):
    cache = KvCache(CONFIG, num_pages, page_size, dtype, CPU)
    cache.acquire()
    return cache


def number_pages_(cache):
    """Layer l, keys or values j, page n: all 100·l + 10·j + n."""
    for layer in range(3):
        for j, pages_NKPC in enumerate(cache.layer(layer)):
            pages_NKPC.copy_((100 * layer + 10 * j + torch.arange(cache.num_pages)).view(-1, 1, 1, 1))


@given(st.dictionaries(st.integers(0, 5), st.integers(0, 5), min_size=1))
def test_copies_whole_pages_all_read_before_any_is_written(source_of):
    it = cache()
    number_pages_(it)
    it.copy(source_of)
    for layer in range(3):
        for j, pages_NKPC in enumerate(it.layer(layer)):
            for page in range(6):
                assert (pages_NKPC[page] == 100 * layer + 10 * j + source_of.get(page, page)).all()


@given(st.permutations(range(6 * 8)), st.integers(1, 20), st.integers(0, 2))
def test_reads_what_was_written_where_it_was_written(places, num_tokens, layer):
    it = cache()
    place_T = torch.tensor(places[:num_tokens])
    k_TKC, v_TKC = torch.randn(2, num_tokens, 2, 16, generator=torch.Generator().manual_seed(num_tokens))
    it.write(layer, place_T // 8, place_T % 8, k_TKC, v_TKC)
    for other in range(3):
        for pages_NKPC, x_TKC in zip(it.layer(other), (k_TKC, v_TKC), strict=True):
            expected_ZKC = torch.zeros(6 * 8, 2, 16)
            if other == layer:
                expected_ZKC[place_T] = x_TKC
            assert torch.equal(pages_NKPC.transpose(1, 2).reshape(6 * 8, 2, 16), expected_ZKC)


def test_release_gives_the_memory_back_and_acquire_takes_it_once():
    it = KvCache(CONFIG, 6, 8, torch.float32, CPU)
    assert not it.is_acquired
    it.acquire()
    number_pages_(it)
    it.acquire()
    assert it.is_acquired and (it.layer(2)[1][5] == 215).all()
    it.release()
    assert not it.is_acquired
    it.acquire()
    assert all((x_NKPC == 0).all() for layer in range(3) for x_NKPC in it.layer(layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_page_begins_at_a_multiple_of_64_bytes(dtype):
    for num_pages in (2, 3, 7):
        it = cache(num_pages, 8, dtype)
        assert all(
            page_KPC.data_ptr() % 64 == 0 for layer in range(3) for pages in it.layer(layer) for page_KPC in pages
        )


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes_of_a_token(dtype, size):
    it = cache(num_pages=5, page_size=8, dtype=dtype)
    num_bytes = sum(x_NKPC.numel() * x_NKPC.itemsize for layer in range(3) for x_NKPC in it.layer(layer))
    assert bytes_per_token(CONFIG, dtype) == 2 * 3 * 2 * 16 * size == num_bytes / (5 * 8)


@example(num_pages=3, page_size=16, num_new=1)
@given(st.integers(2, 24), st.sampled_from([8, 16, 64]), st.integers(1, 200))
def test_the_longest_sample_is_the_longest_that_the_scheduler_takes(num_pages, page_size, num_new):
    kv_gib = (num_pages + 0.5) * page_size * bytes_per_token(CONFIG, torch.float32) / 2**30
    longest = longest_sample(kv_gib, num_new, page_size, CONFIG, torch.float32)
    scheduler = make_scheduler(num_pages, page_size)
    params = SamplingParams(n=1, max_tokens=num_new)
    if longest:
        scheduler.submit(list(range(longest - num_new)), params)
    with pytest.raises(ValueError, match="the cache has"):  # a context has two tokens at least, one of them computed
        scheduler.submit(list(range(max(2, longest + 1 - num_new))), params)
