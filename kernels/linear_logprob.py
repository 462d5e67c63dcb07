"""Log-probability and entropy of given tokens from hidden states, without logits [T, V] for the whole input.

T tokens   D model width   V vocabulary   N tokens of one chunk   1 a broadcast dimension
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# bfloat16 products whose float32 sums are kept. Only CUDA has them: elsewhere operands are upcast.
_HAS_FLOAT32_SUMS = torch.version.cuda is not None and "dtype_out" in torch.ops.aten.mm.overloads()

# Logits that cost less to keep for backward than to compute again, if memory is not fresh from the system each time.
_SMALL = 1 << 21


def linear_logprob_ref(hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: (logprob_T, entropy_T), in nats, logits and soft-max in float32 or better.

    Returns:
        logprob_T: log softmax(hidden · weightᵀ)[token], never positive.
        entropy_T: entropy of the same distribution; gradients flow through both.
    """
    dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
    logprob_TV = F.linear(hidden_TD.to(dtype), weight_VD.to(dtype)).log_softmax(-1)
    entropy_T = -(logprob_TV.exp() * logprob_TV).sum(-1)
    return logprob_TV.gather(-1, token_T[:, None])[:, 0].clamp(max=0), entropy_T


def linear_logprob(
    hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor, max_elements: int | None = None
) -> tuple[Tensor, Tensor]:
    """`linear_logprob_ref` over chunks of tokens, each recomputed in backward (small inputs: as they are).

    With u = z - max z, S = Σ exp u and l = log S, a token's log p is u - l and the entropy H = l - Σ (exp u · u) / S.
    Both parts of H are non-negative, so nothing cancels, and logits of any size keep their differences. Backward:

        ∂ log p_t / ∂z_v = 1[v = t] - p_v,   and ∂H/∂z_v = -Σ_k (∂p_k/∂z_v) log p_k = -p_v (log p_v + H),
        so upstream gradients a of log p_t and b of H give dz_v = a·1[v = t] - p_v (a + b (log p_v + H)).

    Args:
        hidden_TD, weight_VD: of one floating dtype, on one device. bfloat16 and float16 give float32 outputs.
        token_T: int64 in [0, V). The range is checked on CPU only: on a GPU the check would wait for the device.
        max_elements: of a chunk's logits. Two buffers of that size live in forward and in backward. By default 2^23 on
            CPU and 2^28 elsewhere: a GPU needs over a thousand tokens per chunk to make up for a pass over dW.
    """
    if max_elements is None:
        max_elements = 1 << (23 if hidden_TD.device.type == "cpu" else 28)
    _check(hidden_TD, weight_VD, token_T, max_elements)
    (T, D), V = hidden_TD.shape, len(weight_VD)
    if V * max(T, D) <= min(max_elements, _SMALL):
        return linear_logprob_ref(hidden_TD, weight_VD, token_T)
    return _LinearLogprob.apply(hidden_TD, weight_VD, token_T, max_elements)


