"""Trees dealt to ranks by what they are estimated to cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.decoder import DecoderConfig
from trainer.distributed import World
from trainer.token_tree import Leaf, TokenTree


@dataclass(frozen=True, slots=True)
class Cost:
    """Estimated FLOPs of training: forward and twice as much backward, two per product."""

    per_token: float
    per_attention_pair: float

    @classmethod
    def of(cls, config: DecoderConfig) -> Cost:
        per_pair = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
        return cls(6 * config.num_parameters, per_pair)

    def __call__(self, tree: TokenTree) -> float:
        return self.per_token * tree.num_tokens + self.per_attention_pair * tree.num_attention_pairs


def balance(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Indices of each rank's items, ascending: the dearest goes first, each to the rank that has least.

    (Longest processing time first: at most 4/3 of the best possible maximum. Ties go to the lower index and rank.)
    """
    loads, shares = [0.0] * num_ranks, [[] for _ in range(num_ranks)]
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(i)
        loads[rank] += costs[i]
    return [sorted(share) for share in shares]


def my_share(trees: Sequence[Sequence[Leaf]], config: DecoderConfig, layout: str, world: World) -> list[int]:
    """Indices of this rank's part of a step's trees, of which all ranks know all."""
    if world.size == 1:  # no costs to weigh, and no trees to build for them
        return list(range(len(trees)))
    cost = Cost.of(config)
    return balance([cost(TokenTree.of(leaves, layout == "tree")) for leaves in trees], world.size)[world.rank]
