"""The LM head fused with `sample`: a token per row from hidden states, logits [B, V] never in memory unless filtered.

Bound by bytes: at decode the weight is read once, for up to a hundred rows at the price of one. Logits are products
accumulated in float32 and are not rounded to bfloat16 before the soft-max (that rounding alone moves log-probabilities
by more than a training step does). Each tile of TILE tokens draws its candidate while its logits are in registers; one
of the candidates is then drawn by its tile's mass.

    B rows   D model width   V vocabulary   N tiles   K tokens of a tile
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import draw as exact
from kernels.check import check_dtype, check_shapes
from kernels.draw import LOG2E, TILE, masses_kernel, target_kernel, uniform_kernel, weights_kernel
from kernels.jit import INTERPRETED, architecture, cdiv, jit, next_power_of_2, tl
from kernels.matmul import float32_logits
from kernels.sample import checked, merge_kernel, sample, sample_ref, store_kernel
from kernels.settings import Draw, Noise, PerRow, Settings, Words, uploaded

# On a CPU, logits of so many elements at a time.
MAX_ELEMENTS = 1 << 22


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

    Without a filter no logits are kept. With one they are made once, in float32, and handed to `sample`. Given equal
    logits the token is that of `sample` to the bit; logits themselves are rounded sums, which differ between machines.

    Args:
        hidden_BD, weight_VD: of one floating dtype, on one device.
        the others: as in `sample`.

    Raises:
        ValueError: a wrong shape, dtype, device or setting; with `check`, a row whose logits have NaN or +inf.
    """
    sizes = check_shapes(hidden_BD=(hidden_BD, "BD"), weight_VD=(weight_VD, "VD"))
    check_dtype("hidden_BD", hidden_BD, torch.float32, torch.bfloat16, torch.float16, torch.float64)
    check_dtype("weight_VD", weight_VD, hidden_BD.dtype)
    if not sizes["V"]:
        raise ValueError("weight_VD must have at least one token, got V = 0")
    B = sizes["B"]
    noise, settings = Noise.of(B, seed_B, sample_B, position_B), Settings.of(B, temperature, top_k, top_p, min_p)
    is_small = not hidden_BD.is_cuda and B * sizes["V"] <= MAX_ELEMENTS
    if is_small or settings.is_filtered_B.any() or hidden_BD.dtype == torch.float64:
        logits_BV = float32_logits(hidden_BD, weight_VD)
        drawn = sample(logits_BV, seed_B, sample_B, position_B, temperature, top_k, top_p, min_p, check=False)
    else:
        form = _linear_sample_triton if hidden_BD.is_cuda else _linear_sample_cpu
        drawn = form(hidden_BD, weight_VD, noise, settings)
    return checked(drawn, "hidden_BD · weight_VD") if check else drawn


