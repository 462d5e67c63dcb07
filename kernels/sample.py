"""Sampling a token per row, with the log-probabilities that training needs.

The draw has two levels (a tile of the vocabulary by its mass, then a token inside it), so that an implementation may
read the logits once and needs no random number per token. Noise is counter-based: key = the request's seed, counter =
(position, 0, sample index, 0).

    B rows   V vocabulary   N tiles of TILE tokens
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.philox import open_uniform, philox4x32

TILE = 4096


@dataclass(frozen=True, slots=True)
class Draw:
    """token_B int64; the rest float32 [B], in nats."""

    token_B: Tensor
    logprob_B: Tensor  # under softmax(logits): the policy that is trained
    drawn_logprob_B: Tensor  # under the distribution it was drawn from: tempered, filtered, renormalised
    entropy_B: Tensor  # of softmax(logits)


def sample(
    logits_BV: Tensor,
    seed_B: np.ndarray,
    sample_B: np.ndarray,
    position_B: np.ndarray,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Draw:
    """Draws one token per row from the tempered and filtered distribution.

    Args:
        logits_BV: any float dtype; computed in float32. -inf marks tokens that cannot be drawn.
        seed_B, sample_B, position_B: uint64 request seed, sample index within the request, position in the completion.
        temperature: 0 takes the largest logit (the first of equal ones).
        top_k: keep the k largest logits and all that equal the k-th; 0 keeps all.
        top_p: keep the smallest set of largest logits whose mass reaches top_p, ties kept together.
        min_p: keep tokens with at least min_p times the largest probability. Filters apply in this order.
    """
    z_BV = logits_BV.float()
    logprob_BV = z_BV.log_softmax(-1)
    probability_BV = z_BV.softmax(-1)
    # p log p is 0 where p = 0: -inf logits would give nan.
    entropy_B = -(probability_BV * logprob_BV.clamp_min(torch.finfo(torch.float32).min)).sum(-1)
    if temperature == 0:
        token_B = z_BV.argmax(-1)
        return Draw(token_B, _at(logprob_BV, token_B), torch.zeros_like(entropy_B), entropy_B)
    uniforms = _uniforms(seed_B, sample_B, position_B)
    if temperature == 1 and top_k == 0 and top_p == 1 and min_p == 0:
        token_B = _two_level_draw(probability_BV, *uniforms)
        logprob_B = _at(logprob_BV, token_B)
        return Draw(token_B, logprob_B, logprob_B, entropy_B)
    z_BV = (z_BV - z_BV.amax(-1, keepdim=True)) / temperature
    z_BV = z_BV.masked_fill(z_BV < _threshold(z_BV, top_k, top_p, min_p)[:, None], -torch.inf)
    token_B = _two_level_draw(z_BV.exp(), *uniforms)
    return Draw(token_B, _at(logprob_BV, token_B), _at(z_BV.log_softmax(-1), token_B), entropy_B)


def _at(x_BV: Tensor, token_B: Tensor) -> Tensor:
    return x_BV.gather(-1, token_B[:, None])[:, 0]


def _uniforms(seed_B: np.ndarray, sample_B: np.ndarray, position_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    seed_B = np.asarray(seed_B, dtype=np.uint64)
    zero = np.uint64(0)
    key = (seed_B & np.uint64(0xFFFFFFFF), seed_B >> np.uint64(32))
    tile_word, token_word, _, _ = philox4x32(key, (position_B, zero, sample_B, zero))
    return open_uniform(tile_word), open_uniform(token_word)


def _two_level_draw(weight_BV: Tensor, u_tile_B: np.ndarray, u_token_B: np.ndarray) -> Tensor:
    """Inverse-CDF draw, float64 sums: first tile whose cumulated mass exceeds u·total, then likewise within it."""
    B, V = weight_BV.shape
    u_tile_B1, u_token_B1 = (torch.from_numpy(u).to(weight_BV.device)[:, None] for u in (u_tile_B, u_token_B))
    if V <= TILE:
        return _first_above(weight_BV.cumsum(-1, dtype=torch.float64), u_token_B1)
    weight_BNT = F.pad(weight_BV, (0, -V % TILE)).unflatten(-1, (-1, TILE))
    tile_B = _first_above(weight_BNT.sum(-1, dtype=torch.float64).cumsum(-1), u_tile_B1)
    weight_BT = weight_BNT[torch.arange(B, device=weight_BV.device), tile_B]
    return tile_B * TILE + _first_above(weight_BT.cumsum(-1, dtype=torch.float64), u_token_B1)


def _first_above(cumulated_BX: Tensor, u_B1: Tensor) -> Tensor:
    """The first index whose cumulated weight exceeds u times the total: never one of weight 0, as 0 < u < 1."""
    return torch.searchsorted(cumulated_BX, u_B1 * cumulated_BX[:, -1:], right=True)[:, 0]


def _threshold(z_BV: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The smallest logit that each row keeps."""
    V = z_BV.shape[-1]
    sorted_BV = z_BV.sort(-1, descending=True).values
    floor_B = torch.full_like(z_BV[:, 0], -torch.inf)
    if 0 < top_k < V:
        floor_B = sorted_BV[:, top_k - 1]
        sorted_BV = sorted_BV.masked_fill(sorted_BV < floor_B[:, None], -torch.inf)
    if top_p < 1:
        probability_BV = sorted_BV.softmax(-1, dtype=torch.float64)
        before_BV = probability_BV.cumsum(-1) - probability_BV  # mass of strictly better ranks
        num_kept_B = (before_BV < top_p).sum(-1).clamp_min(1)
        floor_B = torch.maximum(floor_B, _at(sorted_BV, num_kept_B - 1))
    if min_p > 0:
        floor_B = torch.maximum(floor_B, sorted_BV[:, 0] + float(np.log(min_p)))
    return floor_B
