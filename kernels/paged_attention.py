"""Attention of one new token per row over pages of keys and values, with a prefix that sibling rows read once.

The n judgments of a context share its pages; each then has pages of its own. Sibling rows are consecutive, so their
queries form one tile: the shared pages are read once for all of them instead of n times (cascade inference,
https://flashinfer.ai/2024/02/02/cascade-inference.html; hydragen, arXiv:2402.05099). Both parts are cut into splits of
a fixed number of tokens that run side by side, all in one launch (flash-decoding); a last kernel merges the partial
results of a row.

    B rows   H query heads   K key/value heads   Q = H / K query heads of one of them   C head width
    N pages   P tokens of a page   M pages in a row's table   G groups of sibling rows   L pages in a group's table
    S splits   X queries of one tile: siblings × Q   T tokens of one block

Pages are [N, P, K, C]: a decode step writes the K heads of a token as one run, and reading one head touches runs of C
elements, 256 bytes at C = 128 in bfloat16: whole cache lines, so nothing is fetched in vain. A cache of another layout
(heads before tokens, layers in between) can be passed as a strided view as long as C is contiguous.

What bounds it: bytes. A step reads 2·K·C elements for every own token and for every token of a prefix once per group.
A split also costs H·C + 2·H float32 per row, written and read: 2·4·X·C bytes against 2·2·C·tokens in bfloat16, so 1.6 %
with 512 own tokens at Q = 4, and 6 % (12 %) with 1024 prefix tokens shared by 8 (16) siblings. Arithmetic is X FLOP per
byte, times two where a tile is half padding: below the ridge (156 on A100, 295 on H100) up to the largest tile.

Splits have a fixed size, whatever the number of rows. So the arithmetic of a row depends on its own tokens, on the
lengths of its two parts, and on the shape of the query tile (from `max_rows` and Q), and not on what it is batched
with, on the width of a table, or on where its pages lie: not in one bit. The price is paid by small batches only: B
rows with l own tokens give B · K · l / 512 blocks, which fill a GPU from some 8 rows of 1,000 tokens on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels.check import check_dtype, check_shapes
from kernels.jit import INTERPRETED, architecture, cdiv, jit, tl

PAGE_SIZES = (8, 16, 32, 64, 128, 256)
HEAD_WIDTHS = (16, 32, 64, 128)  # of the Triton form; the CPU form takes any


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """G groups of consecutive rows; the rows of a group share a prefix, which comes before their own tokens.

    Groups may be empty and of different sizes, a prefix may be empty, and need not end with its last page.
    """

    table_GL: Tensor  # int32, page numbers
    length_G: Tensor  # int32, tokens
    row_start_G1: Tensor  # int32 [G + 1]: group g is rows row_start[g] to row_start[g + 1] - 1; all rows are covered
    max_rows: int  # no group is larger; on the host, so that nothing waits for the device


def paged_attention_ref(
    q_BHC: Tensor,
    key_pages_NPKC: Tensor,
    value_pages_NPKC: Tensor,
    table_BM: Tensor,
    length_B: Tensor,
    scale: float | None = None,
    prefix: SharedPrefix | None = None,
) -> Tensor:
    """The definition: soft-max attention of each row over its prefix and its own tokens, in float32 or better."""
    dtype = torch.promote_types(q_BHC.dtype, torch.float32)
    scale = q_BHC.shape[-1] ** -0.5 if scale is None else scale
    num_queries = q_BHC.shape[1] // key_pages_NPKC.shape[2]
    out_BHC = torch.zeros_like(q_BHC, memory_format=torch.contiguous_format)
    row_group = {}
    if prefix is not None:
        starts = prefix.row_start_G1.tolist()
        row_group = {row: group for group, start in enumerate(starts[:-1]) for row in range(start, starts[group + 1])}

    def tokens(pages_NPKC: Tensor, row: int) -> Tensor:
        """[tokens, H, C]"""
        parts = [(table_BM[row], length_B[row])]
        if row in row_group:
            parts.insert(0, (prefix.table_GL[row_group[row]], prefix.length_G[row_group[row]]))
        P = pages_NPKC.shape[1]
        parts = [pages_NPKC[table[: cdiv(int(n), P)].long()].flatten(0, 1)[: int(n)] for table, n in parts]
        return torch.cat(parts).to(dtype).repeat_interleave(num_queries, dim=1)

    for row, q_HC in enumerate(q_BHC):
        key_THC, value_THC = tokens(key_pages_NPKC, row), tokens(value_pages_NPKC, row)
        if len(key_THC):
            probability_HT = (scale * torch.einsum("hc,thc->ht", q_HC.to(dtype), key_THC)).softmax(-1)
            out_BHC[row] = torch.einsum("ht,thc->hc", probability_HT, value_THC)
    return out_BHC


@torch.no_grad()
def paged_attention(
    q_BHC: Tensor,
    key_pages_NPKC: Tensor,
    value_pages_NPKC: Tensor,
    table_BM: Tensor,
    length_B: Tensor,
    scale: float | None = None,
    prefix: SharedPrefix | None = None,
    *,
    check: bool = True,
) -> Tensor:
    """`paged_attention_ref`, reading the tokens of a shared prefix once. Returns out [B, H, C] in the dtype of q.

    Scores, soft-max and sums are float32 (float64 for float64). For decoding: there are no gradients.

    Args:
        q_BHC: one query per row and head, of any strides.
        key_pages_NPKC, value_pages_NPKC: of q's dtype and of equal strides, contiguous in C; P a power of two from 8 to
            256. float16, bfloat16 or float32; float64 on CPU. On a GPU C is 16, 32, 64 or 128.
        table_BM: int32, the pages of a row's own tokens in order. Entries behind its length are never followed. Give a
            slice of few columns if all rows are short: blocks are started for M pages a row.
        length_B: int32, own tokens of each row, after the prefix. A row with no token at all gives zeros; one whose
            scores are all -inf gives NaN, as their soft-max does.
        scale: of the scores, before the soft-max, positive; 1/√C by default.
        prefix: the tokens that come before the own ones. Whatever the slots behind a length hold, NaN too, is unused.
        check: look at the values of tables, lengths and row starts as well. On a GPU this waits for the device.

    Raises:
        ValueError: names the argument that has a wrong dtype, shape, device, stride or value.
    """
    scale = max(1, q_BHC.shape[-1]) ** -0.5 if scale is None else scale
    _check(q_BHC, key_pages_NPKC, value_pages_NPKC, table_BM, length_B, scale, prefix)
    if check:
        _check_values(key_pages_NPKC.shape, table_BM, length_B, prefix)
    form = _paged_attention_triton if q_BHC.is_cuda else _paged_attention_torch
    with torch.cuda.device_of(q_BHC):  # where Triton launches, whatever the current device is
        return form(q_BHC, key_pages_NPKC, value_pages_NPKC, table_BM, length_B, scale, prefix)


def _check(
    q_BHC: Tensor,
    key_pages_NPKC: Tensor,
    value_pages_NPKC: Tensor,
    table_BM: Tensor,
    length_B: Tensor,
    scale: float,
    prefix: SharedPrefix | None,
) -> None:
    """Everything that can be seen without reading a tensor."""
    tensors = {
        "q": (q_BHC, "BHC"),
        "key_pages": (key_pages_NPKC, "NPKC"),
        "value_pages": (value_pages_NPKC, "NPKC"),
        "table": (table_BM, "BM"),
        "length": (length_B, "B"),
    }
    if prefix is not None:
        tensors["prefix.table"] = (prefix.table_GL, "GL")
        tensors["prefix.length"] = (prefix.length_G, "G")
        tensors["prefix.row_start"] = (prefix.row_start_G1, "R")
    sizes = check_shapes(**tensors)
    floats = (torch.float16, torch.bfloat16, torch.float32)
    check_dtype("q", q_BHC, *floats, *([] if q_BHC.is_cuda else [torch.float64]))
    for name, (tensor, _) in list(tensors.items())[1:]:
        check_dtype(name, tensor, q_BHC.dtype if name.endswith("_pages") else torch.int32)
    if sizes["P"] not in PAGE_SIZES:
        raise ValueError(f"key_pages must have a page size P of {PAGE_SIZES}, got {sizes['P']}")
    if key_pages_NPKC.stride(-1) != 1:
        raise ValueError(f"key_pages must be contiguous in C, got strides {key_pages_NPKC.stride()}")
    strides, value_strides = key_pages_NPKC.stride(), value_pages_NPKC.stride()
    if value_strides != strides:
        raise ValueError(f"value_pages must have the strides of key_pages, {strides}, got {value_strides}")
    if not sizes["H"] or not sizes["K"] or sizes["H"] % sizes["K"]:
        raise ValueError(f"q must have H a multiple of K in key_pages, got H = {sizes['H']} and K = {sizes['K']}")
    if not sizes["C"]:
        raise ValueError(f"q must have a head width, got shape {tuple(q_BHC.shape)}")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if prefix is not None:
        if sizes["R"] != sizes["G"] + 1:
            raise ValueError(f"prefix.row_start must have G + 1 = {sizes['G'] + 1} entries, got {sizes['R']}")
        if prefix.max_rows < 0:
            raise ValueError(f"prefix.max_rows must not be negative, got {prefix.max_rows}")


def _check_values(
    pages_shape: tuple[int, ...], table_BM: Tensor, length_B: Tensor, prefix: SharedPrefix | None
) -> None:
    """Everything that needs the values: one read of the device if all is well."""
    N, P = pages_shape[:2]
    parts = [("", table_BM, length_B)]
    if prefix is not None:
        parts.append(("prefix.", prefix.table_GL, prefix.length_G))
    right: list[tuple[Tensor, str, Tensor]] = []  # (is each value right, what it has to be, the values)
    for name, table, length in parts:
        capacity = table.shape[1] * P
        is_used = torch.arange(table.shape[1], device=table.device) * P < length[:, None]
        is_page = (table >= 0) & (table < N) | ~is_used
        right.append(((length >= 0) & (length <= capacity), f"{name}length must lie in [0, {capacity}]", length))
        right.append((is_page, f"{name}table must hold pages in [0, {N})", table))
    if prefix is not None:
        start, B = prefix.row_start_G1, len(length_B)
        rows = start.diff()
        ends = torch.tensor([0, B], dtype=start.dtype, device=start.device)
        right.append((start[[0, -1]] == ends, f"prefix.row_start must begin with 0 and end with {B}", start[[0, -1]]))
        right.append((rows >= 0, "prefix.row_start must not decrease: groups of 0 or more rows", rows))
        right.append((rows <= prefix.max_rows, f"prefix.max_rows = {prefix.max_rows} must bound each group", rows))
    all_right = torch.stack([is_right.all() for is_right, _, _ in right]).tolist()
    for ok, (is_right, message, values) in zip(all_right, right, strict=True):
        if not ok:
            raise ValueError(f"{message}, got {int(values[~is_right][0])}")


def _paged_attention_torch(
    q_BHC: Tensor,
    key_pages_NPKC: Tensor,
    value_pages_NPKC: Tensor,
    table_BM: Tensor,
    length_B: Tensor,
    scale: float,
    prefix: SharedPrefix | None = None,
) -> Tensor:
    """For CPU: siblings against their prefix and rows against their own tokens, as batched matrix products."""
    B, H, C = q_BHC.shape
    K = key_pages_NPKC.shape[2]
    Q = H // K
    num_tokens_B = length_B
    q_BKQC = (q_BHC.to(torch.promote_types(q_BHC.dtype, torch.float32)) * scale).unflatten(1, (K, Q))
    acc_BKQC, max_BKQ, sum_BKQ = _attend(q_BKQC, key_pages_NPKC, value_pages_NPKC, table_BM, length_B)
    if prefix is not None and B:
        starts_G, ends_G = prefix.row_start_G1[:-1], prefix.row_start_G1[1:]
        row_GR = starts_G[:, None] + torch.arange(int((ends_G - starts_G).amax()), device=q_BHC.device)
        is_row_GR = row_GR < ends_G[:, None]
        q_GKXC = q_BKQC[row_GR.clamp(max=B - 1)].transpose(1, 2).flatten(2, 3)
        shared = _attend(q_GKXC, key_pages_NPKC, value_pages_NPKC, prefix.table_GL, prefix.length_G)
        # Groups are consecutive and cover all rows: the rows of all groups, in order, are rows 0 to B - 1.
        shared_acc_BKQC, shared_max_BKQ, shared_sum_BKQ = (
            x.unflatten(2, (-1, Q)).transpose(1, 2)[is_row_GR] for x in shared
        )
        merged_BKQ = torch.maximum(max_BKQ, shared_max_BKQ)
        own_BKQ, shared_BKQ = (max_BKQ - merged_BKQ).exp_(), (shared_max_BKQ - merged_BKQ).exp_()
        acc_BKQC = acc_BKQC * own_BKQ[..., None] + shared_acc_BKQC * shared_BKQ[..., None]
        sum_BKQ = sum_BKQ * own_BKQ + shared_sum_BKQ * shared_BKQ
        num_tokens_B = length_B + prefix.length_G.repeat_interleave(ends_G - starts_G)
    out_BKQC = acc_BKQC / sum_BKQ[..., None]
    out_BKQC[num_tokens_B == 0] = 0  # where there are tokens, a sum of 0 is that of scores that are all -inf: NaN
    return out_BKQC.flatten(1, 2).to(q_BHC.dtype)


def _attend(
    q_GKXC: Tensor, key_pages_NPKC: Tensor, value_pages_NPKC: Tensor, table_GL: Tensor, length_G: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the X queries that read the same tokens: Σ exp(score - max) · value, the maxima, and Σ exp(score - max).

    Where there are no tokens the maximum is the least number, not -inf: differences of maxima stay numbers.
    """
    (G, K, X, C), P = q_GKXC.shape, key_pages_NPKC.shape[1]
    T = int(length_G.amax()) if G else 0
    if T == 0:
        sum_GKX = q_GKXC.new_zeros(G, K, X)
        return torch.zeros_like(q_GKXC), torch.full_like(sum_GKX, torch.finfo(q_GKXC.dtype).min), sum_GKX
    is_token_GT = torch.arange(cdiv(T, P) * P, device=length_G.device) < length_G[:, None]
    page_GL = table_GL[:, : cdiv(T, P)].masked_fill(~is_token_GT[:, ::P], 0)
    is_token_GT = is_token_GT[:, :T]
    key_GTKC, value_GTKC = (
        pages_NPKC[page_GL].flatten(1, 2)[:, :T].to(q_GKXC.dtype) for pages_NPKC in (key_pages_NPKC, value_pages_NPKC)
    )
    is_ragged = not bool(is_token_GT.all())
    if is_ragged:
        value_GTKC[~is_token_GT] = 0  # a weight of 0 does not hide a NaN
    # One product per key/value head: its keys are a strided view, which all heads at once would copy.
    score_KGXT = q_GKXC.new_empty(K, G, X, T)
    for k in range(K):
        torch.bmm(q_GKXC[:, k], key_GTKC[:, :, k].transpose(1, 2), out=score_KGXT[k])
    if is_ragged:
        score_KGXT.masked_fill_(~is_token_GT[:, None], -torch.inf)
    max_KGX = score_KGXT.amax(-1).clamp_(min=torch.finfo(q_GKXC.dtype).min)
    exp_KGXT = score_KGXT.sub_(max_KGX[..., None]).exp_()
    acc_KGXC = q_GKXC.new_empty(K, G, X, C)
    for k in range(K):
        torch.bmm(exp_KGXT[k], value_GTKC[:, :, k], out=acc_KGXC[k])
    return acc_KGXC.transpose(0, 1), max_KGX.transpose(0, 1), exp_KGXT.sum(-1).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """How one block works through its split."""

    num_tokens: int  # T, read at a time; divides the splits
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Config:
    """Tiles by X, the number of queries that they hold. They decide bits of the result."""

    tiles: Mapping[int, Tile]
    float32_tiles: Mapping[int, Tile]