def _linear_sample_cpu(hidden_BD: Tensor, weight_VD: Tensor, noise: Noise, settings: Settings) -> Draw:
    """Tile sums over chunks of the vocabulary; then the logits of the one tile that each row draws from, again."""
    B, V = len(hidden_BD), len(weight_VD)
    scale_B11 = torch.from_numpy(np.where(settings.is_greedy_B, np.float32(LOG2E), settings.scale_B))[:, None, None]
    statistics: list[tuple[Tensor, ...]] = []
    step = max(1, MAX_ELEMENTS // max(1, B * TILE)) * TILE
    for start in range(0, V, step):
        logits_BX = float32_logits(hidden_BD, weight_VD[start : start + step])
        z_BNK = F.pad(logits_BX, (0, -logits_BX.shape[1] % TILE), value=-torch.inf).unflatten(-1, (-1, TILE))
        m_BN1 = z_BNK.amax(-1, keepdim=True)
        u_BNK = z_BNK.sub_(m_BN1.nan_to_num(neginf=0, posinf=torch.inf, nan=torch.nan)).clamp_(min=-1e38)
        e_BNK = u_BNK.exp()
        sum_BN, moment_BN = e_BNK.sum(-1), e_BNK.mul_(u_BNK).sum(-1)
        mass_BN = u_BNK.mul_(scale_B11).exp2_().sum(-1)
        statistics.append((m_BN1[..., 0], sum_BN, moment_BN, mass_BN))
    m_BN, sum_BN, moment_BN, mass_BN = (torch.cat(parts, -1) for parts in zip(*statistics, strict=True))
    m_B1 = m_BN.amax(-1, keepdim=True)
    u_BN = (m_BN - m_B1).clamp(min=-1e38).double()
    share_BN = u_BN.exp()
    sum_B = (share_BN * sum_BN).sum(-1)
    log_sum_B = sum_B.log()
    entropy_B = (log_sum_B - (share_BN * (moment_BN + u_BN * sum_BN)).sum(-1) / sum_B).clamp(min=0).float()
    lse_B = m_B1[:, 0] + log_sum_B.float()
    is_right_B = lse_B.isfinite()

    mass_BN = torch.exp2(u_BN * scale_B11[..., 0]) * mass_BN
    mass_BN[~is_right_B] = 1.0  # such rows draw from something, to be thrown away
    u_tile_B = exact.tile_uniform(noise.seed_B, noise.sample_B, noise.position_B)
    cumulated_BN = mass_BN.cumsum(-1)
    tile_B = (cumulated_BN <= torch.from_numpy(u_tile_B)[:, None] * cumulated_BN[:, -1:]).sum(-1)
    tile_B = tile_B.clamp_(max=m_BN.shape[1] - 1).where(torch.from_numpy(~settings.is_greedy_B), m_BN.argmax(-1))
    z_BK = hidden_BD.new_full((B, TILE), -torch.inf, dtype=torch.float32)
    for b, tile in enumerate(tile_B.tolist()):
        some_KD = weight_VD[tile * TILE : (tile + 1) * TILE]
        z_BK[b, : len(some_KD)] = float32_logits(hidden_BD[b : b + 1], some_KD)[0]
    z_BK = z_BK.where(is_right_B[:, None], 0.0)
    x_BK = exact.scaled(z_BK.numpy(), z_BK.amax(-1, keepdim=True).numpy(), scale_B11[..., 0].numpy())
    u_token_B = exact.token_uniform(noise.seed_B, noise.sample_B, noise.position_B, tile_B.numpy())
    place_B = torch.from_numpy(exact.first_above(exact.weights(x_BK), u_token_B))
    is_greedy_B = torch.from_numpy(settings.is_greedy_B)
    place_B = z_BK.argmax(-1).where(is_greedy_B, place_B)

    u_B = z_BK.gather(1, place_B[:, None])[:, 0] - m_B1[:, 0]
    logprob_B = (u_B - log_sum_B.float()).clamp(max=0)
    drawn_logprob_B = (u_B * scale_B11[:, 0, 0] / LOG2E - mass_BN.sum(-1).log().float()).clamp(max=0)
    drawn_logprob_B = logprob_B.where(torch.from_numpy(settings.temperature_B == 1), drawn_logprob_B)
    drawn_logprob_B = drawn_logprob_B.where(~is_greedy_B, 0.0)
    nan = torch.nan
    return Draw(
        (tile_B * TILE + place_B).where(is_right_B, -1), logprob_B.where(is_right_B, nan),
        drawn_logprob_B.where(is_right_B, nan), lse_B, entropy_B.where(is_right_B, nan),
    )  # fmt: skip


def _linear_sample_triton(
    hidden_BD: Tensor, weight_VD: Tensor, noise: Noise, settings: Settings, config: Config | None = None
) -> Draw:
    (B, D), V = hidden_BD.shape, len(weight_VD)
    if config is None:
        table = CONFIGS[architecture(hidden_BD.device)]
        config = next((some for some in table if some.block_b >= B), table[-1])
    hidden_BD, weight_VD = (x if x.stride(1) == 1 else x.contiguous() for x in (hidden_BD, weight_VD))
    num_tiles, num_row_blocks = cdiv(V, TILE), cdiv(B, config.block_b)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=hidden_BD.device)

    drawn = Draw(empty(B, dtype=torch.int64), *(empty(B) for _ in range(4)))
    if not B:
        return drawn
    max_NB, sum_NB, moment_NB, logit_NB = (empty(num_tiles, B) for _ in range(4))
    mass_NB, token_NB = empty(num_tiles, B, dtype=torch.int64), empty(num_tiles, B, dtype=torch.int32)
    scale_B = uploaded(settings.scale_B, torch.float32, hidden_BD.device)
    words = noise.tensors(B, hidden_BD.device)
    of_tiles = (max_NB, sum_NB, moment_NB, mass_NB, token_NB, logit_NB)
    as_defined = {"enable_fp_fusion": False}  # kernels/draw.py
    _linear_tile_kernel[num_tiles * num_row_blocks,](
        hidden_BD, weight_VD, hidden_BD.stride(0), weight_VD.stride(0), B, V, D, num_row_blocks, scale_B, *words,
        *of_tiles, UPCAST=INTERPRETED and hidden_BD.dtype == torch.bfloat16, TILE=TILE,
        BLOCK_B=config.block_b, BLOCK_D=config.block_d, num_warps=config.num_warps, num_stages=config.num_stages,
        **as_defined,
    )  # fmt: skip
    _choose_kernel[B,](
        B, num_tiles, scale_B, *words, *of_tiles,
        drawn.token_B, drawn.logprob_B, drawn.drawn_logprob_B, drawn.lse_B, drawn.entropy_B,
        TILE=TILE, N=next_power_of_2(num_tiles), num_warps=4, **as_defined,
    )  # fmt: skip
    return drawn


