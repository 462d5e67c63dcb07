"""The draw, exactly: which token a row of logits and three uniform numbers give, in numpy and in Triton.

Floating-point sums depend on their order and `exp` on the machine, so a draw by them is repeatable only almost always.
Here a token's weight is an *integer* in units of 2^-40, made by additions and multiplications that IEEE 754 rounds the
same everywhere; sums of integers have no order. So numpy, torch, the interpreter and a GPU draw the same token from the
same float32 logits. A weight is as near to exp as float32 arithmetic brings it.

The draw has three levels, so that an implementation may read the logits once and needs no random number per token. With
c = log2(e) / temperature and w(x) = floor(2^40 2^x):

    tile N, of 128 tokens, with largest logit m_N:    A_N = Σ w((z_v - m_N) c)
    block M, of 32 tiles, with largest logit m_M:     B_M = Σ floor(A_N w((m_N - m_M) c) 2^-40)
    row, with largest logit m:                        G_M = floor(B_M w((m_M - m) c) 2^-40)

    block = the first whose cumulated G exceeds u₀ Σ G
    tile  = the first of that block whose cumulated B exceeds u₁ B_M
    token = the first of that tile whose cumulated w exceeds u₂ A_N

The uniforms have 52 bits, of Philox keyed by the request's seed: u₀ and u₁ are the words of counter (position, 0,
sample, 0), u₂ the first two of (position, 1, sample, 0). No sum passes 2^62 as long as V <= MAX_VOCABULARY.

    B rows   V vocabulary   M blocks   N or R tiles, of a row or of a block   K tokens of a tile
"""

from __future__ import annotations

import math

import numpy as np

from kernels.jit import jit, tl
from kernels.philox import open_uniform, philox4x32

TILE = 128  # tokens
BLOCK_TILES = 32
BLOCK = TILE * BLOCK_TILES
MAX_VOCABULARY = 1 << 22
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
    """floor(2^40 · 2^x) as int64, for float32 x <= 0; 0 below x = -64.

    A subnormal x, which a GPU takes for 0, gives 2^40 as 0 does: the polynomial is 2 at f = 1, to the bit.
    """
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
    with np.errstate(over="ignore"):  # to -inf, as a GPU does
        return (z - np.where(m == -np.inf, np.float32(0), m)) * scale


def products(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """floor(weight · w(x) · 2^-40) as int64, for weights below 2^53: one rounding of a product of exact numbers."""
    return (weight.astype(np.float64) * weights(x).astype(np.float64) * 2.0**-40).astype(np.int64)


def first_above(weight_BX: np.ndarray, u_B: np.ndarray) -> np.ndarray:
    """The first index whose cumulated weight exceeds u times the total: never one of weight 0, as 0 < u < 1."""
    cumulated_BX = weight_BX.cumsum(-1)
    total_B = cumulated_BX[:, -1]
    target_B = np.minimum((u_B * total_B.astype(np.float64)).astype(np.int64), total_B - 1)
    return (cumulated_BX <= target_B[:, None]).sum(-1)


def draw(
    logits_BV: np.ndarray, scale_B: np.ndarray, floor_B: np.ndarray, u_B3: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(token_B int64, total mass_B int64 in units of 2^-40 of the likeliest token).

    Args:
        logits_BV: float32, finite or -inf, one finite in each row.
        scale_B: float32, of `scale_of`.
        floor_B: float32, the least logit that each row keeps.
        u_B3: float64, of `uniforms`.
    """
    B, V = logits_BV.shape
    row_B = np.arange(B)
    width = BLOCK if V > BLOCK else -(-V // TILE) * TILE  # a single block may be short
    padded_BV = np.pad(logits_BV, ((0, 0), (0, -V % width)), constant_values=-np.inf)
    z_BMRK = padded_BV.reshape(B, -1, width // TILE, TILE)
    m_BMR = z_BMRK.max(-1)
    m_BM = m_BMR.max(-1)
    scale_B1 = scale_B[:, None]
    x_BMRK = scaled(z_BMRK, m_BMR[..., None], scale_B1[..., None, None])
    weight_BMRK = np.where(z_BMRK >= floor_B[:, None, None, None], weights(x_BMRK), 0)
    tile_BMR = products(weight_BMRK.sum(-1), scaled(m_BMR, m_BM[..., None], scale_B1[..., None]))
    block_BM = products(tile_BMR.sum(-1), scaled(m_BM, m_BM.max(-1, keepdims=True), scale_B1))
    block_B = first_above(block_BM, u_B3[:, 0])
    tile_B = first_above(tile_BMR[row_B, block_B], u_B3[:, 1])
    token_B = first_above(weight_BMRK[row_B, block_B, tile_B], u_B3[:, 2])
    return block_B * width + tile_B * TILE + token_B, block_BM.sum(-1)


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


def uniforms(seed_B: np.ndarray, sample_B: np.ndarray, position_B: np.ndarray) -> np.ndarray:
    """u₀, u₁ and u₂ of each row, float64 [B, 3] in (0, 1)."""
    key = (seed_B & np.uint64(0xFFFFFFFF), seed_B >> np.uint64(32))
    zero = np.uint64(0)
    first, second = (philox4x32(key, (position_B, np.uint64(level), sample_B, zero)) for level in (0, 1))
    return np.stack([open_uniform(*first[:2]), open_uniform(*first[2:]), open_uniform(*second[:2])], -1)


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
def products_kernel(weight, x):
    """`products` of a block."""
    return (weight.to(tl.float64) * weights_kernel(x).to(tl.float64) * 9.094947017729282e-13).to(tl.int64)


@jit
def target_kernel(u, total):
    """The integer that a cumulated weight has to exceed."""
    return tl.minimum((u * total.to(tl.float64)).to(tl.int64), total - 1)


@jit
def first_above_kernel(weight_X, u):
    """`first_above` of one row; its length where all weights are 0 or u is no number."""
    target = target_kernel(u, tl.sum(weight_X, 0))
    return tl.sum((tl.cumsum(weight_X, 0) <= target).to(tl.int32), 0)


@jit
def log_mass_kernel(total):
    """log of an integer mass, relative to the likeliest token, float32."""
    return tl.log((total.to(tl.float64) * 9.094947017729282e-13).to(tl.float32))


@jit
def uniforms_kernel(seed, sample, position):
    """u₀ and u₁ of (seed, sample, position), float64 in (0, 1)."""
    a, b, c, d = tl.philox(seed, position, position * 0, sample, position * 0)
    return _open_uniform(a, b), _open_uniform(c, d)


@jit
def token_uniform_kernel(seed, sample, position):
    """u₂ of (seed, sample, position), float64 in (0, 1)."""
    a, b, _, _ = tl.philox(seed, position, position * 0 + 1, sample, position * 0)
    return _open_uniform(a, b)


@jit
def _open_uniform(high, low):
    high, low = high.to(tl.uint32, bitcast=True), low.to(tl.uint32, bitcast=True)
    bits = (high.to(tl.int64) << 20) | (low >> 12).to(tl.int64)
    return (bits.to(tl.float64) + 0.5) * 2.220446049250313e-16
