"""The pool of pages against a dictionary of counts."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rollout.pages import PagePool

# (what, which of the pages that are held)
operations = st.lists(
    st.tuples(st.sampled_from(["take", "take for a context", "hold", "release", "release"]), st.integers(0, 99)),
    min_size=20,
    max_size=80,
)
# Pages 3 and 2 were taken from the other end, page 1 comes back at both.
FROM_BOTH_ENDS = [("take", 0)] * 3 + [("release", 0), ("take for a context", 0), ("release", 0), ("take", 0)]


@given(st.integers(2, 12), operations)
@example(4, FROM_BOTH_ENDS)
def test_counts_holders_and_takes_from_two_ends(num_pages, operations):
    pool, count = PagePool(num_pages, 8), {}
    for what, which in operations:
        free = [page for page in range(1, num_pages) if page not in count]
        held = sorted(count)
        if what.startswith("take") and free:
            is_context = what != "take"
            page = pool.take(is_context)
            assert page == (free[-1] if is_context else free[0])
            count[page] = 1
        elif what == "hold" and held:
            page = held[which % len(held)]
            assert pool.hold(page) == page
            count[page] += 1
        elif what == "release" and held:
            page = held[which % len(held)]
            pool.release(page)
            count[page] -= 1
            if not count[page]:
                del count[page]
        assert pool.num_free == num_pages - 1 - len(count)
        assert all(pool.is_shared(page) == (count.get(page, 0) > 1) for page in range(num_pages))


@given(st.integers(2, 40), st.lists(st.booleans(), min_size=40, max_size=40))
def test_hands_out_each_page_once_and_never_page_0(num_pages, sides):
    pool = PagePool(num_pages, 8)
    taken = [pool.take(is_context) for is_context in sides[: num_pages - 1]]
    assert sorted(taken) == list(range(1, num_pages))
    with pytest.raises(AssertionError, match="no page is free"):
        pool.take()


def test_refuses_what_nobody_holds():
    pool = PagePool(3, 8)
    page = pool.take()
    pool.release(page)
    with pytest.raises(AssertionError, match="page 1 is free"):
        pool.hold(page)
    with pytest.raises(AssertionError, match="page 1 is released more often than held"):
        pool.release(page)


def test_refuses_a_pool_of_padding_alone():
    with pytest.raises(ValueError, match=r"^num_pages=1 must be at least 2: page 0 is for padding$"):
        PagePool(1, 8)


@given(st.integers(1, 64), st.integers(0, 300))
def test_pages_that_some_tokens_need(page_size, num_tokens):
    assert PagePool(2, page_size).num_for(num_tokens) == len(range(0, num_tokens, page_size))