@jit
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
    target_B = target_kernel(uniform_kernel(seed_B, sample_B, position_B, tile + 1), mass_B)
    chosen_B = tl.sum((tl.cumsum(weight_KB, 0) <= target_B[None, :]).to(tl.int32), 0)
    first_B = tl.min(tl.where(u_KB == 0.0, k_K[:, None], TILE), 0)
    chosen_B = tl.where(is_greedy_B, first_B, chosen_B)
    tl.store(mass_ptr + place_B, mass_B, mask=is_row_B)
    tl.store(token_ptr + place_B, chosen_B, mask=is_row_B)
    tl.store(logit_ptr + place_B, tl.sum(tl.where(k_K[:, None] == chosen_B[None, :], z_KB, 0.0), 0), mask=is_row_B)


@jit
def _choose_kernel(
    B, num_tiles, scale_ptr, seed_ptr, sample_ptr, position_ptr,
    max_ptr, sum_ptr, moment_ptr, mass_ptr, chosen_ptr, logit_ptr,
    token_ptr, logprob_ptr, drawn_logprob_ptr, lse_ptr, entropy_ptr,
    TILE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One row: one of its tiles' candidates, by the tiles' integer masses, and the log-probabilities."""
    LOG2E: tl.constexpr = 1.4426950408889634
    LN2: tl.constexpr = 0.6931471805599453
    b = tl.program_id(0)
    scale = tl.load(scale_ptr + b)
    is_greedy = scale == 0.0
    scale = tl.where(is_greedy, 1.0, scale)
    tile_N = tl.arange(0, N)
    is_tile_N = tile_N < num_tiles
    place_N = tile_N.to(tl.int64) * B + b
    m_N = tl.load(max_ptr + place_N, mask=is_tile_N, other=float("-inf"))
    sum_N = tl.load(sum_ptr + place_N, mask=is_tile_N, other=0.0)
    moment_N = tl.load(moment_ptr + place_N, mask=is_tile_N, other=0.0)
    m, u_N, log_sum, entropy, is_right = merge_kernel(m_N, sum_N, moment_N)

    mass_N = masses_kernel(tl.load(mass_ptr + place_N, mask=is_tile_N, other=0), u_N * scale)
    total = tl.sum(mass_N, 0)
    u_tile = uniform_kernel(tl.load(seed_ptr + b), tl.load(sample_ptr + b), tl.load(position_ptr + b), 0)
    tile = tl.sum((tl.cumsum(mass_N, 0) <= target_kernel(u_tile, total)).to(tl.int32), 0)
    if is_greedy:
        tile = tl.min(tl.where(m_N == m, tile_N, num_tiles), 0)
    tile = tl.minimum(tile, num_tiles - 1)
    place = tile.to(tl.int64) * B + b
    u = tl.load(logit_ptr + place) - m
    log_mass = tl.log((total.to(tl.float64) * 2.842170943040401e-14).to(tl.float32))
    store_kernel(
        b, tile * TILE + tl.load(chosen_ptr + place), u, m, log_sum, entropy,
        tl.minimum(u * scale * LN2 - log_mass, 0.0), is_right, is_greedy, scale == LOG2E,
        token_ptr, logprob_ptr, drawn_logprob_ptr, lse_ptr, entropy_ptr,
    )  # fmt: skip


def shipped_launches(arch: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """For kernels/offline.py."""
    for config in CONFIGS[arch]:
        B = config.block_b
        words = np.zeros(B, dtype=np.uint64)
        noise, settings = Noise(words, words, words), Settings.of(B, 0.7, 0, 1.0, 0.0)
        hidden_BD, weight_VD = (torch.empty(X, 4096, dtype=torch.bfloat16, device="meta") for X in (B, 151_936))
        yield f"B {B}", partial(_linear_sample_triton, hidden_BD, weight_VD, noise, settings, config)
