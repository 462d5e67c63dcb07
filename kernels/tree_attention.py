"""Attention over token trees: in a depth-first layout, key k is seen by the queries k ≤ q < end of k's subtree.

Queries and keys are cut into tiles. Where all pairs of a tile are seen it needs no mask, where none is it is left out;
which is which is found out once on the host, for all layers, from the runs of equal ends. Every program takes one tile
and goes through those that it meets; the programs with the most come first, so that no long one is left over at the
end. The backward is two passes, one for queries and one for keys, each of which computes the weights again: nothing is
added up by atomics, so results are the same in every run.

    L tokens of a layout   H query heads   K key/value heads   C head width
    M queries of a tile   N keys of a tile   R runs   X tiles
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.check import check_dtype, check_shapes
from kernels.jit import ARCHITECTURES, INTERPRETED, architecture, cdiv, jit, tl, triton
from kernels.upload import upload

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDTHS = (16, 32, 64, 128, 256)  # of a head
_MOST = 128  # tokens of a tile
_LOG2_E = math.log2(math.e)


def tree_attention_ref(q_LHC: Tensor, k_LKC: Tensor, v_LKC: Tensor, end_L: Tensor) -> Tensor:
    """The definition, by a mask [L, L]; o_LHC. Query head h reads key/value head h // (H / K)."""
    place_L = torch.arange(len(end_L), device=end_L.device)
    is_seen_LL = (place_L <= place_L[:, None]) & (place_L[:, None] < end_L)
    q_1HLC, k_1KLC, v_1KLC = (x_LHC.transpose(0, 1)[None] for x_LHC in (q_LHC, k_LKC, v_LKC))
    o_1HLC = F.scaled_dot_product_attention(q_1HLC, k_1KLC, v_1KLC, attn_mask=is_seen_LL, enable_gqa=True)
    return o_1HLC[0].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Config:
    """One program of a pass takes a tile of its own side and goes through tiles of the other."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int
    tma: bool  # operands come by descriptors

    def __post_init__(self) -> None:
        assert _MOST % self.queries == _MOST % self.keys == 0


@dataclass(frozen=True, slots=True)
class Configs:
    forward: Config
    d_queries: Config
    d_keys: Config


# For heads of up to 128. sm_90: the fastest on an H200 of a dozen each that do not spill; sm_80: from registers and
# shared memory, not yet from measurements.
CONFIGS = {
    "sm_80": Configs(
        forward=Config(queries=128, keys=64, num_warps=8, num_stages=3, tma=False),
        d_queries=Config(queries=128, keys=32, num_warps=8, num_stages=2, tma=False),
        d_keys=Config(queries=64, keys=64, num_warps=8, num_stages=2, tma=False),
    ),
    "sm_90": Configs(
        forward=Config(queries=128, keys=32, num_warps=4, num_stages=4, tma=True),
        d_queries=Config(queries=128, keys=64, num_warps=8, num_stages=3, tma=True),
        d_keys=Config(queries=64, keys=128, num_warps=8, num_stages=3, tma=True),
    ),
}
_WIDE = Configs(  # for heads of 256
    forward=Config(queries=64, keys=32, num_warps=8, num_stages=2, tma=False),
    d_queries=Config(queries=64, keys=32, num_warps=8, num_stages=2, tma=False),
    d_keys=Config(queries=32, keys=32, num_warps=8, num_stages=1, tma=False),
)
_FLOAT32 = Configs(  # without matrix units, which would round; these do not spill, up to heads of 128
    forward=Config(queries=32, keys=16, num_warps=8, num_stages=2, tma=False),
    d_queries=Config(queries=64, keys=16, num_warps=8, num_stages=2, tma=False),
    d_keys=Config(queries=32, keys=32, num_warps=8, num_stages=1, tma=False),
)


def configs_of(arch: str, dtype: torch.dtype, C: int) -> Configs:
    if dtype == torch.float32:
        return _FLOAT32
    return CONFIGS[arch] if C <= 128 else _WIDE


def has_kernel(device: torch.device, dtype: torch.dtype, C: int) -> bool:
    """Whether it is a GPU's work, of a dtype and a width that tiles have: float32 up to 128.

    The definition is no way out for float32: where heads share keys torch has no form of it but one that keeps all
    weights [H, L, L].
    """
    if triton is None or device.type != "cuda" or dtype not in _DTYPES:
        return False
    return C in _WIDTHS and (C <= 128 or dtype != torch.float32)


@dataclass(frozen=True, slots=True)
class Met:
    """For each tile of one side those of the other that it meets: whole ones, and those that need the mask."""

    order_X: Tensor  # int32: tiles, that which meets the most first
    whole_first_X: Tensor  # int32 [X + 1]: tile x meets whole[first[x] : first[x + 1]]
    whole: Tensor
    part_first_X: Tensor
    part: Tensor

    @classmethod
    def of(cls, is_whole_XY: np.ndarray, is_part_XY: np.ndarray, device: torch.device) -> Met:
        lists = []
        for is_XY in (is_whole_XY, is_part_XY):
            first_X = np.concatenate(([0], is_XY.sum(1).cumsum()))
            # One more, which is read ahead and not met.
            lists += [first_X, np.append(np.nonzero(is_XY)[1], 0)]
        order_X = np.argsort(-(is_whole_XY.sum(1) + is_part_XY.sum(1)), kind="stable")
        # Each on 16 bytes, as `jit` says.
        arrays = [np.pad(x, (0, -len(x) % 4)) for x in (order_X, *lists)]
        together = upload(np.concatenate(arrays).astype(np.int32), device)
        return cls(*together.split([len(x) for x in arrays]))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """As kernels take them."""
        return self.order_X, self.whole_first_X, self.whole, self.part_first_X, self.part


class Tiles:
    """A layout's tiles, made once for all layers, and for each of the sizes that a pass asks for.

    Args:
        end_L: where the subtree of each token's node ends, int [L]. Subtrees are nested: those of two tokens are apart,
            or the later one's is a part of the other's.
    """

    def __init__(self, end_L: np.ndarray, device: torch.device) -> None:
        self.end_L, self.device = end_L, device
        self._met: dict[tuple[int, int, bool], Met] = {}
        # What is beyond the layout, in its last tile, is seen by nobody.
        self.padded_end_L = upload(np.pad(end_L.astype(np.int32), (0, -len(end_L) % _MOST)), device)

    def met(self, queries: int, keys: int, by_keys: bool) -> Met:
        """What each tile of queries meets, or each of keys."""
        size = queries, keys, by_keys
        if size not in self._met:
            is_whole, is_part = (x.T if by_keys else x for x in tile_kinds(self.end_L, queries, keys))
            self._met[size] = Met.of(is_whole, is_part, self.device)
        return self._met[size]


def tile_kinds(end_L: np.ndarray, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """bool [tiles of queries, tiles of keys]: whether all pairs are seen, and whether some are and some not."""
    L = len(end_L)
    # Runs of one end within one tile of either side: of two different ones all pairs are seen or none, of a run and
    # itself the lower triangle.
    starts = (np.flatnonzero(np.diff(end_L, prepend=-1)), np.arange(0, L, queries), np.arange(0, L, keys))
    start_R = np.unique(np.concatenate(starts))
    end_R = end_L[start_R]
    is_seen_RR = (start_R <= start_R[:, None]) & (start_R[:, None] < end_R)
    is_whole_RR = is_seen_RR.copy()
    # A run of one token sees all of itself.
    is_whole_RR[np.diag_indices(len(start_R))] = np.diff(start_R, append=L) == 1
    first_query = np.searchsorted(start_R, np.arange(0, L, queries))
    first_key = np.searchsorted(start_R, np.arange(0, L, keys))

    def of_tiles(reduce: np.ufunc, is_RR: np.ndarray) -> np.ndarray:
        return reduce.reduceat(reduce.reduceat(is_RR, first_query, axis=0), first_key, axis=1)

    # A last tile that is not full is never whole: what is beyond it has to be masked.
    is_whole = of_tiles(np.logical_and, is_whole_RR)
    is_whole[L // queries :] = is_whole[:, L // keys :] = False
    return is_whole, of_tiles(np.logical_or, is_seen_RR) & ~is_whole


def tree_attention(q_LHC: Tensor, k_LKC: Tensor, v_LKC: Tensor, tiles: Tiles) -> Tensor:
    """`tree_attention_ref` by kernels (see `has_kernel`), with gradients. No two runs differ in a bit.

    Scores, weights and sums are float32; for the second product weights are rounded to the inputs' dtype, and so are
    the gradients of scores.

    Args:
        q_LHC, k_LKC, v_LKC: of one dtype, 16 bits or float32 (which is slow), on one GPU; tokens may lie apart, as
            parts of one product [L, (H + 2K) · C]. C is 16, 32, 64, 128 or 256, and K divides H.
        tiles: of L tokens.

    Returns:
        o_LHC, contiguous.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a head width that no kernel is for.
    """
    sizes = check_shapes(q=(q_LHC, "LHC"), k=(k_LKC, "LKC"), v=(v_LKC, "LKC"))
    check_dtype("q", q_LHC, *_DTYPES)
    for name, x_LKC in (("k", k_LKC), ("v", v_LKC)):
        check_dtype(name, x_LKC, q_LHC.dtype)
    if q_LHC.device != tiles.padded_end_L.device:
        raise ValueError(f"tiles are on {tiles.padded_end_L.device}, q on {q_LHC.device}")
    if sizes["L"] != len(tiles.end_L):
        raise ValueError(f"tiles are of {len(tiles.end_L)} tokens, q has {sizes['L']}")
    if sizes["H"] % sizes["K"]:
        raise ValueError(f"{sizes['H']} query heads cannot share {sizes['K']} key heads")
    if sizes["C"] not in _WIDTHS:
        raise ValueError(f"heads must have a width of {', '.join(map(str, _WIDTHS))}, got {sizes['C']}")
    with torch.cuda.device_of(q_LHC):
        return _TreeAttention.apply(q_LHC, k_LKC, v_LKC, tiles)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q_LHC: Tensor, k_LKC: Tensor, v_LKC: Tensor, tiles: Tiles) -> Tensor:
        o_LHC, lse_HL = forward(q_LHC, k_LKC, v_LKC, tiles)
        ctx.save_for_backward(q_LHC, k_LKC, v_LKC, o_LHC, lse_HL)
        ctx.tiles = tiles
        return o_LHC

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, do_LHC: Tensor) -> tuple[Tensor | None, ...]:
        q_LHC, k_LKC, v_LKC, o_LHC, lse_HL = ctx.saved_tensors
        dq_LHC, delta_HL = d_queries(q_LHC, k_LKC, v_LKC, o_LHC, do_LHC, lse_HL, ctx.tiles)
        return dq_LHC, *d_keys(q_LHC, k_LKC, v_LKC, do_LHC, lse_HL, delta_HL, ctx.tiles), None


def forward(
    q_LHC: Tensor, k_LKC: Tensor, v_LKC: Tensor, tiles: Tiles, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """o_LHC, and for the backward the log-sum-exp of each query's scores in base 2, lse_HL."""
    (L, H, C), K = q_LHC.shape, k_LKC.shape[1]
    config = config or configs_of(architecture(q_LHC.device), q_LHC.dtype, C).forward
    o_LHC = torch.empty(L, H, C, dtype=q_LHC.dtype, device=q_LHC.device)
    lse_HL = torch.empty(H, L, dtype=torch.float32, device=q_LHC.device)
    met = tiles.met(config.queries, config.keys, False)
    operands = _operands(config, q=(q_LHC, config.queries), k=(k_LKC, config.keys), v=(v_LKC, config.keys))
    _forward_kernel[cdiv(L, config.queries) * H,](
        *operands, o_LHC, lse_HL, tiles.padded_end_L, *met.tensors, L, C**-0.5 * _LOG2_E,
        H=H, G=H // K, **_options(config, q_LHC),
    )  # fmt: skip
    return o_LHC, lse_HL


