"""A preference pair whose responses have one score each, of a model that writes nothing: scalar or implicit rewards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from patarm_core.judgment import Judgment
from patarm_core.pairs import Pair
from patarm_core.voting import Verdict, compare


@dataclass(frozen=True, slots=True)
class ScoredPair:
    pair: Pair
    chosen: float | None  # None: no finite number
    rejected: float | None

    judgments: ClassVar[list[Judgment]] = []

    @classmethod
    def of(cls, pair: Pair, scores: tuple[float, float]) -> ScoredPair:
        """From the scores of the chosen and of the rejected response."""
        return cls(pair, *(score if math.isfinite(score) else None for score in scores))

    def verdict(self, votes: int = 1) -> Verdict | None:
        return compare(self.chosen, self.rejected)

    def margin(self, votes: int = 1) -> float | None:
        return None if self.chosen is None or self.rejected is None else self.chosen - self.rejected

    def records(self) -> list[dict]:
        """One JSON-ready line per response."""
        return [
            {"source": self.pair.source, "id": self.pair.id, "side": side, "score": score}
            for side, score in (("chosen", self.chosen), ("rejected", self.rejected))
        ]
