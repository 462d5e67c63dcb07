"""Work that several processes share: handed out longest first, to whoever has rows for it.

All processes hold the same list of items in the same order, so an item is named by its place in it, its ticket, and
what they share is one number: how many tickets are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from rollout.engine import Engine
from rollout.params import Completion, SamplingParams

Requests = Sequence[tuple[list[int], SamplingParams]]  # (context, params) of each


class Counters(Protocol):
    """What is needed of a torch.distributed.Store. `add` is atomic and returns the sum; a new key has 0."""

    def add(self, key: str, amount: int) -> int: ...

    def delete_key(self, key: str) -> bool: ...


def longest_first(costs: Sequence[float]) -> list[int]:
    """Indices by falling cost, equal ones in their order: what takes long does not begin when others are done."""
    return sorted(range(len(costs)), key=lambda index: (-costs[index], index))


class WorkQueue:
    """One process's end of a queue; iterating takes items, each of which goes to one process.

    The first items are dealt, `num_dealt` to each process, like cards there and back: as many as it can run at once.
    If these too went to whoever asks first, the first process that asks could take more than its part of a list that
    fits in the rows of all of them, and the last would find nothing. All others are taken one by one.

    Args:
        store: reached by all processes.
        key: of this queue alone; no other one has had it.
        order: items, the same on all processes, first to go first.
        num_dealt: per process.
    """

    def __init__(
        self, store: Counters, key: str, order: Sequence[int], rank: int, num_ranks: int, num_dealt: int
    ) -> None:
        self._store, self._key, self._order = store, key, order
        self._num_dealt = min(num_dealt * num_ranks, len(order))
        turns = (turn * num_ranks + (num_ranks - 1 - rank if turn % 2 else rank) for turn in range(num_dealt))
        self._dealt = [ticket for ticket in turns if ticket < len(order)]

    def __iter__(self) -> Iterator[int]:
        for ticket in self._dealt:
            yield self._order[ticket]
        while (ticket := self._take(1)) < len(self._order):
            yield self._order[ticket]

    def close(self) -> None:
        """Nobody takes another item: this process has failed."""
        self._take(len(self._order))

    def remove(self) -> None:
        """Leaves nothing in the store; by one process, when all have been told that there is nothing left."""
        self._store.delete_key(self._key)

    def _take(self, count: int) -> int:
        if self._num_dealt == len(self._order):
            return len(self._order)  # all are dealt, which everyone knows
        return self._num_dealt + self._store.add(self._key, count) - count


def run_items(
    engine: Engine, items: Iterable[int], requests_of: Callable[[int], Requests]
) -> Iterator[tuple[int, list[list[Completion]]]]:
    """Yields (item, completions of each of its requests) when all of them are finished, in any order.

    An item is asked for when the engine has rows for it, and its requests follow one another, so that what their
    contexts share is computed once.
    """
    owners: list[tuple[int, int]] = []  # (item, place in it) by number in the stream
    finished: dict[int, list[list[Completion] | None]] = {}

    def requests() -> Iterator[tuple[list[int], SamplingParams]]:
        for item in items:
            of_item = requests_of(item)
            finished[item] = [None] * len(of_item)
            owners.extend((item, place) for place in range(len(of_item)))
            yield from of_item

    for number, completions in engine.stream(requests()):
        item, place = owners[number]
        finished[item][place] = completions
        if None not in finished[item]:
            yield item, finished.pop(item)
