"""What an estimate is of: a stage of a recipe, a model's shape, the GPUs, and how long texts are."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from rollout.decoder import DecoderConfig
from trainer.config import GrpoConfig, Recipe, SftConfig

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

    def __post_init__(self) -> None:
        if self.shape.max_position_embeddings < self.prompt + self.response + self.judgment:
            raise ValueError(
                f"{self.prompt} + {self.response} + {self.judgment} tokens of prompt, response and judgment are more "
                f"than the model's max_position_embeddings={self.shape.max_position_embeddings}"
            )
        if self.num_gpus % self.shards:
            raise ValueError(f"model.shard_size={self.shards} does not divide {self.num_gpus} GPUs")
        if self.context + self.judgment > self.config.tokens_per_micro_batch:
            raise ValueError(
                f"a context of {self.context} tokens and a judgment of {self.judgment} do not fit "
                f"{self.stage}.tokens_per_micro_batch={self.config.tokens_per_micro_batch}"
            )

    @property
    def config(self) -> SftConfig | GrpoConfig:
        return getattr(self.recipe, self.stage)

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
    def n(self) -> int:
        return self.recipe.rollout.num_rollouts

    @property
    def context(self) -> int:
        return self.prompt + self.response

    @property
    def rolls_out(self) -> bool:
        return self.stage == "grpo"

    @property
    def has_replica(self) -> bool:
        """Made when it is first used: by GRPO, or to measure on dev or held-out pairs."""
        return self.rolls_out or bool(self.recipe.data.held_out or self.config.dev_every)

    @property
    def has_reference(self) -> bool:
        return self.rolls_out and self.config.kl_coef > 0

    @property
    def pairs(self) -> float:
        """Pairs of a step on one GPU."""
        return self.config.pairs_per_step / self.num_gpus

    @property
    def loss_tokens(self) -> float:
        """Of a step on one GPU."""
        if not self.rolls_out:
            return self.config.rows_per_step * self.judgment / self.num_gpus
        return self.pairs * 2 * self.n * self.judgment

    @property
    def tokens(self) -> float:
        """Of a step's forward passes on one GPU: contexts once for the judgments that share them in a micro-batch."""
        if not self.rolls_out:
            return self.config.rows_per_step * (self.context + self.judgment) / self.num_gpus
        room = self.config.tokens_per_micro_batch - self.context
        num_parts = ceil(self.n * self.judgment / room)
        return self.loss_tokens + self.pairs * 2 * num_parts * self.context

    @property
    def visible(self) -> float:
        """Pairs (query, key) of a step on one GPU that attention computes: causal, n judgments over one context."""
        num_contexts = self.pairs * 2 if self.rolls_out else self.config.rows_per_step / self.num_gpus
        per_context = self.n if self.rolls_out else 1
        of_contexts = self.context**2 / 2
        return num_contexts * (of_contexts + per_context * self.judgment * (self.context + self.judgment / 2))
