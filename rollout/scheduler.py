"""What the next forward pass computes: which samples advance by a token, and which parts of which contexts are filled
in. No tensors here: requests, pages and numbers.

A context less its last token is a path of the prefix tree, computed once, in chunks. A sample starts with that last
token as its first input, so that its every step is the same: run one token, draw the next one. A sample whose pages
were taken away (preemption, or new weights) has its tokens computed again, in chunks like a context, and goes on.

Requests are served in order of arrival. When pages run out, contexts that nobody uses are dropped first, then the
youngest samples give way: the oldest request always goes on.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rollout.pages import PagePool
from rollout.params import Completion, SamplingParams
from rollout.prefix_tree import Node, PrefixTree
from rollout.steps import Chunk, Request, Sample, Step


@dataclass(slots=True)
class Counts:
    """Since the engine was made."""

    num_requests: int = 0
    num_context_tokens: int = 0  # of all requests, whether computed or found in the tree
    num_prefilled_tokens: int = 0  # of contexts, computed
    num_decoded_tokens: int = 0
    num_recomputed_tokens: int = 0  # of samples whose pages were taken away
    num_preemptions: int = 0
    num_steps: int = 0


class Scheduler:
    """
    Args:
        max_rows: samples that run at the same time.
        max_step_tokens: of a forward pass; what samples leave of it goes to contexts.
        block_size: positions of a context are shared by the samples in whole blocks of this many, a multiple of the
            page size; the rest of it is read by each sample beside its own tokens.
        max_positions: the longest context with its completion.
    """

    def __init__(
        self, pool: PagePool, max_rows: int, max_step_tokens: int, block_size: int, max_positions: int
    ) -> None:
        self.pool, self.tree = pool, PrefixTree(pool)
        self.max_rows, self.max_step_tokens, self.block_size = max_rows, max(max_step_tokens, max_rows), block_size
        self.counts = Counts()
        self.waiting: deque[Request] = deque()
        self.admitted: list[Request] = []  # by number
        self.running: list[Sample] = []  # by age
        # Pages of a sample from its first block on. Room for a block of context that is not shared.
        self.tables = np.zeros((max_rows, pool.num_for(max_positions + block_size)), dtype=np.int64)
        self._free_rows = list(range(max_rows - 1, -1, -1))
        self._number = 0
        self._alone: Request | None = None  # see `_start_over`

    def submit(self, context: list[int], params: SamplingParams) -> Request:
        """Raises ValueError if not even one sample of it has room."""
        # A page may be needed twice where a run of tokens ends within it.
        needed = self.pool.num_for(len(context) - 1) + self.pool.num_for(params.max_tokens) + 1
        if needed > self.pool.num_pages - 1:
            raise ValueError(
                f"a context of {len(context)} tokens and {params.max_tokens} more need {needed} pages of "
                f"{self.pool.page_size} tokens; the cache has {self.pool.num_pages - 1}"
            )
        request = Request(self._number, context, params)
        self._number += 1
        self.waiting.append(request)
        self.counts.num_requests += 1
        self.counts.num_context_tokens += len(context)
        return request

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.admitted)

    @property
    def wants_more(self) -> bool:
        """Whether there are rows for more samples than those of the requests that are here."""
        return sum(request.num_open for request in (*self.admitted, *self.waiting)) < self.max_rows

    def plan(self) -> Step:
        """The next step, its pages taken. Without tokens only if there is no work."""
        while True:
            self._admit()
            self._start_samples()
            step = Step()
            budget = self._plan_samples(step)
            self._plan_contexts(step, budget)
            if step.num_tokens or not self.has_work:
                self.counts.num_steps += 1
                return step
            self._start_over()

    def plan_ahead(self, step: Step) -> Step | None:
        """What follows a running step of rows alone, before it is known what that draws: the same rows, one position
        on, their pages taken. None if the next step may be another one, or would take pages from a sample.

        Rows that end with this step's tokens for certain are left out. Another may end by what it draws: then its next
        row is run for nothing, and writes to pages that were the sample's alone. Whoever has them afterwards writes
        them later, and reads nothing that it has not written.
        """
        live = [(place, sample) for place, sample in enumerate(step.rows) if sample.row >= 0]
        if step.chunks or len(live) < len(self.running) or not self._is_settled:
            return None
        live = [(place, s) for place, s in live if len(s.token_ids) + 1 < s.request.params.max_tokens]
        uncovered = [sample for _, sample in live if sample.num_computed + 1 == sample.num_covered]
        while self.pool.num_free < len(uncovered):
            if not self.tree.evict():
                return None
        if not live:
            return None
        following = Step(rows=[sample for _, sample in live], places=[place for place, _ in live])
        for sample in uncovered:
            start = sample.own_start + sample.num_computed + 1
            is_covered = self._cover_sample(following, sample, start, start + 1)
            assert is_covered and not following.copies, "a page that was free is not, or is somebody else's"
        self.counts.num_steps += 1
        return following

    def commit(self, step: Step) -> list[Sample]:
        """Notes what a step has computed. Returns the samples that draw a token, rows first; one that has ended or was
        cancelled since the step was launched has no row any more, and its draw is void."""
        counts, drawing = self.counts, list(step.rows)
        for sample in step.rows:
            sample.num_computed += sample.row >= 0
        for chunk in step.chunks:
            holder = chunk.holder
            holder.num_computed += len(chunk.tokens)
            if isinstance(holder, Node):
                counts.num_prefilled_tokens += len(chunk.tokens)
            else:
                counts.num_recomputed_tokens += len(chunk.tokens)
                if holder.num_computed == holder.num_own:
                    drawing.append(holder)
        counts.num_decoded_tokens += sum(sample.row >= 0 for sample in drawing)
        return drawing

    def end(self, sample: Sample, completion: Completion) -> bool:
        """Frees what a sample held; True if its request is finished now."""
        sample.completion = completion
        self._stop(sample)
        request = sample.request
        request.num_open -= 1
        if request.is_finished:
            self._leave(request)
        return request.is_finished

    def cancel(self, request: Request) -> None:
        """Forgets a request and frees its pages."""
        if request.is_finished or request.is_cancelled:
            return
        request.is_cancelled = True
        for sample in [sample for sample in self.running if sample.request is request]:
            self._stop(sample)
        self._leave(request)

    def forget(self) -> None:
        """Drops all keys and values: the weights have changed, or their memory is gone. Samples keep their tokens."""
        for sample in self.running[::-1]:
            self._preempt(sample)
        for request in reversed(self.admitted):
            self.tree.leave(request.node)
            request.node = None
            self.waiting.appendleft(request)
        self.admitted.clear()
        self.tree.clear()

    # Admission

    def _admit(self) -> None:
        while self._can_admit:
            request = self.waiting.popleft()
            request.node = self.tree.use(request.context[:-1])
            insort(self.admitted, request, key=lambda request: request.number)

    @property
    def _can_admit(self) -> bool:
        """Whether there are rows for a sample of the next request, and pages for its context."""
        if not self.waiting or sum(request.num_open for request in self.admitted) >= self.max_rows:
            return False
        if not self.admitted:
            return True
        if self._alone is not None:
            return False
        path = self.waiting[0].context[:-1]
        return self.pool.num_for(len(path) - self.tree.match(path)) + 2 <= self._num_available()

    def _start_samples(self) -> None:
        for sample in self._startable():
            sample.request.waiting.popleft()
            self._start(sample)

    def _startable(self) -> Iterator[Sample]:
        """Samples with a row and pages to start on, each if those before it have been started."""
        for request in self.admitted:
            if not request.node.is_complete:
                return  # younger ones could take its rows, pages and tokens of a step for good
            while request.waiting and self._free_rows:
                sample = request.waiting[0]
                if self.running and self.pool.num_for(sample.num_own) + 1 > self._num_available():
                    return
                yield sample

    @property
    def _is_settled(self) -> bool:
        """Whether nothing but the running samples goes on, as long as none of them ends."""
        is_filled = all(request.node.is_complete for request in self.admitted)
        return is_filled and not self._can_admit and next(self._startable(), None) is None

    def _start(self, sample: Sample) -> None:
        P, node = self.pool.page_size, sample.request.node
        sample.row = self._free_rows.pop()
        sample.first_block = sample.own_start // self.block_size
        first, last = sample.first_block * self.block_size // P, sample.own_start // P
        table = node.table(P)
        self.tables[sample.row, : len(table) - first] = table[first:]
        if sample.own_start % P:
            sample.pages.append(self.pool.hold(table[last]))  # copied when it is written to
        insort(self.running, sample, key=lambda sample: sample.age)

    # Planning

    def _plan_samples(self, step: Step) -> int:
        """Returns how many tokens are left for contexts."""
        budget = self.max_step_tokens - len(self.running)
        for sample in list(self.running):
            if sample.row < 0:
                continue  # gave way to an older one just now
            if sample.num_computed == len(sample.token_ids) < sample.num_covered:
                step.rows.append(sample)  # as below, for most of the samples of most steps
                continue
            num_new = min(sample.num_own - sample.num_computed, 1 + budget)
            start = sample.own_start + sample.num_computed
            if not self._cover_sample(step, sample, start, start + num_new):
                self._preempt(sample)
            elif num_new == 1 and sample.num_computed + 1 == sample.num_own:
                step.rows.append(sample)
            else:
                budget -= num_new - 1
                tokens = sample.own(sample.num_computed, sample.num_computed + num_new)
                table = sample.request.node.table(self.pool.page_size)
                table[sample.own_start // self.pool.page_size :] = sample.pages
                step.chunks.append(Chunk(sample, tokens, start, table))
        return budget

    def _plan_contexts(self, step: Step, budget: int) -> None:
        P, number = self.pool.page_size, self.counts.num_steps
        for request in list(self.admitted):
            if budget <= 0:
                return
            if request.node is None:
                continue  # gave way to an older one just now
            node = next((node for node in request.node.path() if not node.is_complete), None)
            if node is None or node.planned == number:
                continue
            num_new = min(budget, len(node.tokens) - node.num_computed)
            start = node.start + node.num_computed
            if not self._cover_node(step, request, node, start, start + num_new):
                return
            node.planned = number
            budget -= num_new
            tokens = node.tokens[node.num_computed : node.num_computed + num_new]
            step.chunks.append(Chunk(node, tokens, start, node.table(P)))

    def _start_over(self) -> None:
        """Nothing fits although only the oldest request is in: its path is in pieces, and where they meet a page is
        needed twice. In one piece, and as long as no other request cuts it, it fits (`submit`)."""
        assert self.admitted and not self.running and self._alone is None, "work, but no progress"
        self._alone = self.admitted[0]
        self.forget()

    def _cover_sample(self, step: Step, sample: Sample, start: int, end: int) -> bool:
        P = self.pool.page_size
        first, column = sample.own_start // P, sample.first_block * self.block_size // P
        for number in range(start // P, -(-end // P)):
            if self._make_writable(step, sample, number - first, sample.request, sample) is False:
                return False
            self.tables[sample.row, number - column] = sample.pages[number - first]
        sample.num_covered = -(-end // P) * P - sample.own_start
        return True

    def _cover_node(self, step: Step, request: Request, node: Node, start: int, end: int) -> bool:
        P = self.pool.page_size
        if not node.pages and node.start % P:
            node.pages.append(self.pool.hold(node.parent.table(P)[node.start // P]))
        first = node.start // P
        return all(
            self._make_writable(step, node, number - first, request, None) for number in range(start // P, -(-end // P))
        )

    def _make_writable(
        self, step: Step, holder: Node | Sample, index: int, request: Request, sample: Sample | None
    ) -> bool:
        """Sees to it that page `index` of a holder is there and is its own."""
        if index < len(holder.pages) and not self.pool.is_shared(holder.pages[index]):
            return True
        if not self._make_room(request, sample):
            return False
        page = self.pool.take(is_context=isinstance(holder, Node))
        if index == len(holder.pages):
            holder.pages.append(page)
        else:
            step.copies[page] = holder.pages[index]
            self.pool.release(holder.pages[index])
            holder.pages[index] = page
        return True

    def _make_room(self, request: Request, sample: Sample | None) -> bool:
        """A free page, at the cost of contexts that nobody uses, then of what is younger than the claimant."""
        while not self.pool.num_free:
            if self.tree.evict():
                continue
            youngest = self.admitted[-1]
            runs = bool(self.running) and self.running[-1].request is youngest
            if runs and sample is not None and self.running[-1].age > sample.age:
                self._preempt(self.running[-1])
            elif not runs and youngest.number > request.number:
                self._send_back(youngest)
            else:
                return False
        return True

    def _num_available(self) -> int:
        return self.pool.num_free + self.tree.num_idle_pages

    # Leaving

    def _stop(self, sample: Sample) -> None:
        """Takes a running sample off its row, with its pages."""
        for page in sample.pages:
            self.pool.release(page)
        sample.pages = []
        sample.num_computed = sample.num_covered = 0
        self._free_rows.append(sample.row)
        sample.row = -1
        self.running.remove(sample)

    def _preempt(self, sample: Sample) -> None:
        self._stop(sample)
        sample.request.waiting.appendleft(sample)
        self.counts.num_preemptions += 1

    def _send_back(self, request: Request) -> None:
        """An admitted request without running samples waits again."""
        self._dismiss(request)
        self.waiting.appendleft(request)

    def _leave(self, request: Request) -> None:
        """It is finished or cancelled, and does not come back."""
        if self._alone is request:
            self._alone = None
        if request.node is None:
            self.waiting.remove(request)
        else:
            self._dismiss(request)

    def _dismiss(self, request: Request) -> None:
        self.admitted.remove(request)
        self.tree.leave(request.node)
        request.node = None

    def holders(self) -> Iterator[Node | Sample]:
        """Everything that holds pages, for tests."""
        yield from self.tree
        yield from self.running
