"""How a generative judge is asked and read: one Form per judge, for our engine and for an endpoint alike."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from eval.judges.judge import Drawn, Mode, Question
from eval.judges.reading import Reading
from kernels.philox import stream_seed
from patarm_core.prompts import Prompt, escape, flatten
from patarm_core.rubrics import unknown_task
from patarm_core.voting import unswap
from rollout.questions import read_prompt, read_response

Turns = list[dict[str, str]]
Ask = Callable[[Prompt, Sequence[str], str], Turns]  # (prompt, responses as they are read, task)
Order = Literal["drawn", "both", "given"]

_PLACE = re.compile(r"\{(prompt|response|response_a|response_b)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How judgments are drawn; the defaults of a form are those its authors give."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    max_tokens: int = 4096


@dataclass(frozen=True, slots=True)
class Template:
    """An `Ask`: texts put into {prompt}, {response}, {response_a} and {response_b}, harmless (`patarm_core.prompts`).

    Published harnesses put them in as they are; ours differ in texts that hold tags of judges or control tokens.
    """

    user: str
    system: str = ""

    def __call__(self, prompt: Prompt, responses: Sequence[str], task: str) -> Turns:
        texts = {"prompt": flatten(prompt), "response": escape(responses[0])}
        if len(responses) == 2:
            texts = {"prompt": texts["prompt"], "response_a": escape(responses[0]), "response_b": escape(responses[1])}
        # One pass: a text that holds a place of its own fills none.
        user = _PLACE.sub(lambda place: texts.get(place[1], place[0]), self.user)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": user}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a judge reads and how what it writes is read."""

    name: str
    asks: Mapping[Mode, Ask]
    reads: Mapping[Mode, Callable[[str], Reading]]
    sampling: Sampling = field(default_factory=Sampling)
    opening: str = ""  # with which its own turn begins; endpoints know no such thing and are asked without
    thinks: bool = False  # its answer follows </think>, though <think> may stand in the chat template
    stop: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()  # that it knows; empty: it takes any
    variant: str = ""  # tells apart forms that ask alike and read, or are drawn, otherwise

    def check(self, mode: Mode, questions: Sequence[Question] = ()) -> None:
        """
        Raises:
            ValueError: the judge has no such mode, or a question is not one of it.
        """
        if mode not in self.asks:
            raise ValueError(f"{self.name}: has no {mode} judgments; --mode {' or '.join(self.asks)} is right")
        num = 1 if mode == "pointwise" else 2
        for question in questions:
            if len(question.responses) != num:
                raise ValueError(
                    f"question {question.id}: has {len(question.responses)} responses; {mode} judges take {num}"
                )
            if self.tasks and question.task not in self.tasks:
                raise ValueError(f"question {question.id}: {unknown_task(question.task, self.tasks)}")

    def turns(self, mode: Mode, question: Question, is_swapped: bool = False) -> Turns:
        """
        Raises:
            ValueError: one line; the question cannot be asked.
        """
        responses = [read_response(response) for response in question.responses]
        return self.asks[mode](
            read_prompt(question.prompt), responses[::-1] if is_swapped else responses, question.task
        )

    def drawn(
        self, mode: Mode, text: str, is_cut: bool, is_swapped: bool, seed: int | None, seconds: float | None
    ) -> Drawn:
        """A judgment as it was written, read."""
        known = {"text": text, "seed": seed, "seconds": seconds, "is_swapped": is_swapped}
        if is_cut and self.thinks and "</think>" not in text:
            return Drawn(error="cut: while it was thinking", **known)
        found = self.reads[mode](text)
        if found.error is not None:
            empty = not text.strip()
            return Drawn(error="cut: before its answer" if is_cut else "empty" if empty else found.error, **known)
        choice = found.choice if found.choice == "tie" else unswap(found.choice, is_swapped)
        scores = found.scores[::-1] if found.scores is not None and is_swapped else found.scores
        return Drawn(score=found.score, choice=choice, scores=scores, **known)

    def fingerprint(self, mode: Mode) -> str:
        """Of all that it puts around texts, for every task."""
        example = ("A prompt.", ["One."] if mode == "pointwise" else ["One.", "Two."])
        asked = [self.asks[mode](*example, task) for task in self.tasks or ("chat",)]
        known = [asked, self.opening, *([self.variant] if self.variant else [])]
        return f"{self.name} {hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}"

    def swaps(self, mode: Mode, question: Question, order: Order, seed: int, votes: int) -> list[bool]:
        """For each vote whether B is read before A; errors as in `turns`."""
        return [False] * votes if mode == "pointwise" else reading_order(order, seed, self.turns(mode, question), votes)


def check_order(order: str) -> None:
    if order not in get_args(Order):
        raise ValueError(f"unknown order {order!r}; orders are {', '.join(get_args(Order))}")


def reading_order(order: Order, seed: int, turns: Turns, votes: int) -> list[bool]:
    """For each vote of a pairwise judge whether it reads B before A.

    Args:
        order: "drawn" once for each question, from the seed and the question alone; "both": in turns, A first to begin
            with, so that two votes are the two games of JudgeBench; "given": A first.
        turns: of the question as it was given.
    """
    if order == "both":
        return [bool(vote % 2) for vote in range(votes)]
    is_swapped = order == "drawn" and bool(stream_seed("order", seed, json.dumps(turns)) & 1)
    return [is_swapped] * votes
