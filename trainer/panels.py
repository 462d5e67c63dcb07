"""Which metrics a run's curves show, and where the steps of its stages lie beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    curves: tuple[tuple[str, str], ...]  # (key of metrics.jsonl, label); those of `dev_` are measured now and then
    is_share: bool = False  # between 0 and 1
    is_log: bool = False


# The first four are those of curves.png.
PANELS = (
    Panel(
        "accuracy on pairs; of a policy's answers, by the checker",
        (("pair_accuracy", "training pairs, mean of n"), ("dev_accuracy", "dev pairs or prompts")), True,
    ),
    Panel("margin: mean chosen - mean rejected score", (("margin", "training pairs"), ("dev_margin", "dev pairs"))),
    Panel("share of valid judgments", (("valid_rate", "training pairs"), ("dev_valid_rate", "dev pairs")), True),
    Panel("entropy (nats per token)", (("entropy", "sampled or SFT tokens"),), is_log=True),
    Panel(
        "reward of a judgment", (("reward", "all of it"), ("reward_par", "PAR"), ("reward_format", "format"))
    ),
    Panel(
        "lost compute",
        (
            ("zero_advantage_share", "groups without an advantage"), ("cut_short_rate", "cut at the limit"),
            ("unscored_rate", "answers without a score"),
        ),
        True,
    ),
    Panel(
        "share of the reward's variance within groups",
        (("variance_share_format", "format"), ("variance_share_length", "length")),
    ),
    Panel(
        "a policy's answers, by the checker",
        (("checker_score", "training prompts"), ("dev_all_right", "dev prompts, all right")),
        True,
    ),
    Panel("a policy's answers, by its reward", (("score", "training prompts"), ("dev_score", "dev prompts"))),
    Panel(
        "reward against checker, Pearson's r",
        (("score_correlation", "training prompts"), ("dev_score_correlation", "dev prompts")),
    ),
    Panel("tokens of a judgment or an answer", (("completion_tokens", "mean"),)),
    Panel("loss", (("loss", "per token"),)),
    Panel("rollout against trainer (nats per token)", (("logprob_gap", "log-prob gap"), ("kl", "KL to the start"))),
    Panel("gradient norm, before clipping", (("grad_norm", "global"),)),
    Panel("learning rate", (("lr", "of the step"),)),
    Panel("seconds of a step", (("step_s", "all phases"),)),
)  # fmt: skip


def last_steps(records: Sequence[dict]) -> dict[str, int]:
    """The last step that each stage has logged, in the order of the stages."""
    return {record["stage"]: record["step"] for record in records}


def positions(records: Sequence[dict]) -> list[float]:
    """Where each record lies on the axis: every stage is one unit wide, whatever its number of steps."""
    last = last_steps(records)
    offset = {stage: n for n, stage in enumerate(last)}
    return [offset[record["stage"]] + record["step"] / last[record["stage"]] for record in records]
