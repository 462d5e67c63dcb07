"""What the engine works on: requests and their samples; and what a forward pass is made of.

Samples advance by a token; contexts, and samples whose pages were taken away, are filled in chunk by chunk.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rollout.params import Completion, SamplingParams
from rollout.prefix_tree import Node


class Sample:
    """One completion in the making. Its own tokens are the context's last one and those sampled."""

    __slots__ = (
        "completion", "drawn_logprobs", "entropies", "first_block", "grammar_state", "index", "logprobs",
        "num_computed", "num_covered", "own_start", "pages", "request", "row", "token_ids",
    )  # fmt: skip

    def __init__(self, request: Request, index: int) -> None:
        self.request, self.index = request, index
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.drawn_logprobs: list[float] = []
        self.entropies: list[float] = []
        self.grammar_state = 0
        self.completion: Completion | None = None  # when it has ended
        self.row = -1  # of the block table, while it runs
        self.first_block = 0  # the table's first entry is that block of positions
        self.pages: list[int] = []  # from page number own_start // page_size on
        self.own_start = len(request.context) - 1  # position of the context's last token
        self.num_computed = 0  # own tokens whose keys and values are there
        self.num_covered = 0  # own tokens for which there are pages, its own alone

    @property
    def num_own(self) -> int:
        return 1 + len(self.token_ids)

    def own(self, start: int, end: int) -> list[int]:
        own = self.token_ids[max(0, start - 1) : end - 1]
        return own if start else [self.request.context[-1], *own]

    @property
    def age(self) -> tuple[int, int]:
        return self.request.number, self.index


class Request:
    """n samples of a context. `completions` is there when `is_finished`."""

    def __init__(self, number: int, context: list[int], params: SamplingParams) -> None:
        self.number, self.context, self.params = number, context, params
        self.samples = [Sample(self, index) for index in range(params.n)]
        self.waiting = deque(self.samples)  # not running and not ended
        self.node: Node | None = None  # the end of its context, while it is admitted
        self.num_open = params.n  # samples that have not ended
        self.is_cancelled = False

    @property
    def is_finished(self) -> bool:
        return not self.num_open

    @property
    def completions(self) -> list[Completion]:
        return [sample.completion for sample in self.samples]


@dataclass(slots=True)
class Chunk:
    """Tokens at consecutive positions, and the pages from position 0 to their end."""

    holder: Node | Sample
    tokens: list[int]
    start: int
    table: list[int]


@dataclass(slots=True)
class Step:
    """One forward pass. Rows run one token each and draw the next; so do chunks that end with a sample's last token."""

    rows: list[Sample] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    # Pages to copy before anything is written, by where to: one that a sample took and gave back with its place in the
    # step is another's now.
    copies: dict[int, int] = field(default_factory=dict)
    # Of a step that is launched before the one before it has been read (`Scheduler.plan_ahead`): the rows' places in
    # that one. Its draws are their inputs, and are known on the device alone.
    places: list[int] = field(default_factory=list)

    @property
    def ahead(self) -> int:
        """Tokens of each row that are drawn but not yet its own, when the step is launched."""
        return int(bool(self.places))

    @property
    def is_wanted(self) -> bool:
        """Whether any of its rows is of a sample that has not ended and was not cancelled since."""
        return any(sample.row >= 0 for sample in self.rows)

    @property
    def num_tokens(self) -> int:
        return len(self.rows) + sum(len(chunk.tokens) for chunk in self.chunks)