# Tokens. Short splits fill the GPU when there are few groups, long ones write fewer partial results, one per sibling.
# On an H200, with 8 contexts and with 32, splits of 256 took 2 % less time at best and 15 % more at worst.
SPLIT = 512
_MERGED = 8  # partial results that the merger reads at a time

# The pipeliner spends two stages on a load whose address is loaded: 5 stages keep two blocks of keys and values on the
# way, 3 or 4 only one. On an H200 no blocks of 32, 64 or 128 tokens, with 4 or 8 warps, were the fastest everywhere: of
# 32 queries, 128 tokens took 2 to 12 % less than these for 8 contexts, and 8 to 11 % more for 32. Tiles of 128 queries,
# of sm_80 and of float32 are chosen by registers and shared memory alone.
_FLOAT32_TILES = {16: Tile(16, 4, 3), 32: Tile(32, 8, 3)}
CONFIGS = {
    "sm_80": Config(
        tiles={16: Tile(32, 4, 5), 32: Tile(32, 4, 5), 64: Tile(32, 4, 5), 128: Tile(32, 8, 5)},
        float32_tiles=_FLOAT32_TILES,
    ),
    "sm_90": Config(
        tiles={16: Tile(32, 4, 5), 32: Tile(32, 4, 5), 64: Tile(32, 4, 5), 128: Tile(64, 8, 5)},
        float32_tiles=_FLOAT32_TILES,
    ),
}


