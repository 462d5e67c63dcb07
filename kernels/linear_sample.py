"""The LM head fused with `sample`: a token per row from hidden states. In 16 bits on a GPU, logits [B, V] are never in
memory unless a row is filtered; elsewhere they are made for some rows at a time.

Bound by bytes: at decode the weight is read once, for up to a hundred rows at the price of one. Logits are products
accumulated in float32 and are not rounded to bfloat16 before the soft-max (that rounding alone moves log-probabilities
by more than a training step does). Each tile of 128 tokens draws its candidate while its logits are in registers; one
of the candidates is then drawn by the masses of blocks and tiles.

    B rows   D model width   V vocabulary   N tiles   M blocks   R tiles of a block   K tokens of a tile
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.check import check_dtype, check_shapes
from kernels.draw import (
    BLOCK_TILES,
    TILE,
    first_above_kernel,
    log_mass_kernel,
    products_kernel,
    target_kernel,
    token_uniform_kernel,
    uniforms_kernel,
    weights_kernel,
)
from kernels.jit import INTERPRETED, architecture, cdiv, jit, next_power_of_2, tl
from kernels.matmul import ROWS, float32_logits
from kernels.sample import _sample_cpu, _sample_triton, checked, merge_kernel, sample_ref, store_kernel
from kernels.settings import Draw, Noise, PerRow, Settings, Words, check_rows, uploaded

MAX_ELEMENTS = 1 << 22  # logits at a time on a CPU, in multiples of ROWS rows


@dataclass(frozen=True, slots=True)
class Config:
    """One program takes a tile of the vocabulary for block_b rows, block_d of the model width at a time."""

    block_b: int
    block_d: int
    num_warps: int
    num_stages: int


# By the number of rows: the first with room for all of them, else the last. Chosen by registers and shared memory; not
# yet from measurements on a GPU.
CONFIGS = {
    "sm_80": (Config(16, 64, 4, 4), Config(32, 64, 8, 4), Config(64, 64, 8, 3)),
    "sm_90": (Config(16, 128, 4, 3), Config(32, 128, 8, 3), Config(64, 64, 8, 4)),
}


def linear_sample_ref(hidden_BD: Tensor, weight_VD: Tensor, *words: Words, **settings: PerRow) -> Draw:
    """The definition: `sample_ref` of the logits, these in float64 and rounded once to float32."""
    return sample_ref(F.linear(hidden_BD.double(), weight_VD.double()).float(), *words, **settings)


@torch.no_grad()
def linear_sample(
    hidden_BD: Tensor,
    weight_VD: Tensor,
    seed_B: Words,
    sample_B: Words,
    position_B: Words,
    temperature: PerRow = 1.0,
    top_k: PerRow = 0,
    top_p: PerRow = 1.0,
    min_p: PerRow = 0.0,
    check: bool = True,
) -> Draw:
    """Draws one token per row from softmax(hidden · weightᵀ), tempered and filtered as `sample` says.

    Given equal logits the token is that of `sample` to the bit; logits themselves are rounded sums, which differ
    between machines (and on a CPU with the number of rows, unless `PackedWeights` are in use).

    Args:
        hidden_BD, weight_VD: of one floating dtype, on one device.
        the others: as in `sample`.

    Raises:
        ValueError: a wrong shape, dtype, device or setting; with `check`, a row whose logits have NaN or +inf.
    """
    sizes = check_shapes(hidden_BD=(hidden_BD, "BD"), weight_VD=(weight_VD, "VD"))
    check_dtype("hidden_BD", hidden_BD, torch.float32, torch.bfloat16, torch.float16, torch.float64)
    check_dtype("weight_VD", weight_VD, hidden_BD.dtype)
    check_rows("weight_VD", weight_VD, sizes["V"])
    B = sizes["B"]
    noise = Noise.of(B, seed_B, sample_B, position_B, hidden_BD.device)
    settings = Settings.of(B, temperature, top_k, top_p, min_p)
    # Products of float32 are no work for the fused kernel: it would spill, and torch does them as well.
    is_fused = hidden_BD.is_cuda and hidden_BD.dtype in (torch.bfloat16, torch.float16)
    with torch.cuda.device_of(hidden_BD):
        if is_fused and not settings.is_filtered_B.any():
            drawn = _linear_sample_triton(hidden_BD, weight_VD, noise, settings)
        elif hidden_BD.is_cuda:
            drawn = _sample_triton(float32_logits(hidden_BD, weight_VD), noise, settings)
        else:
            drawn = _linear_sample_cpu(hidden_BD, weight_VD, noise, settings)
    return checked(drawn, "hidden_BD · weight_VD") if check else drawn


def _linear_sample_cpu(hidden_BD: Tensor, weight_VD: Tensor, noise: Noise, settings: Settings) -> Draw:
    """Some rows at a time, how many by V alone: in whole multiples of ROWS, no row depends on the others."""
    step = max(1, MAX_ELEMENTS // len(weight_VD) // ROWS) * ROWS
    parts = [
        _sample_cpu(float32_logits(hidden_BD[start : start + step], weight_VD), noise.rows(some), settings.rows(some))
        for start in range(0, max(1, len(hidden_BD)), step)
        for some in [slice(start, start + step)]
    ]
    return Draw(*(torch.cat([getattr(part, name) for part in parts]) for name in Draw.__slots__))


def _linear_sample_triton(
    hidden_BD: Tensor, weight_VD: Tensor, noise: Noise, settings: Settings, config: Config | None = None
) -> Draw:
    (B, D), V = hidden_BD.shape, len(weight_VD)
    if config is None:
        table = CONFIGS[architecture(hidden_BD.device)]
        config = next((some for some in table if some.block_b >= B), table[-1])
    hidden_BD, weight_VD = (x if x.stride(1) == 1 else x.contiguous() for x in (hidden_BD, weight_VD))
    num_tiles, num_row_blocks = cdiv(V, TILE), cdiv(B, config.block_b)

    drawn = Draw.empty(B, hidden_BD.device)
    if not B:
        return drawn
    # largest logit, Σ e^u, Σ u e^u, integer mass, candidate and its logit
    dtypes = (*[torch.float32] * 3, torch.int64, torch.int32, torch.float32)
    of_tiles = [torch.empty(num_tiles, B, dtype=dtype, device=hidden_BD.device) for dtype in dtypes]
    scale_B = uploaded(settings.scale_B, torch.float32, hidden_BD.device)
    words = noise.tensors(B, hidden_BD.device)
    as_defined = {"enable_fp_fusion": False}  # kernels/draw.py
    _linear_tile_kernel[num_tiles * num_row_blocks,](
        hidden_BD, weight_VD, hidden_BD.stride(0), weight_VD.stride(0), B, V, D, num_row_blocks, scale_B, *words,
        *of_tiles, UPCAST=INTERPRETED and hidden_BD.dtype == torch.bfloat16, TILE=TILE,
        BLOCK_B=config.block_b, BLOCK_D=config.block_d, num_warps=config.num_warps, num_stages=config.num_stages,
        **as_defined,
    )  # fmt: skip
    _choose_kernel[B,](
        B, num_tiles, scale_B, *words, *of_tiles, *drawn.outputs,
        TILE=TILE, R=BLOCK_TILES, M=max(2, next_power_of_2(cdiv(num_tiles, BLOCK_TILES))), num_warps=4, **as_defined,
    )  # fmt: skip
    return drawn


@jit(varying=("B", "num_row_blocks"))
def _linear_tile_kernel(
    hidden_ptr, weight_ptr, hidden_stride, weight_stride, B, V, D, num_row_blocks,
    scale_ptr, seed_ptr, sample_ptr, position_ptr,
    max_ptr, sum_ptr, moment_ptr, mass_ptr, token_ptr, logit_ptr,
    UPCAST: tl.constexpr, TILE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of tokens for BLOCK_B rows: its sums, its integer mass, and the token that would be drawn from it."""
    LOG2E: tl.constexpr = 1.4426950408889634
    # Blocks of rows are neighbours, so that a weight tile is read from memory by the first and from cache by the rest.
    tile = tl.program_id(0) // num_row_blocks
    b_B = tl.program_id(0) % num_row_blocks * BLOCK_B + tl.arange(0, BLOCK_B)
    k_K = tl.arange(0, TILE)
    d_X = tl.arange(0, BLOCK_D)
    is_row_B, is_token_K = b_B < B, tile * TILE + k_K < V
    # A 64-bit base and 32-bit offsets: V · D passes 2^31.
    weight_KX = weight_ptr + tile.to(tl.int64) * TILE * weight_stride + k_K[:, None] * weight_stride + d_X[None, :]
    hidden_XB = hidden_ptr + b_B[None, :].to(tl.int64) * hidden_stride + d_X[:, None]
    z_KB = tl.zeros((TILE, BLOCK_B), tl.float32)
    for start in range(0, D, BLOCK_D):
        is_d_X = start + d_X < D
        w_KX = tl.load(weight_KX + start, mask=is_token_K[:, None] & is_d_X[None, :], other=0.0)
        h_XB = tl.load(hidden_XB + start, mask=is_d_X[:, None] & is_row_B[None, :], other=0.0)
        if UPCAST:
            w_KX, h_XB = w_KX.to(tl.float32), h_XB.to(tl.float32)
        z_KB = tl.dot(w_KX, h_XB, z_KB, input_precision="ieee")
    z_KB = tl.where(is_token_K[:, None], z_KB, float("-inf"))

    m_B = tl.max(z_KB, 0)
    u_KB = z_KB - tl.where(m_B == float("-inf"), 0.0, m_B)[None, :]
    u_KB = tl.maximum(u_KB, -1e38, propagate_nan=tl.PropagateNan.ALL)
    e_KB = tl.exp2(u_KB * LOG2E)
    place_B = tile.to(tl.int64) * B + b_B
    tl.store(max_ptr + place_B, m_B, mask=is_row_B)
    tl.store(sum_ptr + place_B, tl.sum(e_KB, 0), mask=is_row_B)
    tl.store(moment_ptr + place_B, tl.sum(e_KB * u_KB, 0), mask=is_row_B)

    scale_B = tl.load(scale_ptr + b_B, mask=is_row_B, other=0.0)
    is_greedy_B = scale_B == 0.0
    seed_B = tl.load(seed_ptr + b_B, mask=is_row_B, other=0)
    sample_B = tl.load(sample_ptr + b_B, mask=is_row_B, other=0)
    position_B = tl.load(position_ptr + b_B, mask=is_row_B, other=0)
    weight_KB = weights_kernel(u_KB * tl.where(is_greedy_B, 1.0, scale_B)[None, :])
    mass_B = tl.sum(weight_KB, 0)
    target_B = target_kernel(token_uniform_kernel(seed_B, sample_B, position_B), mass_B)
    chosen_B = tl.sum((tl.cumsum(weight_KB, 0) <= target_B[None, :]).to(tl.int32), 0)
    first_B = tl.min(tl.where(u_KB == 0.0, k_K[:, None], TILE), 0)
    chosen_B = tl.where(is_greedy_B, first_B, chosen_B)
    tl.store(mass_ptr + place_B, mass_B, mask=is_row_B)
    tl.store(token_ptr + place_B, chosen_B, mask=is_row_B)
    # m + (z - m) is z again, unless z is so far below m that nobody draws it; and z need not stay in registers.
    u_B = tl.sum(tl.where(k_K[:, None] == chosen_B[None, :], u_KB, 0.0), 0)
    tl.store(logit_ptr + place_B, m_B + u_B, mask=is_row_B)


