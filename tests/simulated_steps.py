"""A scheduler's steps without a model: what would lie on each page, and whether each token finds its past there.

T tokens of a step   P slots of a page
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from rollout.pages import PagePool
from rollout.params import Completion, SamplingParams
from rollout.prefix_tree import Node
from rollout.scheduler import Scheduler
from rollout.steps import Request, Sample, Step

NOTHING = -1  # on a slot
_NO_NUMBERS = np.zeros(0, dtype=np.float32)

# (step, page_T, slot_T, of each token the numbers of the prefixes up to it)
Forward = Callable[[Step, list[int], list[int], list[list[int]]], None]


class Prefixes:
    """Numbers of token sequences: keys of a token depend on all that comes before it, and on nothing else."""

    def __init__(self) -> None:
        self._number: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._number)

    def of(self, tokens: Sequence[int]) -> list[int]:
        """The number of tokens[: i + 1] for each i."""
        numbers, last = [], -1
        for token in tokens:
            last = self._number.setdefault((last, token), len(self._number))
            numbers.append(last)
        return numbers


def drawn_token(sample: Sample, ahead: int = 0) -> int:
    """Depends on what the noise of a sample depends on. 0 ends a completion."""
    return hash((sample.request.params.seed, sample.index, len(sample.token_ids) + ahead)) % 40


class Simulation:
    """Runs steps and keeps, for every slot of every page, the number of the prefix whose keys were written there.

    Each token's past is looked up on the pages that it reads, and after every event the books are audited.

    Args:
        forward: called in the place of a model.
        look_ahead: run a step that can be planned ahead before the one before it is read.
    """

    def __init__(
        self, scheduler: Scheduler, prefixes: Prefixes | None = None, forward: Forward | None = None,
        look_ahead: bool = False,
    ) -> None:  # fmt: skip
        self.scheduler, self.forward, self.look_ahead = scheduler, forward, look_ahead
        self.running: tuple[Step, list[int]] | None = None  # ahead, and what it draws
        self.prefixes = Prefixes() if prefixes is None else prefixes
        self.slots = np.full((scheduler.pool.num_pages, scheduler.pool.page_size), NOTHING)
        self.open: list[Request] = []  # submitted, neither finished nor cancelled
        self.events: Counter[str] = Counter()

    def submit(self, context: Sequence[int], **params) -> Request:
        request = self.scheduler.submit(list(context), SamplingParams(**params))
        self.open.append(request)
        self._after("submit")
        return request

    def cancel(self, request: Request) -> None:
        self.scheduler.cancel(request)
        self.open.remove(request)
        self._after("cancel")

    def forget(self) -> None:
        self.running = None
        self.scheduler.forget()
        assert self.scheduler.pool.num_free == self.scheduler.pool.num_pages - 1
        self._after("forget")

    def fail(self) -> None:
        """A step that is planned and then comes to nothing."""
        if self.running is None:
            self._plan()
        self.running = None
        self.scheduler.forget()
        self._after("fail")

    def finish(self, max_steps: int = 10_000) -> None:
        """Steps until all is done."""
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                assert not self.open
                return
            self.step()
        raise AssertionError(f"{len(self.open)} requests are not finished after {max_steps} steps")

    def step(self) -> list[Request]:
        """Returns the requests that it finished."""
        scheduler, running = self.scheduler, self.running
        is_wanted = running is not None and running[0].is_wanted
        step, tokens = running if is_wanted else self._run(self._plan(), [])
        following = scheduler.plan_ahead(step) if self.look_ahead else None
        self.running = None if following is None else self._run(following, tokens)
        self.events["ahead"] += following is not None
        finished = []
        for sample, token in zip(scheduler.commit(step), tokens, strict=True):
            if sample.row < 0:
                self.events["void"] += 1
                continue
            sample.token_ids.append(token)
            is_over = token == 0 or len(sample.token_ids) == sample.request.params.max_tokens
            if is_over and scheduler.end(sample, Completion(sample.token_ids, "", *[_NO_NUMBERS] * 3)):
                finished.append(sample.request)
                self.open.remove(sample.request)
                self.events["finish"] += 1
        self._after("step")
        return finished

    def _run(self, step: Step, before: list[int]) -> tuple[Step, list[int]]:
        """(the step, what it draws), from what the step before it draws if it was planned ahead."""
        targets, sources = list(step.copies), list(step.copies.values())
        assert 0 not in sources + targets
        self.slots[targets] = self.slots[sources]
        self._write(step, [before[place] for place in step.places])
        filled_in = [(chunk.holder, len(chunk.tokens)) for chunk in step.chunks if isinstance(chunk.holder, Sample)]
        complete = [sample for sample, num in filled_in if sample.num_computed + num == sample.num_own]
        return step, [drawn_token(sample, step.ahead) for sample in [*step.rows, *complete]]

    def _plan(self) -> Step:
        """The next step, within its budgets; the oldest sample goes on."""
        scheduler = self.scheduler
        had_work, oldest, alone = scheduler.has_work, scheduler.running[:1], scheduler._alone
        num_before = scheduler.counts.num_preemptions
        step = scheduler.plan()
        self.events["preempt"] += scheduler.counts.num_preemptions - num_before
        assert bool(step.num_tokens) == had_work
        assert step.num_tokens <= scheduler.max_step_tokens
        assert len(scheduler.running) <= scheduler.max_rows
        if scheduler._alone is not None and scheduler._alone is not alone:
            self.events["start over"] += 1
            assert scheduler.admitted == [scheduler._alone] == self.open[:1]
        else:
            assert all(sample.row >= 0 for sample in oldest), "the oldest sample gave way"
        return step

    def _write(self, step: Step, new: list[int]) -> None:
        """Writes all of a step's tokens, then looks at what each of them reads: the order of a layer's attention.

        Args:
            new: of each row of a step that was planned ahead, the token that its sample does not have yet.
        """
        P = self.scheduler.pool.page_size
        writer: dict[int, Node | Sample] = {}
        page_T, slot_T, past_T, readings = [], [], [], []
        for index, (holder, start, num, table) in enumerate(self._parts(step)):
            tokens = tokens_to(holder, start + num) + new[index : index + 1]
            assert len(tokens) == start + num
            numbers = self.prefixes.of(tokens)
            for position in range(start, start + num):
                page = table[position // P]
                assert writer.setdefault(page, holder) is holder, "two holders write to a page"
                assert page != 0 and self.scheduler.pool._count[page] == 1, "a page that others read is written to"
                self.slots[page, position % P] = numbers[position]
                page_T.append(page)
                slot_T.append(position % P)
                past_T.append(numbers[: position + 1])
            readings.append((table, numbers))
        for table, numbers in readings:
            assert self.slots[table].reshape(-1)[: len(numbers)].tolist() == numbers, "keys of another text"
        if self.forward is not None and page_T:
            self.forward(step, page_T, slot_T, past_T)

    def _parts(self, step: Step) -> list[tuple[Node | Sample, int, int, list[int]]]:
        """(holder, first position, tokens, pages from position 0 on) as rows and chunks are read."""
        scheduler, parts = self.scheduler, []
        P = scheduler.pool.page_size
        for sample in step.rows:
            position = sample.own_start + sample.num_computed + step.ahead
            num_shared = sample.first_block * scheduler.block_size // P
            own = scheduler.tables[sample.row, : position // P + 1 - num_shared]
            parts.append((sample, position, 1, sample.request.node.table(P)[:num_shared] + own.tolist()))
        return parts + [(chunk.holder, chunk.start, len(chunk.tokens), chunk.table) for chunk in step.chunks]

    def _after(self, event: str) -> None:
        self.events[event] += 1
        self._audit_pages()
        self._audit_tree()
        self._audit_requests()

    def _audit_pages(self) -> None:
        """Every page is free or held, as often as is counted, and holds what was computed."""
        pool, P = self.scheduler.pool, self.scheduler.pool.page_size
        holders = list(self.scheduler.holders())
        held = Counter(page for holder in holders for page in holder.pages)
        free = [page for page in range(1, pool.num_pages) if not held[page]]
        assert pool._count == [held[page] for page in range(pool.num_pages)] and not held[0]
        assert pool.num_free == len(free)
        for holder in holders:
            start = holder.own_start if isinstance(holder, Sample) else holder.start
            if holder.num_computed:
                found = self.slots[holder.pages].reshape(-1)[start % P :][: holder.num_computed]
                assert found.tolist() == self.prefixes.of(tokens_to(holder, start + holder.num_computed))[start:]
        self.slots[free] = NOTHING  # it may be overwritten: nobody may count on it

    def _audit_tree(self) -> None:
        tree, admitted = self.scheduler.tree, self.scheduler.admitted
        users = Counter(id(node) for request in admitted for node in request.node.path())
        assert all(node.num_users == users[id(node)] for node in tree)
        assert tree.num_idle_pages == sum(len(node.pages) for node in tree if not node.num_users)
        assert all(tokens_to(request.node, len(request.context)) == request.context[:-1] for request in admitted)
        for node in [tree.root, *tree]:
            assert all(child.tokens[0] == first and child.parent is node for first, child in node.children.items())
            assert all(child.start == node.end for child in node.children.values())
            assert node.is_complete or not any(child.num_computed for child in node.children.values())

    def _audit_requests(self) -> None:
        scheduler = self.scheduler
        running = scheduler.running
        rows = [sample.row for sample in running] + scheduler._free_rows
        assert sorted(rows) == list(range(scheduler.max_rows))
        assert all(a.age < b.age for a, b in pairwise(running))
        # The oldest are in, the others wait, all in order of arrival.
        assert [*scheduler.admitted, *scheduler.waiting] == self.open
        for request in self.open:
            ended = [sample for sample in request.samples if sample.completion is not None]
            ran = [sample for sample in running if sample.request is request]
            assert sorted([*ended, *ran, *request.waiting], key=lambda s: s.index) == request.samples
            assert request.num_open == request.params.n - len(ended)


def tokens_to(holder: Node | Sample, end: int) -> list[int]:
    """What a holder's tokens come after, and they themselves, to position `end`."""
    if isinstance(holder, Sample):
        return (holder.request.context + holder.token_ids)[:end]
    return [token for node in holder.path() for token in node.tokens][:end]


def make_scheduler(
    num_pages: int, page_size: int = 8, max_rows: int = 8, max_step_tokens: int = 64, block_size: int | None = None
) -> Scheduler:
    return Scheduler(PagePool(num_pages, page_size), max_rows, max_step_tokens, block_size or page_size, 512)


def shared_context(rng: np.random.Generator, max_length: int, num_trunks: int = 3) -> list[int]:
    """A trunk of several others, cut anywhere, and a few tokens of its own."""
    trunk = np.random.default_rng(rng.integers(num_trunks)).integers(1, 40, max_length)
    length = rng.integers(1, max_length + 1)
    num_shared = rng.integers(0, length + 1)
    return [*trunk[:num_shared].tolist(), *rng.integers(1, 4, length - num_shared).tolist()]
