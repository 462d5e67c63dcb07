"""Loss normalisation: what a token counts for in the loss of an optimiser step, Σ weight · loss over its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Normalization = Literal["token", "sequence", "constant"]


@dataclass(frozen=True, slots=True)
class StepCounts:
    """Of all completions of an optimiser step: of every micro-batch and every rank."""

    num_completions: int
    num_tokens: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "StepCounts":
        """Counts of some completions, given the tokens of each."""
        return cls(len(lengths), sum(lengths))


def token_weight(
    normalization: Normalization, num_own_tokens: int, counts: StepCounts, max_completion_tokens: int
) -> float:
    """The weight of every token of a completion.

        token     1 / number of tokens: all tokens of the step alike (DAPO, arXiv:2503.14476; its eq. 12 divides by a
                  prompt's tokens, and so takes prompts alike)
        sequence  1 / (number of completions · own tokens): all completions alike (GRPO, arXiv:2402.03300, eq. 3)
        constant  1 / (number of completions · longest allowed): no length is favoured (Dr. GRPO, arXiv:2503.20783)

    Args:
        num_own_tokens: of the completion that the token belongs to, at least 1.
        max_completion_tokens: the most that a completion may have.

    Raises:
        ValueError: an unknown normalisation.
    """
    if normalization == "token":
        return 1 / counts.num_tokens
    if normalization == "sequence":
        return 1 / (counts.num_completions * num_own_tokens)
    if normalization == "constant":
        return 1 / (counts.num_completions * max_completion_tokens)
    raise ValueError(f"unknown normalisation {normalization!r}; there are {', '.join(get_args(Normalization))}")
