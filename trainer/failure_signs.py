"""Signs that policy-gradient training of a judge or of a policy goes wrong, read from the metrics of its steps.

Losing diversity and a margin that decays, sooner with a constant f than with a graded one, are the failures that the
paper saw (sec. 5.2, figure 3b). The others cost the field most: groups without an advantage, judgments that lose their
format or run on to the limit, a rollout that disagrees with the trainer, and a reward model that says nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trainer.config import WatchConfig


@dataclass(slots=True)
class Level:
    """The moving average of one metric so far."""

    now: float = math.nan
    start: float = math.nan  # the first
    peak: float = -math.inf  # the highest up to now


@dataclass(frozen=True, slots=True)
class Sign:
    """A moving average beyond a bound."""

    name: str
    key: str  # of the metric
    is_low: bool  # whether below the bound is the bad side
    bound: Callable[[Level, WatchConfig], float]
    origin: Callable[[WatchConfig], str]  # of the bound, in words
    advice: str  # what it means and what to look at

    def shows(self, level: Level, config: WatchConfig) -> bool:
        bound = self.bound(level, config)
        return level.now < bound if self.is_low else level.now > bound


def _margin_bound(level: Level, config: WatchConfig) -> float:
    # Before the judge tells the sides apart there is nothing to lose, and the noise around 0 has no meaningful share.
    return config.margin_share * level.peak if level.peak >= config.margin_least_peak else -math.inf


SIGNS = (
    Sign(
        "entropy collapse", "entropy", True,
        lambda level, config: config.entropy_share * level.start,
        lambda config: f"{config.entropy_share:g} of its start",
        "completions of one context become copies of each other; lower the learning rate, or set entropy_coef",
    ),
    Sign(
        "margin decay", "margin", True, _margin_bound,
        lambda config: f"{config.margin_share:g} of its peak",
        "chosen and rejected scores draw together; a graded f keeps them apart longer than a constant one",
    ),
    Sign(
        "lost groups", "zero_advantage_share", False,
        lambda level, config: min(level.start + config.zero_advantage_rise, config.zero_advantage_most),
        lambda config: f"{config.zero_advantage_rise:g} above its start, {config.zero_advantage_most:g} at most",
        "groups have equal rewards and teach nothing; take harder pairs or more rollouts, or, if valid_rate is low, "
        "a model that writes the format, as after more SFT",
    ),
    Sign(
        "format decay", "valid_rate", True,
        lambda level, config: level.peak - config.valid_drop,
        lambda config: f"{config.valid_drop:g} below its peak",
        "fewer judgments can be read; see tag_error_rate, score_error_rate and cut_short_rate",
    ),
    Sign(
        "length running away", "completion_tokens", False,
        lambda level, config: config.length_ratio * level.start,
        lambda config: f"{config.length_ratio:g} x its start",
        "completions grow without being asked to; see cut_short_rate",
    ),
    Sign(
        "rollout off policy", "logprob_gap", False,
        lambda level, config: config.logprob_gap,
        lambda config: "watch.logprob_gap",
        "rollout and trainer disagree about log-probs, so the ratio is biased; see max_logprob_gap and model.dtype",
    ),
    Sign(
        "silent reward", "unscored_rate", False,
        lambda level, config: config.unscored_share,
        lambda config: "watch.unscored_share",
        "answers without a score teach nothing; see the problems in samples.jsonl, and the judge's limits of tokens",
    ),
)  # fmt: skip


@dataclass(slots=True)
class _State:
    last: deque[float]
    level: Level = field(default_factory=Level)
    is_on: bool = False
    num_against: int = 0  # steps in a row that speak against `is_on`


class FailureWatch:
    """Sees the steps of a stage one by one; a sign begins or ends when it has, for `watch.steps` steps in a row.

    What it says is a function of the records that it has seen and of nothing else, so a run that resumes shows it the
    log and goes on.
    """

    def __init__(self, config: WatchConfig) -> None:
        self.config = config
        self._states = {sign.name: _State(deque(maxlen=config.window)) for sign in SIGNS}

    def see(self, record: Mapping[str, object]) -> list[dict]:
        """What begins and what ends with this step.

        A step without a metric, or where it is not finite, is not counted for the signs of that metric.

        Args:
            record: a line of metrics.jsonl. Those of a stage without rewards are passed over: imitation is meant to
                lower the entropy.

        Returns:
            Lines of warnings.jsonl: stage, step, sign, event ("begins" or "ends"), metric, value (its moving average),
            bound, text.
        """
        if "reward" not in record:
            return []
        events = []
        for sign in SIGNS:
            value = record.get(sign.key)
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            state = self._states[sign.name]
            state.last.append(value)
            if len(state.last) < self.config.window:
                continue
            level = state.level
            level.now = math.fsum(state.last) / self.config.window
            level.start = level.now if math.isnan(level.start) else level.start
            level.peak = max(level.peak, level.now)
            state.num_against = state.num_against + 1 if sign.shows(level, self.config) != state.is_on else 0
            if state.num_against == self.config.steps:
                state.is_on, state.num_against = not state.is_on, 0
                events.append(self._event(record, sign, level, state.is_on))
        return events

    def _event(self, record: Mapping[str, object], sign: Sign, level: Level, begins: bool) -> dict:
        bound, window = sign.bound(level, self.config), self.config.window
        side = "below" if sign.is_low == begins else "not below" if sign.is_low else "above" if begins else "not above"
        text = f"{sign.key} {level.now:.4g} (mean of {window} steps) is {side} "
        text += f"{bound:.4g}, {sign.origin(self.config)}" + (f": {sign.advice}" if begins else "")
        return {
            "stage": record["stage"], "step": record["step"], "sign": sign.name,
            "event": "begins" if begins else "ends", "metric": sign.key, "value": level.now,
            "bound": bound if math.isfinite(bound) else None, "text": text,
        }  # fmt: skip


def warning_line(event: Mapping[str, object]) -> str:
    """One line for the terminal."""
    return f"warning: {event['stage']} step {event['step']}: {event['sign']} {event['event']}: {event['text']}"
