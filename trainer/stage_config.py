"""Settings that stages share: the optimiser, the loop, and the policy gradient of those that train with rewards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from patarm_core.advantages import Estimator
from patarm_core.loss_weights import Normalization


def check(config: object, is_right: Callable[[float], bool], right: str, *names: str) -> None:
    for name in names:
        if not is_right(getattr(config, name)):
            raise ValueError(f"{name}={getattr(config, name)} must be {right}")


def is_at_least(least: float) -> Callable[[float], bool]:
    return lambda value: least <= value < math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW with a linear warm-up, then `schedule` from lr to final_lr."""

    lr: float
    final_lr: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    grad_clip: float = 1.0  # of the global gradient norm
    cpu_offload: bool = False  # AdamW's moments stay in the host's memory between steps (trainer/offload.py)
    # A step whose loss or gradient is not finite is skipped; after so many in a row the run stops, its evidence saved.
    max_skipped_steps: int = 3

    def __post_init__(self) -> None:
        check(self, lambda value: 0 < value < math.inf, "positive", "lr", "grad_clip")
        check(self, is_at_least(0), "at least 0", "final_lr", "warmup_steps", "weight_decay")
        check(self, is_at_least(1), "at least 1", "max_skipped_steps")
        check(self, lambda betas: all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)", "betas")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """What every stage is told, whatever it trains on."""

    steps: int = 0  # 0: whole epochs
    epochs: int = 1
    tokens_per_micro_batch: int = 16_384  # in one forward pass on one rank, padding included
    dev_every: int = 0  # steps between measurements on the dev pairs; 0: none
    checkpoint_every: int = 0  # steps; the end of the stage always makes one
    # The stage ends once `patience` dev measurements in a row bring no gain in accuracy above min_delta; 0: never
    patience: int = 0
    min_delta: float = 0.0
    # Whose weights the stage leaves. With "best", that of the highest dev accuracy so far is saved when it is measured.
    keep: Literal["last", "best"] = "last"
    # Checkpoints that are kept: the last ones, and beside them that of the best dev accuracy (unless `keep = "best"`,
    # where `dev_every` and `checkpoint_every` meet). With 2, there is another one if the last cannot be read.
    checkpoint_keep: int = 2
    optim: OptimConfig

    def __post_init__(self) -> None:
        check(self, is_at_least(0), "at least 0", "steps", "dev_every", "checkpoint_every", "patience", "min_delta")
        check(self, is_at_least(1), "at least 1", "epochs", "tokens_per_micro_batch", "checkpoint_keep")
        if self.patience and not self.dev_every:
            raise ValueError(f"patience={self.patience} counts dev measurements; dev_every=0 makes none")
        if self.keep == "best" and not self.dev_every:
            raise ValueError('keep="best" goes by dev measurements; dev_every=0 makes none')


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyGradientConfig(StageConfig):
    """What `grpo`, which trains a judge, and `rlhf`, which trains a policy, do with their rewards."""

    # "reinforce++" whitens over the whole step and knows no groups; its "_baseline" takes the group's mean off first
    advantage: Estimator = "grpo"
    # DAPO's soft punishment: a completion loses up to 1 of its reward in its last so many tokens before the limit; 0:
    # off, as a judgment that is cut loses 1.5 already.
    overlong_buffer_tokens: int = 0
    ratio: Literal["token", "sequence"] = "token"  # "sequence": GSPO; its paper clips at 3e-4 below and 4e-4 above
    clip_low: float = 0.2  # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.2  # DAPO: 0.28
    dual_clip: float = 0.0  # c > 1: loss of at most -c A where the advantage A < 0 (arXiv:1912.09729); 0: no bound
    # What a token's loss is divided by, counted over the step: "token" all tokens, "sequence" the tokens of its
    # completion and then the completions (GRPO's own), "constant" completions x max_completion_tokens (Dr. GRPO).
    normalization: Normalization = "token"
    # C > 0: policy losses weigh min(trainer's / rollout's probability, C), and the ratio is to the trainer's own
    # log-probs before the step (trainer/policy_loss.py): for rollouts whose rounding differs, as in bfloat16. 0: off.
    importance_cap: float = 0.0
    inner_epochs: int = 1  # optimiser steps on one set of rollouts
    kl_coef: float = 0.001  # of the KL estimate against the initial policy; 0 leaves the reference model out
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"  # kernels/grpo_loss.py; as a loss, k1 pulls nowhere on average
    entropy_coef: float = 0.0
    # On a CPU in float32: log-probs by the rollout's own arithmetic, so that a ratio is 1, and not nearly, until an
    # update. Costs time (trainer/exact.py).
    exact_logprobs: bool = False

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        check(self, is_at_least(0), "at least 0", "clip_high", "kl_coef", "entropy_coef", "overlong_buffer_tokens")
        check(self, lambda share: 0 <= share < 1, "in [0, 1)", "clip_low")
        check(self, lambda value: value == 0 or 1 < value < math.inf, "0 or above 1", "dual_clip")
        check(self, lambda value: value == 0 or 1 <= value < math.inf, "0 or at least 1", "importance_cap")
        check(self, is_at_least(1), "at least 1", "inner_epochs")
