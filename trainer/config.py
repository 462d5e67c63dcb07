"""The recipe: one tree of frozen dataclasses, read from TOML. Every default stands here, beside its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from patarm_core.embedded.policy import EmbeddedPolicyConfig
from patarm_core.embedded.splits import EmbeddedConfig
from patarm_core.judgment import JudgeMode
from patarm_core.par import MarginReward, constant, graded
from rollout.contexts import PromptConfig
from trainer.rlhf_config import RlhfConfig
from trainer.stage_config import OptimConfig, PolicyGradientConfig, StageConfig, check, is_at_least

JUDGE_STAGES = ("sft", "grpo")  # that train a judge, which is measured by its judgments
POLICY_STAGES = ("sft", "dpo", "rlhf")  # that train a policy, where the recipe's role says so
PAIR_STAGES = ("grpo", "bt", "dpo")  # that train on preference pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallModelConfig:
    """A random Qwen3-shaped model, made by the run when no `model.path` is given."""

    vocab_size: int = 704
    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 1024
    rope_theta: float = 10_000.0
    init_std: float = 0.05

    def __post_init__(self) -> None:
        counts = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        counts += ("num_key_value_heads", "head_dim", "max_position_embeddings")
        check(self, is_at_least(1), "at least 1", *counts)
        check(self, lambda value: 0 < value < math.inf, "positive", "rope_theta", "init_std")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    path: str = ""  # a Hugging Face directory; empty: the small model below
    dtype: Literal["float32", "bfloat16"] = "float32"  # of compute; master weights and reductions are float32
    activation_checkpointing: bool = False
    # Of what is trained: a pair's judgments share their beginnings, or each is laid out by itself (to compare with).
    layout: Literal["tree", "flat"] = "tree"
    # False: gradients are reduced once a step, and until then every rank holds whole ones, 4 bytes per parameter.
    reduce_each_micro_batch: bool = False
    # Processes over which weights, gradients and moments are sharded, such as those of a node; groups of this size are
    # copies of one another (HSDP). 0: all of them.
    shard_size: int = 0
    export_dtype: Literal["float32", "bfloat16"] = "float32"  # of the Hugging Face directories that stages leave
    small: SmallModelConfig = SmallModelConfig()

    def __post_init__(self) -> None:
        check(self, is_at_least(0), "at least 0", "shard_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Files in this project's JSONL schemas, or the embedded set written to such files by the run."""

    source: Literal["files", "embedded"] = "files"
    judgments: str = ""  # SFT rows
    pairs: str = ""  # preference pairs for RL
    dev: str = ""  # pairs watched during training
    held_out: str = ""  # pairs for the reported result, read by nothing else
    # Of role = "policy" (patarm_core/policy_rows.py):
    responses: str = ""  # rows of prompt and response, for SFT
    prompts: str = ""  # for rlhf
    dev_prompts: str = ""  # watched during training
    held_out_prompts: str = ""  # for the reported result
    # What an answer is checked by: "embedded"; "ifeval", by the rules that `checks` names; or "module:function", called
    # as function(prompt, response, checks) for a number from 0 to 1. Empty: of an answer only the reward is known.
    checker: str = ""
    label_noise: float = 0.0  # seeded share of training pairs whose sides are flipped (figure 4)
    embedded: EmbeddedConfig = field(default_factory=EmbeddedConfig)
    embedded_policy: EmbeddedPolicyConfig = field(default_factory=EmbeddedPolicyConfig)

    def __post_init__(self) -> None:
        check(self, lambda share: 0 <= share <= 1, "in [0, 1]", "label_noise")
        files = ("judgments", "pairs", "dev", "held_out", "responses", "prompts", "dev_prompts", "held_out_prompts")
        named = [name for name in files if getattr(self, name)]
        if self.source == "embedded" and named:
            raise ValueError(f'{named[0]}: with source = "embedded" no file is read; set source = "files"')


@dataclass(frozen=True, kw_only=True, slots=True)
class SftConfig(StageConfig):
    rows_per_step: int = 512  # table 7, pointwise
    optim: OptimConfig = OptimConfig(lr=1.5e-6, final_lr=1.5e-7)  # table 7, 8B

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        check(self, is_at_least(1), "at least 1", "rows_per_step")


