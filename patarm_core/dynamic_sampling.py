"""Dynamic sampling (DAPO, arXiv:2503.14476, sec. 3.2) over pairs: a step is filled with pairs that teach something.

A pair is kept or dropped as a whole: its two sides are scored against each other, and one without the other would be a
different reward.
"""

from collections.abc import Callable
from dataclasses import dataclass

from patarm_core.sampling import PairStream


@dataclass(frozen=True, slots=True)
class Filled:
    """How a step came by its pairs, over all ranks."""

    pairs: list[int]  # kept, in the order in which they were drawn
    num_drawn: int
    num_rounds: int

    @property
    def num_dropped(self) -> int:
        return self.num_drawn - len(self.pairs)


def fill_step(stream: PairStream, size: int, max_rounds: int, is_kept: Callable[[list[int]], list[bool]]) -> Filled:
    """Draws pairs until `size` are kept, `max_rounds` rounds are done, or every pair of the data has been drawn.

    A round draws as many as are missing, so nothing that teaches is thrown away. A step draws no pair twice.

    Args:
        is_kept: for each pair of a round whether it is kept; called once a round.
    """
    kept: list[int] = []
    seen: set[int] = set()
    num_rounds = 0
    while len(kept) < size and num_rounds < max_rounds:
        drawn = stream.take(size - len(kept), seen)
        if not drawn:
            break
        seen.update(drawn)
        kept += [pair for pair, keep in zip(drawn, is_kept(drawn), strict=True) if keep]
        num_rounds += 1
    return Filled(kept, len(seen), num_rounds)
