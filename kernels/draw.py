"""The draw, exactly: which token a row of logits and two uniform numbers give, in numpy and in Triton.

Floating-point sums depend on their order and `exp` on the machine, so a draw by them is repeatable only almost always.
Here a token's weight is an *integer* in units of 2^-40, made by additions and multiplications that IEEE 754 rounds the
same everywhere; sums of integers have no order. So numpy, torch, the interpreter and a GPU draw the same token from the
same float32 logits, always. The weights are within 2e-7 of exp, as float32 would be, and tokens down to 2^-40 of the
likeliest one of their tile can be drawn.

The draw has two levels, so that an implementation may read the logits once and needs no random number per token:

    tile N of TILE tokens, with largest logit m_N:  A_N = Σ weight((z_v - m_N) c),  c = log2(e) / temperature
    its mass in the row, with largest logit m:      G_N = floor(A_N weight((m_N - m) c) 2^-75 2^40)
    tile  = the first whose cumulated G exceeds u₁ Σ G
    token = the first of that tile whose cumulated weight exceeds u₂ A

u₁ and u₂ come from Philox keyed by the request's seed, with counters (position, 0, sample, 0) and
(position, 1 + tile, sample, 0).

    B rows   V vocabulary   N tiles   K tokens of a tile
"""

from __future__ import annotations

import math

import numpy as np

from kernels.jit import jit, tl
from kernels.philox import open_uniform, philox4x32

TILE = 128
LOG2E = math.log2(math.e)

# 2^f = 1 + f (C1 + f (C2 + …)) on [0, 1], relative error 2e-9 before rounding (Lawson's algorithm), 9e-8 in float32.
_POWERS = (0.69314706, 0.2402293, 0.05548528, 0.009675452, 0.0012467841, 0.00021612935)


def scale_of(temperature: np.ndarray) -> np.ndarray:
    """c, float32: differences of logits times c are differences of log2 weight. 0 at temperature 0."""
    temperature = np.asarray(temperature, dtype=np.float64)
    largest = float(np.finfo(np.float32).max)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(temperature > 0, np.minimum(LOG2E / temperature, largest), 0.0).astype(np.float32)


def weights(x: np.ndarray) -> np.ndarray:
    """floor(2^40 · 2^x) as int64, for float32 x <= 0; 0 below x = -64."""
    x = np.maximum(x.astype(np.float32), np.float32(-64))
    whole = np.floor(x)
    f = x - whole
    power = np.full_like(f, np.float32(_POWERS[-1]))
    for coefficient in (*_POWERS[-2::-1], 1.0):
        power = power * f + np.float32(coefficient)  # numpy rounds the product, as a GPU does without contraction
    mantissa = (power * np.float32(1 << 23)).astype(np.int64)
    shift = whole.astype(np.int64) + 17
    return mantissa << np.maximum(shift, 0) >> np.maximum(-shift, 0)


