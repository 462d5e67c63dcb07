"""Log-probability and entropy of given tokens from hidden states, without logits [T, V] for the whole input.

T tokens   D model width   V vocabulary   N tokens of one chunk   S splits of the vocabulary   1 a broadcast dimension

On a GPU the forward is one matrix product whose results stay on the chip, bound by matrix units: 2·T·V·D flops (and by
reading the weight, V·D elements, below some 200 tokens). The backward is three such products over chunks of tokens and
one pass over a chunk's logits, 6 bytes each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.check import check_dtype, check_shapes, check_token_ids
from kernels.jit import ARCHITECTURES, INTERPRETED, architecture, cdiv, jit, next_power_of_2, tl, triton
from kernels.linear_sample import MAX_ELEMENTS
from kernels.matmul import ROWS, addmm_, float32_logits
from kernels.sample import RowStatistics

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LARGEST = torch.finfo(torch.float32).max

# Logits that cost less to keep for backward than to compute again, if memory is not fresh from the system each time.
_SMALL = 1 << 21

# exp of it is 0 in any dtype, and 0 times it is 0: stands in for -inf.
_LOWEST = -1e4


def linear_logprob_ref(
    hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The definition: (logprob_T, entropy_T), in nats, logits and soft-max in float32 or better.

    Returns:
        logprob_T: log softmax(hidden · weightᵀ / temperature)[token], never positive.
        entropy_T: entropy of the same distribution; gradients flow through both.
    """
    dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
    with torch.autocast(hidden_TD.device.type, enabled=False):  # it would round the logits to 16 bits
        logprob_TV = (F.linear(hidden_TD.to(dtype), weight_VD.to(dtype)) / temperature).log_softmax(-1)
        # p log p is 0 where p = 0: a logit of -inf would give nan.
        entropy_T = -(logprob_TV.exp() * logprob_TV.masked_fill(logprob_TV == -torch.inf, 0)).sum(-1)
        return logprob_TV.gather(-1, token_T[:, None])[:, 0].clamp(max=0), entropy_T


