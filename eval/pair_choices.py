"""Pairwise judgments of a preference pair: n choices between its responses, read in one order of A and B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from patarm_core.judgment import Choice, Judgment, RubricSetting, parse, read_answer
from patarm_core.pairs import Pair
from patarm_core.voting import Verdict, at_n, majority_choice, unswap
from rollout.params import Completion

_NAMED: dict[str | None, Verdict | None] = {"A": "chosen", "B": "rejected", "tie": "tie", None: None}


@dataclass(frozen=True, slots=True)
class PairChoices:
    """n judgments of one pair, in the order in which they were drawn; the strict parser's and the choices counted."""

    pair: Pair
    texts: list[str]
    judgments: list[Judgment]
    choices: list[Choice | None]  # as written
    is_swapped: bool  # the rejected response was shown as A

    @property
    def right_choice(self) -> Choice:
        """Where the chosen response was shown."""
        return "B" if self.is_swapped else "A"

    def verdict(self, votes: int) -> Verdict | None:
        """The majority of the first `votes` choices, un-swapped (METHOD: sec. 6)."""
        own_order = [unswap(choice, self.is_swapped) for choice in at_n(self.choices, votes)]
        return _NAMED[majority_choice(own_order)]

    def margin(self, votes: int) -> None:
        """Choices have no scores to lie apart."""
        return None

    def records(self) -> list[dict]:
        """One JSON-ready line per judgment; `choice` names the side that it prefers."""
        return [
            {
                "source": self.pair.source, "id": self.pair.id, "is_swapped": self.is_swapped, "judgment": text,
                "choice": _NAMED[unswap(choice, self.is_swapped)], "error": judgment.error,
            }
            for text, choice, judgment in zip(self.texts, self.choices, self.judgments, strict=True)
        ]  # fmt: skip


def read_choices(
    pair: Pair, completions: Sequence[Completion], is_swapped: bool, rubrics: RubricSetting, is_lenient: bool
) -> PairChoices:
    """What the completions of one context choose, read strictly (training) or leniently (evaluation)."""
    texts = [completion.text for completion in completions]
    judgments = [parse(text, "choice", rubrics) for text in texts]
    choices = [read_answer(text, "choice") for text in texts] if is_lenient else [j.choice for j in judgments]
    return PairChoices(pair, texts, judgments, choices, is_swapped)