def scaled(z: np.ndarray, m: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(z - m) scale in float32; -inf where z is, also if m is too."""
    return (z - np.where(m == -np.inf, np.float32(0), m)) * scale


def masses(tile_weight_BN: np.ndarray, m_BN: np.ndarray, m_B1: np.ndarray, scale_B1: np.ndarray) -> np.ndarray:
    """G, int64 [B, N], from A: one rounding of a product of two exact numbers."""
    relative_BN = weights(scaled(m_BN, m_B1, scale_B1))
    return (tile_weight_BN.astype(np.float64) * relative_BN.astype(np.float64) * 2.0**-35).astype(np.int64)


def first_above(weight_BX: np.ndarray, u_B: np.ndarray) -> np.ndarray:
    """The first index whose cumulated weight exceeds u times the total: never one of weight 0, as 0 < u < 1."""
    cumulated_BX = weight_BX.cumsum(-1)
    total_B = cumulated_BX[:, -1]
    target_B = np.minimum((u_B * total_B.astype(np.float64)).astype(np.int64), total_B - 1)
    return (cumulated_BX <= target_B[:, None]).sum(-1)


def draw(
    logits_BV: np.ndarray, scale_B: np.ndarray, floor_B: np.ndarray, seed_B: np.ndarray, sample_B: np.ndarray,
    position_B: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(token_B int64, total mass_B int64 in units of 2^-45 of the likeliest token).

    Args:
        logits_BV: float32, finite or -inf, one finite in each row.
        floor_B: float32, the least logit that each row keeps.
        scale_B: float32, of `scale_of`.
        seed_B, sample_B, position_B: uint64 [B].
    """
    B, V = logits_BV.shape
    padded_BV = np.pad(logits_BV, ((0, 0), (0, -V % TILE)), constant_values=-np.inf)
    z_BNK = padded_BV.reshape(B, -1, TILE)
    m_BN = z_BNK.max(-1)
    x_BNK = scaled(z_BNK, m_BN[..., None], scale_B[:, None, None])
    weight_BNK = np.where(z_BNK >= floor_B[:, None, None], weights(x_BNK), 0)
    mass_BN = masses(weight_BNK.sum(-1), m_BN, m_BN.max(-1, keepdims=True), scale_B[:, None])
    tile_B = first_above(mass_BN, tile_uniform(seed_B, sample_B, position_B))
    token_B = first_above(weight_BNK[np.arange(B), tile_B], token_uniform(seed_B, sample_B, position_B, tile_B))
    return tile_B * TILE + token_B, mass_BN.sum(-1)


def least_kept(
    logits_BV: np.ndarray, scale_B: np.ndarray, top_k_B: np.ndarray, top_p_B: np.ndarray, min_p_B: np.ndarray
) -> np.ndarray:
    """The least logit that each row keeps, float32 [B]; equal logits are kept or dropped together.

    In this order: the top_k largest (0: all); of these the fewest largest whose mass reaches top_p of it (1: all); and
    of these the ones with at least min_p times the weight of the largest (0: all).
    """
    V = logits_BV.shape[1]
    sorted_BV = -np.sort(-logits_BV, -1)
    x_BV = scaled(sorted_BV, sorted_BV[:, :1], scale_B[:, None])
    k_B1 = np.where((top_k_B > 0) & (top_k_B < V), top_k_B, V)[:, None].astype(np.int64)
    floor_B1 = np.take_along_axis(sorted_BV, k_B1 - 1, -1)
    mass_BV = np.where(sorted_BV >= floor_B1, weights(x_BV), 0).cumsum(-1).astype(np.float64)
    num_kept_B1 = (mass_BV < top_p_B[:, None] * mass_BV[:, -1:]).sum(-1, keepdims=True) + 1
    nucleus_B1 = np.take_along_axis(sorted_BV, num_kept_B1 - 1, -1)
    is_likely_BV = x_BV >= log2_of(min_p_B)[:, None]
    likely_B1 = np.take_along_axis(sorted_BV, is_likely_BV.sum(-1, keepdims=True) - 1, -1)
    floor_B1 = np.maximum(floor_B1, np.where(top_p_B[:, None] < 1, nucleus_B1, -np.inf))
    return np.maximum(floor_B1, likely_B1)[:, 0].astype(np.float32)


def log2_of(min_p: np.ndarray) -> np.ndarray:
    """log2 min_p, float32; -inf for 0."""
    with np.errstate(divide="ignore"):
        return np.log2(np.asarray(min_p, dtype=np.float64)).astype(np.float32)


def tile_uniform(seed_B: np.ndarray, sample_B: np.ndarray, position_B: np.ndarray) -> np.ndarray:
    """u₁ of each row, float64 in (0, 1)."""
    return _uniform(seed_B, sample_B, position_B, np.uint64(0))


def token_uniform(seed_B: np.ndarray, sample_B: np.ndarray, position_B: np.ndarray, tile_B: np.ndarray) -> np.ndarray:
    """u₂ of each row, float64 in (0, 1), independent over tiles."""
    return _uniform(seed_B, sample_B, position_B, tile_B.astype(np.uint64) + np.uint64(1))


def _uniform(seed_B: np.ndarray, sample_B: np.ndarray, position_B: np.ndarray, level_B: np.ndarray) -> np.ndarray:
    key = (seed_B & np.uint64(0xFFFFFFFF), seed_B >> np.uint64(32))
    return open_uniform(philox4x32(key, (position_B, level_B, sample_B, np.uint64(0)))[0])


# The same in Triton. Compile with enable_fp_fusion=False: a fused multiply-add rounds once where this rounds twice.


@jit
def weights_kernel(x):
    """`weights` of a block."""
    x = tl.maximum(x, -64.0)
    whole = tl.floor(x)
    f = x - whole
    power = 0.00021612935 * f + 0.0012467841
    power = power * f + 0.009675452
    power = power * f + 0.05548528
    power = power * f + 0.2402293
    power = power * f + 0.69314706
    power = power * f + 1.0
    mantissa = (power * 8388608.0).to(tl.int64)
    shift = whole.to(tl.int32) + 17
    return mantissa << tl.maximum(shift, 0).to(tl.int64) >> tl.maximum(-shift, 0).to(tl.int64)


@jit
def masses_kernel(tile_weight, x):
    """`masses` of a block of tiles: A and (m_N - m) c."""
    return (tile_weight.to(tl.float64) * weights_kernel(x).to(tl.float64) * 2.9103830456733704e-11).to(tl.int64)


@jit
def target_kernel(u, total):
    """The integer that a cumulated weight has to exceed."""
    return tl.minimum((u * total.to(tl.float64)).to(tl.int64), total - 1)


@jit
def uniform_kernel(seed, sample, position, level):
    """u of (seed, sample, position, level), float64 in (0, 1)."""
    word, _, _, _ = tl.philox(seed, position, level, sample, level * 0)
    return (word.to(tl.uint32, bitcast=True).to(tl.float64) + 0.5) * 2.3283064365386963e-10
