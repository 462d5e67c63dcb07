"""Sampling a token per row, with the log-probabilities that training needs.

Bound by bytes: without a filter the logits are read once. The token is the one of `kernels/draw.py` in every form:
sums in floating point only point at its block, and where they come too close to a boundary to be sure (one row in some
thousands, which is then read again), or where a row has a filter, the integers decide.

    B rows   V vocabulary   M blocks   R tiles of a block   K tokens of a tile   X tokens of a block
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
    BLOCK,
    BLOCK_TILES,
    LOG2E,
    TILE,
    first_above_kernel,
    log2_of,
    log_mass_kernel,
    products_kernel,
    target_kernel,
    token_uniform_kernel,
    uniforms_kernel,
    weights_kernel,
)
from kernels.jit import architecture, cdiv, jit, next_power_of_2, tl
from kernels.settings import Draw, Noise, PerRow, Settings, Words, check_rows, uploaded

# A cumulated mass in float32, as a share of the total, is nearer to the integers' one than this: exp2 errs by 2^-22,
# the polynomial by 2^-23, x by 2^-24 |x|, sums of a block by some 2^-22; 2^-22 is the most that was seen.
UNSURE = 2.0**-18


@dataclass(frozen=True, slots=True)
class Config:
    """Warps of the programs that take a block, and of those that take a row, with the registers these may use."""

    block_warps: int
    row_warps: int
    row_registers: int  # without a bound the compiler aims for fewer, and spills


# Chosen by registers and by bytes in flight; not yet from measurements on a GPU.
CONFIGS = {"sm_80": Config(4, 8, 255), "sm_90": Config(4, 8, 255)}


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
    noise = Noise.of(B, seed_B, sample_B, position_B, torch.device("cpu"))
    settings = Settings.of(B, temperature, top_k, top_p, min_p)
    logits = logits_BV.float().cpu().numpy()
    floor_B = settings.floors(logits)
    token_B = logits.argmax(-1)
    some = np.flatnonzero(~settings.is_greedy_B)
    if len(some):
        u_B3 = exact.uniforms(*noise.words)
        token_B[some], _ = exact.draw(logits[some], settings.scale_B[some], floor_B[some], u_B3[some])
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


@torch.no_grad()
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
    """Draws one token per row from the tempered and filtered distribution; returns a `Draw`, without gradients.

    Rows with equal (seed, sample, position) share their noise: give requests seeds of their own, number the samples of
    a request, and advance the position with each token.

    Args:
        logits_BV: of any floating dtype; computed in float32. -inf marks tokens that cannot be drawn.
        seed_B, sample_B, position_B: request seed (64 bits), sample index within the request and position in the
            completion (32 bits; of tensors on a GPU the low ones count). Arrays, tensors of the same bits, or a number.
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
    check_rows("logits_BV", logits_BV, sizes["V"])
    noise = Noise.of(sizes["B"], seed_B, sample_B, position_B, logits_BV.device)
    settings = Settings.of(sizes["B"], temperature, top_k, top_p, min_p)
    form = _sample_triton if logits_BV.is_cuda else _sample_cpu
    with torch.cuda.device_of(logits_BV):
        drawn = form(logits_BV, noise, settings)
    return checked(drawn, "logits_BV") if check else drawn


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


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Of float32 logits on a CPU: what log-probabilities are made of, the same bits for a row whatever the others.

    W is V filled up to whole tiles, and to whole blocks if there is more than one; `blocks` are its (blocks, tiles of a
    block, tokens of a tile).
    """

    blocks: tuple[int, int, int]
    m_B1: Tensor  # largest logit
    u_BW: Tensor  # z - m, finite: 0 · -inf would be nan
    e_BW: Tensor  # exp u
    tile_BMR: Tensor  # float64 sums of e
    sum_B: Tensor  # float64
    log_sum_B: Tensor
    entropy_B: Tensor
    u_BV: Tensor

    @classmethod
    def of(cls, z_BV: Tensor) -> RowStatistics:
        B, V = z_BV.shape
        width = BLOCK if V > BLOCK else cdiv(V, TILE) * TILE
        blocks = (cdiv(V, width), width // TILE, TILE)
        m_B1 = z_BV.amax(-1, keepdim=True)
        u_BW = z_BV.new_full((B, blocks[0] * width), -1e38)
        u_BV = torch.sub(z_BV, m_B1, out=u_BW[:, :V]).clamp_(min=-1e38)
        e_BW = u_BW.exp()
        tile_BMR = e_BW.unflatten(-1, blocks).sum(-1).double()
        sum_B = tile_BMR.sum((-1, -2))
        log_sum_B = sum_B.log().float()
        entropy_B = (log_sum_B - (e_BW * u_BW).sum(-1) / sum_B.float()).clamp_(min=0)
        return cls(blocks, m_B1, u_BW, e_BW, tile_BMR, sum_B, log_sum_B, entropy_B, u_BV)


def _sample_cpu(logits_BV: Tensor, noise: Noise, settings: Settings) -> Draw:
    """The torch form: weights and their sums in tiles in float32, the rest in float64; integers for unsure rows.

    Filters look for their thresholds in sorted rows, as the definition does.
    """
    B, V = logits_BV.shape
    row_B = torch.arange(B)
    z_BV = logits_BV.float()
    statistics = RowStatistics.of(z_BV)
    u_BV, e_BW, tile_BMR, log_sum_B = statistics.u_BV, statistics.e_BW, statistics.tile_BMR, statistics.log_sum_B
    u_BW, entropy_B, blocks = statistics.u_BW, statistics.entropy_B, statistics.blocks
    width = blocks[1] * TILE
    lse_B = statistics.m_B1[:, 0] + log_sum_B
    is_right_B = lse_B.isfinite()
    if not is_right_B.all():  # such rows draw from something, to be thrown away
        e_BW[~is_right_B], tile_BMR[~is_right_B], u_BV[~is_right_B] = 1.0, 1.0, 0.0
        z_BV = z_BV.masked_fill(~is_right_B[:, None], 0.0)

    weight_BW = e_BW
    is_plain_B, is_greedy_B = (torch.from_numpy(x_B) for x_B in (settings.is_plain_B, settings.is_greedy_B))
    is_plain = bool(is_plain_B.all())
    scale_B, floor_B = settings.scale_B, settings.floors(z_BV.numpy())
    if not is_plain:
        weight_BW = u_BW * torch.from_numpy(scale_B)[:, None]
        weight_BW[:, :V].masked_fill_(z_BV < torch.from_numpy(floor_B)[:, None], -torch.inf)
        weight_BW.exp2_()
        tile_BMR = weight_BW.unflatten(-1, blocks).sum(-1).double()
    uniforms = exact.uniforms(*noise.words)
    u_B3 = torch.from_numpy(uniforms)
    block_B, is_sure_B = _first_above(tile_BMR.sum(-1), u_B3[:, 0])
    tile_B, is_tile_sure_B = _first_above(tile_BMR[row_B, block_B], u_B3[:, 1])
    weight_BK = weight_BW.unflatten(-1, blocks)[row_B, block_B, tile_B].double()
    place_B, is_token_sure_B = _first_above(weight_BK, u_B3[:, 2])
    token_B = (block_B * width + tile_B * TILE + place_B).clamp_(max=V - 1)
    unsure = np.flatnonzero(~(is_sure_B & is_tile_sure_B & is_token_sure_B | is_greedy_B).numpy())
    if len(unsure):
        drawn, _ = exact.draw(z_BV[unsure].numpy(), scale_B[unsure], floor_B[unsure], uniforms[unsure])
        token_B[unsure] = torch.from_numpy(drawn)
    if is_greedy_B.any():
        token_B = z_BV.argmax(-1).where(is_greedy_B, token_B)

    logprob_B = (_at(u_BV, token_B) - log_sum_B).clamp_(max=0)
    drawn_logprob_B = logprob_B
    if not is_plain:
        log_mass_B = tile_BMR.sum((-1, -2)).log().float()
        drawn_logprob_B = (_at(u_BV, token_B) * torch.from_numpy(scale_B) / LOG2E - log_mass_B).clamp_(max=0)
        drawn_logprob_B = logprob_B.where(is_plain_B, drawn_logprob_B.where(~is_greedy_B, 0.0))
    logprob_B, drawn_logprob_B, entropy_B = (
        x_B.where(is_right_B, torch.nan) for x_B in (logprob_B, drawn_logprob_B, entropy_B)
    )
    return Draw(token_B.where(is_right_B, -1), logprob_B, drawn_logprob_B, lse_B, entropy_B)


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
    num_blocks = cdiv(V, BLOCK)
    is_tempered = bool(((settings.temperature_B != 1) & ~settings.is_greedy_B).any())
    is_filtered = V > 1 and bool(settings.is_filtered_B.any())

    empty = partial(torch.empty, dtype=torch.float32, device=logits_BV.device)
    rows = partial(uploaded, device=logits_BV.device)
    max_BM, sum_BM, moment_BM, mass_BM = (empty(B, num_blocks) for _ in range(4))
    scale_B, floor_B, least_B = rows(settings.scale_B, torch.float32), empty(B), empty(B)
    drawn = Draw.empty(B, logits_BV.device)
    if not B:
        return drawn
    sizes = {"BLOCK": BLOCK, "M": max(2, next_power_of_2(num_blocks))}  # a block of one does not compile everywhere
    # Not fused: kernels/draw.py.
    of_rows = {"num_warps": config.row_warps, "maxnreg": config.row_registers, "enable_fp_fusion": False}
    _block_kernel[B * num_blocks,](
        logits_BV, logits_BV.stride(0), V, num_blocks, scale_B, max_BM, sum_BM, moment_BM, mass_BM,
        IS_TEMPERED=is_tempered, BLOCK=BLOCK, num_warps=config.block_warps, enable_fp_fusion=True,
    )  # fmt: skip
    if is_filtered:
        least_B = rows(np.where(settings.is_filtered_B, log2_of(settings.min_p_B), -np.inf), torch.float32)
        top_k_B = np.where(settings.is_filtered_B & (settings.top_k_B < V), settings.top_k_B, 0)
        top_p_B = np.where(settings.is_filtered_B, settings.top_p_B, 1.0)
        _floor_kernel[B,](
            logits_BV, logits_BV.stride(0), V, num_blocks, scale_B, max_BM, rows(top_k_B, torch.int64),
            rows(top_p_B, torch.float64), floor_B, **sizes, **of_rows,
        )  # fmt: skip
    _draw_kernel[B,](
        logits_BV, logits_BV.stride(0), V, num_blocks, scale_B, floor_B, least_B,
        max_BM, sum_BM, moment_BM, mass_BM if is_tempered else sum_BM, *noise.tensors(B, logits_BV.device),
        *drawn.outputs, UNSURE=UNSURE, IS_FILTERED=is_filtered, TILE=TILE, R=BLOCK_TILES, **sizes, **of_rows,
    )  # fmt: skip
    return drawn


@jit
def _block_kernel(
    logits_ptr, row_stride, V, num_blocks, scale_ptr, max_ptr, sum_ptr, moment_ptr, mass_ptr,
    IS_TEMPERED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each block: its largest logit m, S = Σ e^(z-m), Σ (z-m) e^(z-m), and Σ 2^((z-m) c)."""
    LOG2E: tl.constexpr = 1.4426950408889634
    b = (tl.program_id(0) // num_blocks).to(tl.int64)
    block = tl.program_id(0) % num_blocks
    v_X = block * BLOCK + tl.arange(0, BLOCK)
    z_X = tl.load(logits_ptr + b * row_stride + v_X, mask=v_X < V, other=float("-inf")).to(tl.float32)
    m = tl.max(z_X, 0)
    # Finite, since 0 · -inf would be nan; a nan stays one, since no row with one may draw.
    u_X = z_X - tl.where(m == float("-inf"), 0.0, m)
    u_X = tl.maximum(u_X, -1e38, propagate_nan=tl.PropagateNan.ALL)
    e_X = tl.exp2(u_X * LOG2E)
    place = b * num_blocks + block
    tl.store(max_ptr + place, m)
    tl.store(sum_ptr + place, tl.sum(e_X, 0))
    tl.store(moment_ptr + place, tl.sum(e_X * u_X, 0))
    if IS_TEMPERED:
        tl.store(mass_ptr + place, tl.sum(tl.exp2(u_X * tl.load(scale_ptr + b)), 0))


@jit
def _floor_kernel(
    logits_ptr, row_stride, V, num_blocks, scale_ptr, max_ptr, top_k_ptr, top_p_ptr, floor_ptr,
    BLOCK: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """The least logit of a row that top-k and then top-p keep: two bisections over the bits of float32, no sort."""
    b = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + b * row_stride
    scale = tl.load(scale_ptr + b)
    block_M = tl.arange(0, M)
    m = tl.max(tl.load(max_ptr + b * num_blocks + block_M, mask=block_M < num_blocks, other=float("-inf")), 0)
    floor = tl.full((), float("-inf"), tl.float32)
    top_k = tl.load(top_k_ptr + b)
    if top_k > 0:
        floor = _bisect(row_ptr, V, m, scale, floor, top_k.to(tl.float64), BLOCK, False)
    top_p = tl.load(top_p_ptr + b)
    if top_p < 1.0:
        _, total = _above(row_ptr, V, m, scale, floor, BLOCK, True)
        floor = _bisect(row_ptr, V, m, scale, floor, top_p * total.to(tl.float64), BLOCK, True)
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
    logits_ptr, row_stride, V, num_blocks, scale_ptr, floor_ptr, least_ptr,
    max_ptr, sum_ptr, moment_ptr, mass_ptr, seed_ptr, sample_ptr, position_ptr,
    token_ptr, logprob_ptr, drawn_logprob_ptr, lse_ptr, entropy_ptr,
    UNSURE: tl.constexpr, IS_FILTERED: tl.constexpr, TILE: tl.constexpr, R: tl.constexpr,
    BLOCK: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """One row: its block by the blocks' masses, tile and token inside it by integers, and the log-probabilities."""
    LOG2E: tl.constexpr = 1.4426950408889634
    LN2: tl.constexpr = 0.6931471805599453
    b = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + b * row_stride
    scale = tl.load(scale_ptr + b)
    is_greedy = scale == 0.0
    scale = tl.where(is_greedy, 1.0, scale)
    seed, sample, position = tl.load(seed_ptr + b), tl.load(sample_ptr + b), tl.load(position_ptr + b)
    u_block, u_tile = uniforms_kernel(seed, sample, position)
    floor, least, is_unfiltered = float("-inf"), float("-inf"), True
    if IS_FILTERED:
        floor, least = tl.load(floor_ptr + b), tl.load(least_ptr + b)
        is_unfiltered = (floor == float("-inf")) & (least == float("-inf"))

    block_M = tl.arange(0, M)
    is_block_M = block_M < num_blocks
    place_M = b * num_blocks + block_M
    m_M = tl.load(max_ptr + place_M, mask=is_block_M, other=float("-inf"))
    sum_M = tl.load(sum_ptr + place_M, mask=is_block_M, other=0.0)
    moment_M = tl.load(moment_ptr + place_M, mask=is_block_M, other=0.0)
    m, u_M, log_sum, entropy, is_right = merge_kernel(m_M, sum_M, moment_M)

    # The block, by sums in floating point, if they are sure of it.
    mass_M = tl.load(mass_ptr + place_M, mask=is_block_M, other=0.0)
    mass_M = (mass_M * tl.exp2(u_M * scale)).to(tl.float64)
    total = tl.sum(mass_M, 0)
    distance_M = tl.cumsum(mass_M, 0) - u_block * total
    block = tl.sum((is_block_M & (distance_M <= 0.0)).to(tl.int32), 0)
    is_sure = tl.min(tl.where(is_block_M, tl.abs(distance_M), total), 0) > UNSURE * total
    log_mass = tl.log(total.to(tl.float32))
    if is_greedy:
        block = tl.min(tl.where(m_M == m, block_M, num_blocks), 0)
    elif not (is_sure & is_unfiltered):
        exact_total = tl.zeros((), tl.int64)
        for some in range(0, num_blocks):
            exact_total += _exact_block(row_ptr, some, V, m, scale, floor, least, TILE, R)
        target = target_kernel(u_block, exact_total)
        cumulated = tl.zeros((), tl.int64)
        block = tl.zeros((), tl.int32)
        for some in range(0, num_blocks):
            cumulated += _exact_block(row_ptr, some, V, m, scale, floor, least, TILE, R)
            block += (cumulated <= target).to(tl.int32)
        if not is_unfiltered:
            log_mass = log_mass_kernel(exact_total)
    block = tl.minimum(block, num_blocks - 1)

    # Tile and token, by integers.
    r_R = tl.arange(0, R)
    m_R, _, tile_R = _exact_tiles(row_ptr, block, V, m, scale, floor, least, TILE, R)
    tile = first_above_kernel(tile_R, u_tile)
    if is_greedy:
        tile = tl.min(tl.where(m_R == m, r_R, R), 0)
    tile = block * R + tl.minimum(tile, R - 1)
    k_K = tl.arange(0, TILE)
    v_K = tile * TILE + k_K
    z_K = tl.load(row_ptr + v_K, mask=v_K < V, other=float("-inf")).to(tl.float32)
    weight_K = _weights(z_K, tl.max(z_K, 0), m, scale, floor, least)
    k = first_above_kernel(weight_K, token_uniform_kernel(seed, sample, position))
    if is_greedy:
        k = tl.min(tl.where(z_K == m, k_K, TILE), 0)
    u = tl.sum(tl.where(k_K == k, z_K, 0.0), 0) - m
    store_kernel(
        b, tile * TILE + k, u, m, log_sum, entropy, tl.minimum(u * scale * LN2 - log_mass, 0.0), is_right, is_greedy,
        (scale == LOG2E) & is_unfiltered, token_ptr, logprob_ptr, drawn_logprob_ptr, lse_ptr, entropy_ptr,
    )  # fmt: skip


@jit
def merge_kernel(m_M, sum_M, moment_M):
    """Of a row, from its parts: m, (m_M - m), log Σ e^(z-m), entropy, whether it has a distribution."""
    LOG2E: tl.constexpr = 1.4426950408889634
    m = tl.max(m_M, 0)
    u_M = tl.maximum(m_M - m, -1e30)  # times a part's sum, still finite
    share_M = tl.exp2(u_M * LOG2E)
    sum = tl.sum(share_M * sum_M, 0)
    log_sum = tl.log(sum)
    entropy = log_sum - tl.sum(share_M * (moment_M + u_M * sum_M), 0) / sum
    entropy = tl.maximum(entropy, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return m, u_M, log_sum, entropy, (sum > 0.0) & (m + log_sum < float("inf"))  # false for nan


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
def _exact_block(row_ptr, block, V, m, scale, floor, least, TILE: tl.constexpr, R: tl.constexpr):
    """G of a block."""
    _, m_block, tile_R = _exact_tiles(row_ptr, block, V, m, scale, floor, least, TILE, R)
    return products_kernel(tl.sum(tile_R, 0), (m_block - m) * scale)


@jit
def _exact_tiles(row_ptr, block, V, m, scale, floor, least, TILE: tl.constexpr, R: tl.constexpr):
    """Of a block: m of its tiles and its own, and the parts that its tiles have in B."""
    v_RK = (block * R + tl.arange(0, R))[:, None] * TILE + tl.arange(0, TILE)[None, :]
    z_RK = tl.load(row_ptr + v_RK, mask=v_RK < V, other=float("-inf")).to(tl.float32)
    m_R = tl.max(z_RK, 1)
    m_block = tl.max(m_R, 0)
    weight_RK = _weights(z_RK, m_R[:, None], m, scale, floor, least)
    x_R = (m_R - tl.where(m_block == float("-inf"), 0.0, m_block)) * scale
    return m_R, m_block, products_kernel(tl.sum(weight_RK, 1), x_R)


@jit
def _weights(z, m_tile, m, scale, floor, least):
    """Weights relative to the tile's largest logit, 0 for what the filters drop."""
    is_kept = (z >= floor) & ((z - m) * scale >= least)
    return tl.where(is_kept, weights_kernel((z - tl.where(m_tile == float("-inf"), 0.0, m_tile)) * scale), 0)


def shipped_launches(arch: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """For kernels/offline.py."""
    zeros = np.zeros(64, dtype=np.uint64)
    settings = {
        "plain": Settings.of(64, 1.0, 0, 1.0, 0.0),
        "tempered": Settings.of(64, 0.7, 0, 1.0, 0.0),
        "filtered": Settings.of(64, 0.7, 20, 0.95, 0.05),
    }
    for name, V, dtype in (
        ("plain", 151_936, torch.bfloat16),
        ("tempered", 151_936, torch.bfloat16),
        ("filtered", 151_936, torch.bfloat16),
        ("plain", 151_936, torch.float32),
        ("filtered", 151_936, torch.float32),
        ("filtered", 262_144, torch.float32),
        ("filtered", 50_257, torch.float32),  # rows that are not aligned
        ("plain", 1, torch.float32),
    ):
        logits_BV = torch.empty(64, V, dtype=dtype, device="meta")
        label = f"{name}, V {V}, {str(dtype).removeprefix('torch.')}"
        yield label, partial(_sample_triton, logits_BV, Noise(zeros, zeros, zeros), settings[name], CONFIGS[arch])
