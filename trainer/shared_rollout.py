"""Judgments of pairs, drawn by all ranks from one queue.

A pair goes to the rank that first has rows for it, the longest first (`rollout.work_queue`). The only collectives are
one before the first pair, and those after the last: a rank without work waits there for the others, and nowhere else.
A side's noise is named, and never depends on where it is drawn; so on a CPU in float32 which rank took what leaves no
trace but the times. (Elsewhere it changes a draw's company, and by that its rounding.)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tqdm import tqdm

from eval.pair_accuracy import PairSampling
from patarm_core.pairs import Pair
from rollout.contexts import ContextBuilder
from rollout.engine import Engine
from rollout.packing import PackedCompletions
from rollout.params import Completion, SamplingParams
from rollout.work_queue import WorkQueue, longest_first, run_items
from trainer.distributed import World
from trainer.mistakes import PATIENCE_S
from trainer.token_tree import Leaf

Sides = list[list[Completion]]  # n of the chosen and n of the rejected response; pairwise n of both
Contexts = tuple[list[int], ...]  # of each side, or one with both
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Drawn(Generic[T]):
    """What this rank made of the pairs that it took."""

    of_pair: dict[int, T]  # by index
    contexts: dict[int, Contexts]  # of these pairs
    tokens: Counter[str]  # sampled, by task
    completions: Counter[str]
    seconds: float
    queue: WorkQueue | None


class SharedRollout:
    """Makes every rank's part of the judgments of pairs; all ranks call the same methods with the same pairs."""

    def __init__(self, contexts: ContextBuilder, world: World) -> None:
        self.contexts, self.world = contexts, world
        self._num_queues = 0
        self._tokens: Counter[str] = Counter()  # of all completions so far, on all ranks, by task
        self._completions: Counter[str] = Counter()

    def state_dict(self) -> dict:
        """What later orders of pairs depend on (trainer/checkpoint.py: `Stateful`)."""
        return {"tokens": dict(self._tokens), "completions": dict(self._completions)}

    def load_state_dict(self, state: dict) -> None:
        self._tokens, self._completions = Counter(state["tokens"]), Counter(state["completions"])

    def draw(
        self,
        engine: Engine,
        pairs: Sequence[Pair],
        sampling: PairSampling,
        keep: Callable[[Pair, Sides], T],
        progress: str = "",
    ) -> Drawn[T]:
        """Takes pairs until there are none left, and keeps of each what `keep` makes of its completions."""
        world, start = self.world, time.perf_counter()
        contexts = [sampling.contexts(self.contexts, pair) for pair in world.share(list(pairs))]
        own = dict(zip(world.share(list(range(len(pairs)))), contexts, strict=True))
        order, queue = self._order(pairs, contexts, sampling), None
        if world.size > 1:
            num_dealt = -(-engine.config.max_rows // sampling.num_judgments)  # pairs that fill the rows
            key = f"pairs/{self._num_queues}"
            queue = WorkQueue(world.store, key, order, world.rank, world.size, num_dealt)
            self._num_queues += 1
        of_pair, tokens, completions = {}, Counter(), Counter()
        drawn_contexts: dict[int, Contexts] = {}

        def requests(i: int) -> list[tuple[list[int], SamplingParams]]:
            drawn_contexts[i] = own[i] if i in own else sampling.contexts(self.contexts, pairs[i])
            return sampling.requests(pairs[i], drawn_contexts[i])

        # Of several ranks one shows a bar, of its even share.
        total = -(-len(pairs) // world.size) * sampling.num_judgments
        try:
            with tqdm(total=total, desc=progress, unit="completion", disable=not (progress and world.is_main)) as bar:
                for i, sides in run_items(engine, order if queue is None else queue, requests):
                    of_pair[i] = keep(pairs[i], sides)
                    tokens[pairs[i].task] += sum(len(c.token_ids) for side in sides for c in side)
                    completions[pairs[i].task] += sampling.num_judgments
                    bar.update(sampling.num_judgments)
                    if world.stop.is_requested and world.stop.on_pause is not None:
                        if queue is not None:
                            queue.close()  # nobody begins another pair; `wait` leaves
                        break
        except BaseException:
            if queue is not None:
                queue.close()  # the job is about to end; nobody begins another pair
            raise
        if world.device.type == "cuda":
            engine.release_memory()  # keys and values would be in an update's way; on a CPU they lie in memory at hand
        return Drawn(of_pair, drawn_contexts, tokens, completions, time.perf_counter() - start, queue)

    def wait(self, drawn: Drawn) -> dict[str, float | list[int]]:
        """Waits for all ranks to be done with their pairs. Returns how work and time were spread, as metrics."""
        try:
            done = self.world.gather((len(drawn.of_pair), drawn.seconds, drawn.tokens, drawn.completions))
        except RuntimeError:  # most likely a rank has failed and left; torchrun stops this one when that has told why
            time.sleep(PATIENCE_S)
            raise
        if drawn.queue is not None and self.world.is_main:
            drawn.queue.remove()
        self.world.pause()
        for _, _, tokens, completions in done:
            self._tokens += tokens
            self._completions += completions
        seconds = [rank_seconds for _, rank_seconds, _, _ in done]
        return {
            "pairs_by_rank": [num_pairs for num_pairs, _, _, _ in done],
            "rollout_idle_share": 1 - sum(seconds) / (len(seconds) * max(seconds)),
        }

    def of_all_pairs(self, drawn: Drawn[T]) -> list[T]:
        """What was kept of each pair, in order, on every rank."""
        everything = {i: item for of_pair in self.world.gather(drawn.of_pair) for i, item in of_pair.items()}
        return [everything[i] for i in range(len(everything))]

    def of_my_share(
        self, drawn: Drawn[Sides], share: Callable[[list[list[Leaf]]], list[int]]
    ) -> dict[int, tuple[Contexts, Sides]]:
        """Contexts and completions of this rank's share of the pairs, whoever drew them, by index.

        Args:
            share: which of all pairs, given as trees, are this rank's.
        """
        if self.world.size == 1:
            return {i: (drawn.contexts[i], drawn.of_pair[i]) for i in range(len(drawn.of_pair))}
        packed = {
            i: (drawn.contexts[i], [PackedCompletions.of(side) for side in sides]) for i, sides in drawn.of_pair.items()
        }
        everything = {
            i: (contexts, [side.unpack() for side in sides])
            for of_pair in self.world.gather(packed)
            for i, (contexts, sides) in of_pair.items()
        }
        trees = [
            [Leaf(context, c.token_ids) for context, side in zip(*everything[i], strict=True) for c in side]
            for i in range(len(everything))
        ]
        return {i: everything[i] for i in share(trees)}

    def _order(self, pairs: Sequence[Pair], contexts: Sequence[Contexts], sampling: PairSampling) -> list[int]:
        """All pairs, by the tokens of their contexts and those that their completions are expected to have."""
        costs = [sampling.num_judgments * self._expected_tokens(pair.task, sampling.max_tokens) for pair in pairs]
        for rank, lengths in enumerate(self.world.gather([sum(map(len, sides)) for sides in contexts])):
            for i, length in zip(range(rank, len(pairs), self.world.size), lengths, strict=True):
                costs[i] += length
        return longest_first(costs)

    def _expected_tokens(self, task: str, most: int) -> float:
        """Mean length of the task's completions in this run; while there are none, the most it may be."""
        num = self._completions[task]
        return self._tokens[task] / num if num else most
