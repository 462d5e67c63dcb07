"""Matrix products whose sums are kept in float32, whatever their operands are.

A bfloat16 logit of 20 is off by up to 0.06: rounding logits before the soft-max moves log-probabilities by more than a
step of training does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

# Products of bfloat16 or float16 whose float32 sums are kept and may be added to. Only CUDA has them.
_HAS_FLOAT32_SUMS = torch.version.cuda is not None and "dtype_out" in torch.ops.aten.addmm.overloads()

_UPCAST_ELEMENTS = 1 << 22

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
# Float32 on a CPU: in multiples of this many rows, products and sums of a row do not depend on the others. One row
# alone may be summed by several threads; MKL's products of fewer than 12 round in other ways, and so do remainders.
ROWS = 4 if _HAS_ONEDNN else 16


def addmm_(out_XZ: Tensor, a_XY: Tensor, b_YZ: Tensor, beta: float = 1.0, alpha: float = 1.0) -> None:
    """out = beta · out + alpha · a · b, summed and kept in out's dtype; beta 0 does not read out."""
    if a_XY.dtype == out_XZ.dtype:
        out_XZ.addmm_(a_XY, b_YZ, beta=beta, alpha=alpha)
    elif _HAS_FLOAT32_SUMS and a_XY.is_cuda:
        torch.addmm(out_XZ, a_XY, b_YZ, beta=beta, alpha=alpha, out_dtype=out_XZ.dtype, out=out_XZ)
    else:
        out_XZ.addmm_(a_XY.to(out_XZ.dtype), b_YZ.to(out_XZ.dtype), beta=beta, alpha=alpha)


class PackedWeights:
    """Products of float32 on a CPU whose rows do not depend on one another, however many there are.

    Those of oneDNN: every sum goes through the model width in order. (MKL, behind `F.linear`, cuts it by the number of
    rows.) Weights are laid out anew for it, as much memory again, each once for as long as it is not written to. With
    few rows that is also 1.3 to 3 times as fast, once a number of rows has come up before: each is a program of its
    own, made in a millisecond. `linear` multiplies so within `in_use`; gradients flow. Where torch has no oneDNN
    nothing changes.
    """

    def __init__(self) -> None:
        # By weights: those weights, how often each was written to, and what is laid out of them.
        self._kept: dict[tuple[int, ...], tuple[Sequence[Tensor], list[int], Tensor]] = {}

    def clear(self) -> None:
        self._kept.clear()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        token = _packed_weights.set(self if _HAS_ONEDNN else None)
        try:
            yield
        finally:
            _packed_weights.reset(token)

    def linear(self, x_BD: Tensor, weight_ND: Tensor, bias_N: Tensor | None) -> Tensor:
        packed = self._packed([weight_ND])
        if torch.is_grad_enabled():
            return _PackedLinear.apply(x_BD, weight_ND, bias_N, packed)
        return _packed_linear(x_BD, packed, bias_N)

    def linears(self, x_BD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> Tensor:
        """Of several weights [N, D] with one input, side by side, in one product; without gradients."""
        return _packed_linear(x_BD, self._packed(weights), None if biases is None else torch.cat([*biases]))

    def _packed(self, weights: Sequence[Tensor]) -> Tensor:
        key, versions = tuple(map(id, weights)), [weight._version for weight in weights]
        kept, versions_then, packed = self._kept.get(key, ((), None, None))
        if versions != versions_then or any(a is not b for a, b in zip(kept, weights, strict=True)):
            whole = weights[0] if len(weights) == 1 else torch.cat([*weights])
            packed = torch.ops.mkldnn._reorder_linear_weight(whole.detach(), None)
            self._kept[key] = weights, versions, packed
        return packed


def _packed_linear(x_BD: Tensor, packed: Tensor, bias_N: Tensor | None) -> Tensor:
    if x_BD.shape[:-1].numel() == 1:  # one row alone is a product of another kind, whose long sums are cut
        return _packed_linear(torch.cat([x_BD, x_BD], dim=-2), packed, bias_N)[..., :1, :]
    return torch.ops.mkldnn._linear_pointwise(x_BD, packed, bias_N, "none", [], "")


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BD: Tensor, weight_ND: Tensor, bias_N: Tensor | None, packed: Tensor) -> Tensor:
        ctx.save_for_backward(x_BD, weight_ND)
        return _packed_linear(x_BD, packed, bias_N)

    @staticmethod
    def backward(ctx, dy_BN: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, weight_ND = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        dy_TN = dy_BN.flatten(0, -2)
        return (
            dy_BN @ weight_ND if needs_x else None,
            dy_TN.T @ x_BD.flatten(0, -2) if needs_weight else None,
            dy_TN.sum(0) if needs_bias else None,
            None,
        )


_packed_weights: ContextVar[PackedWeights | None] = ContextVar("packed_weights", default=None)


def packed_weights() -> AbstractContextManager[None]:
    """The `PackedWeights` in use, or new ones for as long as this lasts."""
    return PackedWeights().in_use() if _packed_weights.get() is None else nullcontext()


def linear(x_BD: Tensor, weight_ND: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """`F.linear`, by the `PackedWeights` in use for float32 on a CPU."""
    packed = _packed_for(x_BD)
    return F.linear(x_BD, weight_ND, bias_N) if packed is None else packed.linear(x_BD, weight_ND, bias_N)


def linears(x_BD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None) -> Tensor | None:
    """The products of one input with several weights, side by side, where one product can be made of them: without
    gradients, by the `PackedWeights` in use, or where the weights lie side by side. Else None."""
    if torch.is_grad_enabled():
        return None
    packed = _packed_for(x_BD)
    if packed is not None:
        return packed.linears(x_BD, weights, biases)
    whole = side_by_side(weights)
    return None if whole is None else F.linear(x_BD, whole, None if biases is None else torch.cat([*biases]))


def _packed_for(x_BD: Tensor) -> PackedWeights | None:
    return _packed_weights.get() if x_BD.device.type == "cpu" and x_BD.dtype == torch.float32 else None


def lay_side_by_side_(tensors: Sequence[Tensor]) -> None:
    """Moves tensors of equal rows, so that `side_by_side` finds them as one."""
    whole = torch.cat([x.detach() for x in tensors])
    for x, part in zip(tensors, whole.split([len(x) for x in tensors]), strict=True):
        x.data = part


def side_by_side(tensors: Sequence[Tensor]) -> Tensor | None:
    """One view of tensors that follow one another in memory; None if they do not."""
    first, end = tensors[0], tensors[0].data_ptr()
    for x in tensors:
        is_next = x.data_ptr() == end and x.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (is_next and x.is_contiguous()):
            return None
        end += x.numel() * x.element_size()
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride(), first.storage_offset())


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
