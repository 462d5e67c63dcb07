"""What an estimate is of: a stage of a recipe, a model's shape, the GPUs, and how long texts are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rollout.decoder import DecoderConfig
from trainer.config import JUDGE_STAGES, Recipe, RolloutConfig, StageConfig
from trainer.rlhf_config import RewardConfig
from trainer.scorers import KV_GIB

INSTRUCTIONS = 350  # tokens of a judge's prompt that are not the prompt's own
SCORING = "scoring"  # no stage: the part of a policy's step in which a model on the same GPUs scores its answers

GIB = 2**30
BF16, FP32 = 2, 4  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """Data sheets, SXM form: dense bf16 products, memory, links to a node's other GPUs and to other nodes."""

    name: str
    flops: float  # per second
    bytes_per_s: float
    memory_gib: float  # that a program sees
    node_link: float  # B/s in each direction, of one GPU
    network: float  # B/s in each direction, of one GPU's share of its node's cards


GPUS = {
    "A100": Gpu(
        name="A100 80 GB", flops=312e12, bytes_per_s=2.04e12, memory_gib=79.2, node_link=300e9, network=25e9
    ),
    "H100": Gpu(
        name="H100 80 GB", flops=989e12, bytes_per_s=3.35e12, memory_gib=79.1, node_link=450e9, network=50e9
    ),
    "H200": Gpu(
        name="H200 141 GB", flops=989e12, bytes_per_s=4.8e12, memory_gib=139.8, node_link=450e9, network=50e9
    ),
}  # fmt: skip
GPUS_PER_NODE = 8


