"""The clipped surrogate of GRPO and PPO, with KL penalty and entropy bonus: value and gradient per token, in one pass.

Bound by bytes, not flops: 12 to 25 read and 13 written per token in float32, and 2 to 3 arrays more in backward. A step
of 10^5 tokens is about a microsecond of an H100's memory, so what is saved over torch is its sixty launches.

    T loss tokens
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.check import check_dtype, check_shapes
from kernels.jit import architecture, cdiv, jit, tl, triton

KlEstimator = Literal["k1", "k2", "k3"]

FLOATS = (torch.bfloat16, torch.float32, torch.float64)
MAX_LOG_RATIO = 20.0  # e^20 = 4.9e8

# (tokens of a program, warps): 4 tokens a thread, 16 bytes of float32; small programs, as T is some ten thousand.
# From register counts and the sizes of loads, not yet from measurements on a GPU.
CONFIGS = {"sm_80": (512, 4), "sm_90": (512, 4)}


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """What a token adds to the step's loss, and what to watch. float32, or float64 if the log-probs are."""

    loss_T: Tensor
    is_clipped_T: Tensor  # bool: a clip bound took the ratio's place, so the token has no policy gradient
    kl_T: Tensor  # the estimate against the reference, no gradient; zeros without a reference


class _Options(NamedTuple):
    least_ratio: float
    most_ratio: float
    dual_clip: float  # inf: none
    kl_coef: float
    kl_estimator: KlEstimator
    entropy_coef: float
    num_tokens: float


def grpo_loss_ref(
    logprob_T: Tensor,
    old_logprob_T: Tensor,
    advantage_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    reference_logprob_T: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KlEstimator = "k3",
    importance_weight_T: Tensor | None = None,
    entropy_T: Tensor | None = None,
    entropy_coef: float = 0.0,
    mask_T: Tensor | None = None,
    num_tokens: float = 1.0,
) -> TokenLoss:
    """The definition; autograd gives its gradient. See `grpo_loss`."""
    dtype = torch.promote_types(logprob_T.dtype, torch.float32)

    def read(x_T: Tensor) -> Tensor:  # a masked token's inputs are never seen: 0 times NaN would be NaN in backward
        return x_T.to(dtype) if mask_T is None else torch.where(mask_T, x_T.to(dtype), 0.0)

    x_T, advantage_T = read(logprob_T), read(advantage_T).detach()
    ratio_T = _limited(x_T - read(old_logprob_T).detach()).exp()
    # min(ratio A, clip(ratio) A) is the second where the ratio is strictly beyond the bound that A pushes it to.
    is_clipped_T = ((advantage_T > 0) & (ratio_T > 1 + clip_high)) | ((advantage_T < 0) & (ratio_T < 1 - clip_low))
    surrogate_T = torch.where(is_clipped_T, ratio_T.clamp(1 - clip_low, 1 + clip_high), ratio_T) * advantage_T
    if dual_clip is not None:  # max(that, c A) for negative A
        is_floored_T = (advantage_T < 0) & (ratio_T > dual_clip)
        surrogate_T = torch.where(is_floored_T, dual_clip * advantage_T, surrogate_T)
        is_clipped_T = is_clipped_T | is_floored_T
    loss_T = -surrogate_T
    if importance_weight_T is not None:
        loss_T = loss_T * read(importance_weight_T).detach()
    kl_T = torch.zeros_like(x_T)
    if reference_logprob_T is not None:
        u_T = _limited(read(reference_logprob_T).detach() - x_T)
        kl_T = {"k1": lambda: -u_T, "k2": lambda: u_T.square() / 2, "k3": lambda: u_T.exp() - u_T - 1}[kl_estimator]()
        if kl_coef:
            loss_T = loss_T + kl_coef * kl_T
    if entropy_T is not None and entropy_coef:
        loss_T = loss_T - entropy_coef * read(entropy_T)
    if mask_T is not None:
        loss_T = loss_T.masked_fill(~mask_T, 0.0)
    return TokenLoss(loss_T / num_tokens, is_clipped_T, kl_T.detach())


def _limited(log_ratio_T: Tensor) -> Tensor:
    """Within ±MAX_LOG_RATIO as it is, NaN too; a constant beyond."""
    is_far_T = log_ratio_T.abs() > MAX_LOG_RATIO
    return torch.where(is_far_T, log_ratio_T.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), log_ratio_T)