def _check(hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor, max_elements: int) -> None:
    shapes = [tuple(x.shape) for x in (hidden_TD, weight_VD, token_T)]
    if [len(shape) for shape in shapes] != [2, 2, 1] or shapes[0] != (*shapes[2], shapes[1][1]) or not shapes[1][0]:
        raise ValueError("expected hidden [T, D], weight [V, D], token [T] with V > 0, got {}, {}, {}".format(*shapes))
    if not hidden_TD.is_floating_point() or hidden_TD.dtype != weight_VD.dtype:
        raise ValueError(f"hidden and weight need one floating dtype, got {hidden_TD.dtype} and {weight_VD.dtype}")
    if token_T.dtype != torch.int64:
        raise ValueError(f"token ids need dtype torch.int64, got {token_T.dtype}")
    if max_elements < 1:
        raise ValueError(f"max_elements must be at least 1, got {max_elements}")
    if token_T.device.type == "cpu" and len(token_T):
        low, high = (int(x) for x in token_T.aminmax())
        if low < 0 or high >= len(weight_VD):
            raise ValueError(f"token ids must lie in [0, {len(weight_VD)}), got {low} to {high}")


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden_TD: Tensor, weight_VD: Tensor, token_T: Tensor, max_elements: int
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
        # Four tensors of their own, not rows of one: FSDP2 warns of outputs that are views.
        logprob_T, entropy_T, max_T, logsum_T = (hidden_TD.new_empty(len(token_T), dtype=dtype) for _ in range(4))
        operand_VD = _operand(weight_VD)
        for rows, z_NV, y_NV in _chunks(hidden_TD, len(weight_VD), dtype, max_elements):
            _mm(_operand(hidden_TD[rows]), operand_VD.T, z_NV)
            max_T[rows] = z_NV.amax(-1)
            z_NV.sub_(max_T[rows, None])
            torch.exp(z_NV, out=y_NV)
            sum_N = y_NV.sum(-1)
            logsum_N = logsum_T[rows] = sum_N.log()
            logprob_T[rows] = z_NV.gather(-1, token_T[rows, None])[:, 0].sub_(logsum_N).clamp_(max=0)
            entropy_T[rows] = logsum_N - y_NV.mul_(z_NV).sum(-1).div_(sum_N)
        ctx.save_for_backward(hidden_TD, weight_VD, token_T, entropy_T, max_T, logsum_T)
        ctx.max_elements = max_elements
        ctx.set_materialize_grads(False)
        return logprob_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, a_T: Tensor | None, b_T: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        if a_T is None and b_T is None:
            return None, None, None, None
        hidden_TD, weight_VD, token_T, entropy_T, max_T, logsum_T = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        dtype = entropy_T.dtype
        if a_T is None:
            a_T = torch.zeros_like(entropy_T)
        operand_VD = _operand(weight_VD)
        d_hidden_TD = torch.empty_like(hidden_TD, memory_format=torch.contiguous_format) if needs_hidden else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=dtype) if needs_weight else None
        product_VD = None  # where float32 sums of bfloat16 products cannot be added to a float32 buffer directly
        for rows, z_NV, y_NV in _chunks(hidden_TD, len(weight_VD), dtype, ctx.max_elements):
            operand_ND = _operand(hidden_TD[rows])
            _mm(operand_ND, operand_VD.T, z_NV)
            z_NV.sub_(max_T[rows, None])
            torch.exp(z_NV, out=y_NV)
            # With p = exp(u) / S and log p = u - l: p (-a - b (H - l) - b u).
            inverse_N = logsum_T[rows].neg().exp_()
            constant_N1 = (-a_T[rows] * inverse_N)[:, None]
            if b_T is None:
                dz_NV = y_NV.mul_(constant_N1)
            else:
                slope_N = -b_T[rows] * inverse_N
                constant_N1 = constant_N1 + (slope_N * (entropy_T[rows] - logsum_T[rows]))[:, None]
                torch.addcmul(constant_N1, z_NV, slope_N[:, None], out=z_NV)
                dz_NV = y_NV.mul_(z_NV)
            dz_NV.scatter_add_(1, token_T[rows, None], a_T[rows, None])
            dz_NV = dz_NV.to(operand_VD.dtype)  # float32 products would be many times slower on a GPU
            if needs_hidden:
                if d_hidden_TD.dtype == dz_NV.dtype:
                    torch.mm(dz_NV, operand_VD, out=d_hidden_TD[rows])
                else:
                    d_hidden_TD[rows] = dz_NV @ operand_VD
            if needs_weight and dz_NV.dtype == dtype:
                d_weight_VD.addmm_(dz_NV.T, operand_ND)
            elif needs_weight:
                product_VD = torch.empty_like(d_weight_VD) if product_VD is None else product_VD
                _mm(dz_NV.T, operand_ND, product_VD)
                d_weight_VD += product_VD
        return d_hidden_TD, d_weight_VD.to(weight_VD.dtype) if needs_weight else None, None, None


def _chunks(hidden_TD: Tensor, V: int, dtype: torch.dtype, max_elements: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of a chunk and two buffers [N, V] for it, the same memory for every chunk: first touches are slow."""
    T = len(hidden_TD)
    num_rows = min(T, max(1, max_elements // V))
    z_NV, y_NV = (hidden_TD.new_empty(num_rows, V, dtype=dtype) for _ in range(2))
    for start in range(0, T, num_rows or 1):
        N = min(num_rows, T - start)
        yield slice(start, start + N), z_NV[:N], y_NV[:N]


def _operand(x_XD: Tensor) -> Tensor:
    """x in a dtype whose products `_mm` can sum and keep in float32 or better."""
    if _HAS_FLOAT32_SUMS and x_XD.is_cuda and x_XD.dtype == torch.bfloat16:
        return x_XD
    return x_XD.to(torch.promote_types(x_XD.dtype, torch.float32))


def _mm(a_XY: Tensor, b_YZ: Tensor, out_XZ: Tensor) -> None:
    """out = a · b, summed and kept in out's dtype."""
    if a_XY.dtype == out_XZ.dtype:
        torch.mm(a_XY, b_YZ, out=out_XZ)
    else:
        torch.mm(a_XY, b_YZ, out_dtype=out_XZ.dtype, out=out_XZ)
