"""What a decoder does between its matrix products: for inference each in one kernel that reads and writes once.

A decode step is many small operations, which a GPU spends its time starting. Values are rounded where the definitions
round them, which is where plain torch writes them to memory; only sums (of mean squares) may be taken in another order.
What a row gives depends on its width alone, not on how many rows there are. Where a gradient is needed on a GPU,
torch.compile makes kernels of the definition and of its derivative, which round in the same places; on a CPU, and for
float64 or mixed dtypes, the definition runs. Nothing waits for the device.

    B sequences   T positions   R = B · T rows   D model width   F feed-forward width   H query heads
    K key/value heads   C head width   W = C / 2 planes of rotation   N pages   P tokens of a page
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.jit import INTERPRETED, cdiv, jit, next_power_of_2, tl, triton

MAX_WIDTH = 16_384  # of a row that is normed
MAX_HEAD_WIDTH = 256
_SWIGLU_BLOCK = 1024  # elements of a program, as many as 4 warps load at once in 16 bits
_SILU_LOOP = 64  # elements of torch's vector loop with AVX-512, for each of two threads that share a tensor
_HEADS = 8  # of a program of norm_rotary
_WRITTEN = 1024  # elements of keys, and as many of values, of a program of write_pages
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_AS_DEFINED = {"enable_fp_fusion": False}  # a product is rounded before it is added to


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight, [..., D] as x. The mean square is in float32 or better; x / rms(x) is rounded, then weighed.

    Args:
        x: [..., D], floating.
        weight_D: of x's dtype and device. (On a CPU of any dtype; the result's is what torch promotes both to.)

    Raises:
        ValueError: on a GPU, a weight of another length.
    """
    if _has_kernel(x, weight_D) and 0 < x.shape[-1] <= MAX_WIDTH:
        return _rms_norm_triton(x, None, weight_D, eps)[1]
    return _plain(rms_norm_ref, x, weight_D)(x, weight_D, eps)