def d_queries(
    q_LHC: Tensor, k_LKC: Tensor, v_LKC: Tensor, o_LHC: Tensor, do_LHC: Tensor, lse_HL: Tensor, tiles: Tiles,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dq_LHC, and delta_HL: Σ_c o·do."""
    (L, H, C), K = q_LHC.shape, k_LKC.shape[1]
    config = config or configs_of(architecture(q_LHC.device), q_LHC.dtype, C).d_queries
    dq_LHC, delta_HL = torch.empty_like(o_LHC), torch.empty_like(lse_HL)
    met = tiles.met(config.queries, config.keys, False)
    operands = _operands(
        config, q=(q_LHC, config.queries), k=(k_LKC, config.keys), v=(v_LKC, config.keys), o=(o_LHC, config.queries),
        do=(do_LHC, config.queries),
    )  # fmt: skip
    _d_queries_kernel[cdiv(L, config.queries) * H,](
        *operands, dq_LHC, lse_HL, delta_HL, tiles.padded_end_L, *met.tensors, L,
        C**-0.5 * _LOG2_E, C**-0.5,
        H=H, G=H // K, **_options(config, q_LHC),
    )  # fmt: skip
    return dq_LHC, delta_HL


def d_keys(
    q_LHC: Tensor, k_LKC: Tensor, v_LKC: Tensor, do_LHC: Tensor, lse_HL: Tensor, delta_HL: Tensor, tiles: Tiles,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dk_LKC, dv_LKC)"""
    (L, H, C), K = q_LHC.shape, k_LKC.shape[1]
    config = config or configs_of(architecture(q_LHC.device), q_LHC.dtype, C).d_keys
    dk_LKC, dv_LKC = (torch.empty(L, K, C, dtype=q_LHC.dtype, device=q_LHC.device) for _ in "kv")
    met = tiles.met(config.queries, config.keys, True)
    operands = _operands(
        config, q=(q_LHC, config.queries), k=(k_LKC, config.keys), v=(v_LKC, config.keys), do=(do_LHC, config.queries)
    )
    _d_keys_kernel[cdiv(L, config.keys) * K,](
        *operands, dk_LKC, dv_LKC, lse_HL, delta_HL, tiles.padded_end_L, *met.tensors, L,
        C**-0.5 * _LOG2_E, C**-0.5,
        K=K, G=H // K, **_options(config, q_LHC),
    )  # fmt: skip
    return dk_LKC, dv_LKC


def _operands(config: Config, **tensors: tuple[Tensor, int]) -> Iterator:
    """Each as its pointer or descriptor, and the elements from one row to the next."""
    for x_LHC, rows in tensors.values():
        L, H, C = x_LHC.shape
        # Rows start on 16-byte boundaries, their heads side by side. What comes from a model is taken as it is.
        is_aligned = x_LHC.stride(0) * x_LHC.itemsize % 16 == 0 and x_LHC.data_ptr() % 16 == 0
        if x_LHC.stride()[1:] != (C, 1) or not is_aligned or x_LHC.stride(0) < H * C:
            x_LHC = x_LHC.clone(memory_format=torch.contiguous_format)
        if config.tma:
            from triton.tools.tensor_descriptor import TensorDescriptor

            if x_LHC.is_cuda:
                torch.cuda.current_stream(x_LHC.device).query()  # a descriptor needs a context, a new thread has none
            yield TensorDescriptor(x_LHC, [L, H * C], [x_LHC.stride(0), 1], [rows, C])
        else:
            yield x_LHC
        yield x_LHC.stride(0)


def _options(config: Config, q_LHC: Tensor) -> dict[str, int | bool]:
    return {
        "C": q_LHC.shape[2], "M": config.queries, "N": config.keys, "TMA": config.tma,
        "UPCAST": INTERPRETED and q_LHC.dtype == torch.bfloat16, "num_warps": config.num_warps,
        "num_stages": config.num_stages, "enable_fp_fusion": True,
    }  # fmt: skip


@jit
def _tile(x, stride, first, column, L, R: tl.constexpr, C: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr):
    """R rows of one head, zeros beyond the layout."""
    if TMA:
        x_RC = x.load([first, column])
    else:
        r_R, c_C = tl.arange(0, R), tl.arange(0, C)
        # A base of 64 bits and offsets of 32: half the registers of pointers.
        at_RC = x + first.to(tl.int64) * stride + column + (r_R[:, None] * stride + c_C[None, :])
        x_RC = tl.load(at_RC, mask=r_R[:, None] < L - first, other=0.0)
    return x_RC.to(tl.float32) if UPCAST else x_RC


@jit
def _keep(out_ptr, x_RC, first, head, L, HEADS: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    r_R, c_C = tl.arange(0, R), tl.arange(0, C)
    at_RC = out_ptr + (first.to(tl.int64) * HEADS + head) * C + (r_R[:, None] * (HEADS * C) + c_C[None, :])
    tl.store(at_RC, x_RC.to(out_ptr.dtype.element_ty), mask=r_R[:, None] < L - first)


@jit
def _forward_kernel(
    q, q_stride, k, k_stride, v, v_stride,  # pointers, or with TMA descriptors
    o_ptr,  # [L, H, C]
    lse_ptr,  # [H, L]
    end_ptr,  # [L filled up]
    order_ptr, whole_first_ptr, whole_ptr, part_first_ptr, part_ptr, L, scale,
    H: tl.constexpr, G: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """M queries of one head; heads are next to each other, for those of a group read the same keys."""
    h = tl.program_id(0) % H
    tile = tl.load(order_ptr + tl.program_id(0) // H)
    m0 = tile * M
    q_MC = _tile(q, q_stride, m0, h * C, L, M, C, TMA, UPCAST)
    o_MC = tl.zeros([M, C], tl.float32)
    most_M = tl.full([M], -1e30, tl.float32)  # finite: a tile may hide all of its keys from a query
    sum_M = tl.zeros([M], tl.float32)
    o_MC, most_M, sum_M = _attended(
        o_MC, most_M, sum_M, q_MC, m0, k, k_stride, v, v_stride, (h // G) * C, end_ptr,
        whole_ptr, tl.load(whole_first_ptr + tile), tl.load(whole_first_ptr + tile + 1), L, scale,
        True, C, M, N, TMA, UPCAST,
    )  # fmt: skip
    o_MC, most_M, sum_M = _attended(
        o_MC, most_M, sum_M, q_MC, m0, k, k_stride, v, v_stride, (h // G) * C, end_ptr,
        part_ptr, tl.load(part_first_ptr + tile), tl.load(part_first_ptr + tile + 1), L, scale,
        False, C, M, N, TMA, UPCAST,
    )  # fmt: skip
    m_M = m0 + tl.arange(0, M)
    sum_M = tl.where(m_M < L, sum_M, 1.0)  # nothing is seen from beyond the layout
    _keep(o_ptr, o_MC / sum_M[:, None], m0, h, L, H, M, C)
    tl.store(lse_ptr + h * L + m_M, most_M + tl.log2(sum_M), mask=m_M < L)


@jit
def _attended(
    o_MC, most_M, sum_M, q_MC, m0, k, k_stride, v, v_stride, column, end_ptr, met_ptr, first, last, L, scale,
    IS_WHOLE: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """On-line soft-max (arXiv:2205.14135) over the tiles that are listed, in base 2."""
    tile = tl.load(met_ptr + first)
    for i in range(first, last):
        n0 = tile * N
        tile = tl.load(met_ptr + i + 1)  # ahead: an address that has just been read would be waited for
        k_NC = _tile(k, k_stride, n0, column, L, N, C, TMA, UPCAST)
        z_MN = tl.dot(q_MC, tl.trans(k_NC), input_precision="ieee")
        if not IS_WHOLE:
            z_MN = tl.where(_is_seen(end_ptr, m0, n0, M, N), z_MN, float("-inf"))
        new_M = tl.maximum(most_M, tl.max(z_MN, 1) * scale)
        p_MN = tl.exp2(z_MN * scale - new_M[:, None])
        ratio_M = tl.exp2(most_M - new_M)
        sum_M = sum_M * ratio_M + tl.sum(p_MN, 1)
        v_NC = _tile(v, v_stride, n0, column, L, N, C, TMA, UPCAST)
        o_MC = tl.dot(p_MN.to(v_NC.dtype), v_NC, o_MC * ratio_M[:, None], input_precision="ieee")
        most_M = new_M
    return o_MC, most_M, sum_M


@jit
def _is_seen(end_ptr, m0, n0, M: tl.constexpr, N: tl.constexpr):
    m_M, n_N = m0 + tl.arange(0, M), n0 + tl.arange(0, N)
    end_N = tl.load(end_ptr + n_N)
    return (n_N[None, :] <= m_M[:, None]) & (m_M[:, None] < end_N[None, :])


@jit
def _d_queries_kernel(
    q, q_stride, k, k_stride, v, v_stride, o, o_stride, do, do_stride,  # pointers, or with TMA descriptors
    dq_ptr,  # [L, H, C]
    lse_ptr,  # [H, L], and so delta
    delta_ptr, end_ptr, order_ptr, whole_first_ptr, whole_ptr, part_first_ptr, part_ptr, L, scale, factor,
    H: tl.constexpr, G: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(0) % H
    tile = tl.load(order_ptr + tl.program_id(0) // H)
    m0 = tile * M
    m_M = m0 + tl.arange(0, M)
    do_MC = _tile(do, do_stride, m0, h * C, L, M, C, TMA, UPCAST)
    o_MC = _tile(o, o_stride, m0, h * C, L, M, C, TMA, UPCAST)
    delta_M = tl.sum(do_MC.to(tl.float32) * o_MC.to(tl.float32), 1)
    tl.store(delta_ptr + h * L + m_M, delta_M, mask=m_M < L)
    lse_M = tl.load(lse_ptr + h * L + m_M, mask=m_M < L, other=0.0)
    q_MC = _tile(q, q_stride, m0, h * C, L, M, C, TMA, UPCAST)
    dq_MC = tl.zeros([M, C], tl.float32)
    dq_MC = _d_attended(
        dq_MC, q_MC, do_MC, lse_M, delta_M, m0, k, k_stride, v, v_stride, (h // G) * C, end_ptr,
        whole_ptr, tl.load(whole_first_ptr + tile), tl.load(whole_first_ptr + tile + 1), L, scale,
        True, C, M, N, TMA, UPCAST,
    )  # fmt: skip
    dq_MC = _d_attended(
        dq_MC, q_MC, do_MC, lse_M, delta_M, m0, k, k_stride, v, v_stride, (h // G) * C, end_ptr,
        part_ptr, tl.load(part_first_ptr + tile), tl.load(part_first_ptr + tile + 1), L, scale,
        False, C, M, N, TMA, UPCAST,
    )  # fmt: skip
    _keep(dq_ptr, dq_MC * factor, m0, h, L, H, M, C)


@jit
def _d_attended(
    dq_MC, q_MC, do_MC, lse_M, delta_M, m0, k, k_stride, v, v_stride, column, end_ptr, met_ptr, first, last, L, scale,
    IS_WHOLE: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Adds to dq what the listed tiles give: ds = p (do · v - delta), dq = ds · k."""
    tile = tl.load(met_ptr + first)
    for i in range(first, last):
        n0 = tile * N
        tile = tl.load(met_ptr + i + 1)
        k_NC = _tile(k, k_stride, n0, column, L, N, C, TMA, UPCAST)
        z_MN = tl.dot(q_MC, tl.trans(k_NC), input_precision="ieee")
        v_NC = _tile(v, v_stride, n0, column, L, N, C, TMA, UPCAST)
        dp_MN = tl.dot(do_MC, tl.trans(v_NC), input_precision="ieee")
        if not IS_WHOLE:
            z_MN = tl.where(_is_seen(end_ptr, m0, n0, M, N), z_MN, float("-inf"))
        p_MN = tl.exp2(z_MN * scale - lse_M[:, None])
        ds_MN = p_MN * (dp_MN - delta_M[:, None])
        dq_MC = tl.dot(ds_MN.to(k_NC.dtype), k_NC, dq_MC, input_precision="ieee")
    return dq_MC


@jit
def _d_keys_kernel(
    q, q_stride, k, k_stride, v, v_stride, do, do_stride,  # pointers, or with TMA descriptors
    dk_ptr,  # [L, K, C]
    dv_ptr,
    lse_ptr,  # [H, L], and so delta
    delta_ptr, end_ptr, order_ptr, whole_first_ptr, whole_ptr, part_first_ptr, part_ptr, L, scale, factor,
    K: tl.constexpr, G: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """N keys of one head, all heads of queries that read them one after the other."""
    head = tl.program_id(0) % K
    tile = tl.load(order_ptr + tl.program_id(0) // K)
    n0 = tile * N
    k_NC = _tile(k, k_stride, n0, head * C, L, N, C, TMA, UPCAST)
    v_NC = _tile(v, v_stride, n0, head * C, L, N, C, TMA, UPCAST)
    dk_NC = tl.zeros([N, C], tl.float32)
    dv_NC = tl.zeros([N, C], tl.float32)
    dk_NC, dv_NC = _d_seen(
        dk_NC, dv_NC, k_NC, v_NC, n0, q, q_stride, do, do_stride, head * G, lse_ptr, delta_ptr, end_ptr,
        whole_ptr, tl.load(whole_first_ptr + tile), tl.load(whole_first_ptr + tile + 1), L, scale,
        True, G, C, M, N, TMA, UPCAST,
    )  # fmt: skip
    dk_NC, dv_NC = _d_seen(
        dk_NC, dv_NC, k_NC, v_NC, n0, q, q_stride, do, do_stride, head * G, lse_ptr, delta_ptr, end_ptr,
        part_ptr, tl.load(part_first_ptr + tile), tl.load(part_first_ptr + tile + 1), L, scale,
        False, G, C, M, N, TMA, UPCAST,
    )  # fmt: skip
    _keep(dk_ptr, dk_NC * factor, n0, head, L, K, N, C)
    _keep(dv_ptr, dv_NC, n0, head, L, K, N, C)


@jit
def _d_seen(
    dk_NC, dv_NC, k_NC, v_NC, n0, q, q_stride, do, do_stride, first_head, lse_ptr, delta_ptr, end_ptr,
    met_ptr, first, last, L, scale, IS_WHOLE: tl.constexpr, G: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Adds to dk and dv what the queries of the listed tiles give; tiles are transposed, [N, M]."""
    tile = tl.load(met_ptr + first)
    for i in range(first * G, last * G):
        m0 = tile * M
        h = first_head + i % G
        tile = tl.load(met_ptr + (i + 1) // G)
        m_M = m0 + tl.arange(0, M)
        q_MC = _tile(q, q_stride, m0, h * C, L, M, C, TMA, UPCAST)
        lse_M = tl.load(lse_ptr + h * L + m_M, mask=m_M < L, other=0.0)
        z_NM = tl.dot(k_NC, tl.trans(q_MC), input_precision="ieee")
        if not IS_WHOLE:
            z_NM = tl.where(tl.trans(_is_seen(end_ptr, m0, n0, M, N)), z_NM, float("-inf"))
        p_NM = tl.exp2(z_NM * scale - lse_M[None, :])
        do_MC = _tile(do, do_stride, m0, h * C, L, M, C, TMA, UPCAST)
        dv_NC = tl.dot(p_NM.to(do_MC.dtype), do_MC, dv_NC, input_precision="ieee")
        delta_M = tl.load(delta_ptr + h * L + m_M, mask=m_M < L, other=0.0)
        dp_NM = tl.dot(v_NC, tl.trans(do_MC), input_precision="ieee")
        ds_NM = p_NM * (dp_NM - delta_M[None, :])
        dk_NC = tl.dot(ds_NM.to(q_MC.dtype), q_MC, dk_NC, input_precision="ieee")
    return dk_NC, dv_NC


def shipped_launches(arch: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Launches on meta tensors, forward and backward: Qwen3-1.7B and 8B, Qwen2.5-0.5B, the widest heads, float32."""
    assert arch in ARCHITECTURES

    def run(H: int, K: int, C: int, dtype: torch.dtype) -> None:
        L, device, configs = 4096, torch.device("meta"), configs_of(arch, dtype, C)
        q_LHC, k_LKC, v_LKC = torch.empty(L, H + 2 * K, C, dtype=dtype, device=device).split((H, K, K), 1)
        tiles = Tiles(np.full(L, L), device)
        o_LHC, lse_HL = forward(q_LHC, k_LKC, v_LKC, tiles, configs.forward)
        _, delta_HL = d_queries(q_LHC, k_LKC, v_LKC, o_LHC, o_LHC, lse_HL, tiles, configs.d_queries)
        d_keys(q_LHC, k_LKC, v_LKC, o_LHC, lse_HL, delta_HL, tiles, configs.d_keys)

    bfloat16, float16 = torch.bfloat16, torch.float16
    for H, K, C, dtype in (
        (16, 8, 128, bfloat16), (32, 8, 128, bfloat16), (14, 2, 64, float16), (16, 8, 256, bfloat16),
        (16, 8, 128, torch.float32),
    ):  # fmt: skip
        yield f"{H} over {K} heads of {C}, {dtype}".replace("torch.", ""), partial(run, H, K, C, dtype)