@dataclass(frozen=True, kw_only=True, slots=True)
class MarginConfig:
    """f(δ) of PAR: graded (1.2 up to the threshold, 1.4 above) or constant (METHOD: sec. 3.1)."""

    kind: Literal["graded", "constant"] = "graded"
    threshold: float = 2.0
    low: float = 1.2
    high: float = 1.4
    value: float = 1.3  # of the constant

    def __post_init__(self) -> None:
        self.build()  # refuses what cannot be a reward

    def build(self) -> MarginReward:
        return graded(self.threshold, self.low, self.high) if self.kind == "graded" else constant(self.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    num_rollouts: int = 8  # n judgments per response
    max_completion_tokens: int = 4096
    temperature: float = 1.0  # GRPO takes no other: its ratio is of log-probs at 1
    max_rows: int = 512  # rollouts decoded side by side on one rank
    kv_gib: float = 0.0  # of keys and values on one rank; 0: 4 on a CPU, on a GPU nine tenths of what training leaves

    def __post_init__(self) -> None:
        check(self, is_at_least(1), "at least 1", "num_rollouts", "max_completion_tokens", "max_rows")
        check(self, lambda value: 0 < value < math.inf, "positive", "temperature")
        check(self, is_at_least(0), "at least 0", "kv_gib")


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpoConfig(PolicyGradientConfig):
    pairs_per_step: int = 128  # 256 contexts (table 7 counts both sides of a pair)
    group: Literal["side", "pair"] = "side"  # n judgments of one response, or 2n of both
    # "separately": PAR and format get advantages of their own, which are added; a format that varies much (early in
    # training) then no longer shrinks, by the deviation it adds, what PAR says (patarm_core/advantages.py).
    normalize_rewards: Literal["together", "separately"] = "together"
    margin: MarginConfig = MarginConfig()
    # DAPO's dynamic sampling: pairs none of whose judgments has an advantage are dropped, as wholes, and the next pairs
    # of the data take their places, in at most so many further rounds of rollouts a step; 0: off. The number of steps
    # stays; what is drawn beyond it comes from the epochs that follow.
    refill_rounds: int = 0
    num_sample_pairs: int = 2  # pairs a step whose judgments are written to samples.jsonl
    optim: OptimConfig = OptimConfig(lr=5e-7, schedule="constant")  # table 7, 8B

    def __post_init__(self) -> None:
        PolicyGradientConfig.__post_init__(self)
        check(self, is_at_least(0), "at least 0", "num_sample_pairs", "refill_rounds")
        check(self, is_at_least(1), "at least 1", "pairs_per_step")
        if self.refill_rounds and self.advantage == "reinforce++":
            raise ValueError(
                f'refill_rounds={self.refill_rounds}: advantage = "reinforce++" knows no groups, and leaves no pair '
                'without an advantage; "reinforce++_baseline" does'
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BtConfig(StageConfig):
    """Bradley-Terry reward model (METHOD: sec. 5). The paper gives no settings of its BTRM."""

    pairs_per_step: int = 128  # as in GRPO, so that both see the same pairs in the same steps
    # Rate, epoch and cosine of RLHF Workflow's reward model (arXiv:2405.07863), its warm-up of 3 % in steps.
    optim: OptimConfig = OptimConfig(lr=2e-6, schedule="cosine", warmup_steps=5)

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        check(self, is_at_least(1), "at least 1", "pairs_per_step")


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoConfig(BtConfig):
    """Direct preference optimisation (arXiv:2305.18290); steps as in Bradley-Terry."""

    beta: float = 0.1  # eq. 7; app. B
    label_smoothing: float = 0.0  # share of labels held to be wrong (conservative DPO)
    pairs_per_step: int = 64  # app. B
    # Of a policy: "data" takes data.pairs; "reward" makes pairs of data.prompts, the best and the worst of
    # `num_answers` by rlhf.reward, all drawn before the first step (trainer/judged_pairs.py).
    preferences: Literal["data", "reward"] = "data"
    num_answers: int = 4
    optim: OptimConfig = OptimConfig(lr=5e-7, warmup_steps=10)  # Zephyr's rate and linear fall (arXiv:2310.16944)

    def __post_init__(self) -> None:
        BtConfig.__post_init__(self)
        check(self, lambda value: 0 < value < math.inf, "positive", "beta")
        check(self, lambda share: 0 <= share < 0.5, "in [0, 0.5)", "label_smoothing")
        check(self, is_at_least(2), "at least 2", "num_answers")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    num_judgments: int = 8  # of each response of a held-out pair; of a policy, answers to a held-out prompt
    votes: tuple[int, ...] = (1, 8)
    num_dev_judgments: int = 4  # of each response of a dev pair; of a policy, answers to a dev prompt
    temperature: float = 1.0  # of held-out and dev judgments and answers; 0: greedy

    def __post_init__(self) -> None:
        check(self, is_at_least(0), "at least 0", "temperature")
        check(self, is_at_least(1), "at least 1", "num_judgments", "num_dev_judgments")
        if not self.votes or min(self.votes) < 1 or max(self.votes) > self.num_judgments:
            raise ValueError(f"votes={list(self.votes)} must be numbers from 1 to num_judgments={self.num_judgments}")


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchConfig:
    """When to warn that training with rewards goes wrong (trainer/failure_signs.py). Stops nothing.

    The paper names the signs and no numbers: these are ours, wide enough to be silent in a run that goes well.
    """

    window: int = 5  # steps of the moving averages: one step of few pairs is noise
    steps: int = 5  # in a row that a sign must show before it begins, and not show before it ends
    entropy_share: float = 0.2  # of the start; some narrowing is what training is
    margin_share: float = 0.5  # of the peak: half of what told the sides apart is gone
    margin_least_peak: float = 0.5  # points of score; a smaller peak is noise of n scores each
    zero_advantage_rise: float = 0.3  # of the share of groups with equal rewards, over its start
    zero_advantage_most: float = 0.95  # of that share, also where it was so from the start: next to nothing is learned
    valid_drop: float = 0.1  # of the share of valid judgments, from its peak
    length_ratio: float = 2.0  # completion tokens over their start
    # Of a policy: the checker's score on the dev prompts so far below its best, while the reward is above what it was
    checker_drop: float = 0.02
    dev_measurements: int = 2  # in a row that show it, or do not
    unscored_share: float = 0.1  # of a policy's answers that the reward gives no score
    logprob_gap: float = 0.05  # nats, mean |log ratio| before an update: 1.05 a token is where others draw the line

    def __post_init__(self) -> None:
        check(self, is_at_least(1), "at least 1", "window", "steps", "length_ratio", "dev_measurements")
        shares = ("entropy_share", "margin_share", "zero_advantage_rise", "zero_advantage_most", "valid_drop")
        check(self, lambda share: 0 <= share <= 1, "in [0, 1]", *shares, "checker_drop", "unscored_share")
        check(self, lambda value: 0 < value < math.inf, "positive", "margin_least_peak", "logprob_gap")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    tensorboard: bool = False  # scalars of every step under `tensorboard/` in the run's folder; needs the extra


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """`torchrun trainer/main.py RECIPE.toml [key=value …]`."""

    seed: int = 0
    out: str  # the run's folder; a number is added when it exists, unless the run resumes
    resume: bool = False  # go on with the run in `out`
    stages: tuple[Literal["sft", "grpo", "bt", "dpo", "rlhf"], ...] = ("sft", "grpo")
    # What is trained: a judge of responses, or a policy that responds. SFT imitates judgments or responses; models are
    # measured on pairs, or by the checker on prompts that they answer.
    role: Literal["judge", "policy"] = "judge"
    # How a pair is judged: each response scored by itself, or one chosen of the two, A and B. SFT then reads rows with
    # response_a and response_b; RL rewards the right choice with 1, and a group is the n judgments of a pair.
    mode: JudgeMode = "pointwise"
    num_processes: int = 0  # refuse to start with any other number; 0: whatever torchrun starts
    stop_within_s: float = 25.0  # from SIGTERM or SIGINT until the run has left; torchrun waits for 30 s, then kills
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = field(default_factory=PromptConfig)
    rollout: RolloutConfig = RolloutConfig()
    sft: SftConfig = field(default_factory=SftConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    bt: BtConfig = field(default_factory=BtConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    rlhf: RlhfConfig = field(default_factory=RlhfConfig)
    eval: EvalConfig = EvalConfig()
    watch: WatchConfig = WatchConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        check(self, is_at_least(0), "at least 0", "num_processes")
        check(self, lambda value: 0 < value < math.inf, "positive", "stop_within_s")
        if not self.out:
            raise ValueError("out is empty; it names the run's folder")
        for stage in self.stages:
            if self.stages.count(stage) > 1:
                raise ValueError(f"stages={list(self.stages)}: {stage} is named twice; a run has each stage once")
        if "bt" in self.stages[:-1]:
            raise ValueError(
                f"stages={list(self.stages)}: bt leaves a reward model, which writes nothing; it comes last"
            )
        self._check_role()
        for stage in {"grpo", "rlhf"} & set(self.stages):
            config = getattr(self, stage)
            if self.rollout.temperature != 1:
                raise ValueError(
                    f"rollout.temperature={self.rollout.temperature} must be 1 with the stage {stage}: "
                    "the importance ratio is of log-probs at temperature 1; eval.temperature is free"
                )
            if config.overlong_buffer_tokens > self.rollout.max_completion_tokens:
                raise ValueError(
                    f"{stage}.overlong_buffer_tokens={config.overlong_buffer_tokens} is above "
                    f"rollout.max_completion_tokens={self.rollout.max_completion_tokens}"
                )
        for stage, config in (("grpo", self.grpo), ("rlhf", self.rlhf)):
            if config.exact_logprobs and self.model.dtype != "float32":
                raise ValueError(f'{stage}.exact_logprobs: needs model.dtype = "float32", got "{self.model.dtype}"')
        if "sft" in self.stages and self.mode == "pairwise" and self.data.source == "embedded":
            raise ValueError('mode = "pairwise": the embedded set has no pairwise judgments for the stage sft')
        is_one_context = self.mode == "pairwise" or self.grpo.group == "side"
        needs_others = {  # of the same context; plain Reinforce++ compares with the whole step
            "grpo": self.grpo.advantage != "reinforce++" and is_one_context,
            "rlhf": self.rlhf.advantage != "reinforce++" or self.rlhf.unscored == "drop",
        }
        if self.rollout.num_rollouts < 2 and any(needs_others.get(stage) for stage in self.stages):
            raise ValueError(
                f"a group baseline needs at least 2 rollouts per context, got num_rollouts={self.rollout.num_rollouts}"
            )

    @property
    def is_rewarded(self) -> bool:
        """Whether rlhf.reward scores what the policy answers to data.prompts."""
        return "rlhf" in self.stages or ("dpo" in self.stages and self.dpo.preferences == "reward")

    def _check_role(self) -> None:
        """Stages that go with what is trained."""
        if "dpo" in self.stages and self.dpo.preferences == "reward":
            if self.role != "policy":
                raise ValueError('dpo.preferences = "reward": is of a policy\'s answers; set role = "policy"')
            if self.rlhf.answer_after:
                raise ValueError(
                    'rlhf.answer_after: dpo.preferences = "reward" trains on all of an answer; leave it out'
                )
        of_role = POLICY_STAGES if self.role == "policy" else ("sft", "grpo", "bt", "dpo")
        for stage in self.stages:
            if stage not in of_role:
                other = "judge" if self.role == "policy" else "policy"
                raise ValueError(f'stages: {stage} trains no {self.role}; set role = "{other}"')
            config = getattr(self, stage)
            goes_by_dev = self.role == "policy" and stage != "dpo" and (config.patience or config.keep == "best")
            if goes_by_dev and self.data.source == "files" and not self.data.checker:
                raise ValueError(f"{stage}.patience, {stage}.keep: go by data.checker; none is given")
