"""Which dev measurement of a stage is the best so far, and when there is no point in going on.

Both are functions of the measurements alone, so a run that resumes from its log decides as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    step: int
    accuracy: float  # on the dev pairs


def dev_measurements(records: Iterable[Mapping]) -> list[Measured]:
    """Those among a stage's lines of metrics.jsonl."""
    return [Measured(r["step"], r["dev_accuracy"]) for r in records if r.get("dev_accuracy") is not None]


def best(measured: Sequence[Measured]) -> Measured | None:
    """The highest accuracy; of equal ones the earliest, which has moved least from where it began."""
    return max(measured, key=lambda m: (m.accuracy, -m.step), default=None)


def has_stalled(measured: Sequence[Measured], patience: int, min_delta: float) -> bool:
    """Whether the last `patience` measurements brought no gain of more than `min_delta`.

    A gain is over the accuracy of the last gain, not over the measurement before: many small steps up count once they
    add up. The first measurement is a gain.

    Args:
        patience: measurements; 0: never.
        min_delta: accuracy, 0 to 1.
    """
    level, since = float("-inf"), 0
    for m in measured:
        level, since = (m.accuracy, 0) if m.accuracy > level + min_delta else (level, since + 1)
    return 0 < patience <= since
