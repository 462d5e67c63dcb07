"""Every start of a job's processes gets a part of the store to itself.

torchrun keeps one store through its restarts, with all that earlier processes left there: a process that looks for
its peers may find addresses of the dead. Nothing that torchrun tells its processes is new with each start and the same
on every node: a node that was not to blame restarts without counting it. So the processes agree by asking:

    rank r > 0   writes a random name of its own, and waits for the answer to this name
    rank 0       answers every name that it finds with one random name, that of this start, until all have confirmed it

An answer is filed under the name that asks, a confirmation under the name that is confirmed: no process that went
before can have written either. (torchrun starts no process before those of the last start are gone.)
"""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist
from torch.distributed.distributed_c10d import default_pg_timeout

POLL_S = 0.02  # of rank 0, while others start


def store_of_this_start(store: dist.Store, rank: int, size: int, timeout: timedelta = default_pg_timeout) -> dist.Store:
    """The same part of the store on all ranks, which holds nothing yet.

    Raises:
        RuntimeError: not all of them are there in time.
    """
    meeting, own = dist.PrefixStore("start", store), uuid4().hex
    if rank:
        meeting.set(f"asks/{rank}", own)
        meeting.wait([f"answer/{own}"], timeout)
        start = meeting.get(f"answer/{own}").decode()
        meeting.set(f"confirms/{start}/{rank}", own)
    else:
        start = own
        _answer_all(meeting, start, size, timeout)
    return dist.PrefixStore(start, store)


def _answer_all(meeting: dist.Store, start: str, size: int, timeout: timedelta) -> None:
    """A name may be an old one, whose process never confirms; the answer to it is read by nobody."""
    deadline = time.monotonic() + timeout.total_seconds()
    answered: set[str] = set()
    waited_for = set(range(1, size))
    while True:
        for rank in sorted(waited_for):
            if meeting.check([f"asks/{rank}"]) and (name := meeting.get(f"asks/{rank}").decode()) not in answered:
                meeting.set(f"answer/{name}", start)
                answered.add(name)
        waited_for = {rank for rank in waited_for if not meeting.check([f"confirms/{start}/{rank}"])}
        if not waited_for:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {sorted(waited_for)} of {size} did not start within {timeout}")
        time.sleep(POLL_S)
