"""Settings of the stage `rlhf`: the policy's prompts and objective, and whose scores are its rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from patarm_core.unscored import UnscoredRule
from rollout.contexts import PromptConfig
from trainer.stage_config import OptimConfig, PolicyGradientConfig, check, is_at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """Who scores a completion (trainer/scorers.py). What belongs to another kind is passed over."""

    # "judge": PaTaRM, the mean of `votes` judgments; "scalar": a reward model's head; "checker": data.checker itself;
    # "callable": `function`; "endpoint": a judge behind an OpenAI-compatible API, such as rollout/main.py serve
    kind: Literal["judge", "scalar", "checker", "callable", "endpoint"] = "judge"
    model: str = ""  # judge, scalar: a Hugging Face directory; endpoint: the model's name there
    dtype: Literal["float32", "bfloat16"] = "float32"  # judge, scalar
    votes: int = 1  # judge, endpoint: m judgments of each completion
    task: str = ""  # judge, endpoint: whose rubrics all prompts are judged by; empty: each prompt's own task
    prompt: PromptConfig = field(default_factory=PromptConfig)  # judge, endpoint: how it is asked
    max_completion_tokens: int = 4096  # of a judgment
    temperature: float = 1.0
    well_formed: bool = False  # judge: draw only tokens that keep a judgment readable
    max_rows: int = 512  # judge: judgments decoded side by side on one rank
    kv_gib: float = 0.0  # judge: as rollout.kv_gib, the two engines take turns; 0: 4, on a GPU too
    # callable: "module:function", called as function(prompts, completions, task=[…], checks=[…]) for a list of scores,
    # None where there is none (TRL's form)
    function: str = ""
    url: str = ""  # endpoint: such as http://127.0.0.1:8000/v1
    judge: str = "patarm"  # endpoint: how it is asked (eval/judges/spec.py)
    api_key_env: str = ""  # endpoint: the environment variable that holds the key
    concurrency: int = 16  # endpoint: requests that are open at a time

    def __post_init__(self) -> None:
        check(self, is_at_least(1), "at least 1", "votes", "max_completion_tokens", "max_rows", "concurrency")
        check(self, is_at_least(0), "at least 0", "temperature", "kv_gib")


@dataclass(frozen=True, kw_only=True, slots=True)
class RlhfConfig(PolicyGradientConfig):
    """GRPO of a policy on prompts (paper sec. 4.3; its table 9 counts 256 prompts of 4 rollouts a step)."""

    prompts_per_step: int = 256
    reward: RewardConfig = field(default_factory=RewardConfig)
    # A completion without a score: "mean" gives it the mean of its group's scores, "drop" leaves it out of the step.
    unscored: UnscoredRule = "mean"
    # The text after the last of these is what is judged and checked, such as "</think>"; all of it where there is none.
    answer_after: str = ""
    num_sample_prompts: int = 2  # prompts a step of which a completion is written to samples.jsonl
    optim: OptimConfig = OptimConfig(lr=1e-6, schedule="constant")  # ours: the paper gives no rate of its policies

    def __post_init__(self) -> None:
        PolicyGradientConfig.__post_init__(self)
        check(self, is_at_least(1), "at least 1", "prompts_per_step")
        check(self, is_at_least(0), "at least 0", "num_sample_prompts")