def _paged_attention_triton(
    q_BHC: Tensor,
    key_pages_NPKC: Tensor,
    value_pages_NPKC: Tensor,
    table_BM: Tensor,
    length_B: Tensor,
    scale: float,
    prefix: SharedPrefix | None = None,
    split: int = SPLIT,
    config: Config | None = None,
) -> Tensor:
    """The Triton form: partial results of the prefixes and of the own tokens, then their merger."""
    (B, H, C), (_, P, K, _) = q_BHC.shape, key_pages_NPKC.shape
    if C not in HEAD_WIDTHS:
        raise ValueError(f"q must have a head width C of {HEAD_WIDTHS} for the Triton form, got {C}")
    config = CONFIGS[architecture(q_BHC.device)] if config is None else config
    tiles = config.float32_tiles if q_BHC.dtype == torch.float32 else config.tiles
    if q_BHC.stride(-1) != 1:
        q_BHC = q_BHC.contiguous()
    upcast = INTERPRETED and q_BHC.dtype == torch.bfloat16  # the interpreter neither multiplies nor rounds to bfloat16
    out_BHC = q_BHC.new_empty(B, H, C, dtype=torch.float32 if upcast else None)
    if B == 0:
        return out_BHC

    def tile(max_rows: int) -> tuple[int, int]:
        """(queries of a block, blocks of so many rows)"""
        num_queries = max_rows * (H // K)
        X = next((x for x in sorted(tiles) if x >= num_queries), max(tiles))
        return X, cdiv(num_queries, X)

    def splits(table_GL: Tensor) -> int:
        return cdiv(table_GL.shape[1] * P, split)

    table_BM, length_B = _dense(table_BM), length_B.contiguous()
    own_X, num_own_blocks = tile(1)
    G, shared_X, num_shared_blocks, num_shared_splits = 0, own_X, 0, 0
    shared = table_BM, length_B, length_B  # which nothing is read from
    if prefix is not None:
        shared = _dense(prefix.table_GL), prefix.length_G.contiguous(), prefix.row_start_G1.contiguous()
        G, (shared_X, num_shared_blocks), num_shared_splits = len(shared[0]), tile(prefix.max_rows), splits(shared[0])
    num_own_splits = splits(table_BM)
    num_shared_programs = num_shared_splits * G * num_shared_blocks * K
    num_programs = num_shared_programs + num_own_splits * B * num_own_blocks * K
    acc_SBHC = q_BHC.new_empty(num_shared_splits + num_own_splits, B, H, C, dtype=torch.float32)
    max_SBH, sum_SBH = (q_BHC.new_empty(acc_SBHC.shape[:3], dtype=torch.float32) for _ in range(2))
    scale_log2 = scale * math.log2(math.e)  # soft-max in powers of two
    shape = tiles[shared_X]
    if num_programs:
        _partial_kernel[(num_programs,)](
            q_BHC, key_pages_NPKC, value_pages_NPKC, *shared, table_BM, length_B, acc_SBHC, max_SBH, sum_SBH,
            scale_log2, B, G, num_shared_splits, num_shared_blocks, num_own_blocks,
            q_BHC.stride(0), q_BHC.stride(1), *key_pages_NPKC.stride()[:3], shared[0].stride(0), table_BM.stride(0),
            HAS_SHARED=num_shared_programs > 0, K=K, Q=H // K, C=C, P=P, SPLIT=split, SHARED_X=shared_X, OWN_X=own_X,
            T=min(shape.num_tokens, split),
            # 64-bit offsets between the tokens of a page cost registers in the inner loop; hardly a cache needs them.
            IS_FAR=(P - 1) * key_pages_NPKC.stride(1) >= 2**31, UPCAST=upcast,
            num_warps=shape.num_warps, num_stages=shape.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
    _merge_kernel[(B * H,)](
        acc_SBHC, max_SBH, sum_SBH, length_B, out_BHC, scale_log2, B, num_shared_splits,
        H=H, C=C, SPLIT=split, MERGED=_MERGED, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
    return out_BHC.to(q_BHC.dtype)


def _dense(table_GL: Tensor) -> Tensor:
    return table_GL if table_GL.stride(1) == 1 else table_GL.contiguous()


@jit(varying=("B", "G", "num_shared_splits", "num_shared_blocks", "num_own_blocks", "shared_stride", "own_stride"))
def _partial_kernel(
    q_ptr, key_ptr, value_ptr, shared_table_ptr, shared_length_ptr, row_start_ptr, table_ptr, length_ptr,
    acc_ptr, max_ptr, sum_ptr, scale, B, G, num_shared_splits, num_shared_blocks, num_own_blocks,
    q_row_stride, q_head_stride, page_stride, token_stride, head_stride, shared_stride, own_stride,
    HAS_SHARED: tl.constexpr, K: tl.constexpr, Q: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
    SPLIT: tl.constexpr, SHARED_X: tl.constexpr, OWN_X: tl.constexpr, T: tl.constexpr,
    IS_FAR: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    # One split of an entry (a group's prefix, or a row's own tokens), one key/value head, up to X queries. Heads come
    # first: blocks that run at the same time read neighbouring memory. Then come the blocks of queries of one entry,
    # so that all but the first find the keys in the L2 cache. One launch for both kinds: of few rows each alone would
    # leave processors without a block, and wait for its slowest.
    program = tl.program_id(0)
    num_shared_programs = num_shared_splits * G * num_shared_blocks * K
    if HAS_SHARED and program < num_shared_programs:
        k = program % K
        block = program // K % num_shared_blocks
        entry = program // K // num_shared_blocks % G
        split = program // K // num_shared_blocks // G
        first_row = tl.load(row_start_ptr + entry)
        _partial(
            q_ptr, key_ptr, value_ptr, shared_table_ptr + entry.to(tl.int64) * shared_stride, acc_ptr, max_ptr, sum_ptr,
            scale, B, k, block, split, split, tl.load(shared_length_ptr + entry), first_row.to(tl.int64),
            tl.load(row_start_ptr + entry + 1) - first_row,
            q_row_stride, q_head_stride, page_stride, token_stride, head_stride,
            K, Q, C, P, SPLIT, SHARED_X, T, IS_FAR, UPCAST,
        )  # fmt: skip
    else:
        program -= num_shared_programs
        k = program % K
        block = program // K % num_own_blocks
        row = program // K // num_own_blocks % B
        split = program // K // num_own_blocks // B
        _partial(
            q_ptr, key_ptr, value_ptr, table_ptr + row.to(tl.int64) * own_stride, acc_ptr, max_ptr, sum_ptr,
            scale, B, k, block, split, num_shared_splits + split, tl.load(length_ptr + row), row.to(tl.int64), 1,
            q_row_stride, q_head_stride, page_stride, token_stride, head_stride,
            K, Q, C, P, SPLIT, OWN_X, T, IS_FAR, UPCAST,
        )  # fmt: skip


@jit
def _partial(
    q_ptr, key_ptr, value_ptr, table_ptr, acc_ptr, max_ptr, sum_ptr,
    scale, B, k, block, split, place, length, first_row, num_rows,
    q_row_stride, q_head_stride, page_stride, token_stride, head_stride,
    K: tl.constexpr, Q: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
    SPLIT: tl.constexpr, X: tl.constexpr, T: tl.constexpr, IS_FAR: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Block `block` of the queries of `num_rows` rows against split `split` of their tokens, into place `place`."""
    x_X = block * X + tl.arange(0, X)
    is_query_X = x_X < num_rows * Q
    sibling_X, head_X = x_X // Q, k * Q + x_X % Q
    # Offsets into q and into pages are 64-bit, as the caller's strides may be large. In the scratch (more than 2^31
    # elements too, from 8 GiB on) a tile lies close together: [X, C] 32-bit offsets from a 64-bit scalar.
    stat_base = (place.to(tl.int64) * B + first_row) * (K * Q)
    stat_X = sibling_X * (K * Q) + head_X
    start = split * SPLIT
    if start >= length:  # the merger passes over it
        tl.store(max_ptr + stat_base + stat_X, tl.full([X], float("-inf"), tl.float32), mask=is_query_X)
        tl.store(sum_ptr + stat_base + stat_X, tl.zeros([X], tl.float32), mask=is_query_X)
    else:
        end = tl.minimum(start + SPLIT, length)
        c_C = tl.arange(0, C)
        q_X = sibling_X.to(tl.int64) * q_row_stride + head_X.to(tl.int64) * q_head_stride
        q_XC = tl.load(
            q_ptr + first_row * q_row_stride + q_X[:, None] + c_C[None, :], mask=is_query_X[:, None], other=0
        )
        if UPCAST:
            q_XC = q_XC.to(tl.float32)
        key_ptr += k.to(tl.int64) * head_stride
        value_ptr += k.to(tl.int64) * head_stride
        # Running maximum, Σ exp and Σ exp · value (online soft-max, arXiv:1805.02867). Maxima are those of scores that
        # are not scaled yet: differences of large scores are exact before the scale, which comes with log2(e), and not
        # after. They start at the least number, not at -inf: where all scores so far are -inf, their differences stay
        # numbers.
        max_X = tl.full([X], -3.4028234663852886e38, tl.float32)
        sum_X = tl.zeros([X], tl.float32)
        acc_XC = tl.zeros([X, C], tl.float32)
        for t in range(start, end, T):
            t_T = t + tl.arange(0, T)
            is_token_T = t_T < end
            # Behind the length there may be any number in the table, and anything on its pages: neither is loaded.
            page_T = tl.load(table_ptr + t_T // P, mask=is_token_T, other=0)
            slot_T = t_T % P
            if IS_FAR:
                slot_T = slot_T.to(tl.int64)
            offset_T = page_T.to(tl.int64) * page_stride + slot_T * token_stride
            offset_TC = offset_T[:, None] + c_C[None, :]
            key_TC = tl.load(key_ptr + offset_TC, mask=is_token_T[:, None], other=0)
            value_TC = tl.load(value_ptr + offset_TC, mask=is_token_T[:, None], other=0)
            if UPCAST:
                key_TC = key_TC.to(tl.float32)
            score_XT = tl.dot(q_XC, key_TC.T, input_precision="ieee")
            score_XT = tl.where(is_token_T[None, :], score_XT, float("-inf"))
            new_max_X = tl.maximum(max_X, tl.max(score_XT, 1))
            exp_XT = tl.exp2((score_XT - new_max_X[:, None]) * scale)
            decay_X = tl.exp2((max_X - new_max_X) * scale)
            sum_X = sum_X * decay_X + tl.sum(exp_XT, 1)
            max_X = new_max_X
            if UPCAST:
                value_TC = value_TC.to(tl.float32)
            exp_XT = exp_XT.to(value_TC.dtype)
            acc_XC = tl.dot(exp_XT, value_TC, acc_XC * decay_X[:, None], input_precision="ieee")
        tl.store(max_ptr + stat_base + stat_X, max_X, mask=is_query_X)
        tl.store(sum_ptr + stat_base + stat_X, sum_X, mask=is_query_X)
        tl.store(acc_ptr + stat_base * C + (stat_X * C)[:, None] + c_C[None, :], acc_XC, mask=is_query_X[:, None])


@jit(varying=("B", "num_shared_splits"))
def _merge_kernel(
    acc_ptr, max_ptr, sum_ptr, length_ptr, out_ptr, scale, B, num_shared_splits,
    H: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    # One head of one row. Partial results carry their maximum and sum rather than a log-sum-exp, which at scores of
    # 1e4 would round the weight of a split by a thousandth.
    bh = tl.program_id(0)
    num_own_splits = tl.cdiv(tl.load(length_ptr + bh // H), SPLIT)
    # Own splits begin with a block: the order of sums does not depend on how long the prefixes of other rows are.
    first_own = tl.cdiv(num_shared_splits, MERGED) * MERGED
    c_C = tl.arange(0, C)
    max_ = float("-inf")
    sum_ = 0.0
    acc_C = tl.zeros([C], tl.float32)
    for s in range(0, first_own + num_own_splits, MERGED):
        s_S = s + tl.arange(0, MERGED)
        own_S = s_S - first_own
        is_split_S = (s_S < num_shared_splits) | ((own_S >= 0) & (own_S < num_own_splits))
        stat_S = tl.where(own_S < 0, s_S, num_shared_splits + own_S).to(tl.int64) * (B * H) + bh
        max_S = tl.load(max_ptr + stat_S, mask=is_split_S, other=float("-inf"))
        sum_S = tl.load(sum_ptr + stat_S, mask=is_split_S, other=0)
        acc_SC = tl.load(acc_ptr + (stat_S * C)[:, None] + c_C[None, :], mask=(max_S > float("-inf"))[:, None], other=0)
        new_max = tl.maximum(max_, tl.max(max_S, 0))
        zero = tl.where(new_max > float("-inf"), new_max, 0)  # so that no difference is that of two infinities
        decay = tl.exp2((max_ - zero) * scale)
        weight_S = tl.exp2((max_S - zero) * scale)
        sum_ = sum_ * decay + tl.sum(sum_S * weight_S, 0)
        acc_C = acc_C * decay + tl.sum(acc_SC * weight_S[:, None], 0)
        max_ = new_max
    out_C = acc_C / tl.where(max_ > float("-inf"), sum_, 1.0)  # a row with no tokens: zeros
    tl.store(out_ptr + bh.to(tl.int64) * C + c_C, out_C)


def shipped_launches(arch: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """(label, launch on meta tensors): heads of Qwen3-8B, 14B and of small models, by siblings of a prefix of 2k."""

    def launch(H: int, K: int, C: int, P: int, n: int, dtype: torch.dtype) -> None:
        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        B, G = 16 * n, 16
        prefix = SharedPrefix(empty(G, 2048 // P), empty(G), empty(G + 1), n)
        pages = empty(40_000, P, K, C, dtype=dtype)
        _paged_attention_triton(
            empty(B, H, C, dtype=dtype), pages, pages, empty(B, 4096 // P), empty(B), C**-0.5, prefix,
            config=CONFIGS[arch],
        )  # fmt: skip

    for name, H, K, C, P, n, dtype in [
        ("8B", 32, 8, 128, 16, 4, torch.bfloat16),
        ("8B", 32, 8, 128, 16, 8, torch.bfloat16),
        ("8B", 32, 8, 128, 16, 16, torch.bfloat16),
        ("14B", 40, 8, 128, 16, 16, torch.bfloat16),
        ("8B", 32, 8, 128, 256, 8, torch.float16),
        ("8B", 32, 8, 128, 16, 4, torch.float32),
        ("8B", 32, 8, 128, 16, 16, torch.float32),
        ("C64", 14, 2, 64, 16, 16, torch.bfloat16),
        ("C64", 14, 2, 64, 16, 8, torch.float32),
        ("C32", 14, 2, 32, 8, 16, torch.bfloat16),
        ("C16", 14, 2, 16, 256, 4, torch.bfloat16),
    ]:
        label = f"{name} {H}/{K} heads of {C}, pages of {P}, {n} siblings, {str(dtype).removeprefix('torch.')}"
        yield label, partial(launch, H, K, C, P, n, dtype)
