"""Sampling a token per row, with the log-probabilities that training needs.

Bound by bytes: without a filter the logits are read once. The token is the one of `kernels/draw.py`, to the bit, in
every form: sums in floating point only point at it, and where they come too close to a boundary to be sure, or where
a filter is on, the integers decide.

    B rows   V vocabulary   N tiles   K tokens of a tile   W = N K   R tiles of a block
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kernels import draw as exact
from kernels.check import check_dtype, check_shapes
from kernels.draw import (
    LOG2E,
    TILE,
    log2_of,
    masses_kernel,
    target_kernel,
    token_uniform,
    uniform_kernel,
    weights_kernel,
)
from kernels.jit import architecture, cdiv, jit, next_power_of_2, tl
from kernels.settings import Draw, Noise, PerRow, Settings, Words, uploaded

# A cumulated mass in float32 is within this share of the total of the integers' one: exp2 errs by 2^-22, the integer
# weights by 2^-23, a sum of 128 by 2^-21, and both ends of the quotient count.
UNSURE = 2.0**-17


@dataclass(frozen=True, slots=True)
class Config:
    tiles_per_block: int  # of the passes over a row: 32 are 4,096 logits
    num_warps: int


# Chosen by registers and by bytes in flight; not yet from measurements on a GPU.
CONFIGS = {"sm_80": Config(32, 4), "sm_90": Config(32, 4)}


def sample_ref(
    logits_BV: Tensor,
    seed_B: Words,
    sample_B: Words,
    position_B: Words,
    temperature: PerRow = 1.0,
    top_k: PerRow = 0,
    top_p: PerRow = 1.0,
    min_p: PerRow = 0.0,
) -> Draw:
    """The definition: the exact draw, and log-probabilities in float64."""
    B = len(logits_BV)
    noise, settings = Noise.of(B, seed_B, sample_B, position_B), Settings.of(B, temperature, top_k, top_p, min_p)
    logits = logits_BV.float().cpu().numpy()
    floor_B = settings.floors(logits)
    token_B = logits.argmax(-1)
    some = np.flatnonzero(~settings.is_greedy_B)
    if len(some):
        words = noise.rows(some)
        token_B[some], _ = exact.draw(
            logits[some], settings.scale_B[some], floor_B[some], words.seed_B, words.sample_B, words.position_B
        )
    z_BV = logits_BV.double()
    p_BV = z_BV.softmax(-1)
    kept_BV = z_BV.float() >= torch.from_numpy(floor_B).to(z_BV.device)[:, None]
    temperature_B1 = torch.from_numpy(np.where(settings.is_greedy_B, 1, settings.temperature_B)).to(z_BV)[:, None]
    drawn_BV = ((z_BV - z_BV.amax(-1, keepdim=True)) / temperature_B1).where(kept_BV, -torch.inf).log_softmax(-1)
    token_B = torch.from_numpy(token_B).to(z_BV.device)
    drawn_logprob_B = _at(drawn_BV, token_B).where(torch.from_numpy(~settings.is_greedy_B).to(z_BV.device), 0.0)
    return Draw(
        token_B, _at(z_BV.log_softmax(-1), token_B), drawn_logprob_B, z_BV.logsumexp(-1),
        -torch.special.xlogy(p_BV, p_BV).sum(-1),
    )  # fmt: skip


def sample(
    logits_BV: Tensor,
    seed_B: Words,
    sample_B: Words,
    position_B: Words,
    temperature: PerRow = 1.0,
    top_k: PerRow = 0,
    top_p: PerRow = 1.0,
    min_p: PerRow = 0.0,
    check: bool = True,
) -> Draw:
    """Draws one token per row from the tempered and filtered distribution.

    Args:
        logits_BV: of any floating dtype; computed in float32. -inf marks tokens that cannot be drawn.
        seed_B, sample_B, position_B: uint64 request seed, sample index within the request, position in the completion.
        temperature: 0 takes the largest logit (the first of equal ones).
        top_k: keep the k largest logits and all that equal the k-th; 0 keeps all.
        top_p: keep the smallest set of largest logits whose mass reaches top_p, ties kept together.
        min_p: keep tokens with at least min_p times the largest probability. Filters apply in this order.
        check: raise on rows without a distribution. On a GPU this waits for the device; without it such a row gets
            token -1 and NaNs.

    Raises:
        ValueError: a wrong shape, dtype or setting; with `check`, a row with NaN or +inf or nothing but -inf.
    """
    sizes = check_shapes(logits_BV=(logits_BV, "BV"))
    check_dtype("logits_BV", logits_BV, torch.float32, torch.bfloat16, torch.float16, torch.float64)
    if not sizes["V"]:
        raise ValueError("logits_BV must have at least one token, got V = 0")
    noise = Noise.of(sizes["B"], seed_B, sample_B, position_B)
    settings = Settings.of(sizes["B"], temperature, top_k, top_p, min_p)
    form = _sample_triton if logits_BV.is_cuda else _sample_cpu
    return checked(form(logits_BV, noise, settings), "logits_BV") if check else form(logits_BV, noise, settings)


def checked(drawn: Draw, name: str) -> Draw:
    """Raises ValueError if a row had no distribution."""
    is_wrong_B = drawn.token_B < 0
    if is_wrong_B.any():
        row = int(is_wrong_B.int().argmax())
        raise ValueError(
            f"{name}: row {row} has no distribution: logits must be finite or -inf, at least one finite; "
            f"their log-sum-exp is {drawn.lse_B[row].item()}"
        )
    return drawn


def _at(x_BV: Tensor, token_B: Tensor) -> Tensor:
    return x_BV.gather(-1, token_B[:, None])[:, 0]


def _sample_cpu(logits_BV: Tensor, noise: Noise, settings: Settings) -> Draw:
    """The torch form: weights in float32, sums of tiles in float64, and `exact.draw` for the few unsure rows."""
    B, V = logits_BV.shape
    num_tiles = cdiv(V, TILE)
    z_BV = logits_BV.float()
    m_B1 = z_BV.amax(-1, keepdim=True)
    # Whole tiles, all finite: 0 · -inf would be nan.
    u_BW = z_BV.new_full((B, num_tiles * TILE), -1e38)
    u_BV = torch.sub(z_BV, m_B1, out=u_BW[:, :V]).clamp_(min=-1e38)
    e_BW = u_BW.exp()
    tile_sum_BN = e_BW.unflatten(-1, (num_tiles, TILE)).sum(-1).double()
    sum_B = tile_sum_BN.sum(-1)
    log_sum_B = sum_B.log().float()
    lse_B = m_B1[:, 0] + log_sum_B
    entropy_B = (log_sum_B - (e_BW * u_BW).sum(-1) / sum_B.float()).clamp_(min=0)
    is_right_B = lse_B.isfinite()
    if not is_right_B.all():  # such rows draw from something, to be thrown away
        e_BW[~is_right_B], tile_sum_BN[~is_right_B], u_BV[~is_right_B] = 1.0, 1.0, 0.0
        z_BV = z_BV.masked_fill(~is_right_B[:, None], 0.0)

    weight_BW = e_BW
    if not settings.is_plain:
        scale_B1 = torch.from_numpy(settings.scale_B)[:, None]
        floor_B = settings.floors(z_BV.numpy())
        weight_BW = u_BW * scale_B1
        weight_BW[:, :V].masked_fill_(z_BV < torch.from_numpy(floor_B)[:, None], -torch.inf)
        weight_BW.exp2_()
        tile_sum_BN = weight_BW.unflatten(-1, (num_tiles, TILE)).sum(-1).double()
    u_tile_B = torch.from_numpy(exact.tile_uniform(noise.seed_B, noise.sample_B, noise.position_B))
    tile_B, is_sure_B = _first_above(tile_sum_BN, u_tile_B)
    weight_BK = weight_BW.unflatten(-1, (num_tiles, TILE))[torch.arange(B), tile_B].double()
    u_token_B = torch.from_numpy(token_uniform(noise.seed_B, noise.sample_B, noise.position_B, tile_B.numpy()))
    place_B, is_sure_too_B = _first_above(weight_BK, u_token_B)
    token_B = (tile_B * TILE + place_B).clamp_(max=V - 1)

    unsure = (~(is_sure_B & is_sure_too_B)).numpy() & ~settings.is_greedy_B
    if unsure.any():
        floor_B = settings.floors(z_BV.numpy()) if settings.is_plain else floor_B
        some, words = np.flatnonzero(unsure), noise.rows(unsure)
        drawn, _ = exact.draw(
            z_BV[some].numpy(), settings.scale_B[some], floor_B[some], words.seed_B, words.sample_B, words.position_B
        )
        token_B[some] = torch.from_numpy(drawn)
    if settings.is_greedy_B.any():
        token_B = z_BV.argmax(-1).where(torch.from_numpy(settings.is_greedy_B), token_B)

    logprob_B = (_at(u_BV, token_B) - log_sum_B).clamp_(max=0)
    drawn_logprob_B = logprob_B
    if not settings.is_plain:
        log_mass_B = tile_sum_BN.sum(-1).log().float()
        drawn_logprob_B = (_at(u_BV, token_B) * scale_B1[:, 0] / LOG2E - log_mass_B).clamp_(max=0)
        drawn_logprob_B = drawn_logprob_B.where(torch.from_numpy(~settings.is_greedy_B), 0.0)
        is_plain_B = torch.from_numpy((settings.temperature_B == 1) & ~settings.is_filtered_B)
        drawn_logprob_B = logprob_B.where(is_plain_B, drawn_logprob_B)
    outputs = [x_B.where(is_right_B, torch.nan) for x_B in (logprob_B, drawn_logprob_B, entropy_B)]
    return Draw(token_B.where(is_right_B, -1), *outputs[:2], lse_B, outputs[2])


def _first_above(weight_BX: Tensor, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """(index, whether no rounding could change it) of float64 weights; see `exact.first_above`."""
    cumulated_BX = weight_BX.cumsum(-1)
    total_B1 = cumulated_BX[:, -1:]
    distance_BX = cumulated_BX - u_B[:, None] * total_B1
    index_B = (distance_BX <= 0).sum(-1).clamp_(max=weight_BX.shape[1] - 1)
    return index_B, (distance_BX.abs_() > UNSURE * total_B1).all(-1)


def _sample_triton(logits_BV: Tensor, noise: Noise, settings: Settings, config: Config | None = None) -> Draw:
    B, V = logits_BV.shape
    config = config or CONFIGS[architecture(logits_BV.device)]
    logits_BV = logits_BV if logits_BV.stride(1) == 1 or V == 1 else logits_BV.contiguous()
    num_tiles, num_blocks = cdiv(V, TILE), cdiv(cdiv(V, TILE), config.tiles_per_block)
    is_tempered = bool(((settings.temperature_B != 1) & ~settings.is_greedy_B).any())
    is_filtered = bool(settings.is_filtered_B.any())

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits_BV.device)

    rows = partial(uploaded, device=logits_BV.device)

    max_BN, sum_BN, moment_BN, mass_BN = (empty(B, num_tiles) for _ in range(4))
    scale_B, floor_B, least_B = rows(settings.scale_B, torch.float32), empty(B), empty(B)
    drawn = Draw(empty(B, dtype=torch.int64), *(empty(B) for _ in range(4)))
    if not B:
        return drawn
    warps = {"num_warps": config.num_warps}
    as_defined = {"enable_fp_fusion": False}  # kernels/draw.py
    blocks = {"TILE": TILE, "R": config.tiles_per_block, "N": next_power_of_2(num_tiles)}
    _tile_kernel[B * num_blocks,](
        logits_BV, logits_BV.stride(0), V, num_tiles, num_blocks, scale_B, max_BN, sum_BN, moment_BN, mass_BN,
        IS_TEMPERED=is_tempered, TILE=TILE, R=blocks["R"], enable_fp_fusion=True, **warps,
    )  # fmt: skip
    if is_filtered:
        least_B = rows(np.where(settings.is_filtered_B, log2_of(settings.min_p_B), -np.inf), torch.float32)
        top_k_B = np.where(settings.is_filtered_B & (settings.top_k_B < V), settings.top_k_B, 0)
        top_p_B = np.where(settings.is_filtered_B, settings.top_p_B, 1.0)
        _floor_kernel[B,](
            logits_BV, logits_BV.stride(0), V, num_tiles, scale_B, max_BN, rows(top_k_B, torch.int64),
            rows(top_p_B, torch.float64), floor_B, **blocks, **warps, **as_defined,
        )  # fmt: skip
    _draw_kernel[B,](
        logits_BV, logits_BV.stride(0), V, num_tiles, scale_B, floor_B, least_B,
        max_BN, sum_BN, moment_BN, mass_BN if is_tempered else sum_BN, *noise.tensors(B, logits_BV.device),
        drawn.token_B, drawn.logprob_B, drawn.drawn_logprob_B, drawn.lse_B, drawn.entropy_B,
        UNSURE=UNSURE, IS_FILTERED=is_filtered, **blocks, **warps, **as_defined,
    )  # fmt: skip
    return drawn


@jit
def _tile_kernel(
    logits_ptr, row_stride, V, num_tiles, num_blocks, scale_ptr, max_ptr, sum_ptr, moment_ptr, mass_ptr,
    IS_TEMPERED: tl.constexpr, TILE: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Of each tile: its largest logit m, S = Σ e^(z-m), Σ (z-m) e^(z-m), and Σ 2^((z-m) c)."""
    LOG2E: tl.constexpr = 1.4426950408889634
    b = (tl.program_id(0) // num_blocks).to(tl.int64)
    tile_R = tl.program_id(0) % num_blocks * R + tl.arange(0, R)
    v_RK = tile_R[:, None] * TILE + tl.arange(0, TILE)[None, :]
    z_RK = tl.load(logits_ptr + b * row_stride + v_RK, mask=v_RK < V, other=float("-inf")).to(tl.float32)
    m_R = tl.max(z_RK, 1)
    # Finite, since 0 · -inf would be nan; a nan stays one, since no row with one may draw.
    u_RK = z_RK - tl.where(m_R == float("-inf"), 0.0, m_R)[:, None]
    u_RK = tl.maximum(u_RK, -1e38, propagate_nan=tl.PropagateNan.ALL)
    e_RK = tl.exp2(u_RK * LOG2E)
    place_R = b * num_tiles + tile_R
    is_tile_R = tile_R < num_tiles
    tl.store(max_ptr + place_R, m_R, mask=is_tile_R)
    tl.store(sum_ptr + place_R, tl.sum(e_RK, 1), mask=is_tile_R)
    tl.store(moment_ptr + place_R, tl.sum(e_RK * u_RK, 1), mask=is_tile_R)
    if IS_TEMPERED:
        tl.store(mass_ptr + place_R, tl.sum(tl.exp2(u_RK * tl.load(scale_ptr + b)), 1), mask=is_tile_R)


@jit
def _floor_kernel(
    logits_ptr, row_stride, V, num_tiles, scale_ptr, max_ptr, top_k_ptr, top_p_ptr, floor_ptr,
    TILE: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The least logit of a row that top-k and then top-p keep: two bisections over the bits of float32, no sort."""
    b = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + b * row_stride
    scale = tl.load(scale_ptr + b)
    tile_N = tl.arange(0, N)
    m = tl.max(tl.load(max_ptr + b * num_tiles + tile_N, mask=tile_N < num_tiles, other=float("-inf")), 0)
    floor = tl.full((), float("-inf"), tl.float32)
    top_k = tl.load(top_k_ptr + b)
    if top_k > 0:
        floor = _bisect(row_ptr, V, m, scale, floor, top_k.to(tl.float64), R * TILE, False)
    top_p = tl.load(top_p_ptr + b)
    if top_p < 1.0:
        _, total = _above(row_ptr, V, m, scale, floor, R * TILE, True)
        floor = _bisect(row_ptr, V, m, scale, floor, top_p * total.to(tl.float64), R * TILE, True)
    tl.store(floor_ptr + b, floor)


@jit
def _bisect(row_ptr, V, m, scale, floor, target, BLOCK: tl.constexpr, IS_MASS: tl.constexpr):
    """The largest float t, down to `floor`, with as many logits (or as much of their mass) >= t as `target`."""
    low, high = _to_key(floor), _to_key(m) + 1  # t = low is enough, t = high is not
    num_low, num_high = V + low * 0, low * 0
    # One logit or none in between: where exactly t lies between it and the next one does not matter.
    while (high - low > 1) & (num_low - num_high > 1):
        middle = low + (high - low) // 2
        count, mass = _above(row_ptr, V, m, scale, _from_key(middle), BLOCK, IS_MASS)
        reached = mass.to(tl.float64) if IS_MASS else count.to(tl.float64)
        if reached >= target:
            low, num_low = middle, count
        else:
            high, num_high = middle, count
    return _from_key(low)


@jit
def _above(row_ptr, V, m, scale, threshold, BLOCK: tl.constexpr, IS_MASS: tl.constexpr):
    """(number, integer weight) of the logits that are at least the threshold; weights only where asked for."""
    count_X = tl.zeros((BLOCK,), tl.int64)
    mass_X = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, V, BLOCK):
        v_X = start + tl.arange(0, BLOCK)
        z_X = tl.load(row_ptr + v_X, mask=v_X < V, other=float("-inf")).to(tl.float32)
        is_kept_X = (z_X >= threshold) & (v_X < V)
        count_X += is_kept_X.to(tl.int64)
        if IS_MASS:
            mass_X += tl.where(is_kept_X, weights_kernel((z_X - m) * scale), 0)
    return tl.sum(count_X, 0), tl.sum(mass_X, 0)


@jit
def _to_key(x):
    """An integer for a float32 in the order of the floats, the two zeros alike."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@jit
def _from_key(key):
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def _draw_kernel(
    logits_ptr, row_stride, V, num_tiles, scale_ptr, floor_ptr, least_ptr,
    max_ptr, sum_ptr, moment_ptr, mass_ptr, seed_ptr, sample_ptr, position_ptr,
    token_ptr, logprob_ptr, drawn_logprob_ptr, lse_ptr, entropy_ptr,
    UNSURE: tl.constexpr, IS_FILTERED: tl.constexpr, TILE: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One row: its tile by the tiles' masses, its token inside the tile, and the log-probabilities."""
    LOG2E: tl.constexpr = 1.4426950408889634
    LN2: tl.constexpr = 0.6931471805599453
    b = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + b * row_stride
    scale = tl.load(scale_ptr + b)
    is_greedy = scale == 0.0
    scale = tl.where(is_greedy, 1.0, scale)
    seed, sample, position = tl.load(seed_ptr + b), tl.load(sample_ptr + b), tl.load(position_ptr + b)
    floor, least = float("-inf"), float("-inf")
    if IS_FILTERED:
        floor, least = tl.load(floor_ptr + b), tl.load(least_ptr + b)

    tile_N = tl.arange(0, N)
    is_tile_N = tile_N < num_tiles
    place_N = b * num_tiles + tile_N
    m_N = tl.load(max_ptr + place_N, mask=is_tile_N, other=float("-inf"))
    sum_N = tl.load(sum_ptr + place_N, mask=is_tile_N, other=0.0)
    moment_N = tl.load(moment_ptr + place_N, mask=is_tile_N, other=0.0)
    m, u_N, log_sum, entropy, is_right = merge_kernel(m_N, sum_N, moment_N)

    # The tile, by sums in floating point, if they are sure of it.
    u_tile = uniform_kernel(seed, sample, position, 0)
    mass_N = tl.load(mass_ptr + place_N, mask=is_tile_N, other=0.0)
    mass_N = (mass_N * tl.exp2(u_N * scale)).to(tl.float64)
    cumulated_N = tl.cumsum(mass_N, 0)
    total = tl.sum(mass_N, 0)
    distance_N = cumulated_N - u_tile * total
    tile = tl.sum((is_tile_N & (distance_N <= 0.0)).to(tl.int32), 0)
    is_sure = tl.min(tl.where(is_tile_N, tl.abs(distance_N), total), 0) > UNSURE * total
    log_mass = tl.log(total.to(tl.float32))
    if is_greedy:
        tile = tl.min(tl.where(m_N == m, tile_N, num_tiles), 0)
    elif IS_FILTERED or not is_sure:
        exact_total = tl.zeros((), tl.int64)
        for start in range(0, num_tiles, R):
            exact_total += tl.sum(_exact_masses(row_ptr, start, V, m, scale, floor, least, TILE, R), 0)
        target = target_kernel(u_tile, exact_total)
        before = tl.zeros((), tl.int64)
        tile = num_tiles
        for start in range(0, num_tiles, R):
            exact_R = _exact_masses(row_ptr, start, V, m, scale, floor, least, TILE, R)
            is_past_R = before + tl.cumsum(exact_R, 0) > target
            tile = tl.minimum(tile, tl.min(tl.where(is_past_R, start + tl.arange(0, R), num_tiles), 0))
            before += tl.sum(exact_R, 0)
        log_mass = tl.log((exact_total.to(tl.float64) * 2.842170943040401e-14).to(tl.float32))
    tile = tl.minimum(tile, num_tiles - 1)

    # The token, by integers.
    k_K = tl.arange(0, TILE)
    v_K = tile * TILE + k_K
    z_K = tl.load(row_ptr + v_K, mask=v_K < V, other=float("-inf")).to(tl.float32)
    weight_K = _weights(z_K, tl.max(z_K, 0), m, scale, floor, least)
    target = target_kernel(uniform_kernel(seed, sample, position, tile + 1), tl.sum(weight_K, 0))
    k = tl.sum((tl.cumsum(weight_K, 0) <= target).to(tl.int32), 0)
    if is_greedy:
        k = tl.min(tl.where(z_K == m, k_K, TILE), 0)
    u = tl.sum(tl.where(k_K == k, z_K, 0.0), 0) - m
    drawn_logprob = tl.minimum(u * scale * LN2 - log_mass, 0.0)
    is_plain = scale == LOG2E
    if IS_FILTERED:
        is_plain = is_plain & (floor == float("-inf")) & (least == float("-inf"))
    store_kernel(
        b, tile * TILE + k, u, m, log_sum, entropy, drawn_logprob, is_right, is_greedy, is_plain,
        token_ptr, logprob_ptr, drawn_logprob_ptr, lse_ptr, entropy_ptr,
    )  # fmt: skip


@jit
def merge_kernel(m_N, sum_N, moment_N):
    """Of a row, from its tiles: m, (m_N - m), log Σ e^(z-m), entropy, whether it has a distribution."""
    LOG2E: tl.constexpr = 1.4426950408889634
    m = tl.max(m_N, 0)
    u_N = tl.maximum(m_N - m, -1e38)
    share_N = tl.exp2(u_N * LOG2E)
    sum = tl.sum(share_N * sum_N, 0)
    log_sum = tl.log(sum)
    entropy = tl.maximum(log_sum - tl.sum(share_N * (moment_N + u_N * sum_N), 0) / sum, 0.0)
    return m, u_N, log_sum, entropy, (sum > 0.0) & (m + log_sum < float("inf"))  # false for nan


@jit
def store_kernel(
    b, token, u, m, log_sum, entropy, drawn_logprob, is_right, is_greedy, is_plain,
    token_ptr, logprob_ptr, drawn_logprob_ptr, lse_ptr, entropy_ptr,
):  # fmt: skip
    """The outputs of a row whose token has logit m + u."""
    logprob = tl.minimum(u - log_sum, 0.0)
    drawn_logprob = tl.where(is_greedy, 0.0, tl.where(is_plain, logprob, drawn_logprob))
    nan = float("nan")
    tl.store(token_ptr + b, tl.where(is_right, token.to(tl.int64), -1))
    tl.store(logprob_ptr + b, tl.where(is_right, logprob, nan))
    tl.store(drawn_logprob_ptr + b, tl.where(is_right, drawn_logprob, nan))
    tl.store(entropy_ptr + b, tl.where(is_right, entropy, nan))
    tl.store(lse_ptr + b, m + log_sum)


@jit
def _exact_masses(row_ptr, start, V, m, scale, floor, least, TILE: tl.constexpr, R: tl.constexpr):
    """G of tiles start, …, start + R - 1."""
    v_RK = (start + tl.arange(0, R))[:, None] * TILE + tl.arange(0, TILE)[None, :]
    z_RK = tl.load(row_ptr + v_RK, mask=v_RK < V, other=float("-inf")).to(tl.float32)
    m_R = tl.max(z_RK, 1)
    weight_RK = _weights(z_RK, m_R[:, None], m, scale, floor, least)
    return masses_kernel(tl.sum(weight_RK, 1), (m_R - m) * scale)


@jit
def _weights(z, m_tile, m, scale, floor, least):
    """Weights relative to the tile's largest logit, 0 for what the filters drop."""
    is_kept = (z >= floor) & ((z - m) * scale >= least)
    return tl.where(is_kept, weights_kernel((z - tl.where(m_tile == float("-inf"), 0.0, m_tile)) * scale), 0)


def shipped_launches(arch: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """For kernels/offline.py."""
    zeros = np.zeros(64, dtype=np.uint64)
    for dtype in (torch.bfloat16, torch.float32):
        logits_BV = torch.empty(64, 151_936, dtype=dtype, device="meta")
        for name, settings in (
            ("plain", Settings.of(64, 1.0, 0, 1.0, 0.0)),
            ("tempered", Settings.of(64, 0.7, 0, 1.0, 0.0)),
            ("filtered", Settings.of(64, 0.7, 20, 0.95, 0.05)),
        ):
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            yield label, partial(_sample_triton, logits_BV, Noise(zeros, zeros, zeros), settings, CONFIGS[arch])