@dataclass(frozen=True, slots=True)
class Tree:
    """Tokens that are trained on together (trainer/token_tree.py): a trunk, equal branches, equal leaves on each."""

    trunk: int
    num_branches: int
    branch: int
    per_branch: int  # leaves
    leaf: int
    loss: int  # tokens of a leaf that the loss reads

    @property
    def num_leaves(self) -> int:
        return self.num_branches * self.per_branch

    @property
    def context(self) -> int:
        """Of one leaf."""
        return self.trunk + self.branch

    @property
    def contexts(self) -> int:
        """Of all leaves, what they share counted once."""
        return self.trunk + self.num_branches * self.branch

    def num_tokens_in_parts(self, most: int) -> int:
        """Of parts of at most `most` tokens, as many leaves in each as fit, with their contexts (TokenTree.split)."""
        total = length = branch = 0
        for leaf in range(self.num_leaves):
            is_new_branch, branch = branch != (now := leaf // self.per_branch), now
            num_new = self.leaf + (self.branch if is_new_branch else 0)
            if length == 0 or length + num_new > most:
                num_new, length = self.context + self.leaf, 0
            total, length = total + num_new, length + num_new
        return total


def num_read(recipe: Recipe, stage: str) -> int:
    """Responses in one context: both of a pair where a judge chooses between them."""
    return 2 if recipe.mode == "pairwise" and writes_judgments(recipe, stage) else 1


def writes_judgments(recipe: Recipe, stage: str) -> bool:
    return recipe.role == "judge" and stage in JUDGE_STAGES


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    recipe: Recipe
    stage: str
    shape: DecoderConfig
    gpu: Gpu
    num_gpus: int
    prompt: int  # P, tokens of the template's head, the rubrics and the prompt: what both sides share
    response: int  # R, tokens of the response and the template's tail
    judgment: int  # J, tokens a judge writes, on average
    mfu: float  # share of the products that a GPU could do
    bandwidth: float  # share of its memory's bandwidth that decoding gets
    link: float = 0.7  # likewise of the links
    reward: DecoderConfig | None = None  # of a policy: what scores its answers, whole on every GPU

    def __post_init__(self) -> None:
        tree = self.tree
        if self.num_gpus % self.shards:
            raise ValueError(f"model.shard_size={self.shards} does not divide {self.num_gpus} GPUs")
        limits = [(self.shape.max_position_embeddings, "the model's max_position_embeddings")]
        if self.stage == SCORING:
            limits = [(self.shape.max_position_embeddings, "the max_position_embeddings of rlhf.reward.model")]
        else:
            limits.append((self.config.tokens_per_micro_batch, f"{self.stage}.tokens_per_micro_batch"))
        for longest, key in limits:
            if tree.context + tree.leaf > longest:
                raise ValueError(
                    f"a context of {tree.context} tokens and {tree.leaf} that follow do not fit {key}={longest}"
                )

    @property
    def config(self) -> StageConfig:
        return self.recipe.rlhf if self.stage == SCORING else getattr(self.recipe, self.stage)

    @property
    def scoring(self) -> Job | None:
        """How `reward` scores the answers of a step, as a job of its own."""
        if self.reward is None:
            return None
        return replace(self, stage=SCORING, shape=self.reward, prompt=self.prompt + INSTRUCTIONS, reward=None)

    @property
    def drawing(self) -> RolloutConfig | RewardConfig:
        """Rows and limits of what is drawn."""
        return self.recipe.rlhf.reward if self.stage == SCORING else self.recipe.rollout

    @property
    def kv_gib(self) -> float:
        """Of keys and values on one GPU, as told; 0: what is free."""
        return self.drawing.kv_gib or (KV_GIB if self.stage == SCORING else 0.0)

    @property
    def dtype(self) -> str:
        """Of compute."""
        return self.recipe.rlhf.reward.dtype if self.stage == SCORING else self.recipe.model.dtype

    @property
    def num_read(self) -> int:
        """Responses in one context."""
        return num_read(self.recipe, self.stage)

    @property
    def tree(self) -> Tree:
        """One of `num_trees`: a pair, a row of SFT, or a prompt of RLHF with its answers."""
        P, R, J, n = self.prompt, self.response, self.judgment, self.recipe.rollout.num_rollouts
        if self.stage == SCORING:
            is_scalar, votes = self.shape.is_scalar, self.recipe.rlhf.reward.votes
            return Tree(0, n, P - INSTRUCTIONS + R, 1, 0, 0) if is_scalar else Tree(P, n, R, votes, J, J)
        if self.recipe.role == "policy" and self.stage == "sft":
            return Tree(P, 1, 0, 1, R, R)
        return {
            "sft": Tree(P, 1, self.num_read * R, 1, J, J),
            "grpo": Tree(P, 1, 2 * R, n, J, J) if self.num_read == 2 else Tree(P, 2, R, n, J, J),
            "bt": Tree(P, 2, R, 1, 0, 1),
            "dpo": Tree(P, 2, 0, 1, R, R),
            "rlhf": Tree(P, 1, 0, n, R, R),
        }[self.stage]

    @property
    def unit(self) -> str:
        """What a step counts."""
        return {"sft": "rows", "rlhf": "prompts", SCORING: "prompts"}.get(self.stage, "pairs")

    @property
    def num_trees(self) -> float:
        """Of a step on one GPU."""
        return getattr(self.config, f"{self.unit}_per_step") / self.num_gpus

    @property
    def N(self) -> int:
        """Parameters."""
        return self.shape.num_parameters

    @property
    def head(self) -> int:
        """Parameters of the head, or of the embedding that is it."""
        return self.shape.hidden_size * (1 if self.shape.is_scalar else self.shape.vocab_size)

    @property
    def block(self) -> int:
        """Parameters of one block."""
        shape = self.shape
        num_outside = shape.vocab_size * shape.hidden_size + shape.hidden_size
        num_outside += 0 if shape.tie_word_embeddings and not shape.is_scalar else self.head
        return (self.N - num_outside) // shape.num_hidden_layers

    @property
    def shards(self) -> int:
        """GPUs that hold one copy of weights, gradients and moments together."""
        return self.recipe.model.shard_size or self.num_gpus

    @property
    def rolls_out(self) -> bool:
        return self.stage in ("grpo", "rlhf")

    @property
    def has_replica(self) -> bool:
        """Made when it is first used: by GRPO, to draw what a judge prefers, or to measure a judge or a policy."""
        data, dev_every = self.recipe.data, self.config.dev_every
        if self.stage == SCORING:
            return not self.shape.is_scalar
        if self.rolls_out:
            return True
        if self.recipe.role == "judge":
            return bool(self.stage in JUDGE_STAGES and (data.held_out or dev_every))
        return bool(data.held_out_prompts or (self.recipe.is_rewarded if self.stage == "dpo" else dev_every))

    @property
    def has_reference(self) -> bool:
        """A second model. (DPO asks its own once, before it trains.)"""
        return self.rolls_out and self.config.kl_coef > 0

    @property
    def loss_tokens(self) -> float:
        """Of a step on one GPU."""
        return self.num_trees * self.tree.num_leaves * self.tree.loss

    @property
    def tokens(self) -> float:
        """Of a step's forward passes on one GPU."""
        tree = self.tree
        if self.recipe.model.layout == "flat":
            return self.num_trees * tree.num_leaves * (tree.context + tree.leaf)
        return self.num_trees * tree.num_tokens_in_parts(self.config.tokens_per_micro_batch)

    @property
    def visible(self) -> float:
        """Pairs (query, key) of a step on one GPU that attention computes."""
        tree = self.tree
        of_leaf = tree.leaf * (tree.context + tree.leaf / 2)
        if self.recipe.model.layout == "flat":
            return self.num_trees * tree.num_leaves * (tree.context**2 / 2 + of_leaf)
        of_branch = tree.branch * (tree.trunk + tree.branch / 2)
        return self.num_trees * (tree.trunk**2 / 2 + tree.num_branches * of_branch + tree.num_leaves * of_leaf)
