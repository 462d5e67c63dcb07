"""The reward rises, the checker falls."""

from trainer.config import WatchConfig
from trainer.over_optimisation import OverOptimisationWatch


def told(measured: list[tuple[float, float] | None]) -> list[tuple[str, int]]:
    """Of (checker, reward) by step; None: a step without a measurement."""
    watch = OverOptimisationWatch(WatchConfig(checker_drop=0.02, dev_measurements=2))
    events = []
    for step, pair in enumerate(measured, start=1):
        record = {"stage": "rlhf", "step": step} | (dict(zip(("dev_accuracy", "dev_score"), pair)) if pair else {})
        events += [(event["event"], event["step"]) for event in watch.see(record)]
    return events


def test_it_begins_where_the_reward_rises_and_the_checker_falls_and_ends_where_it_does_not():
    assert told([(0.6, 5), (0.7, 6), None, (0.65, 7), None, (0.6, 8), (0.7, 8), (0.71, 8.5)]) == [
        ("begins", 6),
        ("ends", 8),
    ]


def test_both_falling_or_both_rising_is_no_sign_and_neither_is_noise():
    assert told([(0.7, 6), (0.6, 5), (0.5, 4), (0.4, 3)]) == []  # the policy is just worse
    assert told([(0.5, 4), (0.6, 5), (0.7, 6)]) == []
    assert told([(0.7, 6), (0.69, 7), (0.685, 8)]) == []  # within checker_drop
    assert told([(0.7, 6), (0.6, 7), (0.7, 7), (0.6, 8)]) == []  # never twice in a row