def rms_norm_ref(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    # Not F.rms_norm: for bf16 input it multiplies by the weight before rounding, the published models after.
    x32 = x.to(torch.promote_types(x.dtype, torch.float32))
    x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight_D * x32.to(x.dtype)


def add_rms_norm(x: Tensor, delta: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + delta, `rms_norm` of it), both [..., D]. The sum is rounded first.

    Args:
        x, delta: [..., D], of one dtype and device.
        weight_D: as in `rms_norm`.

    Raises:
        ValueError: on a GPU, a delta of another shape or a weight of another length.
    """
    if _has_kernel(x, delta, weight_D) and 0 < x.shape[-1] <= MAX_WIDTH:
        return _rms_norm_triton(x, delta, weight_D, eps)
    return _plain(add_rms_norm_ref, x, delta, weight_D)(x, delta, weight_D, eps)


def add_rms_norm_ref(x: Tensor, delta: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x + delta
    return x, rms_norm_ref(x, weight_D, eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, [..., F] as both. silu is computed in float32 or better, and rounded.

    Args:
        gate, up: [..., F], of one dtype and device; their rows may lie apart, as halves of one product [..., 2F].

    Raises:
        ValueError: on a GPU, shapes that differ.
    """
    return _swiglu_triton(gate, up) if _has_kernel(gate, up) else _plain(swiglu_ref, gate, up)(gate, up)


def rows_alike(width: int) -> int:
    """On a CPU, multiples of this many rows [..., width] are each rounded by `swiglu` as in any other company.

    torch's silu runs over whole vectors, and rounds the elements that are left over at the end of a thread's share in
    another way. (More than two threads may still leave some.)
    """
    return _SILU_LOOP // math.gcd(_SILU_LOOP, width)


def swiglu_ref(gate: Tensor, up: Tensor) -> Tensor:
    if (
        not gate.is_cuda and gate.shape[-1] % _SILU_LOOP
    ):  # rows that lie apart would each leave some over: see `rows_alike`
        gate = gate.contiguous()
    return F.silu(gate) * up


def norm_rotary(
    q_BTHC: Tensor, k_BTKC: Tensor, q_weight_C: Tensor | None, k_weight_C: Tensor | None, eps: float,
    cos_BTC: Tensor, sin_BTC: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(q, k), each head normed by `rms_norm` where there are weights, then turned by its position's angles.

    Args:
        q_BTHC, k_BTKC: of one dtype and device; tokens may lie apart, as parts of one product [B, T, (H + 2K) · C].
        q_weight_C, k_weight_C: of that dtype; None leaves out the norm.
        cos_BTC, sin_BTC: float32, of each token's angles, halves repeated; rounded to q's dtype before use.

    Returns:
        Two tensors of the shapes of q and k, on a GPU contiguous.

    Raises:
        ValueError: on a GPU, shapes that do not fit each other.
    """
    arguments = q_BTHC, k_BTKC, q_weight_C, k_weight_C, eps, cos_BTC, sin_BTC
    weights = [weight_C for weight_C in (q_weight_C, k_weight_C) if weight_C is not None]
    is_width = q_BTHC.shape[-1] in range(2, MAX_HEAD_WIDTH + 1, 2)
    if is_width and cos_BTC.dtype == sin_BTC.dtype == torch.float32 and _has_kernel(q_BTHC, k_BTKC, *weights):
        return _norm_rotary_triton(*arguments)
    if len(weights) == 2 and q_BTHC.device.type == "cpu" and q_BTHC.dtype == k_BTKC.dtype:
        return _norm_rotary_cpu(*arguments)
    return _plain(norm_rotary_ref, q_BTHC, k_BTKC, *weights)(*arguments)


def norm_rotary_ref(
    q_BTHC: Tensor, k_BTKC: Tensor, q_weight_C: Tensor | None, k_weight_C: Tensor | None, eps: float,
    cos_BTC: Tensor, sin_BTC: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if q_weight_C is not None:
        q_BTHC = rms_norm_ref(q_BTHC, q_weight_C, eps)
    if k_weight_C is not None:
        k_BTKC = rms_norm_ref(k_BTKC, k_weight_C, eps)
    return rotary_ref(q_BTHC, cos_BTC, sin_BTC), rotary_ref(k_BTKC, cos_BTC, sin_BTC)


def _norm_rotary_cpu(
    q_BTHC: Tensor, k_BTKC: Tensor, q_weight_C: Tensor, k_weight_C: Tensor, eps: float, cos_BTC: Tensor, sin_BTC: Tensor
) -> tuple[Tensor, Tensor]:
    """The heads of both as those of one tensor: half as many operations, which is what a step of few tokens takes."""
    heads = q_BTHC.shape[2], k_BTKC.shape[2]
    x_BTHC = torch.cat((q_BTHC, k_BTKC), 2)
    weight_HC = torch.cat((q_weight_C.expand(heads[0], -1), k_weight_C.expand(heads[1], -1)))
    return rotary_ref(rms_norm_ref(x_BTHC, weight_HC, eps), cos_BTC, sin_BTC).split(heads, 2)


def rotary_ref(x_BTHC: Tensor, cos_BTC: Tensor, sin_BTC: Tensor) -> Tensor:
    """Turns plane w, made of elements w and W + w of a head, by its angle (arXiv:2104.09864)."""
    low, high = x_BTHC.chunk(2, dim=-1)
    cos_BT1C, sin_BT1C = cos_BTC[:, :, None].to(x_BTHC.dtype), sin_BTC[:, :, None].to(x_BTHC.dtype)
    return x_BTHC * cos_BT1C + torch.cat((-high, low), dim=-1) * sin_BT1C


def write_pages(
    k_TKC: Tensor, v_TKC: Tensor, page_T: Tensor, slot_T: Tensor, keys_NKPC: Tensor, values_NKPC: Tensor
) -> None:
    """Writes each token's keys and values in place: pages[page, :, slot] = x. Where two tokens meet, either may stay.

    Args:
        k_TKC, v_TKC: of any strides; of the pages' dtype and device.
        page_T, slot_T: int64, in [0, N) and [0, P), which is not checked.
        keys_NKPC, values_NKPC: of any equal strides.

    Raises:
        ValueError: on a GPU, shapes that do not fit each other, or pages of other strides than the keys'.
    """
    is_indexed = page_T.dtype == slot_T.dtype == torch.int64
    form = _write_pages_triton if is_indexed and _has_kernel(k_TKC, v_TKC, keys_NKPC, values_NKPC) else write_pages_ref
    form(k_TKC, v_TKC, page_T, slot_T, keys_NKPC, values_NKPC)


def write_pages_ref(
    k_TKC: Tensor, v_TKC: Tensor, page_T: Tensor, slot_T: Tensor, keys_NKPC: Tensor, values_NKPC: Tensor
) -> None:
    for pages_NKPC, x_TKC in ((keys_NKPC, k_TKC), (values_NKPC, v_TKC)):
        pages_NKPC[page_T, :, slot_T] = x_TKC


def _has_kernel(*tensors: Tensor) -> bool:
    """Whether a kernel takes these: of one dtype, on a GPU, and no gradient is wanted."""
    first = tensors[0]
    if triton is None or not first.is_cuda or first.dtype not in _DTYPES:
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    return all(x.is_cuda and x.dtype == first.dtype for x in tensors)


def _plain(definition: Callable[..., Any], *tensors: Tensor) -> Callable[..., Any]:
    """The definition; with a gradient on a GPU, what torch compiles of it."""
    first = tensors[0]
    if not (first.is_cuda and torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        return definition
    return _compiled(definition) if all(x.is_cuda and x.dtype == first.dtype for x in tensors) else definition


@cache
def _compiled(definition: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once for a width, and from the first time on for any number of positions: dimension 1 in a decoder."""
    compiled = torch.compile(definition, fullgraph=True, options={"emulate_precision_casts": True})

    def run(*arguments: Any) -> Any:
        for x in arguments:
            if isinstance(x, Tensor) and x.ndim > 2:
                torch._dynamo.maybe_mark_dynamic(x, 1)
        return compiled(*arguments)

    return run


def _check(**tensors: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Raises ValueError where a tensor has another shape: a kernel would read beyond it."""
    for name, (tensor, shape) in tensors.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _rows(x: Tensor, num_kept: int) -> Tensor:
    """[R, ...], all but the last dimensions in one, the last contiguous: a view wherever there can be one."""
    x = x.reshape(-1, *x.shape[-num_kept:]) if x.numel() else x.new_empty(0, *x.shape[-num_kept:])
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _rms_norm_triton(x: Tensor, delta: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor | None, Tensor]:
    """(x + delta or None, the norm)"""
    D = x.shape[-1]
    _check(delta=(delta, tuple(x.shape)), weight_D=(weight_D, (D,)))
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None if delta is None else torch.empty_like(out)
    x_RD, delta_RD = _rows(x, 1), None if delta is None else _rows(delta, 1)
    block = next_power_of_2(D)
    if len(x_RD):
        with torch.cuda.device_of(x):
            _rms_norm_kernel[len(x_RD),](
                x_RD, delta_RD, weight_D.contiguous(), total, out,
                x_RD.stride(0), 0 if delta_RD is None else delta_RD.stride(0), eps,
                D=D, BLOCK=block, TRUNCATES=_truncates(x), num_warps=min(16, max(1, block // 512)), **_AS_DEFINED,
            )  # fmt: skip
    return total, out


def _swiglu_triton(gate: Tensor, up: Tensor) -> Tensor:
    _check(up=(up, tuple(gate.shape)))
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    gate_RF, up_RF = _rows(gate, 1), _rows(up, 1)
    R, width = gate_RF.shape
    num_blocks = cdiv(width, _SWIGLU_BLOCK)
    if R and width:
        with torch.cuda.device_of(gate):
            _swiglu_kernel[R * num_blocks,](
                gate_RF, up_RF, out, gate_RF.stride(0), up_RF.stride(0),
                F=width, BLOCK=_SWIGLU_BLOCK, NUM_BLOCKS=num_blocks, TRUNCATES=_truncates(gate), num_warps=4,
                **_AS_DEFINED,
            )  # fmt: skip
    return out


def _norm_rotary_triton(
    q_BTHC: Tensor, k_BTKC: Tensor, q_weight_C: Tensor | None, k_weight_C: Tensor | None, eps: float,
    cos_BTC: Tensor, sin_BTC: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (B, T, H, C), K = q_BTHC.shape, k_BTKC.shape[-2]
    if cos_BTC.shape != (B, T, C):  # one row of positions for all sequences
        cos_BTC, sin_BTC = cos_BTC.expand(B, T, C), sin_BTC.expand(B, T, C)
    _check(k=(k_BTKC, (B, T, K, C)), q_weight=(q_weight_C, (C,)), k_weight=(k_weight_C, (C,)), sin=(sin_BTC, (B, T, C)))
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_BTHC, k_BTKC))
    q_RHC, k_RKC, cos_RC, sin_RC = _rows(q_BTHC, 2), _rows(k_BTKC, 2), _rows(cos_BTC, 1), _rows(sin_BTC, 1)
    weights = (None if weight_C is None else weight_C.contiguous() for weight_C in (q_weight_C, k_weight_C))
    num_blocks, planes = (cdiv(H, _HEADS), cdiv(K, _HEADS)), next_power_of_2(C // 2)
    if B * T and H and K:
        with torch.cuda.device_of(q_BTHC):
            _norm_rotary_kernel[B * T * sum(num_blocks),](
                q_RHC, k_RKC, *weights, cos_RC, sin_RC, q_out, k_out,
                *q_RHC.stride()[:2], *k_RKC.stride()[:2], cos_RC.stride(0), sin_RC.stride(0), eps,
                H=H, K=K, C=C, Q_BLOCKS=num_blocks[0], NUM_BLOCKS=sum(num_blocks), HEADS=_HEADS, PLANES=planes,
                TRUNCATES=_truncates(q_BTHC), num_warps=max(1, _HEADS * planes // 256), **_AS_DEFINED,
            )  # fmt: skip
    return q_out, k_out


def _write_pages_triton(
    k_TKC: Tensor, v_TKC: Tensor, page_T: Tensor, slot_T: Tensor, keys_NKPC: Tensor, values_NKPC: Tensor
) -> None:
    (T, K, C), (N, _, P, _) = k_TKC.shape, keys_NKPC.shape
    _check(v=(v_TKC, (T, K, C)), page=(page_T, (T,)), slot=(slot_T, (T,)), keys=(keys_NKPC, (N, K, P, C)))
    _check(values=(values_NKPC, (N, K, P, C)))
    if keys_NKPC.stride() != values_NKPC.stride():
        raise ValueError(f"values must have the strides of keys, {keys_NKPC.stride()}, got {values_NKPC.stride()}")
    width = next_power_of_2(C)
    heads = max(1, min(next_power_of_2(K), _WRITTEN // width))
    num_blocks = cdiv(K, heads)
    if k_TKC.numel():
        with torch.cuda.device_of(k_TKC):
            _write_pages_kernel[T * num_blocks,](
                k_TKC, v_TKC, page_T, slot_T, keys_NKPC, values_NKPC, page_T.stride(0), slot_T.stride(0),
                *k_TKC.stride(), *v_TKC.stride(), *keys_NKPC.stride(),
                K=K, C=C, HEADS=heads, WIDTH=width, NUM_BLOCKS=num_blocks,
                num_warps=min(4, max(1, heads * width // 256)), **_AS_DEFINED,
            )  # fmt: skip


def _truncates(x: Tensor) -> bool:
    """The interpreter's conversion to bfloat16 does not round."""
    return INTERPRETED and x.dtype == torch.bfloat16


@jit
def _rounded(x, like_ptr, TRUNCATES: tl.constexpr):
    """x in float32, rounded to the dtype of what a pointer points to."""
    if TRUNCATES:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(like_ptr.dtype.element_ty).to(tl.float32)


@jit
def _rms_norm_kernel(
    x_ptr, delta_ptr, weight_ptr, total_ptr, out_ptr, x_stride, delta_stride, eps,  # delta and total: both or neither
    D: tl.constexpr, BLOCK: tl.constexpr, TRUNCATES: tl.constexpr,
):  # fmt: skip
    """One row."""
    r = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    is_d = d < D
    x = tl.load(x_ptr + r * x_stride + d, mask=is_d, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + d, mask=is_d, other=0.0).to(tl.float32)
    if delta_ptr is not None:
        delta = tl.load(delta_ptr + r * delta_stride + d, mask=is_d, other=0.0).to(tl.float32)
        x = _rounded(x + delta, out_ptr, TRUNCATES)
        tl.store(total_ptr + r * D + d, x, mask=is_d)
    unit = _rounded(x * tl.rsqrt(tl.sum(x * x, 0) / D + eps), out_ptr, TRUNCATES)
    tl.store(out_ptr + r * D + d, _rounded(unit * weight, out_ptr, TRUNCATES), mask=is_d)


@jit
def _swiglu_kernel(
    gate_ptr, up_ptr, out_ptr, gate_stride, up_stride,
    F: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr, TRUNCATES: tl.constexpr,
):  # fmt: skip
    """A block of one row."""
    r = (tl.program_id(0) // NUM_BLOCKS).to(tl.int64)
    f = tl.program_id(0) % NUM_BLOCKS * BLOCK + tl.arange(0, BLOCK)
    is_f = f < F
    gate = tl.load(gate_ptr + r * gate_stride + f, mask=is_f, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + r * up_stride + f, mask=is_f, other=0.0).to(tl.float32)
    silu = _rounded(tl.div_rn(gate, 1.0 + tl.exp(-gate)), out_ptr, TRUNCATES)
    tl.store(out_ptr + r * F + f, _rounded(silu * up, out_ptr, TRUNCATES), mask=is_f)


@jit
def _norm_rotary_kernel(
    q_ptr, k_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr,  # weights: or None
    q_stride, q_head_stride, k_stride, k_head_stride, cos_stride, sin_stride, eps,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, Q_BLOCKS: tl.constexpr, NUM_BLOCKS: tl.constexpr,
    HEADS: tl.constexpr, PLANES: tl.constexpr, TRUNCATES: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one token, all of queries or all of keys."""
    r = (tl.program_id(0) // NUM_BLOCKS).to(tl.int64)
    block = tl.program_id(0) % NUM_BLOCKS
    cos_ptr += r * cos_stride
    sin_ptr += r * sin_stride
    if block < Q_BLOCKS:
        _turn_heads(
            q_ptr + r * q_stride, q_weight_ptr, cos_ptr, sin_ptr, q_out_ptr + r * (H * C), q_head_stride, eps,
            block * HEADS, H, C, HEADS, PLANES, TRUNCATES,
        )  # fmt: skip
    else:
        _turn_heads(
            k_ptr + r * k_stride, k_weight_ptr, cos_ptr, sin_ptr, k_out_ptr + r * (K * C), k_head_stride, eps,
            (block - Q_BLOCKS) * HEADS, K, C, HEADS, PLANES, TRUNCATES,
        )  # fmt: skip


@jit
def _turn_heads(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, head_stride, eps, first,
    H: tl.constexpr, C: tl.constexpr, HEADS: tl.constexpr, PLANES: tl.constexpr, TRUNCATES: tl.constexpr,
):  # fmt: skip
    W: tl.constexpr = C // 2
    # Weights and angles are read once per head, from cache, in the layout of the heads: to read them once and spread
    # them takes shared memory and a dozen barriers.
    h_HW = first + tl.arange(0, HEADS)[:, None] + tl.zeros((HEADS, PLANES), tl.int32)
    w_HW = tl.arange(0, PLANES)[None, :] + tl.zeros((HEADS, PLANES), tl.int32)
    is_x_HW = (h_HW < H) & (w_HW < W)
    x_ptr_HW = x_ptr + h_HW.to(tl.int64) * head_stride + w_HW
    low_HW = tl.load(x_ptr_HW, mask=is_x_HW, other=0.0).to(tl.float32)
    high_HW = tl.load(x_ptr_HW + W, mask=is_x_HW, other=0.0).to(tl.float32)
    if weight_ptr is not None:
        scale_H = tl.rsqrt((tl.sum(low_HW * low_HW, 1) + tl.sum(high_HW * high_HW, 1)) / C + eps)
        low_weight_HW = tl.load(weight_ptr + w_HW, mask=is_x_HW, other=0.0).to(tl.float32)
        high_weight_HW = tl.load(weight_ptr + W + w_HW, mask=is_x_HW, other=0.0).to(tl.float32)
        low_HW = _rounded(low_HW * scale_H[:, None], x_ptr, TRUNCATES)
        high_HW = _rounded(high_HW * scale_H[:, None], x_ptr, TRUNCATES)
        low_HW = _rounded(low_HW * low_weight_HW, x_ptr, TRUNCATES)
        high_HW = _rounded(high_HW * high_weight_HW, x_ptr, TRUNCATES)
    out_ptr_HW = out_ptr + h_HW * C + w_HW
    for is_high in tl.static_range(2):
        cos_HW = _rounded(tl.load(cos_ptr + is_high * W + w_HW, mask=is_x_HW, other=0.0), x_ptr, TRUNCATES)
        sin_HW = _rounded(tl.load(sin_ptr + is_high * W + w_HW, mask=is_x_HW, other=0.0), x_ptr, TRUNCATES)
        if is_high:
            straight_HW, across_HW = high_HW * cos_HW, low_HW * sin_HW
        else:
            straight_HW, across_HW = low_HW * cos_HW, -high_HW * sin_HW
        turned_HW = _rounded(straight_HW, x_ptr, TRUNCATES) + _rounded(across_HW, x_ptr, TRUNCATES)
        tl.store(out_ptr_HW + is_high * W, _rounded(turned_HW, x_ptr, TRUNCATES), mask=is_x_HW)


@jit(varying=("page_ptr", "slot_ptr"))
def _write_pages_kernel(
    k_ptr, v_ptr, page_ptr, slot_ptr, keys_ptr, values_ptr, page_index_stride, slot_index_stride,
    k_stride, k_head_stride, k_element_stride, v_stride, v_head_stride, v_element_stride,
    page_stride, head_stride, slot_stride, element_stride,
    K: tl.constexpr, C: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, NUM_BLOCKS: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one token."""
    t = (tl.program_id(0) // NUM_BLOCKS).to(tl.int64)
    k_K = tl.program_id(0) % NUM_BLOCKS * HEADS + tl.arange(0, HEADS)[:, None].to(tl.int64)
    c_C = tl.arange(0, WIDTH)[None, :]
    is_x_KC = (k_K < K) & (c_C < C)
    # Offsets of 64 bits: the pages of a layer may hold more than 2^31 elements.
    page, slot = tl.load(page_ptr + t * page_index_stride), tl.load(slot_ptr + t * slot_index_stride)
    offset_KC = page * page_stride + slot * slot_stride + k_K * head_stride + c_C * element_stride
    key_KC = tl.load(k_ptr + t * k_stride + k_K * k_head_stride + c_C * k_element_stride, mask=is_x_KC)
    value_KC = tl.load(v_ptr + t * v_stride + k_K * v_head_stride + c_C * v_element_stride, mask=is_x_KC)
    tl.store(keys_ptr + offset_KC, key_KC, mask=is_x_KC)
    tl.store(values_ptr + offset_KC, value_KC, mask=is_x_KC)


def shipped_launches(arch: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """(label, launch on meta tensors), of merged products: Qwen3-8B and 14B, and of small models."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def norm(D: int, has_delta: bool, dtype: torch.dtype) -> None:
        x_TD = empty(64, D, dtype=dtype)
        _rms_norm_triton(x_TD, x_TD if has_delta else None, empty(D, dtype=dtype), 1e-6)

    def product(width: int, dtype: torch.dtype) -> None:
        _swiglu_triton(*empty(64, 2 * width, dtype=dtype).chunk(2, -1))

    def heads(H: int, K: int, C: int, has_norm: bool, dtype: torch.dtype) -> None:
        q_BTHC, k_BTKC, v_BTKC = empty(1, 64, H + 2 * K, C, dtype=dtype).split((H, K, K), 2)
        weight_C = empty(C, dtype=dtype) if has_norm else None
        table_BTC = empty(1, 64, C)
        _, k_BTKC = _norm_rotary_triton(q_BTHC, k_BTKC, weight_C, weight_C, 1e-6, table_BTC, table_BTC)
        index_T = empty(64, dtype=torch.int64)
        pages_2NKPC = empty(2, 4096, K, 16, C, dtype=dtype)
        _write_pages_triton(k_BTKC[0], v_BTKC[0], index_T, index_T, *pages_2NKPC)

    for dtype in _DTYPES:
        name = str(dtype).removeprefix("torch.")
        for D in (896, 4096, 8192):
            for has_delta in (False, True):
                yield f"{'sum and norm' if has_delta else 'norm'} of {D}, {name}", partial(norm, D, has_delta, dtype)
        for width in (4864, 12_288):
            yield f"swiglu of {width}, {name}", partial(product, width, dtype)
        for H, K, C, has_norm in ((32, 8, 128, True), (40, 8, 128, True), (14, 2, 64, False), (16, 16, 256, True)):
            yield f"{H} + {K} heads of {C}, {name}", partial(heads, H, K, C, has_norm, dtype)
