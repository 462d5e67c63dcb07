"""Matrix products whose sums are kept in float32, whatever their operands are.

A bfloat16 logit of 20 is off by up to 0.06: rounding logits before the soft-max moves log-probabilities by more than a
step of training does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Products of bfloat16 or float16 whose float32 sums are kept and may be added to. Only CUDA has them.
_HAS_FLOAT32_SUMS = torch.version.cuda is not None and "dtype_out" in torch.ops.aten.addmm.overloads()

_UPCAST_ELEMENTS = 1 << 22
_FEW_ROWS = 12, 128


def addmm_(out_XZ: Tensor, a_XY: Tensor, b_YZ: Tensor, beta: float = 1.0, alpha: float = 1.0) -> None:
    """out = beta · out + alpha · a · b, summed and kept in out's dtype; beta 0 does not read out."""
    if a_XY.dtype == out_XZ.dtype:
        out_XZ.addmm_(a_XY, b_YZ, beta=beta, alpha=alpha)
    elif _HAS_FLOAT32_SUMS and a_XY.is_cuda:
        torch.addmm(out_XZ, a_XY, b_YZ, beta=beta, alpha=alpha, out_dtype=out_XZ.dtype, out=out_XZ)
    else:
        out_XZ.addmm_(a_XY.to(out_XZ.dtype), b_YZ.to(out_XZ.dtype), beta=beta, alpha=alpha)


def linear(x_BD: Tensor, weight_ND: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """`F.linear` of any leading dimensions, faster where few rows on a CPU meet a large weight.

    Computed the other way round, weight · xᵀ, the library packs x and not the weight: 1.2 to 1.8 times as fast for 16
    to 64 rows. From 12 rows on the bits are the same; with fewer neither way gives those of many rows.
    """
    num_rows = x_BD.numel() // max(1, x_BD.shape[-1])
    is_eligible = x_BD.device.type == "cpu" and x_BD.dtype == torch.float32 and not torch.is_grad_enabled()
    # A bias is added within the other product, where its sums are rounded otherwise.
    if not is_eligible or bias_N is not None or not _FEW_ROWS[0] <= num_rows <= _FEW_ROWS[1]:
        return F.linear(x_BD, weight_ND, bias_N)
    y_BN = (weight_ND @ x_BD.reshape(num_rows, -1).T).T.contiguous()
    return y_BN.view(*x_BD.shape[:-1], -1)


def float32_logits(hidden_BD: Tensor, weight_VD: Tensor) -> Tensor:
    """hidden · weightᵀ, float32 [B, V], summed in float32 or better, or in what torch is set to make of it (TF32)."""
    if hidden_BD.dtype == torch.float64:
        return (hidden_BD @ weight_VD.T).float()
    if hidden_BD.dtype == torch.float32 and not hidden_BD.is_cuda:
        return linear(hidden_BD, weight_VD)
    (B, D), V = hidden_BD.shape, len(weight_VD)
    logits_BV = hidden_BD.new_empty(B, V, dtype=torch.float32)
    # Where operands have to be made float32 first, not all of the weight at once.
    step = V if hidden_BD.is_cuda else max(1, _UPCAST_ELEMENTS // max(1, D))
    for start in range(0, V, step):
        some = slice(start, start + step)
        addmm_(logits_BV[:, some], hidden_BD, weight_VD[some].T, beta=0)
    return logits_BV