@jit(varying=("B",))
def _choose_kernel(
    B, num_tiles, scale_ptr, seed_ptr, sample_ptr, position_ptr,
    max_ptr, sum_ptr, moment_ptr, mass_ptr, chosen_ptr, logit_ptr,
    token_ptr, logprob_ptr, drawn_logprob_ptr, lse_ptr, entropy_ptr,
    TILE: tl.constexpr, R: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """One row: one of its tiles' candidates, by the integer masses of blocks and tiles, and the log-probabilities."""
    LOG2E: tl.constexpr = 1.4426950408889634
    LN2: tl.constexpr = 0.6931471805599453
    b = tl.program_id(0)
    scale = tl.load(scale_ptr + b)
    is_greedy = scale == 0.0
    scale = tl.where(is_greedy, 1.0, scale)
    tile_MR = tl.arange(0, M)[:, None] * R + tl.arange(0, R)[None, :]
    is_tile_MR = tile_MR < num_tiles
    place_MR = tile_MR.to(tl.int64) * B + b
    m_MR = tl.load(max_ptr + place_MR, mask=is_tile_MR, other=float("-inf"))
    sum_MR = tl.load(sum_ptr + place_MR, mask=is_tile_MR, other=0.0)
    moment_MR = tl.load(moment_ptr + place_MR, mask=is_tile_MR, other=0.0)
    m_M = tl.max(m_MR, 1)
    origin_M = tl.where(m_M == float("-inf"), 0.0, m_M)
    u_MR = tl.maximum(m_MR - origin_M[:, None], -1e30)
    share_MR = tl.exp2(u_MR * LOG2E)
    sum_M = tl.sum(share_MR * sum_MR, 1)
    moment_M = tl.sum(share_MR * (moment_MR + u_MR * sum_MR), 1)
    m, u_M, log_sum, entropy, is_right = merge_kernel(m_M, sum_M, moment_M)

    u_block, u_tile = uniforms_kernel(tl.load(seed_ptr + b), tl.load(sample_ptr + b), tl.load(position_ptr + b))
    part_MR = products_kernel(tl.load(mass_ptr + place_MR, mask=is_tile_MR, other=0), u_MR * scale)
    mass_M = products_kernel(tl.sum(part_MR, 1), u_M * scale)
    block = tl.minimum(first_above_kernel(mass_M, u_block), M - 1)
    part_R = tl.sum(tl.where(tl.arange(0, M)[:, None] == block, part_MR, 0), 0)
    tile = block * R + first_above_kernel(part_R, u_tile)
    if is_greedy:
        tile = tl.min(tl.min(tl.where(m_MR == m, tile_MR, num_tiles), 1), 0)
    tile = tl.minimum(tile, num_tiles - 1)
    place = tile.to(tl.int64) * B + b
    u = tl.load(logit_ptr + place) - m
    log_mass = log_mass_kernel(tl.sum(mass_M, 0))
    store_kernel(
        b, tile * TILE + tl.load(chosen_ptr + place), u, m, log_sum, entropy,
        tl.minimum(u * scale * LN2 - log_mass, 0.0), is_right, is_greedy, scale == LOG2E,
        token_ptr, logprob_ptr, drawn_logprob_ptr, lse_ptr, entropy_ptr,
    )  # fmt: skip


def shipped_launches(arch: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """For kernels/offline.py."""
    for config, dtype in product(CONFIGS[arch], (torch.bfloat16, torch.float16)):
        B = config.block_b
        words = np.zeros(B, dtype=np.uint64)
        noise, settings = Noise(words, words, words), Settings.of(B, 0.7, 0, 1.0, 0.0)
        hidden_BD, weight_VD = (torch.empty(X, 4096, dtype=dtype, device="meta") for X in (B, 151_936))
        label = f"B {B}, {str(dtype).removeprefix('torch.')}"
        yield label, partial(_linear_sample_triton, hidden_BD, weight_VD, noise, settings, config)
