"""A judge that computes its judgments from the texts, in any order, and that can be interrupted."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from eval.judges.judge import Drawn, Question


@dataclass
class FakeJudge:
    mode: str = "pointwise"
    name: str = "fake"
    fingerprint: dict = field(default_factory=lambda: {"seed": 0})
    order: int = 0  # seed of the order in which judgments are finished
    stop_after: int | None = None  # questions, then a KeyboardInterrupt
    fails: tuple[str, ...] = ()  # questions that get no reply
    asked: list[str] = field(default_factory=list)

    def judge(self, questions: Sequence[Question], votes: int) -> Iterator[tuple[int, list[Drawn]]]:
        places = list(range(len(questions)))
        Random(self.order).shuffle(places)
        for place in places:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(questions[place].id)
            yield place, [self.drawn(questions[place], vote) for vote in range(votes)]

    def drawn(self, question: Question, vote: int) -> Drawn:
        """Mostly readable; what it says depends on the texts and on the vote alone."""
        if question.id in self.fails:
            return Drawn(error="timeout: no reply within 1 s", seed=vote, seconds=1.0)
        rng = Random(zlib.crc32(repr((question.prompt, question.responses, vote)).encode()))
        known = {"text": f"judgment {vote} é \ud800", "seed": vote, "seconds": rng.random()}
        if rng.random() < 0.2:
            return Drawn(error=f"unparsed: no <answer> in {rng.randrange(100)}", **known)
        if self.mode == "pointwise":
            return Drawn(score=rng.randrange(21) / 2, **known)
        return Drawn(choice=rng.choice(["A", "A", "B", "tie"]), is_swapped=rng.random() < 0.5, **known)
