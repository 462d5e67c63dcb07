"""Advantages: what a rollout's reward is worth beside its group's or its batch's.

Pure lists in and out. `rewards[i]` belongs to the group named `group_ids[i]`, any hashable; a group need not be
contiguous. A group whose rewards are all equal, a single rollout included, gets exactly 0.0 wherever the baseline is
the group's.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from numbers import Real
from typing import Literal

from patarm_core.par import exact

Estimator = Literal["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"]


def totals(parts: Sequence[Sequence[Real]]) -> list[float]:
    """R = Σ parts of every rollout, added exactly and then rounded, so that rewards that are equal are equal floats.

    In floats 1.4 - 0.4 is not 1.2 - 0.2, and a group of both would vary by rounding alone.

    Args:
        parts: of the reward, each a number per rollout; a float stands for its shortest decimal form.
    """
    return [float(sum(map(exact, of_parts))) for of_parts in zip(*parts, strict=True)]


def group_relative(
    rewards: Sequence[float],
    group_ids: Sequence[Hashable],
    scale: Literal["std", "none"] = "std",
    ddof: int = 1,
    eps: float = 1e-6,
) -> list[float]:
    """GRPO (arXiv:2402.03300): A_i = (R_i − mean(R)) / (std(R) + eps) over the group of i.

    Args:
        rewards: R, finite.
        group_ids: one per reward.
        scale: "none" leaves the division out.
        ddof: 1 for the sample deviation, which verl and TRL use (the paper does not say), 0 for the population's.
        eps: added to the deviation, in units of reward.

    Raises:
        ValueError: lengths differ, a reward is not finite, or an option is out of range.
    """
    if scale not in ("std", "none"):
        raise ValueError(f"scale must be 'std' or 'none', got {scale!r}")
    _check_scale(ddof, eps)

    def relative(group: list[float]) -> list[float]:
        centred = _centred(group)
        return centred if scale == "none" else _scaled(centred, ddof, eps)

    return _per_group(rewards, group_ids, relative)


def dr_grpo(rewards: Sequence[float], group_ids: Sequence[Hashable]) -> list[float]:
    """Dr. GRPO (arXiv:2503.20783): A_i = R_i − mean(R) over the group of i; easy and hard groups weigh alike."""
    return group_relative(rewards, group_ids, scale="none")


def rloo(rewards: Sequence[float], group_ids: Sequence[Hashable]) -> list[float]:
    """RLOO (arXiv:2402.14740): A_i = R_i − mean of the group's other rewards. A rollout without others gets 0."""

    def leave_one_out(group: list[float]) -> list[float]:
        num_others = len(group) - 1
        return [r * len(group) / num_others for r in _centred(group)]

    return _per_group(rewards, group_ids, leave_one_out)


def reinforce_plus_plus(
    rewards: Sequence[float], group_ids: Sequence[Hashable] | None = None, ddof: int = 1, eps: float = 1e-6
) -> list[float]:
    """Reinforce++ (arXiv:2501.03262): A_i = (R_i − mean(R)) / (std(R) + eps) over the whole batch.

    Its paper takes a token's KL penalty off the reward; here it is a term of the loss, as with every estimator.

    With `group_ids`, the baseline variant: the group's mean is subtracted first, and what is left is divided by its
    deviation over the batch. Its mean over the batch is 0 by construction and is not subtracted again, so that an
    all-equal group keeps exactly 0. Without `group_ids` such a group has no special standing.
    """
    _check_scale(ddof, eps)
    _check_finite(rewards)
    baseline_ids = [0] * len(rewards) if group_ids is None else group_ids
    centred = dr_grpo(rewards, baseline_ids)
    return _scaled(centred, ddof, eps) if any(centred) else centred


def estimate(name: Estimator, rewards: Sequence[float], group_ids: Sequence[Hashable]) -> list[float]:
    """Advantages by the estimator of that name; "reinforce++" knows no groups, its "_baseline" does."""
    if name == "reinforce++":
        return reinforce_plus_plus(rewards)
    by_name = {"grpo": group_relative, "dr_grpo": dr_grpo, "rloo": rloo, "reinforce++_baseline": reinforce_plus_plus}
    if name not in by_name:
        raise ValueError(f"unknown estimator {name!r}; estimators are reinforce++, {', '.join(by_name)}")
    return by_name[name](rewards, group_ids)


def estimate_separately(name: Estimator, parts: Sequence[Sequence[Real]], group_ids: Sequence[Hashable]) -> list[float]:
    """Advantages of each part of the reward by itself, added up.

    Where rewards are divided by their deviation, a part that varies much (the format, early in training) no longer
    shrinks what another one says.

    Args:
        parts: R = Σ parts, each a reward per rollout.
    """
    return [math.fsum(of_parts) for of_parts in zip(*(estimate(name, part, group_ids) for part in parts), strict=True)]


def variance_shares(parts: Sequence[Sequence[Real]], group_ids: Sequence[Hashable]) -> list[float] | None:
    """What each part contributes to the variance of R = Σ parts within groups: Cov(part, R) / Var(R).

    Both are sums over the groups. The shares add up to 1, and one is negative where a part works against the others.
    None where no group's rewards R differ.
    """
    centred = dr_grpo(totals(parts), group_ids)
    variance = math.fsum(r * r for r in centred)
    if variance == 0:
        return None
    # The centred rewards of a group add up to 0, so a part need not be centred too.
    return [math.fsum(x * r for x, r in zip(part, centred, strict=True)) / variance for part in parts]


def _per_group(
    rewards: Sequence[float], group_ids: Sequence[Hashable], advantage: Callable[[list[float]], list[float]]
) -> list[float]:
    advantages = [0.0] * len(rewards)
    for members in _members(rewards, group_ids).values():
        group = [float(rewards[i]) for i in members]
        if min(group) == max(group):  # stays exactly 0.0, which subtracting a rounded mean would not give
            continue
        for i, value in zip(members, advantage(group), strict=True):
            advantages[i] = value
    return advantages


def _centred(group: list[float]) -> list[float]:
    mean = math.fsum(group) / len(group)
    return [r - mean for r in group]


def _scaled(centred: list[float], ddof: int, eps: float) -> list[float]:
    std = math.hypot(*centred) / math.sqrt(len(centred) - ddof)
    return [r / (std + eps) for r in centred]


def _members(rewards: Sequence[float], group_ids: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    if len(rewards) != len(group_ids):
        raise ValueError(f"one group id per reward, got {len(rewards)} rewards and {len(group_ids)} group ids")
    _check_finite(rewards)
    members: dict[Hashable, list[int]] = {}
    for i, key in enumerate(group_ids):
        members.setdefault(key, []).append(i)
    return members


def _check_finite(rewards: Sequence[float]) -> None:
    for i, r in enumerate(rewards):
        if not math.isfinite(r):
            raise ValueError(f"rewards must be finite, got {r} at index {i}")


def _check_scale(ddof: int, eps: float) -> None:
    if ddof not in (0, 1) or not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"ddof must be 0 or 1 and eps >= 0, got ddof={ddof}, eps={eps}")