def grpo_loss(
    logprob_T: Tensor,
    old_logprob_T: Tensor,
    advantage_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    reference_logprob_T: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KlEstimator = "k3",
    importance_weight_T: Tensor | None = None,
    entropy_T: Tensor | None = None,
    entropy_coef: float = 0.0,
    mask_T: Tensor | None = None,
    num_tokens: float = 1.0,
) -> TokenLoss:
    """Clipped surrogate with a KL penalty (DeepSeekMath, arXiv:2402.03300, eq. 3), for every token.

        loss = (-w min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) + kl_coef kl - entropy_coef H) / num_tokens
        ratio = exp(logprob - old_logprob)

    Triton on CUDA, in closed form with torch elsewhere and for float64.

    With `dual_clip` c and a negative advantage the minimum is at least c A, which bounds the loss by -c A however
    likely a bad token has become (arXiv:1912.09729).

    kl, with u = reference_logprob - logprob, and its gradient as a loss on tokens drawn from the policy itself:

        k1 = -u              ∂/∂logprob = 1           0 in expectation: noise, and no pull towards the reference
        k2 = u² / 2          ∂/∂logprob = -u          in expectation that of KL(policy ‖ reference)
        k3 = exp(u) - u - 1  ∂/∂logprob = 1 - exp(u)  in expectation that of KL(reference ‖ policy)

    (k1 and k3 are unbiased as values: J. Schulman, "Approximating KL divergence", 2020.)

    Decided here:
    - A ratio exactly on a bound is not clipped: there the gradient is -w A ratio, and not half of it.
    - Both log-ratios are limited to ±20 and constant beyond (gradient 0), so that any finite log-probs, and infinite
      ones whose difference has a sign, give finite values and gradients. -inf less -inf is NaN.
    - NaN in an unmasked token's input gives a NaN loss there, and a NaN gradient where that is a function of the input
      (a clipped token's is none of w, and that of k1 none of the reference).
    - A masked token gives exactly 0 in loss, KL and gradient, whatever its inputs, and is not clipped.
    - A gradient of 0 stays 0 whatever the gradient of its loss, inf and NaN too.
    - A term with coefficient 0 is left out, and with it a NaN in its input; a reference is measured all the same.
    - The gradient flows to logprob and entropy alone. It cannot be differentiated again.

    Args:
        logprob_T: under the policy now, in nats. bfloat16 and float32 are computed in float32, float64 in float64.
        old_logprob_T: under the policy whose ratio is clipped.
        advantage_T: A.
        clip_low, clip_high: in [0, 1); at least 0, where inf is no bound.
        dual_clip: c, above 1.
        reference_logprob_T, kl_coef, kl_estimator: without a reference `kl_T` is 0.
        importance_weight_T: w, for instance a truncated ratio of trainer to rollout. On the policy term. At least 0,
            which is not checked.
        entropy_T, entropy_coef: entropy H of the policy in nats.
        mask_T: bool; False leaves a token out.
        num_tokens: what each loss is divided by; 1 leaves a sum, not a mean. With the number of a step's tokens, over
            all ranks, the losses are shares that add up to the step's, however it is split.

    Raises:
        TypeError, ValueError: an argument of another shape, dtype, device or range; a coefficient without its input.
    """
    optional = {
        "reference_logprob": reference_logprob_T, "importance_weight": importance_weight_T, "entropy": entropy_T,
        "mask": mask_T,
    }  # fmt: skip
    tensors = {"logprob": logprob_T, "old_logprob": old_logprob_T, "advantage": advantage_T}
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    check_shapes(**{name: (tensor, "T") for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        check_dtype(name, tensor, *([torch.bool] if name == "mask" else FLOATS))
    for name, value, is_right, right in (
        ("clip_low", clip_low, lambda x: 0 <= x < 1, "in [0, 1)"),
        ("clip_high", clip_high, lambda x: x >= 0, "at least 0"),
        ("dual_clip", float("inf") if dual_clip is None else dual_clip, lambda x: x > 1, "above 1, or None"),
        ("kl_coef", kl_coef, lambda x: 0 <= x < float("inf"), "at least 0 and finite"),
        ("entropy_coef", entropy_coef, lambda x: 0 <= x < float("inf"), "at least 0 and finite"),
        ("num_tokens", num_tokens, lambda x: 0 < x < float("inf"), "positive and finite"),
    ):
        if isinstance(value, Tensor):
            raise ValueError(f"{name} must be a number, got a tensor: hand in its .item()")
        if not (isinstance(value, Real) and is_right(value)):
            raise ValueError(f"{name} must be {right}, got {value!r}")
    if kl_estimator not in ("k1", "k2", "k3"):
        raise ValueError(f"kl_estimator must be k1, k2 or k3, got {kl_estimator!r}")
    if kl_coef and reference_logprob_T is None:
        raise ValueError(f"kl_coef={kl_coef} needs reference_logprob_T")
    if entropy_coef and entropy_T is None:
        raise ValueError(f"entropy_coef={entropy_coef} needs entropy_T")
    bounds = (1 - clip_low, 1 + clip_high, float("inf") if dual_clip is None else dual_clip)
    options = _Options(*map(float, bounds), float(kl_coef), kl_estimator, float(entropy_coef), float(num_tokens))
    has_triton = triton is not None and logprob_T.is_cuda and logprob_T.dtype != torch.float64
    form = _grpo_loss_triton if has_triton else _grpo_loss_torch
    with torch.cuda.device_of(logprob_T):  # where Triton launches, whatever the current device is
        return TokenLoss(
            *_GrpoLoss.apply(
                form, options, logprob_T, old_logprob_T, advantage_T, reference_logprob_T, importance_weight_T,
                entropy_T if entropy_coef else None, mask_T,
            )
        )  # fmt: skip


class _GrpoLoss(torch.autograd.Function):
    """Of either form, `_grpo_loss_torch` or `_grpo_loss_triton`. The forward pass leaves nothing but ∂loss/∂logprob."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, form: Callable, options: _Options, logprob_T: Tensor, old_logprob_T: Tensor,
        advantage_T: Tensor, reference_T: Tensor | None, weight_T: Tensor | None, entropy_T: Tensor | None,
        mask_T: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        loss_T, is_clipped_T, kl_T, slope_T = form(
            logprob_T, old_logprob_T, advantage_T, reference_T, weight_T, entropy_T, mask_T, options,
            needs_slope=ctx.needs_input_grad[2],
        )  # fmt: skip
        ctx.save_for_backward(slope_T, mask_T)
        ctx.entropy_slope = -options.entropy_coef / options.num_tokens
        ctx.dtypes = logprob_T.dtype, None if entropy_T is None else entropy_T.dtype
        ctx.mark_non_differentiable(is_clipped_T, kl_T)
        return loss_T, is_clipped_T, kl_T

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream_T: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        slope_T, mask_T = ctx.saved_tensors
        d_logprob_T = d_entropy_T = None
        if ctx.needs_input_grad[2]:
            # 0 stays 0 under an upstream of inf (a square root's at the 0 of a masked token), as in the definition.
            d_logprob_T = (slope_T * upstream_T).masked_fill_(slope_T == 0, 0.0).to(ctx.dtypes[0])
        if ctx.needs_input_grad[7]:
            d_entropy_T = ctx.entropy_slope * upstream_T
            if mask_T is not None:
                d_entropy_T = d_entropy_T.masked_fill(~mask_T, 0.0)
            d_entropy_T = d_entropy_T.to(ctx.dtypes[1])
        return None, None, d_logprob_T, None, None, None, None, d_entropy_T, None


def _grpo_loss_torch(
    logprob_T: Tensor,
    old_logprob_T: Tensor,
    advantage_T: Tensor,
    reference_T: Tensor | None,
    weight_T: Tensor | None,
    entropy_T: Tensor | None,
    mask_T: Tensor | None,
    options: _Options,
    needs_slope: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(loss_T, is_clipped_T, kl_T, ∂loss/∂logprob) in plain torch, on any device."""
    dtype = torch.promote_types(logprob_T.dtype, torch.float32)
    x_T, old_T, advantage_T, reference_T, weight_T, entropy_T = (
        None if tensor is None else tensor.to(dtype)
        for tensor in (logprob_T, old_logprob_T, advantage_T, reference_T, weight_T, entropy_T)
    )
    distance_T = x_T - old_T
    is_far_T = distance_T.abs() > MAX_LOG_RATIO
    ratio_T = distance_T.clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp_()
    is_bad_T = advantage_T < 0
    is_high_T = (advantage_T > 0) & (ratio_T > options.most_ratio)
    is_low_T = is_bad_T & (ratio_T < options.least_ratio)
    is_floored_T = is_bad_T & (ratio_T > options.dual_clip)
    is_clipped_T = is_high_T | is_low_T | is_floored_T
    weighted_T = -advantage_T if weight_T is None else -advantage_T * weight_T
    slope_T = (weighted_T * ratio_T).masked_fill_(is_clipped_T | is_far_T, 0.0) if needs_slope else None
    for is_beyond_T, bound in (
        (is_high_T, options.most_ratio), (is_low_T, options.least_ratio), (is_floored_T, options.dual_clip),
    ):  # fmt: skip
        ratio_T.masked_fill_(is_beyond_T, bound)
    loss_T = weighted_T.mul_(ratio_T)
    kl_T = torch.zeros_like(loss_T)
    if reference_T is not None:
        u_T = reference_T - x_T
        is_far_T = u_T.abs() > MAX_LOG_RATIO
        u_T.clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        if options.kl_estimator == "k1":
            kl_T, kl_slope_T = -u_T, torch.ones_like(u_T)
        elif options.kl_estimator == "k2":
            kl_T, kl_slope_T = u_T.square().div_(2), -u_T
        else:
            kl_slope_T = u_T.expm1()
            kl_T, kl_slope_T = kl_slope_T - u_T, kl_slope_T.neg_()
        if options.kl_coef:
            loss_T.add_(kl_T, alpha=options.kl_coef)
            if slope_T is not None:
                slope_T.add_(kl_slope_T.masked_fill_(is_far_T, 0.0), alpha=options.kl_coef)
    if entropy_T is not None:
        loss_T.sub_(entropy_T, alpha=options.entropy_coef)
    for result_T in (loss_T, kl_T, is_clipped_T, slope_T):
        if mask_T is not None and result_T is not None:
            result_T.masked_fill_(~mask_T, 0)
    loss_T.div_(options.num_tokens)
    if slope_T is not None:
        slope_T.div_(options.num_tokens)
    return loss_T, is_clipped_T, kl_T, slope_T


def _grpo_loss_triton(
    logprob_T: Tensor,
    old_logprob_T: Tensor,
    advantage_T: Tensor,
    reference_T: Tensor | None,
    weight_T: Tensor | None,
    entropy_T: Tensor | None,
    mask_T: Tensor | None,
    options: _Options,
    needs_slope: bool = True,
    config: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(loss_T, is_clipped_T, kl_T, ∂loss/∂logprob), in float32."""
    T = len(logprob_T)
    loss_T, kl_T, slope_T = (logprob_T.new_empty(T, dtype=torch.float32) for _ in range(3))
    is_clipped_T = logprob_T.new_empty(T, dtype=torch.bool)
    if not needs_slope:
        slope_T = None
    if T:
        block, num_warps = config or CONFIGS[architecture(logprob_T.device)]
        inputs = (logprob_T, old_logprob_T, advantage_T, reference_T, weight_T, entropy_T, mask_T)
        _grpo_loss_kernel[(cdiv(T, block),)](
            *(None if tensor is None else tensor.contiguous() for tensor in inputs),
            loss_T, is_clipped_T, kl_T, slope_T,
            T, options.least_ratio, options.most_ratio, options.dual_clip,
            options.kl_coef, options.entropy_coef, 1 / options.num_tokens,
            KL_ESTIMATOR=options.kl_estimator, HAS_KL_TERM=options.kl_coef > 0, MAX_LOG_RATIO=MAX_LOG_RATIO,
            BLOCK=block, num_warps=num_warps, enable_fp_fusion=True,
        )  # fmt: skip
    return loss_T, is_clipped_T, kl_T, slope_T


@jit
def _grpo_loss_kernel(
    logprob_ptr, old_logprob_ptr, advantage_ptr, reference_ptr, weight_ptr, entropy_ptr, mask_ptr,  # last 4: or None
    loss_ptr, is_clipped_ptr, kl_ptr, slope_ptr,  # slope: or None
    T, least_ratio, most_ratio, dual_clip, kl_coef, entropy_coef, inverse_num_tokens,
    KL_ESTIMATOR: tl.constexpr, HAS_KL_TERM: tl.constexpr, MAX_LOG_RATIO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Selections and comparisons only, no minimum or maximum: NaN is never taken for a number.
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_inside = i < T
    x = tl.load(logprob_ptr + i, mask=is_inside, other=0.0).to(tl.float32)
    old = tl.load(old_logprob_ptr + i, mask=is_inside, other=0.0).to(tl.float32)
    advantage = tl.load(advantage_ptr + i, mask=is_inside, other=0.0).to(tl.float32)
    is_kept = is_inside
    if mask_ptr is not None:
        is_kept = tl.load(mask_ptr + i, mask=is_inside, other=0).to(tl.int1)

    log_ratio, is_far = _limit(x - old, MAX_LOG_RATIO)
    ratio = tl.exp(log_ratio)
    is_bad = advantage < 0
    least = tl.where(is_bad, least_ratio, 0.0)
    most = tl.where(advantage > 0, most_ratio, tl.where(is_bad, dual_clip, float("inf")))
    is_clipped = (ratio < least) | (ratio > most)
    weighted = -advantage
    if weight_ptr is not None:
        weighted *= tl.load(weight_ptr + i, mask=is_inside, other=0.0).to(tl.float32)
    loss = weighted * tl.where(ratio < least, least, tl.where(ratio > most, most, ratio))
    slope = tl.where(is_clipped | is_far, 0.0, weighted * ratio)

    kl = tl.zeros([BLOCK], tl.float32)
    if reference_ptr is not None:
        reference = tl.load(reference_ptr + i, mask=is_inside, other=0.0).to(tl.float32)
        u, is_far = _limit(reference - x, MAX_LOG_RATIO)
        if KL_ESTIMATOR == "k1":
            kl = -u
            kl_slope = tl.where(is_far, 0.0, 1.0)
        elif KL_ESTIMATOR == "k2":
            kl = 0.5 * u * u
            kl_slope = tl.where(is_far, 0.0, -u)
        else:
            # Near 0, where exp(u) - u - 1 cancels: u²/2! + … + u⁷/7!, to 1e-8 of it.
            series = u * (1 / 6 + u * (1 / 24 + u * (1 / 120 + u * (1 / 720 + u * (1 / 5040)))))
            kl = tl.where(tl.abs(u) < 0.25, u * u * (0.5 + series), tl.exp(u) - u - 1.0)
            kl_slope = tl.where(is_far, 0.0, -(u + kl))  # 1 - exp(u)
        if HAS_KL_TERM:
            loss += kl_coef * kl
            slope += kl_coef * kl_slope
    if entropy_ptr is not None:
        loss -= entropy_coef * tl.load(entropy_ptr + i, mask=is_inside, other=0.0).to(tl.float32)

    tl.store(loss_ptr + i, tl.where(is_kept, loss * inverse_num_tokens, 0.0), mask=is_inside)
    tl.store(is_clipped_ptr + i, is_clipped & is_kept, mask=is_inside)
    tl.store(kl_ptr + i, tl.where(is_kept, kl, 0.0), mask=is_inside)
    if slope_ptr is not None:
        tl.store(slope_ptr + i, tl.where(is_kept, slope * inverse_num_tokens, 0.0), mask=is_inside)


@jit
def _limit(x, LIMIT: tl.constexpr):
    """(x within ±LIMIT, whether it was beyond); NaN stays."""
    limited = tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))
    return limited, tl.abs(x) > LIMIT


def shipped_launches(arch: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, launch on meta tensors): with nothing, with everything, and of a T that no vector of loads divides."""
    for name, T, dtype, kl_estimator in (
        ("plain", 16_384, torch.float32, None),
        ("k1", 16_384, torch.float32, "k1"),
        ("k2", 16_384, torch.float32, "k2"),
        ("k3", 16_384, torch.float32, "k3"),
        ("k3 bfloat16", 16_384, torch.bfloat16, "k3"),
        ("k3 ragged", 16_383, torch.float32, "k3"),
    ):
        x_T = torch.empty(T, dtype=dtype, device="meta")
        mask_T = torch.empty(T, dtype=torch.bool, device="meta")
        optional = (None,) * 4 if kl_estimator is None else (x_T, x_T, x_T, mask_T)
        options = _Options(0.8, 1.28, 3.0, 1e-3, kl_estimator or "k3", 1e-3, float(T))
        yield name, lambda args=(x_T, x_T, x_T, *optional, options): _grpo_loss_triton(*args, config=CONFIGS[arch])
