"""Processes that start together find one another, whatever those before them left in the store."""

import random
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from trainer.incarnation import store_of_this_start

SOON = timedelta(seconds=20)


def start(store, size, rng, absent=()):
    """One start of `size` ranks in any order, some of which never come; the stores of those that agreed, by rank."""
    found, threads = {}, []

    def join(rank, delay_s):
        time.sleep(delay_s)
        try:
            found[rank] = store_of_this_start(store, rank, size, timedelta(seconds=0.2) if absent else SOON)
        except RuntimeError:
            assert absent

    for rank in rng.sample(range(size), size):
        if rank not in absent:
            threads.append(threading.Thread(target=join, args=(rank, rng.random() * 0.05)))
            threads[-1].start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("seed", range(4))
def test_every_start_has_a_store_of_its_own(seed):
    """Between whole starts come others in which ranks are missing: what these leave behind misleads nobody."""
    rng, store, size = random.Random(seed), dist.HashStore(), 2 + seed % 3
    for number in range(6):
        if number % 2:
            start(store, size, rng, absent=rng.sample(range(size), rng.randrange(1, size)))
        else:
            found = start(store, size, rng)
            assert sorted(found) == list(range(size))
            for one in found.values():
                assert not one.check(["address"])  # of an earlier start
            found[size - 1].set("address", f"of start {number}")
            assert {one.get("address") for one in found.values()} == {f"of start {number}".encode()}


def test_a_rank_that_never_comes_is_named():
    with pytest.raises(RuntimeError, match=r"ranks \[1, 2\] of 3 did not start within 0:00:00.1"):
        store_of_this_start(dist.HashStore(), 0, 3, timedelta(seconds=0.1))


def test_a_rank_alone_asks_nobody():
    store_of_this_start(dist.HashStore(), 0, 1).set("address", "here")
