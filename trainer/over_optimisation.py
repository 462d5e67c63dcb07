"""Over-optimisation of a policy: its reward on the dev prompts rises while what a checker counts as right falls.

(Gao et al., arXiv:2210.10760.) Both are measured on the same answers, so this is no difference of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config import WatchConfig

NAME, KEY, REWARD = "over-optimisation", "dev_accuracy", "dev_score"


@dataclass(slots=True)
class OverOptimisationWatch:
    """Compares each dev measurement with the one of the best checker score so far; of equal ones the earliest.

    The sign shows where the checker is more than `watch.checker_drop` below it and the reward above that one's. It
    begins after `watch.dev_measurements` in a row that show it, and ends after as many that do not.
    """

    config: WatchConfig
    best: tuple[float, float] | None = None  # (checker, reward)
    is_on: bool = False
    num_against: int = 0

    def see(self, record: Mapping[str, object]) -> list[dict]:
        """Lines of warnings.jsonl, as of FailureWatch; a record without both measurements says nothing."""
        checked, reward = record.get(KEY), record.get(REWARD)
        if checked is None or reward is None:
            return []
        if self.best is None or checked > self.best[0]:
            self.best = checked, reward
        top, then = self.best
        bound = top - self.config.checker_drop
        shows = checked < bound and reward > then
        self.num_against = self.num_against + 1 if shows != self.is_on else 0
        if self.num_against < self.config.dev_measurements:
            return []
        self.is_on, self.num_against = not self.is_on, 0
        text = f"{REWARD} {reward:.4g} (was {then:.4g}) and {KEY} {checked:.1%} (was {top:.1%})"
        if self.is_on:
            text += ": the policy learns what the reward likes and not what is right; stop here, raise rlhf.kl_coef, "
            text += "or take a better judge"
        return [
            {
                "stage": record["stage"], "step": record["step"], "sign": NAME,
                "event": "begins" if self.is_on else "ends", "metric": KEY, "value": checked, "bound": bound,
                "text": text,
            }
        ]  # fmt: skip
