"""Signs of failure: the watch that sees one step at a time, against the definition over the whole history."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import WatchConfig
from trainer.failure_signs import SIGNS, FailureWatch, warning_line

QUIET = {
    "reward": 0.5, "entropy": 1.0, "margin": 2.0, "zero_advantage_share": 0.2, "valid_rate": 0.9,
    "completion_tokens": 100.0, "logprob_gap": 1e-4, "unscored_rate": 0.0,
}  # fmt: skip
CONFIG = WatchConfig(window=2, steps=3)


def history(key: str, values: list) -> list[dict]:
    return [QUIET | {"stage": "grpo", "step": n + 1, key: value} for n, value in enumerate(values)]


def events(records: list[dict], config: WatchConfig = CONFIG) -> list[dict]:
    watch = FailureWatch(config)
    return [event for record in records for event in watch.see(record)]


def told(records: list[dict], config: WatchConfig = CONFIG) -> list[tuple]:
    return [(event["sign"], event["event"], event["step"]) for event in events(records, config)]


def is_beyond(sign: str, averages: list[float], config: WatchConfig) -> bool:
    """The last moving average against its bound, as the docstrings say it."""
    start, peak, now = averages[0], max(averages), averages[-1]
    return {
        "entropy collapse": now < config.entropy_share * start,
        "margin decay": peak >= config.margin_least_peak and now < config.margin_share * peak,
        "lost groups": now > start + config.zero_advantage_rise or now > config.zero_advantage_most,
        "format decay": now < peak - config.valid_drop,
        "length running away": now > config.length_ratio * start,
        "rollout off policy": now > config.logprob_gap,
        "silent reward": now > config.unscored_share,
    }[sign]


def by_definition(sign: str, values: list, config: WatchConfig) -> list[tuple[str, int]]:
    """[("begins" | "ends", step)] from the whole history: a state changes once `steps` averages in a row deny it."""
    finite = [(step, v) for step, v in enumerate(values, 1) if v is not None and math.isfinite(v)]
    windows = [finite[end - config.window : end] for end in range(config.window, len(finite) + 1)]
    averages = [math.fsum(v for _, v in window) / config.window for window in windows]
    beyond = [is_beyond(sign, averages[: i + 1], config) for i in range(len(averages))]
    changes, since = [], 0
    for i in range(len(beyond)):
        run = beyond[max(since, i + 1 - config.steps) : i + 1]
        if len(run) == config.steps and all(b == (len(changes) % 2 == 0) for b in run):
            changes.append(("ends" if len(changes) % 2 else "begins", windows[i][-1][0]))
            since = i + 1
    return changes


numbers = st.one_of(
    st.sampled_from([0.0, 0.01, 0.04, 0.06, 0.5, 1.0, 3.0]),
    st.floats(-4, 4),
    st.sampled_from([None, math.nan, math.inf]),
)


@pytest.mark.parametrize("sign", SIGNS, ids=lambda sign: sign.name)
@settings(max_examples=60)
@given(
    values=st.lists(numbers, max_size=40).flatmap(lambda v: st.just([x for x in v for _ in range(2)])),
    window=st.integers(1, 4),
    steps=st.integers(1, 4),
)
def test_the_watch_follows_the_definition(sign, values, window, steps):
    config = WatchConfig(window=window, steps=steps)
    found = [e for e in told(history(sign.key, values), config) if e[0] == sign.name]
    assert [(event, step) for _, event, step in found] == by_definition(sign.name, values, config)


@given(values=st.lists(st.floats(-10, 10), max_size=40), cut=st.integers(0, 40))
def test_a_watch_that_is_shown_the_log_goes_on_as_one_that_was_never_stopped(values, cut):
    records = history("margin", values)
    again = FailureWatch(CONFIG)
    for record in records[:cut]:
        again.see(record)
    later = [event for record in records[cut:] for event in again.see(record)]
    assert later == [event for event in events(records) if event["step"] > min(cut, len(records))]


@given(st.lists(st.floats(0.1, 10), min_size=8, max_size=30), st.floats(0.01, 100))
def test_entropy_margin_and_length_are_judged_by_their_own_scale(values, scale):
    """In units of their own; the peak of a margin must be worth something, so it is let pass here."""
    config = WatchConfig(window=1, steps=2, margin_least_peak=1e-9)
    for key in ("entropy", "margin", "completion_tokens"):
        scaled = told(history(key, [v * 2 ** round(math.log2(scale)) for v in values]), config)
        assert scaled == told(history(key, values), config)


@pytest.mark.parametrize(
    ("key", "good", "bad", "sign"),
    [
        ("entropy", 1.0, 0.19, "entropy collapse"),
        ("margin", 2.0, 0.99, "margin decay"),
        ("zero_advantage_share", 0.2, 0.51, "lost groups"),
        ("valid_rate", 0.9, 0.79, "format decay"),
        ("completion_tokens", 100.0, 201.0, "length running away"),
        ("logprob_gap", 0.0, 0.051, "rollout off policy"),
        ("unscored_rate", 0.05, 0.14, "silent reward"),
    ],
)
def test_each_sign_begins_once_and_ends_once(key, good, bad, sign):
    # Window 2: the first bad average lies between; three in a row begin it, three good ones end it.
    values = [good] * 4 + [bad] * 10 + [good] * 10
    assert told(history(key, values)) == [(sign, "begins", 8), (sign, "ends", 17)]


def test_a_run_that_goes_well_is_told_nothing():
    records = [
        QUIET | {
            "stage": "grpo", "step": n, "entropy": 1.0 - n / 100, "margin": n / 20, "valid_rate": 0.5 + n / 200,
            "zero_advantage_share": 0.1 + n / 500, "completion_tokens": 100 + n / 2,
        }
        for n in range(1, 61)
    ]  # fmt: skip
    assert told(records, WatchConfig()) == []


def test_groups_without_an_advantage_from_the_start_are_told():
    """As of a judge that SFT has not taught the format: no rise, but nothing is learned."""
    (event,) = events(history("zero_advantage_share", [1.0] * 9), WatchConfig())
    assert (event["sign"], event["step"], event["bound"]) == ("lost groups", 9, 0.95)
    assert "if valid_rate is low" in event["text"]


def test_a_margin_that_never_was_cannot_decay():
    assert told(history("margin", [0.3, -0.3, 0.2, -0.4] * 10)) == []


def test_what_a_warning_says():
    (event,) = events(history("margin", [2.0] * 3 + [0.5] * 4))
    assert {k: event[k] for k in ("stage", "step", "sign", "event", "metric", "value", "bound")} == {
        "stage": "grpo", "step": 7, "sign": "margin decay", "event": "begins", "metric": "margin",
        "value": 0.5, "bound": 1.0,
    }  # fmt: skip
    assert warning_line(event) == (
        "warning: grpo step 7: margin decay begins: margin 0.5 (mean of 2 steps) is below 1, 0.5 of its peak: "
        "chosen and rejected scores draw together; a graded f keeps them apart longer than a constant one"
    )


def test_imitation_is_not_watched():
    sft = [{"stage": "sft", "step": n, "loss": 1.0, "entropy": 4.0 / n} for n in range(1, 60)]
    assert told(sft) == []


@pytest.mark.parametrize(
    ("setting", "right"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"margin_share": 1.5}, r"margin_share=1.5 must be in \[0, 1\]"),
        ({"logprob_gap": 0.0}, "logprob_gap=0.0 must be positive"),
    ],
)
def test_thresholds_that_cannot_be(setting, right):
    with pytest.raises(ValueError, match=right):
        WatchConfig(**setting)
