"""Each item goes to one process, the longest first, when there are rows for it; a fixed share is the plain way."""

import random
import threading
import time
from itertools import pairwise

import pytest
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollout.engine import Engine, EngineConfig
from rollout.params import SamplingParams
from rollout.work_queue import WorkQueue, longest_first, run_items
from tests.models import config, random_decoder, tokenizer


class Counters:
    """A store in a dictionary."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            self.values[key] = self.values.get(key, 0) + amount
            return self.values[key]

    def delete_key(self, key: str) -> bool:
        return self.values.pop(key, None) is not None


@given(st.lists(st.integers(0, 5)))
def test_the_longest_is_first_and_equals_keep_their_order(costs):
    order = longest_first(costs)
    assert sorted(order) == list(range(len(costs)))
    assert all((costs[a], -a) > (costs[b], -b) for a, b in pairwise(order))


def run_world(order: list[int], num_ranks: int, num_dealt: int, seed: int) -> tuple[list[list[int]], list[int]]:
    """What each of several threads takes at a pace of its own, and all that is taken one by one, as it goes."""
    store, taken, in_turn = Counters(), [[] for _ in range(num_ranks)], []
    in_turn_lock = threading.Lock()

    class Watched(Counters):
        def add(self, key, amount):
            with in_turn_lock:
                count = store.add(key, amount)
                place = min(num_dealt * num_ranks, len(order)) + count - 1
                if place < len(order):
                    in_turn.append(order[place])
                return count

    def work(rank: int) -> None:
        rng = random.Random(seed + rank)
        pace = rng.choice([0, 1e-5, 3e-4])
        for item in WorkQueue(Watched(), "key", order, rank, num_ranks, num_dealt):
            taken[rank].append(item)
            time.sleep(pace * rng.random())

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.values.get("key", 0) in (0, max(0, len(order) - num_dealt * num_ranks) + num_ranks)
    return taken, in_turn


@settings(max_examples=60)
@given(st.permutations(range(23)), st.integers(0, 23), st.integers(1, 5), st.integers(0, 4), st.integers(0, 1000))
@example(list(range(23)), 23, 4, 0, 0)  # nothing is dealt
@example(list(range(23)), 0, 4, 2, 0)  # nothing to do
@example(list(range(23)), 8, 4, 2, 0)  # all is dealt
def test_each_item_is_taken_once_in_order_whatever_the_paces(items, num_items, num_ranks, num_dealt, seed):
    order = items[:num_items]
    taken, in_turn = run_world(order, num_ranks, num_dealt, seed)
    assert sorted(item for mine in taken for item in mine) == sorted(order)
    places = [[order.index(item) for item in mine] for mine in taken]
    assert places == [sorted(mine) for mine in places]
    assert in_turn == order[num_ranks * num_dealt :]  # the next is always the longest that is left


def drain(order, num_ranks, num_dealt) -> list[list[int]]:
    """One rank after the other: the first to ask takes all that it may."""
    store = Counters()
    return [list(WorkQueue(store, "key", order, rank, num_ranks, num_dealt)) for rank in range(num_ranks)]


def test_the_first_to_ask_cannot_leave_the_others_without():
    assert drain(range(12), 3, 8) == [[0, 5, 6, 11], [1, 4, 7, 10], [2, 3, 8, 9]]  # there and back
    assert drain(range(12), 3, 2) == [[0, 5, 6, 7, 8, 9, 10, 11], [1, 4], [2, 3]]


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 50))
def test_what_fits_in_the_rows_of_all_is_dealt_evenly(num_items, num_ranks, num_dealt):
    shares = drain(range(num_items), num_ranks, num_dealt)
    if num_items <= num_dealt * num_ranks:
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert min(map(len, shares)) >= min(num_dealt, num_items // num_ranks)


@pytest.mark.parametrize("make", [dist.HashStore, lambda: dist.TCPStore("localhost", 0, 1, True)])
def test_the_jobs_store_keeps_nothing_of_a_queue_that_is_removed(make):
    store = dist.PrefixStore("job", make())
    before = store.num_keys()
    for number in range(3):
        ends = [WorkQueue(store, f"pairs/{number}", range(9), rank, 2, 1) for rank in (0, 1)]
        assert sorted(item for end in ends for item in end) == list(range(9))
        ends[0].remove()
    assert store.num_keys() == before


def test_when_one_process_fails_nobody_begins_another_item():
    store = Counters()
    ends = [WorkQueue(store, "key", range(20), rank, 2, 1) for rank in (0, 1)]
    taking = iter(ends[0])
    assert [next(taking) for _ in range(3)] == [0, 2, 3]
    ends[1].close()
    assert list(taking) == []


V, N = 96, 3


@pytest.fixture(scope="module")
def decoder():
    return random_decoder(config(vocab_size=V))


def requests_of(item: int) -> list[tuple[list[int], SamplingParams]]:
    trunk = [1 + (item * 7 + i) % (V - 1) for i in range(5 + 3 * item)]
    return [
        ([*trunk, side + 1], SamplingParams(n=N, max_tokens=2 + (item + side) % 4, seed=2 * item + side))
        for side in (0, 1)
    ]


def test_items_are_what_their_requests_are_alone_and_are_taken_as_rows_come_free(decoder):
    engine = Engine(decoder, tokenizer(), EngineConfig(max_rows=5))
    submit, step = engine.submit, engine.step
    submitted, taken, steps = [], [], []

    def items():
        for item in range(8):
            assert sum(request.num_open for request in submitted) < 5, "an item was taken without a row for it"
            taken.append(item)
            yield item

    def watched_submit(*request):
        submitted.append(submit(*request))
        return submitted[-1]

    def watched_step():
        steps.append(len(taken))
        return step()

    engine.submit, engine.step = watched_submit, watched_step
    found = dict(run_items(engine, items(), requests_of))
    assert steps[0] == 1 and len(set(steps)) > 4  # one at first, the others in the course of it
    assert taken == sorted(found) == list(range(8))
    plain = Engine(decoder, tokenizer())
    for item, sides in found.items():
        for side, (context, params) in zip(sides, requests_of(item), strict=True):
            (expected,) = plain.generate([context], [params])
            assert [c.token_ids for c in side] == [c.token_ids for c in expected]
            assert [c.logprobs.tobytes() for c in side] == [c.logprobs.tobytes() for c in expected]


def test_the_sides_of_an_item_share_their_beginning(decoder):
    engine = Engine(decoder, tokenizer(), EngineConfig(max_rows=64))
    list(run_items(engine, range(2, 6), requests_of))
    lengths = [len(context) for item in range(2, 6) for context, _ in requests_of(item)]
    # Less than all contexts but their last tokens: the second side of an item computes nothing of it anew.
    assert engine.stats.counts.num_prefilled_tokens <= sum(lengths) // 2


def test_a_failure_gives_the_engine_back_empty(decoder):
    engine = Engine(decoder, tokenizer(), EngineConfig(max_rows=5))

    def fails(item):
        if item == 2:
            raise ValueError("item 2 is too long")
        return requests_of(item)

    with pytest.raises(ValueError, match="item 2 is too long"):
        list(run_items(engine, range(4), fails))
    assert not engine.has_work