def linear_logprob(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    token_T: Tensor,
    temperature: float = 1.0,
    *,
    max_elements: int | None = None,
    like_sample: bool = False,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """`linear_logprob_ref` with no more than a chunk of the logits in memory, each computed again in backward.

    With z = logits / temperature, u = z - max z, S = Σ exp u and l = log S, a token's log p is u - l and the entropy
    H = l - Σ (exp u · u) / S. Both parts of H are non-negative, so nothing cancels, and logits of any size keep their
    differences. Backward:

        ∂ log p_t / ∂z_v = 1[v = t] - p_v,   and ∂H/∂z_v = -Σ_k (∂p_k/∂z_v) log p_k = -p_v (log p_v + H),
        so upstream gradients a of log p_t and b of H give dz_v = a·1[v = t] - p_v (a + b (log p_v + H)).

    bfloat16 and float16 on CUDA go to Triton: no logits in forward, and a token's outputs do not depend on the others.
    Everything else is torch over chunks of tokens (small inputs: as they are), with products in float32 or better, or
    what torch is set to make of them (TF32). Both are deterministic where torch's products are.

    A logit of nan or +inf, or a row of -inf, gives nan and is no error, even with `check`: a trainer skips a step
    whose gradient is not finite, and should not stop. A logit of -inf has no mass; gradients are finite if it is the
    overflow of finite operands.

    Triton's forward and the products of the backward may sum a logit in another order, so p in the backward is off by
    a fraction of some eps·|z|, eps of float32: 1e-3 of p for logits of 1e4.

    Args:
        hidden_TD, weight_VD: of one dtype, float32, bfloat16, float16 or float64, on one device. Those of 16 bits give
            float32 outputs; their logits are summed in float32 and not rounded, whatever autocast says. On CUDA their
            d-logits are: scale a float16 loss.
        token_T: int64 in [0, V).
        temperature: positive and finite, and its inverse in float32 too.
        max_elements: of a chunk's logits. Forward on CPU and backward hold two buffers of that size (Triton: one in
            float32, one in the inputs' dtype). By default 2^23 on CPU and 2^28 elsewhere: a GPU needs over a thousand
            tokens per chunk to make up for a pass over dW.
        like_sample: for float32 on a CPU: a token's outputs are, to the bit, what `linear_sample` records when it
            draws the token from the same hidden state, whatever the other tokens are.
        check: token ids for their range; on a GPU this waits for the device. Unchecked, an id out of range gives a
            log-probability of nan and no gradient through it.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; no vocabulary; a token id, temperature or max_elements
            out of range; a CUDA device older than sm_80 for bfloat16 or float16.
    """
    sizes = check_shapes(hidden=(hidden_TD, "TD"), weight=(weight_VD, "VD"), token=(token_T, "T"))
    T, D, V = (sizes[dim] for dim in "TDV")
    if not V:
        raise ValueError("weight [V, D] needs V > 0")
    check_dtype("hidden", hidden_TD, *_DTYPES)
    check_dtype("weight", weight_VD, hidden_TD.dtype)
    # Real leaves out tensors, whose value may be on a device.
    if not (isinstance(temperature, Real) and 0 < temperature < math.inf and 1 / float(temperature) <= _LARGEST):
        raise ValueError(f"temperature must be positive and finite, in float32 its inverse too, got {temperature!r}")
    if max_elements is None:
        max_elements = 1 << (23 if hidden_TD.device.type == "cpu" else 28)
    if not isinstance(max_elements, int) or max_elements < 1:
        raise ValueError(f"max_elements must be an int of at least 1, got {max_elements!r}")
    if check:
        check_token_ids("token", token_T, V)
    else:
        check_dtype("token", token_T, torch.int64)
        is_wrong_T = (token_T < 0) | (token_T >= V)
        token_T = token_T.masked_fill(is_wrong_T, 0)
    if like_sample and (hidden_TD.device.type != "cpu" or hidden_TD.dtype != torch.float32 or temperature != 1):
        raise ValueError(
            "like_sample needs float32 on a CPU and temperature 1, "
            f"got {hidden_TD.dtype} on {hidden_TD.device} and {temperature}"
        )
    temperature = float(temperature)  # of numpy's scalars and fractions, too
    on_triton = triton is not None and hidden_TD.is_cuda and hidden_TD.dtype in (torch.bfloat16, torch.float16)
    if not (on_triton or like_sample) and V * max(T, D) <= min(max_elements, _SMALL):
        logprob_T, entropy_T = linear_logprob_ref(hidden_TD, weight_VD, token_T, temperature)
    else:
        # Triton launches on the current device; torch sees to it in backward.
        with torch.autocast(hidden_TD.device.type, enabled=False), torch.cuda.device_of(hidden_TD):
            logprob_T, entropy_T = _LinearLogprob.apply(
                hidden_TD, weight_VD, token_T, temperature, max_elements, on_triton, like_sample
            )
    return (logprob_T if check else logprob_T.masked_fill(is_wrong_T, torch.nan)), entropy_T


class _LinearLogprob(torch.autograd.Function):
    """`on_triton` chooses who computes the forward and the d-logits; `addmm_` knows what a device can multiply."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        token_T: Tensor,
        temperature: float,
        max_elements: int,
        on_triton: bool,
        like_sample: bool = False,
    ) -> tuple[Tensor, Tensor]:
        if on_triton:
            outputs = _linear_logprob_triton(hidden_TD, weight_VD, token_T, temperature)
        elif like_sample:
            outputs = _linear_logprob_like_sample(hidden_TD, weight_VD, token_T)
        else:
            outputs = _linear_logprob_torch(hidden_TD, weight_VD, token_T, temperature, max_elements)
        ctx.save_for_backward(hidden_TD, weight_VD, token_T, *outputs[1:])
        ctx.options = temperature, max_elements, on_triton
        ctx.set_materialize_grads(False)
        return outputs[:2]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, a_T: Tensor | None, b_T: Tensor | None) -> tuple[Tensor | None, ...]:
        if a_T is None and b_T is None:
            return (None,) * 7
        hidden_TD, weight_VD, token_T, entropy_T, max_T, logsum_T = ctx.saved_tensors
        temperature, max_elements, on_triton = ctx.options
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        dtype = entropy_T.dtype
        # In torch's form the products are in float32; a GPU would be many times slower at that.
        operand_dtype, d_logits = (hidden_TD.dtype, _d_logits_triton) if on_triton else (dtype, _d_logits_torch)
        operand_VD = weight_VD.to(operand_dtype)
        if a_T is None:
            a_T = torch.zeros_like(entropy_T)
        d_hidden_TD = torch.empty_like(hidden_TD, memory_format=torch.contiguous_format) if needs_hidden else None
        # Without tokens there is no chunk to fill it.
        new = torch.empty_like if len(hidden_TD) else torch.zeros_like
        d_weight_VD = new(weight_VD, dtype=dtype) if needs_weight else None
        alpha = 1 / temperature
        for rows, z_NV, dz_NV in _chunks(hidden_TD, len(weight_VD), max_elements, dtype, operand_dtype):
            operand_ND = hidden_TD[rows].to(operand_dtype)
            addmm_(z_NV, operand_ND, operand_VD.T, beta=0, alpha=alpha)
            b_N = None if b_T is None else b_T[rows]
            d_logits(z_NV, dz_NV, token_T[rows], a_T[rows], b_N, entropy_T[rows], max_T[rows], logsum_T[rows])
            if needs_hidden:
                d_hidden_ND = torch.empty_like(operand_ND, dtype=dtype)
                addmm_(d_hidden_ND, dz_NV, operand_VD, beta=0, alpha=alpha)
                d_hidden_TD[rows] = d_hidden_ND
            if needs_weight:
                addmm_(d_weight_VD, dz_NV.T, operand_ND, beta=1 if rows.start else 0, alpha=alpha)
        return d_hidden_TD, d_weight_VD.to(weight_VD.dtype) if needs_weight else None, *[None] * 5


def _chunks(
    hidden_TD: Tensor, V: int, max_elements: int, *dtypes: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of a chunk and two buffers [N, V] for it, the same memory for every chunk: first touches are slow."""
    T = len(hidden_TD)
    num_rows = _rows_per_chunk(T, max(1, max_elements // V))
    buffers = [hidden_TD.new_empty(num_rows, V, dtype=dtype) for dtype in dtypes]
    for start in range(0, T, num_rows or 1):
        N = min(num_rows, T - start)
        yield slice(start, start + N), *(x_NV[:N] for x_NV in buffers)


def _rows_per_chunk(T: int, most: int) -> int:
    """Equal chunks, as few as can be: a short last one would cost a pass over dW for little work.

    Whole tiles of a GPU's matrix product if `most` allows it.
    """
    num_rows = cdiv(T, cdiv(T, most) or 1)
    in_tiles = cdiv(num_rows, 128) * 128
    return min(T, in_tiles if in_tiles <= most else num_rows)


def _linear_logprob_torch(
    hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor, temperature: float, max_elements: int
) -> tuple[Tensor, ...]:
    """(logprob_T, entropy_T, max_T, logsum_T), the last two of logits / temperature."""
    dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
    # Four tensors of their own, not rows of one: FSDP2 warns of outputs that are views.
    logprob_T, entropy_T, max_T, logsum_T = (hidden_TD.new_empty(len(token_T), dtype=dtype) for _ in range(4))
    operand_VD = weight_VD.to(dtype)
    for rows, z_NV, y_NV in _chunks(hidden_TD, len(weight_VD), max_elements, dtype, dtype):
        addmm_(z_NV, hidden_TD[rows].to(dtype), operand_VD.T, beta=0, alpha=1 / temperature)
        max_T[rows] = z_NV.amax(-1)
        z_NV.sub_(max_T[rows, None])
        torch.exp(z_NV, out=y_NV)
        sum_N = y_NV.sum(-1)
        logsum_N = logsum_T[rows] = sum_N.log()
        logprob_T[rows] = z_NV.gather(-1, token_T[rows, None])[:, 0].sub_(logsum_N).clamp_(max=0)
        # nansum: exp u · u is 0 · -inf for a logit of -inf. A nan among the logits is in logsum already.
        entropy_T[rows] = logsum_N - y_NV.mul_(z_NV).nansum(-1).div_(sum_N)
    return logprob_T, entropy_T, max_T, logsum_T


def _linear_logprob_like_sample(hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor) -> tuple[Tensor, ...]:
    """(logprob_T, entropy_T, max_T, logsum_T) by the arithmetic of `linear_sample` on a CPU."""
    T = len(token_T)
    outputs = tuple(hidden_TD.new_empty(T) for _ in range(4))
    step = max(1, MAX_ELEMENTS // len(weight_VD) // ROWS) * ROWS
    for start in range(0, T, step):
        rows = slice(start, min(start + step, T))
        num_padding = -(rows.stop - start) % ROWS
        hidden_ND, token_N = F.pad(hidden_TD[rows], (0, 0, 0, num_padding)), F.pad(token_T[rows], (0, num_padding))
        statistics = RowStatistics.of(float32_logits(hidden_ND, weight_VD))
        u_N = statistics.u_BV.gather(-1, token_N[:, None])[:, 0]
        logprob_N = (u_N - statistics.log_sum_B).clamp_(max=0)
        parts = logprob_N, statistics.entropy_B, statistics.m_B1[:, 0], statistics.log_sum_B
        for output_T, part_N in zip(outputs, parts, strict=True):
            output_T[rows] = part_N[: rows.stop - start]
    return outputs


def _d_logits_torch(
    z_NV: Tensor,
    dz_NV: Tensor,
    token_N: Tensor,
    a_N: Tensor,
    b_N: Tensor | None,
    entropy_N: Tensor,
    max_N: Tensor,
    logsum_N: Tensor,
) -> None:
    """Fills dz and overwrites z. See `linear_logprob`; with p = exp(u) / S and log p = u - l,

    dz = a·1[v = t] + exp(u) (-a - b (H - l) - b u) / S.
    """
    z_NV.sub_(max_N[:, None])
    torch.exp(z_NV, out=dz_NV)
    inverse_N = logsum_N.neg().exp_()
    constant_N1 = (-a_N * inverse_N)[:, None]
    if b_N is None:
        dz_NV.mul_(constant_N1)
    else:
        slope_N = -b_N * inverse_N
        constant_N1 = constant_N1 + (slope_N * (entropy_N - logsum_N))[:, None]
        z_NV.clamp_(min=_LOWEST)
        torch.addcmul(constant_N1, z_NV, slope_N[:, None], out=z_NV)
        dz_NV.mul_(z_NV)
    dz_NV.scatter_add_(1, token_N[:, None], a_N[:, None])


@dataclass(frozen=True, slots=True)
class Config:
    """One program of the forward takes block_t tokens and split_v columns of the vocabulary, block_v at a time."""

    block_t: int
    block_v: int
    block_d: int
    split_v: int
    num_warps: int
    num_stages: int
    tma: bool  # operands come by descriptors; the loops over columns and over D are then one pipeline

    def __post_init__(self) -> None:
        assert self.split_v % self.block_v == 0, "a tile would reach into the next split"


# From registers and shared memory, not yet from measurements on a GPU. The accumulator takes 128 registers a thread in
# both. sm_80: 48 KB and two programs per multiprocessor, so that one's soft-max overlaps the other's product. sm_90:
# the descriptors leave registers for 128 x 256, and the next tile's loads overlap the soft-max.
CONFIGS = {
    "sm_80": Config(block_t=128, block_v=128, block_d=32, split_v=1024, num_warps=4, num_stages=4, tma=False),
    "sm_90": Config(block_t=128, block_v=256, block_d=64, split_v=1024, num_warps=8, num_stages=4, tma=True),
}
_GROUP_T = 16  # blocks of tokens that read a split of the weight together: at D = 4096, 16 MB of hidden states in L2
_LOG2_E = tl.constexpr(math.log2(math.e)) if triton else None
_LN_2 = tl.constexpr(math.log(2)) if triton else None


def _linear_logprob_triton(
    hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor, temperature: float, config: Config | None = None
) -> tuple[Tensor, ...]:
    """(logprob_T, entropy_T, max_T, logsum_T) float32, the last two of logits / temperature.

    Neither the split of the vocabulary nor the order of any sum depends on T: a token's numbers are a function of its
    own row and of the weight.
    """
    T, V = len(hidden_TD), len(weight_VD)
    config = config or CONFIGS[architecture(hidden_TD.device)]
    hidden_TD = _whole_blocks(hidden_TD, config.block_t, config.block_d)
    weight_VD = _whole_blocks(weight_VD, config.block_v, config.block_d)
    num_splits = cdiv(V, config.split_v)
    partials = [hidden_TD.new_empty(num_splits, T, dtype=torch.float32) for _ in range(3)]
    logprob_T, entropy_T, max_T, logsum_T, target_T = (hidden_TD.new_empty(T, dtype=torch.float32) for _ in range(5))
    if not T:
        return logprob_T, entropy_T, max_T, logsum_T
    operands = hidden_TD, weight_VD
    if config.tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        blocks = (config.block_t, config.block_d), (config.block_v, config.block_d)
        operands = [TensorDescriptor.from_tensor(*x) for x in zip(operands, blocks, strict=True)]
    _forward_kernel[(cdiv(T, config.block_t) * num_splits,)](
        *operands, token_T.contiguous(), *partials, target_T,
        T, V, hidden_TD.shape[1], hidden_TD.stride(0), weight_VD.stride(0), 1 / temperature,
        SPLIT_V=config.split_v, GROUP_T=_GROUP_T,
        BLOCK_T=config.block_t, BLOCK_V=config.block_v, BLOCK_D=config.block_d,
        TMA=config.tma, UPCAST=INTERPRETED and hidden_TD.dtype == torch.bfloat16,
        num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    block_s = next_power_of_2(num_splits)
    block_t = max(1, 4096 // block_s)
    _merge_kernel[(cdiv(T, block_t),)](
        *partials, target_T, logprob_T, entropy_T, max_T, logsum_T,
        T, num_splits, 1 / temperature, BLOCK_S=block_s, BLOCK_T=block_t, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return logprob_T, entropy_T, max_T, logsum_T


def _whole_blocks(x_XD: Tensor, block_x: int, block_d: int) -> Tensor:
    """x, if its rows are whole blocks that a program can address; else a copy with zeros appended.

    Rows have to start on 16-byte boundaries and may not overlap (descriptors), and 32-bit offsets have to reach from
    the first row of a block to its last. What comes from a model is taken as it is.
    """
    X, D = x_XD.shape
    padded_D = cdiv(max(D, 1), block_d) * block_d
    stride = x_XD.stride(0)
    is_aligned = x_XD.stride(1) == 1 and stride % 8 == 0 and x_XD.data_ptr() % 16 == 0
    if padded_D == D and is_aligned and stride >= D and (block_x - 1) * stride + D <= 1 << 31:
        return x_XD
    copy_XD = x_XD.new_zeros(X, padded_D)
    copy_XD[:, :D] = x_XD
    return copy_XD


def _d_logits_triton(
    z_NV: Tensor,
    dz_NV: Tensor,
    token_N: Tensor,
    a_N: Tensor,
    b_N: Tensor | None,
    entropy_N: Tensor,
    max_N: Tensor,
    logsum_N: Tensor,
) -> None:
    """Fills dz, in its own dtype. It cannot share memory with z: other programs may still be reading there."""
    N, V = z_NV.shape
    b_N = torch.zeros_like(a_N) if b_N is None else b_N
    per_token = (x_N.contiguous() for x_N in (token_N, a_N, b_N, entropy_N, max_N, logsum_N))
    block_v = min(4096, next_power_of_2(V))
    _d_logits_kernel[(N, cdiv(V, block_v))](
        z_NV, dz_NV, *per_token, V, BLOCK_V=block_v, num_warps=8, enable_fp_fusion=True
    )  # fmt: skip


@jit(varying=("T",))
def _forward_kernel(
    hidden,  # pointers, or with TMA descriptors
    weight,
    token_ptr,
    max_ptr,  # [S, T] of each split: m = max of the logits,
    sum_ptr,  # Σ 2^x and
    dot_ptr,  # Σ 2^x · x with x = log2(e) (logit - m) / temperature
    target_ptr,  # [T] logit of the token
    T,
    V,
    D,
    hidden_stride,
    weight_stride,
    inverse_temperature,
    SPLIT_V: tl.constexpr,
    GROUP_T: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # Programs that run together read few splits of the weight, and hidden states that stay in L2: within a group of
    # GROUP_T blocks of tokens, all blocks of one split come before the next split.
    num_blocks = tl.cdiv(T, BLOCK_T)
    num_splits = tl.cdiv(V, SPLIT_V)
    group = tl.program_id(0) // (GROUP_T * num_splits)
    group_size = min(GROUP_T, num_blocks - group * GROUP_T)
    program = tl.program_id(0) - group * GROUP_T * num_splits
    t0 = (group * GROUP_T + program % group_size) * BLOCK_T
    split = program // group_size
    first = split * SPLIT_V
    last = min(V, first + SPLIT_V)

    t = tl.arange(0, BLOCK_T)
    v = tl.arange(0, BLOCK_V)
    d = tl.arange(0, BLOCK_D)
    if not TMA:  # scalar 64-bit bases and 32-bit offsets: half the registers of 64-bit pointers. Rows past the end
        # repeat the last one.
        hidden += t0.to(tl.int64) * hidden_stride
        hidden_offset = tl.minimum(t, T - t0 - 1)[:, None] * hidden_stride + d[None, :]
    scale = inverse_temperature * _LOG2_E
    m_T = tl.full([BLOCK_T], float("-inf"), tl.float32)
    sum_T = tl.zeros([BLOCK_T], tl.float32)
    dot_T = tl.zeros([BLOCK_T], tl.float32)
    tl.assume(first < last)  # spares a second set of registers for what follows an empty loop
    for v0 in tl.range(first, last, BLOCK_V, flatten=TMA):
        z_TV = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
        if not TMA:
            tile = weight + v0 * weight_stride.to(tl.int64)
            weight_offset = tl.minimum(v, V - v0 - 1)[:, None] * weight_stride + d[None, :]
        for d0 in range(0, D, BLOCK_D):
            if TMA:
                hidden_TD = hidden.load([t0, d0])
                weight_VD = weight.load([v0, d0])
            else:
                hidden_TD = tl.load(hidden + d0 + hidden_offset)
                weight_VD = tl.load(tile + d0 + weight_offset)
            if UPCAST:
                hidden_TD = hidden_TD.to(tl.float32)
                weight_VD = weight_VD.to(tl.float32)
            z_TV = tl.dot(hidden_TD, tl.trans(weight_VD), z_TV, input_precision="ieee")

        # Few tiles hold a token of these. Kept across tiles, its id and logit would take registers from the product.
        column_T = tl.load(token_ptr + t0 + t, mask=t < T - t0, other=-1).to(tl.int32) - v0
        is_here_T = (column_T >= 0) & (column_T < BLOCK_V)
        if tl.max(is_here_T.to(tl.int32), 0) > 0:
            target_T = tl.sum(tl.where(column_T[:, None] == v[None, :], z_TV, 0.0), 1)
            tl.store(target_ptr + t0 + t, target_T, mask=is_here_T)

        # Online soft-max (arXiv:1805.02867). maximum() and max() skip nan, but exp2 passes it on to the sums. Where
        # x = -inf, 2^x · x is 0 thanks to the floor; where all is -inf so far, any origin does but -inf itself.
        z_TV = tl.where(v[None, :] < V - v0, z_TV, float("-inf"))
        new_m_T = tl.maximum(m_T, tl.max(z_TV, 1))
        origin_T = tl.where(new_m_T == float("-inf"), 0.0, new_m_T)
        x_TV = (z_TV - origin_T[:, None]) * scale
        y_TV = tl.exp2(x_TV)
        shift_T = (m_T - origin_T) * scale
        ratio_T = tl.exp2(shift_T)
        dot_T = ratio_T * (dot_T + sum_T * tl.maximum(shift_T, -1e4)) + tl.sum(y_TV * tl.maximum(x_TV, -1e4), 1)
        sum_T = ratio_T * sum_T + tl.sum(y_TV, 1)
        m_T = new_m_T
    at = split.to(tl.int64) * T + t0 + t
    tl.store(max_ptr + at, m_T, mask=t < T - t0)
    tl.store(sum_ptr + at, sum_T, mask=t < T - t0)
    tl.store(dot_ptr + at, dot_T, mask=t < T - t0)


@jit(varying=("T",))
def _merge_kernel(
    max_ptr,  # [S, T] and target_ptr [T]: as the forward kernel leaves them
    sum_ptr,
    dot_ptr,
    target_ptr,
    logprob_ptr,  # [T]
    entropy_ptr,
    top_ptr,
    logsum_ptr,
    T,
    num_splits,
    inverse_temperature,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    s = tl.arange(0, BLOCK_S)
    at = s[:, None].to(tl.int64) * T + t[None, :]
    is_real = (s[:, None] < num_splits) & (t[None, :] < T)
    m_ST = tl.load(max_ptr + at, mask=is_real, other=float("-inf"))
    sum_ST = tl.load(sum_ptr + at, mask=is_real, other=0.0)
    dot_ST = tl.load(dot_ptr + at, mask=is_real, other=0.0)
    m_T = tl.max(m_ST, 0)
    shift_ST = (m_ST - m_T[None, :]) * (inverse_temperature * _LOG2_E)  # nan, as it should be, if all logits are -inf
    ratio_ST = tl.exp2(shift_ST)
    sum_T = tl.sum(ratio_ST * sum_ST, 0)
    dot_T = tl.sum(ratio_ST * (dot_ST + sum_ST * tl.maximum(shift_ST, -1e4)), 0)
    logsum_T = tl.log(sum_T)
    logprob_T = (tl.load(target_ptr + t, mask=t < T, other=0.0) - m_T) * inverse_temperature - logsum_T
    tl.store(logprob_ptr + t, tl.where(logprob_T > 0, 0.0, logprob_T), mask=t < T)  # keeps nan
    tl.store(entropy_ptr + t, logsum_T - dot_T / sum_T * _LN_2, mask=t < T)
    tl.store(top_ptr + t, m_T * inverse_temperature, mask=t < T)
    tl.store(logsum_ptr + t, logsum_T, mask=t < T)


@jit
def _d_logits_kernel(
    z_ptr,  # [N, V] float32
    dz_ptr,  # [N, V]
    token_ptr,  # [N], and so the rest
    a_ptr,
    b_ptr,
    entropy_ptr,
    max_ptr,
    logsum_ptr,
    V,
    BLOCK_V: tl.constexpr,
):
    n = tl.program_id(0)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    a = tl.load(a_ptr + n)
    logsum = tl.load(logsum_ptr + n)
    inverse = tl.exp(-logsum)
    slope = -tl.load(b_ptr + n) * inverse
    constant = -a * inverse + slope * (tl.load(entropy_ptr + n) - logsum)
    row = n.to(tl.int64) * V
    u_V = tl.load(z_ptr + row + v, mask=v < V, other=0.0) - tl.load(max_ptr + n)
    dz_V = tl.exp(u_V) * (constant + slope * tl.maximum(u_V, -1e4))
    dz_V += tl.where(v == tl.load(token_ptr + n), a, 0.0)
    tl.store(dz_ptr + row + v, dz_V.to(dz_ptr.dtype.element_ty), mask=v < V)


def shipped_launches(arch: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Launches on meta tensors: heads of Qwen3-8B and 14B, both dtypes, forward and d-logits."""
    assert arch in ARCHITECTURES
    T, V = 4096, 151_936
    for dtype in (torch.bfloat16, torch.float16):
        for D in (4096, 5120):

            def forward(dtype=dtype, D=D):
                hidden_TD, weight_VD = (torch.empty(X, D, dtype=dtype, device="meta") for X in (T, V))
                token_T = torch.empty(T, dtype=torch.int64, device="meta")
                _linear_logprob_triton(hidden_TD, weight_VD, token_T, 1.0, CONFIGS[arch])

            yield f"{dtype}, D {D}".removeprefix("torch."), forward

        def backward(dtype=dtype):
            N = _rows_per_chunk(T, (1 << 28) // V)
            z_NV = torch.empty(N, V, device="meta")
            token_N = torch.empty(N, dtype=torch.int64, device="meta")
            a_N = torch.empty(N, device="meta")
            _d_logits_triton(z_NV, torch.empty_like(z_NV, dtype=dtype), token_N, *[a_N] * 5)

        yield f"{dtype}, backward".removeprefix("torch."), backward
