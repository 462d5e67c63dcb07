"""How often a judge's scores are right about a pair, and which pairs are kept for RL (appendix C, step 2).

The paper says "correctness in [1/8, 6/8] of eight rollouts" and no more. What it leaves open is named here:

    definition  index: the i-th score of the chosen response against the i-th of the rejected one (n outcomes; the only
                       one whose shares are eighths, hence the default)
                mean:  each score against the other side's mean, PAR's indicator (2n outcomes)
                all:   every score against every one of the other side (n · n outcomes)
    ties        wrong (as PAR has it), half, or left_out of the share
    unparsed    wrong, or left_out: comparisons in which a score is missing
    unit        pair: one share over all; both_sides: each response's own share must be within the bounds;
                either_side: one of them is enough
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Score = Fraction | None
Definition = Literal["index", "mean", "all"]
Ties = Literal["wrong", "half", "left_out"]
Unparsed = Literal["wrong", "left_out"]
Unit = Literal["pair", "both_sides", "either_side"]
Verdict = Literal["keep", "easy", "hard", "undecided", "unjudged"]
Sign = int | None  # 1 the chosen response is ahead, -1 behind, 0 a tie; None: a score is missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Correctness:
    """Names of the options as above; bounds are inclusive."""

    definition: Definition = "index"
    ties: Ties = "wrong"
    unparsed: Unparsed = "wrong"
    unit: Unit = "pair"
    low: Fraction = Fraction(1, 8)
    high: Fraction = Fraction(6, 8)

    def shares(self, chosen: Sequence[Score], rejected: Sequence[Score]) -> tuple[Score, Score, Score]:
        """Correctness of the pair, of the chosen and of the rejected response; None where nothing counts.

        A side without a single score leaves nothing to compare with, so all three are None.

        Raises:
            ValueError: unequal numbers of scores, where the i-th are compared.
        """
        if not _has_score(chosen) or not _has_score(rejected):
            return None, None, None
        of_chosen, of_rejected = signs(chosen, rejected, self.definition)
        return self._share(of_chosen + of_rejected), self._share(of_chosen), self._share(of_rejected)

    def verdict(self, chosen: Sequence[Score], rejected: Sequence[Score]) -> Verdict:
        """keep (for RL), hard (below the bounds) or easy (above them).

        unjudged where a side has no score at all; undecided where both have and every comparison is left out.
        """
        of_pair, *sides = self.shares(chosen, rejected)
        counted = [of_pair] if self.unit == "pair" else sides
        if None in counted:
            return "undecided" if _has_score(chosen) and _has_score(rejected) else "unjudged"
        within = [self.low <= share <= self.high for share in counted]
        if any(within) if self.unit == "either_side" else all(within):
            return "keep"
        return "hard" if any(share < self.low for share in counted) else "easy"

    def _share(self, found: Sequence[Sign]) -> Score:
        worth = {1: Fraction(1), -1: Fraction(0)}
        if self.ties != "left_out":
            worth[0] = Fraction(1, 2) if self.ties == "half" else Fraction(0)
        if self.unparsed != "left_out":
            worth[None] = Fraction(0)
        values = [worth[sign] for sign in found if sign in worth]
        return sum(values, Fraction(0)) / len(values) if values else None


def signs(chosen: Sequence[Score], rejected: Sequence[Score], definition: Definition) -> tuple[list[Sign], list[Sign]]:
    """The outcomes that count for the chosen response, and those for the rejected one."""
    if definition == "mean":
        mean_c, mean_r = _mean(chosen), _mean(rejected)
        return [_sign(s, mean_r) for s in chosen], [_sign(mean_c, s) for s in rejected]
    if definition == "all":
        found = [_sign(c, r) for c in chosen for r in rejected]
        return found, found
    if len(chosen) != len(rejected):
        raise ValueError(f"{len(chosen)} scores of the chosen response and {len(rejected)} of the rejected one")
    found = [_sign(c, r) for c, r in zip(chosen, rejected)]
    return found, found


def _has_score(scores: Sequence[Score]) -> bool:
    return any(score is not None for score in scores)


def _sign(chosen: Score, rejected: Score) -> Sign:
    return None if chosen is None or rejected is None else (chosen > rejected) - (chosen < rejected)


def _mean(scores: Sequence[Score]) -> Score:
    valid = [s for s in scores if s is not None]
    return sum(valid, Fraction(0)) / len(valid) if valid else None
