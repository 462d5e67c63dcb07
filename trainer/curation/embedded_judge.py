"""The programmatic judge of the embedded set (patarm_core/embedded/judge.py), asked as any other judge is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from eval.judges.judge import Drawn, Mode, Question
from patarm_core.embedded.judge import JudgeConfig, judge
from patarm_core.judgment import parse
from patarm_core.voting import unswap


class EmbeddedJudge:
    """Informative and noisy. A judgment depends on seed, question and the vote's number alone."""

    def __init__(self, mode: Mode, seed: int, config: JudgeConfig | None = None) -> None:
        self.mode, self.seed, self.config = mode, seed, config or JudgeConfig()
        self.name = f"embedded ({mode})"

    @property
    def fingerprint(self) -> dict[str, object]:
        return {"fingerprint": f"embedded {self.mode} {self.seed} {self.config}"}

    def judge(self, questions: Sequence[Question], votes: int) -> Iterator[tuple[int, list[Drawn]]]:
        draw = self._score if self.mode == "pointwise" else self._choice
        for index, question in enumerate(questions):
            yield index, [draw(question, Random(f"{self.seed}/{question.id}/{vote}")) for vote in range(votes)]

    def _score(self, question: Question, rng: Random) -> Drawn:
        text = judge(question.prompt, question.responses[0], rng, self.config)
        return Drawn(text=text, score=float(parse(text).score))

    def _choice(self, question: Question, rng: Random) -> Drawn:
        """Scores both, and chooses by a coin where they are equal."""
        is_swapped = rng.random() < 0.5
        read = question.responses[::-1] if is_swapped else question.responses
        a, b = (parse(judge(question.prompt, response, rng, self.config)) for response in read)
        choice = rng.choice("AB") if a.score == b.score else "A" if a.score > b.score else "B"
        text = (
            f"<think>A {a.think}; B {b.think}</think>\n<generate_rubrics>{a.generated_rubrics}</generate_rubrics>\n"
            f"<eval>A {float(a.score)}, B {float(b.score)}</eval>\n<answer>{choice}</answer>"
        )
        return Drawn(text=text, choice=unswap(choice, is_swapped), is_swapped=is_swapped)
